"""The places of a model's variables in one Keras layout, from those in the other and the model's config.

Source: the loading functions of Keras 3.15 and tf_keras 2.21, which go by order within a layer and within the optimizer.
"""

from collections.abc import Mapping, Sequence

from ckptmgr_hdf5 import keras_paths
from ckptmgr_hdf5.keras_classes import Unit
from ckptmgr_hdf5.keras_paths import OPTIMIZER, VARS, Layer
from ckptmgr_hdf5.keras_translating import Underivable
from ckptmgr_hdf5.keras_trees import Legacy

# Keras starts metrics anew, and the state of an optimizer within another is in that one's variables as well.
DISPENSABLE = ("metrics/", "optimizer/inner_optimizer/")


def to_groups(legacy: Legacy, layers: Sequence[Layer], optimizer: str) -> dict[str, str]:
    """Tensors by their paths in Keras 3's layout.

    Raises:
        Underivable: the config does not tell one of the paths.
    """
    places: dict[str, str] = {f"{VARS}/{index}": name for index, name in enumerate(legacy.top.values())}
    by_name = {layer.name: layer for layer in layers}
    for layer_name, weights in legacy.layers.items():
        if not weights:
            continue
        if layer_name not in by_name:
            raise Underivable(f"what layer {layer_name!r} is, which the config lacks")
        paths = keras_paths.grouped(by_name[layer_name], [*weights])
        places |= zip(paths, weights.values(), strict=True)
    first = next(iter(legacy.optimizer), "")
    if "LossScale" in optimizer or first.endswith("/iter:0"):
        raise Underivable(f"where the optimizer's state goes, which is that of {optimizer or first!r}")
    places |= {f"{OPTIMIZER}/{index}": name for index, name in enumerate(legacy.optimizer.values())}
    return places


def to_legacy(stored: Mapping[str, str], layers: Sequence[Layer], optimizer: str, *, is_old: bool) -> Legacy:
    """The legacy layout of tensors whose paths in Keras 3's are given by name. Metrics have no place in it, and are left out.

    ``optimizer`` is what the optimizer is called. Weights are called after their layers and the last part of their names.

    Raises:
        Underivable: the config does not tell the order of all.
    """
    names = {path: name for name, path in stored.items() if not path.startswith(DISPENSABLE)}
    counts: dict[str, int] = {}
    for path in names:
        group = path.rpartition("/")[0]
        counts[group] = counts.get(group, 0) + 1
    end = ":0" if is_old else ""
    made: dict[str, dict[str, str]] = {}
    for layer in layers:
        within = {keras_paths.group_of(unit): _object_name(unit) for unit in layer.units}
        weights = made.setdefault(layer.name, {})
        for path in keras_paths.legacy_order(layer, counts):
            name = _taken(names, path)
            _add(weights, f"{within[path.rpartition('/')[0]]}/{_leaf(name)}", path, end, name)
    slots: dict[str, str] = {}
    for path in _numbered(OPTIMIZER, counts):
        name = _taken(names, path)
        _add(slots, _slot(name, optimizer, is_old=is_old), path, end, name)
    top: dict[str, str] = {}
    for path in _numbered(VARS, counts):
        name = _taken(names, path)
        _add(top, _leaf(name), path, end, name)
    if names:
        raise Underivable(f"which layer has {next(iter(names))!r}")
    return Legacy(made, top, slots)


def _numbered(group: str, counts: Mapping[str, int]) -> list[str]:
    return [f"{group}/{index}" for index in range(counts.get(group, 0))]


def _add(weights: dict[str, str], weight: str, path: str, end: str, name: str) -> None:
    """Adds a tensor by its weight name; where there is one of that name, also by its number."""
    if weight + end in weights:
        weight = f"{weight}_{path.rpartition('/')[2]}"
    if weight + end in weights:
        raise Underivable(f"what to call the weight {name!r}")
    weights[weight + end] = name


def _taken(names: dict[str, str], path: str) -> str:
    """The name of the tensor at the path, which is then done with."""
    if path not in names:
        raise Underivable(f"what lies between the variables at {path!r}, which is missing")
    return names.pop(path)


def _object_name(unit: Unit) -> str:
    """The layer and what leads to the object within it; slots of the optimizer are called after the same."""
    return "/".join(part for part in unit.path[1:] if part != "layers")


def _leaf(name: str) -> str:
    last = name.rpartition("/")[2]
    return f"{VARS}_{last}" if last.isdecimal() else last


def _slot(name: str, optimizer: str, *, is_old: bool) -> str:
    tail = name.removeprefix("optimizer/")
    if is_old:
        return "iteration" if tail == "iteration" else f"{optimizer}/{tail}"
    return f"{optimizer}/{tail.replace('/', '_')}"
