"""The tensors of opened files by their names. Nothing is read before somebody asks for it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np

from ckptmgr.backend import JSON, Box, Extent, Folder, Head, PackedArray, Places, TensorSpec
from ckptmgr.errors import UnsupportedTensorError
from ckptmgr_hdf5.parsing import Dataset
from ckptmgr_hdf5.reading import fill, stored_bytes
from ckptmgr_hdf5.tensors import Entry, File


@dataclass(frozen=True, slots=True)
class HDF5Source:
    """A `TensorSource` over one HDF5 file or several. ``paths`` tells how its names nest.

    ``main`` is the file that was opened, of a set the last one: who replaces a set takes it away before the first of the others,
    and lets it appear after them.

    No file stays open, but what only h5py can read is read in a process of its own, which `close` ends.
    """

    entries: Mapping[str, Entry]
    aliases: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[File] = ()
    main: tuple[Folder, str, Head] | None = None
    specs: Mapping[str, TensorSpec] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "specs", {name: entry.spec for name, entry in self.entries.items()})

    def is_same(self) -> bool:
        """See `Replaceable`."""
        if self.main is None:
            return True
        folder, name, head = self.main
        return folder.head(name) == head

    def extents(self, name: str) -> Sequence[Extent]:
        """Where the tensor lies; empty for what only `read` can decode. An alias has its tensor's."""
        entry = self._entry(name)
        file, offset = entry.file, entry.dataset.offset
        if entry.way != "raw" or offset is None or file.name is None:
            return ()
        return (Extent(file.folder, file.name, offset),)

    def extents_of(self, names: Sequence[str]) -> Places:
        """See `Bulk`. Of files in several folders only those in that of the first tensor are told here."""
        entries = [self._entry(name) for name in names] if self.aliases else [self.entries[name] for name in names]
        files = list({id(file): file for file in [entry.file for entry in entries]}.values())
        folder = files[0].folder
        is_here = {id(file): file.name is not None and file.folder == folder for file in files}
        numbers = {id(file): number for number, file in enumerate(files)}
        indexes = np.array([numbers[id(entry.file)] for entry in entries], np.int64)
        offsets = [
            -1 if entry.way != "raw" or entry.dataset.offset is None or not is_here[id(entry.file)] else entry.dataset.offset
            for entry in entries
        ]
        return Places(
            folder, [file.name or "" for file in files], indexes, np.array(offsets, np.int64), [None] * len(entries), {}
        )

    def read(self, name: str, box: Box | None = None, out: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
        """See `TensorSource.read`. A packed tensor is flat and comes whole; strings are objects, which are `bytes`.

        Raises:
            KeyError: no tensor of that name.
            ValueError: ``box`` is not inside the tensor or cuts a packed one, or ``out`` is of another shape or dtype.
            CorruptCheckpointError: the bytes are not there, or not what they are said to be.
            MissingDependencyError: only h5py can read it, and it is not installed.
        """
        entry = self._entry(name)
        spec = entry.spec
        if box is not None and not box.fits(spec.shape):
            raise ValueError(f"the slice {box} is not inside tensor {name!r} of shape {spec.shape}")
        if spec.is_packed and box is not None and box != Box.whole(spec.shape):
            raise ValueError(f"tensor {name!r} is packed ({spec.dtype}): it can only be read whole")
        box = Box.whole((spec.nbytes,) if spec.is_packed else spec.shape) if spec.is_packed or box is None else box
        array = np.empty(box.shape, spec.numpy) if out is None else out
        if array.shape != box.shape or array.dtype.newbyteorder("=") != spec.numpy:
            raise ValueError(f"tensor {name!r} is {spec.dtype} of shape {box.shape}, not {array.dtype} of {array.shape}")
        fill(entry, box, array)
        return PackedArray.wrap(array, spec) if spec.is_packed and out is None else array

    def close(self) -> None:
        """Ends the processes that read by h5py. Reading on starts them again."""
        for file in self.files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _entry(self, name: str) -> Entry:
        return self.entries[self.aliases.get(name, name)]


@dataclass(frozen=True, slots=True)
class Carried(Mapping[str, bytes]):
    """Datasets by name as the bytes that they have in their file, read when they are asked for; and what ``others`` has.

    Raises:
        UnsupportedTensorError: on the use of one that is chunked, whose elements mean nothing to us.
    """

    held: Mapping[str, tuple[File, Dataset]]
    others: Mapping[str, bytes] = field(default_factory=dict)

    def __getitem__(self, name: str) -> bytes:
        if name not in self.held:
            return self.others[name]
        file, dataset = self.held[name]
        if not dataset.nbytes:
            return b""
        if dataset.offset is None:
            problem = "is chunked, and no array can be made of its elements"
            raise UnsupportedTensorError(f"dataset {dataset.path!r} of {file.origin.location!r} {problem}", tensor=name)
        return stored_bytes(file, dataset)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self.held, *self.others)))

    def __len__(self) -> int:
        return len({*self.held, *self.others})

    def __contains__(self, name: object) -> bool:
        return name in self.held or name in self.others
