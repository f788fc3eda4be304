"""Object graphs that lie: refused by name or followed, at once and without taking memory."""

import pytest
from bounds import cheap
from hypothesis import example, given
from hypothesis import strategies as st
from object_graphs import ORIGIN, VALUE, graph_of, recorded

from ckptmgr.errors import CorruptCheckpointError
from ckptmgr_tf_bundle import building, graph
from ckptmgr_tf_bundle.entry import varint
from ckptmgr_tf_bundle.graph import from_graph, from_keys

GRAPHS = sorted({found.graph for found in recorded().values()}, key=len)[:4]
KEYS = sorted({key for found in recorded().values() for key in found.keys})
ONE = b"\x0a\x02w"  # the start of a child, cut short


BAD_GRAPHS = {
    "cut short": (graph_of({"w": 1}, {})[:-1], "is no valid protobuf message"),
    "no message": (b"\xff\xff\xff", "is no valid protobuf message"),
    "an endless varint": (b"\x0a" + b"\x80" * 20, "is no valid protobuf message"),
    "a length of gigabytes": (b"\x0a\xff\xff\xff\xff\x07", "is no valid protobuf message"),
    "nested unknown groups": (b"\x0b" * 100_000, "is no valid protobuf message"),
    "a local name that is no text": (graph_of({"w": 1}, {}).replace(b"w", b"\xff"), "is no valid protobuf message"),
    "a lone surrogate": (graph_of({"wxy": 1}, {}).replace(b"wxy", b"\xed\xa0\x80"), "is no valid protobuf message"),
    "a key that is no text": (graph_of({}, variables={0: "k"}).replace(b"k", b"\xff"), "is no valid protobuf message"),
    "a child past the end": (graph_of({"w": 2}, {}), "refers to object 2, but it has 2"),
    "a child below zero": (graph_of({"w": -1}, {}), "refers to object -1, but it has 2"),
    "a child far away": (graph_of({"w": 2**31 - 1}, {}), "refers to object 2147483647, but it has 2"),
    "a slot variable past the end": (graph_of({}, {}, slots=[(0, 1, "m", 2)]), "refers to object 2, but it has 2"),
    "a slot variable below zero": (graph_of({}, {}, slots=[(0, 1, "m", -1)]), "refers to object -1, but it has 2"),
    "a slot of a variable past the end": (graph_of({}, {}, slots=[(0, 7, "m", 1)]), "refers to object 7, but it has 2"),
    "a slot of a variable below zero": (graph_of({}, {}, slots=[(0, -7, "m", 1)]), "refers to object -7, but it has 2"),
    "more than the keys need": (b"\x0a\x00" * (1 << 20), "has 2097152 bytes, over the limit of 1050624 for 1 tensors"),
}


@pytest.mark.parametrize("kind", BAD_GRAPHS)
def test_a_bad_graph_is_refused_at_once(kind: str) -> None:
    data, problem = BAD_GRAPHS[kind]

    with cheap(), pytest.raises(CorruptCheckpointError) as error:
        from_graph(data, ["k"], ORIGIN)

    assert str(error.value).startswith("'/runs/cp.index' is not a valid TensorFlow checkpoint: its object graph ")
    assert problem in str(error.value)
    assert error.value.file == "cp.index"


@pytest.mark.parametrize("kind", BAD_GRAPHS)
def test_a_bad_graph_is_never_carried_over(kind: str) -> None:
    data, _ = BAD_GRAPHS[kind]

    with cheap():
        assert building.carried(data, ["k"]) is None


def test_a_graph_of_nothing_has_no_names() -> None:
    assert from_graph(b"", ["a" + VALUE], ORIGIN).keys == {"a": "a" + VALUE}


def test_a_self_loop_is_walked_once() -> None:
    names = from_graph(graph_of({"me": 0, "w": 1}, {"me": 1}, variables={1: "k"}), ["k"], ORIGIN)

    assert names.keys == {"w": "k"}
    assert names.aliases == {"w/me": "w"}


def test_empty_nodes_cost_little() -> None:
    with cheap():
        assert from_graph(b"\x0a\x00" * (1 << 19), ["k"], ORIGIN).keys == {"k": "k"}


@pytest.mark.parametrize("field", [b"\x0a\x00", b"\x12\x00", b"\x1a\x00", b"\x0a\x02\x08\x01"])
def test_empty_parts_of_a_node_cost_little(field: bytes) -> None:
    node = field * (1_000_000 // len(field))
    data = b"\x0a" + varint(len(node)) + node + graph_of({}, variables={0: "k"})

    with cheap():
        assert list(from_graph(data, ["k"], ORIGIN).keys.values()) == ["k"]


def test_many_children_are_many_names() -> None:
    keys = [f"{number:05d}{VALUE}" for number in range(20_000)]
    children = {f"{number:05d}": number + 1 for number in range(20_000)}
    data = graph_of(children, *[{}] * 20_000, variables={number + 1: key for number, key in enumerate(keys)})

    with cheap():
        assert len(from_graph(data, keys, ORIGIN).keys) == 20_000


def test_many_children_that_are_one_node_are_not_many_aliases() -> None:
    data = graph_of({f"{number:06d}": 1 for number in range(60_000)}, {}, variables={1: "k"})

    with cheap(), pytest.raises(CorruptCheckpointError, match="names that are much longer than the keys"):
        from_graph(data, ["k"], ORIGIN)


def test_many_children_of_one_name_are_one_alias() -> None:
    children = b"\x0a\x05\x08\x01\x12\x01w" * 100_000
    data = b"\x0a" + varint(len(children)) + children + graph_of({}, variables={0: "k"})

    with cheap():
        assert from_graph(data, ["k"], ORIGIN).aliases == {}


def test_attributes_that_all_have_one_key_name_it_once() -> None:
    data = graph_of({"a": 1}, {}, others=[(1, f"x{number}", "k") for number in range(20_000)])

    with cheap():
        assert from_graph(data, ["k"], ORIGIN).keys == {"a/.ATTRIBUTES/x0": "k"}


def test_nodes_that_all_have_one_key_name_it_once() -> None:
    data = graph_of(
        {f"{number}": number + 1 for number in range(5_000)}, *[{}] * 5_000, variables=dict.fromkeys(range(1, 5_001), "k")
    )

    with cheap():
        names = from_graph(data, ["k"], ORIGIN)

    assert names.keys == {"0": "k"}
    assert len(names.aliases) == 4_999


def chain(length: int, *, name: str = "n", ends: int = 1) -> tuple[bytes, list[str]]:
    """Nodes in a row with variables at the end."""
    links = [{name: number + 1} for number in range(length - 1)]
    last = {f"{number}": length + number for number in range(ends)}
    keys = [f"k{number:04d}" for number in range(ends)]
    return graph_of(*links, last, *[{}] * ends, variables={length + number: key for number, key in enumerate(keys)}), keys


def test_a_long_chain_is_followed_without_recursion() -> None:
    data, keys = chain(20_000)

    with cheap():
        names = from_graph(data, keys, ORIGIN)

    assert names.keys == {"n/" * 19_999 + "0": "k0000"}


@pytest.mark.parametrize("name", ["n", "", "a much longer name of an object"])
def test_many_tensors_at_the_end_of_a_long_chain_are_refused(name: str) -> None:
    data, keys = chain(10_000, name=name, ends=1_000)

    with cheap(), pytest.raises(CorruptCheckpointError, match="names that are much longer than the keys"):
        from_graph(data, keys, ORIGIN)


def test_a_variable_at_each_link_of_a_long_chain_is_refused() -> None:
    count = 10_000
    data = graph_of(*[{"": number + 1} for number in range(count)], {}, variables={n: f"{n:05d}" for n in range(count)})

    with cheap(), pytest.raises(CorruptCheckpointError, match="names that are much longer than the keys"):
        from_graph(data, [f"{number:05d}" for number in range(count)], ORIGIN)


def test_many_slots_at_the_end_of_long_chains_are_refused() -> None:
    length, count = 4_000, 1_000
    links = [{"n": number + 1} for number in range(length - 1)]
    slots = [(length - 1, length - 1, f"{number}", length + number) for number in range(count)]
    keys = [f"k{number:04d}" for number in range(count)]
    data = graph_of(*links, *[{}] * (count + 1), variables={length + n: key for n, key in enumerate(keys)}, slots=slots)

    with cheap(), pytest.raises(CorruptCheckpointError, match="names that are much longer than the keys"):
        from_graph(data, keys, ORIGIN)


def test_many_attributes_at_the_end_of_a_long_chain_are_refused() -> None:
    keys = [f"k{number:04d}" for number in range(1_000)]
    links = [{"n": number + 1} for number in range(9_999)]
    data = graph_of(*links, {}, others=[(9_999, f"{number}", key) for number, key in enumerate(keys)])

    with cheap(), pytest.raises(CorruptCheckpointError, match="names that are much longer than the keys"):
        from_graph(data, keys, ORIGIN)


@pytest.mark.parametrize("name", ["..", "/", "../../etc/passwd", "a\0b", "C:\\x", "~", "\u202e", "", ".ATTRIBUTES"])
def test_a_local_name_is_only_a_name(name: str) -> None:
    key = f"{name.replace('.', '..').replace('/', '.S')}{VALUE}"

    names = from_graph(graph_of({name: 1}, {}, variables={1: key}), [key], ORIGIN)

    assert names.keys == {name: key}
    assert names.paths == {name: (name,)}


def test_keys_that_stand_under_each_other_cost_little() -> None:
    keys = ["/".join("a" * n) for n in range(1, 1_000)]

    with cheap():
        paths = from_keys(keys).paths

    assert paths["a/a/a"] == ("a/a/a",)


def test_a_key_of_slashes_costs_little() -> None:
    with cheap():
        assert len(from_keys(["/" * 500_000]).paths["/" * 500_000]) == 500_001


@given(st.binary(max_size=60))
@example(ONE)
def test_any_bytes_give_names_or_our_error(data: bytes) -> None:
    try:
        names = from_graph(data, ["a" + VALUE, "b"], ORIGIN)
    except CorruptCheckpointError:
        return

    assert sorted(names.keys.values()) == ["a" + VALUE, "b"]


@given(st.sampled_from(GRAPHS), st.data())
def test_a_damaged_graph_gives_names_or_our_error(whole: bytes, data: st.DataObject) -> None:
    damaged = bytearray(whole)
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
        damaged[at] = data.draw(st.integers(0, 255))

    try:
        names = from_graph(bytes(damaged), KEYS, ORIGIN)
    except CorruptCheckpointError:
        return

    assert sorted(names.keys.values()) == KEYS
    assert names.paths.keys() == names.keys.keys() | names.aliases.keys()


def test_the_limit_grows_with_the_number_of_tensors() -> None:
    assert graph.max_nbytes(0) == 1_048_576
    assert graph.max_nbytes(1_000) == 1_048_576 + 2_048_000
