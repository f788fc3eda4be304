"""Rules for names: what they match, what they make of a checkpoint, and what a slip is told."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptmgr
from ckptmgr import CheckpointManager, CorruptCheckpointError, Exact, Glob, Layers, Rules, convert, load, open_checkpoint
from ckptmgr.rules import Prefixes
from ckptmgr.rulesets import RECORD

NAMES = ["net/a/w", "net/a/b", "net/b/w", "head/w"]


def saved(tmp_path: Path, names: list[str] = NAMES) -> Path:
    ckptmgr.save(tmp_path / "a.safetensors", {name: np.full(2, index) for index, name in enumerate(names)})
    return tmp_path / "a.safetensors"


def names_after(tmp_path: Path, rename: Any, names: list[str] = NAMES) -> list[str]:
    convert(saved(tmp_path, names), tmp_path / "b.npz", rename=rename, overwrite=True)
    return [*load(tmp_path / "b.npz")]


@pytest.mark.parametrize(
    ("rename", "expected"),
    [
        ([("net/", "model/")], ["model/a/w", "model/a/b", "model/b/w", "head/w"]),
        ([Glob("net/*/w", "*.weight")], ["a.weight", "net/a/b", "b.weight", "head/w"]),
        ([(re.compile(r"^(\w+)/(\w)"), r"\2/\1")], ["a/net/w", "a/net/b", "b/net/w", "w/head"]),
        ({"head/w": "w"}, ["net/a/w", "net/a/b", "net/b/w", "w"]),
        ([str.upper, {"HEAD/W": "x"}], ["NET/A/W", "NET/A/B", "NET/B/W", "x"]),
    ],
)
def test_rules_of_every_form_give_new_names_and_are_undone(tmp_path: Path, rename: Any, expected: list[str]) -> None:
    assert names_after(tmp_path, rename) == expected

    convert(tmp_path / "b.npz", tmp_path / "c.npz", rename=Rules.inverted_from(tmp_path / "b.npz"))
    assert {name: value.tolist() for name, value in load(tmp_path / "c.npz").items()} == {
        name: [index, index] for index, name in enumerate(NAMES)
    }


@pytest.mark.parametrize(
    ("rule", "names", "expected"),
    [
        ("strip-module", ["module.a.w", "module.b"], ["a.w", "b"]),
        ("strip-compiled", ["_orig_mod.a.w", "x._orig_mod.b"], ["a.w", "x.b"]),
        ("tf-attributes", ["a/kernel/.ATTRIBUTES/VARIABLE_VALUE", "b"], ["a/kernel", "b"]),
    ],
)
def test_built_in_sets_for_names(tmp_path: Path, rule: str, names: list[str], expected: list[str]) -> None:
    assert names_after(tmp_path, rule, names) == expected


@pytest.mark.parametrize(
    ("rename", "told"),
    [
        ([("nett/", "x/")], r"'nett/' to 'x/' matches no name.*near: 'net/"),
        ([(re.compile("zzz"), "")], "'zzz' to '' matches no name"),
        ([Glob("nott/*", "*")], "glob matches no name: 'nott/"),
        ({"head/v": "x"}, r"exact matches no name: 'head/v' \(near: 'head/w'"),
        ({"head/w": "net/a/w"}, "two values the name 'net/a/w'"),
        ("keras-to-troch", r"near: 'keras-to-torch'"),
        ([("a", "b"), Rules(select=("x",)), Rules(select=("y",))], "say select"),
    ],
)
def test_slips_are_told_with_near_names(tmp_path: Path, rename: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        names_after(tmp_path, rename)

    assert not (tmp_path / "b.npz").exists()


def test_rules_may_say_what_to_select_and_to_cast(tmp_path: Path) -> None:
    rules = Rules((("net/", ""),), select=("a/*",), cast={"*/w": "int8"})

    convert(saved(tmp_path), tmp_path / "b.npz", rename=rules)

    found = load(tmp_path / "b.npz")
    assert {name: value.dtype.name for name, value in found.items()} == {"a/w": "int8", "a/b": "int64"}
    with pytest.raises(ValueError, match="say cast"):
        convert(saved(tmp_path), tmp_path / "c.npz", rename=rules, cast={"*": "int8"})


def test_a_step_of_a_run_keeps_its_rules_however_long(tmp_path: Path) -> None:
    names = [f"layer{index}/{index * 7919 % 1000}" for index in range(300)]
    rules = {name: name.replace("layer", "x")[::-1] for name in names}

    convert(saved(tmp_path, names), tmp_path / "run", step=1, rename=rules)

    with CheckpointManager(tmp_path / "run").open(1) as opened:
        convert(opened, tmp_path / "c.npz", rename=Rules.inverted_from(opened))
    assert [*load(tmp_path / "c.npz")] == names


def test_a_prefix_is_kept_as_one_pair(tmp_path: Path) -> None:
    names_after(tmp_path, [("net/", "model.")])

    with open_checkpoint(tmp_path / "b.npz") as opened:
        assert opened.metadata[RECORD] == {"version": 1, "stages": [{"prefixes": [["net/", "model."]]}]}


def test_what_was_made_without_rules_has_none_and_a_damaged_record_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no rules made it"):
        Rules.inverted_from(saved(tmp_path))
    for index, bad in enumerate(
        [3, {"version": 2}, {"version": 1, "stages": [{"names": [["a"]]}]}, {"version": 1, "stages": [{}]}]
    ):
        ckptmgr.save(tmp_path / f"{index}.npz", {"a": np.ones(1)}, metadata={RECORD: bad}, backend="npz")
        with pytest.raises(CorruptCheckpointError, match=re.escape(RECORD)):
            Rules.inverted_from(tmp_path / f"{index}.npz")


def test_rules_for_layers_and_names_in_turn_are_undone(tmp_path: Path) -> None:
    state = {"net": {"fc": {"kernel": np.arange(6.0).reshape(2, 3), "bias": np.ones(3)}}, "epoch": 4}
    ckptmgr.save(tmp_path / "a.npz", state, backend="npz")

    convert(
        tmp_path / "a.npz",
        tmp_path / "b.npz",
        rename=[("net/", "m/"), Layers("keras-to-torch", under="m/"), Exact({"m/fc.bias": "bias"})],
    )
    convert(tmp_path / "b.npz", tmp_path / "c.npz", rename=Rules.inverted_from(tmp_path / "b.npz"))

    there, back = load(tmp_path / "b.npz"), load(tmp_path / "c.npz")
    assert there["m"]["fc.weight"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert back["net"]["fc"]["kernel"].tolist() == state["net"]["fc"]["kernel"].tolist()  # type: ignore[index]
    assert (there["epoch"], back["epoch"]) == (4, 4)


@given(st.text("ab*", max_size=6), st.text("ab", max_size=8))
def test_a_glob_matches_what_a_regex_of_it_does(glob: str, name: str) -> None:
    found = Glob(glob, "").match(name)

    expected = re.fullmatch(".*?".join(map(re.escape, glob.split("*"))), name)
    assert (found is None) == (expected is None)
    if found is not None:
        first, *others = glob.split("*")
        assert first + "".join(text + other for text, other in zip(found, others, strict=True)) == name


def test_the_longest_prefix_counts() -> None:
    assert [Prefixes({"a.": "x.", "a.b.": "y."})(name) for name in ("a.c", "a.b.c", "b")] == ["x.c", "y.c", "b"]


def test_a_glob_cannot_give_more_than_it_found() -> None:
    with pytest.raises(ValueError, match="fewer"):
        Glob("a/*", "*/*")
