"""Small files of many folders read again, and only those that may have changed.

The law: if a file's status still is the proof that `_proven` gave when the file was read, to read it now would give the
same bytes; so one `stat` stands for a read of this very moment. This is what git's index rests on, with its rule for files
that changed just now. It holds on the file systems named here, because there every change of a file's bytes gives it a new
ctime, which no call can set, from the clock that is compared here. And what takes over the name of a file has another
inode number, or a later ctime, if the number of the file that is gone was given out again.

So does the ctime of a folder tell that no name in it has come or gone since, for which the system locks the folder.

- A ctime tells changes apart only if the clock moves on between them: a file that changed just now has no proof. Nor has one
  whose ctime is a whole second: that is how some file systems (ext3) keep all times, and a clock set back could repeat it.
- A write sets the ctime before its first byte, and may be held up before its last: by a disk that is too slow for all that is
  written, mostly. So just now is longer than a tick of the clock.
- Elsewhere there is none: NFS and SMB answer from caches of attributes, FUSE and overlays as they like.
- Not noticed is what bypasses the file system: bytes that rot on the disk, and a shared memory map that is written to long
  after its page was first. Nobody writes records so; and each decision compares their bytes again, under the lock.
"""

import ctypes
import itertools
import os
import stat
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from ckptmgr.storage.folders import descriptor, names_of
from ckptmgr.storage.store import Sight, Version
from ckptmgr.threads import Pool

Reread: TypeAlias = Sight | OSError | None
Read: TypeAlias = Callable[[str], tuple[bytes, Version] | None]

_LOCAL = {
    0xEF53,  # ext2, ext3, ext4
    0x58465342,  # XFS
    0x9123683E,  # Btrfs
    0xF2F52010,  # F2FS
    0x01021994,  # tmpfs
}
_CLOCK = 5  # CLOCK_REALTIME_COARSE, from which Linux takes these times, or later ones; `time` has no name for it
_SETTLED_NS = 500_000_000
_PART = 64  # files; each part shows how fast the disk is
_SLOW_S = 150e-6  # for a file: from memory it takes a tenth, and Python no longer lets threads gain anything
_THREADS = 8
_SMALL_NBYTES = 1 << 20  # what is larger is left to `Store.read`
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_FOLDER = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY

_fstatfs: Callable[[int, object], int] | None = getattr(ctypes.CDLL(None), "fstatfs", None) if sys.platform == "linux" else None


class _Moment(NamedTuple):
    """A time before anything is read, by the clock of the file system ``device``, whose files may have proofs."""

    device: int
    clock_ns: int


def proof_of(folder: int) -> tuple[int, ...] | None:
    """The proof for the names in a folder: while it is the same, none has come, gone or changed to another file."""
    moment = _moment(folder)
    return _proven(os.fstat(folder), moment)


def reread(folder: int, names: Sequence[str], known: Sequence[Sight | None], read: Read) -> list[Reread]:
    """What ``read`` gives of each name, or raises; see `RereadingStore.reread`. ``folder`` is the one they are relative to.

    ``read`` is asked only where something is unusual. A disk that is slow to answer is asked for several files at a time.
    """
    moment = _moment(folder)
    parts = [(names[at : at + _PART], known[at : at + _PART]) for at in range(0, len(names), _PART)]
    answers: list[Reread] = []
    for done, part in enumerate(parts, 1):
        start = time.perf_counter()
        answers += _reread(folder, part[0], part[1], read, moment)
        if time.perf_counter() - start > _PART * _SLOW_S and done < len(parts):
            with Pool(_THREADS) as pool:
                rest = pool.map(lambda part: _reread(folder, part[0], part[1], read, moment), parts[done:])
                return [*answers, *itertools.chain.from_iterable(rest)]
    return answers


def _reread(folder: int, names: Sequence[str], known: Sequence[Sight | None], read: Read, moment: _Moment | None) -> list[Reread]:
    answers: list[Reread] = []
    for name, old in zip(names, known, strict=True):
        try:
            if old is not None and old.proof is not None:
                now = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if (now.st_ino, now.st_ctime_ns, now.st_mtime_ns, now.st_size, now.st_dev) == old.proof:
                    answers.append(old)
                    continue
            answers.append(_sight(folder, name, moment))
        except OSError:  # most often there is no such file; whatever it is, `read` knows what to make of it
            answers.append(_asked(name, read))
    return answers


def _asked(name: str, read: Read) -> Reread:
    try:
        found = read(name)
    except OSError as error:
        return error
    return found and Sight(*found, None)


def _sight(folder: int, name: str, moment: _Moment | None) -> Sight:
    """The file as it is now. Raises OSError for anything but a small regular file that is reached through no link."""
    *above, last = names_of(name)
    fd = _open_below(folder, above, last)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _SMALL_NBYTES:
            raise OSError(name)
        data = os.read(fd, status.st_size + 1)
        while len(data) != status.st_size and (more := os.read(fd, 4096)):  # else it is over only when nothing comes
            data += more
    finally:
        os.close(fd)
    return Sight(data, data, _proven(status, moment))


def _open_below(folder: int, above: Sequence[str], name: str) -> int:
    if not above:
        return descriptor(name, _FILE, folder=folder)
    fd, below = -1, descriptor(above[0], _FOLDER, folder=folder)
    try:
        try:
            fd = _open_below(below, above[1:], name)
        finally:
            os.close(below)
    except BaseException:  # an interrupt, when the file is open already
        if fd >= 0:
            os.close(fd)
        raise
    return fd


def _proven(status: os.stat_result, moment: _Moment | None) -> tuple[int, ...] | None:
    """The proof for a file that had this status before it was read; None if it could change and still have it."""
    if moment is None or status.st_dev != moment.device:
        return None
    if moment.clock_ns - status.st_ctime_ns <= _SETTLED_NS or status.st_ctime_ns % 1_000_000_000 == 0:
        return None
    return status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size, status.st_dev


def _moment(folder: int) -> _Moment | None:
    if _fstatfs is None:
        return None
    answer = ctypes.create_string_buffer(512)  # a struct statfs is smaller everywhere, and begins with the type
    if _fstatfs(folder, answer) != 0 or int.from_bytes(answer.raw[:4], sys.byteorder) not in _LOCAL:
        return None
    return _Moment(os.fstat(folder).st_dev, time.clock_gettime_ns(_CLOCK))
