import re
from typing import Any

import numpy as np
import pytest
import states
from hypothesis import given

from ckptmgr.errors import StateMismatchError
from ckptmgr.renaming import near_names
from ckptmgr.rules import Layers


def test_select_restricts_both_sides() -> None:
    state = {"model": {"w": np.ones(2), "b": np.ones(1)}, "optimizer": {"m": np.ones(2)}}
    into = {"model": {"w": np.zeros(2), "b": np.zeros(1)}, "extra": np.zeros(7)}

    restored = states.restored(state, into, select="model/*")
    found = states.restored({**state, "list": [1, np.ones(1)], "e": {}}, select=["*/w", "list/1"])

    assert restored["model"]["w"].tolist() == [1, 1]
    assert restored["extra"] is into["extra"]
    assert states.same({"model": {"w": np.ones(2)}, "list": [None, np.ones(1)], "e": {}}, found)


def test_select_that_matches_nothing_is_a_slip() -> None:
    with pytest.raises(ValueError, match=r"'modle/\*' matches no name"):
        states.restored({"model": {"w": np.ones(1)}}, select="modle/*")


def test_rename_rules_apply_in_order_to_the_names_of_the_checkpoint() -> None:
    state = {"module": {"net": {"layer1": {"w": np.ones(2)}, "layer2": {"w": np.ones(3)}}}}
    into = {"model": {"block_1": {"w": np.zeros(2)}, "block_2": {"W": np.zeros(3)}}}
    rules = [
        ("module/net/", "model/"),
        (re.compile(r"layer(\d)"), r"block_\1"),
        lambda name: name.replace("block_2/w", "block_2/W"),
    ]

    states.restored(state, into, rename=rules)

    assert into["model"]["block_2"]["W"].tolist() == [1, 1, 1]
    assert states.same(
        {"model": {"block_1": {"w": np.ones(2)}, "block_2": {"W": np.ones(3)}}}, states.restored(state, rename=rules)
    )


@pytest.mark.parametrize(
    "rename",
    [
        ("module.", ""),
        [["module.", ""]],
        (re.compile("^module[.]"), ""),
        "strip-module",
        ["strip-module"],
        ("strip-compiled", "strip-module"),
        {"module.w": "w"},
        [{"module.w": "w"}],
        lambda name: name.removeprefix("module."),
    ],
)
def test_a_rule_may_stand_alone_and_be_of_any_form(rename: Any) -> None:
    assert states.restored({"module.w": 1}, rename=rename) == {"w": 1}


@pytest.mark.parametrize(
    ("rename", "error", "word"),
    [
        ("strip-modul", ValueError, "strip-module"),
        (["module."], ValueError, "prefix"),
        ([("a",)], TypeError, "no rename rule"),
        ([("a", None)], TypeError, "no rename rule"),
        ([3], TypeError, "no rename rule"),
        (Layers("keras-to-torch"), TypeError, "convert"),
    ],
)
def test_what_is_no_rule_is_refused(rename: Any, error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        states.restored({"a": 1}, rename=rename)


def test_rules_that_give_two_values_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two values the name 'c'"):
        states.restored({"a": 1, "b": 2}, rename=[(re.compile("[ab]"), "c")])
    with pytest.raises(ValueError, match="names of groups: 'a'"):
        states.restored({"a": {"x": 1}, "b": 2}, rename=[("b", "a")])
    with pytest.raises(TypeError, match="which is no name"):
        states.restored({"a": 1}, rename=[lambda name: None])


@pytest.mark.parametrize("separator", ["/", "."])
def test_foreign_file_matches_by_joined_names(separator: str) -> None:
    names = {
        separator.join(["net", "0", "w"]): np.ones(2),
        separator.join(["net", "1"]): np.array(3, np.int32),
        "lr": np.array(0.5),
    }
    into = {"net": [{"w": np.zeros(2)}, 0], "lr": 0.0}

    restored = states.foreign(names, into)

    assert restored["net"][0]["w"] is into["net"][0]["w"]
    assert states.same({"net": [{"w": np.ones(2)}, 3], "lr": 0.5}, restored)


def test_foreign_file_without_a_template_is_a_flat_dict() -> None:
    assert states.same({"a.b": np.ones(1), "c/d": np.ones(2)}, states.foreign({"a.b": np.ones(1), "c/d": np.ones(2)}, None))


def test_none_takes_a_group_of_a_foreign_file() -> None:
    found = states.foreign({"net.a.w": np.ones(1), "net.b": np.ones(2), "other": np.ones(3)}, {"net": None, "other": np.zeros(3)})

    assert states.same({"net": {"a.w": np.ones(1), "b": np.ones(2)}, "other": np.ones(3)}, found)


def test_plain_number_from_a_foreign_file_has_to_be_of_its_kind() -> None:
    with pytest.raises(StateMismatchError):
        states.foreign({"n": np.array(0.5)}, {"n": 0})
    with pytest.raises(StateMismatchError):
        states.foreign({"n": np.array(1)}, {"n": True})
    assert states.foreign({"n": np.array(7, np.uint8)}, {"n": 0})["n"] == 7


def test_rename_of_a_foreign_file_works_on_whole_names() -> None:
    assert states.foreign({"_orig_mod.a.w": np.ones(1)}, {"a": {"w": np.zeros(1)}}, rename=[("_orig_mod.", "")])["a"]["w"][0] == 1


def test_near_names_among_very_many_are_found_quickly() -> None:
    state = {f"layers/{index}/attention": {"query": 0} for index in range(20_000)}
    into = {f"layers/{index}/attn": {"query": 0} for index in range(20_000)}

    report = states.report_of(state, into, strict=False)

    assert len(report.missing) == 20_000
    assert "layers/0/attention/query" in report.near["layers/0/attn/query"]


@given(states.trees)
def test_rule_that_changes_nothing_changes_nothing(state: Any) -> None:
    assert states.same(states.restored(state), states.restored(state, rename=[("no such prefix", "x"), lambda name: name]))


@given(states.trees)
def test_new_first_key_moves_a_whole_tree_as_it_is(state: Any) -> None:
    moved = states.restored({"old": {"x": state}}, rename=[("old/", "new/")])

    assert states.same({"new": {"x": state}}, moved)


def test_list_that_loses_an_item_becomes_a_dict_of_the_others() -> None:
    assert states.restored({"l": [1, 2, 3]}, rename=[("l/1", "m")]) == {"l": {0: 1, 2: 3}, "m": 2}


def test_near_names_share_a_beginning_or_an_end() -> None:
    names = [f"blocks/{index}/attention/{part}" for index in range(300) for part in ("query", "key")]

    near = near_names(["blocks/7/attention/qeury", "model/blocks/12/attention/key", "zzz"], names)

    assert near["blocks/7/attention/qeury"][0] == "blocks/7/attention/query"
    assert near["model/blocks/12/attention/key"][0] == "blocks/12/attention/key"
    assert "zzz" not in near
