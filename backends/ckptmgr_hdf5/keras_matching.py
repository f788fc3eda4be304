"""Shapes and dtypes of a state against a Keras model: those of another file of it, or what its config alone tells.

Keras checks less when it loads: it casts whole numbers to floats and back without a word.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from ckptmgr.backend import TensorSpec
from ckptmgr_hdf5 import keras_paths
from ckptmgr_hdf5.keras_classes import Unit, class_of, slot
from ckptmgr_hdf5.keras_config import Config
from ckptmgr_hdf5.keras_paths import RATE, is_floating
from ckptmgr_hdf5.keras_translating import Underivable
from ckptmgr_hdf5.keras_weights import label

_ITERATION = "optimizer/iteration"
_FLOATING = re.compile(r"(mixed_)?b?float\d+")
_WHOLE = ("count",)  # of a Normalization


def wrong(specs: Mapping[str, TensorSpec], config: Config, template: Mapping[str, TensorSpec] | None) -> list[str]:
    """What differs, tensor by tensor, for people; an empty ``config`` tells nothing. A template's specs tell everything."""
    if template is not None:
        return [*_against(specs, template)]
    return [*_by_config(specs, config), *_by_weights(specs)]


def _against(specs: Mapping[str, TensorSpec], template: Mapping[str, TensorSpec]) -> Iterator[str]:
    for name, spec in specs.items():
        wanted = template.get(name, spec)
        if wanted.shape != spec.shape:
            yield f"{name!r} has shape {spec.shape} instead of {wanted.shape}"
        if wanted.dtype != spec.dtype:
            yield f"{name!r} is {spec.dtype} instead of {wanted.dtype}: cast it"


def _by_config(specs: Mapping[str, TensorSpec], config: Config) -> Iterator[str]:
    try:
        layers = keras_paths.layers(config)
    except Underivable:
        return
    objects = keras_paths.serialized(config)
    for unit in (unit for layer in layers for unit in layer.units):
        above = next((unit.path[:end] for end in range(len(unit.path), 0, -1) if unit.path[:end] in objects), ())
        layer = objects.get(above, {})
        named = {leaf: "/".join((*unit.path, leaf)) for leaf in unit.leaves or ()}
        held = {leaf: name for leaf, name in named.items() if name in specs}
        if _has_floats(layer):
            for leaf, name in held.items():
                if leaf not in _WHOLE and not is_floating(specs[name].dtype):
                    yield f"{name!r} is {specs[name].dtype} in a layer of floats: cast it"
        if above == unit.path:
            yield from _dense(unit, layer, {leaf: (name, specs[name].shape) for leaf, name in held.items()})


def _has_floats(layer: Config) -> bool:
    """Whether the weights of a layer are floating numbers: by default, or as its dtype or policy says."""
    dtype = _inner(layer).get("dtype")
    if isinstance(dtype, dict):
        dtype = _inner(dtype).get("name")
    return dtype is None or (isinstance(dtype, str) and _FLOATING.fullmatch(dtype) is not None)


def _dense(unit: Unit, layer: Config, held: Mapping[str, tuple[str, tuple[int, ...]]]) -> Iterator[str]:
    """The shapes of a Dense layer; how many numbers go in is only known if it says for what it was built."""
    units = _inner(layer).get("units")
    if class_of(layer) != "Dense" or not isinstance(units, int):
        return
    built = layer.get("build_config")
    inputs = built.get("input_shape") if isinstance(built, dict) else None
    width = inputs[-1] if isinstance(inputs, list) and inputs else None
    for leaf, (name, shape) in held.items():
        wanted = (units,) if leaf == "bias" else (width if isinstance(width, int) else next(iter(shape), 0), units)
        if shape != wanted:
            yield f"{name!r} has shape {shape} instead of {wanted}"


def _by_weights(specs: Mapping[str, TensorSpec]) -> Iterator[str]:
    """The optimizer's state: each slot has its weight's shape."""
    labels = [(label(name.split("/")), spec) for name, spec in specs.items() if not name.startswith("optimizer/")]
    counts = Counter(each for each, _ in labels)
    shapes = {each: spec.shape for each, spec in labels if counts[each] == 1}
    for name, spec in specs.items():
        first, _, rest = name.partition("/")
        each, _, last = rest.rpartition("/")
        if first != "optimizer":
            continue
        if each in shapes and slot(last) is not None:
            if spec.shape != shapes[each]:
                yield f"{name!r} has shape {spec.shape}, and its weight {shapes[each]}"
            if not is_floating(spec.dtype):
                yield f"{name!r} is {spec.dtype} instead of floats: cast it"
        elif name in (_ITERATION, RATE):
            if spec.shape:
                yield f"{name!r} has shape {spec.shape} instead of ()"
            if is_floating(spec.dtype) != (name == RATE):
                yield f"{name!r} is {spec.dtype} instead of {'floats' if name == RATE else 'integers'}: cast it"


def _inner(config: Config) -> Config:
    inner = config.get("config")
    return inner if isinstance(inner, dict) else {}
