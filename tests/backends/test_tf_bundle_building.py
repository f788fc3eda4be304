"""Object graphs of new checkpoints, and which old ones can be written again."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from object_graphs import ORIGIN, VALUE, edges, graph_of, recorded

from ckptmgr_tf_bundle import building
from ckptmgr_tf_bundle.building import build, carried
from ckptmgr_tf_bundle.graph import from_graph
from ckptmgr_tf_bundle.messages import ObjectGraph

RECORDED = recorded()
SLOT = "w/.OPTIMIZER_SLOT/opt/m"


def built(*paths: tuple[str, ...], save_counter: str | None = None) -> building.Built:
    return build({"/".join(path): path for path in paths}, save_counter=save_counter)


def test_a_state_has_a_node_for_each_container_and_tensor_in_breadth() -> None:
    graph, keys = built(("net", "w"), ("net", "b"), ("step",))

    assert edges(graph) == [[("net", 1), ("step", 2)], [("w", 3), ("b", 4)], [], [], []]
    assert keys == {"net/w": "net/w" + VALUE, "net/b": "net/b" + VALUE, "step": "step" + VALUE}


def test_a_tensor_is_one_attribute_of_its_node() -> None:
    node = ObjectGraph.FromString(built(("w",)).graph).nodes[1]

    assert [(a.name, a.full_name, a.checkpoint_key) for a in node.attributes] == [("VARIABLE_VALUE", "", "w" + VALUE)]


def test_every_node_says_that_it_has_values() -> None:
    nodes = ObjectGraph.FromString(built(("net", "w")).graph).nodes

    assert [node.has_checkpoint_values.value for node in nodes] == [True, True, True]


def test_bytes_are_those_of_tensorflow_without_its_own_names_of_variables() -> None:
    key = b"w/.ATTRIBUTES/VARIABLE_VALUE"

    assert (
        built(("w",)).graph
        == b"\n\x0b\n\x05\x08\x01\x12\x01w*\x02\x08\x01" + b"\n\x34\x12\x2e\n\x0eVARIABLE_VALUE\x1a\x1c" + key + b"*\x02\x08\x01"
    )


def test_local_names_are_raw_and_keys_escaped() -> None:
    graph, keys = built(("a/b", "x.y", ""))

    assert edges(graph) == [[("a/b", 1)], [("x.y", 2)], [("", 3)], []]
    assert keys == {"a/b/x.y/": "a.Sb/x..y/" + VALUE}


def test_a_state_that_is_one_tensor_is_the_root() -> None:
    graph, keys = build({"": ()}, save_counter=None)

    assert ObjectGraph.FromString(graph).nodes[0].attributes[0].checkpoint_key == "/.ATTRIBUTES/VARIABLE_VALUE"
    assert keys == {"": "/.ATTRIBUTES/VARIABLE_VALUE"}


def test_a_tensor_may_stand_under_a_tensor() -> None:
    graph, keys = built(("a",), ("a", "b"))

    assert edges(graph) == [[("a", 1)], [("b", 2)], []]
    assert keys == {"a": "a" + VALUE, "a/b": "a/b" + VALUE}


def test_an_empty_state_is_a_root() -> None:
    graph, keys = built()

    assert edges(graph) == [[]]
    assert keys == {}


def test_a_save_counter_is_added_last() -> None:
    graph, keys = built(("w",), save_counter="the counter")

    assert edges(graph)[0] == [("w", 1), ("save_counter", 2)]
    assert keys["the counter"] == "save_counter" + VALUE


def test_no_save_counter_is_added_where_the_state_has_one() -> None:
    graph, keys = built(("save_counter",), ("w",), save_counter="the counter")

    assert edges(graph)[0] == [("save_counter", 1), ("w", 2)]
    assert "the counter" not in keys


def test_a_save_counter_of_a_part_is_not_that_of_the_state() -> None:
    _, keys = built(("net", "save_counter"), save_counter="the counter")

    assert "the counter" in keys


def test_a_save_counter_of_a_tensors_name_is_refused() -> None:
    with pytest.raises(ValueError, match="'w' of the save counter is that of another tensor"):
        built(("w",), save_counter="w")


def test_a_slot_variable_is_known_to_its_optimizer_only() -> None:
    graph, keys = built(("net", "w"), ("opt", "iter"), ("net", SLOT))
    nodes = ObjectGraph.FromString(graph).nodes

    assert edges(graph) == [[("net", 1), ("opt", 2)], [("w", 3)], [("iter", 4)], [], [], []]
    slots = [(slot.original_variable_node_id, slot.slot_name, slot.slot_variable_node_id) for slot in nodes[2].slot_variables]
    assert slots == [(3, "m", 5)]
    assert keys[f"net/{SLOT}"] == "net/w/.OPTIMIZER_SLOT/opt/m" + VALUE


def test_a_slot_may_come_before_its_variable() -> None:
    _, keys = built((SLOT,), ("w",))

    assert keys[SLOT] == SLOT + VALUE


def test_an_optimizer_that_has_only_slots_is_made() -> None:
    graph, _ = built(("w",), ("w/.OPTIMIZER_SLOT/a/b/m",))

    assert edges(graph) == [[("w", 1), ("a", 2)], [], [("b", 3)], [], []]


def test_an_optimizer_with_a_slash_in_its_name_is_found() -> None:
    graph, keys = built(("w",), ("a/b", "iter"), ("w/.OPTIMIZER_SLOT/a/b/m",))

    assert edges(graph)[0] == [("w", 1), ("a/b", 2)]
    assert keys["w/.OPTIMIZER_SLOT/a/b/m"] == "w/.OPTIMIZER_SLOT/a.Sb/m" + VALUE


def test_the_root_may_be_the_optimizer() -> None:
    graph, keys = built(("w",), ("w/.OPTIMIZER_SLOT//m",))

    assert len(ObjectGraph.FromString(graph).nodes[0].slot_variables) == 1
    assert keys["w/.OPTIMIZER_SLOT//m"] == "w/.OPTIMIZER_SLOT//m" + VALUE


@pytest.mark.parametrize("last", ["v/.OPTIMIZER_SLOT/opt/m", ".OPTIMIZER_SLOT/opt/m", "w/.OPTIMIZER_SLOT/m", "w.OPTIMIZER_SLOT"])
def test_what_is_no_slot_of_a_tensor_beside_it_is_a_name(last: str) -> None:
    graph, keys = built(("w",), (last,))

    assert edges(graph)[0] == [("w", 1), (last, 2)]
    assert keys[last] == last.replace(".", "..").replace("/", ".S") + VALUE


def test_another_attribute_belongs_to_its_container() -> None:
    graph, keys = built(("vocab", ".ATTRIBUTES/table-keys"), ("vocab", ".ATTRIBUTES/table-values"))

    assert edges(graph) == [[("vocab", 1)], []]
    assert list(keys.values()) == ["vocab/.ATTRIBUTES/table-keys", "vocab/.ATTRIBUTES/table-values"]


def test_another_attribute_belongs_to_a_tensor() -> None:
    _, keys = built(("net", "w/.ATTRIBUTES/text"), ("net", "w"))

    assert keys == {"net/w/.ATTRIBUTES/text": "net/w/.ATTRIBUTES/text", "net/w": "net/w" + VALUE}


def test_a_slot_variable_may_have_another_attribute() -> None:
    _, keys = built(("w",), (SLOT + "/.ATTRIBUTES/text",), (SLOT,))

    assert keys[SLOT + "/.ATTRIBUTES/text"] == SLOT + "/.ATTRIBUTES/text"


@pytest.mark.parametrize("last", ["v/.ATTRIBUTES/text", ".ATTRIBUTES/VARIABLE_VALUE", ".ATTRIBUTES/", "x.ATTRIBUTES/y"])
def test_what_is_no_attribute_of_something_there_is_a_name(last: str) -> None:
    _, keys = built(("w",), (last,))

    assert keys[last] == last.replace(".", "..").replace("/", ".S") + VALUE


@pytest.mark.parametrize(
    "paths",
    [{"one": ("w",), "two": ("w",)}, {"one": (), "two": ("",)}, {"one": (".ATTRIBUTES/x",), "two": ("", ".ATTRIBUTES/x")}],
)
def test_two_tensors_of_one_key_are_refused_by_name(paths: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match=r"the tensors 'one' and 'two' would both have the key '.*ATTRIBUTES/"):
        build(paths, save_counter=None)


def test_a_name_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        built(("\ud800",))


def test_tied_tensors_are_nodes_of_their_own() -> None:
    graph, keys = built(("embed", "w"), ("head", "w"))

    assert edges(graph) == [[("embed", 1), ("head", 2)], [("w", 3)], [("w", 4)], [], []]
    assert len(set(keys.values())) == 2


names = st.text(alphabet="ab./é", max_size=3)
keys_in_state = st.lists(names, min_size=1, max_size=3).map(tuple)


@given(st.sets(keys_in_state, max_size=8))
def test_what_is_built_is_read_with_the_same_keys(paths: set[tuple[str, ...]]) -> None:
    graph, keys = build({repr(path): path for path in paths}, save_counter=None)

    read = from_graph(graph, sorted(keys.values()), ORIGIN)

    assert sorted(read.keys.values()) == sorted(keys.values())
    assert read.aliases == {}


@given(st.sets(keys_in_state, min_size=1, max_size=8))
def test_what_is_read_is_built_with_the_same_names(paths: set[tuple[str, ...]]) -> None:
    first = build({repr(path): path for path in paths}, save_counter=None)
    names = from_graph(first.graph, sorted(first.keys.values()), ORIGIN)

    second = build({name: names.paths[name] for name in names.keys}, save_counter=None)
    again = from_graph(second.graph, sorted(second.keys.values()), ORIGIN)

    assert again.keys.keys() == names.keys.keys()


@pytest.mark.parametrize("program", RECORDED)
def test_what_tensorflow_wrote_has_the_same_keys_when_it_is_built(program: str) -> None:
    graph, keys, _ = RECORDED[program]
    names = from_graph(graph, keys, ORIGIN)

    assert build({name: names.paths[name] for name in names.keys}, save_counter=None).keys == names.keys


@pytest.mark.parametrize("program", RECORDED)
def test_what_tensorflow_wrote_can_be_written_again_with_its_names(program: str) -> None:
    graph, keys, _ = RECORDED[program]
    names = from_graph(graph, keys, ORIGIN)

    assert carried(graph, names.keys) == names.keys


@pytest.mark.parametrize("program", ["object_graph", "keras_legacy_ck", "variant"])
def test_a_graph_is_not_carried_where_a_tensor_is_missing_or_new(program: str) -> None:
    graph, keys, _ = RECORDED[program]
    names = list(from_graph(graph, keys, ORIGIN).keys)

    assert [carried(graph, [*names[:at], *names[at + 1 :]]) for at in range(len(names))] == [None] * len(names)
    assert carried(graph, [*names, "new"]) is None


def test_tensors_of_a_lookup_table_are_carried_by_what_the_graph_says_of_it() -> None:
    graph = graph_of({"a/b": 1}, {}, others=[(1, "table", "a.Sb/.ATTRIBUTES/table")])

    assert carried(graph, ["a/b/.ATTRIBUTES/table-keys", "a/b/.ATTRIBUTES/table-values"]) == {
        "a/b/.ATTRIBUTES/table-keys": "a.Sb/.ATTRIBUTES/table-keys",
        "a/b/.ATTRIBUTES/table-values": "a.Sb/.ATTRIBUTES/table-values",
    }


def test_a_lookup_table_without_tensors_is_not_carried() -> None:
    graph = graph_of({"t": 1, "w": 2}, {}, {}, variables={2: "w"}, others=[(1, "table", "t/.ATTRIBUTES/table")])

    assert carried(graph, ["w"]) is None
    assert carried(graph, ["w", "t/.ATTRIBUTES/other"]) is None


def test_an_attribute_without_a_key_of_its_place_is_not_carried() -> None:
    assert carried(graph_of({"t": 1}, {}, others=[(1, "table", "odd")]), ["odd"]) is None


def test_aliases_that_the_graph_ties_get_the_key_of_their_tensor() -> None:
    graph, keys, _ = RECORDED["object_graph"]
    names = from_graph(graph, keys, ORIGIN)

    found = carried(graph, [*names.keys, *names.aliases], names.aliases)

    assert found is not None
    assert found["net/blocks/0/w"] == "net/tied" + VALUE
    assert {name: found[name] for name in names.keys} == names.keys


def test_aliases_that_the_graph_does_not_tie_are_not_carried() -> None:
    graph = graph_of({"a": 1, "b": 2, "c": 1}, {}, {}, variables={1: "a", 2: "b"})

    assert carried(graph, ["a", "b"], {"c": "a"}) == {"a": "a", "b": "b", "c": "a"}
    assert carried(graph, ["a", "b"], {"c": "b"}) is None
    assert carried(graph, ["a", "b"], {"d": "a"}) is None


def test_an_alias_that_became_a_tensor_of_its_own_is_not_carried() -> None:
    graph = graph_of({"a": 1, "c": 1}, {}, variables={1: "a"})

    assert carried(graph, ["a", "c"]) is None


def test_many_slots_are_built_in_time_linear_in_their_number() -> None:
    variables = [("net", str(number)) for number in range(10_000)]
    slots = [("net", f"{number}/.OPTIMIZER_SLOT/opt{number}/m") for number in range(10_000)]
    started = time.process_time()

    graph, keys = built(*variables, *slots)

    assert len(keys) == 20_000
    assert len(from_graph(graph, list(keys.values()), ORIGIN).keys) == 20_000
    assert time.process_time() - started < 5
