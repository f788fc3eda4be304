"""String tensors: all lengths, a checksum of them, then all bytes.

Two checksums, and neither covers a byte as it lies there: they run over the lengths as numbers of fixed width, the
second also over the first as stored and over the strings.

Source: TensorFlow's tensor_bundle.cc, WriteStringTensor and ReadStringTensor.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from ckptmgr.backend import crc32c as checksum
from ckptmgr_tf_bundle.entry import varint
from ckptmgr_tf_bundle.masking import mask, unmask

ByteOrder: TypeAlias = Literal["little", "big"]

_CRC_NBYTES = 4
_MAX_GROUPS = 9  # of 7 bits: what fits into 63
_WIDE = 2**32  # lengths from here on are checksummed as 8 bytes

_varint = functools.lru_cache(maxsize=4096)(varint)


def encode(values: Sequence[bytes]) -> tuple[bytes, int]:
    """The stored bytes of these strings, in C order of their tensor, and the crc32c of its entry (not masked)."""
    lengths = [len(value) for value in values]
    of_lengths = checksum(fixed_width(lengths))
    stored_crc = mask(of_lengths).to_bytes(_CRC_NBYTES, "little")
    data = b"".join(values)
    return b"".join(map(_varint, lengths)) + stored_crc + data, checksum(data, checksum(stored_crc, of_lengths))


def decode(stored: bytes, count: int, crc32c: int | None, is_big_endian: bool) -> list[bytes]:
    """The ``count`` strings in ``stored``, whose entry has that crc32c; None if that is not to be checked.

    Spare bytes at the end are ignored, as TensorFlow does. Nothing is allocated for a count that the bytes do not bear out.

    Raises:
        ValueError: they are not what was written; the message says why.
    """
    if count + _CRC_NBYTES > len(stored):
        raise ValueError(f"{len(stored)} bytes cannot hold {count} strings")
    order: ByteOrder = "big" if is_big_endian else "little"
    lengths, start = _lengths(stored, count)
    begin = start + _CRC_NBYTES
    bounds = list(itertools.accumulate(lengths, initial=begin))
    if bounds[-1] > len(stored):
        raise ValueError(f"its strings would end at byte {bounds[-1]} of {len(stored)}")
    stored_crc = stored[start:begin]
    running = checksum(fixed_width(lengths, order))
    if running != unmask(int.from_bytes(stored_crc, order)):
        raise ValueError("the lengths of its strings are not what was written (their crc32c differs)")
    running = checksum(memoryview(stored)[begin : bounds[-1]], checksum(stored_crc, running))
    if crc32c is not None and running != crc32c:
        raise ValueError("its strings are not what was written (their crc32c differs)")
    return [stored[first:end] for first, end in itertools.pairwise(bounds)]


def fixed_width(lengths: Sequence[int], order: ByteOrder = "little") -> bytes:
    """Lengths as they are checksummed: in 4 bytes each, or 8 for one that does not fit."""
    if max(lengths, default=0) < _WIDE:
        return np.array(lengths, "<u4" if order == "little" else ">u4").tobytes()
    return b"".join(length.to_bytes(4 if length < _WIDE else 8, order) for length in lengths)


def _lengths(stored: bytes, count: int) -> tuple[list[int], int]:
    """The varints that ``stored`` starts with, and where they end."""
    region = np.frombuffer(stored, np.uint8, min(len(stored), count * (_MAX_GROUPS + 1)))
    ends = np.flatnonzero(region < 0x80)[:count] + 1
    if len(ends) < count:
        raise ValueError(f"it has the lengths of {len(ends)} strings, not of {count}")
    starts = np.concatenate([ends[:0], [0], ends[:-1]])[:count]
    widths = ends - starts
    if widths.max(initial=0) > _MAX_GROUPS:
        raise ValueError("a string's length has more than 63 bits")
    lengths = np.zeros(count, np.int64)
    for group in range(widths.max(initial=0)):
        has = widths > group
        lengths[has] |= (region[starts[has] + group].astype(np.int64) & 0x7F) << (7 * group)
    return lengths.tolist(), int(ends[-1]) if count else 0
