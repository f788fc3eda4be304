"""The layout that Keras 3 calls ``.weights.h5``: groups along the model's attributes, and in each its variables, numbered.

Numbers become names where a config says of which classes the layers are; without one they stay.

Source: keras.src.saving.saving_lib, `_save_state`.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import islice, takewhile
from typing import Any

from ckptmgr_hdf5.keras_classes import Unit, layers_of, optimizer_class, slots, units
from ckptmgr_hdf5.keras_opened import HDF5, Named, natural
from ckptmgr_hdf5.parsing import Dataset, Group

VARS = "vars"
_OPTIMIZER = ("optimizer", VARS)
_AFTER_MODEL = ("optimizer", "metrics")
_OLD_LAYERS = "_layer_checkpoint_dependencies"  # what Keras 2.12 called the first "layers"


class _Weights:
    """The variables of a file, or of several, by the group that has them; each is given a path once."""

    def __init__(self, found: Iterable[tuple[HDF5, Dataset]]) -> None:
        self._groups: dict[tuple[str, ...], dict[str, tuple[HDF5, Dataset]]] = {}
        for hdf5, dataset in found:
            *parts, leaf = dataset.path.strip("/").split("/")
            self._groups.setdefault(tuple(parts), {})[leaf] = hdf5, dataset
        tops = {group[:1] for group in self._groups}
        if (_OLD_LAYERS,) in tops and ("layers",) not in tops:
            self._groups = {_renewed(group): held for group, held in self._groups.items()}
        self._ordered = sorted(self._groups)
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._longest = 0  # of these

    def held(self, group: tuple[str, ...]) -> list[tuple[HDF5, Dataset]]:
        """The variables of one group, in the order of their numbers."""
        return [variable for _, variable in sorted(self._groups.get(group, {}).items(), key=lambda item: natural(item[0]))]

    def below(self, stored: tuple[str, ...]) -> list[tuple[str, ...]]:
        """The groups at or below a path that are not taken yet, in the model's order."""
        first = bisect_left(self._ordered, stored)
        inside = takewhile(lambda group: group[: len(stored)] == stored, islice(self._ordered, first, None))
        return sorted((group for group in inside if group in self._groups), key=_place)

    def take(self, unit: Unit) -> list[Named]:
        """The variables of a layer, by the names of its class, or by their numbers if these are others."""
        self._names[unit.stored] = unit.path
        self._longest = max(self._longest, len(unit.stored))
        groups = [(*unit.stored, VARS)] if unit.leaves is not None else self.below(unit.stored)
        return [named for group in groups for named in self._take(group, unit)]

    def rest(self) -> list[Named]:
        """What nobody has taken, under its stored path, in which layers have the names that are known by now."""
        return [named for group in self.below(()) for named in self._take(group, None)]

    def _take(self, group: tuple[str, ...], unit: Unit | None) -> list[Named]:
        held = self.held(group)
        numbers = sorted(self._groups.pop(group, {}), key=natural)
        base, inside = self._known(group)
        leaves = unit.leaves if unit is not None and group == (*unit.stored, VARS) else None
        if leaves and numbers == [str(index) for index in range(len(leaves))]:
            return [Named((*base, leaf), *variable) for leaf, variable in zip(leaves, held, strict=True)]
        return [Named((*base, *inside, number), *variable) for number, variable in zip(numbers, held, strict=True)]

    def _known(self, group: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What the layer around a group is called, and the rest of the group's path."""
        for length in range(min(len(group), self._longest), 0, -1):
            if group[:length] in self._names:
                return self._names[group[:length]], group[length:]
        return (), group


def has_weights(root: Group) -> bool:
    """Whether a file is of this layout: some group ``vars`` with numbered datasets and nothing else."""
    groups = [root]
    while groups:
        group = groups.pop()
        held = group.children.get(VARS)
        if isinstance(held, Group) and held.children and all(map(_is_numbered, held.children.items())):
            return True
        groups.extend(child for child in group.children.values() if isinstance(child, Group))
    return False


def read_weights(found: Iterable[tuple[HDF5, Dataset]], config: object = None) -> list[Named]:
    """The variables in the order of the config's model, then the optimizer's, then all others."""
    weights = _Weights(found)
    named: list[Named] = []
    trained: list[Named] | None = [] if layers_of(config) is not None else None
    for unit in units(config) if trained is not None else ():
        taken = weights.take(unit)
        named += taken
        trained = _with_trained(trained, taken, unit)
    compiled = config.get("compile_config") if isinstance(config, dict) else None
    optimizer = compiled.get("optimizer") if isinstance(compiled, dict) else None
    rest = weights.rest()
    return [*named, *_with_slots(rest, optimizer, trained)]


def _renewed(group: tuple[str, ...]) -> tuple[str, ...]:
    return ("layers", *group[1:]) if group[:1] == (_OLD_LAYERS,) else group


def _is_numbered(item: tuple[str, Any]) -> bool:
    return item[0].isdecimal() and isinstance(item[1], Dataset)


def _place(group: tuple[str, ...]) -> tuple[int, list[tuple[int, str]]]:
    """A key to sort groups by: an object's own variables before those in it; the optimizer and metrics after the model."""
    last = _AFTER_MODEL.index(group[0]) + 1 if group and group[0] in _AFTER_MODEL else 0
    return last, [(-1, "") if part == VARS else natural(part) for part in group]


def _with_trained(trained: list[Named] | None, taken: list[Named], unit: Unit) -> list[Named] | None:
    """The trained variables so far and those of one more layer; None if it cannot be told which these are.

    Of a layer of an unknown class they are the first floating ones: those that are not trained come after the others.
    """
    if trained is None or unit.trained == 0 or not taken:
        return trained
    if unit.leaves is not None:
        has_names = [named.path[-1] for named in taken] == [*unit.leaves]
        return trained + taken[: unit.trained] if has_names else None
    if len({named.dataset.path.rpartition("/")[0] for named in taken}) > 1:
        return None
    return [*trained, *takewhile(lambda named: _is_floating(named.dataset), taken)]


def _is_floating(dataset: Dataset) -> bool:
    return dataset.kind == "opaque" or (dataset.dtype is not None and dataset.dtype.kind == "f")


def _with_slots(rest: list[Named], optimizer: object, trained: list[Named] | None) -> list[Named]:
    """The variables with those of the optimizer called after the variable that they belong to, if it all fits."""
    held = [named for named in rest if named.path[:-1] == _OPTIMIZER]
    if not held or not optimizer_class(optimizer):
        return rest
    names = _slot_names(held, optimizer, trained) or _first_names(held, optimizer)
    renamed = {named.path: path for named, path in zip(held, names, strict=False)}
    return [named._replace(path=renamed.get(named.path, named.path)) for named in rest]


def _slot_names(held: list[Named], optimizer: object, trained: list[Named] | None) -> list[tuple[str, ...]] | None:
    """The names of all variables of an optimizer; None if they are others than its class has for the trained variables."""
    groups = slots(optimizer)
    if trained is None or groups is None:
        return None
    labels = [label(named.path) for named in trained]
    shapes = [named.dataset.shape for named in trained]
    names = [("optimizer", name, slot) for group in groups for name in labels for slot in group]
    wanted = [shape for group in groups for shape in shapes for _ in group]
    first = [("optimizer", name) for name in ("iteration", "learning_rate")[: len(held) - len(names)]]
    found = [named.dataset.shape for named in held]
    is_fitting = bool(first) and found == [*([()] * len(first)), *wanted]
    return [*first, *names] if is_fitting else None


def _first_names(held: list[Named], optimizer: object) -> list[tuple[str, ...]]:
    """Only what needs no knowledge of the model: Keras 3 has a rate after the count of steps, unless it has a schedule."""
    inner = optimizer.get("config") if isinstance(optimizer, dict) else None
    has_rate = isinstance(inner, dict) and isinstance(inner.get("learning_rate"), float) and "jit_compile" not in inner
    names = ["iteration", *(["learning_rate"] if has_rate else [])]
    is_fitting = all(named.dataset.shape == () for named in held[: len(names)])
    return [("optimizer", name) for name in names] if is_fitting else []


def label(path: Sequence[str]) -> str:
    """What a weight is called where it names a slot of the optimizer."""
    return "_".join(part for part in path if part != "layers")
