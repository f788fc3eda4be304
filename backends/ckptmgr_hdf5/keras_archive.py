"""A whole model of Keras 3 as one archive or as a folder, and weights in several files: what they are made of, not what it means.

Nothing is extracted: the weights are read inside of the archive, other members when they are asked for.

Source: keras.src.saving.saving_lib, `_save_model_to_fileobj` and `ShardedH5IOStore`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

from ckptmgr.backend import Folder, zipreading
from ckptmgr_hdf5.keras_config import MAX_NBYTES, MAX_PARSED_NBYTES, parse
from ckptmgr_hdf5.keras_opened import HDF5, datasets
from ckptmgr_hdf5.origin import Origin
from ckptmgr_hdf5.parsing import Dataset, Group, Reader, Tree

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
ASSETS = "assets"
_MAX_BLOB_NBYTES = 1 << 30
_MAX_INFLATED_TEXT_NBYTES = 4 << 20
_MAX_FILES = 100_000
_MAX_DEPTH = 50
_MAX_SHARDS = 10_000
_SHOWN = 200  # characters of a name in a message

Parse: TypeAlias = Callable[[Reader, Origin], Tree]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a whole model consists of: the texts, the weights, and all else by name."""

    config: str
    metadata: str | None
    weights: HDF5
    blobs: Mapping[str, bytes]


def open_hdf5(folder: Folder, file: str, parse_tree: Parse) -> HDF5:
    """A file that is HDF5 as a whole.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptCheckpointError, UnsafeCheckpointError: as ``parse_tree`` does.
    """
    reader, origin = Reader.of_file(folder, file), Origin(file, folder.location(file))
    return HDF5(parse_tree(reader, origin).root, file, reader, origin)


def open_zip(folder: Folder, file: str, parse_tree: Parse) -> Parts:
    """The parts of a ``.keras`` archive; compressed weights are decompressed into memory, up to 16 MiB.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptCheckpointError: damaged, or without config or weights; names the member.
        UnsafeCheckpointError: an archive with tricks; see `zipreading.open_archive`.
    """
    origin = Origin(file, folder.location(file))
    archive = zipreading.open_archive(folder, file, origin)
    for name in (CONFIG, WEIGHTS):
        if name not in archive.members:
            raise origin.corrupt("a model of Keras has such a member, and this archive has none", name)
    texts = {
        name: _text(archive.read(name, MAX_NBYTES, inflated=_MAX_INFLATED_TEXT_NBYTES), origin, name)
        for name in (CONFIG, METADATA)
        if name in archive.members
    }
    start = archive.place(WEIGHTS)
    if start is None:
        reader = Reader.of_bytes(archive.read(WEIGHTS, zipreading.MAX_INFLATED_NBYTES))
    else:
        reader = Reader.of_file(folder, file, start=start, nbytes=archive.members[WEIGHTS].nbytes)
    root = parse_tree(reader, origin).root
    weights = HDF5(root, None if start is None else file, reader, origin)
    rest = [name for name in archive.members if name not in (CONFIG, METADATA, WEIGHTS)]
    return Parts(texts[CONFIG], texts.get(METADATA), weights, _Members(archive, tuple(rest)))


def open_folder(folder: Folder, parse_tree: Parse) -> Parts:
    """The parts of a model that was saved as a folder. Links in it do not count.

    Raises:
        CorruptCheckpointError: a file of it is missing, or no text.
        CorruptCheckpointError, UnsafeCheckpointError: as ``parse_tree`` does.
    """
    files = folder.list().files
    texts = {}
    for name in (CONFIG, METADATA, WEIGHTS):
        origin = Origin(name, folder.location(name))
        if name not in files:
            raise origin.corrupt("a model of Keras has such a file, and this folder has none (links do not count)")
        if name != WEIGHTS:
            if files[name].nbytes > MAX_NBYTES:
                raise origin.corrupt(f"{files[name].nbytes} bytes are over the limit of {MAX_NBYTES}")
            texts[name] = _text(_read(folder, name, files[name].nbytes), origin, None)
    found = {name: head.nbytes for name, head in _walk(folder, Origin("", folder.location()))}
    rest = {name: nbytes for name, nbytes in found.items() if name not in (CONFIG, METADATA, WEIGHTS)}
    return Parts(texts[CONFIG], texts[METADATA], open_hdf5(folder, WEIGHTS, parse_tree), _Files(folder, rest))


def open_shards(folder: Folder, index: str, parse_tree: Parse) -> list[tuple[HDF5, Dataset]]:
    """The variables of weights in several files, whose index is a ``.weights.json``.

    Raises:
        FileNotFoundError: there is no such index.
        CorruptCheckpointError: no such index, a file that is missing, or that has not what the index says.
        UnsafeCheckpointError: a file's name that is more than a name in the same folder.
    """
    origin = Origin(index, folder.location(index))
    head = folder.head(index)
    if head is None:
        raise FileNotFoundError(2, "no such file", folder.location(index))
    if head.nbytes > MAX_PARSED_NBYTES:
        raise origin.corrupt(f"{head.nbytes} bytes are over the limit of {MAX_PARSED_NBYTES}")
    root = parse(_text(_read(folder, index, head.nbytes), origin, None), origin, index)
    weight_map = root.get("weight_map") if isinstance(root, dict) else None
    if not isinstance(weight_map, dict):
        raise origin.corrupt("it has no weight_map")
    placed = {path: _shard_names(path, files, origin) for path, files in weight_map.items()}
    _check_apart(placed, origin)
    names = list(dict.fromkeys(name for files in placed.values() for name in files))
    if len(names) > _MAX_SHARDS:
        raise origin.corrupt(f"{len(names)} files are over the limit of {_MAX_SHARDS}")
    there = folder.list().files
    missing = [name for name in names if name not in there]
    if missing:
        raise origin.corrupt(f"the file {missing[0]!r} that it names is missing (links do not count)")
    shards = {name: open_hdf5(folder, name, parse_tree) for name in names}
    seen: set[str] = set()
    return [found for path, files in placed.items() for found in _spread(path, [shards[name] for name in files], seen, origin)]


def _check_apart(placed: Mapping[str, list[str]], origin: Origin) -> None:
    """No file has a group and one inside of it in the index, so that nothing is looked through twice."""
    inside: dict[str, list[tuple[str, ...]]] = {}
    for path, files in placed.items():
        for name in files:
            inside.setdefault(name, []).append(tuple(path.split("/")))
    for name, paths in inside.items():
        for above, below in pairwise(sorted(paths)):
            if below[: len(above)] == above:
                problem = f"it is inside of {'/'.join(above)[:_SHOWN]!r}, which should be in {name!r} as well"
                raise origin.corrupt(problem, "/".join(below)[:_SHOWN])


def _spread(path: str, shards: list[HDF5], seen: set[str], origin: Origin) -> Iterator[tuple[HDF5, Dataset]]:
    """The variables of one group, each of which is in one of the files; ``seen`` has those of the whole index so far."""
    for hdf5 in shards:
        group = _group(hdf5.root, path)
        if group is None:
            raise origin.corrupt(f"it should be in {hdf5.origin.name!r}, and is not there", path[:_SHOWN])
        for dataset in datasets(group):
            if dataset.path in seen:
                raise origin.corrupt("it is in two files", dataset.path[:_SHOWN])
            seen.add(dataset.path)
            yield hdf5, dataset


def _group(root: Group, path: str) -> Group | None:
    node: Any = root
    for part in path.split("/")[1:]:
        node = node.children.get(part) if isinstance(node, Group) else None
    return node if isinstance(node, Group) else None


def _shard_names(path: str, files: object, origin: Origin) -> list[str]:
    """The files of one group, which Keras gives as one name or as a list."""
    subject = path[:_SHOWN]
    before, *parts = path.split("/")
    if before or not parts or "" in parts:
        raise origin.corrupt("it is no path of a group, such as '/layers/dense/vars'", subject)
    names: list[Any] = files if isinstance(files, list) else [files]
    for name in names:
        if not isinstance(name, str):
            raise origin.corrupt(f"its file is {str(name)[:_SHOWN]}, not a name", subject)
        if name in ("", ".", "..") or len(name) > 255 or re.search(r"[/\\:\x00-\x1f\x7f]", name):
            raise origin.unsafe(f"its file is {name[:300]!r}, which is no plain name of a file beside the index", subject)
    if len(set(names)) < len(names) or not names:
        raise origin.corrupt("its files are none, or one is there twice", subject)
    return names


def _text(raw: bytes, origin: Origin, subject: str | None) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise origin.corrupt("it is no UTF-8", subject) from error


def _read(folder: Folder, name: str, nbytes: int) -> bytes:
    try:
        return folder.read_range(name, 0, nbytes)
    except (EOFError, FileNotFoundError) as error:
        raise Origin(name, folder.location(name)).corrupt("it was cut off or deleted while it was read") from error


def _walk(folder: Folder, origin: Origin) -> Iterator[tuple[str, Any]]:
    """Every file in a folder and below, with its path."""
    folders: list[tuple[tuple[str, ...], Folder]] = [((), folder)]
    count = 0
    while folders:
        parts, current = folders.pop()
        listing = current.list()
        count += len(listing.files) + len(listing.folders)
        if len(parts) > _MAX_DEPTH or count > _MAX_FILES:
            raise origin.corrupt(f"it has over {_MAX_FILES} files, or folders more than {_MAX_DEPTH} deep")
        yield from (("/".join((*parts, name)), head) for name, head in sorted(listing.files.items()))
        folders += [((*parts, name), current.folder(name)) for name in sorted(listing.folders, reverse=True)]


@dataclass(frozen=True, slots=True)
class _Members(Mapping[str, bytes]):
    archive: zipreading.Archive
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> bytes:
        if name not in self.names:
            raise KeyError(name)
        return self.archive.read(name, _MAX_BLOB_NBYTES)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True)
class _Files(Mapping[str, bytes]):
    folder: Folder
    sizes: Mapping[str, int]

    def __getitem__(self, name: str) -> bytes:
        return _read(self.folder, name, self.sizes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)
