"""From the value of a pickle to named tensors and the skeleton of the state that they were in.

A file decides how its values nest and share, so everything that a state of them would take is counted: a value that is named
a thousand times is a thousand values in a state. What is plain is its own skeleton, and not copied.
"""

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ckptmgr.backend import JSON, Path, skeleton, tensor_names
from ckptmgr_torch.budget import Budget, size
from ckptmgr_torch.machine import MOST_VALUES
from ckptmgr_torch.origin import Damaged, Origin
from ckptmgr_torch.values import Dtype, NumpyArray, Set, Sharded, Tensor, short

Array: TypeAlias = np.ndarray[Any, Any]
Leaf: TypeAlias = Tensor | Sharded | Array

_FREE_VALUES, _FREE_TEXT, _FREE_NBYTES = 1 << 16, 4 << 20, 32 << 20
_MOST_TEXT = 1 << 28
_OF_LEAF, _OF_NODE = 1024, 256  # bytes of a tensor's name, keys and node; of an object in JSON, beside its items
_MORE_TEXT = 8  # characters of all names for each byte of a pickle
_MORE_NBYTES = 8  # bytes of all tensors for each byte of their storages: one that was expanded is stored once


class Found(NamedTuple):
    """The tensors of a pickle by name, further names of tied ones, and the keys that lead to each name.

    ``skeleton`` is None for a dict of nothing but tensors, whose names say everything.
    """

    tensors: dict[str, Leaf]
    aliases: dict[str, str]
    paths: dict[str, Path]
    skeleton: JSON


def understand(value: object, origin: Origin, *, budget: Budget, stored: int, tied: Mapping[str, str] | None = None) -> Found:
    """The value of a pickle as tensors and skeleton, for what is left of its budget; ``stored`` are the bytes of all storages.

    Of tensors that share all their elements the first gives the name, if ``tied`` does not have it.

    Raises:
        CorruptCheckpointError: it is nested too deeply, contains itself, or takes more than its size allows.
        UnsafeCheckpointError: a value, or a key, that a state cannot have; names its place.
    """
    return _Walk(origin, budget).run(value, stored, tied or {})


class _Walk:
    def __init__(self, origin: Origin, budget: Budget) -> None:
        self.origin = origin
        self.budget = budget
        self.made = budget.made  # no more of it is met, unless something is named twice
        self.values = min(_FREE_VALUES + budget.nbytes, MOST_VALUES)
        self.text = min(_FREE_TEXT + _MORE_TEXT * budget.nbytes, _MOST_TEXT)
        self.paths: list[Path] = []  # of each tensor, as are the next two
        self.leaves: list[Leaf] = []
        self.nodes: list[dict[str, JSON]] = []

    def run(self, value: object, stored: int, tied: Mapping[str, str]) -> Found:
        tree = self.value(value, (), 0)
        names = tensor_names(self.paths)
        for name, node in zip(names, self.nodes, strict=True):
            node["$tensor"] = name
        groups: dict[Any, list[str]] = {}
        for name, leaf in zip(names, self.leaves, strict=True):
            groups.setdefault(_identity(name, leaf), []).append(name)
        aliases = {}
        for group in groups.values():
            first = next((name for name in group if name not in tied), group[0])
            aliases.update({name: first for name in group if name != first})
        tensors = {name: leaf for name, leaf in zip(names, self.leaves, strict=True) if name not in aliases}
        self.check_nbytes(tensors, stored)
        if isinstance(value, dict) and list(value) == names:
            return Found(tensors, aliases, {}, None)
        return Found(tensors, aliases, dict(zip(names, self.paths, strict=True)), skeleton.whole(tree))

    def value(self, value: Any, path: Path, text: int) -> JSON:
        self.values -= 1
        self.text -= text
        if self.values < 0 or self.text < 0:
            raise self.origin.corrupt("the state that its pickle describes is much larger than the pickle", _shown(path))
        if isinstance(value, Tensor | Sharded | NumpyArray):
            return self.tensor(value, path)
        if isinstance(value, dict | list | tuple):
            return self.container(value, path, text)
        try:
            made = f"torch.{value.name}" if isinstance(value, Dtype) else skeleton.scalar(value)
        except TypeError:
            raise self.origin.unsafe(f"it has {short(value)}, which is no tensor and no plain value", _shown(path)) from None
        if made is not value:
            self.spend(_OF_NODE + 2 * size(value), path)
        return made

    def spend(self, nbytes: int, path: Path) -> None:
        try:
            self.budget.spend(nbytes)
        except Damaged as error:
            raise self.origin.corrupt(f"{error}", _shown(path)) from None

    def container(self, value: Any, path: Path, text: int) -> JSON:
        if len(path) >= skeleton.MAX_DEPTH:
            problem = f"it is nested deeper than {skeleton.MAX_DEPTH} levels, or contains itself"
            raise self.origin.corrupt(problem, _shown(path))
        self.made -= size(value)
        if self.made < 0:
            self.spend(size(value), path)
        if isinstance(value, dict):
            return self.mapping(value, path, text)
        items = [self.item(item, path, index, text) for index, item in enumerate(value)]
        if type(value) is list and all(map(operator.is_, items, value)):
            return value
        self.spend(size(items) if isinstance(value, list | Set) else size(items) + _OF_NODE, path)
        return items if isinstance(value, list | Set) else {"$tuple": items}

    def mapping(self, value: dict[Any, Any], path: Path, text: int) -> JSON:
        made = skeleton.mapping((self.key(key, path), self.item(item, path, key, text)) for key, item in value.items())
        if type(value) is dict and all(made.get(key, self) is item for key, item in value.items()):
            return value
        self.spend(size(made) if made.keys() == value.keys() else _OF_NODE + 2 * size(value), path)
        return made

    def item(self, value: Any, path: Path, key: Any, text: int) -> JSON:
        return self.value(value, (*path, key), text + (len(key) if isinstance(key, str) else 8) + 1)

    def key(self, key: object, path: Path) -> str | int:
        if type(key) is str or type(key) is int:
            return key
        raise self.origin.unsafe(f"a dict has the key {short(key)}, and only texts and integers can be keys", _shown(path))

    def tensor(self, value: Tensor | Sharded | NumpyArray, path: Path) -> JSON:
        self.spend(_OF_LEAF + 8 * len(path), path)
        leaf = value.array if isinstance(value, NumpyArray) else value
        if leaf is None:
            raise self.origin.corrupt("a numpy array has no bytes", _shown(path))
        node: dict[str, JSON] = {"$tensor": None}  # named at the end
        if isinstance(leaf, Tensor | Sharded):
            node["kind"] = "torch"
        self.paths.append(path)
        self.leaves.append(leaf)
        self.nodes.append(node)
        return node

    def check_nbytes(self, tensors: Mapping[str, Leaf], stored: int) -> None:
        left = _FREE_NBYTES + _MORE_NBYTES * stored
        for name, leaf in tensors.items():
            left -= int(np.prod(leaf.shape, dtype=object)) * leaf.itemsize if isinstance(leaf, Tensor | Sharded) else 0
            if left < 0:
                problem = f"the tensors are much larger than the {stored} bytes that are stored of them"
                raise self.origin.corrupt(problem, name)


def _identity(name: str, leaf: Leaf) -> Any:
    if 0 in leaf.shape:
        return name
    return leaf.identity if isinstance(leaf, Tensor | Sharded) else id(leaf)


def _shown(path: Path) -> str | None:
    return "/".join(short(key).strip("'") for key in path)[:200] or None
