"""The whole state of a source as dicts, lists, tuples, plain values and numpy arrays: what a restore without a template gives.

The law: it is what a restore with None as a template would give, in fewer steps. There may be 20,000 tensors.
"""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from ckptmgr import garbage, rng, transfer
from ckptmgr.matching import Stored
from ckptmgr.restorereport import RestoreReport
from ckptmgr.rng import RngState
from ckptmgr.skeleton import Arrays, Fields, TensorNode
from ckptmgr.source import TensorSource
from ckptmgr.transfer import Memory, Progress, Verify
from ckptmgr.tree import ROOT, finish

_CONTAINERS = (dict, Arrays, Fields, list, tuple)  # of an outline, by exact type


def load(
    source: TensorSource, stored: Stored, verify: Verify, progress: Progress | None, memory: Memory
) -> tuple[Any, RestoreReport]:
    """The state, and the report of a restore. Raises like `transfer.read`."""
    with garbage.later():
        tree, names = stored.outline
        if stored.aliases:
            names = list(dict.fromkeys(map(stored.tensor, map(TensorNode, names))))
    arrays, stats = transfer.read_new(source, names, verify=verify, progress=progress, memory=memory)
    with garbage.later():
        if type(tree) is Arrays and not stored.aliases:  # then the names of all tensors are those in the tree, in its order
            state: Any = dict(zip(tree, arrays, strict=True))
        else:
            state = _Building(dict(zip(names, arrays, strict=True)), stored).value(tree)
        filled = tuple(_names(tree, "") if type(tree) in _CONTAINERS else [ROOT])
    return state, RestoreReport(filled=filled, stats=stats)


_PLAIN = ("numpy", None)  # kind and text of a node whose array needs no finish


class _Building:
    def __init__(self, arrays: Mapping[str, Any], stored: Stored) -> None:
        self.arrays = arrays
        self.stored = stored
        self.made: dict[str, Any] = {}  # of those that need a finish: tied ones are one object

    def value(self, found: Any) -> Any:
        kind = type(found)
        if kind is Arrays:
            if not self.stored.aliases:
                return dict(zip(found, map(self.arrays.__getitem__, found.values()), strict=True))
            return {key: self.tensor(TensorNode(name)) for key, name in found.items()}
        if kind is TensorNode:
            return self.tensor(found)
        if kind is dict:
            return dict(zip(found, self.values(found.values()), strict=True))
        if kind in _CONTAINERS:
            made = self.values(found.values() if kind is Fields else found)
            return made if kind is list else tuple(made)
        return rng.rebuild(found) if kind is RngState else found

    def values(self, found: Any) -> list[Any]:
        arrays, value = self.arrays, self.value
        return [
            arrays[item[0]] if type(item) is TensorNode and item[1:] == _PLAIN and item[0] in arrays else value(item)
            for item in found
        ]

    def tensor(self, node: TensorNode) -> Any:
        name = self.stored.tensor(node)
        if name not in self.made:
            self.made[name] = finish(node, self.arrays[name])
        return self.made[name]


def _names(tree: Any, start: str) -> Iterable[str]:
    """The name of each leaf; ``start`` is what those of a container have in common."""
    if type(tree) is Arrays:
        return tree.values()
    keys, values = (tree.keys(), tree.values()) if isinstance(tree, dict) else (range(len(tree)), tree)
    if set(map(type, values)).isdisjoint(_CONTAINERS):
        return [f"{start}{key}" for key in keys]
    named = (
        _names(value, f"{start}{key}/") if type(value) in _CONTAINERS else [f"{start}{key}"]
        for key, value in zip(keys, values, strict=True)
    )
    return chain.from_iterable(named)
