"""Shapes, and where a dataset's bytes are.

Source: HDF5 File Format Specification 3.0, sections IV.A.2.b and IV.A.2.i.
"""

import functools
import math
import struct
from typing import NamedTuple

from ckptmgr_hdf5.faults import Damaged, Refused, Unknown
from ckptmgr_hdf5.superblock import UNDEFINED

_MAX_RANK = 32
_COMPACT, _CONTIGUOUS, _CHUNKED, _VIRTUAL = 0, 1, 2, 3
_SIMPLE, _NULL = 1, 2
_LIMITED = 1  # flag: the largest shape follows
_MAX_EXTENT = 1 << 62


class Layout(NamedTuple):
    """``storage`` is "contiguous", "compact", "chunked" or "none"; ``nbytes`` None where the message does not say."""

    storage: str
    address: int | None
    nbytes: int | None


def parse_shape(raw: bytes) -> tuple[int, ...] | None:
    """The shape that a dataspace message describes, or None for "no elements and no shape".

    Raises:
        Damaged: it describes none.
    """
    return _shape(raw[: 8 + 16 * _MAX_RANK])


def extent(shape: tuple[int, ...] | None, nbytes: int) -> int:
    """How many bytes elements of ``nbytes`` each have in all.

    Raises:
        Damaged: more than an address can tell, were none of the dimensions 0.
    """
    if shape is None:
        return 0
    if nbytes * math.prod(size or 1 for size in shape) > _MAX_EXTENT:
        raise Damaged(f"an array of shape {shape} is over all limits")
    return nbytes * math.prod(shape)


@functools.lru_cache(1024)
def _shape(raw: bytes) -> tuple[int, ...] | None:
    version, rank, flags, kind = struct.unpack_from("<BBBB", raw)
    if version not in (1, 2) or rank > _MAX_RANK or flags > 3:
        raise Damaged(f"there is no dataspace of version {version}, rank {rank}, flags {flags}")
    if version == 2 and (kind > _NULL or (rank and kind != _SIMPLE)):
        raise Damaged(f"there is no dataspace of type {kind} and rank {rank}")
    at = 8 if version == 1 else 4
    shape = struct.unpack_from(f"<{rank}Q", raw, at)
    limits = struct.unpack_from(f"<{rank}Q", raw, at + 8 * rank) if flags & _LIMITED else shape
    if any(size > limit for size, limit in zip(shape, limits, strict=True)):
        raise Damaged(f"its shape is {shape}, and must be within {limits}")
    return None if version == 2 and kind == _NULL else shape


def parse_layout(raw: bytes, place: int) -> Layout:
    """What a layout message at that address says.

    Raises:
        Damaged: nothing that HDF5 knows.
        Refused: a dataset made of others, possibly of other files.
        Unknown: a version of HDF5 2.
    """
    version, kind = raw[0], raw[1]
    if version in (1, 2):
        return _old(raw, place)
    if version not in (3, 4):
        raise Unknown(f"a data layout of version {version}")
    if kind == _CONTIGUOUS:
        address, nbytes = struct.unpack_from("<QQ", raw, 2)
        return _contiguous(address, nbytes)
    if kind == _COMPACT:
        return _compact(raw, 4, struct.unpack_from("<H", raw, 2)[0], place)
    if kind == _VIRTUAL and version == 4:
        raise Refused("it is a virtual dataset, made of datasets of other files")
    if kind != _CHUNKED:
        raise Damaged(f"there is no data layout of class {kind}")
    return Layout("chunked", None, None)


def _old(raw: bytes, place: int) -> Layout:
    rank, kind = raw[1], raw[2]
    if kind == _COMPACT:
        at = 8 + 4 * rank
        return _compact(raw, at + 4, struct.unpack_from("<I", raw, at)[0], place)
    if kind == _CONTIGUOUS:
        return _contiguous(struct.unpack_from("<Q", raw, 8)[0], None)
    if kind != _CHUNKED:
        raise Damaged(f"there is no data layout of class {kind}")
    return Layout("chunked", None, None)


def _contiguous(address: int, nbytes: int | None) -> Layout:
    return Layout("none", None, nbytes) if address == UNDEFINED else Layout("contiguous", address, nbytes)


def _compact(raw: bytes, at: int, nbytes: int, place: int) -> Layout:
    if at + nbytes > len(raw):
        raise Damaged(f"its {nbytes} bytes are more than its header has")
    return Layout("compact", place + at, nbytes)
