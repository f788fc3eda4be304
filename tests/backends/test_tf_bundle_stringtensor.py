"""String tensors: their stored bytes and both checksums, and stored bytes that lie."""

import math
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tf_bundles import GOLDEN, ORIGIN

from ckptmgr.backend import crc32c
from ckptmgr_tf_bundle import stringtensor, table
from ckptmgr_tf_bundle.entry import Header, parse_entry
from ckptmgr_tf_bundle.masking import mask
from ckptmgr_tf_bundle.stringtensor import decode, encode

EMPTY = bytes.fromhex("d8ea82a2")  # the masked crc32c of nothing


def masked(data: bytes) -> bytes:
    return mask(crc32c(data)).to_bytes(4, "little")


def test_strings_are_lengths_a_checksum_of_these_and_all_bytes() -> None:
    stored, _ = encode([b"ab", b"", b"c"])

    assert stored == b"\x02\x00\x01" + masked(bytes.fromhex("02000000 00000000 01000000")) + b"abc"


def test_the_entrys_checksum_is_over_lengths_as_numbers_their_checksum_and_the_bytes() -> None:
    stored, crc = encode([b"ab", b"", b"c"])

    assert crc == crc32c(bytes.fromhex("02000000 00000000 01000000") + stored[3:7] + b"abc")


def test_lengths_are_varints_in_the_file_and_four_bytes_in_the_checksum() -> None:
    stored, crc = encode([b"x" * 300])

    assert stored[:2] == b"\xac\x02"
    assert stored[2:6] == masked(bytes.fromhex("2c010000"))
    assert crc == crc32c(bytes.fromhex("2c010000") + stored[2:6] + b"x" * 300)


def test_a_length_over_four_bytes_is_checksummed_in_eight() -> None:
    assert stringtensor.fixed_width([1, 2**32 - 1]) == bytes.fromhex("01000000 ffffffff")
    assert stringtensor.fixed_width([1, 2**32]) == bytes.fromhex("01000000 0000000001000000")
    assert stringtensor.fixed_width([1, 2**32], "big") == bytes.fromhex("00000001 0000000100000000")


def test_no_strings_are_a_checksum_of_nothing() -> None:
    assert encode([]) == (EMPTY, crc32c(EMPTY))
    assert decode(EMPTY, 0, crc32c(EMPTY), False) == []


def test_one_empty_string_is_one_length() -> None:
    assert encode([b""])[0] == b"\x00" + masked(bytes(4))


def test_strings_may_hold_nul_and_no_text() -> None:
    values = [b"\x00", b"a\x00\x00", b"\xff\xfe", b""]

    assert decode(*pair(values), False) == values


def pair(values: list[bytes]) -> tuple[bytes, int, int]:
    stored, crc = encode(values)
    return stored, len(values), crc


@given(st.lists(st.one_of(st.binary(max_size=20), st.sampled_from([127, 128, 16_383, 16_384, 40_000]).map(bytes)), max_size=20))
def test_what_is_encoded_is_decoded(values: list[bytes]) -> None:
    assert decode(*pair(values), False) == values


def test_tensorflows_strings_are_encoded_byte_for_byte() -> None:
    path = GOLDEN / "strings" / "strings"
    data = path.with_name("strings.data-00000-of-00001").read_bytes()
    items = table.decode(path.with_suffix(".index").read_bytes(), ORIGIN)[1:]
    entries = {key.decode(): parse_entry(value, "", Header(1, False), ORIGIN) for key, value in items}

    for key, entry in entries.items():
        stored = data[entry.offset : entry.offset + entry.nbytes]
        values = decode(stored, math.prod(entry.shape), entry.crc32c, False)
        assert encode(values) == (stored, entry.crc32c), key
    assert len(entries) == 11


def test_spare_bytes_at_the_end_are_ignored() -> None:
    stored, count, crc = pair([b"ab", b"c"])

    assert decode(stored + b"spare", count, crc, False) == [b"ab", b"c"]


def test_in_big_endian_bundles_the_fixed_numbers_are_big_endian() -> None:
    fixed = bytes.fromhex("00000002 00000001")
    middle = mask(crc32c(fixed)).to_bytes(4, "big")

    assert decode(b"\x02\x01" + middle + b"abc", 2, crc32c(fixed + middle + b"abc"), True) == [b"ab", b"c"]


def test_a_longer_spelling_of_a_length_is_read() -> None:
    stored, count, crc = pair([b"ab"])

    assert decode(b"\x82\x80\x80\x00" + stored[1:], count, crc, False) == [b"ab"]


def test_an_unknown_checksum_leaves_the_one_over_the_lengths() -> None:
    stored, count, _ = pair([b"ab"])

    assert decode(stored[:-1] + b"X", count, None, False) == [b"aX"]
    with pytest.raises(ValueError, match="the lengths of its strings are not what was written"):
        decode(b"\x01" + stored[1:], count, None, False)


CRC = b"1234"
BAD = {
    "more strings than bytes": (b"\x00" * 8, 5, "8 bytes cannot hold 5 strings"),
    "as many strings as numbers go": (b"\x00" * 8, 2**62, "8 bytes cannot hold 4611686018427387904 strings"),
    "too short for a checksum": (b"\x00" * 3, 0, "3 bytes cannot hold 0 strings"),
    "an endless length": (b"\xff" * 30, 1, "it has the lengths of 0 strings, not of 1"),
    "lengths that stop": (b"\x01\x01" + b"\xff" * 30, 3, "it has the lengths of 2 strings, not of 3"),
    "a length of 64 bits": (b"\xff" * 9 + b"\x01" + CRC, 1, "has more than 63 bits"),
    "a length of 63 bits": (b"\xff" * 8 + b"\x7f" + CRC, 1, f"would end at byte {2**63 - 1 + 13} of 13"),
    "lengths whose sum wraps": ((b"\xff" * 8 + b"\x7f") * 3 + CRC, 3, f"would end at byte {3 * (2**63 - 1) + 31} of 31"),
    "no room for the checksum": (b"\x80\x80\x80\x80\x00", 1, "its strings would end at byte 9 of 5"),
    "one byte too few": (b"\x03" + CRC + b"ab", 1, "its strings would end at byte 8 of 7"),
    "a wrong checksum of lengths": (b"\x02" + CRC + b"ab", 1, "the lengths of its strings are not what was written"),
}


@pytest.mark.parametrize(("stored", "count", "problem"), BAD.values(), ids=BAD)
def test_stored_bytes_that_lie_are_refused_with_the_reason(stored: bytes, count: int, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        decode(stored, count, None, False)


@pytest.mark.parametrize("at", [0, 1, 2, 3, 5, 7, 8, 9])
def test_no_byte_may_change(at: int) -> None:
    stored, count, crc = pair([b"ab", b"cd"])
    damaged = stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :]

    with pytest.raises(ValueError, match=r"not what was written|would end"):
        decode(damaged, count, crc, False)


@given(st.binary(max_size=40), st.integers(0, 50))
def test_any_bytes_are_strings_or_a_reason(stored: bytes, count: int) -> None:
    try:
        found = decode(stored, count, None, False)
    except ValueError:
        return
    assert len(found) == count


def test_a_million_strings_take_seconds_at_most() -> None:
    values = [b"%d" % number for number in range(1_000_000)]

    started = time.process_time()
    stored, crc = encode(values)
    found = decode(stored, len(values), crc, False)

    assert time.process_time() - started < 5
    assert found == values


def test_a_large_string_is_no_reason_to_look_for_lengths_in_it() -> None:
    stored, crc = encode([bytes(64 << 20)])

    tracemalloc.start()
    found = decode(stored, 1, crc, False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert len(found[0]) == 64 << 20
    assert peak < 66 << 20
