"""What Keras' configs say of a model, in a few lines for people. Nothing they name is imported; what is odd is left out."""

from collections.abc import Iterator, Mapping
from typing import Any

from ckptmgr.backend import JSON
from ckptmgr_hdf5.keras_carried import CONFIG, KERAS, MODEL_CONFIG, TRAINING_CONFIG
from ckptmgr_hdf5.keras_classes import layers_of, own_name
from ckptmgr_hdf5.keras_config import has_unsafe_config
from ckptmgr_hdf5.keras_translating import optimizer_of, parse

_MAX_NBYTES = 4 << 20  # of a text that is looked into
_WARNING = "Keras would run code that is in this config, or import modules that it names"


def describe(metadata: Mapping[str, JSON]) -> list[tuple[str, str]]:
    """Titles and lines on the model that an opened file has in its metadata; none if there is nothing of Keras."""
    return [*_file(metadata), *_model(metadata), *_training(metadata)]


def _file(metadata: Mapping[str, JSON]) -> Iterator[tuple[str, str]]:
    found = metadata.get(KERAS)
    if isinstance(found, dict):
        version, backend = found.get("keras_version"), found.get("backend")
        by = f" by Keras {version}" if isinstance(version, str) else ""
        yield "file", f"{found.get('kind')}{by}" + (f" on {backend}" if isinstance(backend, str) else "")


def _model(metadata: Mapping[str, JSON]) -> Iterator[tuple[str, str]]:
    text = metadata.get(CONFIG, metadata.get(MODEL_CONFIG))
    if not isinstance(text, str):
        return
    config = _parsed(text)
    if config:
        yield "model", _object(config)
        yield from (("layer", line) for line in _layers(config, ""))
    if has_unsafe_config(text):
        yield "unsafe", _WARNING


def _layers(config: Any, prefix: str) -> Iterator[str]:
    """Every layer by its name, those of a nested model below that one's."""
    for layer in layers_of(config) or ():
        yield f"{prefix}{_object(layer)}"
        yield from _layers(layer, f"{prefix}{own_name(layer)}/")


def _training(metadata: Mapping[str, JSON]) -> Iterator[tuple[str, str]]:
    config = _parsed(metadata.get(CONFIG, metadata.get(TRAINING_CONFIG)))
    compiled = config.get("compile_config", config) if CONFIG in metadata else config
    if not isinstance(compiled, dict):
        return
    for title in ("loss", "metrics"):
        names = [*_names(compiled.get(title))]
        if names:
            yield title, ", ".join(names)
    optimizer = optimizer_of(config)
    if optimizer:
        yield "optimizer", f"{_class(optimizer)} {_settings(optimizer)}".rstrip()


def _names(value: Any) -> Iterator[str]:
    """Every loss or metric in lists and dicts of them, each once."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) and "class_name" in value:
        # Keras wraps a plain function; its name then says more than the wrapper's.
        yield own_name(value) or _class(value)
    elif isinstance(value, list | dict):
        inner = value.values() if isinstance(value, dict) else value
        yield from dict.fromkeys(name for each in inner for name in _names(each))


def _object(value: Any) -> str:
    name, kind = own_name(value), _class(value)
    return f"{name} ({kind})" if name else kind


def _class(value: Any) -> str:
    name = value.get("registered_name") or value.get("class_name") if isinstance(value, dict) else value
    return name.removeprefix("Custom>") if isinstance(name, str) else "?"


def _settings(optimizer: Any) -> str:
    """An optimizer's numbers."""
    inner = optimizer.get("config") if isinstance(optimizer, dict) else None
    items = inner.items() if isinstance(inner, dict) else ()
    return " ".join(
        f"{key}={value:.6g}" for key, value in items if isinstance(value, int | float) and not isinstance(value, bool)
    )


def _parsed(text: Any) -> dict[str, Any]:
    if not isinstance(text, str) or len(text) > _MAX_NBYTES:
        return {}
    try:
        return parse(text)
    except ValueError:
        return {}
