"""Moves tensors from their extents into arrays: many windows in flight, each checksummed while it is in cache."""

import contextlib
import functools
import itertools
import logging
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from ckptmgr import garbage
from ckptmgr.checksum import crc32c
from ckptmgr.errors import CorruptCheckpointError, shown
from ckptmgr.layout import Extent
from ckptmgr.source import Bulk as HasPlaces
from ckptmgr.source import TensorSource
from ckptmgr.spec import PackedArray
from ckptmgr.storage import Folder, is_local
from ckptmgr.transfer import planning, slabs, summing
from ckptmgr.transfer.bulk import Bulk
from ckptmgr.transfer.lanes import share
from ckptmgr.transfer.planning import Check, Goal, Want, Window
from ckptmgr.transfer.stats import Progress, Stats, Tally

logger = logging.getLogger(__name__)
_Array: TypeAlias = np.ndarray[Any, Any]
_Files: TypeAlias = dict[tuple[Folder, str], list[tuple[Goal, Extent]]]
_Wrong: TypeAlias = set[tuple[Folder, str, str]]  # folder, file, tensor
Verify: TypeAlias = Literal["full", "fast", "off"]
Memory: TypeAlias = Literal["shared", "own", "mapped"]
_NOTHING = np.empty(0, np.uint8)


def read(
    source: TensorSource,
    wanted: Iterable[Want],
    *,
    verify: Verify = "full",
    progress: Progress | None = None,
    is_apart: bool = False,
) -> tuple[list[_Array], Stats]:
    """One array per want, in their order. Nothing is read but what is wanted, and gaps of up to 64 KiB between.

    An ``out`` is filled and is the array given back; one that is not C-contiguous and native is filled through a copy.
    New arrays are writable, C-contiguous and 64-byte aligned; ``is_apart`` gives each memory of its own. With
    ``verify="full"`` every extent that is read whole is compared with its crc32c, if it has one, and every whole tensor with
    the crc32 of a `Summed` source; a slice of one cannot be checked. What has come damaged from a store that is not local is
    fetched once more. Sizes of files are always looked at before memory is taken. If this raises, the contents of the ``out``
    arrays are undefined. ``progress`` is called in this thread.

    Raises:
        KeyError: the source has no tensor of that name.
        ValueError: a box that is not inside its tensor, an ``out`` of another shape or dtype or read-only.
        CorruptCheckpointError: files are missing or too short, bytes are not what was written (the message lists the
            first tensors of all that are wrong), slices do not cover their tensor.
        OSError: from the store.
    """
    started = time.perf_counter()
    with garbage.later():
        goals = [Goal(source, want) for want in wanted]
    return _read(source, goals, None, verify, progress, started, is_apart=is_apart)


def read_new(
    source: TensorSource,
    names: Sequence[str],
    *,
    verify: Verify = "full",
    outs: Sequence[_Array | None] | None = None,
    progress: Progress | None = None,
    memory: Memory = "shared",
) -> tuple[list[_Array], Stats]:
    """One array per name, as from `read`, but faster for many small tensors: new, or that of ``outs`` if it has one.

    Small new ones have alignments that fit their dtypes, and no more. New ones of "shared" memory have it in slabs of bounded
    size, which last as long as one of them; large items of a state (what a name has before its first ``/``) share none with
    others. With "own" each has memory of its own. "mapped" ones are the files themselves, copied on write: nothing is read, and
    so nothing verified, but what is not one piece of aligned raw bytes.

    Raises:
        ValueError: files that are to be mapped are on no local disk.
    """
    started = time.perf_counter()
    with garbage.later():
        found = _bulk(source, names, memory, outs)
        rest = [*range(len(names))] if found is None else found.rest
        goals = [Goal(source, Want(names[index], None, outs[index] if outs else None)) for index in rest]
    if memory == "mapped" and found is not None:
        found.check_sizes()
        found.map()
    is_read = memory != "mapped"
    arrays, stats = _read(source, goals, found if is_read else None, verify, progress, started, is_apart=memory == "own")
    if found is None:
        return arrays, stats
    for index, array in zip(rest, arrays, strict=True):
        found.arrays[index] = array
    return found.arrays, stats


def _bulk(source: TensorSource, names: Sequence[str], memory: Memory, outs: Sequence[_Array | None] | None) -> Bulk | None:
    if not (names and isinstance(source, HasPlaces)) or (memory == "own" and outs is None):
        return None
    try:
        specs = list(map(source.specs.__getitem__, names))
        return Bulk(names, specs, source.extents_of(names), outs, is_mapped=memory == "mapped", is_apart=memory == "own")
    except OverflowError:  # a size that no file has, which is told tensor by tensor
        return None


def _read(
    source: TensorSource,
    goals: list[Goal],
    found: Bulk | None,
    verify: Verify,
    progress: Progress | None,
    started: float,
    *,
    is_apart: bool = False,
) -> tuple[list[_Array], Stats]:
    """The arrays of goals; those of ``found`` are made and filled, too."""
    if verify not in get_args(Verify):
        raise ValueError(f"verify must be one of {get_args(Verify)}, not {verify!r}")
    with garbage.later():
        files = _by_file(goals, source)
    _check_sizes(files)
    if found is not None:
        found.check_sizes()
    with garbage.later():
        _place(goals, is_apart)
        if found is not None:
            found.place()
    nbytes = sum(goal.nbytes for goal in goals) + (0 if found is None else found.nbytes)
    tally = Tally(progress, nbytes, "plan", "read", "checksum")
    tally.add(0, plan=time.perf_counter() - started)
    _Reader(tally, is_checking=verify == "full").read(files, found)
    for goal in goals:
        if not goal.is_raw:
            source.read(goal.name, goal.box, goal.array)
            tally.add(goal.nbytes)
    if verify == "full":
        summing.check(source, itertools.chain(summing.whole(goals), () if found is None else found.filled()))
    arrays = [_finished(goal, source) for goal in goals]
    tally.add(0)
    return arrays, Stats(tally.done, time.perf_counter() - started, tally.phases)


def _by_file(goals: Iterable[Goal], source: TensorSource) -> _Files:
    """The extents that are to be read, each with its goal, by the file they lie in."""
    files: _Files = {}
    last: Extent | None = None
    for goal in goals:
        extents = source.extents(goal.name)
        goal.is_raw = bool(extents) or goal.nbytes == 0
        for extent in goal.needed(extents) if goal.nbytes and extents else ():
            # Hashing a folder costs more than all else here, and neighbours are mostly of one file.
            if last is None or extent.file != last.file or extent.folder is not last.folder:
                held = files.setdefault((extent.folder, extent.file), [])
                last = extent
            held.append((goal, extent))
    return files


def _check_sizes(files: _Files) -> None:
    """No extent may end behind its file, and no bytes belong to two tensors: no more memory is taken than files are large."""
    for (folder, file), held in files.items():
        end, name = max((goal.end(extent), goal.name) for goal, extent in held)
        head = folder.head(file)
        where = folder.location(file)
        if head is None:
            raise CorruptCheckpointError(f"{where!r} is missing; tensor {name!r} should be in it", file=file, tensor=name)
        if head.nbytes < end:
            text = f"{where!r} ends at byte {head.nbytes}, but tensor {name!r} in it at byte {end}: the file was cut off"
            raise CorruptCheckpointError(text, file=file, tensor=name)
        places = {(extent.offset, goal.end(extent), goal.name) for goal, extent in held if goal.box is None}
        planning.check_apart(sorted(places), head.nbytes, where, file)


def _place(goals: Iterable[Goal], is_apart: bool) -> None:
    """Gives every goal its array: the caller's, if bytes can go straight into that, or a new one."""
    new: list[Goal] = []
    for goal in goals:
        out = goal.out
        if out is not None and out.flags.c_contiguous and out.dtype == goal.dtype:
            goal.array = out
        elif not goal.spec.is_string:
            new.append(goal)
    kinds = ((goal.shape, goal.dtype, goal.nbytes) for goal in new)
    for goal, array in zip(new, slabs.fresh(kinds, is_apart=is_apart), strict=True):
        goal.array = array


def _finished(goal: Goal, source: TensorSource) -> _Array:
    if goal.spec.is_string:
        return source.read(goal.name, goal.box, goal.out)
    if goal.out is None:
        return PackedArray.wrap(goal.array, goal.spec) if goal.spec.is_packed else goal.array
    if goal.array is not goal.out:
        goal.out[...] = goal.array
    return goal.out


class _Reader:
    """Reads windows of files in several threads, and remembers what was not as it should be."""

    def __init__(self, tally: Tally, *, is_checking: bool) -> None:
        self._tally = tally
        self._checks: list[Check] | None = [] if is_checking else None
        self._damaged: list[tuple[str, str, Folder]] = []  # file, tensor, and the folder of the file

    def read(self, files: _Files, found: Bulk | None) -> None:
        """Reads all that is wanted of the files, once more what has come damaged from afar, and then tells what is damaged."""
        self._read(files, found, None)
        # A disk would give the same bytes again; others may have been damaged on their way.
        if wrong := {(folder, file, name) for file, name, folder in self._damaged if not is_local(folder.store)}:
            logger.warning("bytes of %s have come damaged and are fetched again", shown(sorted({name for *_, name in wrong})))
            self._damaged, self._checks = [each for each in self._damaged if (each[2], *each[:2]) not in wrong], []
            self._read(_only(files, wrong), found, wrong)
        if self._damaged:
            self._damaged.sort(key=operator.itemgetter(0, 1))
            file, tensor, folder = self._damaged[0]
            names = shown(list(dict.fromkeys(name for _, name, _ in self._damaged)))
            text = f"bytes of {names} are not what was written (their crc32c differs); the first is in {folder.location(file)!r}"
            raise CorruptCheckpointError(text, file=file, tensor=tensor)

    def _read(self, files: _Files, found: Bulk | None, only: _Wrong | None) -> None:
        spans = [
            (folder, file, planning.spans(held, folder.store.window_nbytes, self._checks))
            for (folder, file), held in files.items()
        ]
        if found is not None:
            names = [None if only is None else _names(only, held.folder, held.file) for held in found.files]
            pairs = zip(found.files, names, strict=True)
            spans += [(held.folder, held.file, found.spans(held, self._checks, chosen)) for held, chosen in pairs]
        stores = [folder.store for folder, _, _ in spans]
        workers = max((min(store.workers, self._tally.total // store.window_nbytes + 1) for store in stores), default=1)
        windows = itertools.chain.from_iterable(itertools.starmap(planning.windows, spans))
        first = next(windows, None)
        if first is None:
            return
        # A disk reads ahead for one reader; several between each other's bytes defeat that.
        share(itertools.chain([first], windows), self._run, workers if workers == 1 or _is_cached(first) else 1)
        for check in self._checks or ():
            self._damaged += [(check.file, name, check.folder) for name in check.damaged()]

    def _run(self, line: Iterator[Window]) -> None:
        """Reads one window of the line after another, until there are no more."""
        scratch = _Scratch()
        with _Opened() as opened:
            for window in line:
                started = time.perf_counter()
                buffers, parts = scratch.buffers(window)
                opened.read_into(window, buffers)
                arrived = time.perf_counter()
                nbytes = 0
                for span, part in zip(window.spans, parts, strict=True):
                    # Now, while the bytes are in cache.
                    if span.fill is not None:
                        span.fill(part)
                    if span.crc32c is not None and crc32c(part) != span.crc32c:
                        self._damaged.append((window.file, span.tensor, window.folder))
                    if span.check is not None:
                        span.check.add(span.order, part)
                    nbytes += span.wanted
                ended = time.perf_counter()
                self._tally.add(nbytes, read=arrived - started, checksum=ended - arrived)


class _Opened(contextlib.ExitStack):
    """One thread's open file: the one that it read last, where the store has such."""

    def __init__(self) -> None:
        super().__init__()
        self._of: tuple[Folder, str] | None = None
        self._read: Callable[[int, Sequence[_Array]], None]

    def read_into(self, window: Window, buffers: Sequence[_Array]) -> None:
        """Fills the buffers with the window's bytes."""
        folder, file = window.folder, window.file
        try:
            if self._of is None or self._of[1] != file or self._of[0] is not folder:
                self._open(folder, file)
            self._read(window.spans[0].offset, buffers)
        except FileNotFoundError as error:
            raise CorruptCheckpointError(f"{folder.location(file)!r} is missing", file=file) from error
        except EOFError as error:
            where = folder.location(file)
            raise CorruptCheckpointError(f"{where!r} is shorter than the tensors in it: {error}", file=file) from error

    def _open(self, folder: Folder, file: str) -> None:
        self.close()
        if is_local(folder.store):
            self._read = self.enter_context(folder.store.opened(folder.key(file)))
        else:
            self._read = functools.partial(folder.read_into, file)
        self._of = folder, file


class _Scratch:
    """One thread's memory for bytes that do not go straight to their place, or that nobody wants."""

    def __init__(self) -> None:
        self._staged = _NOTHING
        self._gap = _NOTHING

    def buffers(self, window: Window) -> tuple[list[_Array], list[_Array]]:
        """What the window's bytes are read into: all of it, gaps included, and the part for each span."""
        first = window.spans[0]
        if len(window.spans) == 1 and first.target is not None:
            return [first.target], [first.target]  # as most are of large tensors
        needed = sum(slabs.aligned(span.nbytes) for span in window.spans if span.target is None)
        if needed > self._staged.nbytes:
            self._staged = slabs.scratch(needed)
        buffers: list[_Array] = []
        parts: list[_Array] = []
        at, used = window.spans[0].offset, 0
        for span in window.spans:
            if span.offset > at:
                buffers.append(self._gap_of(span.offset - at))
            if span.target is None:
                part = self._staged[used : used + span.nbytes]
                used += slabs.aligned(span.nbytes)
            else:
                part = span.target
            buffers.append(part)
            parts.append(part)
            at = span.offset + span.nbytes
        return buffers, parts

    def _gap_of(self, nbytes: int) -> _Array:
        if not self._gap.nbytes:
            self._gap = slabs.raw(planning.GAP_NBYTES)
        return self._gap[:nbytes]


def _names(wrong: _Wrong, folder: Folder, file: str) -> set[str]:
    return {name for its_folder, its_file, name in wrong if (its_folder, its_file) == (folder, file)}


def _only(files: _Files, wrong: _Wrong) -> _Files:
    """The goals and extents of these tensors in these files."""
    kept = {where: [pair for pair in held if (*where, pair[0].name) in wrong] for where, held in files.items()}
    return {where: held for where, held in kept.items() if held}


def _is_cached(window: Window) -> bool:
    """Whether reading waits for no disk, by the end of the first window: its beginning may just have been looked at."""
    store, last = window.folder.store, window.spans[-1]
    try:
        key = window.folder.key(window.file)
        return not is_local(store) or store.is_cached(key, last.offset + last.nbytes - 1)
    except FileNotFoundError:
        return True  # which is told when it is read
