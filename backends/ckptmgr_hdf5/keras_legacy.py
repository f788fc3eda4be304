"""The layout of Keras 1 and 2, which Keras 3 still writes as ``.h5``: names in attributes, and a dataset for each.

The order is that of the attributes alone. A name is followed part by part, so it leads nowhere but to a dataset below,
and no dataset is reached twice: there are never more names than datasets, whatever the lists repeat.

Source: keras.src.legacy.saving.legacy_h5_format; tf_keras.src.saving.legacy.hdf5_format.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ckptmgr.errors import shown
from ckptmgr_hdf5.keras_classes import Unit, layers_of, own_name, slot, units
from ckptmgr_hdf5.keras_opened import HDF5, Named, datasets
from ckptmgr_hdf5.keras_weights import label
from ckptmgr_hdf5.origin import Origin
from ckptmgr_hdf5.parsing import Dataset, Group

LAYERS, WEIGHTS = "layer_names", "weight_names"
MODEL, OPTIMIZER, TOP = "model_weights", "optimizer_weights", "top_level_model_weights"
_SHOWN = 200  # characters of a name in a message
_FIRST = {"iteration": "iteration", "iter": "iteration", "learning_rate": "learning_rate"}

_logger = logging.getLogger(__name__)


class _Weight(NamedTuple):
    """A weight of a layer ("" is the model itself): its name in parts, as the file has it, without ``:0``."""

    layer: str
    parts: tuple[str, ...]
    dataset: Dataset


def has_names(group: Group, name: str) -> bool:
    """Whether a group has a list of names, whole or split."""
    return name in group.attributes or f"{name}0" in group.attributes


def names(attributes: Mapping[str, Any], name: str, origin: Origin) -> list[str]:
    """A list of names in an attribute, or in as many as it was split into; whatever kind of strings they are.

    Raises:
        CorruptCheckpointError: they are no texts, or no UTF-8.
    """
    if name in attributes:
        return [*_texts(attributes[name], name, origin)]
    found: list[str] = []
    index = 0
    while f"{name}{index}" in attributes:
        found += _texts(attributes[f"{name}{index}"], f"{name}{index}", origin)
        index += 1
    return found


def weights_group(root: Group) -> Group | None:
    """The group that has the layers: that of a whole model, or the root of a file that has nothing else; None elsewhere."""
    if has_names(root, LAYERS):
        return root
    found = root.children.get(MODEL)
    return found if isinstance(found, Group) and has_names(found, LAYERS) else None


def read_legacy(hdf5: HDF5, group: Group, config: Any) -> list[Named]:
    """The weights of each layer in order, those of the model itself, and the optimizer's.

    ``group`` is that of the weights; ``config``, the model's, may be None.

    Raises:
        CorruptCheckpointError: a name that is listed and not there, or listed twice; attributes that are no names.
        UnsafeCheckpointError: a name that is absolute or has ``..``.
    """
    layers = names(group.attributes, LAYERS, hdf5.origin)
    if len(set(layers)) < len(layers):
        raise hdf5.origin.corrupt("the layer is listed twice", _twice(layers)[:_SHOWN])
    seen: set[str] = set()
    weights = [weight for name in layers for weight in _weights(hdf5, group, name, seen)]
    top = group.children.get(TOP)
    if isinstance(top, Group):
        weights += _listed(hdf5, top, "", seen)
    paths = _paths(weights, config)
    found = [Named(path, hdf5, weight.dataset) for path, weight in zip(paths, weights, strict=True)]
    steps = hdf5.root.children.get(OPTIMIZER)
    if isinstance(steps, Group) and group is not hdf5.root:
        slots = _listed(hdf5, steps, "", seen)
        known = {mark.join(weight.parts): label(path) for mark in "_/" for path, weight in zip(paths, weights, strict=True)}
        found += [Named(("optimizer", *_slot(weight.parts, known)), hdf5, weight.dataset) for weight in slots]
    others = [dataset.path[:_SHOWN] for dataset in datasets(hdf5.root) if dataset.path not in seen]
    if others:
        _logger.warning("%r does not list these datasets as weights, they are left out: %s", hdf5.origin.location, shown(others))
    return found


def _twice(listed: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(name for name in listed if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def _weights(hdf5: HDF5, group: Group, layer: str, seen: set[str]) -> list[_Weight]:
    found = _find(hdf5, group, layer)
    if not isinstance(found, Group):
        raise hdf5.origin.corrupt("the layer is listed, and has no group", layer[:_SHOWN])
    return _listed(hdf5, found, layer, seen)


def _listed(hdf5: HDF5, group: Group, layer: str, seen: set[str]) -> list[_Weight]:
    """The weights in a group's list; ``seen`` has the paths of all that any list has had so far."""
    found = []
    for name in names(group.attributes, WEIGHTS, hdf5.origin):
        dataset = _find(hdf5, group, name)
        if not isinstance(dataset, Dataset):
            raise hdf5.origin.corrupt("the weight is listed, and has no dataset", f"{group.path}/{name}"[:_SHOWN])
        if dataset.path in seen:
            raise hdf5.origin.corrupt("a weight is listed twice", dataset.path[:_SHOWN])
        seen.add(dataset.path)
        found.append(_Weight(layer, tuple(name.removesuffix(":0").split("/")), dataset))
    return found


def _find(hdf5: HDF5, group: Group, name: str) -> Group | Dataset | None:
    node: Group | Dataset | None = group
    for part in name.split("/"):
        if part in ("", ".", ".."):
            raise hdf5.origin.unsafe("the name leads elsewhere", f"{group.path[:_SHOWN]}: {name[:_SHOWN]}")
        node = node.children.get(part) if isinstance(node, Group) else None
    return node


def _texts(value: Any, name: str, origin: Origin) -> Iterator[str]:
    """A list of no names at all is an array of no numbers."""
    if not isinstance(value, np.ndarray) or value.ndim != 1 or (value.size and value.dtype.kind not in "SO"):
        raise origin.corrupt("the attribute is no list of names", name)
    for item in value.tolist():
        try:
            text = item.rstrip(b"\0").decode() if isinstance(item, bytes) else item
        except UnicodeDecodeError as error:
            raise origin.corrupt("the attribute has a name that is no UTF-8", name) from error
        if not isinstance(text, str):
            raise origin.corrupt("the attribute is no list of names", name)
        yield text


def _paths(weights: Sequence[_Weight], config: Any) -> list[tuple[str, ...]]:
    """Keys for each weight: by the classes of the layers where the config has them, else by the names in the file."""
    known: dict[str, list[Unit]] = {}
    if layers_of(config) is not None:
        for unit in units(config):
            if len(unit.path) > 1:
                known.setdefault(unit.path[1], []).append(unit)
    by_layer: dict[str, list[_Weight]] = {}
    for weight in weights:
        by_layer.setdefault(weight.layer, []).append(weight)
    model = own_name(config)
    found = {
        layer: _by_class(held, known.get(layer, [])) or [_by_name(weight, model) for weight in held]
        for layer, held in by_layer.items()
    }
    return [path for paths in found.values() for path in paths]


def _by_class(weights: Sequence[_Weight], parts: Sequence[Unit]) -> list[tuple[str, ...]] | None:
    """Keys by the classes in a layer, if their variables are called like these weights: trained ones first, then the rest."""
    first: list[tuple[str, ...]] = []
    rest: list[tuple[str, ...]] = []
    for unit in parts:
        if unit.leaves is None or unit.trained is None:
            continue  # most such have no variables; if this one has, the count tells
        first += [(*unit.path, leaf) for leaf in unit.leaves[: unit.trained]]
        rest += [(*unit.path, leaf) for leaf in unit.leaves[unit.trained :]]
    paths = [*first, *rest]
    if len(paths) != len(weights) or not all(map(_is_called, weights, paths)):
        return None
    return paths


def _is_called(weight: _Weight, path: tuple[str, ...]) -> bool:
    """Whether the file's own name of a weight is the same variable, of the same layer of the same inner model."""
    inner = [own for before, own in pairwise(path[2:]) if before == "layers"]
    leaf = weight.parts[-1]
    return (leaf == path[-1] or leaf.endswith(f"_{path[-1]}")) and all(own in weight.parts for own in inner[-1:])


def _by_name(weight: _Weight, model: str) -> tuple[str, ...]:
    """Keys without what only repeats the layer's name, or the model's before it."""
    parts, own = weight.parts, tuple(weight.layer.split("/"))
    if not weight.layer:
        return parts[1:] if len(parts) > 1 and parts[0] == model else parts
    for start in (0, 1):
        end = start + len(own)
        if len(parts) > end and parts[start:end] == own:
            return ("layers", weight.layer, *parts[end:])
    return ("layers", weight.layer, *parts)


def _slot(parts: tuple[str, ...], known: Mapping[str, str]) -> tuple[str, ...]:
    """Keys for a variable of the optimizer, whose name has that of a weight in it.

    ``known`` has what weights are called here by their names in the file.
    """
    if len(parts) <= 2 and parts[-1] in _FIRST:
        return (_FIRST[parts[-1]],)
    before, after = slot(parts[1]) if len(parts) > 2 else None, slot(parts[-1])
    if before and "/".join(parts[2:]) in known:  # Adam/m/dense/kernel
        return known["/".join(parts[2:])], before
    if after and "/".join(parts[1:-1]) in known:  # Adam/dense/kernel/m
        return known["/".join(parts[1:-1])], after
    return _joined(parts, known) if len(parts) == 2 else parts


def _joined(parts: tuple[str, ...], known: Mapping[str, str]) -> tuple[str, ...]:
    """The same of Keras 3: adam/dense_kernel_momentum."""
    words = parts[1].split("_")
    for count in (1, 2, 3):
        name, own = "_".join(words[:-count]), slot("_".join(words[-count:]))
        if own and name in known:
            return known[name], own
    return parts[1:]
