"""Files below one folder of a local or mounted file system, with all the care that POSIX asks for.

The law: a name refers to a whole file, and only after every byte of it is durable. So everything is written under a
temporary name beside its own, synced, moved to its name by one system call, and then the folder is synced.

- **Atomic.** Whoever reads, and whenever a process dies, there is the old content or the new one, never a mix. What a
  dead process leaves is a temporary file that `PosixStore.list` does not show and `PosixStore.uploads` does.
- **Durable.** What a call changes is on the disk when it returns, as far as fsync tells, and so are the folders it made.
  Before a conditional call or a deletion takes effect, all names in the folders on its way are synced too: it may rest
  on what another process has just made visible, and must not outlive that in a power failure. Only a version that the
  store itself put last is replaced without that: those names were durable when it was, and files put since then are.
- **Exclusive.** `PosixStore.create`, `replace` and `remove` hold a lock on ``.ckptmgr.lock`` in the root. Where the file
  system has no locks, one warning says so, the store `is_weak`, and one process at a time may write.
- **Contained.** Nothing below the root is reached through a symbolic link. What is neither a regular file nor a real
  folder (links, pipes, devices) is as good as absent: never listed, opened or deleted.

NFS: rename and link are atomic at the server; locks hold between machines (Linux 2.6.12 and later) unless mounted with
``nolock`` or ``local_lock``; other machines may see listings that are some seconds old, and a rename that succeeded
may be answered with an error, which is why errors that prove nothing become `Answer.LOST`.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import numpy as np

from ckptmgr.storage import mapping, vectored
from ckptmgr.storage.folders import ABSENT, Root, descriptor, names_of, names_of_prefix, naming, sync
from ckptmgr.storage.lock import exclusive, warn_weak
from ckptmgr.storage.newfile import TEMPORARY, NewFile, changed, new_file
from ckptmgr.storage.rereading import Reread, reread
from ckptmgr.storage.scanning import LOCK, head_of, scan
from ckptmgr.storage.store import Answer, Buffer, Head, LocalListing, Sight, Stored, Upload, Version
from ckptmgr.storage.writeback import WAYS, Way

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe put there by somebody must not block
_SMALL_NBYTES = 256 << 20  # `read` is for records; a sparse file of a terabyte must not become memory
# Answers that leave it to the caller to write the file anew.
_NOT_LINKED = ABSENT | {errno.EPERM, errno.EACCES, errno.EXDEV, errno.EMLINK, errno.EEXIST}
_NOT_LINKED |= {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class PosixStore:
    """A `Store` below the folder ``root``, which the first write makes.

    Every call opens and closes its own descriptors: a store may be used from any thread, copied, and taken through a
    fork. New files and folders get the permissions that the umask leaves. Errors name the whole path.

    ``follow_links`` lets reads and listings take links to files for files, as a Hugging Face cache needs; bytes then come
    from wherever they lead. Links to folders are never followed, and no link is ever deleted.

    ``writeback`` is how the disk is made to begin with a large file before all of it is written; see `writeback`.

    Raises:
        ValueError: ``writeback`` is no such way.
    """

    window_nbytes = 2 << 20
    workers = 2
    has_remove = True

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        lock_timeout_s: float = 60.0,
        follow_links: bool = False,
        writeback: Way = "auto",
    ) -> None:
        if writeback not in WAYS:
            raise ValueError(f"writeback must be one of {', '.join(map(repr, WAYS))}, not {writeback!r}")
        self._root = Root(os.path.abspath(os.fspath(root)))  # now, because the process may change its folder
        self._below = os.path.join(self._root.path, "")
        self.url = f"file://{self._root.path}"
        self.is_weak = False  # until a lock is refused
        self.lock_timeout_s = lock_timeout_s
        self.follow_links = follow_links
        self.writeback: Way = writeback
        self._last_put: tuple[str, Version] | None = None  # by a conditional call, and with all names on its way durable

    def __repr__(self) -> str:
        return f"PosixStore({self._root.path!r})"

    def put(self, key: str, windows: Iterable[Sequence[Buffer]], nbytes: int) -> Stored:
        """See `Store.put`. The space is reserved first: a full disk shows before the first byte is asked for.

        Raises:
            FileNotFoundError: `abort` or somebody else removed the unfinished file.
            ValueError: ``windows`` gave more or fewer bytes than ``nbytes``.
            OSError: as the system gave it. The file may be there nevertheless, whole, if it came from naming it.
        """
        with new_file(self._root, _names(key), make=True, writeback=self.writeback) as new:
            new.write(windows, nbytes)
            with naming(new.path):
                try:
                    new.take_name()
                except FileNotFoundError as error:
                    reason = "somebody removed the unfinished file, or its folder"
                    raise FileNotFoundError(errno.ENOENT, reason, new.path) from error
                sync(new.folder)
        return Stored(nbytes)

    def stage(self, key: str, windows: Iterable[Sequence[Buffer]], nbytes: int) -> Upload:
        """See `StagingStore.stage`; raises like `put`. It is a temporary file in the folder that it is for."""
        above, _, _ = key.rpartition("/")
        with new_file(self._root, _names(key), make=True, keep=True, writeback=self.writeback) as new:
            new.write(windows, nbytes)
            return Upload(f"{above}/{new.temporary}".lstrip("/"), new.temporary, os.fstat(new.fd).st_ctime)

    def rename(self, staged: Mapping[str, Upload]) -> None:
        """See `StagingStore.rename`."""
        moves = [_move(upload, key) for key, upload in staged.items()]  # all are checked before the first is made
        for above, temporary, name in moves:
            with naming(self._root.location([*above, name])), self._root.folder(above) as folder:
                os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        for above in {above for above, _, _ in moves}:
            with naming(self._root.location(above)), self._root.folder(above) as folder:
                sync(folder)

    def link(self, source: str, key: str) -> bool:
        """See `LinkingStore.link`."""
        *source_above, source_name = _names(source)
        *above, name = _names(key)
        try:
            with self._root.folder(source_above) as origin, self._root.folder(above, make=True) as folder:
                if not stat.S_ISREG(os.stat(source_name, dir_fd=origin, follow_symlinks=False).st_mode):
                    return False
                with naming(self.location(key)):
                    os.link(source_name, name, src_dir_fd=origin, dst_dir_fd=folder, follow_symlinks=False)
                    sync(folder)
        except OSError as error:
            if error.errno in _NOT_LINKED:
                return False
            raise
        return True

    def create(self, key: str, data: bytes) -> Answer:
        """See `Store.create`.

        Raises:
            TimeoutError: another process keeps the lock; nothing was changed.
            OSError: a refusal that proves that nothing was changed; all others are `Answer.LOST`, and logged.
        """
        with new_file(self._root, _names(key), make=True, durable=True) as new:
            new.write([[data]], len(data))
            with self._locked():
                try:
                    return self._put(key, data, new, new.take_free_name)
                except FileExistsError:
                    if self.head(key) is None:
                        raise  # a link or a folder: `read` says that nothing is here, and the caller would try for ever
                    return Answer.NO

    def replace(self, key: str, data: bytes, version: Version) -> Answer:
        """See `Store.replace`; raises like `create`. The version of a file is its content."""
        is_ours = self._last_put == (key, version)
        try:
            with new_file(self._root, _names(key), make=False, durable=not is_ours) as new:
                new.write([[data]], len(data))
                with self._locked():
                    return self._put(key, data, new, new.take_name) if self._has(key, version) else Answer.NO
        except FileNotFoundError:  # its folder is gone, and the file with it
            return Answer.NO

    def remove(self, key: str, version: Version) -> Answer:
        """See `Store.remove`; raises like `create`. Folders that become empty go too."""
        *above, name = _names(key)
        try:
            with self._root.folder(above, durable=True) as folder, self._locked():
                if not self._has(key, version):
                    return Answer.NO
                answer = changed(self.location(key), folder, lambda: os.unlink(name, dir_fd=folder))
        except FileNotFoundError:  # its folder is gone, and the file with it
            return Answer.NO
        with suppress(OSError):  # the answer stands; an empty folder is left to sweep
            self._root.prune(above)
        return answer

    def read(self, key: str) -> tuple[bytes, Version] | None:
        """See `Store.read`. While the file is replaced this gives the old content or the new.

        Raises:
            OSError: EFBIG if the file is not small at all (256 MiB); the system's own, such as PermissionError.
        """
        try:
            return self._read(key)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return self._read(key)  # NFS: another machine replaced the file after it was opened

    def reread(self, prefix: str, names: Sequence[str], known: Sequence[Sight | None]) -> list[Reread]:
        """See `RereadingStore.reread`. On local file systems of Linux one system call tells that a file is unchanged."""
        try:
            with naming(self.location(prefix)), self._root.folder(names_of_prefix(prefix)) as folder:
                return reread(folder, names, known, lambda name: self.read(prefix + name))
        except OSError as error:
            if error.errno not in ABSENT:
                raise
            return [None] * len(names)

    def read_into(self, key: str, offset: int, buffers: Sequence[Buffer]) -> None:
        """See `Store.read_into`."""
        with self.opened(key) as read:
            read(offset, buffers)

    @contextmanager
    def opened(self, key: str) -> Iterator[Callable[[int, Sequence[Buffer]], None]]:
        """See `LocalStore.opened`. The system reads ahead more and in larger pages for one that stays open."""
        with self._opened(key) as fd:

            def read(offset: int, buffers: Sequence[Buffer]) -> None:
                try:
                    with naming(self.location(key)):
                        vectored.read(fd, buffers, offset)
                except EOFError as error:
                    raise EOFError(f"{self.location(key)!r}: {error}") from None

            yield read

    def is_cached(self, key: str, offset: int) -> bool:
        """See `LocalStore.is_cached`."""
        with self._opened(key) as fd:
            return mapping.is_cached(fd, offset)

    def map(self, key: str) -> np.ndarray[Any, Any]:
        """See `LocalStore.map`."""
        with self._opened(key) as fd:
            return mapping.mapped(fd, self.location(key))

    def file(self, key: str) -> BinaryIO:
        """See `Store.file`. It stays the same file when another one takes its name."""
        return open(self._open(key), "rb")

    def head(self, key: str) -> Head | None:
        """See `Store.head`. The time is that of the inode (ctime), which no copying tool can set back."""
        *above, name = _names(key)
        try:
            with naming(self.location(key)), self._root.folder(above) as folder:
                status = os.stat(name, dir_fd=folder, follow_symlinks=self.follow_links)
        except OSError as error:
            if error.errno in ABSENT:
                return None
            raise
        return head_of(status) if stat.S_ISREG(status.st_mode) else None

    def list(self, prefix: str) -> LocalListing:
        """See `Store.list`. Sorted; names that are not UTF-8 come as Python gives them (surrogate escapes)."""
        scanned = scan(self._root, prefix, follow_links=self.follow_links)
        listing = LocalListing(scanned.files, tuple(scanned.folders))
        listing.links, listing.is_moment = scanned.links, scanned.is_moment
        return listing

    def delete(self, keys: Iterable[str]) -> None:
        """See `Store.delete`. A key that ends in ``/`` is a folder, which goes if it is empty."""
        by_folder: dict[str, set[str]] = {}
        for key in keys:
            folder, _, name = key.rpartition("/")
            _names(key) if name else names_of_prefix(key)  # all are checked before the first goes
            by_folder.setdefault(folder, set()).update([name] if name else [])
        for folder, names in by_folder.items():
            self._unlink(names_of(folder) if folder else [], sorted(names))

    def uploads(self, prefix: str) -> Sequence[Upload]:
        """See `Store.uploads`: the temporary files; a key is the temporary file's own."""
        found = []
        pending = [prefix]
        while pending:
            folder = pending.pop()
            _, below, temporary, *_ = scan(self._root, folder, follow_links=self.follow_links)
            found += [Upload(folder + name, name, head.modified) for name, head in temporary.items()]
            pending += [f"{folder}{name}/" for name in below]
        return found

    def abort(self, upload: Upload) -> None:
        """See `Store.abort`. Folders that become empty go too."""
        *above, name = names_of(upload.key)
        if not TEMPORARY.fullmatch(name):
            raise ValueError(f"{upload.key!r} is no unfinished file of ours")
        self._unlink(above, [name])

    def now(self) -> float:
        """See `Store.now`: the file server's clock, or this machine's where nothing of ours may be touched."""
        try:
            fd = descriptor(self.location(LOCK), os.O_WRONLY | os.O_NOFOLLOW)
        except OSError:
            return time.time()
        try:
            os.utime(fd)
            return os.fstat(fd).st_ctime
        except OSError:
            return time.time()
        finally:
            os.close(fd)

    def location(self, key: str) -> str:
        """See `Store.location`: an absolute path."""
        return self._below + key if key else self._root.path

    def _put(self, key: str, data: bytes, new: NewFile, take_name: Callable[[], None]) -> Answer:
        answer = changed(new.path, new.folder, take_name)
        if answer is Answer.OK:
            self._last_put = key, data
        return answer

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with exclusive(self.location(LOCK), self.lock_timeout_s) as is_real:
            if not is_real:
                self.is_weak = True
                warn_weak(self._root.path)
            yield

    def _read(self, key: str) -> tuple[bytes, Version] | None:
        try:
            fd = self._open(key)
        except FileNotFoundError:
            return None
        try:
            with naming(self.location(key)), open(fd, "rb", buffering=0, closefd=False) as file:
                if os.fstat(fd).st_size > _SMALL_NBYTES:
                    raise OSError(errno.EFBIG, "too large to be read at once")
                data = file.read()
        finally:
            os.close(fd)
        return data, data

    def _has(self, key: str, version: Version) -> bool:
        found = self.read(key)
        return found is not None and found[1] == version

    @contextmanager
    def _opened(self, key: str) -> Iterator[int]:
        fd = self._open(key)
        try:
            yield fd
        finally:
            os.close(fd)

    def _open(self, key: str) -> int:
        """A descriptor of a file for reading. Raises FileNotFoundError, also for what is no regular file."""
        *above, name = _names(key)
        path = self.location(key)
        fd = -1
        try:
            with naming(path), self._root.folder(above) as folder:
                fd = descriptor(name, _FILE & ~os.O_NOFOLLOW if self.follow_links else _FILE, folder=folder)
                is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        except BaseException as error:
            if fd >= 0:
                os.close(fd)  # whatever it is, the descriptor must not leak
            if not isinstance(error, OSError) or error.errno not in ABSENT:
                raise
        else:
            if is_file:
                return fd
            os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "no regular file (links are not followed)", path)

    def _unlink(self, above: Sequence[str], names: Sequence[str]) -> None:
        """Deletes regular files of one folder, and then the folders that are empty."""
        try:
            with self._root.folder(above, durable=True) as folder:
                for name in names:
                    _unlink_file(folder, name, self._root.location([*above, name]))
        except OSError as error:
            if error.errno not in ABSENT:
                raise
        self._root.prune(above)


def _names(key: str) -> list[str]:
    names = names_of(key)
    if names[-1] == LOCK or TEMPORARY.fullmatch(names[-1]):
        raise ValueError(f"{key!r} ends in a name that the store keeps for itself")
    return names


def _move(upload: Upload, key: str) -> tuple[tuple[str, ...], str, str]:
    """The folder of a staged file, its temporary name, and the name that it is to take."""
    *above, name = _names(key)
    *beside, temporary = names_of(upload.key)
    if beside != above or not TEMPORARY.fullmatch(temporary):
        raise ValueError(f"{upload.key!r} is no unfinished file of ours beside {key!r}")
    return tuple(above), temporary, name


def _unlink_file(folder: int, name: str, path: str) -> None:
    with suppress(FileNotFoundError), naming(path):
        if stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=folder)
