"""The bytes of a run's records as they are now, by few requests: a listing, and reads of what it does not prove to be known.

The law: what is given as a record's bytes is what a read would have given at some moment since the call began. On stores whose
listings mark files (`MarkingStore`) a record is known by the mark of its last read, or of the put by which this process put it.
"""

import secrets
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from errno import EFBIG, EIO
from typing import NamedTuple
from weakref import WeakKeyDictionary

from ckptmgr.manifest import MANIFEST
from ckptmgr.record import LIMIT_NBYTES, Record, encode
from ckptmgr.storage import (
    Answer,
    Folder,
    Head,
    LocalListing,
    Marked,
    MarkingStore,
    RereadingStore,
    Sight,
    Store,
    Version,
    is_marking,
)
from ckptmgr.storage.weak import PROBE
from ckptmgr.threads import Pool

READERS = 24  # reads at once: they are small, and wait for the network
PAGE = 1_000  # names that a store lists in one answer
MOST = 80  # files in a step, on average, up to which a whole listing costs less than to read each record

_EMPTIED_NBYTES = len(encode(Record()))  # no record with anything in it is as short

_ENDPOINT = "is the endpoint an object store's, and no login page before it?"

Known = Mapping[str, Sight]


class Scan(NamedTuple):
    """One look at a run: the files of its folder, and for each name what lies there as its record, or the error of reading it.

    ``is_unchanged``: it is what was known before the look began. ``is_moment``: all names were there at one moment.
    """

    files: Mapping[str, Head]
    names: list[str]
    sights: Sequence[Sight | OSError | None]
    is_unchanged: bool
    is_moment: bool
    folders: Collection[str] = ()  # all that there are
    links: Sequence[str] = ()  # where a store tells of them


# By stores: what this process has put and not yet seen in a listing, by its key; and runs that are not listed whole any more.
_put: WeakKeyDictionary[Store, dict[str, Sight]] = WeakKeyDictionary()
_wide: WeakKeyDictionary[Store, set[str]] = WeakKeyDictionary()


def scanned(root: Folder, is_step: Callable[[str], bool], known: Known | None) -> Scan:
    """Looks at all names for which ``is_step``. ``known`` are the sights of an earlier look, if there was one.

    Raises:
        OSError: of the store; also where it lists nothing, but does not answer as a store does.
    """
    scan = _scanned(root, is_step, known)
    if not (scan.files or scan.folders) and is_marking(root.store):
        _check_is_store(root)
    return scan


def _check_is_store(root: Folder) -> None:
    """Raises OSError if a listing is empty because it is none: if even a name is there that is nowhere.

    A login page, or the web interface of a server, is a listing of nothing to most clients: training would start anew.
    """
    try:
        found = root.store.head(root.key(f"{PROBE}{secrets.token_hex(8)}"))
    except PermissionError:  # is an answer; not all who may list may read what they do not know
        return
    except OSError as error:
        raise OSError(
            EIO, f"it lists nothing, and did not tell whether that is so ({error}): {_ENDPOINT}", root.location()
        ) from error
    if found is not None:
        raise OSError(EIO, f"it lists nothing, and has whatever it is asked for: {_ENDPOINT}", root.location())


def _scanned(root: Folder, is_step: Callable[[str], bool], known: Known | None) -> Scan:
    store = root.store
    if is_marking(store):
        mine = _taken(root)
        # Where deleted steps leave records, it is their sizes that tell them. Elsewhere a first look has to read all.
        if (known or mine or not store.has_remove) and (below := _below(store, root.prefix)) is not None:
            return _by_marks(root, below, is_step, {**(known or {}), **mine}, is_first=known is None)
    listing = root.list()
    files, folders = listing
    names = sorted(filter(is_step, folders))
    if isinstance(store, RereadingStore):
        last = known or {}
        sights = store.reread(root.prefix, [f"{name}/{MANIFEST}" for name in names], [last.get(name) for name in names])
    else:
        sights = _read_all(root, names)
    links, is_moment = (listing.links, listing.is_moment) if isinstance(listing, LocalListing) else ((), False)
    is_moment = is_moment or len(files) + len(folders) <= PAGE or not store.has_remove
    return Scan(files, names, sights, is_unchanged=False, is_moment=is_moment, folders=folders, links=links)


def is_emptied(sight: Sight) -> bool:
    """Whether it is that of a record that was not read, because its size says that it is empty."""
    return sight.version is None and not sight.data


def sight_of(root: Folder, name: str) -> Sight | OSError | None:
    """What lies in the folder ``name`` as its record now, or the error of reading it."""
    try:
        read = root.read(f"{name}/{MANIFEST}")
    except OSError as error:
        return error
    return read and Sight(*read, root.store.mark(read[1]) if is_marking(root.store) else None)


def put(folder: Folder, data: bytes, version: Version | None) -> tuple[Answer, Sight | None]:
    """Puts a record in the place of that version (None: of none), and tells what lies there then, if that is known."""
    store, key = folder.store, folder.key(MANIFEST)
    if not is_marking(store):
        return folder.create(MANIFEST, data) if version is None else folder.replace(MANIFEST, data, version), None
    answer, new = store.change(key, data, version)
    if answer is not Answer.OK or new is None:
        return answer, None
    sight = _put.setdefault(store, {})[key] = Sight(data, new, store.mark(new))
    return answer, sight


def _taken(root: Folder) -> dict[str, Sight]:
    """What this process has put since it looked last, by names."""
    puts, end = _put.setdefault(root.store, {}), f"/{MANIFEST}"
    keys = [key for key in list(puts) if key.startswith(root.prefix) and key.count("/") == root.prefix.count("/") + 1]
    taken = {key.removeprefix(root.prefix).removesuffix(end): puts.pop(key, None) for key in keys}
    return {name: sight for name, sight in taken.items() if sight}  # another thread may have been faster


def _below(store: MarkingStore, prefix: str) -> Mapping[str, Marked] | None:
    wide = _wide.setdefault(store, set())
    below = None if prefix in wide else store.below(prefix, most=MOST)
    if below is None:
        wide.add(prefix)
    return below


def _by_marks(
    root: Folder, below: Mapping[str, Marked], is_step: Callable[[str], bool], expected: Known, *, is_first: bool
) -> Scan:
    folders = {name.partition("/")[0] for name in below if "/" in name} - {""}
    files = {
        name: Head(file.nbytes, file.modified)
        for name, file in below.items()
        if name and "/" not in name and name not in folders  # objects of the names of folders stand for them
    }
    names = sorted(filter(is_step, folders))
    listed = {name: file for name in names if (file := below.get(f"{name}/{MANIFEST}"))}
    sights: dict[str, Sight | OSError | None] = {}
    marks = Counter(file.mark for file in listed.values())  # no two records have the same bytes: some servers mark all alike
    for name, file in listed.items():
        known = expected.get(name)
        if known and known.proof == file.mark is not None and marks[file.mark] == 1:
            sights[name] = known
        elif file.nbytes == _EMPTIED_NBYTES:
            sights[name] = Sight(b"", None, file.mark)
        elif file.nbytes > LIMIT_NBYTES:
            sights[name] = _too_large(root, name)
    is_unchanged = not is_first and len(expected) == len(listed) == sum(
        sight is expected.get(name) for name, sight in sights.items()
    )
    others = [name for name in listed if name not in sights]
    sights.update(zip(others, _read_all(root, others), strict=True))
    is_moment = len(below) <= PAGE or not root.store.has_remove
    return Scan(files, names, [sights.get(name) for name in names], is_unchanged, is_moment, folders)


def _read_all(root: Folder, names: Sequence[str]) -> list[Sight | OSError | None]:
    """Reads them one by one, and many at once as soon as one has a mark: other stores' clients may be for one thread (FTP)."""
    sights: list[Sight | OSError | None] = []
    for name in names:
        sights.append(_small_sight(root, name))
        if isinstance(sights[-1], Sight) and sights[-1].proof is not None:
            break
    left = names[len(sights) :]
    if (readers := min(READERS, len(left))) < 2:
        return [*sights, *(_small_sight(root, name) for name in left)]
    with Pool(readers) as pool:
        return [*sights, *pool.map(lambda name: _small_sight(root, name), left)]


def _small_sight(root: Folder, name: str) -> Sight | OSError | None:
    """What `sight_of` gives, without the bytes of what can be no record: all that a look gives is kept until the next."""
    sight = sight_of(root, name)
    return _too_large(root, name) if isinstance(sight, Sight) and len(sight.data) > LIMIT_NBYTES else sight


def _too_large(root: Folder, name: str) -> OSError:
    return OSError(EFBIG, "larger than any record", root.location(f"{name}/{MANIFEST}"))
