"""Conversions from and to storage that is no disk."""

from pathlib import Path

import numpy as np
import pytest

import ckptmgr
from ckptmgr import convert
from ckptmgr.errors import CorruptCheckpointError

STATE = {"a": np.arange(700_000.0), "b": {"c": np.ones((3, 5), np.float32)}, "n": 4}


@pytest.mark.parametrize("to", ["hdf5", "npz", "safetensors", "tf_bundle"])
def test_either_side_may_be_a_url(tmp_path: Path, to: str) -> None:
    there = f"memory://{tmp_path.name}-{to}"
    ckptmgr.save(f"{there}/from/cp", STATE, backend="tf_bundle")

    convert(f"{there}/from/cp", f"{there}/new/", to=to)
    report = convert(f"{there}/new", f"{tmp_path}/", to="npz")

    found = ckptmgr.load(tmp_path / "model.npz")
    assert found["n"] == 4
    np.testing.assert_array_equal(found["a"], STATE["a"])
    assert report.lost == {}


def test_a_set_that_fails_leaves_no_file_where_nothing_can_be_staged(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "cp", {"a": np.zeros(5000), "b": np.ones(5000)}, backend="tf_bundle")
    data = tmp_path / "cp.data-00000-of-00001"
    raw = bytearray(data.read_bytes())
    raw[60_000] ^= 1
    data.write_bytes(raw)
    new = f"memory://{tmp_path.name}-set"

    with pytest.raises(CorruptCheckpointError, match="'b'"):
        convert(tmp_path / "cp", f"{new}/x/", to="safetensors", max_file_nbytes=40_000)

    with pytest.raises(FileNotFoundError):
        ckptmgr.open_checkpoint(f"{new}/x")
