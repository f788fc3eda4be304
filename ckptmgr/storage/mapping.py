"""A file of a local disk in memory without reading it: its pages are read when they are touched.

The law: what is mapped is the caller's alone (copy on write), and never a file that somebody else can take away: behind a
network, a page that cannot be read any more would end the process (SIGBUS).
"""

import mmap
import os
import sys
from typing import Any

import numpy as np

_REMOTE = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "virtiofs",
    "afs",
    "ceph",
    "lustre",
    "gpfs",
    "beegfs",
    "glusterfs",
    "ncpfs",
}
_MOUNTS = "/proc/self/mountinfo"


def mapped(fd: int, path: str) -> np.ndarray[Any, Any]:
    """The bytes of an open file, writable; what is written stays in this memory. A map goes when its last array does.

    Raises:
        ValueError: it is not on a local disk.
    """
    if not sys.platform.startswith("linux") or (kind := _file_system(os.fstat(fd).st_dev)) is None:
        kind = ""  # where the system does not tell, it is taken for local
    if kind in _REMOTE or kind.startswith("fuse."):
        raise ValueError(f"{path!r} cannot be mapped: it is not on a local disk, but on {kind}; leave out mmap=True")
    nbytes = os.fstat(fd).st_size
    if not nbytes:
        return np.empty(0, np.uint8)
    return np.frombuffer(mmap.mmap(fd, nbytes, access=mmap.ACCESS_COPY), np.uint8)


def _file_system(device: int) -> str | None:
    """The type of the file system that is this device, or None if it is not listed."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                mount, _, kind = line.partition(" - ")
                if mount.split()[2] == number:
                    return kind.split()[0]
    except OSError:
        pass
    return None


def is_cached(fd: int, offset: int) -> bool:
    """Whether the byte at an offset is in memory, so that reading it waits for no disk; True where the system cannot tell."""
    flag = getattr(os, "RWF_NOWAIT", None)
    if flag is None or not hasattr(os, "preadv"):
        return True
    try:
        os.preadv(fd, [bytearray(1)], offset, flag)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no such read
        return True
    return True
