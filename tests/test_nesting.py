"""Files of other tools that tell how their names nest: what a restore makes of them."""

from typing import Any

import numpy as np
import pytest
from frameworks import torch

from ckptmgr import restoring
from ckptmgr.errors import CorruptCheckpointError, StateMismatchError
from ckptmgr.memory import MemorySource
from ckptmgr.skeleton import MAX_DEPTH
from ckptmgr.source import Nested, paths_of
from ckptmgr.spec import tensor_spec

KERNEL, M = ("layer", "kernel"), ("layer", "kernel/.OPTIMIZER_SLOT/optimizer/m")


class NestedSource(MemorySource):
    """Tensors in memory, as a file with an object graph gives them: each has its path, ``"/".join`` of which is its name."""

    def __init__(self, tensors: dict[str, Any], paths: dict[str, tuple[Any, ...]], aliases: dict[str, str] | None = None) -> None:
        specs = {name: tensor_spec(array.dtype, array.shape) for name, array in tensors.items()}
        super().__init__(tensors, specs, aliases=aliases)
        self.paths = paths


def named(*paths: tuple[str, ...], aliases: dict[tuple[str, ...], tuple[str, ...]] | None = None) -> NestedSource:
    """A source with a tensor for each path: the first is full of 1, the next of 2 ..., two elements each."""
    names = {"/".join(path): path for path in [*paths, *(aliases or {})]}
    tensors = {"/".join(path): np.full(2, number, np.float32) for number, path in enumerate(paths, 1)}
    return NestedSource(tensors, names, {"/".join(one): "/".join(other) for one, other in (aliases or {}).items()})


def restored(source: MemorySource, into: Any = None, **how: Any) -> Any:
    return restoring.restore(source, None, into=into, **how)[0]


def values(state: Any) -> Any:
    return {key: values(item) for key, item in state.items()} if isinstance(state, dict) else state.tolist()


def zeros() -> np.ndarray:
    return np.zeros(2, np.float32)


def test_a_source_tells_how_its_names_nest_or_not() -> None:
    nested = named(("a", "b"))

    assert paths_of(nested) == {"a/b": ("a", "b")}
    assert paths_of(MemorySource({}, {})) == {}
    assert isinstance(nested, Nested)


def test_without_a_template_names_nest_as_the_source_tells() -> None:
    assert values(restored(named(KERNEL, M, ("save_counter",)))) == {
        "layer": {"kernel": [1, 1], "kernel/.OPTIMIZER_SLOT/optimizer/m": [2, 2]},
        "save_counter": [3, 3],
    }


def test_a_name_without_a_path_stays_flat_at_the_top() -> None:
    source = NestedSource({"a/b": np.ones(1), "c/d": np.zeros(1)}, {"a/b": ("a", "b")})

    assert values(restored(source)) == {"a": {"b": [1]}, "c/d": [0]}


def test_tied_names_share_one_array() -> None:
    state = restored(named(("model", "w"), aliases={("head", "kernel"): ("model", "w")}))

    assert state["head"]["kernel"] is state["model"]["w"]


def test_indexes_become_str_keys() -> None:
    assert values(restored(NestedSource({"l/0": np.ones(1)}, {"l/0": ("l", 0)}))) == {"l": {"0": [1]}}


def test_a_source_of_one_tensor_that_is_the_state() -> None:
    assert restored(NestedSource({"tensor": np.ones(2)}, {"tensor": ()})).tolist() == [1, 1]


@pytest.mark.parametrize("into", [{"layer": {"kernel": zeros()}}, {"layer/kernel": zeros()}, {"layer.kernel": zeros()}], ids=str)
def test_leaves_are_found_by_path_and_by_joined_name(into: dict[str, Any]) -> None:
    (leaf,) = into["layer"].values() if "layer" in into else into.values()

    restored(named(KERNEL), into)

    assert leaf.tolist() == [1, 1]


def test_lists_of_the_template_are_found_by_their_indexes() -> None:
    into = {"lst": [zeros(), {"w": zeros()}]}

    restored(named(("lst", "0"), ("lst", "1", "w")), into)

    assert into["lst"][0].tolist() == [1, 1]
    assert into["lst"][1]["w"].tolist() == [2, 2]


def test_none_in_a_list_takes_what_is_there_nested() -> None:
    state = restored(named(("lst", "0", "a", "b"), ("lst", "1")), {"lst": [None, None]})

    assert values(state["lst"][0]) == {"a": {"b": [1, 1]}}
    assert state["lst"][1].tolist() == [2, 2]


def test_a_module_of_torch_takes_a_nested_source_by_dotted_names() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
    source = NestedSource({"0/weight": np.ones((1, 2), np.float32)}, {"0/weight": ("0", "weight")})

    restored(source, module)

    assert module[0].weight.tolist() == [[1, 1]]


@pytest.mark.parametrize("mine", [("model", "w"), ("head", "kernel")], ids=["name", "alias"])
def test_either_name_of_a_tied_tensor_may_be_wanted_and_the_other_is_not_missed(mine: tuple[str, str]) -> None:
    source = named(("model", "w"), aliases={("head", "kernel"): ("model", "w")})

    state, report = restoring.restore(source, None, into={mine[0]: {mine[1]: zeros()}})

    assert state[mine[0]][mine[1]].tolist() == [1, 1]
    assert report.is_exact


def test_both_names_of_a_tied_tensor_fill_two_arrays() -> None:
    into = {"a": zeros(), "b": zeros()}

    restored(named(("a",), aliases={("b",): ("a",)}), into)

    assert values(into) == {"a": [1, 1], "b": [1, 1]}


def test_a_tensor_that_nothing_wanted_is_unexpected_once_and_by_its_own_name() -> None:
    source = named(("z", "w"), ("used",), aliases={("a", "tied"): ("z", "w"), ("b", "tied"): ("z", "w")})

    with pytest.raises(StateMismatchError) as caught:
        restored(source, {"used": zeros()})

    assert caught.value.unexpected == ("z/w",)


def test_an_alias_that_alone_is_selected_is_unexpected_by_that_name() -> None:
    source = named(("z", "w"), ("a", "used"), aliases={("a", "tied"): ("z", "w")})

    with pytest.raises(StateMismatchError) as caught:
        restored(source, {"a": {"used": zeros()}}, select="a/*")

    assert caught.value.unexpected == ("a/tied",)


def test_what_is_below_a_none_of_the_template_is_not_unexpected() -> None:
    state, report = restoring.restore(named(("l", "0", "w"), ("a",)), None, into={"l": [None], "a": zeros()})

    assert values(state["l"][0]) == {"w": [1, 1]}
    assert report.is_exact
    assert report.filled == ("a", "l/0/w")


def test_globs_choose_by_name() -> None:
    assert values(restored(named(KERNEL, M, ("layer", "bias")), select=["*/kernel"])) == {"layer": {"kernel": [1, 1]}}


def test_rules_change_names_and_the_nesting_with_them() -> None:
    source = named(KERNEL, ("layer", "bias"))

    assert values(restored(source, rename=[("layer/", "encoder/first/")])) == {
        "encoder": {"first": {"kernel": [1, 1], "bias": [2, 2]}}
    }


def test_numbers_of_a_nested_source_become_plain_values() -> None:
    source = NestedSource({"a/epoch": np.array(3)}, {"a/epoch": ("a", "epoch")})

    assert restored(source, {"a": {"epoch": 0}}) == {"a": {"epoch": 3}}


def test_a_missing_leaf_is_told_with_near_names() -> None:
    with pytest.raises(StateMismatchError, match="'layer/kernal'"):
        restored(named(KERNEL), {"layer": {"kernal": zeros()}})


@pytest.mark.parametrize(
    "paths",
    [
        [("a",), ("a", "b")],
        [("a", "b"), ("a",)],
        [("a", "b", "c", "d"), ("a", "b")],
        [("a", "b"), ("a", "b")],
        [("a", "0"), ("a", 0)],
        [("a",), ()],
        [("a",) * (MAX_DEPTH + 1)],
        [("a",) * 100_000],
    ],
    ids=["below", "above", "deep above", "twice", "index and key", "the root", "too deep", "far too deep"],
)
def test_hostile_paths_are_damage_that_names_the_tensor(paths: list[tuple[Any, ...]]) -> None:
    names = {f"t{number}": path for number, path in enumerate(paths)}
    source = NestedSource({name: np.ones(1) for name in names}, names)

    with pytest.raises(CorruptCheckpointError) as caught:
        restored(source)

    assert caught.value.tensor == f"t{len(paths) - 1}"


def test_as_deep_as_a_state_may_be_is_not_too_deep() -> None:
    state = restored(named(("a",) * MAX_DEPTH))

    for _ in range(MAX_DEPTH):
        state = state["a"]
    assert state.tolist() == [1, 1]


def test_an_alias_of_a_tensor_that_is_not_there_is_damage() -> None:
    source = NestedSource({}, {"a/b": ("a", "b")}, {"a/b": "gone"})

    with pytest.raises(CorruptCheckpointError, match="'a/b'"):
        restored(source)
