"""A slice of a tensor that lies in a file as raw bytes, read window by window: what readers of formats share."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ckptmgr.box import Box
from ckptmgr.storage import Folder

_GAP_NBYTES = 64 * 1024  # what lies between wanted bytes is read through up to here: cheaper than another request


def read_raw(folder: Folder, file: str, offset: int, shape: Sequence[int], box: Box, out: np.ndarray[Any, Any]) -> None:
    """Fills ``out`` with ``box`` of the tensor of that shape whose little-endian C-order bytes start at ``offset``.

    ``out`` has the box's shape and the tensor's dtype, in any memory and byte order. At most a window of the store is
    held besides it.

    Raises:
        EOFError: the file ends inside the tensor.
    """
    dtype = out.dtype.newbyteorder("<")
    for window in _widened(box, shape, dtype.itemsize).chunks(max(folder.store.window_nbytes // dtype.itemsize, 1)):
        wanted = window.overlap(box)
        if wanted is None:
            continue
        # Bytes are copied as integers: whatever they mean, a copy must not change one.
        flat, filled = np.empty(window.size * dtype.itemsize, np.uint8), 0
        for first, count in window.runs(shape):
            nbytes = count * dtype.itemsize
            folder.read_into(file, offset + first * dtype.itemsize, [flat[filled : filled + nbytes]])
            filled += nbytes
        out[wanted.relative_to(box).slices] = flat.view(dtype).reshape(window.shape)[wanted.relative_to(window).slices]


def _widened(box: Box, shape: Sequence[int], itemsize: int) -> Box:
    """``box`` with its inner dimensions made whole as long as that adds no larger gap than is read through."""
    axis = len(shape)
    while axis > 0 and math.prod(shape[axis - 1 :]) * itemsize <= _GAP_NBYTES:
        axis -= 1
    if box.size == 0:
        return box
    return Box((*box.start[:axis], *[0] * (len(shape) - axis)), (*box.stop[:axis], *shape[axis:]))
