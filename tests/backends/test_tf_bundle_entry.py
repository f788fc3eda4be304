"""The header and the entries of an index, byte for byte, and everything they can be that no bundle has."""

import math
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tf_bundles import GOLDEN, INDEXES, ORIGIN

from ckptmgr.errors import CorruptCheckpointError, FormatVersionError
from ckptmgr_tf_bundle import table
from ckptmgr_tf_bundle.dtypes import NAMES, STRING, VARIANT
from ckptmgr_tf_bundle.entry import (
    Entry,
    Header,
    build_entry,
    build_header,
    build_slices,
    parse_entry,
    parse_header,
    varint,
)

ONE = Header(1, False)
BY_TENSORFLOW = [path for path in INDEXES if path.parent.name != "crafted"]
CRC = b"\x35\xd8\xea\x82\xa2"  # that of nothing, 0, as it is stored


def parse(value: str | bytes, header: Header = ONE) -> Entry:
    return parse_entry(bytes.fromhex(value) if isinstance(value, str) else value, "a/b", header, ORIGIN)


def shape(*dims: int) -> bytes:
    sizes = [b"\x08" + varint(dim % 2**64) for dim in dims]
    inside = b"".join(b"\x12" + varint(len(size)) + size for size in sizes)
    return b"\x12" + varint(len(inside)) + inside


def test_a_header_is_tensorflows() -> None:
    assert build_header(1) == bytes.fromhex("0801 1a02 0801")
    assert build_header(300) == bytes.fromhex("08ac02 1a02 0801")


@pytest.mark.parametrize(
    ("value", "header"),
    {
        "0803 1a02 0801": Header(3, False),
        "0801 1001 1a02 0801": Header(1, True),
        "0801": ONE,  # no version
        "0801 1a02 0863": ONE,  # of any producer
        "0801 1a02 1001": ONE,  # for readers of version 1 on
        "0801 1a02 1802": ONE,  # not for version 2
        "1000 0801 7a00": ONE,  # another order, an explicit 0, an unknown field
        "08ffffffff07": Header(2**31 - 1, False),
    }.items(),
)
def test_a_header_is_read(value: str, header: Header) -> None:
    assert parse_header(bytes.fromhex(value), ORIGIN) == header


@pytest.mark.parametrize(
    ("value", "problem"),
    {
        "": "claims 0 data files",
        "0800": "claims 0 data files",
        "08ffffffffffffffffff01": "claims -1 data files",
        "0801 1002": "claims byte order 2",
        "0801 10ffffffffffffffffff01": "claims byte order -1",
        "08": "no protobuf message",
        "0801 1a05": "no protobuf message",
        "08 ffffffffffffffffffffff": "no protobuf message",
    }.items(),
)
def test_a_header_that_cannot_be_is_refused(value: str, problem: str) -> None:
    with pytest.raises(CorruptCheckpointError, match=f"'/run/x.index' .*{problem}"):
        parse_header(bytes.fromhex(value), ORIGIN)


@pytest.mark.parametrize("version", ["1a02 1002", "1a02 1801", "1a03 1a01 01", "1a04 1a02 0201"])
def test_a_bundle_that_forbids_readers_of_version_1_is_of_a_newer_format(version: str) -> None:
    with pytest.raises(FormatVersionError, match=r"'/run/x.index'.*upgrade ckptmgr") as caught:
        parse_header(bytes.fromhex("0801" + version), ORIGIN)

    assert caught.value.supported == 1


def test_an_entry_is_tensorflows() -> None:
    assert build_entry(1, (), 0, 0, 4, 0) == bytes.fromhex("0801 1200 2804") + CRC
    assert build_entry(1, (784, 0), 2, 300, 0, 0) == bytes.fromhex("0801 1207 1203089006 1200 1802 20ac02") + CRC


def test_an_entry_whose_masked_checksum_is_0_has_no_checksum() -> None:
    assert build_entry(4, (), 0, 0, 1, 0x8A942EBE) == bytes.fromhex("0804 1200 2801")
    assert parse("0804 1200 2801").crc32c == 0x8A942EBE


@pytest.mark.parametrize("path", BY_TENSORFLOW, ids=lambda path: str(path.relative_to(GOLDEN)))
def test_every_entry_of_tensorflow_is_read_and_built_again_byte_for_byte(path) -> None:
    (_, first), *items = table.decode(path.read_bytes(), ORIGIN)
    header = parse_header(first, ORIGIN)

    assert build_header(header.num_shards) == first
    for key, value in items:
        found = parse_entry(value, repr(key), header, ORIGIN)
        built = build_slices(found.dtype, found.shape, found.slices) if found.slices else build_entry(*found[:6])
        assert built == value, key


def test_an_entry_tells_all_its_fields() -> None:
    found = parse(bytes.fromhex("0801 1208 12020802 12020803 1802 20ac02 2818") + CRC, Header(3, False))

    assert found == Entry(1, (2, 3), 2, 300, 24, 0, ())


def test_fields_may_come_in_any_order_with_explicit_zeros_and_unknown_ones() -> None:
    found = parse(CRC + bytes.fromhex("2800 7a0161 2000 1206 1204 08001200 1800 0801"))

    assert found == Entry(1, (0,), 0, 0, 0, 0, ())


def test_names_of_dimensions_are_ignored() -> None:
    assert parse("0804 1208 12060803 1202 ff61 2803").shape == (3,)


def test_a_dimension_without_size_is_0() -> None:
    assert parse("0801 1204 1200 1200").shape == (0, 0)


def test_a_missing_shape_is_a_scalars() -> None:
    assert parse("0801 2804").shape == ()


def test_slices_tell_a_missing_length_from_0() -> None:
    found = parse("0801 1204 12020804 3a06 0a00 0a02 1000 3a07 0a05 0803 10ac02")

    assert found.slices == (((0, None), (0, 0)), ((3, 300),))


def test_a_partitioned_tensors_own_place_means_nothing() -> None:
    found = parse("0801 1204 12020804 1809 20ffffffffffffffffff01 2807 3a04 0a02 1004")

    assert (found.shape, found.slices) == ((4,), (((0, 4),),))


def test_quantized_dtypes_are_as_large_as_plain_ones() -> None:
    assert [parse(bytes([8, n]) + shape(3) + bytes([0x28, size])).nbytes for n, size in ((11, 3), (13, 12), (16, 6))] == [
        3,
        12,
        6,
    ]


def test_a_variant_has_any_size() -> None:
    assert parse("0815 1200 28c0c407").nbytes == 123_456


BAD = {
    "cut short": ("0801 12", "no protobuf message"),
    "an endless number": ("08" + "ff" * 11, "no protobuf message"),
    "a length past its end": ("0801 12ff01", "no protobuf message"),
    "nested groups": (b"\x0b" * 10_000, "no protobuf message"),
    "dtype 0": ("1200 2804", "its dtype number 0 is not known"),
    "a resource": ("0814 1200", "its dtype number 20 is not known"),
    "a dtype from the future": ("0822 1200 2801", "its dtype number 34 is not known"),
    "a reference": ("0865 1200 2804", "its dtype number 101 is not known"),
    "a negative dtype": ("08ffffffffffffffffff01 1200", "its dtype number -1 is not known"),
    "no rank": ("0801 1202 1801", "its shape is not known"),
    "a negative dimension": (b"\x08\x01" + shape(2, -1), "has a negative dimension"),
    "two negative dimensions": (b"\x08\x01" + shape(-2, -3) + b"\x28\x18", "has a negative dimension"),
    "the smallest dimension": (b"\x08\x01" + shape(-(2**63)), "has a negative dimension"),
    "a product of 2^64": (b"\x08\x04" + shape(2**32, 2**32), "no array can have its shape"),
    "a product of 2^64 beside 0": (b"\x08\x04" + shape(2**32, 2**32, 0), "no array can have its shape"),
    "bytes over 2^63": (b"\x08\x01" + shape(2**61), "no array can have its shape"),
    "strings over 2^63": (b"\x08\x07" + shape(2**60, 0), "no array can have its shape"),
    "rank 65": (b"\x08\x01" + shape(*[1] * 65) + b"\x28\x04", "its rank 65 is over 64"),
    "rank 255": (b"\x08\x01" + shape(*[1] * 255) + b"\x28\x04", "its rank 255 is over 64"),
    "a byte too few": (b"\x08\x01" + shape(3) + b"\x28\x0b", r"needs 12 bytes, not 11"),
    "a byte too many": (b"\x08\x01" + shape(3) + b"\x28\x0d", r"its shape \(3,\) of float32 needs 12 bytes, not 13"),
    "no size": (b"\x08\x01" + shape(3), "needs 12 bytes, not 0"),
    "too small for its strings": (b"\x08\x07" + shape(3) + b"\x28\x06", "its 6 bytes cannot hold 3 strings"),
    "too small for no strings": (b"\x08\x07" + shape(0) + b"\x28\x03", "its 3 bytes cannot hold 0 strings"),
    "a negative size": ("0815 1200 28ffffffffffffffffff01", "its -1 bytes start at 0"),
    "a negative offset": ("0804 1200 20ffffffffffffffffff01 2801", "its 1 bytes start at -1"),
    "a data file too far": ("0804 1200 1801 2801", "its data file is number 1 of 1"),
    "a negative data file": ("0804 1200 18ffffffffffffffffff01 2801", "its data file is number -1 of 1"),
}


@pytest.mark.parametrize(("value", "problem"), BAD.values(), ids=BAD)
def test_an_entry_that_cannot_be_is_refused_by_name(value: str | bytes, problem: str) -> None:
    with pytest.raises(CorruptCheckpointError, match=problem) as caught:
        parse(value)

    assert (caught.value.file, caught.value.tensor) == ("x.index", "a/b")


def test_rank_64_is_read() -> None:
    assert parse(b"\x08\x04" + shape(*[1] * 64) + b"\x28\x01").shape == (1,) * 64


def test_an_array_of_2_to_the_63_bytes_less_some_is_no_problem_yet() -> None:
    assert parse(b"\x08\x04" + shape(2**63 - 1) + b"\x28" + varint(2**63 - 1)).nbytes == 2**63 - 1


def test_an_entry_of_a_million_slices_is_refused_before_it_is_read() -> None:
    value = b"\x08\x01" + shape(4) + b"\x3a\x00" * (1 << 20)

    started = time.process_time()
    with pytest.raises(CorruptCheckpointError, match="over the limit of 1048576"):
        parse(value)

    assert time.process_time() - started < 0.1


def test_an_entry_of_a_megabyte_of_slices_is_read_soon() -> None:
    value = b"\x08\x01" + shape(4) + b"\x3a\x02\x0a\x00" * 250_000

    started = time.process_time()
    found = parse(value)

    assert time.process_time() - started < 2
    assert len(found.slices) == 250_000


@given(st.binary(max_size=60))
@example(b"\x08\x01\x12\x00\x28\x04")
def test_any_bytes_are_an_entry_that_an_array_may_have_or_our_error(value: bytes) -> None:
    try:
        found = parse(value)
    except CorruptCheckpointError:
        return
    assert found.dtype == VARIANT or found.dtype in NAMES
    assert min(found.shape, default=0) >= 0
    assert found.slices or found.dtype in (STRING, VARIANT) or found.nbytes % max(math.prod(found.shape), 1) == 0


@given(st.binary(max_size=30))
def test_any_bytes_are_a_header_or_our_error(value: bytes) -> None:
    try:
        found = parse_header(value, ORIGIN)
    except (CorruptCheckpointError, FormatVersionError):
        return
    assert found.num_shards >= 1


@given(
    dims=st.lists(st.integers(0, 300), max_size=5).map(tuple),
    shard=st.integers(0, 2**31 - 2),
    offset=st.integers(0, 2**62),
    crc=st.integers(0, 2**32 - 1),
)
def test_what_is_built_is_read_back(dims: tuple[int, ...], shard: int, offset: int, crc: int) -> None:
    made = Entry(1, dims, shard, offset, 4 * math.prod(dims), crc, ())

    assert parse(build_entry(*made[:6]), Header(2**31 - 1, False)) == made
