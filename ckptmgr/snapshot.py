"""A copy of a state that nothing can change any more, in memory that is kept from save to save.

The law: what a snapshot holds are the values of the moment at which it was taken, whatever is done to the state after that.
Leaves that can change are copied, each once, into one slab that is allocated once; leaves that cannot are only referenced.
"""

import itertools
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ckptmgr import arrays
from ckptmgr.saving import Prepared
from ckptmgr.spec import PackedArray, TensorSpec
from ckptmgr.timing import Timing
from ckptmgr.transfer import slabs
from ckptmgr.transfer.lanes import share

_Array: TypeAlias = np.ndarray[Any, Any]
_Pair: TypeAlias = tuple[_Array, _Array]  # what is copied, and its place

_MEMINFO = Path("/proc/meminfo")
_LARGE_NBYTES = 256 << 10  # tensors from this size on are shared by several threads: one alone leaves memory idle
_PIECE_NBYTES = 16 << 20  # of which a thread copies so much at a time
_MOST_COPIERS = 4
_WIPE_ON_FORK = 18  # MADV_WIPEONFORK, which Python has no name for


class Snapshot(NamedTuple):
    """What a save writes, with a state of its own. ``unfinished``: to be called before it is read, to wait for devices."""

    prepared: Prepared
    unfinished: Sequence[Callable[[], object]]


class Staging:
    """Memory for one snapshot at a time: it is as large as the largest state so far, and touched once."""

    def __init__(self) -> None:
        self._slab = slabs.raw(0)
        self._specs: list[TensorSpec] = []
        self._places: list[_Array] = []

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return self._slab.nbytes

    def take(self, prepared: Prepared, timing: Timing | None = None) -> Snapshot:
        """A snapshot of the prepared state, with that timing. The one before must not be used any more.

        When this returns, the state may be changed; leaves on a device by work that is ordered after this on the device.

        Raises:
            MemoryError: there is no room for a copy of the state; nothing was copied.
        """
        flat = prepared.plan.flat
        leaves = flat.tensors
        if flat.strings:  # their values were taken already
            leaves = {name: leaf for name, leaf in leaves.items() if name not in flat.strings}
        tensors = dict(zip(leaves, arrays.frozen_all([*leaves.values()]), strict=True))
        names = [name for name, array in tensors.items() if array is None]
        unfinished: list[Callable[[], object]] = []
        if names:
            places = self._room([flat.specs[name] for name in names])
            unfinished = _copy((flat.tensors[name] for name in names), places)
            tensors.update(zip(names, places, strict=True))
        plan = replace(prepared.plan, flat=replace(flat, tensors=tensors))
        return Snapshot(replace(prepared, plan=plan, timing=timing), unfinished)

    def release(self) -> None:
        """Lets go of the memory."""
        self._slab, self._specs, self._places = slabs.raw(0), [], []

    def _room(self, specs: list[TensorSpec]) -> list[_Array]:
        if specs != self._specs:
            offsets = [0]
            for spec in specs:
                offsets.append(offsets[-1] + slabs.aligned(spec.nbytes))
            if offsets[-1] > self._slab.nbytes:
                self.release()  # first, for the two together would be two states
                self._slab = _new_slab(offsets[-1])
            self._places = [_place(spec, self._slab, at) for spec, at in zip(specs, offsets, strict=False)]
            self._specs = specs
        return self._places


def _copy(leaves: Iterable[Any], places: Iterable[_Array]) -> list[Callable[[], object]]:
    unfinished: list[Callable[[], object]] = []
    large: list[_Pair] = []
    try:
        for leaf, place in zip(leaves, places, strict=True):
            is_plain = type(leaf) is np.ndarray
            if place.nbytes >= _LARGE_NBYTES and (memory := leaf if is_plain else arrays.destination(leaf)) is not None:
                large.append((memory, place))
            elif is_plain:  # a short way, because there may be many
                place[...] = leaf
            elif (wait := arrays.stage(leaf, place)) is not None:
                unfinished.append(wait)
        if large:
            share(itertools.chain.from_iterable(itertools.starmap(_pieces, large)), _copy_each, _copiers())
    except BaseException:  # whatever it is, a device must not write into what is used for something else
        for wait in unfinished:
            wait()
        raise
    return unfinished


def _pieces(memory: _Array, place: _Array) -> Iterator[_Pair]:
    """Both in parts along their first axis: a single large tensor is not left to one thread."""
    rows = max(1, len(memory) * _PIECE_NBYTES // memory.nbytes)
    return ((memory[at : at + rows], place[at : at + rows]) for at in range(0, len(memory), rows))


def _copy_each(pairs: Iterator[_Pair]) -> None:
    for memory, place in pairs:
        place[...] = memory


def _copiers() -> int:
    return min(_MOST_COPIERS, os.cpu_count() or 1)


def _place(spec: TensorSpec, slab: _Array, offset: int) -> _Array:
    if spec.is_packed:
        return PackedArray.wrap(slab[offset : offset + spec.nbytes], spec)
    return np.ndarray(spec.shape, spec.numpy, slab, offset)


def _new_slab(nbytes: int) -> _Array:
    # The system gives more than it has, and kills whoever uses it: so it is asked first.
    free = free_nbytes()
    if free is not None and nbytes > free:
        raise MemoryError(
            f"a background save needs a copy of the state, {nbytes} bytes, and there are {free} bytes of free memory: "
            "save with the manager itself, which needs no copy"
        )
    slab = slabs.raw(nbytes)
    pages = getattr(slab.base, "obj", None)
    if sys.platform == "linux" and isinstance(pages, mmap.mmap):
        # A forked data loader must not share these pages: the next copy into each of them would cost a page fault.
        with suppress(OSError):
            pages.madvise(_WIPE_ON_FORK)
    return slab


def free_nbytes() -> int | None:
    """Bytes of memory and swap that this machine can still give; None where it does not tell."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    known = {key: int(value.split()[0]) * 1024 for key, _, value in (line.partition(":") for line in lines)}
    return known.get("MemAvailable", 0) + known.get("SwapFree", 0) if "MemAvailable" in known else None
