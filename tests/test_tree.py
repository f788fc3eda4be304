import collections
import dataclasses
import enum
import itertools
import json
import random
import types
from typing import Any

import numpy as np
import pytest
import states
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptmgr import containers, skeleton, tree
from ckptmgr.errors import CorruptCheckpointError, UnsupportedLeafError
from ckptmgr.skeleton import Path, TensorNode
from ckptmgr.spec import TensorSpec

Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass(frozen=True)
class Config:
    weights: Any
    rate: float = 0.5
    static: Any = dataclasses.field(default=None, metadata={"pytree_node": False})


class Counter:
    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        if isinstance(self.state, Exception):
            raise self.state
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def stored(flat: tree.Flat) -> Any:
    """The skeleton as it comes back from a file."""
    return json.loads(json.dumps(flat.skeleton, ensure_ascii=False, allow_nan=False).encode())


def round_trip(state: Any) -> Any:
    flat = tree.flatten(state)
    return tree.unflatten(stored(flat), flat.tensors, flat.aliases)


def tensor_paths(stored: Any) -> list[tuple[str, Path]]:
    """Each name in a skeleton with its path, in the order of the tree."""
    found: list[tuple[str, Path]] = []
    skeleton.decode(stored, lambda path, leaf: found.append((leaf.name, path)) if isinstance(leaf, TensorNode) else None)
    return found


@given(states.trees)
@settings(max_examples=300)
def test_unflatten_gives_back_every_state_to_the_bit(state: Any) -> None:
    assert states.same(state, round_trip(state))


@pytest.mark.parametrize("text", ["\0", "a\0", "\0a", ""])
def test_texts_of_numpy_keep_what_is_nul(text: str) -> None:
    state = [np.str_(text), np.bytes_(text.encode()), text]

    assert states.same(state, round_trip(state))


@given(states.trees)
def test_every_tensor_has_one_name_one_spec_and_one_path(state: Any) -> None:
    flat = tree.flatten(state)

    assert tensor_paths(stored(flat)) == list(flat.paths.items())
    assert flat.specs.keys() == flat.tensors.keys()
    assert set(flat.paths) == {*flat.tensors, *flat.aliases}
    assert all(spec.shape == flat.tensors[name].shape for name, spec in flat.specs.items())


@given(st.dictionaries(states.keys, st.dictionaries(states.keys, st.just(None), max_size=3), max_size=5), st.randoms())
def test_names_do_not_depend_on_the_order_of_keys(shape: dict[Any, Any], order: random.Random) -> None:
    state = {key: {inner: np.zeros(1) for inner in value} for key, value in shape.items()}
    items = [(key, list(value.items())) for key, value in state.items()]
    order.shuffle(items)
    for _, inner in items:
        order.shuffle(inner)

    one = tree.flatten(state).paths
    other = tree.flatten({key: dict(inner) for key, inner in items}).paths

    assert one == other


def test_names_are_keys_joined_by_slashes_as_they_are() -> None:
    flat = tree.flatten({"model": {"a.b": [np.zeros(1), {"~": np.zeros(1)}]}, 7: np.zeros(1)})

    assert list(flat.tensors) == ["model/a.b/0", "model/a.b/1/~", "7"]
    assert flat.paths["model/a.b/1/~"] == ("model", "a.b", 1, "~")


def test_only_names_that_collide_are_escaped_all_of_them() -> None:
    flat = tree.flatten({1: np.zeros(1), "1": np.ones(1), "a/b": np.zeros(2), "a": {"b": np.zeros(3), "c/d": np.zeros(4)}})

    assert list(flat.tensors) == ["~i1", "1", "a~1b", "a/b", "a/c/d"]


def test_escaped_name_that_meets_a_third_one_escapes_that_too() -> None:
    flat = tree.flatten({"a/b": np.zeros(1), "a": {"b": np.zeros(2)}, "a~1b": np.zeros(3)})

    assert list(flat.tensors) == ["a~1b", "a/b", "a~01b"]


def test_state_of_one_array_has_a_name() -> None:
    flat = tree.flatten(np.arange(3))

    assert list(flat.tensors) == ["tensor"]
    assert tree.unflatten(stored(flat), flat.tensors) is flat.tensors["tensor"]


def test_tied_arrays_are_stored_once_and_come_back_tied() -> None:
    table = np.zeros((3, 2))

    flat = tree.flatten({"embed": table, "head": {"w": table, "view": table[:], "part": table[1:], "other": np.zeros((3, 2))}})
    back = tree.unflatten(stored(flat), flat.tensors, flat.aliases)

    assert list(flat.tensors) == ["embed", "head/part", "head/other"]
    assert flat.aliases == {"head/w": "embed", "head/view": "embed"}
    assert back["embed"] is back["head"]["w"] is back["head"]["view"]


def test_equal_slices_of_one_array_are_tied_and_empty_ones_are_not() -> None:
    slab = np.zeros(10)

    flat = tree.flatten([slab[2:4], slab[2:4], slab[4:6], slab[:0], slab[:0]])

    assert flat.aliases == {"1": "0"}


def test_arrays_of_a_container_are_the_same_one_by_one_and_all_at_once() -> None:
    first, second, empty, text = np.arange(3.0), np.ones(2, np.int8), np.zeros((0, 2)), np.array([b"x"], object)
    containers = [
        {"a": first, "b": second},
        {"again": second, "new": np.zeros(1)},
        {"view": first[:], "new": np.zeros(1)},
        {"twice": (one := np.ones(4)), "tied": one},
        {"empty": empty, "a": np.ones(1)},
        {"empty": empty, "text": text},
    ]

    together = tree.flatten(containers)
    apart = tree.flatten([{"number": 1, **each} for each in containers])  # a number among them: they are seen one by one

    assert together.specs == apart.specs
    assert together.paths == apart.paths
    assert together.aliases == apart.aliases == {"1/again": "0/b", "2/view": "0/a", "3/tied": "3/twice"}
    assert together.strings == apart.strings == {"5/text": [b"x"]}
    assert together.skeleton[:2] == [{"$arrays": ["a", "b"]}, {"again": {"$tensor": "1/again"}, "new": {"$tensor": "1/new"}}]
    assert [{"number": 1, **each} for each in together.skeleton[1:]] == apart.skeleton[1:]
    assert all(together.tensors[name] is leaf for name, leaf in apart.tensors.items())


def test_an_array_of_no_dtype_that_can_be_stored_is_named_among_others() -> None:
    with pytest.raises(UnsupportedLeafError, match="'x/1'"):
        tree.flatten({"x": [np.zeros(1), np.zeros(1, "i4,i4")]})


def test_same_memory_seen_differently_is_not_tied() -> None:
    table = np.zeros((3, 3))

    assert tree.flatten([table, table.T, table.view(np.int64)]).aliases == {}


def test_namedtuples_and_dataclasses_come_back_as_plain_containers() -> None:
    back = round_trip({"point": Point(np.float32(1.0), 2), "config": Config(np.zeros(1), 0.25, print)})

    assert back["point"] == (np.float32(1.0), 2)
    assert back["config"] == {"weights": np.zeros(1), "rate": 0.25}


def test_fields_name_the_tensors_of_namedtuples_and_dataclasses() -> None:
    assert list(tree.flatten([Point(np.zeros(1), 0), Config(np.zeros(2))]).tensors) == ["0/x", "1/weights"]


def test_subclasses_of_dict_and_other_mappings_are_dicts() -> None:
    state = {"a": collections.OrderedDict(b=1), "c": types.MappingProxyType({"d": 2}), "e": collections.defaultdict(list, {3: 4})}

    assert round_trip(state) == {"a": {"b": 1}, "c": {"d": 2}, "e": {3: 4}}


def test_object_with_state_dict_is_stored_as_its_state() -> None:
    flat = tree.flatten({"counter": Counter({"count": 3, "w": np.zeros(2)})})

    assert list(flat.tensors) == ["counter/w"]
    assert stored(flat)["counter"]["$object"].endswith("test_tree.Counter")
    assert tree.unflatten(stored(flat), flat.tensors)["counter"]["count"] == 3


def test_error_of_a_state_dict_passes_with_a_note_of_the_path() -> None:
    with pytest.raises(RuntimeError, match="not ready") as info:
        tree.flatten({"a": [Counter(RuntimeError("not ready"))]})

    assert info.value.__notes__ == ["raised by state_dict() of 'a/0'"]


def test_object_whose_state_is_an_object_is_refused() -> None:
    counter = Counter(None)
    counter.state = counter

    with pytest.raises(UnsupportedLeafError, match="'a' has a state_dict"):
        tree.flatten({"a": counter})


def test_string_arrays_of_every_kind_come_back_as_they_were() -> None:
    state = {
        "bytes": np.array([b"a", b"", b"\0x"], dtype=object),
        "text": np.array([["\xe4", "\ud800"]], dtype=object),
        "S": np.array([b"ab", b""], "S7"),
        "U": np.array("\u20ac", "U3"),
        "T": np.array(["long " * 9, ""], np.dtypes.StringDType()),
        "empty": np.zeros((0, 2), "U4"),
    }

    flat = tree.flatten(state)
    read = {
        name: np.array([*flat.strings[name], None], object)[:-1].reshape(flat.specs[name].shape)
        if flat.specs[name].is_string
        else array
        for name, array in flat.tensors.items()
    }
    back = tree.unflatten(stored(flat), read)

    assert flat.strings["U"] == ["\u20ac".encode()]
    assert {name: array.dtype for name, array in back.items()} == {name: array.dtype for name, array in state.items()}
    assert all(states.same(state[name], back[name]) for name in state)


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        ({1, 2}, "is of type set"),
        (object(), "is of type object"),
        (Colour.RED, r"is of type \S*Colour"),
        (Level.LOW, r"is of type \S*Level"),
        (len, "is of type builtin_function_or_method"),
        (np.zeros(2, [("x", "i4")]), "store its fields"),
        (np.array([1, "a"], dtype=object), "holds int beside bytes"),
        (np.array(["a", b"a"], dtype=object), "holds bytes beside str"),
        (np.ma.masked_array([1.0], [True]), "masked array"),
        (np.void(b"ab"), "is of type numpy.void"),
        (TensorSpec("int8", (2,)), "describes an array"),
        (random.SystemRandom(), "has no state"),
        (CYCLE, "nested deeper than"),
        ({True: 1}, "a key of type bool"),
        ({None: 1}, "a key of type NoneType"),
        ({1 << 64: 1}, "at most 64 bits"),
        ({"\ud800": 1}, "no valid text"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_its_path(leaf: Any, reason: str) -> None:
    with pytest.raises(UnsupportedLeafError, match=reason) as info:
        tree.flatten({"a": [leaf]})

    assert info.value.path.startswith("a/0")
    assert str(info.value).startswith("'a/0")


def test_ints_of_any_size_come_back() -> None:
    state = [10**10_000, -(10**10_000), 1 << 53, -(1 << 53), (1 << 53) - 1, 0]  # Python refuses to print the first two

    assert all(one == other for one, other in zip(state, round_trip(state), strict=True))


def test_deep_states_within_the_limit_come_back() -> None:
    state: Any = 1
    for index in range(tree.MAX_DEPTH):
        state = [state] if index % 2 else {1: state}

    assert round_trip(state) == state


def test_skeleton_that_names_a_tensor_that_is_not_there_is_damaged() -> None:
    with pytest.raises(CorruptCheckpointError, match="'w'") as info:
        tree.unflatten({"w": {"$tensor": "w"}}, {})

    assert info.value.tensor == "w"


def test_rebuilt_containers_keep_their_type_and_leave_the_template_alone() -> None:
    template = collections.defaultdict(list, {"a": 1})
    point, config = Point(1, 2), Config(1, static=print)

    made = containers.rebuild(template, [("a", 5), ("b", 6)])

    assert made == {"a": 5, "b": 6}
    assert made["new"] == []
    assert template == {"a": 1}
    assert containers.rebuild(point, [("y", 5)]) == Point(1, 5)
    assert containers.rebuild(config, [("weights", 5)]) == Config(5, static=print)
    assert containers.rebuild(types.MappingProxyType({"a": 1}), [("a", 2)]) == types.MappingProxyType({"a": 2})


def test_rebuilt_dict_keeps_the_key_objects_of_its_template() -> None:
    made = containers.rebuild({Level.LOW: 1}, [(1, 5)])

    assert list(made.items()) == [(Level.LOW, 5)]
    assert type(next(iter(made))) is Level


def test_flattening_many_small_tensors_makes_one_spec_a_kind() -> None:
    flat = tree.flatten({f"layer{index}": {"w": np.zeros((4, 4)), "b": np.zeros(4)} for index in range(1000)})

    assert len({id(spec) for spec in flat.specs.values()}) == 2


def test_generators_come_back_in_their_state() -> None:
    state = {
        "numpy": np.random.default_rng(1),
        "legacy": np.random.RandomState(2),
        "bits": np.random.Philox(3),
        "python": random.Random(4),
    }
    for generator in (state["numpy"].normal, state["legacy"].randn, state["python"].gauss):
        generator()

    back = round_trip(state)

    assert state["numpy"].integers(1 << 60, size=5).tolist() == back["numpy"].integers(1 << 60, size=5).tolist()
    assert state["legacy"].randn(5).tolist() == back["legacy"].randn(5).tolist()
    assert state["bits"].random_raw(5).tolist() == back["bits"].random_raw(5).tolist()
    assert [state["python"].gauss() for _ in range(5)] == [back["python"].gauss() for _ in range(5)]


def test_leaves_with_the_buffer_or_array_protocol_are_arrays() -> None:
    class Lazy:
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            return np.arange(3, dtype=np.int16)

    flat = tree.flatten({"lazy": Lazy(), "bytes": bytearray(b"abc"), "view": memoryview(b"abcd")})

    assert list(flat.specs.values()) == [TensorSpec("int16", (3,)), TensorSpec("uint8", (3,)), TensorSpec("uint8", (4,))]


def test_all_pairs_of_awkward_keys_give_different_names() -> None:
    awkward = ["", "a", "/", "~", "~0", "~1", "~i1", "1", "~01", "~~", "a/", "/a", 1, -1]
    pairs = list(itertools.product(awkward, repeat=2))

    names = tree.names(list(pairs))

    assert len(set(names)) == len(pairs)


class Schedule:
    """An object with a state of plain values."""

    def state_dict(self) -> dict[str, Any]:
        return {"step": 7, "rates": [0.5, None]}

    def load_state_dict(self, state: Any) -> None:
        """Takes nothing."""


def test_plain_values_are_collected_by_their_paths() -> None:
    state = {"n": 3, "none": None, "yes": True, "x": [1.5, ("é", b"raw")], 7: np.float32(2), "w": np.zeros(2), "o": Schedule()}

    found = {("n",): 3, ("yes",): True, ("x", 0): 1.5, ("x", 1, 0): "é", ("x", 1, 1): b"raw", (7,): np.float32(2)}
    assert tree.flatten(state).scalars == {**found, ("o", "step"): 7, ("o", "rates", 0): 0.5}


def test_plain_values_keep_their_types() -> None:
    assert type(tree.flatten([np.float32(2), True]).scalars[0,]) is np.float32
    assert tree.flatten([np.float32(2), True]).scalars[1,] is True


def test_state_that_is_one_plain_value_has_the_empty_path() -> None:
    assert tree.flatten(5).scalars == {(): 5}


def test_names_nest_as_their_paths_say() -> None:
    nested = tree.nest(["a/b", "c", "d/e"], {"a/b": ("a", "b"), "d/e": ("d", 0)}, str.upper)

    assert nested == {"a": {"b": "A/B"}, "c": "C", "d": {"0": "D/E"}}
