"""The format ``orbax``: folders of Orbax's items, and of the steps of its manager."""

import errno
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ckptmgr.backend import JSON, Contents, Folder, Layout, Path, TensorSource, skeleton, tensor_names
from ckptmgr.errors import UnsupportedTensorError
from ckptmgr_orbax import arrays, besides, nesting
from ckptmgr_orbax.besides import Beside
from ckptmgr_orbax.nesting import METADATA, Item
from ckptmgr_orbax.origin import Origin
from ckptmgr_orbax.source import OrbaxSource

DONE = "_CHECKPOINT_METADATA"
SKELETON = "ckptmgr"  # the key of the metadata that has the skeleton of the state


class OrbaxBackend:
    """Folders that `PyTreeCheckpointer`, `StandardCheckpointer` or the steps of Orbax's `CheckpointManager` are; only read.

    OCDBT, zarr and zarr3, on a local disk. A step of several items has one under each key. Lists and dicts come back, and
    plain numbers, texts, None and empty containers; tuples come back as lists. Items that are JSON, as metrics are, are in the
    metadata under ``orbax``; of others a conversion tells that they were left.
    """

    name: ClassVar[str] = "orbax"
    suffix: ClassVar[str] = METADATA

    def layout(self, contents: Contents, *, stem: str, align: int) -> Layout:
        """Raises UnsupportedTensorError: nothing is written."""
        name = next(iter(contents.names), None)
        raise UnsupportedTensorError(f"checkpoints of Orbax are only read: choose another format (tensor {name!r})", tensor=name)

    def recognizes(self, path: str, head: bytes, siblings: Collection[str]) -> bool:
        """A folder by the names in it, the metadata file by its name and content."""
        if head:
            return path == METADATA and b'"tree_metadata"' in head
        return path not in siblings and (METADATA in siblings or DONE in siblings)

    def file_sets(self, names: Collection[str]) -> Mapping[str, Sequence[str]]:
        """None: a checkpoint is a folder."""
        return {}

    def open(self, folder: Folder, path: str) -> TensorSource:
        """A folder with an item, or with folders of items. Metadata and plain numbers are read, and no array.

        Raises:
            FileNotFoundError: there is no metadata: nothing was saved, or the save was interrupted.
            CorruptCheckpointError: it is damaged, or claims more than could be there; names file and tensor.
            UnsafeCheckpointError: a link, or a name that leads out of it.
            OSError: it is not on a local disk.
        """
        folder = folder if path in ("", METADATA) else folder.folder(path)
        place = folder.location()
        if not os.path.isabs(place):
            text = "checkpoints of Orbax are read on a local disk only: copy it there"
            raise OSError(errno.EOPNOTSUPP, text, place)
        listing = folder.list()
        inside = [""] if METADATA in listing.files else [
            name for name in sorted(listing.folders) if folder.folder(name).head(METADATA)
        ]  # fmt: skip
        if not inside:
            raise FileNotFoundError(f"no {METADATA!r} in {place!r}: there is no checkpoint, or its save was interrupted")
        origin = Origin(METADATA, place)
        stored = arrays.vetted(place, origin)
        beside = besides.read(folder, [] if inside == [""] else [name for name in listing.folders if name not in inside])
        return _opened(folder, inside, stored, origin, beside)


def _opened(folder: Folder, inside: Sequence[str], stored: int, origin: Origin, beside: Beside) -> OrbaxSource:
    found: dict[Path, Any] = {}
    leaves: dict[Path, JSON] = {}
    lists: set[Path] = set()
    tensors: list[Path] = []
    marks = []
    for name in inside:
        place = folder.folder(name) if name else folder
        marks.append((place, METADATA, place.head(METADATA)))
        item = nesting.read_item(place)
        above: Path = (name,) if len(inside) > 1 else ()
        opened = arrays.open_all(place.location(), item, stored, origin)
        lists |= {(*above, *path) for path in item.lists}
        for path in item.order:
            whole = (*above, *path)
            leaves[whole] = _leaf(item, path, opened, origin)
            if leaves[whole] is None and path in item.arrays:
                leaves[whole] = {"$tensor": None}  # named at the end
                tensors.append(whole)
                found[whole] = opened[path]
    names = tensor_names(tensors)
    for path, name in zip(tensors, names, strict=True):
        leaves[path]["$tensor"] = name
    by_name = {name: found[path] for path, name in zip(tensors, names, strict=True)}
    metadata = {SKELETON: nesting.tree(leaves, lists, origin), **beside.metadata}
    return OrbaxSource(by_name, dict(zip(names, tensors, strict=True)), metadata, origin, marks, beside.unread)


def _leaf(item: Item, path: Path, opened: Mapping[Path, Any], origin: Origin) -> JSON:
    """A plain value; None also for what is a tensor."""
    if path not in item.arrays:
        return item.plain[path]
    array, stored = item.arrays[path], opened[path]
    if not array.is_scalar or stored.shape != ():
        return None
    spec = arrays.spec_of(stored, array.name)
    value = np.empty((), spec.numpy)
    arrays.fill(stored, array.name, (), value, origin)
    try:
        return skeleton.scalar(value.item())
    except TypeError:
        return None
