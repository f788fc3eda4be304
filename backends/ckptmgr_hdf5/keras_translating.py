"""A model's config as the legacy layout has it, and as a ``.keras`` archive has it: one made from the other.

Only the outermost objects are made anew; what is in them is carried as it is, since Keras 2 and Keras 3 read layers in
both forms. Nothing is imported or resolved.

Source: `serialize_keras_object` and `compile_args_from_training_config` in Keras 3.15 and tf_keras 2.21.
"""

import json
from collections.abc import Mapping
from typing import Any

from ckptmgr.backend import JSON
from ckptmgr_hdf5.keras_classes import class_of, layers_of
from ckptmgr_hdf5.keras_config import Config

_MODEL, _TRAINING, _OPTIMIZER = "model_config", "training_config", "optimizer_config"
_DATE = "1980-01-01@00:00:00"  # the same contents give the same archive


class Underivable(Exception):
    """The config alone does not tell; the message says what."""


def archive_texts(model_config: str, training_config: str | None, version: str) -> dict[str, str]:
    """Texts of ``config.json`` and ``metadata.json``, from those of a legacy file.

    Raises:
        ValueError: a text is no JSON object.
        Underivable: the model is neither Sequential nor Functional.
    """
    model = parse(model_config)
    class_name = _class_name(model)
    # A Functional model has another module in each Keras; `Model` makes one of the same config in all of them.
    made = _object("keras", "Sequential" if class_name == "Sequential" else "Model", model.get("config"))
    if training_config is not None:
        made["compile_config"] = _compile_config(parse(training_config))
    metadata = {"keras_version": version, "date_saved": _DATE}
    return {"config.json": json.dumps(made), "metadata.json": json.dumps(metadata)}


def legacy_texts(config: str) -> dict[str, str]:
    """Texts of ``model_config`` and, for a compiled model, ``training_config``, from that of ``config.json``.

    Raises:
        ValueError: the text is no JSON object.
        Underivable: the model is neither Sequential nor Functional.
    """
    model = parse(config)
    texts = {_MODEL: json.dumps({"class_name": _class_name(model), "config": model.get("config")})}
    compiled = model.get("compile_config")
    if isinstance(compiled, dict) and compiled.get("optimizer") is not None:
        rest = {"loss": None, "metrics": None, "weighted_metrics": None, "loss_weights": None}
        rest |= {key: value for key, value in compiled.items() if key != "optimizer"}
        texts[_TRAINING] = json.dumps({**rest, _OPTIMIZER: _legacy_optimizer(compiled["optimizer"])})
    return texts


def parse(text: str) -> dict[str, Any]:
    """A text that must be a JSON object. Raises ValueError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the config of the model is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError("the config of the model is no JSON object")
    return value


def optimizer_of(config: Mapping[str, JSON]) -> JSON:
    """The optimizer in a parsed ``config.json`` or ``training_config``: a serialized object or its name; None without one."""
    compiled = config.get("compile_config")
    return compiled.get("optimizer") if isinstance(compiled, dict) else config.get(_OPTIMIZER)


def _class_name(model: Config) -> str:
    if layers_of(model) is None:
        name = model.get("class_name")
        raise Underivable(f"the config of a model of class {name!r}, which is neither Sequential nor Functional")
    return class_of(model)


def _object(module: str, class_name: str, config: JSON) -> dict[str, Any]:
    return {"module": module, "class_name": class_name, "config": config, "registered_name": None}


def _compile_config(training: Config) -> dict[str, Any]:
    kept = {key: value for key, value in training.items() if key != _OPTIMIZER}
    made = {"optimizer": _modern(training.get(_OPTIMIZER), "keras.optimizers")}
    made["loss"] = _nested(kept.pop("loss", None), "keras.losses")
    for key in ("metrics", "weighted_metrics"):
        made[key] = _nested(kept.pop(key, None), "keras.metrics")
    return made | kept


def _nested(value: Any, module: str) -> Any:
    """Every object in a structure of lists and dicts in its modern form."""
    if isinstance(value, list):
        return [_nested(each, module) for each in value]
    if isinstance(value, dict):
        return _modern(value, module) if "class_name" in value else {key: _nested(each, module) for key, each in value.items()}
    return value


def _modern(value: Any, module: str) -> Any:
    """An object with its module; a registered one keeps its registered name instead."""
    if not isinstance(value, dict) or "module" in value or not isinstance(value.get("class_name"), str):
        return value
    package, _, name = value["class_name"].rpartition(">")
    if package in ("", "Custom"):  # tf_keras registers its own optimizers as "Custom"
        return _object(module, name, value.get("config"))
    return {"module": None, "class_name": name, "config": value.get("config"), "registered_name": value["class_name"]}


def _legacy_optimizer(value: Any) -> Any:
    if isinstance(value, str):
        return {"class_name": value, "config": {}}
    if not isinstance(value, dict):
        return value
    registered = value.get("registered_name")
    name = registered if isinstance(registered, str) else value.get("class_name")
    return {"class_name": name, "config": value.get("config")}
