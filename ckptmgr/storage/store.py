"""What ckptmgr asks of a place that keeps files, and the answers it may get.

Keys are ``str`` with ``/``, relative to the store's root. The three conditional calls (`Store.create`,
`Store.replace`, `Store.remove`) never raise for a refused condition or a lost answer: the commit protocol
settles both by reading the record back.
"""

import enum
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from errno import EIO
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeAlias, TypeGuard, runtime_checkable

import numpy as np

Buffer: TypeAlias = bytes | bytearray | memoryview | np.ndarray[Any, Any]  # C-contiguous; ml_dtypes arrays included
Version: TypeAlias = Hashable  # what a conditional call compares; opaque to everybody but its store


class Answer(enum.Enum):
    """What a store says to a conditional call."""

    OK = "ok"  # the condition held and the change is durable
    NO = "no"  # the condition failed; nothing was changed by this call
    LOST = "lost"  # no definite answer: the change was made, will be made, or never


class Head(NamedTuple):
    """Size of a file, and its last change in seconds since the epoch by the store's own clock."""

    nbytes: int
    modified: float


class Listing(NamedTuple):
    """One level of names below a prefix: its files, and the folders below it (empty ones too, where a store has such)."""

    files: Mapping[str, Head]
    folders: tuple[str, ...]


class LocalListing(Listing):
    """A listing of a file system, which tells more beside it.

    ``links`` are symbolic links, which are as good as absent. ``is_moment``: all names are proven to be of one moment.
    """

    links: Sequence[str] = ()
    is_moment: bool = False


class Sight(NamedTuple):
    """A small file as `Store.read` gave it, and by what its store can prove later that it has not changed, if it can."""

    data: bytes
    version: Version
    proof: Hashable | None


class Marked(NamedTuple):
    """A file in a listing: size, time as in `Head`, and its mark. Two puts of different bytes never have the same mark."""

    nbytes: int
    modified: float
    mark: Hashable


class Upload(NamedTuple):
    """An unfinished `put`, or a staged file: its key, the store's id of it, its last sign of life.

    Such is a multipart upload, or a temporary file.
    """

    key: str
    id: str
    modified: float


class Stored(NamedTuple):
    """What a store knows of the file it has just kept: its size, and a checksum of its own, if any.

    The checksum is ``("crc32c", 8 hex digits)``. It is for whoever knows that of what was sent (`Folder.compare`).
    """

    nbytes: int
    checksum: tuple[str, str] | None = None


class Store(Protocol):
    """A place for files. All calls may be used from several threads; what they change is durable when they return."""

    url: str
    window_nbytes: int  # the size of one write or read that suits this store
    workers: int  # how many reads in flight suit this store
    is_weak: bool  # conditional calls are not honoured: one writer at a time

    @property
    def has_remove(self) -> bool:
        """Whether `remove` works; otherwise records are emptied and left."""

    def put(self, key: str, windows: Iterable[Sequence[Buffer]], nbytes: int) -> Stored:
        """Keeps a file of ``nbytes`` under ``key``, replacing any: whole and durable when this returns, unseen until then.

        ``windows`` gives the bytes in order, as short lists of buffers, which must stay as they are until this returns: a
        store may have many on their way at once. If ``windows`` or the store fails, nothing appears under ``key``.

        Raises:
            ValueError: ``windows`` gave more or fewer bytes than ``nbytes``.
            OSError: no space, no permission, I/O errors; as the store gave them. FileNotFoundError: it was aborted.
        """

    def create(self, key: str, data: bytes) -> Answer:
        """Puts a small file if there is none under ``key``.

        Raises, like `replace` and `remove`:
            OSError: a refusal that proves that nothing was changed, such as no space or no permission.
        """

    def replace(self, key: str, data: bytes, version: Version) -> Answer:
        """Puts a small file if the one under ``key`` still has that version."""

    def remove(self, key: str, version: Version) -> Answer:
        """Deletes a small file if it still has that version. Only where `has_remove`."""

    def read(self, key: str) -> tuple[bytes, Version] | None:
        """A small file's bytes and version, or None if there is none."""

    def read_into(self, key: str, offset: int, buffers: Sequence[Buffer]) -> None:
        """Fills writable ``buffers``, one after another, with the file's bytes from ``offset`` on.

        Raises:
            FileNotFoundError: there is no such file.
            EOFError: the file ends before the buffers are full.
        """

    def file(self, key: str) -> BinaryIO:
        """The file for seeking and reading. Raises FileNotFoundError."""

    def head(self, key: str) -> Head | None:
        """Size and time of a file, or None if there is none."""

    def list(self, prefix: str) -> Listing:
        """What lies directly below ``prefix`` (``""`` or ending in ``/``); empty if there is nothing."""

    def delete(self, keys: Iterable[str]) -> None:
        """Deletes files; those that are gone already are fine. Folders that become empty go too.

        A key that ends in ``/`` is a folder, which goes if it is empty, where a store has such.
        """

    def uploads(self, prefix: str) -> Sequence[Upload]:
        """Unfinished puts of any process below ``prefix``, at any depth."""

    def abort(self, upload: Upload) -> None:
        """Ends an unfinished put and frees its space; its writer then fails. Gone already is fine."""

    def now(self) -> float:
        """The store's clock, in seconds since the epoch."""

    def location(self, key: str) -> str:
        """The key as a person or another tool would write it: a path or a URL."""


@runtime_checkable
class StagingStore(Store, Protocol):
    """A store that can also keep whole files without their names, which they get later. Not all can: object stores do not."""

    def stage(self, key: str, windows: Iterable[Sequence[Buffer]], nbytes: int) -> Upload:
        """Keeps a file for ``key`` as `Store.put` does, whole and durable, but it appears there only by `rename`.

        Until then it is one of `Store.uploads`, which `Store.abort` removes, and what is under ``key`` stays. Raises like
        `Store.put`.
        """

    def rename(self, staged: Mapping[str, Upload]) -> None:
        """Lets staged files appear under the keys for which they were staged, each by one change; all are durable at the end.

        Raises:
            FileNotFoundError: one was aborted.
            OSError: from the store. Like the above, some files may have their names nevertheless.
        """


@runtime_checkable
class RereadingStore(Store, Protocol):
    """A store that can tell of a small file that it has not changed, for less than it takes to read it."""

    def reread(self, prefix: str, names: Sequence[str], known: Sequence[Sight | None]) -> Sequence[Sight | OSError | None]:
        """What `Store.read` would give of each file now, or raise. ``names`` are relative to ``prefix``, and were just listed.

        ``known`` has for each the last sight of that name, if any. If the file is proven to be the same still, that very
        object is given, and the file is not read.
        """


@runtime_checkable
class MarkingStore(Store, Protocol):
    """A store whose listings tell which small files have changed, and whose puts tell the version of what they put.

    A file that is listed with the mark of a version that was read before, or put, has those bytes: it need not be read.
    """

    def below(self, prefix: str, *, most: int) -> Mapping[str, Marked] | None:
        """All files at any depth below ``prefix``, by their names relative to it, in their order.

        None where that costs more than it tells: there are many, and more than ``most`` for each folder directly below. And
        where the store has no marks, which may depend on its URL.
        """

    def mark(self, version: Version) -> Hashable:
        """How a listing marks a file of that version; None where it does not."""

    def change(self, key: str, data: bytes, version: Version | None) -> tuple[Answer, Version | None]:
        """`Store.replace`, or `Store.create` for the version None; and the version of what is there now, if that is known."""


class LocalStore(Store, Protocol):
    """A store whose files the system keeps in its own memory."""

    def opened(self, key: str) -> AbstractContextManager[Callable[[int, Sequence[Buffer]], None]]:
        """A file for many reads: each is as `Store.read_into`, and all are of the same file. Raises FileNotFoundError."""

    def is_cached(self, key: str, offset: int) -> bool:
        """Whether that byte of a file can be read without waiting for a disk. Raises FileNotFoundError."""

    def map(self, key: str) -> np.ndarray[Any, Any]:
        """A file's bytes, read when they are touched; what is written to them stays in this process.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not on a local disk, where nobody can take it away.
        """


# Asked for each of many windows and records, and Python 3.11 takes 25 µs to look at all that a protocol has.
def is_local(store: Store) -> TypeGuard[LocalStore]:
    """Whether it is a `LocalStore`; one that only has a method of the same name, as a cache may, is none."""
    return hasattr(store, "is_cached") and hasattr(store, "opened") and hasattr(store, "map")


def is_marking(store: Store) -> TypeGuard[MarkingStore]:
    """Whether it is a `MarkingStore`; one that only has a method of the same name is none."""
    return hasattr(store, "mark") and hasattr(store, "below") and hasattr(store, "change")


@runtime_checkable
class ParallelStore(Store, Protocol):
    """A store that takes several files at once faster than one after another. It bounds by itself what is on its way."""

    files_at_once: int


@runtime_checkable
class LinkingStore(Store, Protocol):
    """A store that can give a file another name beside the one it has. Not all can: object stores do not."""

    def link(self, source: str, key: str) -> bool:
        """Lets the file under ``source`` appear under ``key`` too, which is free; either may be deleted without the other.

        Whether it was done: a file that is gone or has too many names, and a place without such names, are no errors.

        Raises:
            OSError: from the store.
        """


@dataclass(frozen=True, slots=True)
class Folder:
    """A prefix in a store (``""`` or ending in ``/``): the same calls, with names relative to it."""

    store: Store
    prefix: str = ""

    def folder(self, name: str) -> "Folder":
        """The folder ``name`` in this one; it need not exist."""
        return Folder(self.store, f"{self.prefix}{name}/")

    def key(self, name: str) -> str:
        """The store's key of a file in this folder."""
        return self.prefix + name

    def put(self, name: str, windows: Iterable[Sequence[Buffer]], nbytes: int) -> Stored:
        """See `Store.put`."""
        return self.store.put(self.key(name), windows, nbytes)

    def write(self, name: str, data: bytes) -> Stored:
        """Keeps a small file of these bytes; see `Store.put`."""
        return self.put(name, [[data]] if data else [], len(data))

    def compare(self, name: str, stored: Stored, crc32c: int) -> None:
        """Deletes a file that has just been put if the store has other bytes than those with this crc32c, as far as it tells.

        Raises:
            OSError: (EIO) it has.
        """
        if stored.checksum is not None and stored.checksum != ("crc32c", f"{crc32c:08x}"):
            self.delete([name])
            text = (
                f"bytes were damaged on their way to the store: {stored.checksum} is stored and {crc32c:08x} was sent; save again"
            )
            raise OSError(EIO, text, self.location(name))

    def create(self, name: str, data: bytes) -> Answer:
        """See `Store.create`."""
        return self.store.create(self.key(name), data)

    def replace(self, name: str, data: bytes, version: Version) -> Answer:
        """See `Store.replace`."""
        return self.store.replace(self.key(name), data, version)

    def remove(self, name: str, version: Version) -> Answer:
        """See `Store.remove`."""
        return self.store.remove(self.key(name), version)

    def read(self, name: str) -> tuple[bytes, Version] | None:
        """See `Store.read`."""
        return self.store.read(self.key(name))

    def read_into(self, name: str, offset: int, buffers: Sequence[Buffer]) -> None:
        """See `Store.read_into`."""
        self.store.read_into(self.key(name), offset, buffers)

    def read_range(self, name: str, offset: int, nbytes: int) -> bytes:
        """``nbytes`` bytes of a file from ``offset`` on, as new bytes; see `Store.read_into`."""
        data = bytearray(nbytes)
        self.store.read_into(self.key(name), offset, [data])
        return bytes(data)

    def file(self, name: str) -> BinaryIO:
        """See `Store.file`."""
        return self.store.file(self.key(name))

    def head(self, name: str) -> Head | None:
        """See `Store.head`."""
        return self.store.head(self.key(name))

    def list(self) -> Listing:
        """See `Store.list`."""
        return self.store.list(self.prefix)

    def delete(self, names: Iterable[str]) -> None:
        """See `Store.delete`."""
        self.store.delete([self.key(name) for name in names])

    def uploads(self) -> Sequence[Upload]:
        """See `Store.uploads`; keys are the store's."""
        return self.store.uploads(self.prefix)

    def location(self, name: str = "") -> str:
        """See `Store.location`."""
        return self.store.location(self.key(name).rstrip("/"))
