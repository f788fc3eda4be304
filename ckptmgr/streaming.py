"""Tensors on their way from a source to a layout, as raw bytes that are read ahead of whoever writes them.

The law: the bytes of one part after another come in the layout's order, and no more of them are in memory than the budget,
however large the tensors. Raw bytes are never decoded: a tensor in one piece of a file is bytes, whatever its dtype. What only
its source can decode comes tensor by tensor, or box by box where it is larger than a unit.
"""

import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias, TypeVar

import numpy as np

from ckptmgr import transfer
from ckptmgr.box import Box
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.layout import Extent, Layout, Part
from ckptmgr.source import TensorSource
from ckptmgr.spec import TensorSpec
from ckptmgr.step import JSON
from ckptmgr.storage import Folder, Head, is_local
from ckptmgr.threads import Pool
from ckptmgr.transfer import Want

_Array: TypeAlias = np.ndarray[Any, Any]
T = TypeVar("T")
log = logging.getLogger(__name__)

BUDGET_NBYTES = 64 << 20
_UNIT_NBYTES = 8 << 20  # read at once; several are on their way
_LEAST_NBYTES = 1 << 16
_ALIGN = 64
_LOCAL_READERS = 1  # a disk reads ahead for one
_HELD_UNITS = 3  # by the writer, by its checksums, and by whoever takes the next
_NEAR_UNITS = 2  # read ahead, where a disk does the same


class _Piece(NamedTuple):
    """Part of a unit: some of a tensor's bytes, and where in the unit's memory they go."""

    want: Want
    spec: TensorSpec
    at: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class SeenFolder(Folder):
    """Another folder, which asks for the size and time of each file once."""

    of: Folder = field(kw_only=True)
    seen: dict[str, Head | None] = field(default_factory=dict, compare=False)

    def key(self, name: str) -> str:
        """See `Folder.key`."""
        return self.of.key(name)

    def head(self, name: str) -> Head | None:
        """See `Folder.head`; as it was when it was first asked for."""
        if name not in self.seen:
            self.seen[name] = Folder.head(self, name)
        return self.seen[name]

    def changed(self) -> list[str]:
        """The files that are not any more what they were."""
        return [name for name, head in self.seen.items() if Folder.head(self, name) != head]


class Flattened:
    """A source's tensors as flat bytes, each that lies in one piece of a file; the others as they are."""

    def __init__(self, source: TensorSource, names: Iterable[str]) -> None:
        self._source = source
        self._folders: dict[Folder, SeenFolder] = {}
        self._extents = {name: [self._seen(extent) for extent in source.extents(name)] for name in names}
        self.specs: Mapping[str, TensorSpec] = {
            name: TensorSpec("uint8", (spec.nbytes,)) if _is_bytes(extents) else spec
            for name, extents in self._extents.items()
            for spec in (source.specs[name],)
        }
        self.metadata: Mapping[str, JSON] = {}
        self.aliases: Mapping[str, str] = {}
        self.blobs: Mapping[str, bytes] = {}

    def extents(self, name: str) -> Sequence[Extent]:
        """See `TensorSource`."""
        return self._extents[name]

    def read(self, name: str, box: Box | None = None, out: _Array | None = None) -> _Array:
        """See `TensorSource`; for what has no extents."""
        return self._source.read(name, box, out)

    def changed(self) -> list[str]:
        """Where files lie that have another size or time than when they were first looked at."""
        return [folder.location(name) for folder in self._folders.values() for name in folder.changed()]

    def close(self) -> None:
        """Nothing: the source is its owner's."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _seen(self, extent: Extent) -> Extent:
        folder = self._folders.get(extent.folder)
        if folder is None:
            folder = self._folders[extent.folder] = SeenFolder(extent.folder.store, extent.folder.prefix, of=extent.folder)
        return extent._replace(folder=folder)


class Stream:
    """The tensors of a source for the parts of one layout. A context manager: leaving it ends its threads.

    It is a `Streamed` source: `buffers` must be asked for all parts that have bytes, in the layout's order.
    """

    def __init__(self, source: TensorSource, layout: Layout, *, budget: int = BUDGET_NBYTES) -> None:
        self.specs, self.metadata, self.aliases, self.blobs = source.specs, source.metadata, source.aliases, source.blobs
        parts = [part for file in layout.files for _, _, part in file.parts() if part.nbytes]
        self.flat = Flattened(source, dict.fromkeys(part.name for part in parts))
        store = next((extent.folder.store for part in parts for extent in self.flat.extents(part.name)), None)
        is_near = store is None or is_local(store)
        self._unit = max(min(_UNIT_NBYTES, budget // (_HELD_UNITS + _NEAR_UNITS)), _LEAST_NBYTES)
        self._ahead = _NEAR_UNITS if is_near else max(budget // self._unit - _HELD_UNITS, _NEAR_UNITS)
        self._pool = Pool(_LOCAL_READERS if is_near else self._ahead, "ckptmgr-ahead")
        self._memory = _Memory(self._unit)
        self._units = self._cut(parts)
        self._coming: deque[Future[list[_Array]]] = deque()
        self._here: deque[_Array] = deque()

    def extents(self, name: str) -> Sequence[Extent]:
        """See `TensorSource`."""
        return self.flat.extents(name)

    def read(self, name: str, box: Box | None = None, out: _Array | None = None) -> _Array:
        """See `TensorSource`."""
        return self.flat.read(name, box, out)

    def buffers(self, part: Part, most: int) -> Iterator[_Array]:
        """See `Streamed`.

        Raises:
            CorruptCheckpointError: a file of the source is missing, too short, or not what its format says.
            OSError: from the store.
        """
        left = part.nbytes
        while left:
            array = self._next()
            left -= array.nbytes
            yield from (array[at : at + most] for at in range(0, array.nbytes, most))

    def close(self) -> None:
        """Reads no further."""
        self._pool.shutdown(cancel_futures=True)
        self._coming.clear()
        self._here.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _next(self) -> _Array:
        while not self._here:
            while len(self._coming) < self._ahead and (unit := next(self._units, None)):
                self._coming.append(self._pool.submit(self._filled, unit))
            self._here.extend(self._coming.popleft().result())
        return self._here.popleft()

    def _cut(self, parts: Sequence[Part]) -> Iterator[list[_Piece]]:
        """The parts in units of about equal size; a large tensor is several."""
        unit: list[_Piece] = []
        filled = 0
        for part in parts:
            for want, nbytes in self._wants(part):
                if unit and filled + nbytes > self._unit:
                    yield unit
                    unit, filled = [], 0
                unit.append(_Piece(want, self.flat.specs[part.name], filled, nbytes))
                filled += -(-nbytes // _ALIGN) * _ALIGN
        if unit:
            yield unit

    def _wants(self, part: Part) -> Iterator[tuple[Want, int]]:
        spec = self.flat.specs[part.name]
        if part.nbytes <= self._unit or spec.is_packed:  # packed, and for its source alone: it gives no slices of it
            yield Want(part.name), part.nbytes
        else:
            for chunk in Box.whole(spec.shape).chunks(max(self._unit // spec.numpy.itemsize, 1)):
                yield Want(part.name, chunk), chunk.size * spec.numpy.itemsize

    def _filled(self, unit: Sequence[_Piece]) -> list[_Array]:
        """The unit's bytes, an array for each of its pieces."""
        memory = self._memory.take(unit[-1].at + unit[-1].nbytes)
        wants, arrays = [], []
        for want, spec, at, nbytes in unit:
            array = memory[at : at + nbytes]
            shape = (spec.nbytes,) if spec.is_packed else spec.shape if want.box is None else want.box.shape
            arrays.append(array)
            wants.append(Want(want.name, want.box, array.view(spec.numpy.newbyteorder("<")).reshape(shape)))
        # Checksums are made once, of what is written.
        transfer.read(self.flat, wants, verify="off")
        return arrays


class _Memory:
    """Places for units, used again as soon as nobody holds a view of the last one there."""

    def __init__(self, least: int) -> None:
        self._free: list[_Array] = []
        self._least = least

    def take(self, nbytes: int) -> _Array:
        """So many bytes; aligned, and of undefined contents."""
        place = next((index for index, free in enumerate(self._free) if free.nbytes >= nbytes), None)
        memory = _fresh(max(nbytes, self._least)) if place is None else self._free.pop(place)
        # A view of a memoryview is nobody's view but its own: all arrays made of it hold it, and not what is below.
        view = np.frombuffer(memory.data, np.uint8)
        weakref.finalize(view, self._free.append, memory).atexit = False
        return view[:nbytes]


def _fresh(nbytes: int) -> _Array:
    memory = np.empty(nbytes + 4096, np.uint8)
    start = -memory.ctypes.data % 4096
    return memory[start:]


def _is_bytes(extents: Sequence[Extent]) -> bool:
    return len(extents) == 1 and extents[0].box is None


def check_unchanged(stream: Stream, where: str) -> None:
    """Raises CorruptCheckpointError if a file that was read is not what it was when that began."""
    if changed := stream.flat.changed():
        raise CorruptCheckpointError(
            f"{changed[0]!r} of {where!r} was changed while it was read: nothing was written", file=changed[0]
        )


def once_more(sources: Sequence[TensorSource], run: Callable[[], T]) -> T:
    """What ``run`` gives. If it meets damage, and a source is not on a local disk, it runs again: bytes may suffer on their way.

    A disk would give the same bytes again. ``run`` has no effect if it raises.

    Raises:
        CorruptCheckpointError: as ``run`` does, the second time from afar.
    """
    try:
        return run()
    except CorruptCheckpointError as error:
        extents = (extent for source in sources for name in source.specs for extent in source.extents(name))
        if all(is_local(extent.folder.store) for extent in extents):
            raise
        log.warning("all is read once more, as bytes may have been damaged on their way: %s", error)
    return run()
