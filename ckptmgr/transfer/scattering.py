"""Bytes of a file that hold many small tensors, copied to the arrays that they are for."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ckptmgr.spec import TensorSpec

_Array: TypeAlias = np.ndarray[Any, Any]


class Cells(NamedTuple):
    """Of each tensor its offset in the file, its bytes, and the bytes of an element."""

    offsets: _Array
    sizes: _Array
    steps: _Array


def scatter(part: _Array, offset: int, cells: Cells, specs: Sequence[TensorSpec], arrays: Sequence[Any]) -> None:
    """Copies tensors to arrays of their shapes and dtypes, from the bytes that lie at ``offset`` in their file."""
    flat: dict[str, _Array] = {}
    # Elements lie at multiples of their size in the file, and so from the first such place in the part on.
    starts = ((cells.offsets - offset) // cells.steps).tolist()
    for spec, array, start, count in zip(specs, arrays, starts, (cells.sizes // cells.steps).tolist(), strict=True):
        whole = flat.get(spec.dtype)
        if whole is None:
            dtype = array.dtype
            lead = -offset % dtype.itemsize
            end = lead + (part.nbytes - lead) // dtype.itemsize * dtype.itemsize
            whole = flat[spec.dtype] = part[lead:end].view(dtype)
        found = whole[start : start + count]
        array[...] = found if len(spec.shape) == 1 else found.reshape(spec.shape)
