"""Objects of HDF5 files whose type, shape or place is damaged: one error that names file and object."""

import struct

import pytest
from hdf5_images import INT8, LAYOUT, SYMBOLS, UNDEFINED, Image, attribute, contiguous, header, message, parsed, shape
from hdf5_refused import x_is

from ckptmgr.errors import CorruptCheckpointError
from ckptmgr_hdf5.parsing import Dataset, Unknown


@pytest.mark.parametrize("address", [1 << 20, 1 << 63, UNDEFINED - 1])
def test_data_outside_of_the_file_is_refused(address: int) -> None:
    x_is([shape(4), message(3, INT8), contiguous(address, 4)], "its bytes end at .*, the file at")


@pytest.mark.parametrize("nbytes", [0, 3, 5, UNDEFINED])
def test_data_of_another_size_than_the_shapes_is_refused(nbytes: int) -> None:
    x_is([shape(2, 2), message(3, INT8), contiguous(96, nbytes)], f"of 1 bytes each, and {nbytes} bytes are there")


@pytest.mark.parametrize("sizes", [(1 << 63, 2), (1 << 32, 1 << 32), (UNDEFINED,), (0, 1 << 63)])
def test_a_shape_over_all_limits_is_refused(sizes: tuple[int, ...]) -> None:
    x_is([shape(*sizes), message(3, INT8), contiguous(96, 0)], "over all limits")


def test_a_shape_over_its_own_limit_is_refused() -> None:
    limited = message(1, struct.pack("<BBB5xQQ", 1, 1, 1, 5, 4))

    x_is([limited, message(3, INT8), contiguous(96, 5)], r"its shape is \(5,\), and must be within \(4,\)")


@pytest.mark.parametrize("raw", [b"\0\0\0\0", b"\3\0\0\0", b"\1\x21\0\0", b"\2\1\0\0", b"\2\0\0\3", b"\1\0\4\0"])
def test_a_dataspace_that_is_none_is_refused(raw: bytes) -> None:
    x_is([message(1, raw + bytes(1000)), message(3, INT8), contiguous(96, 1)], "there is no dataspace")


@pytest.mark.parametrize("raw", [b"\x1f", b"\x00", b"\x60", b"\x1b", b"\x1e"])
def test_a_datatype_that_is_none_is_refused(raw: bytes) -> None:
    x_is([shape(1), message(3, raw + INT8[1:]), contiguous(96, 1)], "there is no datatype of class")


def test_a_datatype_of_no_bytes_is_refused() -> None:
    x_is([shape(1), message(3, INT8[:4] + bytes(8)), contiguous(96, 0)], "0 bytes")


def test_a_text_type_of_huge_size_is_nothing_that_is_allocated() -> None:
    huge = struct.pack("<II", 0x13, 0xFFFFFFFF)

    x_is([shape(1), message(3, huge), contiguous(96, 0xFFFFFFFF)], "its bytes end at")


@pytest.mark.parametrize(
    ("raw", "problem"), [(b"\3\4", "no data layout of class 4"), (b"\3\3", "class 3"), (b"\1\1\7", "class 7")]
)
def test_a_layout_that_is_none_is_refused(raw: bytes, problem: str) -> None:
    x_is([shape(1), message(3, INT8), message(LAYOUT, raw + bytes(24))], problem)


@pytest.mark.parametrize("version", [0, 5, 255])
def test_a_layout_of_another_version_is_left_to_others(version: int) -> None:
    image = Image()
    place = image.put(header(shape(1), message(3, INT8), message(LAYOUT, bytes([version]) + bytes(23))))

    with pytest.raises(Unknown, match=f"'/x': a data layout of version {version}"):
        parsed(image.finished(image.group([b"x"], [place])))


def test_compact_data_longer_than_its_message_is_refused() -> None:
    x_is(
        [shape(900), message(3, INT8), message(LAYOUT, struct.pack("<BBH", 3, 0, 900))], "900 bytes are more than its header has"
    )


@pytest.mark.parametrize("kind", [SYMBOLS, 1, 3, LAYOUT])
def test_an_empty_message_is_refused(kind: int) -> None:
    parts = {1: shape(1), 3: message(3, INT8), LAYOUT: contiguous(96, 1)} | {kind: message(kind, b"")}

    image = Image()
    place = image.put(header(*parts.values()))
    data = image.finished(image.group([b"x"], [place]))
    with pytest.raises(CorruptCheckpointError, match="'/x'"):
        parsed(data)


def test_an_attribute_in_a_dataset_without_damage_does_not_matter() -> None:
    image = Image()
    place = image.put(header(shape(1), message(3, INT8), contiguous(96, 1), attribute("a", INT8, bytes(8), b"")))

    tree = parsed(image.finished(image.group([b"x"], [place])))

    assert isinstance(tree.find("x"), Dataset)
