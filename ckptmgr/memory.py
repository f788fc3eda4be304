"""State in memory as a source of tensors."""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from types import TracebackType
from typing import Any, Self

import numpy as np

from ckptmgr import arrays
from ckptmgr.box import Box
from ckptmgr.layout import Extent
from ckptmgr.spec import TensorSpec
from ckptmgr.step import JSON

_dtype = attrgetter("dtype")


class MemorySource:
    """Framework arrays by name. ``read`` gives views of host memory, and copies from a device no more than is asked for."""

    def __init__(
        self,
        tensors: Mapping[str, Any],
        specs: Mapping[str, TensorSpec],
        *,
        aliases: Mapping[str, str] | None = None,
        metadata: Mapping[str, JSON] | None = None,
        blobs: Mapping[str, bytes] | None = None,
    ) -> None:
        self.specs = specs
        self.aliases = aliases or {}
        self.metadata = metadata or {}
        self.blobs = blobs or {}
        self._tensors = tensors

    def extents(self, name: str) -> Sequence[Extent]:
        """None: nothing of it lies in a file."""
        return ()

    def read(self, name: str, box: Box | None = None, out: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
        """The tensor's elements; see `TensorSource.read`. A view wherever they are in host memory."""
        array = self._tensors[name]
        # A whole array of numpy is what is asked for, and there may be many.
        if type(array) is not np.ndarray or box is not None or array.dtype.kind in "SUOT":
            array = arrays.host_array(array, box)
        if out is None:
            return array
        np.copyto(out, array, casting="equiv")
        return out

    def whole(self, names: Sequence[str]) -> list[np.ndarray[Any, Any]]:
        """These tensors; see `InMemory`. A short way where all are arrays of numpy."""
        found = list(map(self._tensors.__getitem__, names))
        if set(map(type, found)) == {np.ndarray} and not any(dtype.kind in "SUOT" for dtype in set(map(_dtype, found))):
            return found
        return list(map(self.read, names))

    def close(self) -> None:
        """Nothing to close."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
