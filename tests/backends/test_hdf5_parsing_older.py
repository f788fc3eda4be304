"""Structures that only older HDF5 libraries write, or that h5py writes seldom, put together by hand."""

import struct

import h5py
import numpy as np
import pytest
from hdf5_images import INT8, LAYOUT, Image, contiguous, header, message, parsed, shape, written

from ckptmgr.errors import CorruptCheckpointError, UnsafeCheckpointError
from ckptmgr_hdf5.blocks import Claims, Reader
from ckptmgr_hdf5.faults import Damaged, Unknown
from ckptmgr_hdf5.groups import check_compact, read_links
from ckptmgr_hdf5.headers import LINK_INFO, Header
from ckptmgr_hdf5.kinds import parse_kind
from ckptmgr_hdf5.lookup3 import lookup3
from ckptmgr_hdf5.messages import parse_layout, parse_shape
from ckptmgr_hdf5.parsing import Dataset, Group
from ckptmgr_hdf5.superblock import UNDEFINED, Superblock

FLOAT32 = struct.pack("<BBBBIHHBBBBI", 0x11, 0x20, 31, 0, 4, 0, 32, 23, 8, 0, 23, 127)


def dataset(*messages: bytes) -> tuple[Dataset, bytes]:
    image = Image()
    data = image.finished(image.group([b"x"], [image.put(header(*messages))]))
    found = parsed(data).find("x")
    assert isinstance(found, Dataset)
    return found, data


@pytest.mark.parametrize("version", [1, 2])
def test_an_old_contiguous_layout_has_dimensions_in_place_of_a_size(version: int) -> None:
    layout = struct.pack("<BBB5xQII", version, 2, 1, 96, 2, 3)

    found, _ = dataset(shape(2, 3), message(3, INT8), message(LAYOUT, layout))

    assert (found.storage, found.offset, found.nbytes) == ("contiguous", 96, 6)


@pytest.mark.parametrize("version", [1, 2])
def test_an_old_compact_layout_has_its_bytes_behind_the_dimensions(version: int) -> None:
    layout = struct.pack("<BBB5xII", version, 1, 0, 3, 3) + b"\7\x08\x09"

    found, data = dataset(shape(3), message(3, INT8), message(LAYOUT, layout))

    assert found.offset is not None
    assert (found.storage, data[found.offset :][:3]) == ("compact", b"\7\x08\x09")


@pytest.mark.parametrize("version", [1, 2])
def test_an_old_chunked_layout_is_told(version: int) -> None:
    assert parse_layout(struct.pack("<BBB5xQ", version, 2, 2, 96), 0).storage == "chunked"


def test_an_old_layout_without_an_address_was_never_written() -> None:
    found, _ = dataset(shape(3), message(3, INT8), message(LAYOUT, struct.pack("<BBB5xQI", 1, 1, 1, UNDEFINED, 3)))

    assert (found.storage, found.offset, found.nbytes) == ("none", None, 3)


def test_filters_of_contiguous_data_are_left_to_others() -> None:
    with pytest.raises(Unknown, match="'/x': filters"):
        dataset(shape(1), message(3, INT8), contiguous(96, 1), message(0xB, bytes(8)))


@pytest.mark.parametrize(
    ("version", "real", "imaginary"),
    [
        (1, b"r\0\0\0\0\0\0\0\0\0\0\0" + bytes(28), b"i\0\0\0\0\0\0\0\4\0\0\0" + bytes(28)),
        (2, b"r\0\0\0\0\0\0\0\0\0\0\0", b"i\0\0\0\0\0\0\0\4\0\0\0"),
        (3, b"r\0\0", b"i\0\4"),
    ],
)
def test_complex_numbers_in_every_version_of_a_compound(version: int, real: bytes, imaginary: bytes) -> None:
    raw = struct.pack("<BHxI", version << 4 | 6, 2, 8) + real + FLOAT32 + imaginary + FLOAT32

    assert parse_kind(raw) == ("raw", np.dtype("<c8"), 8)


def test_a_complex_number_of_two_types_is_of_another_kind() -> None:
    raw = struct.pack("<BHxI", 3 << 4 | 6, 2, 8) + b"r\0\0" + FLOAT32 + b"i\0\4" + FLOAT32[:1] + b"\x21" + FLOAT32[2:]

    assert parse_kind(raw) == ("other", None, 8)


@pytest.mark.parametrize("change", [{1: 0x21}, {1: 0x60}, {1: 0x00}, {2: 0x1E}, {12: 0x18}, {16: 0x7E}])
def test_a_float_that_is_not_ieee_is_not_raw(change: dict[int, int]) -> None:
    raw = bytearray(FLOAT32)
    for at, value in change.items():
        raw[at] = value

    assert parse_kind(FLOAT32) == ("raw", np.dtype("<f4"), 4)
    assert parse_kind(bytes(raw)).name == "other"


@pytest.mark.parametrize(("offset", "precision", "nbytes"), [(1, 7, 1), (0, 7, 1), (0, 24, 3), (0, 128, 16)])
def test_an_integer_with_bits_left_out_is_of_another_kind(offset: int, precision: int, nbytes: int) -> None:
    assert parse_kind(struct.pack("<IIHH", 0x10, nbytes, offset, precision)) == ("other", None, nbytes)


def test_bfloat16_as_a_float_type_is_of_another_kind() -> None:
    raw = struct.pack("<BBBBIHHBBBBI", 0x11, 0x20, 15, 0, 2, 0, 16, 7, 8, 0, 7, 127)

    assert parse_kind(raw) == ("other", None, 2)


@pytest.mark.parametrize("head", [0x13 | 3 << 8, 0x13 | 2 << 12, 0x19 | 1 << 8 | 3 << 12, 0x19 | 1 << 8 | 2 << 16])
def test_a_text_type_with_unknown_flags_is_damage(head: int) -> None:
    with pytest.raises(Damaged, match="no string type with flags"):
        parse_kind(struct.pack("<II", head, 16))


def test_an_enum_of_floats_is_damage() -> None:
    with pytest.raises(Damaged, match="an enumeration of something else"):
        parse_kind(struct.pack("<II", 0x18 | 2 << 8, 4) + FLOAT32)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"\1\0\0" + bytes(5), ()),
        (b"\2\0\0\0", ()),
        (b"\2\0\0\1", ()),
        (b"\2\0\0\2", None),
        (b"\2\2\0\1" + struct.pack("<QQ", 4, 5), (4, 5)),
        (b"\2\1\1\1" + struct.pack("<QQ", 4, UNDEFINED), (4,)),
    ],
)
def test_shapes_of_both_versions(raw: bytes, expected: tuple[int, ...] | None) -> None:
    assert parse_shape(raw) == expected


def links(*raw: bytes) -> dict[str, int]:
    """The links of a group of the newer kind, which are all in its header."""
    file = Superblock(Reader.of_bytes(b""), 0, 4, 16)
    info = struct.pack("<BBQQ", 0, 0, UNDEFINED, UNDEFINED)
    return read_links(file, Header({LINK_INFO: (info, 0)}, [], [*raw]), Claims())


def test_a_link_says_what_it_has_by_flags() -> None:
    plain = b"\1\0\1b" + struct.pack("<Q", 200)
    full = b"\1\x1d\0" + bytes(8) + b"\1" + struct.pack("<H", 2) + "ä".encode() + struct.pack("<Q", 100)

    assert links(full, plain) == {"b": 200, "ä": 100}


@pytest.mark.parametrize("kind", [1, 64, 65, 255])
def test_a_link_that_is_not_hard_is_refused(kind: int) -> None:
    image = Image()
    info = message(LINK_INFO, struct.pack("<BBQQ", 0, 0, UNDEFINED, UNDEFINED))
    root = image.put(header(info, message(6, b"\1\x08" + bytes([kind]) + b"\1a" + bytes(8))))

    with pytest.raises(UnsafeCheckpointError, match="b'a' is a soft or external link"):
        parsed(image.finished(root))


def test_two_links_of_one_name_are_damage() -> None:
    with pytest.raises(Damaged, match="not in order"):
        links(b"\1\0\1a" + bytes(8), b"\1\0\1a" + bytes(8))


@pytest.mark.parametrize("raw", [b"\2\0\1a" + bytes(8), b"\1\x20\1a" + bytes(8)])
def test_a_link_of_another_version_is_left_to_others(raw: bytes) -> None:
    with pytest.raises(Unknown, match="a link of version"):
        links(raw)


@pytest.mark.parametrize("info", [b"\1\0", b"\0\4"])
def test_link_info_of_another_version_is_left_to_others(info: bytes) -> None:
    with pytest.raises(Unknown, match="links of version"):
        check_compact(Header({LINK_INFO: (info + bytes(16), 0)}, [], []), LINK_INFO, "links")


def newer() -> bytes:
    """A file of the newer kind, whose group has a continued header."""

    def fill(file: h5py.File) -> None:
        group = file.create_group("g")
        for name in "abc":
            group.create_group(name)
            group.attrs[name] = np.arange(40)

    return written(fill, libver="latest")


def test_a_continued_header_of_the_newer_kind_is_read() -> None:
    group = parsed(newer()).find("g")

    assert isinstance(group, Group)
    assert [*group.children] == [*group.attributes] == ["a", "b", "c"]


def test_a_wrong_checksum_of_the_superblock_is_refused() -> None:
    data = newer()

    with pytest.raises(CorruptCheckpointError, match="the superblock's checksum is wrong"):
        parsed(data[:44] + bytes(4) + data[48:])


def test_a_file_whose_writer_died_is_refused() -> None:
    data = newer()
    fields = data[:11] + b"\1" + data[12:44]

    with pytest.raises(CorruptCheckpointError, match="its writer did not close it"):
        parsed(fields + struct.pack("<I", lookup3(fields)) + data[48:])


@pytest.mark.parametrize("signature", [b"OHDR", b"OCHK"])
def test_a_wrong_checksum_of_a_header_is_refused(signature: bytes) -> None:
    data = bytearray(newer())
    data[data.index(signature) + 40] ^= 1

    with pytest.raises(CorruptCheckpointError, match="its header's checksum is wrong"):
        parsed(bytes(data))


def test_a_header_that_continues_in_something_else_is_refused() -> None:
    with pytest.raises(CorruptCheckpointError, match="'/g': its header does not continue at byte"):
        parsed(newer().replace(b"OCHK", b"OHDR"))


def test_a_group_of_both_kinds_is_refused() -> None:
    image = Image()
    info = message(LINK_INFO, struct.pack("<BBQQ", 0, 0, UNDEFINED, UNDEFINED))
    root = image.put(header(image.table([], []), info))

    with pytest.raises(ValueError, match="a group of both kinds"):
        parsed(image.finished(root))
