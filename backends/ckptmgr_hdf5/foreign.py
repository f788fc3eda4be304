"""HDF5 of any other tool: a tensor's name is the path of its dataset, a second name of a dataset is a tied one.

Attributes of the root are metadata as far as JSON can say them; datasets of which no array can be made are blobs.
"""

from collections.abc import Mapping

import numpy as np

from ckptmgr.backend import JSON
from ckptmgr_hdf5.faults import Unknown
from ckptmgr_hdf5.parsing import Dataset, Value
from ckptmgr_hdf5.source import Carried, HDF5Source
from ckptmgr_hdf5.tensors import Entry, File, root_of, tied, understand, unreadable

_SKELETON = "ckptmgr"  # the metadata key of a state tree, which only our own files have
_MOST_ELEMENTS = 10_000  # of an attribute that becomes metadata


def open_foreign(file: File) -> HDF5Source:
    """Everything in an HDF5 file.

    Raises:
        CorruptCheckpointError: it is damaged, or has a dataset that was never written.
        Unknown: what only HDF5 itself can read.
    """
    entries: dict[str, Entry] = {}
    blobs: dict[str, tuple[File, Dataset]] = {}
    paths: dict[str, tuple[str, ...]] = {}
    assert file.tree is not None
    for node in file.tree.walk():
        if not isinstance(node, Dataset) or node.shape is None:
            continue
        name = node.path[1:]
        entry = understand(file, node)
        if entry is None:
            blobs[name] = file, node
            continue
        paths[name] = tuple(name.split("/"))
        entries[name] = entry
    aliases = tied(entries)
    return HDF5Source(entries, aliases, paths, _metadata(root_of(file).attributes), Carried(blobs), unreadable(blobs), [file])


def _metadata(attributes: Mapping[str, Value]) -> dict[str, JSON]:
    """What JSON can say of the root's attributes."""
    found: dict[str, JSON] = {}
    for name in attributes:
        try:
            value = attributes[name]
        except Unknown:
            continue
        plain = _plain(value)
        if plain is not None and name != _SKELETON:
            found[name] = plain
    return found


def _plain(value: Value) -> JSON:
    if isinstance(value, np.ndarray):
        items = value.tolist() if value.size <= _MOST_ELEMENTS else None
        return items if value.dtype.kind in "biuO" or (value.dtype.kind == "f" and np.isfinite(value).all()) else None
    if isinstance(value, np.bytes_):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.floating):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.bool_ | np.integer):
        plain: bool | int = value.item()
        return plain
    return value if isinstance(value, str) else None
