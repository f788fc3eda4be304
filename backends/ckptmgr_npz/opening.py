"""From a path to the arrays in its files: their headers are read, no element is."""

from collections.abc import Sequence
from typing import NamedTuple

from ckptmgr.backend import Folder, Pool, TensorSpec, zipreading
from ckptmgr_npz import carriage, filesets, npy
from ckptmgr_npz.carriage import Carriage
from ckptmgr_npz.inflating import Inflater
from ckptmgr_npz.origin import Origin
from ckptmgr_npz.source import Entry, NpzSource

_FREE_NBYTES = 1 << 28  # of a member that may be compressed to any size: zeros are, and there are optimizers full of them
_FREE_STRINGS = 1 << 20  # of a compressed array: each takes some 50 bytes of memory
_FEW = 8


class _File(NamedTuple):
    archive: zipreading.Archive
    origin: Origin
    carried: Carriage


def open_path(folder: Folder, path: str) -> NpzSource:
    """See `NpzBackend.open`."""
    head = folder.head(path) if path else None
    if head is None:
        folder = folder.folder(path) if path else folder
        path = _only(folder)
        head = folder.head(path)
    names = filesets.of_shard(path)
    there = folder.list().files if len(names) > 1 else {}
    names = names if len(names) > 1 and names[-1] in there else [path]
    files = [_open(folder, name) for name in names]
    last = files[-1]
    if last.carried.files != (len(files), len(files)):
        number, total = last.carried.files
        raise last.origin.corrupt(
            f"it is file {number} of {total} of a set, by its name of {len(files)}: open it by its old name"
        )
    entries: dict[str, Entry] = {}
    blobs: dict[str, tuple[zipreading.Archive, str]] = {}
    unreadable: dict[str, str] = {}
    for file in files:
        _add(file, last.carried, entries, blobs, unreadable)
    if stray := [alias for alias, name in last.carried.aliases.items() if alias in entries or name not in entries]:
        raise last.origin.corrupt("it is tied to what is no tensor, or is one itself", stray[0])
    main = (folder, path, head) if head is not None else None
    return NpzSource(entries, dict(last.carried.aliases), dict(last.carried.metadata), blobs, unreadable, main)


def _only(folder: Folder) -> str:
    sets = filesets.file_sets(folder.list().files)
    whole = [files[-1] for files in sets.values() if files[-1] in folder.list().files]
    if len(whole) != 1:
        raise FileNotFoundError(2, "no single .npz file or set of files in this folder", folder.location())
    return whole[0]


def _open(folder: Folder, name: str) -> _File:
    origin = Origin(name, folder.location(name))
    try:
        archive = zipreading.open_archive(folder, name, origin, free_nbytes=_FREE_NBYTES)
    except FileNotFoundError as error:
        raise origin.corrupt("a file of the set is missing") from error
    if carriage.MEMBER not in archive.members:
        return _File(archive, origin, Carriage())
    data = archive.read(carriage.MEMBER, carriage.MAX_NBYTES)
    return _File(archive, origin, carriage.decode(data, origin))


def _add(
    file: _File,
    carried: Carriage,
    entries: dict[str, Entry],
    blobs: dict[str, tuple[zipreading.Archive, str]],
    unreadable: dict[str, str],
) -> None:
    names = [name for name in file.archive.members if name.endswith(".npy")]
    places = file.archive.places(names)
    heads = _heads(file, names, [places[name] for name in names])
    for member, head in zip(names, heads, strict=True):
        name = member.removesuffix(".npy")
        header = npy.parse(head, file.origin, name)
        spec = None if header is None else _spec(file, header, carried, name)
        if name in entries or name in blobs:
            raise file.origin.corrupt("another tensor of the set has its name", name)
        if header is None or spec is None:
            blobs[name] = file.archive, member
            if (nbytes := file.archive.members[member].nbytes - len(head)) > 0:
                unreadable[name] = f"{nbytes} bytes: records or raw bytes that no array holds"
            continue
        stored = file.archive.members[member]
        if stored.nbytes != header.nbytes + header.data_nbytes:
            problem = f"it has {stored.nbytes} bytes, and its header tells of {header.nbytes + header.data_nbytes}"
            raise file.origin.corrupt(problem, name)
        if spec.is_string and stored.is_deflated and spec.size > max(_FREE_STRINGS, stored.stored):
            problem = f"it is compressed and has {spec.size} strings in {stored.stored} bytes: pack it without compression"
            raise file.origin.corrupt(problem, name)
        entries[name] = Entry(file.archive, member, header, head, spec, places[member])
    for member in file.archive.members:
        if not member.endswith(".npy") and member != carriage.MEMBER:
            blobs[member] = file.archive, member


def _spec(file: _File, header: npy.Header, carried: Carriage, name: str) -> TensorSpec | None:
    return npy.spec_of(header, carried.dtypes.get(name), carried.shapes.get(name), file.origin, name)


def _heads(file: _File, names: Sequence[str], places: Sequence[int | None]) -> list[bytes]:
    """The header of each array."""

    def head(name: str, place: int | None) -> bytes:
        member = file.archive.members[name]
        if place is None:
            inflater = Inflater(file.archive, member)
            first = inflater.read(min(npy.FIRST_NBYTES, member.nbytes))
            nbytes = npy.length(first, file.origin, name)
            return (first + inflater.read(max(min(nbytes, member.nbytes) - len(first), 0)))[:nbytes]
        first = _range(file, place, min(npy.FIRST_NBYTES, member.nbytes))
        nbytes = npy.length(first, file.origin, name)
        more = _range(file, place + len(first), min(nbytes, member.nbytes) - len(first)) if nbytes > len(first) else b""
        return (first + more)[:nbytes]

    if len(names) <= _FEW:
        return list(map(head, names, places))
    with Pool(max_workers=max(file.archive.folder.store.workers, 1)) as pool:
        return list(pool.map(head, names, places))


def _range(file: _File, offset: int, nbytes: int) -> bytes:
    try:
        return file.archive.folder.read_range(file.archive.file, offset, nbytes)
    except EOFError as error:
        raise file.origin.corrupt(f"it ends before byte {offset + nbytes}") from error
