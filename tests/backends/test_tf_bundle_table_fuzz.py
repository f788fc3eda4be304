"""Damaged and invented index files: refused with our error only, at once, or read as what they still say."""

from pathlib import Path

import cramjam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptmgr.backend import crc32c
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr_tf_bundle.masking import mask
from ckptmgr_tf_bundle.origin import Origin
from ckptmgr_tf_bundle.table import MAGIC, decode, encode

GOLDEN = Path(__file__).parents[1] / "golden" / "tf_bundle"
ORIGIN = Origin("model.index", "/runs/model.index")
SMALL = (GOLDEN / "manager" / "ckpt-3.index").read_bytes()
# What nothing depends on: the metaindex block; its handle in the footer; the zeros before the mark, and the bit before
# them that would make the first of them a part of the last number.
METAINDEX = range(164, 177)
FOOTER_REST = {*range(197, 200), *range(202, 237)}
FILES = [path.read_bytes() for path in sorted(GOLDEN.rglob("*.index")) if path.stat().st_size < 3000]
NUMBERS = [b"\x00", b"\x01", b"\x7f", b"\x80", b"\xff", b"\xff" * 9 + b"\x01", b"\x80" * 10, b"\xff\xff\xff\xff\x0f"]

Entries = list[tuple[bytes, bytes]]


def decoded(data: bytes) -> Entries | None:
    """The entries, or None if the file is refused as it should be."""
    try:
        return decode(data, ORIGIN)
    except CorruptCheckpointError:
        return None


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_is_noticed_wherever_it_matters(bit: int) -> None:
    unnoticed = set()

    for at in range(len(SMALL)):
        flipped = bytearray(SMALL)
        flipped[at] ^= 1 << bit
        found = decoded(bytes(flipped))
        if found is not None:
            assert found == decode(SMALL, ORIGIN)
            unnoticed.add(at)

    assert unnoticed <= {*METAINDEX, *FOOTER_REST}
    assert unnoticed >= {*METAINDEX}


def test_a_file_cut_anywhere_is_refused() -> None:
    assert [nbytes for nbytes in range(len(SMALL)) if decoded(SMALL[:nbytes]) is not None] == []


def test_a_file_that_lost_its_start_is_refused() -> None:
    assert [start for start in range(1, len(SMALL)) if decoded(SMALL[start:]) is not None] == []


def test_a_file_with_something_after_it_is_refused() -> None:
    assert decoded(SMALL + b"\0") is None


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(changed)))
        stop = draw(st.integers(start, min(len(changed), start + 12)))
        changed[start:stop] = draw(st.one_of(st.sampled_from(NUMBERS), st.binary(max_size=4)))
    return bytes(changed)


def sealed(stored: bytes, kind: int = 0) -> bytes:
    stored += bytes((kind,))
    return stored + mask(crc32c(stored)).to_bytes(4, "little")


def varint(number: int) -> bytes:
    """The number, below 2**14, in two bytes."""
    return bytes((number & 0x7F | 0x80, number >> 7))


def around(block: bytes, kind: int) -> bytes:
    """A file with this one block, all its checksums right."""
    data = sealed(block, kind)
    index = sealed(b"\x00\x00\x03\x00" + varint(len(block)) + bytes.fromhex("00000000 01000000"))
    return data + index + (b"\0\0" + varint(len(data)) + varint(len(index) - 5)).ljust(40, b"\0") + MAGIC


def only_block(items: Entries) -> bytes:
    """The data block of a table so small that it has only one."""
    file = encode(items)
    return file[: file.index(sealed(bytes.fromhex("00000000 01000000"))) - 5]  # up to its trailer and the metaindex


BLOCKS = [only_block(decode(data, ORIGIN)) for data in FILES]
PACKED = [bytes(cramjam.snappy.compress_raw(block)) for block in BLOCKS]


def test_a_block_that_was_not_changed_reads_as_in_its_file() -> None:
    expected = [decode(data, ORIGIN) for data in FILES]

    assert [decoded(around(block, 0)) for block in BLOCKS] == expected
    assert [decoded(around(block, 1)) for block in PACKED] == expected


@settings(max_examples=3 * settings().max_examples)
@given(st.sampled_from(BLOCKS).flatmap(mutated))
def test_a_mutated_block_with_a_right_checksum_is_refused_or_reads_in_order(block: bytes) -> None:
    found = decoded(around(block, 0))

    assert found is None or found == sorted(dict(found).items())


@settings(max_examples=3 * settings().max_examples)
@given(st.sampled_from(PACKED).flatmap(mutated))
def test_a_mutated_compressed_block_with_a_right_checksum_is_refused_or_reads_in_order(block: bytes) -> None:
    found = decoded(around(block, 1))

    assert found is None or found == sorted(dict(found).items())


@given(st.binary(max_size=200))
def test_any_block_with_a_right_checksum_is_refused_or_reads_in_order(block: bytes) -> None:
    found = decoded(around(block + bytes.fromhex("00000000 01000000"), 0))

    assert found is None or found == sorted(dict(found).items())


@settings(max_examples=3 * settings().max_examples)
@given(st.sampled_from(FILES).flatmap(mutated))
def test_a_mutated_file_is_refused_or_reads_in_order(data: bytes) -> None:
    found = decoded(data)

    assert found is None or found == sorted(dict(found).items())
