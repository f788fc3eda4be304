"""The object graph of a new checkpoint: an object for each container and each tensor of a nested state.

TensorFlow restores from it into objects of the same nesting and finds each of them (``assert_consumed``).

Source: TensorFlow's trackable_object_graph.proto; graph_view.py and util.py of tensorflow/python/checkpoint.
"""

import functools
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from ckptmgr_tf_bundle.entry import message, varint
from ckptmgr_tf_bundle.graph import Graph, GraphError, name_all, walk
from ckptmgr_tf_bundle.keys import ATTRIBUTES, OPTIMIZER_SLOT, VARIABLE_VALUE, Parts, escape, parse

_SLOT = f"/{OPTIMIZER_SLOT}/"
_ATTRIBUTE = f"/{ATTRIBUTES}/"
_HAS_VALUES = b"\x2a\x02\x08\x01"  # that the node's own values are in the checkpoint
SAVE_COUNTER = "save_counter"


class Built(NamedTuple):
    """A serialized object graph, and the key of each tensor by its name."""

    graph: bytes
    keys: dict[str, str]


class _Object:
    """A node to be. ``key`` is what the keys of its attributes start with, ``within`` what its children's start with."""

    __slots__ = ("attributes", "children", "key", "number", "slots", "within")

    def __init__(self, key: str, within: str) -> None:
        self.key = key
        self.within = within
        self.number = 0
        self.children = _NO_CHILDREN
        self.attributes: dict[str, str] = {}  # attribute -> key
        self.slots = _NO_SLOTS  # variable, slot, slot variable

    def at(self, path: Iterable[str]) -> "_Object":
        """The object that a path from here leads to; what is new on the way is made."""
        found = self
        for name in path:
            child = found.children.get(name)
            if child is None:
                found.children = found.children or {}
                key = found.within + escape(name)
                child = found.children[name] = _Object(key, f"{key}/")
            found = child
        return found

    def hold(self, attribute: str) -> str:
        """The key of a tensor that is this attribute from now on."""
        key = self.attributes[attribute] = self.key + _ending(attribute)
        return key


@functools.lru_cache(maxsize=4096)
def _ending(attribute: str) -> str:
    return _ATTRIBUTE + escape(attribute)


# Shared by all objects that have none, as most do: empty ones of their own would take more time than all else here.
_NO_CHILDREN: dict[str, _Object] = {}
_NO_SLOTS: list[tuple[_Object, str, _Object]] = []


def build(paths: Mapping[str, tuple[str, ...]], *, save_counter: str | None) -> Built:
    """The graph of a state that has a tensor at the end of each of these paths, by the tensors' names.

    A last key ``<variable>/.OPTIMIZER_SLOT/<path of optimizer>/<slot>`` is a slot variable of the tensor that stands
    there as ``<variable>``; ``.ATTRIBUTES/<attribute>``, or ``<variable>`` before that, is another attribute of the
    container or tensor. What looks so but has no such tensor beside it is a name like others. ``save_counter`` is the
    name of a tensor that is added where ``tf.train.Checkpoint.restore`` looks for one, unless the state has it.

    Raises:
        ValueError: two tensors would have one key, or a name is no valid Unicode.
    """
    marked = [name for name, path in paths.items() if path and (OPTIMIZER_SLOT in path[-1] or ATTRIBUTES in path[-1])]
    later = set(marked)
    state = _State(is_asked=bool(marked))
    keys = {name: state.variable(path) for name, path in paths.items() if name not in later}
    for name in sorted(marked, key=lambda name: ATTRIBUTES in paths[name][-1]):  # a slot variable may have attributes
        keys[name] = state.marked(paths[name])
    if save_counter is not None and SAVE_COUNTER not in state.root.children:
        if save_counter in keys:
            raise ValueError(f"the name {save_counter!r} of the save counter is that of another tensor")
        keys[save_counter] = state.variable((SAVE_COUNTER,))
    _check_distinct(keys)
    return Built(_serialized(state.root), keys)


def carried(graph: bytes, names: Collection[str], aliases: Mapping[str, str] | None = None) -> dict[str, str] | None:
    """Keys of tensors with these names, if they are just the tensors of another checkpoint's object graph; else None.

    Then that graph can be written again as it is. ``aliases`` are further names (of which ``names`` may hold some) with
    the names of their tensors: the graph must tie them as well, and they get the keys of those.
    """
    aliases = aliases or {}
    wanted = [name for name in names if name not in aliases]
    try:
        read = walk(graph, len(wanted))
        keys = _keys(read, wanted)
        found = None if keys is None else name_all(read, keys)
    except GraphError:
        return None
    if found is None or found.keys.keys() != set(wanted):
        return None
    if any(found.aliases.get(alias) != name for alias, name in aliases.items()):
        return None
    return {name: found.keys[aliases.get(name, name)] for name in (*wanted, *aliases)}


def _keys(graph: Graph, names: Iterable[str]) -> list[str] | None:
    """All keys of a bundle with this graph and names, or None if another attribute than a variable's value has no tensor.

    The key of such an attribute is only how those of its tensors start: ``table`` has ``table-keys`` and ``table-values``.
    """
    keys = dict.fromkeys(graph.variables.values())
    others: dict[str, list[str]] = {}
    for _, _, key in graph.others:
        place = parse(key)
        if place is None:
            return None
        others.setdefault(place._replace(attribute=VARIABLE_VALUE).name, []).append(key)
    used = set()
    for name in names:
        owner, marker, attribute = name.rpartition(_ATTRIBUTE)
        of_owner = others.get(owner, []) if marker else []
        for key in of_owner:
            full = key.rpartition("/")[0] + "/" + escape(attribute)
            if full.startswith(key):
                used.add(key)
                keys[full] = None
    return list(keys) if len(used) == len({key for same in others.values() for key in same}) else None


class _State:
    """The objects of a state: ``tensors`` by their paths, if they are asked for, and the containers in which tensors stand."""

    def __init__(self, *, is_asked: bool) -> None:
        self.root = _Object("", "")
        self._is_asked = is_asked
        self.tensors: dict[Parts, _Object] = {}
        self._containers: dict[Parts, _Object] = {}
        self._named: dict[str, _Object] = {}  # containers by their joined names, which may hold a "/" themselves

    def variable(self, path: Parts) -> str:
        """The key of a tensor that is the value of a variable at this path."""
        above = path[:-1]
        container = self._containers.get(above)
        if container is None:
            container = self._containers[above] = self.root.at(above)
            self._named.setdefault("/".join(above), container)
        node = container.at(path[-1:])
        if self._is_asked:
            self.tensors[path] = node
        return node.hold(VARIABLE_VALUE)

    def marked(self, path: Parts) -> str:
        """The key of a tensor whose last key has a marker in it."""
        *above, last = path
        owner, marker, attribute = f"/{last}".rpartition(_ATTRIBUTE)
        if marker and attribute not in ("", VARIABLE_VALUE):
            node = self.tensors.get((*above, owner[1:])) if owner else self.root.at(above)
            if node is not None:
                return node.hold(attribute)
        variable, _, rest = last.partition(_SLOT)
        optimizer, separator, slot = rest.rpartition("/")
        node = self.tensors.get((*above, variable))
        return self._slot(path, node, optimizer, slot) if node is not None and separator else self.variable(path)

    def _slot(self, path: Parts, variable: _Object, optimizer: str, slot: str) -> str:
        keeper = self._optimizer(optimizer)
        key = f"{variable.key}{_SLOT}{keeper.key}/{escape(slot)}"
        made = self.tensors[path] = _Object(key, f"{key}/")
        keeper.slots = keeper.slots or []
        keeper.slots.append((variable, slot, made))
        return made.hold(VARIABLE_VALUE)

    def _optimizer(self, name: str) -> _Object:
        """The container of that name, which is new if nothing but slots is in it."""
        if not name:
            return self.root
        return self._named.get(name) or self.root.at(name.split("/"))


def _check_distinct(keys: Mapping[str, str]) -> None:
    if len(set(keys.values())) == len(keys):
        return
    names: dict[str, str] = {}
    for name, key in keys.items():
        if names.setdefault(key, name) != name:
            raise ValueError(f"the tensors {names[key]!r} and {name!r} would both have the key {key!r}")


def _serialized(root: _Object) -> bytes:
    nodes = [root]
    for node in nodes:  # grows on the way
        for child in node.children.values():
            child.number = len(nodes)
            nodes.append(child)
    for node in [node for node in nodes if node.slots]:
        for _, _, made in node.slots:
            made.number = len(nodes)
            nodes.append(made)
    return b"".join([message(b"\x0a", _node(node)) for node in nodes])


def _node(node: _Object) -> bytes:
    """A node as protobuf writes it, of whose own objects a hundred thousand would take seconds."""
    fields = []
    if node.children:
        children = node.children.items()
        fields = [message(b"\x0a", b"\x08" + varint(child.number) + _text(b"\x12", name)) for name, child in children]
    for name, text in node.attributes.items():
        key = text.encode()
        fields.append(_before_key(name, len(key)) + key)
    for variable, name, made in node.slots:
        slot = b"\x08" + varint(variable.number) + _text(b"\x12", name) + b"\x18" + varint(made.number)
        fields.append(message(b"\x1a", slot))
    return b"".join(fields) + _HAS_VALUES


@functools.lru_cache(maxsize=4096)
def _before_key(name: str, nbytes: int) -> bytes:
    """An attribute of that name up to its key, which is not empty and has ``nbytes``."""
    fields = _text(b"\x0a", name) + b"\x1a" + varint(nbytes)
    return b"\x12" + varint(len(fields) + nbytes) + fields


def _text(tag: bytes, text: str) -> bytes:
    return message(tag, text.encode()) if text else b""
