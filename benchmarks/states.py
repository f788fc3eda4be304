"""The states that benchmarks save: sizes and shapes as real training has them, filled with noise."""

import ml_dtypes
import numpy as np

State = dict[str, np.ndarray]


def transformer(nbytes: int, *, seed: int = 0) -> State:
    """About ``nbytes`` of bfloat16: an embedding, and layers of four square, two wide and one small tensor each."""
    rng = np.random.default_rng(seed)
    width = max(int((nbytes / 2 / 24 / 12) ** 0.5) // 64 * 64, 64)
    shapes = {"embedding": (8 * width, width)}
    layer = 0
    while sum(2 * int(np.prod(shape)) for shape in shapes.values()) < nbytes:
        name = f"layers.{layer}"
        shapes |= {f"{name}.attention.{part}": (width, width) for part in "qkvo"}
        shapes |= {f"{name}.mlp.up": (width, 4 * width), f"{name}.mlp.down": (4 * width, width), f"{name}.norm": (width,)}
        layer += 1
    return {name: _noise(rng, shape).view(ml_dtypes.bfloat16) for name, shape in shapes.items()}


def small(count: int, *, seed: int = 0) -> State:
    """``count`` float32 tensors of 1 to 4 KiB."""
    rng = np.random.default_rng(seed)
    return {f"block.{i}.weight": rng.random(int(rng.integers(256, 1025)), np.float32) for i in range(count)}


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(0, 1 << 16, shape, dtype=np.uint16)
