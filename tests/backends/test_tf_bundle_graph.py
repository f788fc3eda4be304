"""Names of tensors, by the object graph that TensorFlow stores beside them."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from object_graphs import ORIGIN, VALUE, graph_of, recorded

from ckptmgr_tf_bundle import keys as spelling
from ckptmgr_tf_bundle.graph import Names, from_graph, from_keys, name_all, walk

RECORDED = recorded()
each_recorded = pytest.mark.parametrize("program", RECORDED)


def names_of(graph: bytes, keys: Sequence[str]) -> Names:
    return from_graph(graph, keys, ORIGIN)


def conflicts(paths: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Paths that are there twice or lead through another one."""
    return [path for path in paths if paths.count(path) > 1 or any(path[:n] in paths for n in range(len(path)))]


def test_there_are_recorded_graphs_of_every_kind_of_program() -> None:
    assert {"object_graph", "object_graph_written", "keras_small_cp", "keras_legacy_ck", "keras_legacy_weights", "keras3"} < {
        *RECORDED
    }
    assert {"savedmodel_keras", "savedmodel_module", "variant", "manager"} < {*RECORDED}


@each_recorded
def test_the_graph_names_what_tensorflow_stored_as_the_keys_say(program: str) -> None:
    graph, keys, _ = RECORDED[program]

    names = names_of(graph, keys).keys

    assert list(names.values()) == keys
    assert all((place := spelling.parse(key)) and place.name == name for name, key in names.items())


@each_recorded
def test_the_graph_and_not_the_key_gives_the_name(program: str) -> None:
    graph, keys, nodes = RECORDED[program]
    numbered = {key: f"{number}" for number, key in enumerate(keys)}
    variables = {attribute[2] for node in nodes for attribute in node["attributes"] if attribute[0] == "VARIABLE_VALUE"}
    walked = walk(graph, len(keys))
    renumbered = walked._replace(variables={node: numbered[key] for node, key in walked.variables.items() if key in numbered})

    names = name_all(renumbered, list(numbered.values())).keys

    expected = {spelling.parse(key).name: number for key, number in numbered.items() if key in variables}
    assert {name: number for name, number in names.items() if name in expected} == expected


@each_recorded
def test_no_path_of_what_tensorflow_stored_leads_through_a_tensor(program: str) -> None:
    graph, keys, _ = RECORDED[program]

    names = names_of(graph, keys)

    assert names.paths.keys() == names.keys.keys() | names.aliases.keys()
    assert conflicts(list(names.paths.values())) == []


@each_recorded
def test_aliases_are_further_names_of_tensors(program: str) -> None:
    graph, keys, _ = RECORDED[program]

    names = names_of(graph, keys)

    assert names.aliases.keys().isdisjoint(names.keys)
    assert names.keys.keys() >= set(names.aliases.values())


def test_a_tied_variable_has_one_name_and_an_alias() -> None:
    names = names_of(*RECORDED["object_graph"][:2])

    assert "net/tied" in names.keys
    assert names.aliases["net/blocks/0/w"] == "net/tied"
    assert names.paths["net/blocks/0/w"] == ("net", "blocks", "0", "w")


def test_names_with_odd_characters_are_raw() -> None:
    names = names_of(*RECORDED["object_graph"][:2])

    assert names.keys["net/table/a/b"] == "net/table/a.Sb" + VALUE
    assert names.paths["net/table/a/b"] == ("net", "table", "a/b")
    assert names.paths["net/table/x.y"] == ("net", "table", "x.y")


def test_keras_counts_its_iterations_under_two_names() -> None:
    names = names_of(*RECORDED["keras_small_cp"][:2])

    assert names.aliases["optimizer/_variables/0"] == "optimizer/_iterations"


def test_weights_of_keras_3_have_their_names_in_the_model_as_aliases() -> None:
    names = names_of(*RECORDED["keras3"][:2])

    assert "optimizer/_trainable_variables/0" in names.keys
    assert names.aliases["model/_functional/_operations/1/_kernel"] == "optimizer/_trainable_variables/0"


def test_a_slot_variable_stands_beside_its_variable() -> None:
    names = names_of(*RECORDED["keras_legacy_ck"][:2])

    name = "model/layer_with_weights-0/kernel/.OPTIMIZER_SLOT/optimizer/m"
    assert names.keys[name] == name + VALUE
    assert names.paths[name] == ("model", "layer_with_weights-0", "kernel/.OPTIMIZER_SLOT/optimizer/m")


def test_a_key_that_the_graph_does_not_mention_names_itself() -> None:
    names = names_of(*RECORDED["variant"][:2])

    assert names.keys["it/.ATTRIBUTES/ITERATOR_STATE"] == "it/.ATTRIBUTES/ITERATOR_STATE"
    assert names.paths["it/.ATTRIBUTES/ITERATOR_STATE"] == ("it", ".ATTRIBUTES/ITERATOR_STATE")


def test_the_shortest_path_names_a_variable_and_the_first_of_equal_ones() -> None:
    graph = graph_of({"deep": 1, "b": 2, "a": 2}, {"w": 2}, {}, variables={2: "k"})

    names = names_of(graph, ["k"])

    assert names.keys == {"b": "k"}
    assert names.aliases == {"a": "b", "deep/w": "b"}


def test_a_child_that_refers_back_to_the_root_is_no_matter() -> None:
    graph = graph_of({"root": 0, "w": 1, "net": 2}, {"me": 1}, {"up": 0, "me": 2, "v": 3}, {}, variables={1: "w", 3: "v"})

    names = names_of(graph, ["v", "w"])

    assert names.keys == {"net/v": "v", "w": "w"}
    assert names.aliases == {"w/me": "w"}


def test_two_nodes_of_one_key_are_two_names_of_one_tensor() -> None:
    graph = graph_of({"a": 1, "b": 2}, {}, {}, variables={1: "k", 2: "k"})

    names = names_of(graph, ["k"])

    assert names.keys == {"a": "k"}
    assert names.aliases == {"b": "a"}


def test_a_variable_that_is_the_root_has_the_empty_name() -> None:
    names = names_of(graph_of({}, variables={0: "/.ATTRIBUTES/VARIABLE_VALUE"}), ["/.ATTRIBUTES/VARIABLE_VALUE"])

    assert names.keys == {"": "/.ATTRIBUTES/VARIABLE_VALUE"}
    assert names.paths == {"": ("",)}


def test_variables_whose_key_is_not_in_the_bundle_are_no_tensors() -> None:
    graph = graph_of({"a": 1, "b": 2, "c": 1}, {}, {}, variables={1: "gone", 2: "b"})

    assert names_of(graph, ["b"]) == Names({"b": "b"}, {}, {"b": ("b",)})


def test_an_attribute_that_is_a_tensor_is_named_by_its_node() -> None:
    graph = graph_of({"layer": 1}, {}, others=[(1, "OBJECT_CONFIG", "odd key"), (1, "table", "layer/.ATTRIBUTES/table")])

    names = names_of(graph, ["odd key"])

    assert names.keys == {"layer/.ATTRIBUTES/OBJECT_CONFIG": "odd key"}
    assert names.paths == {"layer/.ATTRIBUTES/OBJECT_CONFIG": ("layer", ".ATTRIBUTES/OBJECT_CONFIG")}


def test_tensors_of_a_lookup_table_are_named_though_the_graph_has_another_key() -> None:
    keys = ["vocab/.ATTRIBUTES/table-keys", "vocab/.ATTRIBUTES/table-values"]
    graph = graph_of({"vocab": 1}, {}, others=[(1, "table", "vocab/.ATTRIBUTES/table")])

    names = names_of(graph, keys)

    assert list(names.keys) == keys
    assert names.paths["vocab/.ATTRIBUTES/table-keys"] == ("vocab", ".ATTRIBUTES/table-keys")


def test_names_come_in_the_order_of_the_keys() -> None:
    graph = graph_of({"z": 1, "a": 2, "m": 3}, {}, {}, {}, variables={1: "1", 2: "3", 3: "2"})

    assert list(names_of(graph, ["0", "1", "2", "3"]).keys) == ["0", "z", "m", "a"]


def test_a_slot_is_named_though_the_keys_do_not_tell() -> None:
    graph = graph_of({"w": 1, "opt": 2}, {}, {}, {}, variables={1: "k1", 3: "k2"}, slots=[(2, 1, "m", 3)])

    names = names_of(graph, ["k1", "k2"])

    assert names.keys == {"w": "k1", "w/.OPTIMIZER_SLOT/opt/m": "k2"}
    assert names.paths["w/.OPTIMIZER_SLOT/opt/m"] == ("w/.OPTIMIZER_SLOT/opt/m",)


def test_a_slot_whose_variable_is_on_no_path_is_named_by_its_key() -> None:
    graph = graph_of({"opt": 1}, {}, {}, {}, variables={3: "w/.OPTIMIZER_SLOT/opt/m" + VALUE}, slots=[(1, 2, "m", 3)])

    assert list(names_of(graph, ["w/.OPTIMIZER_SLOT/opt/m" + VALUE]).keys) == ["w/.OPTIMIZER_SLOT/opt/m"]


def test_names_that_would_be_equal_are_escaped_and_nest_as_they_are() -> None:
    keys = ["a.Sb" + VALUE, "a/b" + VALUE, "c" + VALUE]
    graph = graph_of({"a/b": 1, "a": 2, "c": 4}, {}, {"b": 3}, {}, {}, variables={1: keys[0], 3: keys[1], 4: keys[2]})

    names = names_of(graph, keys)

    assert names.keys == {"a.Sb": keys[0], "a/b": keys[1], "c": keys[2]}
    assert names.paths == {"a.Sb": ("a/b",), "a/b": ("a", "b"), "c": ("c",)}


def test_names_whose_escaped_spelling_is_taken_are_the_keys() -> None:
    keys = ["a..Sb" + VALUE, "a.Sb" + VALUE, "a/b" + VALUE]
    graph = graph_of({"a.Sb": 1, "a/b": 2, "a": 3}, {}, {}, {"b": 4}, {}, variables={1: keys[0], 2: keys[1], 4: keys[2]})

    names = names_of(graph, keys)

    assert names.keys == {keys[0]: keys[0], keys[1]: keys[1], "a/b": keys[2]}


def test_two_children_of_one_name_are_told_apart_by_their_keys() -> None:
    graph = graph_of({"w": 1, "x": 2}, {}, {}, variables={1: "k1", 2: "k2"}).replace(b"\x01x", b"\x01w")

    names = names_of(graph, ["k1", "k2"])

    assert names.keys == {"k1": "k1", "k2": "k2"}
    assert conflicts(list(names.paths.values())) == []


def test_all_are_named_by_their_keys_where_even_a_key_is_the_name_of_another() -> None:
    graph = graph_of({"w": 1, "v": 2, "x": 3}, {}, {}, {}, variables={1: "k1", 2: "x", 3: "k3"}).replace(b"\x01v", b"\x01w")

    assert list(names_of(graph, ["k1", "k3", "x"]).keys) == ["k1", "k3", "x"]


def test_an_alias_that_is_the_name_of_a_tensor_is_left_out() -> None:
    graph = graph_of({"a/b": 1, "a": 2}, {}, {"b": 3, "c": 1}, {}, variables={1: "k1", 3: "k2"})
    tied = graph_of({"w": 1, "a": 2, "a/b": 1}, {}, {"b": 3}, {}, variables={1: "k1", 3: "k2"})

    assert names_of(graph, ["k1", "k2"]).aliases == {"a/c": "a.Sb"}
    assert names_of(tied, ["k1", "k2"]).aliases == {}


def test_a_tensor_under_a_tensor_stands_beside_it() -> None:
    graph = graph_of({"net": 1}, {"w": 2}, {"part": 3}, {"x": 4}, {}, variables={2: "k1", 4: "k2"})

    names = names_of(graph, ["k1", "k2"])

    assert names.paths == {"net/w": ("net", "w"), "net/w/part/x": ("net", "w/part/x")}


def test_an_alias_under_a_tensor_stands_beside_it() -> None:
    graph = graph_of({"w": 1, "v": 2}, {"other": 2}, {}, variables={1: "w", 2: "v"})

    names = names_of(graph, ["v", "w"])

    assert names.aliases == {"w/other": "v"}
    assert names.paths["w/other"] == ("w/other",)


def test_names_without_a_graph_are_the_keys_split_at_slashes() -> None:
    names = from_keys(["global_step", "scope/emb", "w"])

    assert names.keys == {"global_step": "global_step", "scope/emb": "scope/emb", "w": "w"}
    assert names.aliases == {}
    assert names.paths == {"global_step": ("global_step",), "scope/emb": ("scope", "emb"), "w": ("w",)}


def test_slots_of_tensorflow_1_stand_beside_their_variables() -> None:
    names = from_keys(["a/w", "a/w/Adam", "a/w/Adam_1"])

    assert names.paths == {"a/w": ("a", "w"), "a/w/Adam": ("a", "w/Adam"), "a/w/Adam_1": ("a", "w/Adam_1")}


def test_tensors_that_cannot_nest_at_all_stand_flat() -> None:
    graph = graph_of({"a": 1, "a/b": 3}, {"b": 2}, {}, {}, variables={1: "k1", 2: "a/b" + VALUE, 3: "a.Sb" + VALUE})

    names = names_of(graph, ["a.Sb" + VALUE, "a/b" + VALUE, "k1"])

    assert names.paths == {"a": ("a",), "a/b": ("a/b",), "a.Sb": ("a.Sb",)}


@given(st.lists(st.text(alphabet="ab/", min_size=1, max_size=7), unique=True))
def test_paths_of_any_keys_lead_through_no_tensor(keys: list[str]) -> None:
    names = from_keys(keys)

    assert list(names.keys) == keys
    assert conflicts(list(names.paths.values())) == []


@st.composite
def graphs(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    count = draw(st.integers(1, 7))
    node = st.integers(0, count - 1)
    name = st.sampled_from(["a", "b", "a/b", "a.Sb", "", ".ATTRIBUTES", "a/.OPTIMIZER_SLOT/b/m"])
    children = draw(st.lists(st.dictionaries(name, node, max_size=3), min_size=count, max_size=count))
    key = st.sampled_from(
        ["a" + VALUE, "a/b" + VALUE, "a.Sb" + VALUE, "b", "a", "a/.OPTIMIZER_SLOT/b/m" + VALUE, "a/.ATTRIBUTES/x"]
    )
    variables = draw(st.dictionaries(node, key))
    slots = draw(st.lists(st.tuples(node, node, name, node), max_size=2))
    others = draw(st.lists(st.tuples(node, name, key), max_size=2))
    return graph_of(*children, variables=variables, slots=slots, others=others), sorted(draw(st.sets(key)))


@given(graphs())
def test_every_key_of_any_graph_has_one_name_and_one_place(drawn: tuple[bytes, list[str]]) -> None:
    graph, keys = drawn

    names = names_of(graph, keys)

    assert list(names.keys.values()) == keys
    assert set(names.aliases.values()) <= names.keys.keys()
    assert names.aliases.keys().isdisjoint(names.keys)
    assert list(names.paths) == [*names.keys, *names.aliases]
    assert conflicts(list(names.paths.values())) == []
