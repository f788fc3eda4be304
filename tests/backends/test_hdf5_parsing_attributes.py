"""Attributes of HDF5 files, with the values and types that h5py gives them."""

import io
import struct
from typing import Any

import h5py
import numpy as np
import pytest
from bounds import cheap
from hdf5_images import ATTRIBUTE, CONTINUATION, INT8, SCALAR, TEXT, Image, attribute, global_heap, header, message, parsed

from ckptmgr.errors import CorruptCheckpointError
from ckptmgr_hdf5.parsing import Unknown

VALUES: dict[str, Any] = {
    "text": "höher",
    "empty text": "",
    "long text": "x" * 100_000,
    "bytes": np.bytes_(b"ab"),
    "numpy text": np.array([b"a", b"bcd"]),
    "int": 7,
    "float": 2.5,
    "bool": True,
    "no bool": np.bool_(False),
    "complex": 1 + 2j,
    "bools": np.array([[True, False]]),
    "matrix": np.arange(6, dtype="i2").reshape(2, 3),
    "big-endian": np.array([1, 2], ">u4"),
    "empty list": [],
    "opaque": np.void(b"ab"),
}


def attributes(libver: str = "earliest", **values: Any) -> Any:
    target = io.BytesIO()
    with h5py.File(target, "w", libver=libver) as file:
        file.attrs.update(values)
    return parsed(target.getvalue()).root.attributes


def by_hand(*messages: bytes, image: Image | None = None) -> Any:
    image = image or Image()
    return parsed(image.finished(image.group([], [], *messages))).root.attributes


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("name", VALUES)
def test_a_value_is_what_h5py_reads(name: str, libver: str) -> None:
    target = io.BytesIO()
    with h5py.File(target, "w", libver=libver if name != "long text" else "earliest") as file:
        file.attrs[name] = VALUES[name]
        right = file.attrs[name]

    found = parsed(target.getvalue()).root.attributes[name]

    assert type(found) is type(right)
    np.testing.assert_array_equal(found, right)
    assert getattr(found, "dtype", None) == getattr(right, "dtype", None)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_as_keras_writes_them_are_an_array_of_texts(encoding: str) -> None:
    names = np.array([b"dense", b"dense_1"], h5py.string_dtype(encoding))

    found = attributes(layer_names=names)["layer_names"]

    assert found.dtype == object
    assert found.tolist() == ["dense", "dense_1"]


def test_an_ascii_tag_on_utf_8_is_no_error() -> None:
    found = attributes(config=np.array("ä".encode(), h5py.string_dtype("ascii")))

    assert found["config"] == "ä"


def test_texts_of_fixed_length_are_null_padded_bytes() -> None:
    found = attributes(names=np.array([b"a", b"abc"], "S8"))["names"]

    assert found.tolist() == [b"a", b"abc"]
    assert found.dtype == np.dtype("S8")


def test_an_attribute_without_elements_and_shape_is_none() -> None:
    assert attributes(x=h5py.Empty("f4"))["x"] is None


def test_text_that_is_no_utf_8_is_an_error_that_names_object_and_attribute() -> None:
    found = attributes(config=np.array(b"\xff\xfe", h5py.string_dtype("ascii")), name="x")

    with pytest.raises(CorruptCheckpointError, match=r"'run/x.h5'.*'/': attribute 'config': the text .* is no UTF-8"):
        _ = found["config"]
    assert found["name"] == "x"


def test_an_attribute_that_is_not_there_is_a_key_error() -> None:
    found = attributes(name="x")

    assert "other" not in found
    assert found.get("other") is None
    with pytest.raises(KeyError, match="other"):
        _ = found["other"]


def test_an_object_without_attributes_has_none() -> None:
    found = attributes()

    assert len(found) == 0
    assert [*found] == []


@pytest.mark.parametrize(
    "kind", [h5py.ref_dtype, h5py.vlen_dtype("i4"), np.dtype([("a", "i4")]), h5py.enum_dtype({"A": 1}, "i1")]
)
def test_a_value_of_another_type_is_left_to_others(kind: Any) -> None:
    target = io.BytesIO()
    with h5py.File(target, "w") as file:
        file.attrs["name"] = "x"
        h5py.h5a.create(file.id, b"other", h5py.h5t.py_create(kind, logical=True), h5py.h5s.create_simple((1,)))

    found = parsed(target.getvalue()).root.attributes

    assert found["name"] == "x"
    with pytest.raises(Unknown, match="'/': attribute 'other': its type"):
        _ = found["other"]


def test_a_shared_type_is_left_to_others() -> None:
    target = io.BytesIO()
    with h5py.File(target, "w") as file:
        file["type"] = np.dtype("f4")
        file.attrs.create("x", 1, dtype=file["type"])

    with pytest.raises(Unknown, match="attribute 'x': a type or shape that is shared"):
        _ = parsed(target.getvalue()).root.attributes["x"]


@pytest.mark.parametrize("kind", range(2, 16))
def test_a_damaged_kind_of_variable_length_is_an_error_and_no_crash(kind: int) -> None:
    damaged = struct.pack("<I", 0x19 | kind << 8) + TEXT[4:]

    found = by_hand(attribute("name", damaged, SCALAR, struct.pack("<IQI", 1, 96, 1)))

    with pytest.raises(CorruptCheckpointError, match=f"attribute 'name': there is no type of variable length of kind {kind}"):
        _ = found["name"]


def test_a_name_that_is_no_utf_8_spoils_only_the_attributes_of_its_object() -> None:
    image = Image()
    raw = attribute("name", INT8, SCALAR, b"\1").replace(b"name", b"\xffame")
    bad, good = image.group([], [], raw), image.group([], [], attribute("name", INT8, SCALAR, b"\1"))

    tree = parsed(image.finished(image.group([b"bad", b"good"], [bad, good])))

    with pytest.raises(CorruptCheckpointError, match=r"'/bad': attributes: the name .* is no UTF-8"):
        len(tree.root.children["bad"].attributes)
    assert tree.root.children["good"].attributes["name"] == 1


@pytest.mark.parametrize("name", [b"name\1", b"na\0e\0"])
def test_a_name_of_another_length_than_it_says_is_an_error(name: bytes) -> None:
    raw = attribute("name", INT8, SCALAR, b"\1").replace(b"name\0", name)

    with pytest.raises(CorruptCheckpointError, match="is of another length than 5"):
        len(by_hand(raw))


def test_two_attributes_of_one_name_are_an_error() -> None:
    found = by_hand(attribute("name", INT8, SCALAR, b"\1"), attribute("name", INT8, SCALAR, b"\2"))

    with pytest.raises(CorruptCheckpointError, match="there are two of the name 'name'"):
        _ = found["name"]


def test_a_value_that_is_longer_than_its_message_is_an_error() -> None:
    space = struct.pack("<BBB5xQ", 1, 1, 0, 1 << 60)

    with pytest.raises(CorruptCheckpointError, match=r"its shape is .* and 8 bytes are there"):
        _ = by_hand(attribute("name", INT8, space, bytes(8)))["name"]


@pytest.mark.parametrize("sizes", [(1 << 63, 0), (1 << 40, 1 << 40), (0, *[1 << 16] * 4)])
def test_a_shape_over_all_limits_is_an_error(sizes: tuple[int, ...]) -> None:
    space = struct.pack(f"<BBB5x{len(sizes)}Q", 1, len(sizes), 0, *sizes)

    with pytest.raises(CorruptCheckpointError, match="over all limits"):
        _ = by_hand(attribute("name", INT8, space, bytes(8)))["name"]


@pytest.mark.parametrize("cut", range(0, 40, 8))
def test_a_message_that_ends_early_is_an_error(cut: int) -> None:
    raw = attribute("name", INT8, SCALAR, b"\1")[8:][:cut]

    with pytest.raises(CorruptCheckpointError, match="'/': attribute"):
        _ = by_hand(message(ATTRIBUTE, raw))["name"]


def test_a_message_of_another_version_is_left_to_others() -> None:
    with pytest.raises(Unknown, match="'/': attributes: a message of version 4"):
        len(by_hand(message(ATTRIBUTE, b"\4" + bytes(15))))


def test_a_value_with_more_bytes_than_its_shape_is_left_to_others() -> None:
    with pytest.raises(Unknown, match="attribute 'name': 16 bytes for 1"):
        _ = by_hand(attribute("name", INT8, SCALAR, bytes(16)))["name"]


@pytest.mark.parametrize("version", [1, 2])
def test_newer_attribute_messages_have_no_padding(version: int) -> None:
    prefix = struct.pack("<BBHHH", version + 1, 0, 5, len(INT8), len(SCALAR)) + (b"\1" if version == 2 else b"")

    found = by_hand(message(ATTRIBUTE, prefix + b"name\0" + INT8 + SCALAR + b"\x07"))

    assert found["name"] == 7


def text(length: int, address: int, index: int) -> bytes:
    return attribute("name", TEXT, SCALAR, struct.pack("<IQI", length, address, index))


def test_a_text_lies_in_a_global_heap() -> None:
    image = Image()
    place = image.put(global_heap((1, b"other"), (2, b"text\0more")))

    assert by_hand(text(4, place, 2), image=image)["name"] == "text"


def test_what_follows_a_nul_is_no_part_of_a_text() -> None:
    image = Image()
    place = image.put(global_heap((1, b"text\0more")))

    assert by_hand(text(9, place, 1), image=image)["name"] == "text"


@pytest.mark.parametrize(("length", "index"), [(5, 1), (1, 2), (1, 0), (1 << 31, 1)])
def test_a_text_that_is_not_in_its_heap_is_an_error(length: int, index: int) -> None:
    image = Image()
    place = image.put(global_heap((1, b"text")))

    with pytest.raises(CorruptCheckpointError, match=r"is not object|texts of more"):
        _ = by_hand(text(length, place, index), image=image)["name"]


def test_a_heap_with_two_objects_of_one_index_is_an_error() -> None:
    image = Image()
    place = image.put(global_heap((1, b"text"), (1, b"other")))

    with pytest.raises(CorruptCheckpointError, match="object 1 of the global heap at byte 96 is there twice"):
        _ = by_hand(text(4, place, 1), image=image)["name"]


@pytest.mark.parametrize("place", [0, 8, 1 << 40, (1 << 64) - 1])
def test_a_heap_that_is_not_there_is_an_error(place: int) -> None:
    with pytest.raises(CorruptCheckpointError, match=r"attribute 'name': (there is no global heap|bytes)"):
        _ = by_hand(text(1, place, 1))["name"]


def test_many_texts_of_one_object_are_an_error_where_they_are_more_than_the_file() -> None:
    image = Image()
    place = image.put(global_heap((1, b"x" * 100_000)))
    space = struct.pack("<BBB5xQ", 1, 1, 0, 4000)
    message = attribute("name", TEXT, space, struct.pack("<IQI", 100_000, place, 1) * 4000)

    with cheap(), pytest.raises(CorruptCheckpointError, match="attribute 'name': texts of more than 16"):
        _ = by_hand(message, image=image)["name"]


def test_attributes_of_one_text_have_it_once() -> None:
    image = Image()
    place = image.put(global_heap((1, b"x" * 1000)))
    names = [attribute(name, TEXT, SCALAR, struct.pack("<IQI", 1000, place, 1)) for name in ("a", "b")]

    found = parsed(image.finished(image.put(header(image.table([], []), *names)))).root.attributes

    assert found["a"] is found["b"]


def test_many_lengths_of_one_object_are_an_error() -> None:
    image = Image()
    place = image.put(global_heap((1, b"x" * 10)))
    space = struct.pack("<BBB5xQ", 1, 1, 0, 2)
    message = attribute("name", TEXT, space, struct.pack("<IQIIQI", 9, place, 1, 10, place, 1))

    with pytest.raises(CorruptCheckpointError, match="object 1 of the global heap at byte 96 has two lengths"):
        _ = by_hand(message, image=image)["name"]


def test_heaps_that_overlap_are_an_error_before_they_are_looked_through_again_and_again() -> None:
    image = Image()
    objects = [struct.pack("<HHIQ4sB3xQ", at + 1, 1, 0, 16, b"GCOL", 1, 600_000) for at in range(15_000)]
    first = image.put(struct.pack("<4sB3xQ", b"GCOL", 1, 600_000) + b"".join(objects) + bytes(600_000))
    messages = [attribute(f"n{at}", TEXT, SCALAR, struct.pack("<IQI", 1, first + 32 + 32 * at, at + 2)) for at in range(1500)]
    continued = image.put(b"".join(messages))
    root = header(image.table([], []), message(CONTINUATION, struct.pack("<QQ", continued, sum(map(len, messages)))))

    found = parsed(image.finished(image.put(root))).root.attributes

    assert len(found) == 1500
    with cheap(), pytest.raises(CorruptCheckpointError, match="two of its structures overlap"):
        dict(found)


def test_a_header_of_the_old_kind_with_padding_is_read() -> None:
    image = Image()
    plain = header(image.table([], []), message(0, bytes(24)), attribute("a", INT8, SCALAR, b"\5"))

    assert parsed(image.finished(image.put(plain))).root.attributes["a"] == 5
