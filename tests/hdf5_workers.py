"""Files for tests of the worker, and programs to run in place of the one with h5py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ckptmgr.backend import Box
from ckptmgr.storage import Folder
from ckptmgr.storage.posix import PosixStore
from ckptmgr_hdf5 import process
from ckptmgr_hdf5.blocks import Reader
from ckptmgr_hdf5.origin import Origin
from ckptmgr_hdf5.worker import Worker

ORIGINAL = process.PROGRAM


def written(path: Path, fill: Callable[[h5py.File], Any], **options: Any) -> Path:
    """A file by h5py, with what ``fill`` puts in it."""
    with h5py.File(path, "w", **options) as file:
        fill(file)
    return path


def worker(path: Path, **options: Any) -> Worker:
    """A worker for that file."""
    reader = Reader.of_file(Folder(PosixStore(path.parent)), path.name)
    return Worker(reader, Origin(path.name, str(path)), **options)


def read(path: Path, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A whole dataset, by a worker of its own."""
    out = np.empty(shape, dtype)
    with worker(path) as asked:
        asked.read(name, Box.whole(shape), out)
    return out


def before(line: str) -> str:
    """The program with h5py, after that line; ``child`` is its module."""
    return ORIGINAL.replace("child.main()", f"{line}\nchild.main()")


def instead(lines: str) -> str:
    """A program that greets, hears the first request, and then runs those lines; ``asker`` is who asked."""
    start = """
import socket
GROUP = ["group", None, ""]
asker = child.Asker(socket.socket(fileno=0))
asker.send({"end": ""})
asker.receive()
asker.receive()
"""
    return ORIGINAL.replace("child.main()", start + lines)
