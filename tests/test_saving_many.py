"""What many small tensors take of memory while a save is prepared: fresh pages are most of what a first save costs."""

import tracemalloc
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest

from ckptmgr import saving, tree, treefile
from ckptmgr.saving import Plan
from ckptmgr.table import Table
from ckptmgr_safetensors import SafetensorsBackend

T = TypeVar("T")

COUNT = 20_000


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return {f"block.{index}.weight": np.zeros(1, np.float32) for index in range(COUNT)}


def plan(state: dict[str, np.ndarray]) -> Plan:
    return saving.plan(tree.flatten(state), SafetensorsBackend(), stem="model")


def peak(call: Callable[[], object]) -> float:
    """Bytes for each tensor that a call takes at once, in a process that has made it before."""
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / COUNT
    finally:
        tracemalloc.stop()


def test_flattening_takes_little_more_than_what_it_gives(state: dict[str, np.ndarray]) -> None:
    assert peak(lambda: tree.flatten(state)) < 280


def test_a_layout_takes_little_more_than_its_parts_and_its_header(state: dict[str, np.ndarray]) -> None:
    flat = tree.flatten(state)

    assert peak(lambda: saving.plan(flat, SafetensorsBackend(), stem="model")) < 280


def test_a_tree_file_takes_little_more_than_its_columns_and_its_text(state: dict[str, np.ndarray]) -> None:
    made = plan(state)
    file = made.layout.files[0]
    rows = Table.of(list(saving._rows(made, {file.name: {"crc32c": [1_000_000_000] * len(file.pieces)}})))

    assert peak(lambda: treefile.encode(made.flat.skeleton, rows, {})) < 180
