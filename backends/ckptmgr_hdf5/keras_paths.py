"""Where the variables of a Sequential or Functional model lie, from its config alone: in groups, and in legacy order.

Keras 3 has a group for each object with variables. The legacy layout has one list for each layer of the model instead:
everything in it that can be trained, then the rest. Other models do as their class says, which no config tells.

Source: `_save_container_state` in Keras 3.15's saving_lib.py; legacy_h5_format.py; tf_keras 2.21.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import count, takewhile
from typing import NamedTuple

from ckptmgr.backend import JSON, TensorSpec
from ckptmgr.errors import shown
from ckptmgr_hdf5.keras_classes import Unit, class_of, layers_of, optimizer_class, own_name, slots, units
from ckptmgr_hdf5.keras_config import Config
from ckptmgr_hdf5.keras_translating import Underivable, optimizer_of
from ckptmgr_hdf5.keras_weights import label

VARS = "vars"
OPTIMIZER = f"optimizer/{VARS}"
RATE = "optimizer/learning_rate"
_ATTRIBUTES = frozenset({"layers", "layer", "cell", "cells"})  # on the way to an object, and not in legacy names
_SIDES = {"forward_layer": "forward_", "backward_layer": "backward_"}


class Layer(NamedTuple):
    """One of `model.layers`: its own name, and what in it may have variables, in the order in which Keras lists them.

    ``shared`` has the group of each object that an earlier model seems to have as well, and its group there: if they are
    one, Keras 3 has its variables there alone.
    """

    name: str
    units: tuple[Unit, ...]
    shared: Mapping[str, str]


def layers(model: object) -> list[Layer]:
    """The layers of a serialized model, in order.

    Raises:
        Underivable: the model is neither Sequential nor Functional, so only its class knows.
    """
    configs = layers_of(model)
    if configs is None:
        name = model.get("class_name") if isinstance(model, dict) else None
        raise Underivable(f"the layers of a model of class {name!r}, which is neither Sequential nor Functional")
    objects = serialized(model)
    found: dict[str, list[Unit]] = {}
    for unit in units(model):
        if unit.stored:
            found.setdefault(unit.stored[1], []).append(unit)
    shared = _shared((unit for held in found.values() for unit in held), objects)
    made = [_layer(held, shared, objects) for held in found.values()]
    # `Sequential.layers` leaves the input out.
    has_input = class_of(model) == "Sequential" and bool(configs) and class_of(configs[0]) == "InputLayer"
    return made[1:] if has_input else made


def serialized(model: object) -> dict[tuple[str, ...], Config]:
    """The serialized layers of a model, and of the models that are layers in it, by their paths as units have them."""
    found: dict[tuple[str, ...], Config] = {}
    rest: list[tuple[tuple[str, ...], object]] = [((), model)]
    while rest:
        above, config = rest.pop()
        for layer in layers_of(config) or ():
            if isinstance(layer, dict):
                path = (*above, "layers", own_name(layer))
                found[path] = layer
                rest.append((path, layer))
    return found


def _layer(held: Sequence[Unit], shared: Mapping[str, str], objects: Mapping[tuple[str, ...], Config]) -> Layer:
    kept = tuple(unit for unit in held if unit.leaves != () and not _is_given(objects.get(unit.path)))
    groups = [group_of(unit) for unit in kept]
    return Layer(held[0].path[1], kept, {group: shared[group] for group in groups if group in shared})


def _is_given(layer: Config | None) -> bool:
    """Whether a normalization has its mean from the config, and then no variables."""
    inner = layer.get("config") if layer is not None else None
    return class_of(layer) == "Normalization" and isinstance(inner, dict) and inner.get("mean") is not None


def _shared(found: Iterable[Unit], objects: Mapping[tuple[str, ...], Config]) -> dict[str, str]:
    """The groups of objects that came before, under the same name and config, each with the group in which it came first."""
    first: dict[str, str] = {}
    shared: dict[str, str] = {}
    for unit in found:
        layer = objects.get(unit.path)
        if layer is not None:
            group = first.setdefault(json.dumps([layer.get("class_name"), layer.get("config")]), group_of(unit))
            if group != group_of(unit):
                shared[group_of(unit)] = group
    return shared


def stored(model: Mapping[str, JSON], specs: Mapping[str, TensorSpec]) -> dict[str, str]:
    """Where the tensors of a model lie in Keras 3's layout, in order. Names are ``layers/dense/kernel`` and the like.

    All that the config tells of are there, also those that ``specs`` lack; only the optimizer's are there if it has any of
    them. Variables of classes that are not Keras' own have their numbers as names: ``layers/mine/vars/0``.

    Raises:
        Underivable: the config does not tell it of all in ``specs``.
    """
    found: dict[str, str] = {}
    trained: set[str] = set()
    for layer in layers(model):
        for unit in layer.units:
            names = _variables(unit, specs)
            found |= {name: f"{group_of(unit)}/{index}" for index, name in enumerate(names)}
            trained.update(_trained(unit, names, specs))
    if any(name.startswith("optimizer/") for name in specs):
        names = _of_optimizer(model, {name: name in trained for name in found}, specs)
        found |= {name: f"{OPTIMIZER}/{index}" for index, name in enumerate(names)}
    left = [name for name in specs if name not in found]
    if left and found.keys() <= specs.keys():
        raise Underivable(f"where these tensors go: {shown(sorted(left))}")
    return found


def _variables(unit: Unit, specs: Mapping[str, TensorSpec]) -> list[str]:
    """Names of all variables that an object has; of a class nobody knows, those that there are."""
    base = "/".join(unit.path)
    numbered = [*takewhile(specs.__contains__, (f"{base}/{VARS}/{index}" for index in count()))]
    if unit.leaves is None:
        return numbered
    if numbered:  # so its class has others than its config tells
        raise Underivable(f"where these tensors go: {shown(numbered)}")
    return [f"{base}/{leaf}" for leaf in unit.leaves]


def _trained(unit: Unit, names: Sequence[str], specs: Mapping[str, TensorSpec]) -> Iterable[str]:
    """Those that are trained: of a class nobody knows the first floating ones, as in reading."""
    if unit.trained is not None:
        return names[: unit.trained]
    return takewhile(lambda name: is_floating(specs[name].dtype), names)


def is_floating(dtype: str) -> bool:
    """Whether numbers of this dtype are real and not whole."""
    return dtype.startswith(("float", "bfloat"))


def _of_optimizer(model: Mapping[str, JSON], weights: Mapping[str, bool], specs: Mapping[str, TensorSpec]) -> list[str]:
    """Names of the optimizer's variables in order; ``weights`` are the model's, and whether they are trained.

    One that is frozen may have slots from before, then it has all.
    """
    optimizer = optimizer_of(model)
    groups = slots(optimizer)
    if groups is None:
        raise Underivable("which variables the optimizer has")
    is_old = _is_old(optimizer, model)
    first = ["optimizer/iteration", *([RATE] if _has_rate(optimizer, specs, is_old=is_old) else [])]
    if not groups and is_old and optimizer_class(optimizer) == "sgd":
        # Keras 2 has a slot of SGD that goes unused without momentum; reading gives it no name.
        return first + [f"{OPTIMIZER}/{index}" for index in range(len(first), len(first) + sum(weights.values()))]
    numbered = [name for name in specs if name.startswith(f"{OPTIMIZER}/")]
    if numbered:
        raise Underivable(f"whose these variables of the optimizer are: {shown(numbered)}")
    labels = {label(name.split("/")): is_trained for name, is_trained in weights.items()}
    if len(labels) < len(weights):
        raise Underivable("whose the variables of the optimizer are, since two weights have one name there")
    every = [slot for group in groups for slot in group]
    held = [
        each for each, is_trained in labels.items() if is_trained or any(f"optimizer/{each}/{slot}" in specs for slot in every)
    ]
    return first + [f"optimizer/{each}/{slot}" for group in groups for each in held for slot in group]


def _has_rate(optimizer: JSON, specs: Mapping[str, TensorSpec], *, is_old: bool) -> bool:
    """Whether the learning rate is a variable: in Keras 3, but for a schedule; Keras 2 has it in the config alone."""
    inner = optimizer.get("config") if isinstance(optimizer, dict) else None
    is_scheduled = isinstance(inner, dict) and isinstance(inner.get("learning_rate"), dict)
    return not is_scheduled and (not is_old or RATE in specs)


def _is_old(optimizer: JSON, model: object) -> bool:
    """Whether the optimizer is one of Keras 2."""
    inner = optimizer.get("config") if isinstance(optimizer, dict) else None
    has_settings = isinstance(inner, dict) and "learning_rate" in inner
    return isinstance(inner, dict) and "jit_compile" in inner if has_settings else not _has_policies(model)


def _has_policies(model: object) -> bool:
    """Whether Keras 3 wrote the config: dtypes of layers are objects there."""
    inners = (layer.get("config") for layer in serialized(model).values())
    return any(isinstance(inner, dict) and isinstance(inner.get("dtype"), dict) for inner in inners)


def group_of(unit: Unit) -> str:
    """The group of the unit's variables."""
    return "/".join((*unit.stored, VARS))


def legacy_order(layer: Layer, counts: Mapping[str, int]) -> list[str]:
    """Paths of a layer's variables in the order of the legacy layout; ``counts`` has how many are in each group.

    Raises:
        Underivable: it has several objects, and the class of one does not tell what of it can be trained; or one has no
            variables of its own, as Keras 3 saves a layer that is in two models.
    """
    empty = [group_of(unit) for unit in layer.units if not counts.get(group_of(unit)) and _has_weights(unit, layer, counts)]
    if empty:
        raise Underivable(f"what the variables in {empty[0]!r} are, of which there are none")
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


def _has_weights(unit: Unit, layer: Layer, counts: Mapping[str, int]) -> bool:
    """Whether the object must have variables, by its class or since it has them where it came first."""
    return bool(unit.leaves) or bool(counts.get(layer.shared.get(group_of(unit), "")))


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
