"""Keras's JSON: read with care, carried as it is, and never acted upon. What it names is not imported, what it holds not run.

A config says which layers a model has, which is enough to tell what the numbered variables in a file are called.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from ckptmgr_hdf5.origin import Origin

Config: TypeAlias = dict[str, Any]

MAX_NBYTES = 64 << 20  # of a text that is carried
MAX_PARSED_NBYTES = 4 << 20  # a text over it is carried, but tells no names
_MAX_DEPTH = 200
_MAX_CONTAINERS = 250_000
_MAX_LAYERS = 10_000  # a model with more is carried likewise
_LISTS_OF_LAYERS = ("layers", "cells", "config")

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_STEP_OF_BRACKET = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_ALL_BUT_BRACKETS_AND_QUOTES = bytes(set(range(256)) - set(b'[]{}"'))

# Of Keras: what only makes objects of the class that is named. `keras.utils` and the like also write and fetch files.
_ROOTS = ("keras", "keras_core", "tf_keras", "tensorflow.keras", "tensorflow.python.keras")
_PACKAGES = {
    "activations",
    "constraints",
    "dtype_policies",
    "engine",
    "initializers",
    "layers",
    "losses",
    "metrics",
    "models",
    "ops",
    "optimizers",
    "quantizers",
    "random",
    "regularizers",
}
_CODE = ("Lambda", "__lambda__")
_HARMLESS_OPS = ("__operators__.", "math.", "nn.")


def parse(text: str, origin: Origin, subject: str) -> Any:
    """The value of a JSON text, NaN and infinities included; None for a text over 4 MiB or 10,000 layers: it tells no names.

    Raises:
        CorruptCheckpointError: it is no JSON, has a key twice, nests too deeply, or is over all limits.
    """
    try:
        data = text.encode()
        if len(data) > MAX_NBYTES:
            raise ValueError(f"{len(data)} bytes are over the limit of {MAX_NBYTES}")
        value = _parse(text, data) if len(data) <= MAX_PARSED_NBYTES else None
        return value if _count_layers(value) <= _MAX_LAYERS else None
    except (ValueError, RecursionError) as error:
        raise origin.corrupt(f"it is no JSON that can be read: {error}", subject) from error


def has_unsafe_config(text: str) -> bool:
    """Whether loading this config in Keras could run code that comes with it, or that it merely names.

    That is: a Lambda, whose code is in the config; a class or function of a module other than those of Keras that hold
    layers, optimizers and the like, which would be imported; an operation of TensorFlow that is not plain arithmetic.
    Classes registered under ``package>Name`` do not count: Keras finds only what the program itself has registered.
    A text that cannot be read, or is over 4 MiB, counts.
    """
    try:
        data = text.encode()
        return len(data) > MAX_PARSED_NBYTES or any(map(_is_unsafe, _objects(_parse(text, data))))
    except (ValueError, RecursionError):
        return True


def _objects(value: Any) -> Iterator[Config]:
    """Every JSON object in the value."""
    values = [value]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            yield value
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        values.extend(item for item in inside if isinstance(item, dict | list))


def _count_layers(value: Any) -> int:
    """How many layers may be in a config, whatever they are: each costs work, also where it is but a digit."""
    lists = [config.get(name) for config in _objects(value) for name in _LISTS_OF_LAYERS]
    return sum(len(layers) for layers in lists if isinstance(layers, list))


def _is_unsafe(config: Config) -> bool:
    name = config.get("class_name")
    if name is None:
        return False
    if not isinstance(name, str) or name in _CODE or "." in name:
        return True
    if name in ("TFOpLambda", "SlicingOpLambda"):
        inner = config.get("config")
        function = inner.get("function") if isinstance(inner, dict) else None
        return not (isinstance(function, str) and function.startswith(_HARMLESS_OPS))
    module = config.get("module")
    # Nothing is imported where there is no module, and from "builtins", as Keras says for plain functions of the program.
    return not (module in (None, "builtins") or (isinstance(module, str) and is_of_keras(module)))


def is_of_keras(module: str) -> bool:
    """Whether a module is one of those of Keras, in any of its versions, that hold layers, optimizers and the like."""
    for root in _ROOTS:
        if module == root:
            return True
        if module.startswith(f"{root}."):
            parts = module.removeprefix(f"{root}.").removeprefix("src.").removeprefix("api.").split(".")
            return parts[0] in _PACKAGES
    return False


def _parse(text: str, data: bytes) -> Any:
    _check_brackets(data)
    value = json.loads(text, object_pairs_hook=_unique)
    if _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()  # raises for a surrogate without its other half, which no name has
    return value


def _check_brackets(data: bytes) -> None:
    """Bounds the depth, and the memory that empty containers would take, before anything is built."""
    data = data.replace(rb"\\", b"").replace(rb"\"", b"")
    # Joining a closing quote with the next opening one leaves what is inside a string inside of one.
    brackets = data.translate(None, _ALL_BUT_BRACKETS_AND_QUOTES).replace(b'""', b"")
    brackets = re.sub(rb'"[^"]*"?', b"", brackets)
    if len(brackets) > 2 * _MAX_CONTAINERS:
        raise ValueError(f"it has more than {_MAX_CONTAINERS} lists and objects")
    steps = np.frombuffer(brackets.translate(_STEP_OF_BRACKET), np.int8)
    deepest = int(steps.cumsum(dtype=np.int32).max(initial=0))
    if deepest > _MAX_DEPTH:
        raise ValueError(f"its values nest {deepest} deep, the limit is {_MAX_DEPTH}")


def _unique(pairs: list[tuple[str, Any]]) -> Config:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:100]!r} is there twice")
    return value
