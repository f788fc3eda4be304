"""The tensors of opened files. Nothing is read before somebody asks for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np

from ckptmgr.backend import JSON, Box, Extent, Folder, Head, PackedArray, Places, TensorSpec, read_raw
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr_safetensors.header import Place


@dataclass(frozen=True, slots=True)
class SafetensorsSource:
    """A `TensorSource` over one file or a set of them; every tensor has an extent.

    ``places`` gives file and place by tensor name. ``main`` is the file that was opened, an index where there are several: who
    replaces a set takes it away before the first shard, and lets it appear after the last. No file is held open, so `close`
    has nothing to do.
    """

    folder: Folder
    places: Mapping[str, tuple[str, Place]]
    aliases: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    main: tuple[str, Head] | None = None
    specs: Mapping[str, TensorSpec] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "specs", {name: place.spec for name, (_, place) in self.places.items()})

    def is_same(self) -> bool:
        """See `Replaceable`."""
        return self.main is None or self.folder.head(self.main[0]) == self.main[1]

    def extents(self, name: str) -> Sequence[Extent]:
        """The one extent of the tensor; an alias has its tensor's."""
        file, place = self._place(name)
        return (Extent(self.folder, file, place.offset),)

    def extents_of(self, names: Sequence[str]) -> Places:
        """See `Bulk`."""
        found = [self._place(name) for name in names] if self.aliases else [self.places[name] for name in names]
        files = {file: index for index, file in enumerate(dict.fromkeys([file for file, _ in found]))}
        indexes = np.array([files[file] for file, _ in found], np.int64)
        offsets = np.array([place[1] for _, place in found], np.int64)
        return Places(self.folder, [*files], indexes, offsets, [None] * len(found), {})

    def read(self, name: str, box: Box | None = None, out: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
        """See `TensorSource.read`. A packed tensor is flat and comes whole.

        Raises:
            KeyError: no tensor of that name.
            ValueError: ``box`` is not inside the tensor or cuts a packed one, or ``out`` is of another shape.
            CorruptCheckpointError: the file has become shorter.
        """
        file, (spec, offset) = self._place(name)
        if box is not None and not box.fits(spec.shape):
            raise ValueError(f"the slice {box} is not inside tensor {name!r} of shape {spec.shape}")
        if spec.is_packed and box is not None and box != Box.whole(spec.shape):
            raise ValueError(f"tensor {name!r} is packed ({spec.dtype}): it can only be read whole")
        box = Box.whole((spec.nbytes,) if spec.is_packed else spec.shape) if spec.is_packed or box is None else box
        array = np.empty(box.shape, spec.numpy) if out is None else out
        if array.shape != box.shape or array.dtype.newbyteorder("=") != spec.numpy:
            raise ValueError(f"tensor {name!r} is {spec.dtype} of shape {box.shape}, not {array.dtype} of {array.shape}")
        shape = (spec.nbytes,) if spec.is_packed else spec.shape
        try:
            read_raw(self.folder, file, offset, shape, box, array)
        except EOFError as error:
            raise CorruptCheckpointError(f"{file!r} ends inside tensor {name!r}", file=file, tensor=name) from error
        return PackedArray.wrap(array, spec) if spec.is_packed and out is None else array

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _place(self, name: str) -> tuple[str, Place]:
        return self.places[self.aliases.get(name, name)]
