"""The states that benchmarks save: sizes and shapes as real training has them, filled with noise."""

import sys
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ckptmgr.checksum import crc32c

MIB = 1 << 20
State = dict[str, np.ndarray]


def transformer(nbytes: int, *, seed: int = 0) -> State:
    """About ``nbytes`` of bfloat16: an embedding, and layers of four square, two wide and one small tensor each.

    256 MiB are some 150 tensors.
    """
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 1 << 16, shape, np.uint16).view(ml_dtypes.bfloat16) for name, shape in shapes(nbytes).items()}


def shapes(nbytes: int) -> dict[str, tuple[int, ...]]:
    """The shapes of `transformer`."""
    width = max(round((nbytes / 2 / 24 / 12) ** 0.5 / 64) * 64, 64)
    found: dict[str, tuple[int, ...]] = {"embedding": (8 * width, width)}
    layer = 0
    while sum(2 * int(np.prod(shape)) for shape in found.values()) < nbytes:
        name = f"layers.{layer}"
        found |= {f"{name}.attention.{part}": (width, width) for part in "qkvo"}
        found |= {f"{name}.mlp.up": (width, 4 * width), f"{name}.mlp.down": (4 * width, width), f"{name}.norm": (width,)}
        layer += 1
    return found


def small(count: int, *, seed: int = 0) -> State:
    """``count`` float32 tensors of 1 to 4 KiB."""
    rng = np.random.default_rng(seed)
    return {f"block.{i}.weight": rng.random(int(rng.integers(256, 1025)), np.float32) for i in range(count)}


def repeated(nbytes: int, *, tensor_nbytes: int = 64 * MIB) -> State:
    """``nbytes`` of distinct tensors over one buffer, so that they take little memory: each starts a page after the last."""
    step = 4096
    count = max(nbytes // tensor_nbytes, 1)
    each = nbytes // count
    noise = np.random.default_rng(0).integers(0, 256, each + count * step, np.uint8)
    return {f"part.{i}": noise[i * step : i * step + each] for i in range(count)}


def blank(state: State) -> State:
    """Arrays of the same dtypes and shapes, whose memory was touched, as a model's is."""
    made = {name: np.empty(array.shape, array.dtype) for name, array in state.items()}
    for array in made.values():
        array.fill(1)
    return made


def nbytes_of(state: Mapping[str, Any]) -> int:
    """Bytes of all arrays."""
    return sum(array.nbytes for array in state.values())


def raw(array: Any) -> np.ndarray:
    """The bytes of an array of any library, without a copy where it lies in memory."""
    if not isinstance(array, np.ndarray):
        if hasattr(array, "untyped_storage"):
            array = array.detach().reshape(-1).view(sys.modules["torch"].uint8).numpy()
        else:
            array = np.asarray(array)
    return array.reshape(-1).view(np.uint8)


def read_through(state: Mapping[str, Any]) -> None:
    """Reads every byte, so that a lazy map is no advantage."""
    for array in state.values():
        crc32c(raw(array))


def check(state: State, found: Mapping[str, Any]) -> None:
    """Raises ValueError if an array of the state is not among those found, byte for byte."""
    for name, array in state.items():
        if not np.array_equal(raw(array), raw(found[name])):
            raise ValueError(f"what was restored as {name!r} is not what was saved")
