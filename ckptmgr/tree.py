"""A state tree as a JSON skeleton and a flat set of named tensors, and back: ``unflatten(flatten(state)) == state``, to the bit.

A tensor's name is its path joined by ``/``. Only where that would give two tensors one name are the names of both escaped
(``~`` as ``~0``, ``/`` as ``~1``, an int key 7 as ``~i7``), whatever order they come in.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptmgr import arrays, containers, garbage, rng, skeleton
from ckptmgr.adapter import Adapter
from ckptmgr.errors import CorruptCheckpointError, UnsupportedLeafError, UnsupportedTensorError
from ckptmgr.layout import Scalar
from ckptmgr.skeleton import MAX_DEPTH, Path, TensorNode
from ckptmgr.spec import STRING, TensorSpec
from ckptmgr.step import JSON
from ckptmgr.strings import from_strings, string_tag, string_values

ROOT = "tensor"  # the name of a state that is one tensor


_HINT = "store its arrays, numbers or text, or give it state_dict() and load_state_dict()"


@dataclass(frozen=True, slots=True)
class Flat:
    """A state taken apart. All mappings are in the order of the tree.

    ``tensors`` has every tensor once, as the leaf it was, and ``specs`` its spec. ``aliases`` gives the further names of tied
    ones, ``strings`` the values of string tensors in C order, ``paths`` the keys that lead to each name, aliases included.
    ``scalars`` are the plain leaves but None, by the keys that lead to them; the skeleton has them, too.
    """

    skeleton: JSON
    tensors: dict[str, Any]
    specs: dict[str, TensorSpec]
    aliases: dict[str, str]
    strings: dict[str, list[bytes]]
    paths: dict[str, Path]
    scalars: Mapping[Path, Scalar]


@garbage.later()
def flatten(state: Any) -> Flat:
    """The state as skeleton and tensors; no bytes are copied, except those of string tensors.

    Raises:
        UnsupportedLeafError: a leaf, key or nesting that cannot be stored; names its path.
    """
    return _Flattening().run(state)


def unflatten(tree: JSON, tensors: Mapping[str, Any], aliases: Mapping[str, str] | None = None) -> Any:
    """The state of a skeleton: dicts, lists, tuples and plain values, with these tensors.

    A namedtuple comes as a tuple, a dataclass or an object with a `state_dict` as its dict, a generator as a new one. Tied
    places share one object.

    Raises:
        CorruptCheckpointError: not a skeleton, or one that names a tensor that is not there.
    """
    finished: dict[str, Any] = {}

    def leaf(path: Path, found: TensorNode | rng.RngState) -> Any:
        if isinstance(found, rng.RngState):
            return rng.rebuild(found)
        name = found.name if found.name in tensors else (aliases or {}).get(found.name, found.name)
        if name not in tensors:
            raise CorruptCheckpointError(f"the state tree names a tensor {found.name!r} that is not there", tensor=found.name)
        if name not in finished:
            finished[name] = finish(found, tensors[name])
        return finished[name]

    return skeleton.decode(tree, leaf, namedtuple=lambda fields: tuple(fields.values()))


def nest(names: Iterable[str], paths: Mapping[str, Path], leaf: Callable[[str], Any]) -> Any:
    """A tree of dicts with a leaf for each name at the end of its path; a name without a path is a key by itself.

    Keys are str, indexes as well: a file of another tool does not tell lists from dicts.

    Raises:
        CorruptCheckpointError: two names at one place, one below another, or too deep; names the tensor.
    """
    groups: dict[Path, dict[str, Any]] = {(): {}}

    def group(path: Path, name: str) -> dict[str, Any]:
        if path not in groups:
            groups[path] = place(path, name, {})
        return groups[path]

    def place(path: Path, name: str, value: Any) -> Any:
        around = group(path[:-1], name)
        key = str(path[-1])
        if key in around:
            problem = "the place of another tensor, or of a group of them"
            raise CorruptCheckpointError(f"tensor {name!r} stands at {shown_path(path)}, {problem}", tensor=name)
        around[key] = value
        return value

    names = list(names)
    for name in names:
        path = tuple(map(str, paths[name])) if name in paths else (name,)
        if len(path) > MAX_DEPTH:
            raise CorruptCheckpointError(f"tensor {name!r} is nested deeper than {MAX_DEPTH} levels", tensor=name)
        if not path and len(names) == 1:
            return leaf(name)  # the state is one tensor
        if not path:
            raise CorruptCheckpointError(f"tensor {name!r} stands in the place of all others", tensor=name)
        place(path, name, leaf(name))
    return groups[()]


def finish(node: TensorNode, array: Any) -> Any:
    """A tensor that was read as a host array, as what stands in a state without a template: a numpy array, or a generator."""
    if not isinstance(array, np.ndarray):
        return array
    if node.text is not None and array.dtype.kind == "O":
        return from_strings(array, node.text)
    return arrays.make(node.kind, array) if "/" in node.kind else array


def is_stateful(value: Any) -> bool:
    """Whether it is an object with `state_dict` and `load_state_dict`, such as a module or an optimizer."""
    if type(value) in (dict, list, tuple) or isinstance(value, type):
        return False
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))


def state_of(value: Any, path: Path) -> Any:
    """The `state_dict` of an object; an error of its own passes, with a note that tells the path."""
    try:
        return value.state_dict()
    except Exception as error:
        error.add_note(f"raised by state_dict() of {shown_path(path)}")
        raise


def shown_path(path: Path) -> str:
    """A path for messages."""
    return repr(join(path)) if path else "the state itself"


def join(path: Path) -> str:
    """The name of a path, before any escaping."""
    if not path:
        return ROOT
    try:
        return "/".join(path)  # type: ignore[arg-type]
    except TypeError:  # an int among the keys: most paths have none, and are joined four times as fast without `str`
        return "/".join(map(str, path))


def names(paths: Sequence[Path]) -> list[str]:
    """The names of tensors at these paths, which are different from each other; see the module's docstring."""
    found = _joined(paths)
    _by_name(found, paths)
    return found


def _joined(paths: Sequence[Path]) -> list[str]:
    """`join` of each, in less time."""
    try:
        return list(map("/".join, paths)) if () not in paths else [ROOT]  # type: ignore[arg-type]
    except TypeError:
        return [join(path) for path in paths]


def _by_name(found: list[str], paths: Sequence[Path]) -> tuple[dict[str, Path], set[int]]:
    """The paths by their names. Of names that are not different, escaped ones take the places; their indexes come along."""
    escaped: set[int] = set()
    while len(made := dict(zip(found, paths, strict=True))) < len(found):
        count = Counter(found)
        escaped.update(index for index, name in enumerate(found) if count[name] > 1)
        for index in escaped:
            found[index] = "/".join(map(_escape, paths[index]))
    return made, escaped


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def unsupported(path: Path, error: Exception | str) -> UnsupportedLeafError:
    """The error about the leaf at a path; the message goes on from the path."""
    return UnsupportedLeafError(f"{shown_path(path)} {error}", path=join(path))


def _escape(key: str | int) -> str:
    return f"~i{key}" if isinstance(key, int) else key.replace("~", "~0").replace("/", "~1")


class _Flattening:
    # One of these runs for each of maybe 20,000 small tensors, or 100,000 numbers: what is common is kept short.
    def __init__(self) -> None:
        self.paths: list[Path] = []  # of each tensor, as are the next three
        self.names: list[str] = []
        self.leaves: list[Any] = []
        self.specs: list[TensorSpec] = []
        self.ties: dict[int, int] = {}  # the index of the first tied one
        self.nodes: list[tuple[int, dict[str, JSON]]] = []  # of single tensors, with their index
        self.groups: list[tuple[range, dict[str, JSON]]] = []  # of many at once
        self.strings: dict[int, list[bytes]] = {}
        self.scalars: dict[Path, Scalar] = {}
        self.seen: dict[Hashable, int] = {}

    def run(self, state: Any) -> Flat:
        tree = self.value(state, ())
        self.seen.clear()  # of many tensors it is as much memory as all that follows
        found = self.names
        paths, escaped = _by_name(found, self.paths)
        for index, node in self.nodes if escaped else ():
            node["$tensor"] = found[index]
        for indexes, node in self.groups if escaped else ():
            if not escaped.isdisjoint(indexes):
                node.clear()
                node.update({str(self.paths[index][-1]): {"$tensor": found[index]} for index in indexes})
        tensors, specs = dict(zip(found, self.leaves, strict=True)), dict(zip(found, self.specs, strict=True))
        aliases = {found[index]: found[first] for index, first in self.ties.items()}
        for alias in aliases:
            del tensors[alias], specs[alias]
        strings = {found[index]: values for index, values in self.strings.items()}
        return Flat(skeleton.whole(tree), tensors, specs, aliases, strings, paths, self.scalars)

    def value(self, value: Any, path: Path) -> JSON:
        plain = skeleton.PLAIN.get(type(value))
        if plain is not None:
            if value is not None:
                self.scalars[path] = value
            return plain(value)
        adapter = arrays.adapter(value)
        if adapter is not None:
            return self.tensor(value, adapter, path)
        if isinstance(value, np.generic):
            return self.scalar(value, path)
        if len(path) >= MAX_DEPTH:
            raise unsupported(path, f"is nested deeper than {MAX_DEPTH} levels (does the state contain itself?)")
        if is_stateful(value):
            kind = type(value)
            return {"$object": f"{kind.__module__}.{kind.__qualname__}", "state": self.state(value, path)}
        try:
            inner = containers.columns(value)
            saved = rng.capture(value) if inner is None else None
        except UnsupportedLeafError as error:
            raise unsupported(path, error) from error
        if inner is not None:
            if (found := self.arrays(value, *inner, path)) is not None:
                return found
            nodes = [(key, self.value(item, (*path, key))) for key, item in zip(*inner, strict=True)]
            return containers.encode(value, nodes)
        if saved is None:
            raise unsupported(path, f"is of type {_type_name(value)}, which cannot be stored: {_HINT}")
        return {"$rng": saved.kind, "state": skeleton.plain(saved.state)}

    def state(self, value: Any, path: Path) -> JSON:
        state = state_of(value, path)
        if is_stateful(state):  # it could go on for ever at the same path
            raise unsupported(path, f"has a state_dict that is a {type(state).__qualname__} itself")
        return self.value(state, path)

    def scalar(self, value: np.generic, path: Path) -> JSON:
        try:
            node = skeleton.scalar(value)
        except (TypeError, UnsupportedTensorError) as error:
            raise unsupported(path, f"is of type {_type_name(value)}, which cannot be stored: {_HINT}") from error
        self.scalars[path] = value
        return node

    def tensor(self, leaf: Any, adapter: Adapter, path: Path) -> JSON:
        index = len(self.paths)
        name = join(path)
        node: dict[str, JSON] = {"$tensor": name}
        try:
            spec = adapter.describe(leaf)
            if adapter.is_description:
                raise UnsupportedLeafError(f"is a {type(leaf).__qualname__}, which describes an array and holds no values")
            if (kind := adapter.kind(leaf)) != "numpy":
                node["kind"] = kind
            first = index if 0 in spec.shape else self.seen.setdefault(adapter.identity(leaf), index)
            if spec.dtype == STRING:
                self.string(node, adapter.host(leaf), index if first == index else None)
        except (UnsupportedLeafError, UnsupportedTensorError) as error:
            raise unsupported(path, error) from error
        self.paths.append(path)
        self.names.append(name)
        self.nodes.append((index, node))
        self.leaves.append(leaf)
        self.specs.append(spec)
        if first != index:
            self.ties[index] = first
        return node

    def arrays(self, value: Any, keys: list[str | int], leaves: list[Any], path: Path) -> JSON | None:
        """The node of a container of nothing but arrays of one type that share nothing, all at once; None if it is any other."""
        alike = arrays.alike(leaves)
        if alike is None:
            return None
        adapter, specs = alike
        indexes = range(len(self.paths), len(self.paths) + len(leaves))
        fresh: dict[Hashable, int] = dict(zip(map(id, leaves), indexes, strict=True))
        if len(fresh) < len(leaves) or not self.seen.keys().isdisjoint(fresh):
            return None
        paths: list[Path] = [(*path, key) for key in keys]
        names = _joined(paths)
        self.paths += paths
        self.names += names
        self.leaves += leaves
        self.specs += specs
        if self.seen:
            self.seen |= fresh
        else:
            self.seen = fresh
        kind = adapter.kind(leaves[0])
        if kind == "numpy" and type(value) is dict and (group := skeleton.arrays(keys, path)) is not None:
            self.groups.append((indexes, group))
            return group
        nodes: list[dict[str, JSON]]
        nodes = [{"$tensor": name} for name in names] if kind == "numpy" else [{"$tensor": name, "kind": kind} for name in names]
        self.nodes += zip(indexes, nodes, strict=True)
        return containers.encode(value, zip(keys, nodes, strict=True))

    def string(self, node: dict[str, JSON], array: np.ndarray[Any, Any], index: int | None) -> None:
        if index is not None:
            self.strings[index] = string_values(array)
        if (tag := string_tag(array)) != "bytes":
            node["text"] = tag
