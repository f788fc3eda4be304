"""Anything that hands out named tensors: state in memory, one file, a whole checkpoint, or a view of one."""

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np

from ckptmgr.box import Box
from ckptmgr.layout import Extent, Part, Path
from ckptmgr.spec import TensorSpec
from ckptmgr.step import JSON
from ckptmgr.storage import Folder


class TensorSource(Protocol):
    """Named tensors, read on demand. A context manager: it may hold a file, a map, a connection.

    ``specs`` is in file or tree order. ``aliases`` gives further names of tensors in ``specs`` (tied ones).
    ``metadata`` and ``blobs`` are what the format carries beside the tensors.
    """

    @property
    def specs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def metadata(self) -> Mapping[str, JSON]: ...
    @property
    def aliases(self) -> Mapping[str, str]: ...
    @property
    def blobs(self) -> Mapping[str, bytes]: ...

    def extents(self, name: str) -> Sequence[Extent]:
        """Where the tensor's raw bytes lie; empty if only `read` can decode it (or it is in memory)."""

    def read(self, name: str, box: Box | None = None, out: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
        """The tensor, or the slice ``box`` of it, as a host array; a view where that costs nothing.

        ``out``, an array of the same shape and dtype, is filled and returned instead.

        Raises:
            KeyError: no tensor of that name.
        """

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class Places(NamedTuple):
    """Where many tensors lie, in columns: for each the file, as an index of ``files``, offset and crc32c, if it is known.

    ``indexes`` and ``offsets`` are int64. An offset is -1 where a tensor has no single extent: `TensorSource.extents` tells.
    ``totals`` has the size and crc32c of whole files, as far as they are known.
    """

    folder: Folder
    files: Sequence[str]
    indexes: np.ndarray[Any, Any]
    offsets: np.ndarray[Any, Any]
    checksums: Sequence[int | None]
    totals: Mapping[str, tuple[int, int]]


@runtime_checkable
class Bulk(Protocol):
    """A source that tells at once where many tensors lie: as their `TensorSource.extents` would, but faster."""

    def extents_of(self, names: Sequence[str]) -> Places:
        """The places of one or more tensors in ``specs``, in that order. Raises what `TensorSource.extents` raises."""


@runtime_checkable
class InMemory(Protocol):
    """A source that hands out many whole tensors at once: as `TensorSource.read` would, but faster."""

    def whole(self, names: Sequence[str]) -> list[np.ndarray[Any, Any]]:
        """These tensors, in that order. Raises what `TensorSource.read` raises."""


@runtime_checkable
class Replaceable(Protocol):
    """A source whose files somebody may replace while it is open, by others that its places are not of."""

    def is_same(self) -> bool:
        """Whether they are still those that were opened. What was read before this is then of them alone."""


@runtime_checkable
class Streamed(Protocol):
    """A source that hands out raw bytes itself, of one part of a layout after another, in the layout's order."""

    def buffers(self, part: Part, most: int) -> Iterable[np.ndarray[Any, Any]]:
        """The part's little-endian C-order bytes, in buffers of at most ``most`` bytes. They stay as they are while held."""


@runtime_checkable
class Summed(Protocol):
    """A source whose files have other checksums of their tensors than a crc32c."""

    def crc32(self, name: str) -> int | None:
        """The crc32 of the tensor's raw little-endian C-order bytes, as its file tells it; None if it does not."""


def crc32_of(source: TensorSource, name: str) -> int | None:
    """What a `Summed` source tells of the tensor, None of any other: asked for each of many, and `isinstance` takes 10 µs."""
    found: int | None = source.crc32(name) if hasattr(source, "crc32") else None
    return found


@runtime_checkable
class Partial(Protocol):
    """A source whose files have tensors of kinds that no array holds. Whoever takes everything along has to tell of them."""

    @property
    def unreadable(self) -> Mapping[str, str]:
        """By name, what each of them is. None is in ``specs``; the bytes of some may be in ``blobs``."""


def unreadable_of(source: TensorSource) -> Mapping[str, str]:
    """What a `Partial` source cannot read; of any other nothing."""
    return source.unreadable if isinstance(source, Partial) else {}


@runtime_checkable
class Nested(Protocol):
    """A source whose format tells how names nest, where no skeleton of ours does: an object graph, groups in a file."""

    @property
    def paths(self) -> Mapping[str, Path]:
        """The keys that lead to each tensor, by the names in ``specs`` and ``aliases``; a name without any does not nest."""


def paths_of(source: TensorSource) -> Mapping[str, Path]:
    """How the names of a source nest, as far as it tells; empty if it does not."""
    return source.paths if isinstance(source, Nested) else {}
