"""Anything that hands out named tensors: state in memory, one file, a whole checkpoint, or a view of one."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from ckptmgr.box import Box
from ckptmgr.layout import Extent, Path
from ckptmgr.spec import TensorSpec
from ckptmgr.step import JSON


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


@runtime_checkable
class Nested(Protocol):
    """A source whose format tells how names nest, where no skeleton of ours does: an object graph, groups in a file."""

    @property
    def paths(self) -> Mapping[str, Path]:
        """The keys that lead to each tensor, by the names in ``specs`` and ``aliases``; a name without any does not nest."""


def paths_of(source: TensorSource) -> Mapping[str, Path]:
    """How the names of a source nest, as far as it tells; empty if it does not."""
    return source.paths if isinstance(source, Nested) else {}
