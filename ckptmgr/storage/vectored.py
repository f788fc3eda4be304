"""Reading and writing many buffers at a place in an open file: whole, or an error.

The system calls may move fewer bytes than they were asked to (a signal, a nearly full disk, the 2 GiB limit of one
call) and take a limited number of buffers; here both are loops. Buffers are never copied.
"""

import ctypes
import errno
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ckptmgr.storage.store import Buffer

_MAX_BUFFERS = 1024  # IOV_MAX of Linux and macOS
_BYTES = (bytes, bytearray)  # those whose length is their size; a union of types would cost more than all else in `size`
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}

# `os.posix_fallocate` writes every block where the file system cannot reserve them; the system call itself says no.
_libc = ctypes.CDLL(None, use_errno=True)
_fallocate: Any = getattr(_libc, "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def size(buffer: Buffer) -> int:
    """The number of bytes in a buffer."""
    return len(buffer) if isinstance(buffer, _BYTES) else buffer.nbytes


def total(buffers: Sequence[Buffer]) -> int:
    """The number of bytes in all of them."""
    # Most are arrays, of which there may be many: a call for each would take longer than all else here.
    return sum([buffer.nbytes if type(buffer) is np.ndarray else size(buffer) for buffer in buffers])


def write(fd: int, buffers: Sequence[Buffer], offset: int, flags: int = 0) -> int:
    """Writes all the bytes of ``buffers``, one after another, from ``offset`` on, and gives their number.

    ``flags`` are those of `os.pwritev`.
    """
    nbytes = total(buffers)
    end, left = offset + nbytes, _remaining(buffers, 0)
    while offset < end:
        written = os.pwritev(fd, left[:_MAX_BUFFERS], offset, flags)
        if written == 0:
            raise OSError(errno.EIO, "the file takes no more bytes, and no reason was given")
        offset += written
        left = _remaining(left, written) if offset < end else []
    return nbytes


def read(fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    """Fills ``buffers``, one after another, with the bytes from ``offset`` on.

    Raises:
        EOFError: the file ends before the buffers are full.
    """
    left = _remaining(buffers, 0)
    while left:
        got = os.preadv(fd, left[:_MAX_BUFFERS], offset)
        if got == 0:
            missing = sum(map(size, left))
            raise EOFError(f"the file ends at byte {offset}, {missing} bytes before the end of what was asked for")
        offset += got
        left = _remaining(left, got)


def reserve(fd: int, nbytes: int) -> None:
    """Takes the space for ``nbytes`` now, so that a full disk, a quota or a limit shows before the first byte.

    Nothing happens where the file system or the platform cannot do that.
    """
    while nbytes > 0 and _fallocate is not None and _fallocate(fd, 0, 0, nbytes) != 0:
        code = ctypes.get_errno()
        if code in _UNSUPPORTED:
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def _remaining(buffers: Sequence[Buffer], done: int) -> list[Any]:
    """What is left of ``buffers`` after the first ``done`` bytes; never begins with an empty buffer."""
    for index, buffer in enumerate(buffers):
        nbytes = size(buffer)
        if done < nbytes:
            return [_tail(buffer, done), *buffers[index + 1 :]] if done else list(buffers[index:])
        done -= nbytes
    return []


def _tail(buffer: Buffer, start: int) -> Buffer:
    if isinstance(buffer, np.ndarray):  # by numpy, because memoryview does not know the dtypes of ml_dtypes
        return buffer.reshape(-1).view(np.uint8)[start:]
    return memoryview(buffer).cast("B")[start:]
