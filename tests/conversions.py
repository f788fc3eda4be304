"""Checkpoints to be converted, and what must be the same afterwards."""

from pathlib import Path
from typing import Any

import numpy as np

import ckptmgr
from ckptmgr import Checkpoint, CheckpointManager, open_checkpoint

FORMATS = ("hdf5", "npz", "safetensors", "tf_bundle")
FILES = {"hdf5": "model.h5", "npz": "model.npz", "safetensors": "model.safetensors", "tf_bundle": "model.ckpt"}


def state() -> dict[str, Any]:
    """A state with a bit of all that every format holds."""
    random = np.random.default_rng(3)
    w = random.normal(size=(50, 30)).astype(np.float32)
    w[0, 0], w[0, 1] = np.nan, -0.0
    return {
        "model": {"w": w, "layers": [{"b": np.arange(7, dtype=np.int64)}, {"b": np.ones((2, 0), np.float64)}]},
        "head": w,
        "half": random.normal(size=(3, 4)).astype("bfloat16"),
        "mask": np.array([True, False]),
        "epoch": 3,
        "rate": 0.1,
        "name": "run é",
        "pair": (1, None, b"\x00"),
        7: np.uint8(9),
    }


def saved(tmp_path: Path, backend: str) -> str:
    """That state in a file of the format, with metadata."""
    path = tmp_path / "from" / FILES[backend]
    path.parent.mkdir()
    ckptmgr.save(path, state(), backend=backend, metadata={"note": "x", "deep": {"a": [1, None]}})
    return str(path)


def at(path: Path | str) -> Checkpoint:
    """The checkpoint at a path."""
    return open_checkpoint(path)


def assert_same(one: Any, other: Any) -> None:
    """Equal to the bit, types of containers and plain values included."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    else:
        assert one == other


def manager(folder: Path, backend: str = "safetensors") -> CheckpointManager:
    """The manager of a run."""
    return CheckpointManager(folder, backend=backend)
