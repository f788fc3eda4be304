"""Folders below a root, reached one by one from the root's descriptor so that no symbolic link is ever followed.

The law: between opening a folder and using it, nobody can put another one in its place. The root itself may be a link.
"""

import errno
import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}  # nothing there, or a link or socket
_KEPT = {errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY}  # a folder that has something in it, or is in use
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
_UNSAFE = frozenset(["", ".", ".."])
_FLAGS = os.O_RDONLY | os.O_DIRECTORY


def names_of(key: str) -> list[str]:
    """The names on the way to ``key``. Raises ValueError for what could lead anywhere else."""
    names = key.split("/")
    if not _UNSAFE.isdisjoint(names) or "\0" in key:
        raise ValueError(f"{key!r} is no safe key: plain names joined by '/', none of them empty, '.' or '..'")
    return names


def names_of_prefix(prefix: str) -> list[str]:
    """The folders of ``prefix``, which is ``""`` or ends in ``/``. Raises ValueError like `names_of`."""
    if prefix and not prefix.endswith("/"):
        raise ValueError(f"{prefix!r} is no prefix: one ends in '/'")
    return names_of(prefix[:-1]) if prefix else []


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Lets errors name the whole path, where the system names a part of it or nothing."""
    try:
        yield
    except OSError as error:
        if not (isinstance(error.filename, str) and os.path.isabs(error.filename)):
            del error.filename2
            error.filename = path
        raise


def descriptor(path: str, flags: int, *, folder: int | None = None) -> int:
    """What `os.open` gives; but an interrupt that comes while the system opens it cannot lose it.

    Python tells of a signal as soon as a call has returned, before its result is anybody's; while it unpacks, it does not.
    """
    [fd] = map(functools.partial(os.open, dir_fd=folder), (path,), (flags,), (0o666,))
    return fd


def sync(fd: int) -> None:
    """Makes the names in an open folder durable, where the file system has such a call."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


@dataclass(frozen=True, slots=True)
class Root:
    """The folder at ``path``, and those below it, which are given as the names on the way."""

    path: str

    def location(self, names: Sequence[str]) -> str:
        """The whole path."""
        return os.path.join(self.path, *names)

    @contextmanager
    def folder(self, names: Sequence[str], *, make: bool = False, durable: bool = False) -> Iterator[int]:
        """A descriptor of a folder; see `open`."""
        fd = self.open(names, make=make, durable=durable)
        try:
            yield fd
        finally:
            os.close(fd)

    def open(self, names: Sequence[str], *, make: bool = False, durable: bool = False) -> int:
        """A descriptor of a folder.

        With ``make`` folders that are not there are made, and are durable. With ``durable`` all names in the folder and
        in those above it, up to the root, are durable when this returns, whoever made them.

        Raises:
            FileNotFoundError: there is none; with ``make``: somebody removed it while it was empty.
            NotADirectoryError: there is something else, a link for example.
        """
        fd = -1
        try:
            with naming(self.location(names)):
                fd, is_made = self._open_root(make), False
                for name in names:
                    above = fd
                    fd, is_made = _open_below(above, name, make)
                    try:
                        if durable and not is_made:
                            sync(above)
                    finally:
                        os.close(above)
                if durable and not is_made:  # one that was just made holds nothing that anything could rest on
                    sync(fd)
        except BaseException:  # whatever it is, the descriptor must not leak
            if fd >= 0:
                os.close(fd)
            raise
        return fd

    def prune(self, names: Sequence[str]) -> None:
        """Removes a folder if it is empty, then likewise those above it but the root; what stays is durable."""
        while names and self._remove_if_empty(names):
            names = names[:-1]
        with suppress(FileNotFoundError), naming(self.location(names)), self.folder(names) as lowest:
            sync(lowest)

    def _open_root(self, make: bool) -> int:
        try:
            return descriptor(self.path, _FLAGS)
        except FileNotFoundError:
            if not make:
                raise
        _make_folders(self.path)
        return descriptor(self.path, _FLAGS)

    def _remove_if_empty(self, names: Sequence[str]) -> bool:
        try:
            with naming(self.location(names)), self.folder(names[:-1]) as above:
                os.rmdir(names[-1], dir_fd=above)
        except OSError as error:
            if error.errno in _KEPT:
                return False
            if error.errno not in ABSENT:
                raise
        return True


def _open_below(above: int, name: str, make: bool) -> tuple[int, bool]:
    """A descriptor of a folder, and whether it was made here; then its name is durable."""
    try:
        return descriptor(name, _FLAGS | os.O_NOFOLLOW, folder=above), False
    except NotADirectoryError:
        raise NotADirectoryError(errno.ENOTDIR, "no real folder (links are not followed)") from None
    except FileNotFoundError:
        if not make:
            raise
    is_made = False
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=above)
        is_made = True
    sync(above)
    return descriptor(name, _FLAGS | os.O_NOFOLLOW, folder=above), is_made


def _make_folders(path: str) -> None:
    above = os.path.dirname(path)
    if not os.path.isdir(above):
        _make_folders(above)
    with suppress(FileExistsError):
        os.mkdir(path)
    fd = descriptor(above, _FLAGS)
    try:
        sync(fd)
    finally:
        os.close(fd)
