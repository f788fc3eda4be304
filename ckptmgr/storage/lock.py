"""One writer at a time: a lock file that the kernel frees when its holder dies.

The law: while `exclusive` holds, no other process or thread holds it for the same path, whatever is done to the file.
"""

import errno
import fcntl
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ckptmgr.storage.folders import descriptor, naming

_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_warned_roots: dict[str, object] = {}
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.001, 0.05


@contextmanager
def exclusive(path: str, timeout_s: float) -> Iterator[bool]:
    """Holds the lock file ``path``, which is made if need be and never removed; gives whether the lock is real.

    It is not where the file system has no locks (NFS without a lock service, some FUSE mounts): then nobody is kept out.
    A stopped holder delays the others and can do no more: who waits longer than ``timeout_s`` gives up.

    Raises:
        TimeoutError: somebody else holds it; `filename` is the path.
        OSError: the file cannot be made or opened.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        fd = _open(path)
        try:
            with naming(path):
                is_real = _lock(fd, path, deadline)
            # The folder may have been deleted and made anew while we waited: then others lock another file.
            if not is_real or _is_at(path, fd):
                yield is_real
                return
        finally:
            try:
                _close(fd)
            except BaseException:  # an interrupt before it was done, or at its first line
                _close(fd)
                raise


def warn_weak(root: str) -> None:
    """Warns, once for each root, that its file system has no locks."""
    mark = object()
    if _warned_roots.setdefault(root, mark) is mark:
        warnings.warn(
            f"the file system of {root!r} has no locks: let only one process at a time save, delete or sweep there",
            stacklevel=2,
        )


def _lock(fd: int, path: str, deadline: float) -> bool:
    wait_s = _FIRST_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                reason = "still locked by another process; is one stopped, or waiting for its storage?"
                raise TimeoutError(errno.ETIMEDOUT, reason, path) from None
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return False
            raise
        time.sleep(min(wait_s, left_s))
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _is_at(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


# A fork copies the open lock file into the child, and the lock lasts until the last copy is closed: a data loader's
# worker would keep the lock of a trainer that was killed. So children close their copies, and no fork comes between
# opening a file and noting it. The guard is reentrant for signal handlers that fork.
_open_files: set[int] = set()
_guard = threading.RLock()


def _open(path: str) -> int:
    fd = -1
    try:
        with naming(path), _guard:
            fd = _open_file(path)
            _open_files.add(fd)
    except BaseException:  # an interrupt, when it is open already
        _close(fd)
        raise
    return fd


def _open_file(path: str) -> int:
    try:
        return descriptor(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
    except PermissionError as error:
        # Another user's file in a shared folder: flock itself needs no permission to write.
        try:
            return descriptor(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise error from None


def _close(fd: int) -> None:
    """Frees the lock first, and only then forgets the file: an interrupt may come between any two lines."""
    with _guard:
        if fd not in _open_files:
            return
        try:
            with suppress(OSError):  # closing does it too, unless a child that was just forked has a copy
                fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            try:
                _open_files.remove(fd)
            finally:
                os.close(fd)


def _close_in_child() -> None:
    for fd in _open_files:
        os.close(fd)
    _open_files.clear()
    _guard.release()


os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_close_in_child)
