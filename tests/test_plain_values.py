"""What was saved is read again, however much of it is plain values, or it is not saved."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptmgr

FORMATS = {"safetensors": "x.safetensors", "torch": "x.pt", "npz": "x.npz", "hdf5": "x.h5", "tf_bundle": "x"}
STATES: dict[str, Any] = {
    "numbers": [1.5] * 30_000,
    "texts": ["[{" * 10] * 30_000,
    "one text": "[{" * 500_000,
    "empty lists": [[] for _ in range(100_000)],
    "empty dicts": [{} for _ in range(100_000)],
}


@pytest.mark.parametrize("what", STATES)
@pytest.mark.parametrize("backend", FORMATS)
def test_a_file_of_many_plain_values_is_read_again(backend: str, what: str, tmp_path: Path) -> None:
    path, state = tmp_path / FORMATS[backend], {"plain": STATES[what], "w": np.ones(3)}

    ckptmgr.save(path, state, backend=backend)

    assert ckptmgr.load(path)["plain"] == STATES[what]


@pytest.mark.parametrize(("backend", "most"), [("npz", 100_000_000), ("tf_bundle", 100_000_000), ("torch", 256 << 20)])
def test_more_than_is_read_is_not_saved(backend: str, most: int, tmp_path: Path) -> None:
    state = {"text": "x" * most, "w": np.ones(3)}

    with pytest.raises(ValueError, match=f"more than the {most} that are read"):
        ckptmgr.save(tmp_path / FORMATS[backend], state, backend=backend)

    assert list(tmp_path.iterdir()) == []
