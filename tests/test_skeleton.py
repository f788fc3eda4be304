import contextlib
import copy
import json
import random
from typing import Any

import numpy as np
import pytest
import states
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptmgr import skeleton, tree
from ckptmgr.errors import CorruptCheckpointError

MARKS = ["$tensor", "$arrays", "$tuple", "$namedtuple", "$dataclass", "$dict", "$object", "$int", "$float", "$str", "$bytes"]
MARKS += ["$complex", "$scalar", "$rng", "$array", "$", "$new"]


def decoded(node: Any) -> Any:
    return skeleton.decode(node, lambda path, leaf: leaf)


def nested(wrap: Any, depth: int) -> Any:
    node: Any = 1
    for _ in range(depth):
        node = wrap(node)
    return node


def generator_state(kind: str, **changes: Any) -> Any:
    made = {"numpy.Generator": np.random.Generator(np.random.MT19937(1)), "random.Random": random.Random(1)}[kind]
    node = copy.deepcopy(tree.flatten(made).skeleton)
    node["state"].update(changes)
    return node


@pytest.mark.parametrize(
    "node",
    [
        {"$tensor": 3},
        {"$tensor": "w", "kind": 3},
        {"$tensor": "w", "text": 3},
        [{"$tensor": "w"}, {"$tensor": "w"}],
        {"$tensor": "w", "$tuple": []},
        {"$arrays": 3},
        {"$arrays": {"a": 1}},
        {"$arrays": ["a", 1]},
        {"$arrays": ["a", "a"]},
        [{"$tensor": "1/a"}, {"$arrays": ["a"]}],
        [{"$arrays": ["a"]}, {"$tensor": "0/a"}],
        {"a": {"$arrays": ["b/c"]}, "a/b": {"$arrays": ["c"]}},
        {"k" * 300: {"$arrays": ["a"]}},
        {"$unknown": 1},
        {"a": {"$": 1}},
        {"$tuple": 3},
        {"$tuple": {"a": 1}},
        {"$namedtuple": "P"},
        {"$namedtuple": "P", "fields": [1]},
        {"$dataclass": "P", "fields": 3},
        {"$object": "x.Y"},
        {"$dict": 3},
        {"$dict": [3]},
        {"$dict": [["a"]]},
        {"$dict": [["a", 1, 2]]},
        {"$dict": [["a", 1], ["a", 2]]},
        {"$dict": [[1.5, 1]]},
        {"$dict": [[True, 1]]},
        {"$dict": [[[], 1]]},
        {"$dict": [[{"$int": "0x1" + "0" * 16}, 1]]},
        {"$int": 3},
        {"$int": "12z"},
        {"$float": "7ff8"},
        {"$float": 1.5},
        {"$complex": [1.0]},
        {"$complex": ["a", "b"]},
        {"$complex": [1.0, 2.0, 3.0]},
        {"$bytes": "!!!!"},
        {"$bytes": "\xe4"},
        {"$str": "gICA"},
        {"$scalar": "float32", "data": "00"},
        {"$scalar": "float32"},
        {"$scalar": "bool", "data": "02"},
        {"$scalar": "string", "data": ""},
        {"$scalar": "f4", "data": "00000000"},
        {"$scalar": "packed_float4_e2m1fn", "data": "00" * 9},
        {"$scalar": ["float32"], "data": "00000000"},
        {"$array": "uint8", "shape": [1], "data": "AA=="},
        {"$rng": "numpy.Generator", "state": {}},
        {"$rng": "os.system", "state": {"bit_generator": "PCG64"}},
        {"$rng": "numpy.Generator", "state": {"bit_generator": "Mersenne"}},
        {"$rng": "numpy.Generator", "state": {"bit_generator": ["PCG64"]}},
        {"$rng": "random.Random", "state": {"version": 3, "words": [], "gauss": None}},
        generator_state("random.Random", gauss="a"),
        generator_state("random.Random", version=4),
        generator_state("random.Random", version=True),
        generator_state("random.Random", words={"$array": "uint32", "shape": [625, 1 << 60], "data": ""}),
        generator_state("random.Random", words={"$array": "uint32", "shape": [-1], "data": ""}),
        generator_state("random.Random", words={"$array": "string", "shape": [0], "data": ""}),
        generator_state("random.Random", more=1),
        generator_state("numpy.Generator", state=3),
        generator_state("numpy.Generator", bit_generator="PCG64"),
        (1, 2),
        b"x",
        nested(lambda node: [node], 500),
        nested(lambda node: {"a": node}, 500),
        nested(lambda node: {"$tuple": [node]}, 500),
        nested(lambda node: {"$dict": [[node, 1]]}, 500),
        nested(lambda node: {"$dict": [["a", node]]}, 500),
        nested(lambda node: {"$object": "", "state": node}, 500),
        nested(lambda node: {"$rng": "", "state": node}, 500),
        nested(lambda node: {"$dataclass": "", "fields": {"a": node}}, 500),
    ],
)
def test_damaged_skeletons_are_refused(node: Any) -> None:
    with pytest.raises(CorruptCheckpointError):
        decoded(node)


@pytest.mark.parametrize("position", [-1, 625, 10**9, 1 << 70, 1.5])
def test_generator_that_would_read_outside_its_state_is_refused(position: Any) -> None:
    node = generator_state("numpy.Generator")
    node["state"]["state"]["pos"] = position

    with pytest.raises(CorruptCheckpointError, match="pos"):
        decoded(node)


@pytest.mark.parametrize(
    "wrap", [lambda value: (value,), lambda value: [value], lambda value: {"a": value}, lambda value: {1: value}]
)
@pytest.mark.parametrize(
    ("leaf", "depth"),
    [
        (1, skeleton.MAX_DEPTH),
        (np.zeros(2), skeleton.MAX_DEPTH),
        (np.random.Generator(np.random.MT19937(1)), skeleton.MAX_DEPTH - 1),
    ],
    ids=["int", "array", "generator"],
)
def test_whatever_is_flat_enough_to_be_stored_can_be_decoded(wrap: Any, leaf: Any, depth: int) -> None:
    state = leaf
    for _ in range(depth):
        state = wrap(state)
    flat = tree.flatten(state)

    restored = tree.unflatten(flat.skeleton, flat.tensors)

    for _ in range(depth):
        ((_, restored),) = restored.items() if isinstance(restored, dict) else enumerate(restored)
    assert type(restored) is type(leaf)


def test_damage_is_named_by_its_place() -> None:
    with pytest.raises(CorruptCheckpointError, match="'a/1' has the unknown mark"):
        decoded({"a": [1, {"$new": 2}]})


def test_fields_that_a_newer_version_may_add_are_ignored() -> None:
    assert decoded({"$tuple": [1], "note": 5}) == (1,)


def test_marks_are_found_wherever_they_stand_among_the_keys() -> None:
    assert decoded({"data": "0000803f", "$scalar": "float32"}) == np.float32(1)


def test_skeleton_is_plain_readable_json() -> None:
    state = {"epoch": 3, "rate": 0.5, "names": ["a", None, True], "betas": (0.9, 0.99), "model": {"w": np.zeros(2)}}

    assert tree.flatten(state).skeleton == {
        "epoch": 3,
        "rate": 0.5,
        "names": ["a", None, True],
        "betas": {"$tuple": [0.9, 0.99]},
        "model": {"$arrays": ["w"]},
    }


def test_arrays_of_a_dict_are_listed_by_their_keys_where_these_tell_their_names() -> None:
    w = np.zeros(2)
    states = {
        "list": [w],
        "numbered": {7: w.copy()},
        "marked": {"$w": w.copy()},
        "k" * 300: {"w": w.copy()},
        "a": {"b/c": w.copy()},
        "a/b": {"c": w.copy(), "d": w.copy()},
        "deep": {"er": {"w": w.copy(), "": w.copy()}},
    }

    assert tree.flatten(states).skeleton == {
        "list": [{"$tensor": "list/0"}],
        "numbered": {"$dict": [[7, {"$tensor": "numbered/7"}]]},
        "marked": {"$dict": [["$w", {"$tensor": "marked/$w"}]]},
        "k" * 300: {"w": {"$tensor": f"{'k' * 300}/w"}},
        "a": {"b/c": {"$tensor": "a/b~1c"}},
        "a/b": {"c": {"$tensor": "a~1b/c"}, "d": {"$tensor": "a/b/d"}},
        "deep": {"er": {"$arrays": ["w", ""]}},
    }


def test_what_json_has_not_is_marked() -> None:
    state = [1 << 53, float("inf"), -0.0, 1j, b"ab", np.float32(1), {1: 2}, {"$x": 1}, "\udc80"]

    assert tree.flatten(state).skeleton == [
        {"$int": "0x20000000000000"},
        {"$float": "7ff0000000000000"},
        -0.0,
        {"$complex": [0.0, 1.0]},
        {"$bytes": "YWI="},
        {"$scalar": "float32", "data": "0000803f"},
        {"$dict": [[1, 2]]},
        {"$dict": [["$x", 1]]},
        {"$str": "7bKA"},
    ]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-99, 1 << 70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["float32", "AAAA"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*MARKS, "kind", "text", "fields", "state", "data", "shape", "a"]), inner, max_size=3)
    ),
    max_leaves=15,
)


@given(json_values)
@settings(max_examples=500)
def test_random_json_is_decoded_or_refused(node: Any) -> None:
    with contextlib.suppress(CorruptCheckpointError):
        decoded(node)


@given(states.trees, st.data())
@settings(max_examples=200)
def test_one_changed_place_in_a_real_skeleton_is_decoded_or_refused(state: Any, data: st.DataObject) -> None:
    flat = tree.flatten({"state": state, "rng": np.random.default_rng(1)})
    node = json.loads(json.dumps(flat.skeleton))
    place, key = data.draw(st.sampled_from(list(places(node))))
    place[key] = data.draw(json_values)

    with contextlib.suppress(CorruptCheckpointError):
        tree.unflatten(node, flat.tensors, flat.aliases)


def places(node: Any) -> Any:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield node, key
        if isinstance(value, dict | list):
            yield from places(value)
