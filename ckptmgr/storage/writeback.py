"""Has the disk begin with a file while the rest of it is still being written, so that the last fsync has little left to do.

The law: every way writes the same bytes, and none makes a write fail that succeeds without it. What a file system or a
platform does not know is asked once and then no more. But that the disk could not take the bytes is raised: ext4 drops them
then, tells whoever asked for the writing, and the fsync that follows finds nothing left to complain of.

Ways, and the median of 7 interleaved writes of 256 MiB with their fsync (ext4, kernel 6.18): 245 ms without any;
``sync_file_range`` 193 (Linux); ``dontneed``, `posix_fadvise` with POSIX_FADV_DONTNEED, 171 (Linux, FreeBSD); ``dontcache``,
RWF_DONTCACHE, 227 (Linux 6.14). The first two are equal but for noise, and the file stays in memory for whoever reads it next:
so ``auto`` takes the first of them that there is. After ``dontcache`` reading it back took eight times as long: it is for
machines whose memory is better used for something else.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeAlias

from ckptmgr.storage import vectored
from ckptmgr.storage.store import Buffer

Way: TypeAlias = Literal["auto", "sync_file_range", "dontneed", "dontcache", "none"]

WAYS: Final = ("auto", "sync_file_range", "dontneed", "dontcache", "none")
_AUTO: Final = ("sync_file_range", "dontneed")
_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ESPIPE}
_LOST = {errno.EIO, errno.ENOSPC, errno.EDQUOT}
_SYNC_FILE_RANGE_WRITE = 2
_RWF_DONTCACHE = 0x80

_sync_file_range: Any = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

_refused: set[tuple[int, str]] = set()  # device, and a way that it does not know


class Writeback:
    """One open file that is written from its beginning to its end.

    Raises:
        ValueError: ``way`` is not known.
    """

    def __init__(self, fd: int, way: Way = "auto") -> None:
        self._fd = fd
        self._device = os.fstat(fd).st_dev
        self._ways = [each for each in (_AUTO if way == "auto" else (way,)) if (self._device, each) not in _refused]

    def write(self, buffers: Sequence[Buffer], offset: int) -> int:
        """Writes all the bytes of ``buffers`` and gives their number, as `vectored.write` does."""
        if self._ways == ["dontcache"]:
            try:
                return vectored.write(self._fd, buffers, offset, _RWF_DONTCACHE)
            except (OSError, NotImplementedError) as error:
                self._refuse(error)
        return vectored.write(self._fd, buffers, offset)

    def start(self, offset: int, nbytes: int) -> None:
        """Lets the disk begin with bytes that were written. Raises OSError only if it could not take them."""
        while self._ways and (hint := _HINTS.get(self._ways[0])):
            try:
                hint(self._fd, offset, nbytes)
                break
            except (OSError, NotImplementedError) as error:
                self._refuse(error)

    def _refuse(self, error: OSError | NotImplementedError) -> None:
        """Remembers that there is no such call here, if that is what the error says; raises any other."""
        if isinstance(error, OSError) and error.errno not in _UNSUPPORTED:
            raise error
        _refused.add((self._device, self._ways.pop(0)))


def _start(fd: int, offset: int, nbytes: int) -> None:
    if _sync_file_range is None:
        raise NotImplementedError
    if _sync_file_range(fd, offset, nbytes, _SYNC_FILE_RANGE_WRITE) != 0:
        _check(ctypes.get_errno())


def _forget(fd: int, offset: int, nbytes: int) -> None:
    if not hasattr(os, "posix_fadvise"):
        raise NotImplementedError
    try:
        os.posix_fadvise(fd, offset, nbytes, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        _check(error.errno or 0)


def _check(code: int) -> None:
    """Raises OSError for a call that is not known here, and for bytes that are lost. All else is no more than a lost hint."""
    if code in _UNSUPPORTED | _LOST:
        raise OSError(code, os.strerror(code))


_HINTS: dict[str, Callable[[int, int, int], None]] = {"sync_file_range": _start, "dontneed": _forget}
