"""How one checkpoint differs from another: any two formats, any two places, in memory that does not grow with the tensors.

The law: tensors that are told to be the same were compared byte by byte, or are known to be the very same bytes; only ``quick``
believes checksums. Bytes that are not what was written are an error and never a difference.
"""

import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from ckptmgr.checkpoint import Checkpoint
from ckptmgr.checksum import Checksum, crc32, crc32c
from ckptmgr.diffreport import DiffReport, Kind, TensorChange, ValueChange, rank
from ckptmgr.distance import Distance, elements, is_comparable
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.files import open_checkpoint
from ckptmgr.layout import FileLayout, Layout, Part
from ckptmgr.renaming import Selection
from ckptmgr.rulesets import Given, Rules
from ckptmgr.side import Side, names_of
from ckptmgr.spec import TensorSpec
from ckptmgr.step import JSON
from ckptmgr.streaming import BUDGET_NBYTES, Stream, once_more
from ckptmgr.strings import string_values
from ckptmgr.transfer import Progress, Stats
from ckptmgr.transfer.stats import Tally

_Array: TypeAlias = np.ndarray[Any, Any]

PIECE = 1 << 16  # elements that are compared at once: few enough to stay in a core's cache as float64
_SUMS: Mapping[str, Checksum] = {"crc32c": crc32c, "crc32": crc32}


def diff(
    a: str | os.PathLike[str] | Checkpoint,
    b: str | os.PathLike[str] | Checkpoint,
    *,
    rename: "Given | Sequence[Given]" = (),
    select: Sequence[str] | str | None = None,
    atol: float = 0.0,
    rtol: float = 0.0,
    quick: bool = False,
    state_only: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    budget: int = BUDGET_NBYTES,
    progress: Progress | None = None,
) -> DiffReport:
    """What is different in checkpoint ``b`` from ``a``: tensors, plain values, and what is beside the state.

    Args:
        a: whatever `open_checkpoint` opens, by path, URL or as an open `Checkpoint`, such as a manager's `open` gives; and ``b``.
        rename: rules that give the names and layers of ``a`` those of ``b``, as `convert` takes them.
        select: globs on the names of ``b``; only what one of them matches is compared, and nothing beside the state.
        atol: elements count as equal that are at most ``atol + rtol * abs(a)`` apart; ``rtol`` likewise. So do floats and ints
            among the plain values and the metrics.
        quick: compare names, dtypes, shapes and checksums, and read no tensor. A crc32c is short: equal ones are a sign of equal
            bytes and no proof. What has none on either side is in ``unknown``.
        state_only: compare tensors and plain values alone, not metrics, metadata, assets and what a format carries.
        storage_options: those of ``a`` and ``b``. Where they differ, as of a local file and a bucket, pass open checkpoints.
        budget: bytes of tensors in memory at a time, 64 MiB by default. A tensor that only its format's reader can decode, and
            only as a whole, and strings come on top of it.
        progress: called as ``progress(bytes_done, bytes_total)`` while tensors are read.

    Tensors of the same shape are read, piece by piece, each once; of tied ones one. Tensors that both have in the same place of
    the same file, or of files that an incremental save recorded as equal, are the same without being read. What is read is
    compared with its checksums. Values are compared as numbers: NaN is equal to NaN, -0.0 to 0.0, and the report tells where
    equal values have other bytes. A tensor of another dtype differs, and if both are numbers, they are compared. Assets and
    blobs are compared by size and crc32c; blobs that only one of two formats carries are left aside.

    Raises:
        CorruptCheckpointError: one is damaged, or was changed meanwhile; names file and tensor.
        ValueError: a glob or rule that matches nothing, a negative tolerance.
        OSError: the storage failed.
    """
    if not (math.isfinite(atol) and math.isfinite(rtol) and atol >= 0 and rtol >= 0):
        raise ValueError(f"a tolerance is a number from 0 on, not atol={atol!r}, rtol={rtol!r}")
    given = Rules.of(rename).joined(
        Rules((), None if select is None else (select,) if isinstance(select, str) else tuple(select))
    )
    with ExitStack() as stack:
        opened = [_opened(stack, each, storage_options) for each in (a, b)]

        def run() -> DiffReport:
            job = _Job(Side(opened[0], given), Side(opened[1], Rules()), given.select, atol, rtol)
            return job.run(quick=quick, has_rest=not state_only and given.select is None, budget=budget, progress=progress)

        return once_more([each.source for each in opened], run)


def _opened(stack: ExitStack, given: str | os.PathLike[str] | Checkpoint, options: Mapping[str, Any] | None) -> Checkpoint:
    return given if isinstance(given, Checkpoint) else stack.enter_context(open_checkpoint(given, storage_options=options))


@dataclass
class _Job:
    """One comparison, from pairing names to the report."""

    a: Side
    b: Side
    select: Sequence[str] | None
    atol: float
    rtol: float
    tensors: list[TensorChange] = field(default_factory=list)
    same: int = 0
    within: list[str] = field(default_factory=list)
    other_bytes: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def run(self, *, quick: bool, has_rest: bool, budget: int, progress: Progress | None) -> DiffReport:
        started = time.perf_counter()
        selection = Selection(self.select)
        selection.check(names_of((self.a, self.b)))
        doubtful = [name for name in self._paired(selection) if not self._is_told(name, quick=quick)]
        tally = Tally(progress, sum(side.spec(name).nbytes for name in doubtful for side in (self.a, self.b)))
        self._read(doubtful, budget, tally)
        values = [*self._changed("value", self.a.plain, self.b.plain, selection)]
        opened = self.a.opened, self.b.opened
        for (kind, old), (_, new) in zip(self.a.beside(), self.b.beside(), strict=True) if has_rest else ():
            found = self._changed(kind, old, new, Selection(None))
            # A format may carry what another one has no use for: an object graph, say.
            is_one_format = kind != "blob" or opened[0].backend == opened[1].backend
            values += [change for change in found if is_one_format or change.where == "both"]
        unreadable = dict.fromkeys(name for each in opened for name in each.unreadable if name in selection)
        steps = [each.info.step if each.info else None for each in opened]
        return DiffReport(
            a=opened[0].location,
            b=opened[1].location,
            steps=(steps[0], steps[1]),
            tensors=tuple(sorted(self.tensors, key=rank)),
            values=tuple(values),
            same=self.same,
            within=tuple(self.within),
            other_bytes=tuple(self.other_bytes),
            unknown=(*self.unknown, *unreadable),
            stats=Stats(tally.done, time.perf_counter() - started, {}),
        )

    def _paired(self, selection: Selection) -> Iterator[str]:
        """The names that both have, of pairs of tied ones the first. Those that only one has are noted."""
        seen: set[tuple[str, str]] = set()
        for name in dict.fromkeys((*self.a.names, *self.b.names)):
            if name not in selection:
                continue
            if name not in self.b.names:
                self.tensors.append(TensorChange(name, "only in A", self.a.spec(name), None, self.a.origin(name)))
            elif name not in self.a.names:
                self.tensors.append(TensorChange(name, "only in B", None, self.b.spec(name)))
            elif (pair := (self.a.names[name], self.b.names[name])) not in seen:
                seen.add(pair)
                yield name

    def _is_told(self, name: str, *, quick: bool) -> bool:
        """Whether all that is to be said of a tensor that both have can be said, and is noted, without reading it."""
        old, new = self.a.spec(name), self.b.spec(name)
        is_one = old == new
        if old.shape != new.shape:
            self._note(name, TensorChange(name, "shape", old, new))
        elif is_one and ((old.nbytes == 0 and not old.is_string) or self.a.has_bytes_of(name, self.b)):
            self.same += 1
        elif not is_one and (quick or not is_comparable(old, new)):
            self._note(name, TensorChange(name, "dtype", old, new))
        elif not quick:
            return False
        elif (is_equal := _is_sum_equal(self.a.sums(name), self.b.sums(name))) is None:
            self.unknown.append(name)
        elif is_equal:
            self.same += 1
        else:
            self._note(name, TensorChange(name, "checksum", old, new))
        return True

    def _read(self, names: Sequence[str], budget: int, tally: Tally) -> None:
        strings = [name for name in names if self.a.spec(name).is_string]
        numbers = [name for name in names if not self.a.spec(name).is_string]
        for name in strings:
            self._compare_strings(name)
        if not numbers:
            return
        with _reading(self.a, numbers, budget // 2) as one, _reading(self.b, numbers, budget // 2) as two:
            for name in numbers:
                self._compare(name, one, two, tally)
            for side, stream in ((self.a, one), (self.b, two)):
                with side.opened.explained():
                    _check_unchanged(side, stream)

    def _compare_strings(self, name: str) -> None:
        old, new = (_strings(side, name) for side in (self.a, self.b))
        changed = sum(one != other for one, other in zip(old, new, strict=True))
        if changed:
            self._note(name, TensorChange(name, "values", self.a.spec(name), self.b.spec(name), changed=changed))
        else:
            self.same += 1

    def _compare(self, name: str, one: Stream, two: Stream, tally: Tally) -> None:
        old, new = self.a.spec(name), self.b.spec(name)
        sums = self.a.sums(name), self.b.sums(name)
        is_likely_equal = old == new and _is_sum_equal(*sums) is True
        distance = Distance(atol=self.atol, rtol=self.rtol)
        pieces = _pieces(self.a, name, one, sums[0]), _pieces(self.b, name, two, sums[1])
        for before, after in zip(*pieces, strict=True):
            tally.add(before.nbytes + after.nbytes)
            has_same_bytes = old.dtype == new.dtype and np.array_equal(before, after)
            if has_same_bytes and is_likely_equal:
                distance.skip()
            else:
                distance.add(elements(before, old), elements(after, new), has_same_bytes=has_same_bytes)
        if distance.changed or old.dtype != new.dtype:
            change = TensorChange(
                name,
                "values" if old == new else "dtype",
                old,
                new,
                changed=distance.changed,
                max_abs=distance.max_abs,
                relative=distance.relative,
                nonfinite=distance.nonfinite,
            )
            self._note(name, change)
            return
        self.same += 1
        if distance.unequal:
            self.within.append(name)
        elif distance.has_other_bytes:
            self.other_bytes.append(name)

    def _note(self, name: str, change: TensorChange) -> None:
        self.tensors.append(replace(change, origin=self.a.origin(name)))

    def _changed(
        self, kind: Kind, old: Mapping[str, JSON], new: Mapping[str, JSON], selection: Selection
    ) -> Iterator[ValueChange]:
        for name in dict.fromkeys((*old, *new)):
            if name not in selection:
                continue
            if name not in new:
                yield ValueChange(kind, name, "only in A", a=old[name])
            elif name not in old:
                yield ValueChange(kind, name, "only in B", b=new[name])
            elif not self._is_equal(old[name], new[name]):
                yield ValueChange(kind, name, "both", old[name], new[name])

    def _is_equal(self, old: JSON, new: JSON) -> bool:
        """Whether two values in the form of a skeleton are of one type and equal; numbers within the tolerance."""
        if type(old) is not type(new):
            return False
        if isinstance(old, dict):
            return old.keys() == new.keys() and all(self._is_equal(value, new[key]) for key, value in old.items())
        if isinstance(old, list):
            return len(old) == len(new) and all(map(self._is_equal, old, new))
        if old == new or (old != old and new != new):
            return True
        if isinstance(old, bool) or not isinstance(old, int | float) or not (self.atol or self.rtol):
            return False
        try:
            return math.isfinite(old) and abs(new - old) <= self.atol + self.rtol * abs(old)
        except OverflowError:  # an int that no float is near to
            return False


def _is_sum_equal(old: Mapping[str, int], new: Mapping[str, int]) -> bool | None:
    """Whether checksums of one kind are equal; None if there are none."""
    kinds = old.keys() & new.keys()
    return all(old[kind] == new[kind] for kind in kinds) if kinds else None


def _reading(side: Side, names: Iterable[str], budget: int) -> Stream:
    parts = tuple(Part(side.names[name], side.spec(name)) for name in names)
    return Stream(side.source, Layout((FileLayout("", parts),)), budget=budget)


def _pieces(side: Side, name: str, stream: Stream, sums: Mapping[str, int]) -> Iterator[_Array]:
    """The next tensor's raw bytes, of `PIECE` elements at a time, and then a check of all of them."""
    part = Part(side.names[name], side.spec(name))
    found = dict.fromkeys(sums, 0)
    with side.explained():
        for piece in _cut(stream.buffers(part, part.nbytes), _nbytes(part.spec)):
            for kind in found:
                found[kind] = _SUMS[kind](piece, found[kind])
            yield piece
        if wrong := [kind for kind in found if found[kind] != sums[kind]]:
            extent = side.source.extents(part.name)[0]
            where = f"{extent.folder.location(extent.file)!r} are not what was written (their {wrong[0]} differs)"
            text = f"the bytes of tensor {(side.origin(name) or name)!r} in {where}"
            raise CorruptCheckpointError(text, file=extent.file, tensor=part.name)


def _strings(side: Side, name: str) -> list[bytes]:
    with side.explained():
        return string_values(side.source.read(side.names[name]))


def _check_unchanged(side: Side, stream: Stream) -> None:
    if changed := stream.flat.changed():
        text = f"{changed[0]!r} of {side.opened.location!r} was changed while it was read: compare again"
        raise CorruptCheckpointError(text, file=changed[0])


def _nbytes(spec: TensorSpec) -> int:
    """Bytes of a piece. Every number of bits that an element may have divides it."""
    return PIECE * spec.nbytes // spec.size if spec.is_packed else PIECE * spec.numpy.itemsize


def _cut(buffers: Iterable[_Array], nbytes: int) -> Iterator[_Array]:
    """The same bytes in arrays of that size; the last is smaller. Only what lies in two buffers is copied."""
    rest = np.empty(0, np.uint8)
    for buffer in buffers:
        at = 0
        if rest.nbytes:
            at = nbytes - rest.nbytes
            rest = np.concatenate([rest, buffer[:at]])
            if rest.nbytes < nbytes:
                continue
            yield rest
        stop = at + (buffer.nbytes - at) // nbytes * nbytes
        yield from (buffer[start : start + nbytes] for start in range(at, stop, nbytes))
        rest = buffer[stop:]
    if rest.nbytes:
        yield rest
