"""Memory for new arrays: aligned, and in few large pieces, because page faults cost more than the copies into it.

Small arrays share slabs of bounded size: an array keeps its slab alive, and so never much more than itself.
"""

import mmap
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np

SLAB_NBYTES = 64 << 20  # arrays larger than this have a slab of their own
ALIGN = 64  # a cache line; on some machines the kernel copies several times slower to what is not so aligned
_MAPPED_NBYTES = 1 << 20  # below this, malloc's memory is as good as a map of our own
_LARGE_NBYTES = 2 << 20  # of a large page

Kind: TypeAlias = tuple[tuple[int, ...], np.dtype[Any], int]  # shape, dtype, nbytes


def fresh(kinds: Iterable[Kind], *, is_apart: bool = False) -> list[np.ndarray[Any, Any]]:
    """New writable C-contiguous arrays of these kinds, 64-byte aligned, with undefined contents; each in a slab if apart."""
    made: list[np.ndarray[Any, Any]] = []
    slab: list[Kind] = []  # with offsets in place of sizes
    filled = 0
    for shape, dtype, nbytes in kinds:
        if slab and (is_apart or filled + nbytes > SLAB_NBYTES):
            made += _carved(slab, filled)
            slab, filled = [], 0
        slab.append((shape, dtype, filled))
        filled += aligned(nbytes)
    return made + _carved(slab, filled)


def placed(sizes: Iterable[int], is_apart: Iterable[bool]) -> tuple[list[np.ndarray[Any, Any]], list[tuple[int, int]]]:
    """New memory for pieces of these sizes: slabs of bytes, and for each piece its slab and its place there, 64-byte aligned.

    What is apart has a slab that is not that of the piece before.
    """
    filled: list[int] = []
    places: list[tuple[int, int]] = []
    for nbytes, is_new in zip(sizes, is_apart, strict=True):
        if not filled or is_new or filled[-1] + nbytes > SLAB_NBYTES:
            filled.append(0)
        places.append((len(filled) - 1, filled[-1]))
        filled[-1] += aligned(nbytes)
    return list(map(raw, filled)), places


def aligned(nbytes: int) -> int:
    """The next multiple of the alignment."""
    return -(-nbytes // ALIGN) * ALIGN


def raw(nbytes: int) -> np.ndarray[Any, Any]:
    """So many new bytes, aligned.

    Raises:
        MemoryError: there are not so many.
    """
    if nbytes < _MAPPED_NBYTES:
        memory = np.empty(nbytes + ALIGN, np.uint8)
        start = -memory.ctypes.data % ALIGN
        return memory[start : start + nbytes]
    made = pages(nbytes)
    if (len(made) - nbytes) * 8 > nbytes and hasattr(mmap, "MADV_NOHUGEPAGE"):
        made.madvise(mmap.MADV_NOHUGEPAGE, len(made) - _LARGE_NBYTES)  # the last one would take much that nobody wants
    return np.frombuffer(made, np.uint8, nbytes)


def scratch(nbytes: int) -> np.ndarray[Any, Any]:
    """At least so many new bytes for a short while, aligned. Raises MemoryError."""
    return raw(nbytes if nbytes < _LARGE_NBYTES // 4 else _in_large(nbytes))


def pages(nbytes: int) -> mmap.mmap:
    """At least so many new bytes, in large pages of their own where the system has such.

    Raises:
        MemoryError: there are not so many.
    """
    # Of a map that is no multiple of them, both ends would be of hundreds of small pages.
    length = _in_large(nbytes)
    # Private: the default would be shared with forked children, who would write into our arrays.
    try:
        made = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"cannot have {nbytes} bytes of memory") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        made.madvise(mmap.MADV_HUGEPAGE)
    return made


def _in_large(nbytes: int) -> int:
    """Bytes of the large pages that hold so many."""
    return -(-nbytes // _LARGE_NBYTES) * _LARGE_NBYTES


def _carved(kinds: list[Kind], nbytes: int) -> list[np.ndarray[Any, Any]]:
    slab = raw(nbytes)
    return [np.ndarray(shape, dtype, slab, offset) for shape, dtype, offset in kinds]
