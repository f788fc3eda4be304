"""What the machine gives: the plainest system calls for the same bytes, in the same run, as what others are compared with."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import Own, Peer
from benchmarks.states import raw

WRITE = "raw write"
READ = "raw preadv"
COPY = "memcpy"
IOV_MAX = 1024


class Raw(Peer):
    """The bytes one after another in one file: ``writev`` and ``preadv`` of up to 1,024 arrays a call.

    ``like`` tells which fresh arrays, of ``np.empty``, to read into.
    """

    name = WRITE
    fills = True

    def __init__(self, name: str = WRITE, like: Mapping[str, np.ndarray] | None = None) -> None:
        self.name = name
        self.like = like

    def save(self, own: Own, folder: Path) -> None:
        descriptor = os.open(folder / "raw", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        write(descriptor, own)
        os.close(descriptor)

    def load(self, folder: Path) -> Mapping[str, Any]:
        like = self.like or {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
        own = {name: np.empty(array.shape, array.dtype) for name, array in like.items()}
        self.fill(own, folder)
        return own

    def fill(self, own: Own, folder: Path) -> None:
        descriptor = os.open(folder / "raw", os.O_RDONLY)
        read(descriptor, own)
        os.close(descriptor)

    def warm(self, folder: Path) -> None:
        """Nothing: there is nothing to warm."""


def write(descriptor: int, state: Mapping[str, np.ndarray]) -> None:
    """All bytes of the state, without fsync."""
    _all(state, lambda buffers, _: os.writev(descriptor, buffers))


def read(descriptor: int, state: Mapping[str, np.ndarray]) -> None:
    """Fills the arrays of the state."""
    _all(state, lambda buffers, offset: os.preadv(descriptor, buffers, offset))


def copy(state: Mapping[str, np.ndarray], into: Mapping[str, np.ndarray]) -> None:
    """Each array into its place, one after another."""
    for name, array in state.items():
        np.copyto(into[name], array)


def _all(state: Mapping[str, np.ndarray], call: Any) -> None:
    """Calls with lists of buffers and their offset; what the system did not take is given again."""
    buffers = [memoryview(raw(array)) for array in state.values() if array.nbytes]
    done = first = offset = 0  # buffers before `first` are done, and `done` bytes of that one
    while first < len(buffers):
        window = [buffers[first][done:], *buffers[first + 1 : first + IOV_MAX]]
        moved = call(window, offset)
        if not moved:
            raise EOFError("the file ends before the arrays are full")
        offset += moved
        done += moved
        while first < len(buffers) and done >= len(buffers[first]):
            done -= len(buffers[first])
            first += 1
