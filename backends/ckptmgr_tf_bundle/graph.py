"""The object graph of a checkpoint, read: which name each tensor has, and by which paths through the objects.

It is a graph and not a tree: objects are shared, and there are cycles. Nothing here recurses or enumerates paths, and
what names may take is bounded by the size of the keys.

Source: TensorFlow's trackable_object_graph.proto, and graph_view.py for which path names an object.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from ckptmgr_tf_bundle.keys import VARIABLE_VALUE, Parts, Place, parse
from ckptmgr_tf_bundle.messages import ObjectGraph
from ckptmgr_tf_bundle.nesting import nested
from ckptmgr_tf_bundle.origin import Origin

# Graphs of real programs take some 300 bytes a tensor; protobuf takes thirty times the bytes of empty messages.
_MIN_NBYTES = 1 << 20
_NBYTES_PER_KEY = 2048
# What a name takes beside its characters (a string, a tuple, entries in dicts), and what each step of its path takes.
_NAME_NBYTES = 128
_STEP_NBYTES = 8
_MIN_NAMES_NBYTES = 4 << 20
_NAMES_NBYTES_PER_KEY_NBYTE = 32


class GraphError(ValueError):
    """What is wrong with an object graph, as the end of a sentence about it."""


class Names(NamedTuple):
    """What the tensors of a bundle are called.

    ``keys`` has each tensor's name and key, in the order of the keys; ``aliases`` further names of these tensors.
    ``paths`` tells for all these names how they nest; no path leads through a tensor.
    """

    keys: dict[str, str]
    aliases: dict[str, str]
    paths: dict[str, tuple[str, ...]]


class Graph(NamedTuple):
    """An object graph, walked from its root in breadth.

    ``variables`` has the key of each node that is a variable, ``others`` node, name and key of each other attribute.
    ``steps`` tells how each node was reached first, in that order: from which one, under which local name, and how many
    bytes the path so far takes. ``further`` has the other references to variables: from and local name, and to which one.
    ``slots`` has the variables that an optimizer keeps for others: the optimizer, the other variable, the slot's name.
    """

    variables: dict[int, str]
    others: list[tuple[int, str, str]]
    steps: dict[int, tuple[int, str, int]]
    further: dict[tuple[int, str], int]
    slots: dict[int, tuple[int, int, str]]


def from_graph(graph: bytes, keys: Sequence[str], origin: Origin, *, beside: int = 0) -> Names:
    """Names of the tensors with these keys, by the shortest path that leads to each, as TensorFlow makes the keys.

    The bundle may have entries ``beside`` them, as plain values are: they add to how large a graph may be.

    Slot variables are named by their variable and optimizer. Keys that the graph does not mention, as those of lookup
    tables and iterators, are named by what they say themselves. Each further reference to a variable gives it an alias,
    unless a tensor has that name.

    Raises:
        CorruptCheckpointError: it is no object graph, refers to objects that are not there, or is too large for the keys.
    """
    try:
        return name_all(walk(graph, len(keys) + beside), keys)
    except GraphError as error:
        raise origin.corrupt(f"its object graph {error}") from error


def from_keys(keys: Sequence[str]) -> Names:
    """Names of the tensors of a bundle without an object graph: the keys themselves, which nest at each ``/``."""
    paths = nested([tuple(key.split("/")) for key in keys], keys)
    return Names(dict(zip(keys, keys, strict=True)), {}, dict(zip(keys, paths, strict=True)))


def max_nbytes(keys: int) -> int:
    """The largest object graph that is read for a bundle of so many keys."""
    return _MIN_NBYTES + _NBYTES_PER_KEY * keys


def walk(graph: bytes, keys: int) -> Graph:
    """The object graph of a bundle of so many keys.

    Raises:
        GraphError: as `from_graph` says.
    """
    if len(graph) > max_nbytes(keys):
        raise GraphError(f"has {len(graph)} bytes, over the limit of {max_nbytes(keys)} for {keys} tensors")
    try:
        nodes = ObjectGraph.FromString(graph).nodes
    except DecodeError as error:
        raise GraphError(f"is no valid protobuf message: {error}") from error
    variables, others = _attributes(nodes)
    steps = {0: (0, "", 0)} if nodes else {}
    further: dict[tuple[int, str], int] = {}
    slots: dict[int, tuple[int, int, str]] = {}
    reached = list(steps)
    for number in reached:  # grows on the way
        node, nbytes = nodes[number], steps[number][2] + _STEP_NBYTES
        for child in node.children:
            target = child.node_id
            if target not in steps:
                name = child.local_name
                steps[_checked(target, nodes)] = (number, name, nbytes + len(name))
                reached.append(target)
            elif target in variables:
                further.setdefault((number, child.local_name), target)
        for slot in node.slot_variables:
            variable = _checked(slot.original_variable_node_id, nodes)
            slots.setdefault(_checked(slot.slot_variable_node_id, nodes), (number, variable, slot.slot_name))
    return Graph(variables, others, steps, further, slots)


def name_all(graph: Graph, keys: Sequence[str]) -> Names:
    """Names of the tensors with these keys, as `from_graph` tells.

    Raises:
        GraphError: the names would take much more than the keys do.
    """
    naming = _Naming(graph, keys)
    naming.name_variables()
    naming.name_slots()
    naming.name_others()
    names, paths = [], []
    for key in keys:
        if key in naming.parts:
            names.append("/".join(naming.parts[key]))
            paths.append(naming.parts[key])
        else:
            place = naming.place(key)
            names.append(place.name if place else key)
            paths.append(place.path if place else (key,))
    names = list(_distinct(names, keys, naming))
    named = dict(zip(names, keys, strict=True))
    by_key = dict(zip(keys, names, strict=True))
    aliases = {}
    for parts, key in naming.aliases():
        alias = "/".join(parts)
        if alias not in named and alias not in aliases:
            aliases[alias] = by_key[key]
            paths.append(parts)
    names += aliases
    return Names(named, aliases, dict(zip(names, nested(paths, names), strict=True)))


class _Naming:
    """Where the tensors with these keys stand: ``parts`` for a variable on a path, ``places`` for others."""

    def __init__(self, graph: Graph, keys: Collection[str]) -> None:
        self.parts: dict[str, Parts] = {}
        self.places: dict[str, Place] = {}
        self._graph = graph
        self._keys = set(keys)
        self._free_nbytes = _MIN_NAMES_NBYTES + _NAMES_NBYTES_PER_KEY_NBYTE * sum(map(len, keys))
        self._containers: dict[int, Parts] = {0: ()}
        self._further = dict(graph.further)

    def name_variables(self) -> None:
        """Those that are reached by references, each where it is reached first."""
        variables = self._graph.variables
        for node, (parent, name, nbytes) in self._graph.steps.items():
            key = variables.get(node)
            if key in self._keys:
                if key in self.parts:
                    self._further[parent, name] = node
                else:
                    self._pay(nbytes)
                    self.parts[key] = (*self._container(parent), name)

    def name_slots(self) -> None:
        """Those that only an optimizer refers to."""
        steps = self._graph.steps
        for node, (optimizer, variable, slot) in self._graph.slots.items():
            key = self._graph.variables.get(node)
            if key in self._keys and variable in steps and key not in self.parts and key not in self.places:
                self._pay(steps[optimizer][2] + steps[variable][2] + len(slot))
                self.places[key] = Place(self._container(variable), (self._container(optimizer), slot))

    def name_others(self) -> None:
        """Attributes that are tensors without being a variable's value, as a text of the program's own."""
        steps = self._graph.steps
        for node, attribute, key in self._graph.others:
            if key in self._keys and node in steps and key not in self.parts and key not in self.places:
                self._pay(steps[node][2] + len(attribute))
                self.places[key] = Place(self._container(node), None, attribute)

    def place(self, key: str) -> Place | None:
        """Where the tensor stands: as the graph says, or else as its key does."""
        return Place(self.parts[key]) if key in self.parts else self.places.get(key) or parse(key)

    def aliases(self) -> Iterator[tuple[Parts, str]]:
        """The parts of further references to variables, with the key."""
        for (parent, name), node in self._further.items():
            key = self._graph.variables[node]
            if key in self._keys:
                self._pay(self._graph.steps[parent][2] + len(name))
                yield (*self._container(parent), name), key

    def _pay(self, nbytes: int) -> None:
        """Before memory is taken for a name."""
        self._free_nbytes -= nbytes + _NAME_NBYTES
        if self._free_nbytes < 0:
            raise GraphError("gives names that are much longer than the keys of the tensors")

    def _container(self, node: int) -> Parts:
        parts = self._containers.get(node)
        if parts is not None:
            return parts
        above: list[str] = []
        at = node
        while at not in self._containers:
            at, name, _ = self._graph.steps[at]
            above.append(name)
        parts = self._containers[node] = (*self._containers[at], *reversed(above))
        return parts


def _attributes(nodes: Any) -> tuple[dict[int, str], list[tuple[int, str, str]]]:
    variables: dict[int, str] = {}
    others = []
    for number, node in enumerate(nodes):
        for attribute in node.attributes:
            if attribute.name == VARIABLE_VALUE:
                variables.setdefault(number, attribute.checkpoint_key)
            else:
                others.append((number, attribute.name, attribute.checkpoint_key))
    return variables, others


def _checked(node: int, nodes: Sequence[Any]) -> int:
    if not 0 <= node < len(nodes):
        raise GraphError(f"refers to object {node}, but it has {len(nodes)}")
    return node


def _distinct(names: Sequence[str], keys: Sequence[str], naming: _Naming) -> Sequence[str]:
    """The names, but in the escaped spelling or even as the keys where some are equal."""
    if len(set(names)) == len(names):
        return names
    places = [naming.place(key) for key in keys]
    escaped = [place.escaped if place else key for place, key in zip(places, keys, strict=True)]
    for other in (escaped, keys):
        uses = Counter(names)
        names = [name if uses[name] == 1 else better for name, better in zip(names, other, strict=True)]
    return names if len(set(names)) == len(names) else keys
