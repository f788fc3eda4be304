import collections
import dataclasses
import functools
import random
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import states
from hypothesis import example, given, settings

from ckptmgr import restoring
from ckptmgr.box import Box
from ckptmgr.errors import CorruptCheckpointError, StateMismatchError, UnsupportedLeafError
from ckptmgr.memory import MemorySource
from ckptmgr.spec import PackedArray, TensorSpec
from ckptmgr.transfer import Stats

Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass(frozen=True)
class Config:
    weights: Any
    rate: float = 0.5


@given(states.trees)
@example(None)
def test_without_a_template_everything_comes_back(state: Any) -> None:
    assert states.same(state, states.restored(state))


@given(states.trees)
@settings(max_examples=200)
@example(None)
def test_template_of_the_same_structure_is_filled(state: Any) -> None:
    into = states.blank(state)

    source, skeleton = states.saved(state)
    restored, report = restoring.restore(source, skeleton, into=into)

    assert states.same(state, restored)
    assert report.is_exact
    assert not report.recast


@given(states.trees, states.trees)
@settings(max_examples=200)
def test_any_two_trees_fit_or_all_differences_are_told_and_nothing_is_changed(state: Any, into: Any) -> None:
    before = repr(into)
    error = None
    try:
        states.restored(state, into)
    except StateMismatchError as raised:
        error = raised

    assert error is None or (repr(into) == before and not error.report.is_exact)


def test_arrays_are_filled_in_place_and_containers_are_made_anew() -> None:
    state = {"l": [np.ones(2)], "p": Point(np.ones(1), 3), "c": Config(np.ones(1)), "o": collections.OrderedDict(w=np.ones(1))}
    into = {"l": [np.zeros(2)], "p": Point(np.zeros(1), 0), "c": Config(np.zeros(1)), "o": collections.OrderedDict(w=np.zeros(1))}

    restored = states.restored(state, into)

    assert restored["l"][0] is into["l"][0]
    assert into["l"][0].tolist() == [1, 1]
    assert restored["l"] is not into["l"]
    assert restored["p"] == Point(np.ones(1), 3)
    assert into["p"].y == 0
    assert restored["c"] == Config(np.ones(1))
    assert type(restored["o"]) is collections.OrderedDict


def test_bytes_go_straight_into_the_arrays_of_the_template() -> None:
    class Watched(MemorySource):
        outs: Sequence[Any] = ()

        def read(self, name: str, box: Box | None = None, out: Any = None) -> Any:
            self.outs = [*self.outs, out]
            return super().read(name, box, out)

    source, skeleton = states.saved({"a": np.ones(3), "b": np.ones(2)})
    watched = Watched({name: source.read(name) for name in source.specs}, source.specs)
    into = {"a": np.zeros(3), "b": np.zeros(4)[::2]}

    restoring.restore(watched, skeleton, into=into)

    assert watched.outs[0].__array_interface__["data"] == into["a"].__array_interface__["data"]
    assert into["b"].tolist() == [1, 1]


def test_specs_ask_for_new_numpy_arrays() -> None:
    restored = states.restored({"w": np.ones((2, 3), ml_dtypes.bfloat16)}, {"w": TensorSpec("bfloat16", (2, 3))})

    assert restored["w"].tolist() == [[1] * 3] * 2


def test_none_takes_whatever_is_there() -> None:
    state = {"a": {"b": [np.ones(1), 2], "c": (1, None)}, "n": None, "p": Point(1, np.ones(1))}

    restored = states.restored(state, {"a": None, "n": None, "p": None})

    assert states.same({"a": {"b": [np.ones(1), 2], "c": (1, None)}, "n": None, "p": (1, np.ones(1))}, restored)


def test_none_where_nothing_is_there_is_missing() -> None:
    assert states.report_of({"a": 1}, {"a": 0, "b": None}, strict=False).missing == ("b",)


def test_tied_arrays_are_tied_without_a_template_and_fill_separate_ones_with_one() -> None:
    table = np.arange(3.0)
    state = {"a": table, "b": table}
    into = {"a": np.zeros(3), "b": np.zeros(3), "c": None}

    found = states.restored(state)
    filled = states.restored({**state, "c": table}, into)

    assert found["a"] is found["b"]
    assert filled["a"] is into["a"]
    assert filled["b"] is into["b"]
    assert [filled[name].tolist() for name in "abc"] == [[0, 1, 2]] * 3
    assert not np.shares_memory(filled["c"], filled["a"])


def test_read_only_arrays_are_replaced_everywhere_they_are_tied() -> None:
    frozen = np.zeros(2)
    frozen.flags.writeable = False

    both = states.foreign({"a": np.ones(2)}, {"a": frozen, "b": frozen})

    assert both["a"] is both["b"]
    assert both["a"].tolist() == [1, 1]


def test_generators_are_filled_in_place() -> None:
    state = {"numpy": np.random.default_rng(1), "legacy": np.random.RandomState(2), "python": random.Random(3)}
    into = {"numpy": np.random.default_rng(), "legacy": np.random.RandomState(), "python": random.Random()}

    restored = states.restored(state, into)

    assert all(restored[name] is into[name] for name in into)
    assert into["numpy"].random(3).tolist() == state["numpy"].random(3).tolist()
    assert into["legacy"].rand(3).tolist() == state["legacy"].rand(3).tolist()
    assert into["python"].random() == state["python"].random()


def test_string_arrays_are_restored() -> None:
    state = {"U": np.array(["a", "\u20ac"]), "S": np.array([b"abc"]), "O": np.array(["x", "yy"], object)}
    into = {"U": np.array(["", ""], "U9"), "S": np.array([b""], "S1"), "O": np.array(["", ""], object)}

    restored = states.restored(state, into)

    assert restored["U"] is into["U"]
    assert restored["S"].tolist() == [b"abc"]
    assert restored["O"] is into["O"]
    assert states.same(state, states.restored(state))


def test_packed_arrays_are_restored() -> None:
    spec = TensorSpec("packed_float6_e2m3fn", (2, 4))
    packed = PackedArray.wrap(np.arange(6, dtype=np.uint8), spec)
    into = PackedArray.wrap(np.zeros(6, np.uint8), spec)

    states.restored({"w": packed}, {"w": into})

    assert into.tolist() == [0, 1, 2, 3, 4, 5]
    assert states.restored({"w": packed})["w"].spec == spec


def test_skeleton_that_names_a_tensor_that_is_not_there_is_damage() -> None:
    with pytest.raises(CorruptCheckpointError, match="'gone'"):
        restoring.restore(MemorySource({}, {}), {"w": {"$tensor": "gone"}})


def test_template_with_a_leaf_that_cannot_be_filled_is_refused_by_its_path() -> None:
    with pytest.raises(UnsupportedLeafError, match="'a/b' is a object"):
        states.restored({"a": {"b": 1}}, {"a": {"b": object()}})


def test_unknown_cast_is_refused() -> None:
    with pytest.raises(ValueError, match="cast must be one of"):
        states.restored({"a": 1}, cast="maybe")


def test_what_passes_through_our_memory_comes_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(read: Any, source: Any, wanted: Any, **how: Any) -> Any:
        calls.append(len(wanted))
        return read(source, wanted, **how)

    for name in ("read", "read_new"):
        monkeypatch.setattr(restoring.transfer, name, functools.partial(counted, getattr(restoring.transfer, name)))
    monkeypatch.setattr(restoring, "STAGED_NBYTES", 100)
    seen: list[tuple[int, int]] = []
    state = {str(index): np.ones(10, np.float32) for index in range(7)}
    into = {name: np.zeros(10, np.float64) for name in state}

    report = states.report_of(
        state, {**into, "0": np.zeros(10, np.float32)}, cast="same_kind", progress=lambda *now: seen.append(now)
    )

    assert calls == [1, 3, 3]
    assert seen[-1] == (280, 280)
    assert seen == sorted(seen)
    assert isinstance(report.stats, Stats)
    assert report.stats.nbytes == 280
    assert into["6"].tolist() == [1] * 10
