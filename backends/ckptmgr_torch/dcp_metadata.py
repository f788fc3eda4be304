"""The ``.metadata`` of a distributed checkpoint: which tensors there are, how they nest, and in which items their slices lie.

Source: torch/distributed/checkpoint (metadata.py, filesystem.py, _nested_dict.py), torch 2.13.
"""

import functools
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

from ckptmgr.backend import Box, is_possible, numpy_dtype
from ckptmgr_torch import allowed
from ckptmgr_torch.machine import Machine
from ckptmgr_torch.origin import Damaged, Origin
from ckptmgr_torch.values import Allowed, Chunk, Dtype, Record, Sharded, short

FILE = ".metadata"
MAX_NBYTES = 128 << 20
_FREE_SLICES = 1 << 12
_ITEM_NBYTES = 1 << 10  # of a file of torch, at least
_METADATA, _FILESYSTEM = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
_CLASSES = [
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "ChunkStorageMetadata", "TensorStorageMetadata")),
    *((_METADATA, name) for name in ("BytesStorageMetadata", "StorageMeta", "TensorProperties")),
    (_FILESYSTEM, "_StorageInfo"),
]


class Item(NamedTuple):
    """A plain value that is one item of a file."""

    name: str
    file: str
    offset: int
    nbytes: int


class Metadata(NamedTuple):
    """Tensors and plain values by their flat names, and the keys that lead to each in the state."""

    tensors: dict[str, Sharded]
    items: dict[str, Item]
    paths: dict[str, tuple[str | int, ...]]


def parse(raw: bytes, origin: Origin, *, stored: int) -> Metadata:
    """What the file says; that files have so many bytes is for the caller to check. ``stored`` are the bytes of all files.

    Raises:
        CorruptCheckpointError: it is damaged, or slices do not make up a tensor.
        UnsafeCheckpointError: it names a global that it does not need, or files elsewhere.
    """
    found = Machine(raw, _find, _no_storage, origin, tensors=stored // _ITEM_NBYTES).run(FILE)
    return _Reading(origin, len(raw)).metadata(found)


def _new(kind: str, spend: Any, *arguments: Any) -> Record:
    return Record(kind, {"arguments": arguments} if arguments else {})


def _called(kind: str, spend: Any, *arguments: Any) -> Record:
    return Record(kind)


_ALLOWED: Mapping[tuple[str, str], object] = {
    **{key: Allowed(key[1], functools.partial(_called, key[1]), functools.partial(_new, key[1])) for key in _CLASSES},
    (_METADATA, "_MEM_FORMAT_ENCODING"): Allowed("_MEM_FORMAT_ENCODING", functools.partial(_called, "_MEM_FORMAT_ENCODING")),
}


def _find(module: str, name: str) -> object:
    return _ALLOWED.get((module, name)) or allowed.find(module, name)


def _no_storage(found: object) -> NoReturn:
    raise Damaged("it refers to something outside")


class _Reading:
    def __init__(self, origin: Origin, nbytes: int) -> None:
        self.origin = origin
        self.slices = _FREE_SLICES + nbytes // 16  # one list of them can be named again and again

    def metadata(self, found: object) -> Metadata:
        fields = self.fields(found, "Metadata")
        entries, places = fields.get("state_dict_metadata"), fields.get("storage_data")
        if not isinstance(entries, dict) or not isinstance(places, dict):
            raise self.origin.corrupt(f"{FILE} has no state_dict_metadata and storage_data")
        where = self.places(places)
        tensors, items = {}, {}
        for name, entry in entries.items():
            if type(name) is not str or not isinstance(entry, Record):
                raise self.origin.corrupt(f"{FILE} has the entry {short(name)}, which is none")
            if entry.kind == "TensorStorageMetadata":
                tensors[name] = self.tensor(name, entry, where.get(name, {}))
            elif entry.kind == "BytesStorageMetadata":
                if None not in where.get(name, {}):
                    raise self.origin.corrupt(f"{FILE} does not say where it lies", name)
                items[name] = Item(name, *where[name][None])
            else:
                raise self.origin.unsafe(f"it is a {entry.kind}, which is not read", name)
        return Metadata(tensors, items, self.paths(fields.get("planner_data"), [*tensors, *items]))

    def fields(self, found: object, kind: str, name: str | None = None) -> Mapping[str, Any]:
        if not isinstance(found, Record) or found.kind != kind:
            raise self.origin.corrupt(f"{FILE} has {short(found)} where a {kind} should be", name)
        return found.fields

    def places(self, places: Mapping[Any, Any]) -> dict[str, dict[tuple[int, ...] | None, tuple[str, int, int]]]:
        """By name and offset in the tensor: file, offset and size of the item."""
        found: dict[str, dict[tuple[int, ...] | None, tuple[str, int, int]]] = {}
        for index, info in places.items():
            key, place = self.fields(index, "MetadataIndex"), self.fields(info, "_StorageInfo")
            name, at = key.get("fqn"), key.get("offset")
            if type(name) is not str:
                raise self.origin.corrupt(f"{FILE} tells where something lies, and not what")
            if place.get("transform_descriptors"):
                raise self.origin.unsafe("its bytes are transformed (compressed or encrypted), which is not read", name)
            file, offset, nbytes = place.get("relative_path"), place.get("offset"), place.get("length")
            if type(file) is not str or "/" in file or "\\" in file or file in ("", ".", "..") or "\0" in file:
                raise self.origin.unsafe(f"its file is {short(file)}, which is no plain name of a file beside {FILE}", name)
            if type(offset) is not int or type(nbytes) is not int or offset < 0 or nbytes < 0:
                raise self.origin.corrupt(f"{FILE} gives it no place in {file!r}", name)
            found.setdefault(name, {}).setdefault(None if at is None else self.numbers(at, name), (file, offset, nbytes))
        return found

    def numbers(self, found: object, name: str) -> tuple[int, ...]:
        if type(found) is not tuple or len(found) > 64 or any(type(n) is not int or not 0 <= n < 1 << 63 for n in found):
            raise self.origin.corrupt(f"{FILE} has {short(found)} where a shape or an offset should be", name)
        return found

    def tensor(self, name: str, entry: Record, where: Mapping[tuple[int, ...] | None, tuple[str, int, int]]) -> Sharded:
        shape = self.numbers(entry.fields.get("size"), name)
        properties = self.fields(entry.fields.get("properties"), "TensorProperties", name)
        state = properties.get("state", (properties.get("dtype"),))
        dtype = state[0] if isinstance(state, tuple) and state else None
        if not isinstance(dtype, Dtype):
            raise self.origin.corrupt(f"{FILE} gives it no dtype", name)
        if not is_possible(shape, numpy_dtype(dtype.name).itemsize):
            raise self.origin.corrupt(f"no array can have its shape {shape}", name)
        chunks = entry.fields.get("chunks")
        boxes: dict[tuple[int, ...], Box] = {}
        for chunk in chunks if isinstance(chunks, list) else []:
            self.slices -= 1
            if self.slices < 0:
                raise self.origin.corrupt(f"{FILE} describes more slices than a file of its size has", name)
            fields = self.fields(chunk, "ChunkStorageMetadata", name)
            start, sizes = self.numbers(fields.get("offsets"), name), self.numbers(fields.get("sizes"), name)
            if len(start) != len(sizes) or len(start) != len(shape):
                raise self.origin.corrupt(f"a slice of it has {len(start)} dimensions, and it has {len(shape)}", name)
            if 0 not in sizes or sizes == shape:
                box = Box(start, tuple(a + n for a, n in zip(start, sizes, strict=True)))
                if not box.fits(shape) or boxes.setdefault(start, box) != box:
                    raise self.origin.corrupt(
                        f"the slice at {start} of shape {sizes} is not inside of {shape}, or is twice there", name
                    )
        self.check_cover([*boxes.values()], shape, name)
        if missing := [start for start in boxes if start not in where]:
            raise self.origin.corrupt(f"{FILE} does not say where its slice at {missing[0]} lies", name)
        return Sharded(name, dtype.name, shape, tuple(Chunk(box, *where[start]) for start, box in boxes.items()))

    def check_cover(self, boxes: list[Box], shape: tuple[int, ...], name: str) -> None:
        """Together they are as large as the tensor; that none overlaps another is seen where they are read."""
        if sum(box.size for box in boxes) != Box.whole(shape).size:
            raise self.origin.corrupt(f"its {len(boxes)} slices do not make up its shape {shape}", name)

    def paths(self, planned: object, names: list[str]) -> dict[str, tuple[str | int, ...]]:
        found = planned if isinstance(planned, dict) else {}
        paths = {name: found.get(name, (name,)) for name in names}
        for name, path in paths.items():
            if type(path) is not tuple or not path or len(path) > 64 or any(type(key) not in (str, int) for key in path):
                raise self.origin.corrupt(f"{FILE} has {short(path)} for the keys that lead to it", name)
        return paths


def nest(paths: Mapping[str, tuple[str | int, ...]], values: Mapping[str, Any], origin: Origin) -> dict[Any, Any]:
    """The state with these values at the ends of their paths. Integers are places in lists, whose gaps, if any, are None.

    Raises:
        CorruptCheckpointError: two paths contradict each other.
    """
    root: dict[Any, Any] = {}
    lists: list[tuple[dict[Any, Any], Any]] = []
    kinds: dict[int, type] = {id(root): type(next(iter(paths.values()), ("",))[0])}
    for name, path in paths.items():
        around = root
        for key, following in pairwise(path):
            if key not in around:
                around[key] = {}
                kinds[id(around[key])] = type(following)
                if type(following) is int:
                    lists.append((around, key))
            around = around[key]
            if kinds.get(id(around)) is not type(following):
                raise origin.corrupt("it stands in the place of another, or of a group of them", name)
        if path[-1] in around or kinds[id(around)] is not type(path[-1]):
            raise origin.corrupt("it stands in the place of another, or of a group of them", name)
        around[path[-1]] = values[name]
    for around, key in reversed(lists):
        held = around[key]
        if not all(0 <= index < 2 * len(held) + 64 for index in held):
            raise origin.corrupt(f"a list has {len(held)} items, at places up to {short(max(held))}")
        around[key] = [held.get(index) for index in range(max(held) + 1)]
    return root
