"""A tensor's elements in a file without a name, with its axes in another order, for who reads it across the order it has.

The law: the tensor is read once, in pieces of bounded size, and every box of it takes about as many bytes as it has, however its
elements lie. The file is in the folder for large temporary files, as large as the tensor, and gone with this object.
"""

import math
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ckptmgr.box import Box

_Array: TypeAlias = np.ndarray[Any, Any]

LEAST_RUN_NBYTES = 1 << 14  # what is read at once, for a tensor that is not too large for it
MOST_PIECE_NBYTES = 8 << 20


class _Block(NamedTuple):
    """A piece of the tensor, and where in the file it is, with its axes in the order of the file."""

    box: Box
    offset: int


class Scratch:
    """The elements of a tensor of that shape and dtype, as ``pieces`` have them, in any order and together all of it."""

    def __init__(self, dtype: np.dtype[Any], axes: Sequence[int], pieces: Iterable[tuple[Box, _Array]]) -> None:
        """Raises OSError: there is no room for temporary files."""
        self._dtype, self._axes = dtype, tuple(axes)
        self._blocks: list[_Block] = []
        file = tempfile.TemporaryFile(buffering=0, dir=_folder())  # noqa: SIM115 - it stays as long as this object
        self.close: Callable[[], object] = weakref.finalize(self, file.close)
        self._fd, offset = file.fileno(), 0
        for box, array in pieces:
            turned = np.ascontiguousarray(array.transpose(self._axes))
            try:
                _write(self._fd, turned, offset)
            except OSError as error:
                text = f"{error.strerror}: a tensor that is turned needs room for a copy of it here, or where TMPDIR says"
                raise OSError(error.errno, text, _folder()) from error
            self._blocks.append(_Block(box, offset))
            offset += turned.nbytes

    def read(self, box: Box) -> _Array:
        """The elements in a box of the tensor; its axes are in the tensor's order, not in that of memory."""
        found = np.empty([box.shape[axis] for axis in self._axes], self._dtype)
        for block in self._blocks:
            if (part := box.overlap(block.box)) is not None:
                inside = _turned(part.relative_to(box), self._axes)
                found[inside.slices] = self._stored(block, part)
        return found.transpose(np.argsort(self._axes))

    def _stored(self, block: _Block, part: Box) -> _Array:
        box, shape = _turned(part.relative_to(block.box), self._axes), _turned(block.box, self._axes).shape
        found = np.empty(box.shape, self._dtype)
        raw, at = found.reshape(-1).view(np.uint8), 0
        for first, count in box.runs(shape):
            stop = at + count * self._dtype.itemsize
            _fill(self._fd, raw[at:stop], block.offset + first * self._dtype.itemsize)
            at = stop
        return found


def piece_nbytes(nbytes: int, box_nbytes: int) -> int:
    """Bytes of the pieces in which a tensor of ``nbytes`` is to come that will be read in boxes of ``box_nbytes``."""
    return min(max(box_nbytes, math.isqrt(nbytes * LEAST_RUN_NBYTES)), max(box_nbytes, MOST_PIECE_NBYTES))


def _folder() -> str:
    """Where large temporary files go: as TMPDIR or the program says, else on a disk: ``/tmp`` is in memory on many systems."""
    usual = tempfile.gettempdir()
    is_chosen = any(map(os.environ.get, ("TMPDIR", "TEMP", "TMP"))) or usual != "/tmp"
    return usual if is_chosen or not os.access("/var/tmp", os.W_OK | os.X_OK) else "/var/tmp"


def _turned(box: Box, axes: Sequence[int]) -> Box:
    return Box(tuple(box.start[axis] for axis in axes), tuple(box.stop[axis] for axis in axes))


def _write(fd: int, array: _Array, offset: int) -> None:
    raw = array.reshape(-1).view(np.uint8)
    while raw.size:
        done = os.pwrite(fd, raw.data, offset)
        raw, offset = raw[done:], offset + done


def _fill(fd: int, raw: _Array, offset: int) -> None:
    while raw.size:
        done = os.preadv(fd, [raw.data], offset)
        if not done:
            raise EOFError("a temporary file is shorter than what was written to it")
        raw, offset = raw[done:], offset + done
