"""Which bytes of which file go where: decided before anything is read, without any I/O.

A wanted slice meets each extent of its tensor in a box. The box is cut into spans: bytes of the file that are read
together, straight into the array where both sides are in the same order, else through a buffer. Spans that are near
each other in a file make a window, one request to the store.
"""

import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from ckptmgr.box import Box
from ckptmgr.checksum import crc32c, joined
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.layout import Extent
from ckptmgr.source import TensorSource
from ckptmgr.storage import Folder, LocalStore
from ckptmgr.transfer.slabs import ALIGN

_Array: TypeAlias = np.ndarray[Any, Any]

GAP_NBYTES = 64 << 10  # a gap up to this size is read through rather than made into two requests
# Tensors of local files are from here on read through aligned memory where their own is not, as what np.empty gives: on some
# machines the kernel copies two times slower to what is not. Copies of less than about 1 MiB cost more than that: they go
# through the cache.
BOUNCE_NBYTES = 1 << 20
SMALL_NBYTES = 16 << 10  # below this, a tensor is one span without more ado
BUFFERS = 1024  # in a window at most, gaps included: what one vectored system call takes


class Want(NamedTuple):
    """A tensor, or the slice ``box`` of it, to be read: into ``out``, or into a new array."""

    name: str
    box: Box | None = None
    out: _Array | None = None


class Goal:
    """A want that is known to be possible. ``array`` is where its bytes go; the reader sets it.

    ``whole`` is the tensor's shape as an array, and ``shape`` that of the wanted slice; a packed tensor is flat bytes.
    ``is_raw``: its bytes, if it has any, lie in extents; otherwise only the source can read them.
    """

    __slots__ = ("array", "box", "dtype", "is_raw", "name", "nbytes", "out", "shape", "spec", "whole")

    def __init__(self, source: TensorSource, want: Want) -> None:
        self.name, self.box, self.out = want
        spec = self.spec = source.specs[self.name]
        self.dtype = spec.numpy
        self.shape = self.whole = (spec.nbytes,) if spec.is_packed else spec.shape
        self.nbytes = spec.nbytes
        self.is_raw = False
        self.array: _Array
        if self.box is not None:
            if spec.is_packed or not self.box.fits(self.whole):
                raise ValueError(f"{self.box} is no slice of tensor {self.name!r}, {spec.dtype} of shape {spec.shape}")
            self.shape = self.box.shape
            self.nbytes = 0 if spec.is_string else self.box.size * self.dtype.itemsize
        if self.out is not None:
            _check_out(self.name, self.out, self.shape, self.dtype)

    def end(self, extent: Extent) -> int:
        """Where an extent of the tensor ends in its file."""
        return extent.offset + (self.spec.nbytes if extent.box is None else extent.box.size * self.dtype.itemsize)

    def needed(self, extents: Sequence[Extent]) -> Sequence[Extent]:
        """Those of the tensor's extents that hold some of the wanted slice, which they must cover exactly once."""
        for extent in extents:
            if extent.offset < 0:
                raise self._wrong(extent, "it begins before its file")
        if len(extents) == 1 and extents[0].box is None:
            return extents
        whole = Box.whole(self.whole)
        needed: list[Extent] = []
        covered: list[Box] = []
        for extent in extents:
            box = extent.box or whole
            if self.spec.is_packed or not box.fits(self.whole):
                raise self._wrong(extent, f"{box} is no slice of it")
            if common := box.overlap(self.box or whole):
                needed.append(extent)
                covered.append(common)
        if _overlap(covered) or sum(box.size for box in covered) != math.prod(self.shape):
            raise self._wrong(extents[0], f"its {len(extents)} slices do not cover {self.box or 'it'} exactly once")
        return needed

    def _wrong(self, extent: Extent, problem: str) -> CorruptCheckpointError:
        where = extent.folder.location(extent.file)
        text = f"tensor {self.name!r} in {where!r}, {self.spec.dtype} of shape {self.spec.shape}: {problem}"
        return CorruptCheckpointError(text, file=extent.file, tensor=self.name)


def _overlap(boxes: Sequence[Box]) -> bool:
    """Whether any two of these boxes, none of them empty, share an element; fast where one axis tells most of them apart."""
    if len(boxes) < 2 or not boxes[0].start:
        return len(boxes) > 1
    axis = max(range(len(boxes[0].start)), key=lambda axis: len({box.start[axis] for box in boxes}))
    open_: list[Box] = []
    for box in sorted(boxes, key=lambda box: box.start[axis]):
        open_ = [other for other in open_ if other.stop[axis] > box.start[axis]]
        if any(box.overlap(other) for other in open_):
            return True
        open_.append(box)
    return False


def check_apart(places: Sequence[tuple[int, int, str]], nbytes: int, where: str, file: str) -> None:
    """Raises CorruptCheckpointError if tensors have more bytes together than their file: then some have those of others.

    ``places`` are start, end and name of each, by ascending start. An index of a few lines could else take any memory.
    """
    claimed = sum(end - start for start, end, _ in places)
    if claimed > nbytes:
        name = next(other[2] for one, other in itertools.pairwise(places) if other[0] < one[1])
        text = f"{where!r} has {nbytes} bytes, and tensors that are said to lie in it {claimed}: {name!r} has bytes of another"
        raise CorruptCheckpointError(text, file=file, tensor=name)


class Check(Protocol):
    """What is remembered of spans that were read, to be looked at when all are there."""

    folder: Folder
    file: str

    def add(self, order: int, part: _Array) -> None:
        """The bytes of one span, in any order and thread, now in cache."""

    def damaged(self) -> Sequence[str]:
        """Names of tensors whose bytes are not those that were written."""


class TensorCheck:
    """The crc32c and size of each span of an extent that is read whole, to be compared with its own."""

    __slots__ = ("_expected", "_found", "_tensor", "file", "folder")

    def __init__(self, folder: Folder, file: str, tensor: str, expected: int) -> None:
        self.folder, self.file = folder, file
        self._tensor, self._expected = tensor, expected
        self._found: dict[int, tuple[int, int]] = {}

    def add(self, order: int, part: _Array) -> None:
        """See `Check`."""
        self._found[order] = crc32c(part), part.nbytes

    def damaged(self) -> Sequence[str]:
        """See `Check`."""
        is_good = joined(self._found[order] for order in sorted(self._found)) == self._expected
        return [] if is_good else [self._tensor]


class Span(NamedTuple):
    """Bytes of a file for an array.

    ``strides`` None: they are ``target``'s own, in order. Otherwise ``target``'s elements lie among them in these steps.
    ``crc32c`` is theirs, if it is known; ``check`` and the span's order in it if it is known of more that they are part of.
    """

    offset: int
    nbytes: int
    target: _Array
    strides: tuple[int, ...] | None
    tensor: str
    crc32c: int | None
    check: Check | None
    order: int


class Window(NamedTuple):
    """Spans of one file that are read by one request, by ascending offset and without overlap."""

    folder: Folder
    file: str
    spans: Sequence[Span]


def windows(folder: Folder, file: str, spans: Iterable[Span]) -> Iterator[Window]:
    """Spans of a file by ascending offset, in windows of about the store's size, gaps included."""
    most = folder.store.window_nbytes
    group: list[Span] = []
    start = end = buffers = 0
    for span in spans:
        gap = span.offset - end
        stop = span.offset + span.nbytes
        if group and (not 0 <= gap <= GAP_NBYTES or stop - start > most or buffers >= BUFFERS - 1):
            yield Window(folder, file, group)
            group = []
        if not group:
            start, gap, buffers = span.offset, 0, 0
        buffers += 2 if gap else 1
        group.append(span)
        end = stop
    if group:
        yield Window(folder, file, group)


def spans(held: Iterable[tuple[Goal, Extent]], most: int, checks: list[Check] | None) -> Iterator[Span]:
    """What is to be read of one file's extents for their goals, each of at most ``most`` bytes or of one element.

    ``checks`` takes those that can be made when all is read; None means that nothing is to be checked.
    """
    for goal, extent in sorted(held, key=lambda pair: pair[1].offset):
        if extent.box is None and goal.box is None and goal.nbytes < SMALL_NBYTES and goal.nbytes <= most:  # there may be many
            expected = extent.crc32c if checks is not None else None
            yield Span(extent.offset, goal.nbytes, goal.array, None, goal.name, expected, None, 0)
        elif extent.box is None and goal.box is None:
            yield from _whole(goal, extent, most, checks)
        else:
            yield from _sliced(goal, extent, most, checks)


def _whole(goal: Goal, extent: Extent, most: int, checks: list[Check] | None) -> Iterator[Span]:
    """The spans of a large tensor, as plain bytes."""
    check = None
    if checks is not None and extent.crc32c is not None:
        check = TensorCheck(extent.folder, extent.file, goal.name, extent.crc32c)
        checks.append(check)
    raw = goal.array.reshape(-1).view(np.uint8)
    is_bounced = raw.nbytes >= BOUNCE_NBYTES and isinstance(extent.folder.store, LocalStore)
    strides = (1,) if is_bounced and raw.__array_interface__["data"][0] % ALIGN else None
    yield from pieces(extent.offset, raw, most, check, strides)


def pieces(offset: int, raw: _Array, most: int, check: Check | None, strides: tuple[int, ...] | None = None) -> Iterator[Span]:
    """Spans of at most ``most`` bytes for these, all about as large, which lie in a file at ``offset``: that is their order."""
    count = max(-(-raw.nbytes // most), 1)
    step = min(-(-raw.nbytes // count // 4096) * 4096 or most, most)
    for at in range(0, raw.nbytes, step):
        piece = raw[at : at + step]
        yield Span(offset + at, piece.nbytes, piece, strides, "", None, check, offset + at)


def _sliced(goal: Goal, extent: Extent, most: int, checks: list[Check] | None) -> Iterator[Span]:
    """The spans of the part of an extent that the goal needs, with a check if that is all of it."""
    whole = Box.whole(goal.whole)
    held, wanted = extent.box or whole, goal.box or whole
    common = held.overlap(wanted)
    if common is None:
        return
    check = None
    if checks is not None and extent.crc32c is not None and common == held:
        check = TensorCheck(extent.folder, extent.file, goal.name, extent.crc32c)
        checks.append(check)
    steps, itemsize = _steps(held.shape), goal.dtype.itemsize
    pieces = _cut(common.relative_to(held), steps, max(most // itemsize, 1), GAP_NBYTES // itemsize)
    for order, (piece, first, count) in enumerate(pieces):
        ends = zip(piece.start, piece.stop, held.start, wanted.start, strict=True)
        within: list[Any] = [slice(start + h - w, stop + h - w) for start, stop, h, w in ends]
        target = goal.array[(*within, ...)]
        is_straight = count == piece.size and target.flags.c_contiguous
        strides = None if is_straight else tuple(step * itemsize for step in steps)
        yield Span(extent.offset + first * itemsize, count * itemsize, target, strides, goal.name, None, check, order)


def _steps(shape: Sequence[int]) -> tuple[int, ...]:
    """C-order strides in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _cut(box: Box, steps: Sequence[int], most: int, gap: int) -> Iterator[tuple[Box, int, int]]:
    """The box in pieces, in C order, each with its first element in the file and the number of elements to its last.

    A piece spans at most ``most`` elements, or one, and skips at most ``gap`` at a time. ``steps`` are the strides of
    the tensor in the file, in elements.
    """
    first = sum(map(operator.mul, box.start, steps))
    count = sum((n - 1) * step for n, step in zip(box.shape, steps, strict=True)) + 1
    axis = next((axis for axis, n in enumerate(box.shape) if n > 1), None)
    if axis is None:
        yield box, first, count
        return
    step = steps[axis]
    row = count - (box.shape[axis] - 1) * step
    # Inside a row gaps are never larger than between rows.
    is_near = step - row <= gap
    if is_near and count <= most:
        yield box, first, count
        return
    rows = max((most - row) // step + 1, 1) if is_near else 1
    for at in range(box.start[axis], box.stop[axis], rows):
        start = (*box.start[:axis], at, *box.start[axis + 1 :])
        stop = (*box.stop[:axis], min(at + rows, box.stop[axis]), *box.stop[axis + 1 :])
        yield from _cut(Box(start, stop), steps, most, gap)


def _check_out(name: str, out: _Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if out.shape != shape or out.dtype.newbyteorder("=") != dtype:
        raise ValueError(f"tensor {name!r} is wanted as {dtype} of shape {shape}, but out is {out.dtype} of shape {out.shape}")
    if not out.flags.writeable:
        raise ValueError(f"out for tensor {name!r} is read-only")
