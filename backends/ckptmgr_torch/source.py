"""The tensors of opened files. No byte of one is read before somebody asks for it."""

import functools
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from ckptmgr.backend import JSON, Box, Extent, Folder, Head, Path, Places, TensorSpec, numpy_dtype, tensor_spec
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr_torch.archives import TorchFile
from ckptmgr_torch.values import Tensor
from ckptmgr_torch.views import read_view

Array = np.ndarray[Any, Any]


class Entry(NamedTuple):
    """A tensor, and the file that it is in."""

    file: TorchFile
    leaf: Tensor | Array


class TorchSource:
    """A `TensorSource` over one file of torch, or a set of them.

    Those that lie as numpy would have them have extents; `read` makes the others, such as transposed ones. ``main`` is the
    file that was opened. No file is held open, so `close` has nothing to do.
    """

    blobs: Mapping[str, bytes] = {}

    def __init__(
        self,
        entries: Mapping[str, Entry],
        aliases: Mapping[str, str],
        metadata: Mapping[str, JSON],
        paths: Mapping[str, Path],
        main: tuple[Folder, str, Head | None],
    ) -> None:
        self.entries, self.aliases, self.metadata, self.paths, self.main = entries, aliases, metadata, paths, main
        self.specs: Mapping[str, TensorSpec] = {name: spec_of(entry.leaf) for name, entry in entries.items()}

    def is_same(self) -> bool:
        """See `Replaceable`."""
        folder, file, head = self.main
        return folder.head(file) == head

    def extents(self, name: str) -> Sequence[Extent]:
        """The one extent of the tensor; none if only `read` can make it. An alias has its tensor's."""
        name = self.aliases.get(name, name)
        entry, offset = self.entries[name], self._offsets[name]
        return () if offset is None else (Extent(entry.file.folder, entry.file.file, offset),)

    def crc32(self, name: str) -> int | None:
        """See `Summed`; that of the record, if the tensor is all of it."""
        entry = self.entries[self.aliases.get(name, name)]
        return crc32_of(entry.file, entry.leaf) if isinstance(entry.leaf, Tensor) else None

    def extents_of(self, names: Sequence[str]) -> Places:
        """See `Bulk`."""
        names = [self.aliases.get(name, name) for name in names]
        files = [self.entries[name].file.file for name in names]
        numbers = {file: number for number, file in enumerate(dict.fromkeys(files))}
        offsets = [-1 if (offset := self._offsets[name]) is None else offset for name in names]
        indexes = np.array([numbers[file] for file in files], np.int64)
        return Places(self.main[0], [*numbers], indexes, np.array(offsets, np.int64), [None] * len(names), {})

    def read(self, name: str, box: Box | None = None, out: Array | None = None) -> Array:
        """See `TensorSource.read`.

        Raises:
            KeyError: no tensor of that name.
            ValueError: ``box`` is not inside the tensor, or ``out`` is of another shape or dtype.
            CorruptCheckpointError: its record is compressed, or the file has become shorter.
        """
        name = self.aliases.get(name, name)
        entry, spec = self.entries[name], self.specs[name]
        box, array = destination(name, spec, box, out)
        if not isinstance(entry.leaf, Tensor):
            array[...] = entry.leaf[box.slices]
        elif array.size:
            read_tensor(entry.file, entry.leaf, box, array, name)
        return array

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @functools.cached_property
    def _offsets(self) -> dict[str, int | None]:
        """Where in its file each tensor starts that lies there as numpy would have it."""
        found: dict[str, int | None] = dict.fromkeys(self.entries)
        files = {id(entry.file): entry.file for entry in self.entries.values()}
        for file in files.values():
            raw = {name: entry.leaf for name, entry in self.entries.items() if entry.file is file and _is_raw(entry)}
            tensors = {name: leaf for name, leaf in raw.items() if isinstance(leaf, Tensor)}
            starts = file.archive.places([*dict.fromkeys(map(file.record, (leaf.storage for leaf in tensors.values())))])
            for name in _apart(tensors):
                start = starts[file.record(tensors[name].storage)]
                found[name] = None if start is None else start + tensors[name].start
        return found


def destination(name: str, spec: TensorSpec, box: Box | None, out: Array | None) -> tuple[Box, Array]:
    """What is read of a tensor, and the array that it is read into. Raises ValueError if they do not fit."""
    box = Box.whole(spec.shape) if box is None else box
    if not box.fits(spec.shape):
        raise ValueError(f"the slice {box} is not inside tensor {name!r} of shape {spec.shape}")
    array = np.empty(box.shape, spec.numpy) if out is None else out
    if array.shape != box.shape or array.dtype.newbyteorder("=") != spec.numpy:
        raise ValueError(f"tensor {name!r} is {spec.dtype} of shape {box.shape}, not {array.dtype} of {array.shape}")
    return box, array


def read_tensor(file: TorchFile, tensor: Tensor, box: Box, out: Array, name: str) -> None:
    """Fills ``out`` with ``box`` of a tensor that is not empty. Raises CorruptCheckpointError."""
    start = file.archive.place(file.record(tensor.storage))
    if start is None:
        problem = f"its record {file.record(tensor.storage)!r} is compressed, which torch does not do"
        raise file.origin.corrupt(f"{problem}: pack the archive again without compression", name)
    try:
        read_view(file.folder, file.file, start, tensor, box, out, is_big=file.is_big)
    except EOFError as error:
        raise CorruptCheckpointError(f"{file.file!r} ends inside tensor {name!r}", file=file.file, tensor=name) from error


def crc32_of(file: TorchFile, tensor: Tensor) -> int | None:
    """The crc32 of a tensor that is all of its record, as the archive tells it; 0 stands for none there."""
    is_all = tensor.offset == 0 and tensor.span * tensor.itemsize == tensor.storage.nbytes
    if not is_all or not tensor.is_contiguous or (file.is_big and tensor.itemsize > 1):
        return None
    return file.archive.members[file.record(tensor.storage)].crc32 or None


def spec_of(leaf: Tensor | Array) -> TensorSpec:
    """What a tensor is."""
    dtype = numpy_dtype(leaf.dtype) if isinstance(leaf, Tensor) else leaf.dtype.newbyteorder("=")
    return tensor_spec(dtype, leaf.shape)


def _is_raw(entry: Entry) -> bool:
    leaf = entry.leaf
    return isinstance(leaf, Tensor) and leaf.is_contiguous and (not entry.file.is_big or leaf.itemsize == 1)


def _apart(tensors: Mapping[str, Tensor]) -> list[str]:
    """Of these all that have no byte in common with one before them: bytes of two tensors cannot be copied for each."""
    kept: list[str] = []
    ends: dict[str, int] = {}
    for name in sorted(tensors, key=lambda name: (tensors[name].start, -tensors[name].span)):
        key, start, nbytes = tensors[name].storage.key, tensors[name].start, tensors[name].span * tensors[name].itemsize
        if start >= ends.get(key, 0):
            kept.append(name)
            ends[key] = start + nbytes
    return kept
