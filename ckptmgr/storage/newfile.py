"""A file that has no name yet: written under a temporary one, made durable, and then named by one system call.

The law: the name refers to the whole file or to what it referred to before, whenever the process dies. What a dead process
leaves is a temporary file, beside the place where the file was to be.
"""

import errno
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ckptmgr.storage import vectored
from ckptmgr.storage.folders import Root, descriptor, naming, sync
from ckptmgr.storage.store import Answer, Buffer
from ckptmgr.storage.writeback import Way, Writeback

logger = logging.getLogger(__name__)

TEMPORARY = re.compile(r"\.ckptmgr-[0-9a-f]{16}\.tmp")
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # FAT, some network and FUSE mounts
# Answers that prove that a name was not changed.
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EMLINK, errno.EEXIST}
_REFUSED |= {errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EXDEV, errno.EBUSY, errno.ENOMEM}
_TRIES = 100  # to make a folder that others keep removing while it is empty


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file that is being written, to be called ``path``."""

    path: str
    folder: int
    name: str
    fd: int
    temporary: str
    writeback: Way = "auto"

    def write(self, windows: Iterable[Sequence[Buffer]], nbytes: int) -> None:
        """Fills the file and makes its content durable. What ``windows`` raises passes through.

        Raises:
            ValueError: ``windows`` gave more or fewer bytes than ``nbytes``.
        """
        with naming(self.path):
            vectored.reserve(self.fd, nbytes)
            file = Writeback(self.fd, self.writeback)
        done = 0
        for window in windows:
            with naming(self.path):
                size = file.write(window, done)
                if done + size < nbytes:  # the fsync begins with the last ones itself
                    file.start(done, size)
            done += size
            if done > nbytes:
                raise ValueError(f"{self.path!r}: more than the {nbytes} bytes that were announced")
        if done < nbytes:
            raise ValueError(f"{self.path!r}: only {done} of the {nbytes} bytes that were announced")
        with naming(self.path):
            os.fsync(self.fd)

    def take_name(self) -> None:
        """Takes the name, from another file if there is one."""
        os.replace(self.temporary, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)

    def take_free_name(self) -> None:
        """Takes the name if it is free, else raises FileExistsError.

        It is exclusive even where locks are not honoured, except on file systems without hard links.
        """
        try:
            os.link(self.temporary, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._take_name_if_absent()

    def _take_name_if_absent(self) -> None:
        try:
            os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)
        except FileNotFoundError:
            self.take_name()
        else:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.path)


@contextmanager
def new_file(
    root: Root, names: Sequence[str], *, make: bool, durable: bool = False, keep: bool = False, writeback: Way = "auto"
) -> Iterator[NewFile]:
    """A file below ``root`` before it has its name; if it never gets it, nothing of it is left.

    ``make`` and ``durable`` are for its folder, as in `Root.open`. With ``keep`` the temporary name stays, if nothing is raised.
    """
    *above, name = names
    path = root.location(names)
    temporary = f".ckptmgr-{secrets.token_hex(8)}.tmp"
    folder, fd = _start(root, above, path, temporary, make=make, durable=durable)
    is_kept = False
    try:
        yield NewFile(path, folder, name, fd, temporary, writeback)
        is_kept = keep
    finally:
        try:
            if not is_kept:
                _unlink(temporary, folder)
        finally:
            try:
                os.close(fd)
            finally:
                os.close(folder)


def _start(root: Root, above: Sequence[str], path: str, temporary: str, *, make: bool, durable: bool) -> tuple[int, int]:
    for _ in range(_TRIES if make else 1):
        fd, folder = -1, -1
        try:
            folder = root.open(above, make=make, durable=durable)
            with naming(path):
                fd = descriptor(temporary, _FLAGS, folder=folder)
        except BaseException as error:  # whatever it is, the descriptors must not leak
            if fd >= 0:
                _unlink(temporary, folder)
                os.close(fd)
            if folder >= 0:
                os.close(folder)
            if not isinstance(error, FileNotFoundError):  # others remove empty folders
                raise
        else:
            return folder, fd
    raise FileNotFoundError(errno.ENOENT, "the folder is not there, or is removed again and again", path)


def _unlink(temporary: str, folder: int) -> None:
    with suppress(OSError):  # it has its name by now, or it cannot be removed and is left to sweep
        os.unlink(temporary, dir_fd=folder)


def changed(path: str, folder: int, change: Callable[[], None]) -> Answer:
    """Changes a name by one system call and makes that durable; an error that proves nothing is no answer."""
    is_made = False
    try:
        with naming(path):
            change()
            is_made = True
            sync(folder)
    except OSError as error:
        if not is_made and error.errno in _REFUSED:
            raise
        logger.warning("it is not known whether a change was made: %s", error)
        return Answer.LOST
    return Answer.OK
