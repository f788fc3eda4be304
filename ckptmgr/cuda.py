"""Tensors of torch on a GPU, copied to the host beside the work that goes on there.

The law: the copy comes after all that the current stream was asked to do before, and before all that it is asked for later.
So the tensor may be changed in place, or freed, at once.
"""

import functools
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from ckptmgr.adapter import Array

_pinned: set[int] = set()  # addresses


def copy(tensor: Any, out: Any, array: Array) -> Callable[[], object]:
    """Begins to copy a tensor into ``out``, one on the host, the memory of ``array``; gives what waits for the copy.

    The array's memory is pinned, and all that it is a part of: see `_memory`.

    Raises:
        RuntimeError: the memory cannot be pinned, or an error of the GPU.
    """
    cuda = sys.modules["torch"].cuda
    _pin(_memory(array))
    current, side = cuda.current_stream(tensor.device), _side_stream(tensor.device)
    side.wait_stream(current)
    with cuda.stream(side):
        out.copy_(tensor, non_blocking=True)
        copied = side.record_event()
    tensor.record_stream(side)  # if it is freed before, its memory is not given to others
    current.wait_event(copied)
    wait: Callable[[], object] = copied.synchronize
    return wait


def _memory(array: Array) -> Array:
    """The whole that an array is a view of: pages can be pinned only once, so all arrays of a slab are pinned with it."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _pin(memory: Array) -> None:
    """Pins memory until it is freed, so that a GPU copies into it by itself."""
    address = memory.__array_interface__["data"][0]
    if address in _pinned:
        return
    cuda = sys.modules["torch"].cuda
    cuda.check_error(int(cuda.cudart().cudaHostRegister(address, memory.nbytes, 0)))
    _pinned.add(address)
    weakref.finalize(memory, _unpin, address).atexit = False


def _unpin(address: int) -> None:
    _pinned.discard(address)
    sys.modules["torch"].cuda.cudart().cudaHostUnregister(address)


@functools.cache
def _side_stream(device: Any) -> Any:
    return sys.modules["torch"].cuda.Stream(device)
