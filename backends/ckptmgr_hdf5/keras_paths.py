"""Where the variables of a Sequential or Functional model lie, from its config alone: in groups, and in legacy order.

Keras 3 has a group for each object with variables. The legacy layout has one list for each layer of the model instead:
everything in it that can be trained, then the rest. Other models do as their class says, which no config tells.

Source: `_save_container_state` in Keras 3.15's saving_lib.py; legacy_h5_format.py; tf_keras 2.21.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from ckptmgr.backend import JSON
from ckptmgr.errors import shown
from ckptmgr_hdf5.keras_classes import Unit, class_of, layers_of, slots, units
from ckptmgr_hdf5.keras_translating import Underivable, optimizer_of
from ckptmgr_hdf5.keras_weights import label

VARS = "vars"
OPTIMIZER = f"optimizer/{VARS}"
_ATTRIBUTES = frozenset({"layers", "layer", "cell", "cells"})  # on the way to an object, and not in legacy names
_SIDES = {"forward_layer": "forward_", "backward_layer": "backward_"}


class Layer(NamedTuple):
    """One of `model.layers`: its own name, and what in it may have variables, in the order in which Keras lists them."""

    name: str
    units: tuple[Unit, ...]


def layers(model: object) -> list[Layer]:
    """The layers of a serialized model, in order.

    Raises:
        Underivable: the model is neither Sequential nor Functional, so only its class knows.
    """
    configs = layers_of(model)
    if configs is None:
        name = model.get("class_name") if isinstance(model, dict) else None
        raise Underivable(f"the layers of a model of class {name!r}, which is neither Sequential nor Functional")
    found: dict[str, list[Unit]] = {}
    for unit in units(model):
        if unit.stored:
            found.setdefault(unit.stored[1], []).append(unit)
    made = [Layer(held[0].path[1], tuple(unit for unit in held if unit.leaves != ())) for held in found.values()]
    # `Sequential.layers` leaves the input out.
    has_input = class_of(model) == "Sequential" and bool(configs) and class_of(configs[0]) == "InputLayer"
    return made[1:] if has_input else made


def stored(model: Mapping[str, JSON], names: Collection[str]) -> dict[str, str]:
    """Where the tensors of these names lie in Keras 3's layout, in order. Names are ``layers/dense/kernel`` and the like.

    Variables of classes that are not Keras' own have their numbers as names: ``layers/mine/vars/0``.

    Raises:
        Underivable: the config does not tell it of all.
    """
    left = set(names)
    found: dict[str, str] = {}
    for unit in (unit for layer in layers(model) for unit in layer.units):
        leaves = unit.leaves if unit.leaves is not None else [f"{VARS}/{index}" for index in range(len(left))]
        for index, leaf in enumerate(leaves):
            name = "/".join((*unit.path, leaf))
            if name not in left:
                break
            found[name] = f"{group_of(unit)}/{index}"
            left.remove(name)
    for index, name in enumerate(_slots(optimizer_of(model), [*found], left)):
        found[name] = f"{OPTIMIZER}/{index}"
        left.remove(name)
    if left:
        raise Underivable(f"where these tensors go: {shown(sorted(left))}")
    return found


def _slots(optimizer: JSON, weights: Sequence[str], names: Collection[str]) -> list[str]:
    """Names of the optimizer's variables in order; which weights are trained, the names tell."""
    first = [name for name in ("optimizer/iteration", "optimizer/learning_rate") if name in names]
    labels = [label(weight.split("/")) for weight in weights]
    wanted = [f"optimizer/{each}/{slot}" for group in slots(optimizer) or () for each in labels for slot in group]
    found = first + [name for name in wanted if name in names]
    while (numbered := f"{OPTIMIZER}/{len(found)}") in names:  # those that the class of a layer gave no name
        found.append(numbered)
    return found


def group_of(unit: Unit) -> str:
    """The group of the unit's variables."""
    return "/".join((*unit.stored, VARS))


def legacy_order(layer: Layer, counts: Mapping[str, int]) -> list[str]:
    """Paths of a layer's variables in the order of the legacy layout; ``counts`` has how many are in each group.

    Raises:
        Underivable: it has several objects, and the class of one does not tell what of it can be trained.
    """
    held = [(unit, group_of(unit), counts[group_of(unit)]) for unit in layer.units if counts.get(group_of(unit))]
    unclear = [group for unit, group, count in held if unit.leaves is not None and len(unit.leaves) != count]
    if len(held) > 1:
        unclear += [group for unit, group, _ in held if unit.leaves is None]
    if unclear:
        raise Underivable(f"which of the variables in {unclear[0]!r} are trained")
    if len(held) == 1:
        return [f"{group}/{index}" for _, group, count in held for index in range(count)]
    first = [f"{group}/{index}" for unit, group, _ in held for index in range(unit.trained or 0)]
    return first + [f"{group}/{index}" for unit, group, count in held for index in range(unit.trained or 0, count)]


def grouped(layer: Layer, names: Sequence[str]) -> list[str]:
    """Paths of a layer's variables, for their legacy names in legacy order.

    Raises:
        Underivable: the names do not tell which variable is whose, or a class has others than these.
    """
    if len(layer.units) == 1:
        _check_own(layer, layer.units[0].leaves, names)
        return [f"{group_of(layer.units[0])}/{index}" for index in range(len(names))]
    used: Counter[str] = Counter()
    groups: dict[str, str] = {}
    paths = []
    for name in names:
        above = name.rpartition("/")[0]
        if above not in groups:
            groups[above] = _group_named(layer, above)
        group = groups[above]
        paths.append(f"{group}/{used[group]}")
        used[group] += 1
    known = {group_of(unit): len(unit.leaves) for unit in layer.units if unit.leaves is not None}
    if len(set(groups.values())) < len(groups) or any(used[group] not in (0, count) for group, count in known.items()):
        raise Underivable(f"which of the layers in {layer.name!r} has which weights")
    return paths


def _check_own(layer: Layer, leaves: Sequence[str] | None, names: Sequence[str]) -> None:
    """Raises if the names are not of the variables of one object: a class nobody knows may have layers in it."""
    own = layer.name.rpartition("/")[2]
    if leaves is None and any(name.split("/")[-2:-1] != [own] for name in names):
        raise Underivable(f"what is in layer {layer.name!r}, whose weights are {shown(names)}")
    if leaves is not None and len(leaves) != len(names):
        raise Underivable(f"what the weights of layer {layer.name!r} are: {shown(names)} instead of {shown(leaves)}")


def _group_named(layer: Layer, above: str) -> str:
    """The group of the object that is called so in the legacy layout, where names on the way to it may be missing."""
    parts = above.split("/")
    scores = [_score(_scope(unit), parts) for unit in layer.units]
    best = max(scores, default=0)
    fitting = [unit for unit, score in zip(layer.units, scores, strict=True) if score == best]
    if best == 0 or len(fitting) != 1 or (fitting[0].leaves is None and _scope(fitting[0])[-1] != parts[-1]):
        raise Underivable(f"which layer in {layer.name!r} has the weights {above!r}")
    return group_of(fitting[0])


def _scope(unit: Unit) -> list[str]:
    return [name for name in unit.path[2:] if name not in _ATTRIBUTES]


def _score(scope: Sequence[str], parts: Sequence[str]) -> int:
    """How many names of the scope are among the parts, in order; 0 if the last one is not."""
    rest = iter(reversed(parts))
    count = 0
    for name in reversed(scope):
        if any(_is_called(part, name) for part in rest):
            count += 1
        elif count == 0:
            return 0
        else:
            break
    return count


def _is_called(part: str, name: str) -> bool:
    """The sides of a Bidirectional are called after the layer in it."""
    return part == name or part.startswith(_SIDES.get(name, "/"))
