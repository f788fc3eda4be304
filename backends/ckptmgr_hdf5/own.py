"""Files that we wrote: tensors under the names that they had in the state, tied ones, metadata and blobs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from ckptmgr.backend import Folder, Pool
from ckptmgr_hdf5 import carriage, filesets
from ckptmgr_hdf5.carriage import Carriage
from ckptmgr_hdf5.dtypes import DTYPE
from ckptmgr_hdf5.escaping import unescape
from ckptmgr_hdf5.filesets import Shard
from ckptmgr_hdf5.generic import BLOBS, BYTES, ENDS, FILES
from ckptmgr_hdf5.origin import Origin
from ckptmgr_hdf5.parsing import Dataset, Group
from ckptmgr_hdf5.source import Carried, HDF5Source
from ckptmgr_hdf5.tensors import Entry, File, root_of, string_entry, tied, understand, unreadable

Read: TypeAlias = Callable[[Folder, str], File]
_Path: TypeAlias = tuple[str, ...]


def open_ours(file: File, read: Read) -> HDF5Source | None:
    """The tensors of a file of ours, and if it is one of several, of all of them, opened by ``read``; None if it is not ours.

    Raises:
        CorruptCheckpointError: it is damaged, or another file of the set is, or is missing.
        FormatVersionError: it is of a newer format of ours.
        Unknown: what only HDF5 itself can read.
    """
    root = root_of(file)
    if not carriage.is_ours(root.attributes, file.origin):
        return None
    files = [file] if FILES not in root.attributes else _shards(file, read)
    for each in files:
        each.is_exact = True
    return _ours(files)


def _shards(file: File, read: Read) -> list[File]:
    """All files of a set of ours, in order."""
    folder = file.folder
    shard = filesets.shard_of(file.origin.name)
    if shard is None:
        raise file.origin.corrupt("it is one of several files, and not named so: give it back its name")
    names = filesets.all_shards(shard, folder.list().files, file.origin)
    with Pool(max_workers=max(folder.store.workers, 1)) as pool:
        others = pool.map(lambda name: file if name == file.origin.name else read(folder, name), names)
        files = list(others)
    for number, each in enumerate(files, 1):
        _check_shard(each, Shard(shard.stem, number, shard.total))
    return files


def _check_shard(file: File, shard: Shard) -> None:
    attributes = root_of(file).attributes
    if not carriage.is_ours(attributes, file.origin):
        raise file.origin.corrupt("it is no file of ckptmgr's, and should be one of a set")
    marks = attributes.get(FILES)
    if not isinstance(marks, np.ndarray) or marks.tolist() != [shard.number, shard.total]:
        raise file.origin.corrupt(f"its {FILES} is {marks}, and its name says {shard.number} of {shard.total}")


def _ours(files: Sequence[File]) -> HDF5Source:
    last = files[-1]
    carried = carriage.decode(root_of(last).attributes, last.origin)
    strange: dict[str, tuple[File, Dataset]] = {}  # what another tool has put into them
    found = sorted(
        ((number, entry) for number, file in enumerate(files) for entry in _entries(file, strange)),
        key=lambda item: (item[0], item[1].dataset.address),  # headers lie in the order of the tree
    )
    entries: dict[str, Entry] = {}
    paths: dict[str, _Path] = {}
    places: dict[str, tuple[str, Entry]] = {}

    def add(stored: str, entry: Entry) -> None:
        name, path = carried.named(stored)
        if name in paths:
            raise entry.file.origin.corrupt("another tensor has its name", name)
        entries[name], paths[name], places[stored] = entry, path, (name, entry)

    for _, entry in found:
        add(_stored(entry), entry)
    for stored, target in carried.aliases.items():
        # A tool that copies each object once may have kept it under a tied name alone.
        if target not in places and target not in carried.aliases and stored in places:
            add(target, places[stored][1])
    aliases = _aliases(carried, places, last.origin)
    for alias in aliases:
        entries.pop(alias, None)
    others = tied(entries)  # names that were added, not by us
    aliases = {alias: others.get(name, name) for alias, name in aliases.items()} | others
    for name, path in map(carried.named, carried.aliases):
        paths.setdefault(name, path)
    return HDF5Source(entries, aliases, paths, carried.metadata, _blobs(last), unreadable(strange), files)


def _aliases(carried: Carriage, places: Mapping[str, tuple[str, Entry]], origin: Origin) -> dict[str, str]:
    """Tied names that have no data of their own."""
    aliases = {}
    for stored, target in carried.aliases.items():
        if target not in places or target in carried.aliases:
            raise origin.corrupt(f"{stored!r} is tied to {target!r}, which is no tensor")
        name, entry = places[target]
        own = places.get(stored)
        if own is None or (own[1].file is entry.file and own[1].dataset.address == entry.dataset.address):
            aliases[carried.named(stored)[0]] = name
    return aliases


def _entries(file: File, strange: dict[str, tuple[File, Dataset]]) -> Iterator[Entry]:
    """The tensors in a file of ours. Other datasets go into ``strange``."""
    nodes: list[Group | Dataset] = [node for name, node in root_of(file).children.items() if name != BLOBS]
    while nodes:
        node = nodes.pop()
        if isinstance(node, Group):
            found = _string(file, node) if DTYPE in node.attributes else None
            nodes.extend(node.children.values() if found is None else ())
        else:
            found = understand(file, node)
            if found is None:
                strange[node.path[1:]] = file, node
        if found is not None:
            yield found


def _string(file: File, group: Group) -> Entry:
    ends, data = group.children.get(ENDS), group.children.get(BYTES)
    if not isinstance(ends, Dataset) or not isinstance(data, Dataset):
        raise file.origin.corrupt("it lacks a part of a tensor of strings", group.path)
    return string_entry(file, ends, data)


def _stored(entry: Entry) -> str:
    """The path of a tensor in its file."""
    path = entry.dataset.path[1:]
    return path if entry.way != "strings" else path.removesuffix(f"/{ENDS}")


def _blobs(file: File) -> Carried:
    group = root_of(file).children.get(BLOBS)
    held = group.children if isinstance(group, Group) else {}
    return Carried({unescape(name): (file, node) for name, node in held.items() if isinstance(node, Dataset)})
