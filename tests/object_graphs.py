"""Object graphs for tests: written down by hand, and those that real TensorFlow wrote (``tests/golden/tf_bundle``)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ckptmgr_tf_bundle.keys import GRAPH_KEY
from ckptmgr_tf_bundle.messages import ObjectGraph
from ckptmgr_tf_bundle.origin import Origin

EXPECTED = Path(__file__).parent / "golden" / "tf_bundle" / "expected"
ORIGIN = Origin("cp.index", "/runs/cp.index")
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


class Recorded(NamedTuple):
    """What TensorFlow wrote: the serialized graph, the keys of its tensors, and the graph as JSON (older ones have none)."""

    graph: bytes
    keys: list[str]
    nodes: list[dict[str, Any]]


def recorded() -> dict[str, Recorded]:
    """All object graphs among the golden files."""
    found = {}
    for path in sorted(EXPECTED.glob("*.json")):
        about = json.loads(path.read_text())
        keys = sorted({**about.get("tensors", {}), **about.get("variant_keys", {})}, key=str.encode)
        if GRAPH_KEY in keys and about["tensors"][GRAPH_KEY].get("npz"):
            values = np.load(path.with_suffix(".npz"))
            graph = values[about["tensors"][GRAPH_KEY]["npz"]].tobytes()
            found[path.stem] = Recorded(graph, [key for key in keys if key != GRAPH_KEY], about.get("graph", []))
    return found


def graph_of(
    *children: Mapping[str, int],
    variables: Mapping[int, str] | None = None,
    others: Sequence[tuple[int, str, str]] = (),
    slots: Sequence[tuple[int, int, str, int]] = (),
) -> bytes:
    """A graph of nodes with these children, local name -> node.

    ``variables`` gives nodes the key of their value, ``others`` are (node, attribute, key), ``slots`` are
    (optimizer, variable, slot name, slot variable).
    """
    graph = ObjectGraph()
    for held in children:
        node = graph.nodes.add()
        for name, number in held.items():
            node.children.add(node_id=number, local_name=name)
    for number, key in (variables or {}).items():
        graph.nodes[number].attributes.add(name="VARIABLE_VALUE", checkpoint_key=key)
    for number, attribute, key in others:
        graph.nodes[number].attributes.add(name=attribute, checkpoint_key=key)
    for optimizer, variable, name, number in slots:
        graph.nodes[optimizer].slot_variables.add(
            original_variable_node_id=variable, slot_name=name, slot_variable_node_id=number
        )
    return bytes(graph.SerializeToString())


def edges(graph: bytes) -> list[list[tuple[str, int]]]:
    """The children of each node, by local name and number."""
    return [[(child.local_name, child.node_id) for child in node.children] for node in ObjectGraph.FromString(graph).nodes]
