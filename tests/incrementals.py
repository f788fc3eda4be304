"""Runs of incremental saves for tests: a base that stays, an adapter that every step changes, and what they must read as."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np

from ckptmgr import CheckpointManager, incremental
from ckptmgr.storage import Folder, PosixStore


def state(step: int, *, base: int = 0, size: int = 1 << 19) -> dict:
    """A base of ``6 * size`` bytes that only ``base`` changes, and an adapter of ``2 * size`` that every step changes."""
    frozen = np.random.default_rng(base).integers(0, 1 << 16, (3, size), np.uint16).view(ml_dtypes.bfloat16)
    return {"base": {"w": frozen[:2], "v": frozen[2]}, "adapter": {"a": np.full(size // 2, step, np.float32)}, "step": step}


def same(found: dict, step: int, base: int = 0) -> bool:
    """Whether a restored state is that of the step."""
    expected = state(step, base=base, size=found["base"]["v"].size)
    arrays = all(found["base"][key].tobytes() == expected["base"][key].tobytes() for key in "wv")
    return arrays and np.array_equal(found["adapter"]["a"], expected["adapter"]["a"]) and found["step"] == step


def manager_of(store: Any, **options: Any) -> CheckpointManager:
    """A manager that saves incrementally into any store."""
    with mock.patch("ckptmgr.manager.open_folder", return_value=Folder(store)):
        return CheckpointManager("run", incremental=True, **options)


def file_of(manager: CheckpointManager, step: int, tensor: str) -> Path:
    """The file that has the first bytes of a tensor."""
    with manager.open(step) as checkpoint:
        extent = checkpoint.extents(tensor)[0]
        return Path(extent.folder.location(extent.file))


@contextmanager
def small_groups() -> Iterator[None]:
    """Lets every top-level key have a file, however small."""
    with mock.patch.object(incremental, "GROUP_NBYTES", 1):
        yield


@contextmanager
def no_links() -> Iterator[None]:
    """A disk that refuses hard links between steps."""
    with mock.patch.object(PosixStore, "link", return_value=False):
        yield
