"""Moves tensors from a source into the files of a layout, in one pass.

A file is a sequence of windows, each a list of buffers: views of the tensors' own memory wherever that holds raw
little-endian C-order bytes, staged copies where it does not. While the store writes a window, a second thread makes
its checksums, if there is ever enough to do for one. Small tensors share a window, so none costs the store a call of its own.
"""

import bisect
import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast, overload

import numpy as np

from ckptmgr import garbage
from ckptmgr.box import Box
from ckptmgr.checksum import combine, crc32, crc32c
from ckptmgr.errors import SaveError
from ckptmgr.layout import Digests, FileLayout, Late, Layout, Part
from ckptmgr.source import InMemory, Streamed, TensorSource
from ckptmgr.spec import PACKED_BITS, USED_BITS, TensorSpec
from ckptmgr.storage import Folder, ParallelStore
from ckptmgr.transfer.lanes import Lane, share
from ckptmgr.transfer.planning import BUFFERS
from ckptmgr.transfer.stats import Progress, Stats, Tally

_Array: TypeAlias = np.ndarray[Any, Any]
_Buffer: TypeAlias = memoryview | _Array
_B = TypeVar("_B", memoryview, _Array)
_Files: TypeAlias = Mapping[str, Digests]
_Sized: TypeAlias = tuple[FileLayout, int | None]

LANE_DEPTH = 2  # windows whose checksums are waited for; besides these one is filled, and that is all that is staged
_COMBINE_NBYTES = 1 << 16  # from here on, combining two checksums is cheaper than reading the bytes again
_MANY = 16  # small tensors in a row from here on have a window of their own
_SHORT_NBYTES = 1 << 20  # in one window: so much is checksummed before a thread has begun
_KINDS = frozenset({"crc32c", "crc32"})
_ODD = frozenset({"bool", *USED_BITS, *PACKED_BITS})  # dtypes whose bytes are not simply those of an array


class WrittenFile(NamedTuple):
    """What a file is to be compared with later."""

    nbytes: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: files in the layout's order, and the digests of each file's pieces."""

    files: Mapping[str, WrittenFile]
    digests: _Files
    stats: Stats


def write(
    folder: Folder,
    layout: Layout,
    source: TensorSource,
    *,
    progress: Progress | None = None,
    known: Mapping[str, tuple[WrittenFile, Digests]] | None = None,
    meanwhile: Callable[[_Files], object] | None = None,
    check: Callable[[_Files], object] | None = None,
) -> Written:
    """Writes the layout's files into the folder, in order, with the source's tensors in their places.

    ``known`` files are there already: they are passed over, with these checksums of the whole and of the pieces.

    Each file is durable before the next is begun, but for a store that is better with several at once, which all but the last
    may be. If this raises, the files it was at do not appear; those before them stay. The source is asked for slices of at most
    one window at a time, or if it is `Streamed` for the bytes of one part after another. ``progress`` is called in this thread.
    ``meanwhile`` is called with all digests as soon as they are made, mostly in another thread while the store makes the last
    file durable; it has returned when this does, and what it raises ends the write. ``check`` is called with all digests before
    the last file can appear: if it raises, that file never does.

    Raises:
        SaveError: a tensor is not of the announced dtype and shape any more.
        ValueError: the layout is wrong in itself: an unknown digest, a string tensor, a late piece of another size.
        OSError: from the store.
    """
    if unknown := layout.digests - _KINDS:
        raise ValueError(f"the layout asks for digests {sorted(unknown)}; known are {sorted(_KINDS)}")
    started = time.perf_counter()
    known = known or {}
    new = [(file, file.nbytes) for file in layout.files if file.name not in known]
    total = sum(size or 0 for _, size in new)
    tally = Tally(progress, total, "stage", "checksum")
    done = _Done({name: file for name, (file, _) in known.items()}, {name: digests for name, (_, digests) in known.items()})
    writer = _Writer(folder, layout, source, tally, done, meanwhile, check)
    abreast = _abreast(folder, source, new)
    if abreast:
        share(abreast, writer.write, writer.workers)
    writer.write(iter(new[len(abreast) :]))
    if meanwhile is not None and (not layout.files or layout.files[-1].name in known):
        meanwhile(done.digests)
    seconds = time.perf_counter() - started
    phases = {**tally.phases, "write": seconds - tally.phases["stage"]}
    files = {file.name: done.files[file.name] for file in layout.files}
    digests = {file.name: done.digests[file.name] for file in layout.files}
    return Written(files, digests, Stats(sum(file.nbytes for file in files.values()), seconds, phases))


def _abreast(folder: Folder, source: TensorSource, files: Sequence[_Sized]) -> Sequence[_Sized]:
    """Those of the files that may be written at once: nothing in them comes from other files, and the last is last."""
    if len(files) < 3 or isinstance(source, Streamed) or not isinstance(folder.store, ParallelStore):
        return []
    return [*itertools.takewhile(lambda each: not any(isinstance(piece, Late) for piece in each[0].pieces), files[:-1])]


class _Done(NamedTuple):
    """What has been written of a layout, by file."""

    files: dict[str, WrittenFile]
    digests: dict[str, Digests]


class _Writer:
    """Writes files of one layout, in several threads if need be; the source is asked by one of them at a time."""

    def __init__(
        self,
        folder: Folder,
        layout: Layout,
        source: TensorSource,
        tally: Tally,
        done: _Done,
        meanwhile: Callable[[_Files], object] | None,
        check: Callable[[_Files], object] | None,
    ) -> None:
        self._folder, self._source, self._tally, self._done = folder, source, tally, done
        self._kinds = layout.digests
        self._last = layout.files[-1] if layout.files else None
        self._meanwhile, self._check = meanwhile, check
        # A store that sends in threads of its own is not held up by checksums here, and sends what is in cache.
        parallel = folder.store if isinstance(folder.store, ParallelStore) else None
        self._is_short = tally.total <= min(folder.store.window_nbytes, _SHORT_NBYTES) or parallel is not None
        self._turn = threading.Lock()
        self.workers = 1 if parallel is None else parallel.files_at_once

    def write(self, files: Iterator[_Sized]) -> None:
        """Writes one file after another."""
        with Lane(LANE_DEPTH) as lane:
            for planned, size in files:
                self._write(planned, size, lane)

    def _write(self, planned: FileLayout, size: int | None, lane: Lane) -> None:
        tally, digests = self._tally, self._done.digests
        file, nbytes = _sized(planned, size, digests)
        tally.total += nbytes if size is None else 0
        sums = _Sums(len(file.pieces), self._kinds, lane, is_short=self._is_short)
        late = functools.partial(_build, file.name, digests, sums)
        windows = _windows(file, self._source, self._folder.store.window_nbytes, late)
        if self._check is not None and planned is self._last:
            windows = _then(windows, functools.partial(sums.told, self._check, digests, file.name))
        if self._meanwhile is not None and planned is self._last:
            windows = _then(windows, functools.partial(sums.then, self._meanwhile, digests, file.name))
        stored = self._folder.put(file.name, _taken(windows, self._turn, sums, tally), nbytes)
        digests[file.name] = sums.digests()
        self._folder.compare(file.name, stored, sums.file)
        self._done.files[file.name] = WrittenFile(nbytes, sums.file)
        tally.add(0, checksum=sums.seconds)


def _sized(file: FileLayout, nbytes: int | None, before: _Files) -> tuple[FileLayout, int]:
    """The file and its size, which a sole late piece tells only now."""
    if nbytes is not None:
        return file, nbytes
    if len(file.pieces) > 1 or not isinstance(late := file.pieces[0], Late):
        raise ValueError(f"file {file.name!r} has a late piece of unknown size among others")
    with garbage.later():
        data = late.build(before)
    return FileLayout(file.name, (data,)), len(data)


def _build(file: str, before: _Files, sums: "_Sums", late: Late, index: int, window: "_Window") -> bytes:
    """A late piece's bytes, from the digests of all pieces before it, the last of which are in a window not yet handed out."""
    known = {**before, file: sums.so_far(index, window)}
    with garbage.later():
        data = late.build(known)
    if len(data) != late.nbytes:
        raise ValueError(f"late piece {index} of file {file!r} was announced with {late.nbytes} bytes and has {len(data)}")
    return data


@dataclass(slots=True)
class _Window:
    """Buffers that the store gets together, and of each one the index of its piece and its size."""

    buffers: list[_Buffer] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    summed: int = 0  # so many of them have had their checksums begun

    def rest(self) -> Iterator[tuple[_Buffer, int, int]]:
        """The others, which are begun now."""
        first, self.summed = self.summed, len(self.sizes)
        return zip(self.buffers[first:], self.indices[first:], self.sizes[first:], strict=True)


def _windows(file: FileLayout, source: TensorSource, most: int, late: Callable[[Late, int, _Window], bytes]) -> Iterator[_Window]:
    """A file's bytes in windows of at most ``most`` bytes. A late piece is built when all before it is handed out, or little."""
    window = _Window()
    filled = 0
    stream = source if isinstance(source, Streamed) else None
    for start, stop in _stretches(file, most) if stream is None else itertools.pairwise(range(len(file.pieces) + 1)):
        piece = file.pieces[start]
        is_many = stop - start > 1
        if filled and (is_many or (isinstance(piece, Late) and filled > _SHORT_NBYTES)):
            yield window
            window, filled = _Window(), 0
        if is_many:
            buffers = _arrays(cast(Sequence[Part], file.pieces[start:stop]), source)
            yield _Window(buffers, [*range(start, stop)], cast(list[int], [*file.sizes[start:stop]]))
            continue
        if isinstance(piece, Late):
            piece = late(piece, start, window)
        for buffer in stream.buffers(piece, most) if stream and isinstance(piece, Part) else _buffers(piece, source, most):
            nbytes = buffer.nbytes
            if filled and (filled + nbytes > most or len(window.sizes) == BUFFERS):
                yield window
                window, filled = _Window(), 0
            window.buffers.append(buffer)
            window.indices.append(start)
            window.sizes.append(nbytes)
            filled += nbytes
    if filled:
        yield window


def _stretches(file: FileLayout, most: int) -> Iterator[tuple[int, int]]:
    """The file's pieces one by one; but many small whole tensors in a row together, as many as go into a window."""
    is_small = [
        type(piece) is Part and piece[2] is None and size is not None and 0 < size <= _COMBINE_NBYTES
        for piece, size in zip(file.pieces, file.sizes, strict=True)
    ]
    ends = [*itertools.accumulate([size or 0 for size in file.sizes])]
    at = 0
    for small, run in itertools.groupby(is_small):
        last = at + len(list(run))
        while at < last:
            begun = ends[at] - (file.sizes[at] or 0)
            stop = min(bisect.bisect_right(ends, begun + most, at, last), at + BUFFERS)
            stop = stop if small and stop - at >= _MANY else at + 1
            yield at, stop
            at = stop


def _arrays(parts: Sequence[Part], source: TensorSource) -> list[_Buffer]:
    """Whole tensors as raw bytes, like `_raw`, in fewer steps."""
    names = [part[0] for part in parts]
    found = source.whole(names) if isinstance(source, InMemory) else list(map(source.read, names))
    return [
        array
        if array.dtype is spec.numpy and array.shape == spec.shape and array.flags.c_contiguous and spec.dtype not in _ODD
        else _raw(array, name, spec, None)
        for array, (name, spec, _) in zip(found, parts, strict=True)
    ]


def _buffers(piece: bytes | Part, source: TensorSource, most: int) -> Iterable[_Buffer]:
    """A piece's bytes in buffers of at most ``most`` bytes, or of one element; none if it is empty."""
    if isinstance(piece, bytes):
        return _cut(memoryview(piece), most)
    name, spec, box = piece
    nbytes = spec.nbytes if box is None else piece.nbytes
    if 0 < nbytes <= most and spec.dtype not in PACKED_BITS:
        return (_raw(source.read(name, box), name, spec, box),)
    if spec.is_string:
        raise ValueError(f"string tensor {name!r} has no raw bytes: its layout must hold them literally")
    if nbytes == 0:
        return ()
    if spec.is_packed:
        # Elements share bytes, so there are no slices of such a tensor.
        return _cut(_raw(source.read(name), name, spec, None), most)
    chunks = (box or Box.whole(spec.shape)).chunks(max(most // spec.numpy.itemsize, 1))
    return (_raw(source.read(name, chunk), name, spec, chunk) for chunk in chunks)


def _cut(flat: _B, most: int) -> Iterator[_B]:
    return (flat[at : at + most] for at in range(0, len(flat), most))


def _raw(array: _Array, name: str, spec: TensorSpec, box: Box | None) -> _Array:
    """The tensor's elements in the box as raw bytes: the array's own memory if it holds just that, else a copy."""
    dtype = spec.numpy
    is_native = array.dtype is dtype or array.dtype == dtype
    if is_native and box is None and array.shape == spec.shape and spec.dtype not in _ODD and array.flags.c_contiguous:
        return array  # as most are, and there may be many
    shape = box.shape if box is not None else (spec.nbytes,) if spec.is_packed else spec.shape
    if array.shape != shape or not (is_native or array.dtype.newbyteorder("=") == dtype):
        raise SaveError(
            f"tensor {name!r} was announced as {spec.dtype} of shape {spec.shape}, but {box or 'the whole of it'} came "
            f"as {array.dtype} of shape {array.shape}; was it changed during the save?"
        )
    array = _masked(array, spec)
    return array if is_native and array.flags.c_contiguous else array.astype(dtype, order="C")


def _masked(array: _Array, spec: TensorSpec) -> _Array:
    """The array without bits that mean nothing."""
    if spec.dtype == "bool":
        array = array.view(np.uint8) != 0  # an array viewed as another dtype may hold any byte, and a file only 0 and 1
    elif spec.dtype in USED_BITS:
        array = (array.view(np.uint8) & USED_BITS[spec.dtype]).view(array.dtype)  # arithmetic leaves its traces in the others
    return array


class _First(Sequence[int]):
    """The first of some digests. A copy for each late piece would be as many numbers as there are pairs of members in a zip."""

    def __init__(self, values: Sequence[int], count: int) -> None:
        self._values, self._indices = values, range(count)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        found = self._indices[index]
        return self._values[found] if isinstance(found, int) else [self._values[each] for each in found]


class _Sums:
    """The checksums of one file and of its pieces, made on the lane while its windows go by."""

    def __init__(self, npieces: int, kinds: frozenset[str], lane: Lane, *, is_short: bool) -> None:
        self.file = 0
        self.seconds = 0.0
        self._pieces = {kind: [0] * npieces for kind in sorted(kinds | {"crc32c"})}
        self._lane = lane
        self._is_short = is_short

    def begin(self, window: _Window) -> None:
        """Begins with those of the file's next window."""
        self._lane.submit(functools.partial(self._add, window), is_short=self._is_short)

    def so_far(self, npieces: int, window: _Window) -> Digests:
        """Those of the first ``npieces`` pieces, when they are made; the last of these are in a window with little in it."""
        self._lane.wait()
        self._lane.submit(functools.partial(self._add, window), is_short=True)
        return {kind: _First(values, npieces) for kind, values in self._pieces.items()}

    def digests(self) -> Digests:
        """Those of all pieces, when they are made."""
        self._lane.wait()
        return self._pieces

    def then(self, call: Callable[[_Files], object], before: _Files, file: str) -> None:
        """Has ``call`` made with these digests and those of this file, when the last of them is made."""
        self._lane.submit(lambda: call({**before, file: self._pieces}))

    def told(self, call: Callable[[_Files], object], before: _Files, file: str) -> None:
        """Makes ``call`` with these digests and those of this file, now, when all of them are made."""
        call({**before, file: self.digests()})

    def _add(self, window: _Window) -> None:
        started = time.perf_counter()
        pieces, others, file = self._pieces["crc32c"], self._pieces.get("crc32"), self.file
        for buffer, index, nbytes in window.rest():
            value = crc32c(buffer)
            file = combine(file, value, nbytes) if nbytes >= _COMBINE_NBYTES else crc32c(buffer, file)
            pieces[index] = combine(pieces[index], value, nbytes) if pieces[index] else value
            if others is not None:
                others[index] = crc32(buffer, others[index])
        self.file = file
        self.seconds += time.perf_counter() - started


def _then(windows: Iterator[_Window], call: Callable[[], object]) -> Iterator[_Window]:
    """The windows; and when the store has written the last of them, but before it waits for the disk, the call."""
    yield from windows
    call()


def _taken(windows: Iterator[_Window], turn: threading.Lock, sums: _Sums, tally: Tally) -> Iterator[list[_Buffer]]:
    """The windows as the store takes them: what has been asked for again was written."""
    while True:
        started = time.perf_counter()
        with turn:
            window = next(windows, None)
        staged = time.perf_counter() - started
        if window is None:
            return
        sums.begin(window)
        yield window.buffers
        tally.add(sum(window.sizes), stage=staged)
