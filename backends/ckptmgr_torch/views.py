"""Tensors whose elements do not lie in C order: transposed, cut out of others, expanded, or of the other byte order.

They are read in pieces that no more memory than a window of the store is held for.
"""

from typing import Any, TypeAlias

import numpy as np

from ckptmgr.backend import Box, Folder, read_raw
from ckptmgr_torch.values import Tensor

Array: TypeAlias = np.ndarray[Any, Any]


def read_view(folder: Folder, file: str, start: int, tensor: Tensor, box: Box, out: Array, *, is_big: bool) -> None:
    """Fills ``out`` with ``box`` of the tensor whose storage starts at byte ``start`` of the file.

    ``out`` has the box's shape and the tensor's dtype. ``is_big``: its bytes are in big-endian order.

    Raises:
        EOFError: the file ends inside the storage.
    """
    if box.size == 0:
        return
    if is_big:
        swapped = np.empty(out.shape, out.dtype.newbyteorder("="))
        read_view(folder, file, start, tensor, box, swapped, is_big=False)
        _swap(swapped)
        out[...] = swapped
        return
    axes = range(len(tensor.shape))
    # An axis along which nothing changes is read once, and others in the order in which they lie.
    real = [axis for axis in axes if tensor.strides[axis] and tensor.shape[axis] > 1]
    kept = sorted(real, key=lambda axis: -tensor.strides[axis])
    rest = [axis for axis in axes if axis not in kept]
    first = out[*(slice(None) if axis in kept else slice(0, 1) for axis in axes), ...]  # a view, of rank 0 as well
    shape, strides = [tensor.shape[axis] for axis in kept], [tensor.strides[axis] for axis in kept]
    cut = Box(tuple(box.start[axis] for axis in kept), tuple(box.stop[axis] for axis in kept))
    inner, order = np.squeeze(first, tuple(rest)), sorted(kept)
    target = inner.transpose([order.index(axis) for axis in kept])
    if Tensor(tensor.storage, tensor.dtype, tensor.offset, tuple(shape), tuple(strides)).is_contiguous:
        read_raw(folder, file, start + tensor.start, shape, cut, target)
    else:
        _read_spans(folder, file, start + tensor.start, strides, cut, target)
    if first.shape != out.shape:
        out[...] = first


def _read_spans(folder: Folder, file: str, start: int, strides: list[int], box: Box, out: Array) -> None:
    """Fills ``out`` from all bytes between its first element and its last, halved until that is no more than a window."""
    itemsize = out.dtype.itemsize
    span = 1 + sum((size - 1) * stride for size, stride in zip(box.shape, strides, strict=True))
    axis = next((axis for axis, size in enumerate(box.shape) if size > 1), None)
    if axis is not None and span * itemsize > max(folder.store.window_nbytes, itemsize):
        middle = (box.start[axis] + box.stop[axis]) // 2
        for part in _halves(box, axis, middle):
            _read_spans(folder, file, start, strides, part, out[part.relative_to(box).slices])
        return
    raw = np.empty(span * itemsize, np.uint8)
    at = start + sum(first * stride for first, stride in zip(box.start, strides, strict=True)) * itemsize
    folder.read_into(file, at, [raw])
    steps = [stride * itemsize for stride in strides]
    out[...] = np.ndarray(box.shape, out.dtype.newbyteorder("<"), raw, 0, steps)


def _halves(box: Box, axis: int, middle: int) -> tuple[Box, Box]:
    stop, start = list(box.stop), list(box.start)
    stop[axis] = start[axis] = middle
    return Box(box.start, tuple(stop)), Box(tuple(start), box.stop)


def _swap(array: Array) -> None:
    """Turns the bytes of each number around, of complex ones those of each part."""
    width = array.dtype.itemsize // (2 if array.dtype.kind == "c" else 1)
    if width > 1:
        array.reshape(-1).view(f"u{width}").byteswap(inplace=True)
