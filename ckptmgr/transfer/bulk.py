"""Many whole tensors at once, each in one piece of a file: planned in columns, without an object for each.

Neighbours that are small are read as one run of bytes into one place, which keeps the order and the gaps of its file. New
arrays are views of it; to given arrays their bytes are copied. A file that is wanted nearly whole is verified by its own
checksum, and tensor by tensor only if that is wrong.
"""

import functools
import itertools
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ckptmgr.checksum import crc32c, joined
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.source import Places
from ckptmgr.spec import TensorSpec
from ckptmgr.storage import Folder, is_local
from ckptmgr.transfer import slabs
from ckptmgr.transfer.planning import Check, Span, TensorCheck, check_apart, pieces
from ckptmgr.transfer.scattering import Cells, scatter

_Array: TypeAlias = np.ndarray[Any, Any]

SMALL_NBYTES = 64 << 10  # tensors below this share a run; others have a place of their own, aligned to a cache line
GAP_NBYTES = 512  # between two of a run at most: it takes memory, as long as one of the run's arrays is alive
GROUP_NBYTES = 1 << 20  # items of the state from this size on share no memory with others: it goes with them

_dtype, _nbytes = attrgetter("dtype"), attrgetter("nbytes")


class Bulk:
    """Tensors that can be read this way, of those that are asked for. ``rest`` are the indexes of the others.

    ``arrays`` has an array for each name after `place`; None for the rest. Those of ``outs`` are filled, but for such as do not
    fit; with ``is_apart``, others are not made here.
    """

    def __init__(
        self,
        names: Sequence[str],
        specs: Sequence[TensorSpec],
        places: Places,
        outs: Sequence[_Array | None] | None = None,
        *,
        is_mapped: bool = False,
        is_apart: bool = False,
    ) -> None:
        itemsizes = {dtype: _itemsize(dtype) for dtype in set(map(_dtype, specs))}
        self._names = names
        self.arrays: list[Any] = [None] * len(names)
        sizes = np.fromiter(map(_nbytes, specs), np.int64)
        steps = np.fromiter(map(itemsizes.__getitem__, map(_dtype, specs)), np.int64)
        is_here = (places.offsets >= 0) & (sizes > 0) & (steps > 0)
        if is_mapped:
            is_here &= places.offsets % np.maximum(steps, 1) == 0  # others are read: their arrays would not be aligned
        is_given = np.zeros(len(names), bool)
        if outs is not None:
            is_given = np.array([out is not None for out in outs], bool)
            is_here &= [out is None or _fits(out, spec) for out, spec in zip(outs, specs, strict=True)]
            self.arrays = [out if here else None for out, here in zip(outs, is_here.tolist(), strict=True)]
        if is_apart:
            is_here &= is_given
        self.rest: list[int] = np.flatnonzero(~is_here).tolist()
        self.files: list[_File] = []
        for (index, file), kind in itertools.product(enumerate(places.files), (_File, _Given)):
            rows = np.flatnonzero(is_here & (places.indexes == index) & (is_given == (kind is _Given)))
            if rows.size:
                rows = rows[np.argsort(places.offsets[rows], kind="stable")]
                columns = _Columns(rows.tolist(), places.offsets[rows], sizes[rows], steps[rows])
                where = places.folder, file
                self.files.append(kind(where, columns, names, specs, places.checksums, places.totals.get(file)))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors here."""
        return sum(int(file.columns.sizes.sum()) for file in self.files)

    def check_sizes(self) -> None:
        """Raises CorruptCheckpointError for a file that ends before a tensor in it: memory is taken only after this."""
        for file in self.files:
            file.check_size()

    def place(self) -> None:
        """Makes the arrays that are not given, with undefined contents."""
        for file in self.files:
            file.place(self.arrays)

    def map(self) -> None:
        """Makes the arrays of the files' own pages, which are read when they are touched.

        Raises:
            ValueError: the files are on no local disk.
            CorruptCheckpointError: a file has become shorter.
        """
        for file in self.files:
            file.map(self.arrays)

    def filled(self) -> Iterator[tuple[str, _Array]]:
        """Name and array of every tensor here, after they were read."""
        return ((self._names[row], self.arrays[row]) for file in self.files for row in file.columns.rows)

    def spans(self, file: "_File", checks: list[Check] | None, only: Collection[str] | None = None) -> Iterator[Span]:
        """What is to be read of a file, by ascending offset; ``checks`` takes what is to be looked at after that.

        With ``only`` no more than that takes for these tensors, which were read before.
        """
        return file.spans(self.arrays, checks) if only is None else file.spans_again(self.arrays, checks, only)


class _Columns(NamedTuple):
    """Tensors of a file by ascending offset: their indexes among all, offsets, bytes, and bytes of an element."""

    rows: list[int]
    offsets: _Array
    sizes: _Array
    steps: _Array


class _Run(NamedTuple):
    """Bytes of a file for one place in memory: those of tensors number ``first`` to ``last``, not included.

    Without a ``target`` they are copied to arrays that are given.
    """

    offset: int
    nbytes: int
    target: _Array | None
    first: int
    last: int


class _File:
    def __init__(
        self,
        where: tuple[Folder, str],
        columns: _Columns,
        names: Sequence[str],
        specs: Sequence[TensorSpec],
        checksums: Sequence[int | None],
        total: tuple[int, int] | None,
    ) -> None:
        self.folder, self.file = where
        self.columns = columns
        self.names, self.specs, self.checksums = names, specs, checksums
        self._total = total
        self._nbytes = 0
        self._runs: list[_Run] = []

    def check_size(self) -> None:
        head, where = self.folder.head(self.file), self.folder.location(self.file)
        rows, offsets, sizes, _ = self.columns
        if head is None:
            text, tensor = f"{where!r} is missing; tensor", self.names[rows[-1]]
            raise CorruptCheckpointError(f"{text} {tensor!r} should be in it", file=self.file, tensor=tensor)
        self._nbytes = head.nbytes
        wrong = np.flatnonzero((sizes > head.nbytes) | (offsets > head.nbytes - sizes)).tolist()
        if wrong:
            end, tensor = max((int(offsets[number]) + int(sizes[number]), self.names[rows[number]]) for number in wrong)
            text = f"{where!r} ends at byte {head.nbytes}, but tensor {tensor!r} in it at byte {end}: the file was cut off"
            raise CorruptCheckpointError(text, file=self.file, tensor=tensor)
        if sizes.sum(dtype=float) > head.nbytes:
            named = [self.names[row] for row in rows]
            check_apart([*zip(offsets.tolist(), (offsets + sizes).tolist(), named, strict=True)], head.nbytes, where, self.file)

    def place(self, arrays: list[Any]) -> None:
        """Takes the memory, and puts an array for each tensor at its index."""
        rows, offsets, sizes, _ = self.columns
        ends = offsets + sizes
        is_apart = self._apart()
        is_first = self._first(slabs.SLAB_NBYTES) | is_apart
        firsts = np.flatnonzero(is_first)
        lasts = np.append(firsts[1:], len(rows))
        starts, stops = offsets[firsts], ends[lasts - 1]
        pads = np.where(lasts - firsts > 1, starts % slabs.ALIGN, 0)
        memory, places = slabs.placed((pads + stops - starts).tolist(), is_apart[firsts].tolist())
        runs = zip(
            places, pads.tolist(), (stops - starts).tolist(), starts.tolist(), firsts.tolist(), lasts.tolist(), strict=True
        )
        self._runs = [
            _Run(start, nbytes, memory[slab][at + pad : at + pad + nbytes], first, last)
            for (slab, at), pad, nbytes, start, first, last in runs
        ]
        of_run = np.cumsum(is_first) - 1
        at = np.array([at for _, at in places], np.int64)[of_run] + pads[of_run] + offsets - starts[of_run]
        found = np.array([slab for slab, _ in places], np.int64)[of_run]
        self._carve(arrays, memory, found.tolist(), at.tolist())

    def _first(self, most: int) -> _Array:
        """Whether a tensor begins a run: one that is not small, or not near the one before, or so many bytes from its start."""
        _, offsets, sizes, steps = self.columns
        is_small = (sizes < SMALL_NBYTES) & (offsets % steps == 0)
        gaps = offsets[1:] - (offsets + sizes)[:-1]
        is_near = (gaps >= 0) & (gaps <= GAP_NBYTES) & (offsets[1:] // most == offsets[:-1] // most)
        return np.concatenate([[True], ~(is_small[1:] & is_small[:-1] & is_near)])

    def map(self, arrays: list[Any]) -> None:
        """Puts an array for each tensor at its index."""
        store = self.folder.store
        if not is_local(store):
            raise ValueError(
                f"{self.folder.location(self.file)!r} cannot be mapped: it is not on a local disk; leave out mmap=True"
            )
        try:
            memory = store.map(self.folder.key(self.file))
        except FileNotFoundError as error:
            raise CorruptCheckpointError(f"{self.folder.location(self.file)!r} is missing", file=self.file) from error
        if memory.nbytes < self._nbytes:
            raise CorruptCheckpointError(f"{self.folder.location(self.file)!r} became shorter", file=self.file)
        self._carve(arrays, [memory], [0] * len(self.columns.rows), self.columns.offsets.tolist())

    def _carve(self, arrays: list[Any], memory: Sequence[_Array], found: list[int], offsets: list[int]) -> None:
        # Of a view of memory, which takes less time than of an array, and than a slice of one that has to be reshaped.
        views = [each.data for each in memory]
        for row, slab, offset in zip(self.columns.rows, found, offsets, strict=True):
            spec = self.specs[row]
            arrays[row] = np.ndarray(spec.shape, spec.numpy, views[slab], offset)

    def _apart(self) -> _Array:
        """Whether a tensor begins an item of the state that shares no memory with the one before, of which one is large."""
        names = [self.names[row] for row in self.columns.rows]
        is_new = np.zeros(len(names), bool)
        if "/" not in "".join(names):
            return is_new
        tops = [name.partition("/")[0] for name in names]
        is_new[1:] = [one != other for one, other in zip(tops[1:], tops[:-1], strict=True)]
        items = np.cumsum(is_new)
        is_large = np.bincount(items, self.columns.sizes)[items] >= GROUP_NBYTES
        is_new[1:] &= is_large[1:] | is_large[:-1]
        return is_new

    def spans(self, arrays: Sequence[Any], checks: list[Check] | None) -> Iterator[Span]:
        total = self._total_to_check() if checks is not None else None
        if checks is None or total is None:
            for run in self._runs:
                yield from self._pieces(run, arrays, self._check(run, arrays, checks))
            return
        check = FileCheck(self, arrays, total)
        checks.append(check)
        most, at = self.folder.store.window_nbytes, 0
        for run in self._runs:
            yield from _fillers(at, run.offset, most, check)
            yield from self._pieces(run, arrays, check)
            at = run.offset + run.nbytes
        yield from _fillers(at, self._nbytes, most, check)

    def spans_again(self, arrays: Sequence[Any], checks: list[Check] | None, only: Collection[str]) -> Iterator[Span]:
        rows = self.columns.rows
        if any(self.names[row] in only and self.checksums[row] is None for row in rows):
            yield from self.spans(arrays, checks)  # such a tensor is only verified by the whole file
            return
        for run in self._runs:
            if any(self.names[row] in only for row in rows[run.first : run.last]):
                yield from self._pieces(run, arrays, self._check(run, arrays, checks))

    def _pieces(self, run: _Run, arrays: Sequence[Any], check: Check | None) -> Iterator[Span]:
        if run.target is not None:
            yield from pieces(run.offset, run.target, self.folder.store.window_nbytes, check)
            return
        fill = functools.partial(self._scatter, run, arrays)
        yield Span(run.offset, run.nbytes, None, fill, run.nbytes, "", None, check, run.offset)

    def _scatter(self, run: _Run, arrays: Sequence[Any], part: _Array) -> None:
        """Copies a run to the arrays that it is for."""
        rows, offsets, sizes, steps = self.columns
        here = slice(run.first, run.last)
        specs, given = [self.specs[row] for row in rows[here]], [arrays[row] for row in rows[here]]
        scatter(part, run.offset, Cells(offsets[here], sizes[here], steps[here]), specs, given)

    def _total_to_check(self) -> int | None:
        """The file's crc32c, if little has to be read besides to verify all tensors by it."""
        if self._total is None or self._total[0] != self._nbytes:
            return None
        held = sum(run.nbytes for run in self._runs)
        is_ordered = all(one.offset + one.nbytes <= other.offset for one, other in itertools.pairwise(self._runs))
        most = held // 16 + 256 * len(self.columns.rows)  # as much as a header takes
        return self._total[1] if is_ordered and self._nbytes - held <= most else None

    def _check(self, run: _Run, arrays: Sequence[Any], checks: list[Check] | None) -> Check | None:
        if checks is None:
            return None
        row = self.columns.rows[run.first]
        check: Check
        if run.last - run.first > 1:
            check = _RunCheck(self, arrays, run)
        elif (expected := self.checksums[row]) is not None:
            check = TensorCheck(self.folder, self.file, self.names[row], expected)
        else:
            return None
        checks.append(check)
        return check

    def is_good(self, number: int, arrays: Sequence[Any]) -> bool:
        """Whether a tensor that was read is what was written, as far as that is known."""
        row = self.columns.rows[number]
        expected = self.checksums[row]
        return expected is None or crc32c(arrays[row]) == expected


class _Given(_File):
    """The same for tensors that arrays are given for."""

    def place(self, arrays: list[Any]) -> None:
        """Plans to fill them: small neighbours by a copy, others straight."""
        rows, offsets, sizes, _ = self.columns
        # A run starts where the store's windows would, if they were so much shorter, and so none is longer than one.
        firsts = np.flatnonzero(self._first(max(self.folder.store.window_nbytes - SMALL_NBYTES, 1)))
        lasts = np.append(firsts[1:], len(rows))
        starts, stops = offsets[firsts], (offsets + sizes)[lasts - 1]
        self._runs = [
            _Run(start, stop - start, _bytes(arrays[rows[first]]) if last - first == 1 else None, first, last)
            for start, stop, first, last in zip(starts.tolist(), stops.tolist(), firsts.tolist(), lasts.tolist(), strict=True)
        ]


class FileCheck:
    """The crc32c of every span of a whole file, to be compared with the file's own."""

    def __init__(self, file: _File, arrays: Sequence[Any], expected: int) -> None:
        self.folder, self.file = file.folder, file.file
        self._held, self._arrays, self._expected = file, arrays, expected
        self._found: dict[int, tuple[int, int]] = {}

    def add(self, order: int, part: _Array) -> None:
        self._found[order] = crc32c(part), part.nbytes

    def damaged(self) -> list[str]:
        if joined(self._found[order] for order in sorted(self._found)) == self._expected:
            return []
        held = self._held
        rows = held.columns.rows
        wrong = [row for number, row in enumerate(rows) if not held.is_good(number, self._arrays)]
        # If it is none of those that can be told, it may be any of the others.
        return [held.names[row] for row in wrong or [row for row in rows if held.checksums[row] is None]]


class _RunCheck:
    """Compares the tensors of a run, those inside a span while it is in cache and the few between two spans at the end."""

    def __init__(self, file: _File, arrays: Sequence[Any], run: _Run) -> None:
        self.folder, self.file = file.folder, file.file
        self._held, self._arrays = file, arrays
        offsets = file.columns.offsets[run.first : run.last]
        self._first = run.first
        self._starts: list[int] = offsets.tolist()
        self._stops: list[int] = (offsets + file.columns.sizes[run.first : run.last]).tolist()
        self._seen: list[tuple[int, int]] = []
        self._wrong: list[int] = []

    def add(self, order: int, part: _Array) -> None:
        first, last = bisect_left(self._starts, order), bisect_left(self._stops, order + part.nbytes + 1)
        if first < last:
            self._look(range(first, last))
            self._seen.append((first, last))

    def damaged(self) -> list[str]:
        at = 0
        for first, last in [*sorted(self._seen), (len(self._starts), 0)]:
            self._look(range(at, first))
            at = last
        return [self._held.names[self._held.columns.rows[self._first + number]] for number in self._wrong]

    def _look(self, numbers: range) -> None:
        self._wrong += [number for number in numbers if not self._held.is_good(self._first + number, self._arrays)]


def _itemsize(dtype: str) -> int:
    """Bytes of an element; 0 if elements have no bytes of their own."""
    spec = TensorSpec(dtype, (0,))
    return 0 if spec.is_string or spec.is_packed else spec.numpy.itemsize


def _fits(out: _Array, spec: TensorSpec) -> bool:
    """Whether a tensor's bytes can be those of the array."""
    if type(out) is not np.ndarray or out.shape != spec.shape or not (out.dtype is spec.numpy or out.dtype == spec.numpy):
        return False
    flags = out.flags
    return flags.c_contiguous and flags.writeable


def _bytes(array: _Array) -> _Array:
    return array.reshape(-1).view(np.uint8)


def _fillers(start: int, stop: int, most: int, check: Check) -> Iterator[Span]:
    """Bytes that nobody wants, but that the file's checksum is of."""
    for at in range(start, stop, most):
        yield Span(at, min(most, stop - at), None, _drop, 0, "", None, check, at)


def _drop(part: _Array) -> None:
    """Nobody wants it."""
