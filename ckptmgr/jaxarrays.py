"""What there is to ask of jax arrays, in ways that are quick enough for many. Jax itself is found in `sys.modules`."""

import functools
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from ckptmgr.adapter import Array


@functools.lru_cache(maxsize=256)
def is_local(sharding: Any) -> bool:
    """Whether all devices of a sharding are of this process: jax goes through them each time."""
    return bool(sharding.is_fully_addressable)


@functools.lru_cache(maxsize=256)
def is_single(sharding: Any) -> bool:
    """Whether an array of that sharding is one buffer."""
    return len(sharding.device_set) == 1


def shardings(leaves: Sequence[Any]) -> Iterable[Any]:
    """Those of the arrays; mostly a few, and to hash one takes longer than to tell that it is the same."""
    first = leaves[0].sharding
    others = {id(sharding): sharding for leaf in leaves if (sharding := leaf.sharding) is not first}
    return [first, *others.values()]


TAKE = "_single_device_array_to_np_array_did_copy"  # of a jax array; it may go one day


def values(leaves: Sequence[Any]) -> list[Array]:
    """The values of arrays of one exact type and one buffer each, read-only. Jax's own way takes a third of the public ones."""
    found = list(map(getattr(type(leaves[0]), TAKE), leaves))
    for array, is_copy in found:
        if is_copy:  # of a device; jax has seen to views of its own memory
            array.setflags(write=False)
    return [array for array, _ in found]


def is_key(leaf: Any) -> bool:
    """Whether it is an array of typed keys."""
    if isinstance(dtype := leaf.dtype, np.dtype):  # as nearly all are, and jax takes 2 µs to tell
        return False
    jax = sys.modules["jax"]
    return bool(jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key))


def impl(leaf: Any) -> Any:
    """Which kind of keys they are. A leaf without values is only told inside of a traced function."""
    jax = sys.modules["jax"]
    found: list[Any] = []
    jax.eval_shape(lambda keys: found.append(jax.random.key_impl(keys)), leaf)
    return found[0]


def wide(array: Array) -> AbstractContextManager[Any]:
    """Where jax takes 64-bit elements as they are, whatever its configuration."""
    jax = sys.modules["jax"]
    if array.dtype.name not in ("int64", "uint64", "float64", "complex128"):
        return nullcontext()
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else sys.modules["jax.experimental"].enable_x64
    context: AbstractContextManager[Any] = enable(True)
    return context
