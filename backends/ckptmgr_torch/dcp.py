"""PyTorch's distributed checkpoints for ckptmgr: folders with ``.metadata`` and files of items, read without torch.

Each item is a file of `torch.save` inside of another, with one slice of a tensor or one plain value.
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np

from ckptmgr.backend import (
    JSON,
    Box,
    Contents,
    Extent,
    Folder,
    Head,
    Layout,
    Path,
    Places,
    Pool,
    TensorSource,
    TensorSpec,
    combine_crc32,
    numpy_dtype,
    tensor_spec,
)
from ckptmgr.errors import UnsupportedTensorError
from ckptmgr_torch import dcp_metadata, states
from ckptmgr_torch.archives import TorchFile, open_torch
from ckptmgr_torch.budget import FREE_NBYTES, Budget
from ckptmgr_torch.dcp_metadata import FILE, Metadata
from ckptmgr_torch.opening import SKELETON
from ckptmgr_torch.origin import Origin
from ckptmgr_torch.source import crc32_of, destination, read_tensor
from ckptmgr_torch.values import Chunk, Sharded, Tensor

Array = np.ndarray[Any, Any]
_SUFFIX = ".distcp"
_FREE_OF_ITEM = 1 << 14  # bytes of memory that the pickle of each may take; all share the rest
_MAX_GRID = 4096  # slices of a tensor that is cut along several axes


class TorchDCPBackend:
    """The format ``torch_dcp``: folders of `torch.distributed.checkpoint`, of FSDP and others, which are only read.

    Tensors are joined from the slices of all ranks; the state nests as it did when it was saved, with lists as lists.
    """

    name: ClassVar[str] = "torch_dcp"
    suffix: ClassVar[str] = ".metadata"

    def layout(self, contents: Contents, *, stem: str, align: int) -> Layout:
        """Raises UnsupportedTensorError: nothing is written."""
        name = next(iter(contents.names), None)
        text = "distributed checkpoints of torch are only read: save with backend='torch' or 'safetensors'"
        raise UnsupportedTensorError(f"{text} (tensor {name!r})", tensor=name)

    def recognizes(self, path: str, head: bytes, siblings: Collection[str]) -> bool:
        """A folder by the names in it, the metadata file by its name and content."""
        if head:
            return path == FILE and b"torch.distributed.checkpoint" in head
        return path not in siblings and FILE in siblings and any(name.endswith(_SUFFIX) for name in siblings)

    def file_sets(self, names: Collection[str]) -> Mapping[str, Sequence[str]]:
        """None: a checkpoint is a folder."""
        return {}

    def open(self, folder: Folder, path: str) -> TensorSource:
        """A folder with a checkpoint, or its ``.metadata``. Metadata and plain values are read, and no tensor's bytes.

        Raises:
            FileNotFoundError: there is no metadata: none was saved, or the save was interrupted.
            CorruptCheckpointError: a rule of the format is broken, or a file is missing; names file and tensor.
            UnsafeCheckpointError: a pickle needs code, by the name of what it would call, or files lie elsewhere.
        """
        folder = folder if path in ("", FILE) else folder.folder(path)
        head = folder.head(FILE)
        if head is None:
            raise FileNotFoundError(f"no {FILE!r} in {folder.location()!r}: there is no checkpoint, or its save was interrupted")
        origin = Origin(FILE, folder.location(FILE))
        if head.nbytes > dcp_metadata.MAX_NBYTES:
            raise origin.corrupt(f"metadata of {head.nbytes} bytes is over the limit of {dcp_metadata.MAX_NBYTES}")
        try:
            raw = folder.read_range(FILE, 0, head.nbytes)
        except (EOFError, FileNotFoundError) as error:
            raise origin.corrupt("it was cut off or deleted while it was read") from error
        sizes = {name: file.nbytes for name, file in folder.list().files.items()}
        found = dcp_metadata.parse(raw, origin, stored=sum(sizes.values()))
        return _opened(folder, origin, found, sizes, len(raw), head)


def _opened(folder: Folder, origin: Origin, found: Metadata, sizes: Mapping[str, int], nbytes: int, head: Head) -> "DCPSource":
    for name, file, offset, held in _places(found):
        if file not in sizes:
            raise origin.corrupt(f"it lies in {file!r}, and there is no such file: it was not copied, or is lost", name)
        if offset + held > sizes[file]:
            raise origin.corrupt(f"it ends at byte {offset + held} of {file!r}, which has {sizes[file]}", name)
    for name, tensor in found.tensors.items():
        for chunk in tensor.chunks:
            if chunk.box.size * tensor.itemsize > chunk.nbytes:
                raise origin.corrupt(
                    f"a slice of shape {chunk.box.shape} should lie in {chunk.nbytes} bytes of {chunk.file!r}", name
                )

    free = FREE_NBYTES // max(len(found.items), 1) + _FREE_OF_ITEM

    def plain(name: str) -> tuple[Any, Budget]:
        _, file, offset, held = found.items[name]
        return open_torch(folder, file, _origin(folder, file), window=(offset, held)).pickle(free=free)

    with Pool(max_workers=max(folder.store.workers, 1)) as pool:
        read = dict(zip(found.items, pool.map(plain, found.items), strict=True))
    values = {**found.tensors, **{name: value for name, (value, _) in read.items()}}
    tree = dcp_metadata.nest({name: found.paths[name] for name in found.paths}, values, origin)
    stored = sum(sizes[file] for file in {file for _, file, *_ in _places(found)})
    budget = Budget(nbytes + sum(used.nbytes for _, used in read.values()), len(found.tensors))
    budget.made = sum(used.made for _, used in read.values())
    state = states.understand(tree, origin, budget=budget, stored=stored)
    if any(isinstance(leaf, Tensor) for leaf in state.tensors.values()):
        name = next(name for name, leaf in state.tensors.items() if isinstance(leaf, Tensor))
        raise origin.unsafe("it is a tensor inside of a plain value, which is not read", name)
    metadata = {} if state.skeleton is None else {SKELETON: state.skeleton}
    return DCPSource(folder, state.tensors, metadata, state.paths, head)  # type: ignore[arg-type]


def _places(found: Metadata) -> list[tuple[str, str, int, int]]:
    """Name, file, offset and size of every item."""
    return [
        *((name, chunk.file, chunk.offset, chunk.nbytes) for name, tensor in found.tensors.items() for chunk in tensor.chunks),
        *found.items.values(),
    ]


def _origin(folder: Folder, file: str) -> Origin:
    return Origin(file, folder.location(file))


class DCPSource:
    """A `TensorSource` over one distributed checkpoint. No file is held open, so `close` has nothing to do."""

    blobs: Mapping[str, bytes] = {}
    aliases: Mapping[str, str] = {}

    def __init__(
        self,
        folder: Folder,
        tensors: Mapping[str, Sharded | Array],
        metadata: Mapping[str, JSON],
        paths: Mapping[str, Path],
        head: Head,
    ) -> None:
        self.folder, self.tensors, self.metadata, self.paths, self.head = folder, tensors, metadata, paths, head
        self.specs: Mapping[str, TensorSpec] = {
            name: tensor_spec(
                numpy_dtype(tensor.dtype) if isinstance(tensor, Sharded) else tensor.dtype.newbyteorder("="), tensor.shape
            )
            for name, tensor in tensors.items()
        }
        self._located = functools.lru_cache(maxsize=None)(self._locate)

    def is_same(self) -> bool:
        """See `Replaceable`."""
        return self.folder.head(FILE) == self.head

    def extents(self, name: str) -> Sequence[Extent]:
        """One extent a slice; none if only `read` can make one of them."""
        tensor = self.tensors[name]
        if not isinstance(tensor, Sharded):
            return ()
        found = []
        for chunk, (_, _, start) in zip(tensor.chunks, self._located(name), strict=True):
            if start is None:
                return ()
            box = None if chunk.box == Box.whole(tensor.shape) else chunk.box
            found.append(Extent(self.folder, chunk.file, start, box))
        return found

    def crc32(self, name: str) -> int | None:
        """See `Summed`; from those of its slices, where they are whole rows."""
        tensor = self.tensors[name]
        if not isinstance(tensor, Sharded):
            return None
        value = 0
        for chunk, (file, view, _) in sorted(
            zip(tensor.chunks, self._located(name), strict=True), key=lambda it: it[0].box.start
        ):
            found = crc32_of(file, view)
            if found is None or chunk.box.shape[1:] != tensor.shape[1:]:
                return None
            value = combine_crc32(value, found, chunk.box.size * tensor.itemsize)
        return value

    def extents_of(self, names: Sequence[str]) -> Places:
        """See `Bulk`: the items of all these tensors are looked at side by side."""
        with Pool(max_workers=max(self.folder.store.workers, 1)) as pool:
            found = [*pool.map(self.extents, names)]
        single = [extents[0] if len(extents) == 1 and extents[0].box is None else None for extents in found]
        files = {file: number for number, file in enumerate(dict.fromkeys(extent.file for extent in single if extent))}
        indexes = np.array([files[extent.file] if extent else 0 for extent in single], np.int64)
        offsets = np.array([extent.offset if extent else -1 for extent in single], np.int64)
        return Places(self.folder, [*files] or [FILE], indexes, offsets, [None] * len(names), {})

    def read(self, name: str, box: Box | None = None, out: Array | None = None) -> Array:
        """See `TensorSource.read`. Raises KeyError, ValueError and CorruptCheckpointError as it does."""
        tensor, spec = self.tensors[name], self.specs[name]
        box, array = destination(name, spec, box, out)
        if not isinstance(tensor, Sharded):
            array[...] = tensor[box.slices]
            return array
        for chunk, (file, view, _) in zip(tensor.chunks, self._located(name), strict=True):
            part = chunk.box.overlap(box)
            if part is not None:
                where: Any = (*part.relative_to(box).slices, ...)
                target = array[where]
                read_tensor(file, view, part.relative_to(chunk.box), target, name)
        return array

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _locate(self, name: str) -> list[tuple[TorchFile, Tensor, int | None]]:
        """Of each slice its archive, its tensor in there, and where its bytes start if they are as numpy would have them."""
        tensor = self.tensors[name]
        assert isinstance(tensor, Sharded)
        if not _is_apart([chunk.box for chunk in tensor.chunks]):
            raise _origin(self.folder, FILE).corrupt("two slices of it overlap, or there are too many to tell", name)
        return [self._slice(tensor, chunk) for chunk in tensor.chunks]

    def _slice(self, tensor: Sharded, chunk: Chunk) -> tuple[TorchFile, Tensor, int | None]:
        origin = _origin(self.folder, chunk.file)
        file = open_torch(self.folder, chunk.file, origin, window=(chunk.offset, chunk.nbytes))
        view, _ = file.pickle()
        if not isinstance(view, Tensor) or view.dtype != tensor.dtype or view.shape != chunk.box.shape:
            found = f"{view.dtype} of shape {view.shape}" if isinstance(view, Tensor) else "no tensor"
            raise origin.corrupt(f"at byte {chunk.offset} there is {found}, not {tensor.dtype} of {chunk.box.shape}", tensor.name)
        start = file.archive.place(file.record(view.storage)) if view.is_contiguous and not file.is_big else None
        return file, view, None if start is None else start + view.start


def _is_apart(boxes: Sequence[Box]) -> bool:
    """Whether no two overlap."""
    if len(boxes) < 2:
        return True
    starts, stops = np.array([box.start for box in boxes]), np.array([box.stop for box in boxes])
    for axis in range(starts.shape[1]):
        order = np.argsort(starts[:, axis])
        if (stops[order][:-1, axis] <= starts[order][1:, axis]).all():
            return True  # cut along one axis, as nearly all are
    if len(boxes) > _MAX_GRID:
        return False
    return all(((starts < stop) & (start < stops)).all(axis=1).sum() == 1 for start, stop in zip(starts, stops, strict=True))
