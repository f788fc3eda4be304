"""Views of sources: what they leave alone keeps its place in a file, what they change is read."""

from pathlib import Path

import numpy as np

import ckptmgr
from ckptmgr import Box, open_checkpoint
from ckptmgr.views import Recast, Renamed

W = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_a_renamed_tensor_lies_where_it_lay(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "a.safetensors", {"w": W, "v": W + 1})

    with open_checkpoint(tmp_path / "a.safetensors") as opened, Renamed(opened.source, {"x": "w"}) as view:
        assert list(view.specs) == ["x"]
        assert view.extents("x") == opened.source.extents("w")
        np.testing.assert_array_equal(view.read("x"), W)


def test_a_recast_tensor_has_no_place_and_the_others_keep_theirs(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "a.safetensors", {"w": W, "v": W + 1})

    with open_checkpoint(tmp_path / "a.safetensors") as opened, Recast(opened.source, {"w": "float16"}) as view:
        assert view.specs["w"].dtype == "float16"
        assert (len(view.extents("w")), len(view.extents("v"))) == (0, 1)
        assert view.read("w", Box((1, 0), (2, 4))).tolist() == [[4.0, 5.0, 6.0, 7.0]]
        out = np.empty((3, 4), np.float16)
        assert view.read("w", out=out) is out
        np.testing.assert_array_equal(out, W)
