"""The nesting of a checkpoint, renamed and selected, as the skeleton of another."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptmgr
from ckptmgr import open_checkpoint
from ckptmgr.structure import Structure, structure
from ckptmgr.tree import unflatten

W, B = np.ones(3), np.zeros(2)
STATE: dict[str, Any] = {
    "net": {"w": W, "layers": [{"b": B}, {"b": B + 1}]},
    "tied": W,
    "pair": (1, None),
    "rng": np.random.default_rng(1),
}


def of(tmp_path: Path, **options: Any) -> tuple[Structure, Any]:
    ckptmgr.save(tmp_path / "a.h5", STATE, backend="hdf5")
    with open_checkpoint(tmp_path / "a.h5") as opened:
        found = structure(opened.source, opened.skeleton, **options)
        tensors = {name: opened.read(own) for name, own in found.names.items()}
        return found, unflatten(found.skeleton, tensors, found.aliases)


def test_without_rules_the_skeleton_is_the_same(tmp_path: Path) -> None:
    found, _ = of(tmp_path)

    with open_checkpoint(tmp_path / "a.h5") as opened:
        assert found.skeleton == opened.skeleton
    assert found.scalars == {("pair", 0): 1}
    assert found.aliases == {"tied": "net/w"}


def test_rules_move_leaves_and_keep_containers_and_generators(tmp_path: Path) -> None:
    found, state = of(tmp_path, rules=[("net/", "model/")])

    assert list(state) == ["model", "tied", "pair", "rng"]
    assert [set(layer) for layer in state["model"]["layers"]] == [{"b"}, {"b"}]
    assert state["pair"] == (1, None)
    assert state["rng"].random() == np.random.default_rng(1).random()
    assert state["tied"] is state["model"]["w"]
    assert found.names["model/w"] == "net/w"


def test_globs_leave_only_what_they_match(tmp_path: Path) -> None:
    found, state = of(tmp_path, select=["net/layers/1/*", "pair/0"])

    assert list(found.names.values()) == ["net/layers/1/b"]
    assert found.left_out == ["net/w", "net/layers/0/b"]
    assert state["net"]["layers"][1]["b"].tolist() == [1.0, 1.0]
    assert state["pair"] == {0: 1}


def test_a_tied_tensor_whose_first_name_is_left_out_takes_the_next(tmp_path: Path) -> None:
    found, state = of(tmp_path, select="tied")

    assert found.names == {"tied": "net/w"}
    assert found.aliases == {}
    assert state["tied"].tolist() == W.tolist()


def test_two_leaves_do_not_get_one_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two values"):
        of(tmp_path, rules=[("net/layers/0/b", "net/layers/1/b")])
