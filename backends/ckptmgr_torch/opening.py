"""From files to a source of named tensors: one file, or several with an index."""

from collections.abc import Mapping
from typing import Any

from ckptmgr.backend import JSON, Folder, Path, Pool
from ckptmgr_torch import carriage, filesets
from ckptmgr_torch.archives import OURS, TorchFile, open_torch
from ckptmgr_torch.carriage import Carriage
from ckptmgr_torch.origin import Origin
from ckptmgr_torch.source import Entry, TorchSource
from ckptmgr_torch.states import Found, Leaf, understand
from ckptmgr_torch.values import Sharded

SKELETON = "ckptmgr"  # the key of the metadata that has the skeleton of the state


def open_path(folder: Folder, path: str) -> TorchSource:
    """A file, an index, or a folder with one of them. Raises like `TorchBackend.open`."""
    head = folder.head(path) if path else None
    if head is None:
        folder = folder.folder(path) if path else folder
        path = filesets.chosen(folder.list().files, folder.location())
        head = folder.head(path)
    origin = Origin(path, folder.location(path))
    main = (folder, path, head)
    if filesets.is_index(path):
        return _open_set(folder, origin, main)
    file = open_torch(folder, path, origin)
    carried = _carried(file)
    found = _found(file, carried)
    names = _names(found, carried, origin)
    metadata: dict[str, JSON] = {} if carried is None else dict(carried.metadata)
    if carried is None and found.skeleton is not None:
        metadata[SKELETON] = found.skeleton
    return TorchSource(
        {names[name]: _entry(file, leaf) for name, leaf in found.tensors.items()},
        {names[alias]: names[name] for alias, name in found.aliases.items()},
        metadata,
        {names[name]: keys for name, keys in found.paths.items()},
        main,
    )


def _entry(file: TorchFile, leaf: Leaf) -> Entry:
    assert not isinstance(leaf, Sharded)  # those are of folders
    return Entry(file, leaf)


def _carried(file: TorchFile) -> Carriage | None:
    name = file.root + OURS
    if name not in file.archive.members:
        return None
    return carriage.decode(file.archive.read(name, carriage.MAX_NBYTES), file.origin)


def _found(file: TorchFile, carried: Carriage | None) -> Found:
    value, budget = file.pickle()
    tied = {} if carried is None else carried.tied
    spelled = {name: short for short, name in ({} if carried is None else carried.names).items()}
    names = {spelled.get(alias, alias): name for alias, name in tied.items()}
    return understand(value, file.origin, budget=budget, stored=file.stored, tied=names)


def _names(found: Found, carried: Carriage | None, origin: Origin) -> Mapping[str, str]:
    given = {} if carried is None else carried.names
    names = {name: given.get(name, name) for name in (*found.tensors, *found.aliases)}
    if len(set(names.values())) < len(names):
        raise origin.corrupt("what ckptmgr wrote into it gives one name to two tensors")
    return names


def _open_set(folder: Folder, origin: Origin, main: Any) -> TorchSource:
    nbytes = main[2].nbytes
    if nbytes > filesets.MAX_INDEX_NBYTES:
        raise origin.corrupt(f"an index of {nbytes} bytes is over the limit of {filesets.MAX_INDEX_NBYTES}")
    try:
        raw = folder.read_range(origin.name, 0, nbytes)
    except (EOFError, FileNotFoundError) as error:
        raise origin.corrupt("it was cut off or deleted while it was read") from error
    weights, metadata = filesets.parse_index(raw, origin)
    carried = None
    if SKELETON in metadata:
        if not isinstance(metadata[SKELETON], str):
            raise origin.corrupt("what ckptmgr wrote into it is no text")
        carried = carriage.decode(metadata[SKELETON].encode("utf-8", "surrogatepass"), origin)
    entries, aliases = _shards(folder, origin, weights)
    tied = {} if carried is None else carried.tied
    for alias, name in tied.items():
        if alias in entries or name not in entries:
            raise origin.corrupt(f"it ties {alias!r} to {name!r}, which are no two tensors")
    paths: Mapping[str, Path] = {} if carried is None else carried.paths
    rest: Mapping[str, JSON] = {key: value for key, value in metadata.items() if key != "total_size"}
    return TorchSource(entries, {**aliases, **tied}, rest if carried is None else carried.metadata, paths, main)


def _shards(folder: Folder, origin: Origin, weights: Mapping[str, str]) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors of all files of an index, and those names of the same file that are tied."""
    listed = folder.list().files
    names = list(dict.fromkeys(weights.values()))
    for name in names:
        if name not in listed:
            raise Origin(name, folder.location(name)).corrupt(f"{origin.name!r} names it, and there is no such file")

    def opened(name: str) -> tuple[TorchFile, Found]:
        file = open_torch(folder, name, Origin(name, folder.location(name)))
        return file, _found(file, None)

    with Pool(max_workers=max(min(folder.store.workers, len(names)), 1)) as pool:
        files = dict(zip(names, pool.map(opened, names), strict=True))
    entries: dict[str, Entry] = {}
    aliases: dict[str, str] = {}
    for name, shard in weights.items():
        file, found = files[shard]
        first = found.aliases.get(name, name)
        if first not in found.tensors or weights.get(first) != shard:
            raise file.origin.corrupt(f"{origin.name!r} says that it is here, and it is not", name[:200])
        if first != name:
            aliases[name] = first
        else:
            entries[name] = _entry(file, found.tensors[name])
    return entries, aliases
