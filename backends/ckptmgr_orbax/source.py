"""The tensors of an opened checkpoint of Orbax."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from ckptmgr.backend import JSON, Box, Extent, Folder, Head, Path, TensorSpec
from ckptmgr_orbax.arrays import fill, spec_of
from ckptmgr_orbax.origin import Origin

Array = np.ndarray[Any, Any]


class OrbaxSource:
    """A `TensorSource` over opened arrays. Chunks are compressed, so no tensor has extents."""

    aliases: Mapping[str, str] = {}

    def __init__(
        self,
        arrays: Mapping[str, Any],
        paths: Mapping[str, Path],
        metadata: Mapping[str, JSON],
        origin: Origin,
        marks: Sequence[tuple[Folder, str, Head | None]],
        blobs: Mapping[str, bytes],
    ) -> None:
        self.blobs = blobs
        self.arrays, self.paths, self.metadata, self.origin, self.marks = arrays, paths, metadata, origin, marks
        self.specs: Mapping[str, TensorSpec] = {name: spec_of(array, name) for name, array in arrays.items()}

    def is_same(self) -> bool:
        """See `Replaceable`."""
        return all(folder.head(name) == head for folder, name, head in self.marks)

    def extents(self, name: str) -> Sequence[Extent]:
        """None: only `read` can decode chunks."""
        if name not in self.specs:
            raise KeyError(name)
        return ()

    def read(self, name: str, box: Box | None = None, out: Array | None = None) -> Array:
        """See `TensorSource.read`. Raises KeyError, ValueError and CorruptCheckpointError as it does."""
        spec = self.specs[name]
        where = Box.whole(spec.shape) if box is None else box
        if not where.fits(spec.shape):
            raise ValueError(f"the slice {where} is not inside tensor {name!r} of shape {spec.shape}")
        array = np.empty(where.shape, spec.numpy) if out is None else out
        if array.shape != where.shape or array.dtype.newbyteorder("=") != spec.numpy:
            raise ValueError(f"tensor {name!r} is {spec.dtype} of shape {where.shape}, not {array.dtype} of {array.shape}")
        if array.size:
            fill(self.arrays[name], name, where.slices, array, self.origin)
        return array

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
