"""Whole models as steps: weights and optimizer as the state, the architecture as the files that a ``.keras`` archive has.

A configuration names classes and may hold code. It is given to Keras, which resolves names and, unless it is told that
the source is trusted, refuses code; that is checked here as well, before Keras sees it.
"""

import importlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

from ckptmgr.checkpoint import Checkpoint, Restored
from ckptmgr.errors import CorruptCheckpointError, MissingDependencyError, StateMismatchError, UnsafeCheckpointError
from ckptmgr.integrations import keras_state
from ckptmgr.integrations.keras_state import FACTS, FRAMEWORKS, facts_of, framework
from ckptmgr.manager import CheckpointManager
from ckptmgr.step import JSON, StepInfo

CONFIG, METADATA = "config.json", "metadata.json"
FILES = "assets"  # among our facts: which asset of the step is which file of a layer


def save_model(
    manager: CheckpointManager,
    step: int,
    model: Any,
    *,
    metrics: Mapping[str, Any] | None = None,
    metadata: Mapping[str, JSON] | None = None,
    overwrite: bool = False,
) -> StepInfo:
    """Saves weights, optimizer, architecture and compile configuration of a built model as one step.

    The assets ``config.json`` and ``metadata.json`` are those of a ``.keras`` archive. Raises what `CheckpointManager.save`
    does, and:

    Raises:
        TypeError: it is no model of Keras 3 or tf_keras.
        ValueError: the model is not built.
        NotImplementedError: the model or one of its layers has no `get_config`; save its weights alone.
    """
    state = keras_state.parts(model).tree("optimizer", "random")
    assets, facts = described(model)
    return manager.save(
        step, state, metrics=metrics, metadata={**(metadata or {}), FACTS: facts}, assets=assets, overwrite=overwrite
    )


def described(model: Any) -> tuple[dict[str, bytes], dict[str, JSON]]:
    """The assets of a step that hold the model's architecture, and our facts about them."""
    name = framework(model)
    library = _library(name)
    with _sharing(library):
        config = library.serialize_keras_object(model)
        compiled = config.get("compile_config")
        # Once a model was saved as .h5, Keras 3 has taken the optimizer out of the arguments that it remembers.
        if isinstance(compiled, dict) and "optimizer" not in compiled and getattr(model, "optimizer", None) is not None:
            compiled["optimizer"] = library.serialize_keras_object(model.optimizer)
    facts = keras_state.facts(model, "model")
    date = datetime.now().strftime("%Y-%m-%d@%H:%M:%S")
    about = json.dumps({"keras_version": facts["version"], "date_saved": date})
    files = {f"{FILES}-{index}": entry for index, entry in enumerate(_layer_files(model))}
    assets = {CONFIG: json.dumps(config).encode(), METADATA: about.encode(), **{key: data for key, (_, data) in files.items()}}
    return assets, {**facts, FILES: {key: path for key, (path, _) in files.items()}}


def load_model(
    manager: CheckpointManager,
    step: int | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    *,
    compile: bool = True,
    safe_mode: bool = True,
) -> Any:
    """The model of a step, built and compiled as it was saved, with its weights and its optimizer's state.

    Without ``step``, the newest one that is good and holds a model. The framework that saved it is imported if it is not yet.
    ``custom_objects`` are classes by name, as Keras takes them. ``compile=False`` leaves out the compile configuration.
    Keras imports what the configuration names: load only what you trust.

    Raises:
        StepNotFoundError: no such step, or none that holds a model.
        StateMismatchError: the step holds no architecture, or one whose variables are not those of the step.
        UnsafeCheckpointError: the architecture holds code (a Lambda layer), and ``safe_mode`` is on.
        CorruptCheckpointError: the step is damaged.
        MissingDependencyError: the framework that saved it is not installed.
        TypeError, ValueError: Keras cannot make the model, mostly for want of ``custom_objects``; its own error.
    """

    def loaded(step: int) -> Any:
        with manager.open(step) as checkpoint:
            model = _made(checkpoint, custom_objects, compile=compile, safe_mode=safe_mode)
            if not model.built:
                raise ValueError(
                    f"step {step} does not say how its model is built: make the model, call it on a batch of data, "
                    "and fill it by restore_weights"
                )
            _load_layer_files(checkpoint, model)
        keras_state.restore_into(manager, step, model, ("optimizer", "random"))
        return model

    if step is not None:
        return loaded(step)
    return keras_state.newest(
        manager, lambda info: loaded(info.step), lambda info: facts_of(info).get("holds") in ("model", "fit")
    )


def restore_weights(manager: CheckpointManager, model: Any, step: int | None = None) -> Restored:
    """Fills a built model with a step's weights; without ``step``, the newest good one's.

    If the model is compiled and the step has an optimizer's state, that is restored too. Variables are assigned to in place.

    Raises:
        StepNotFoundError: no such step.
        StateMismatchError: the model and the step differ; lists every difference by name, and nothing was changed.
        CorruptCheckpointError: the step is damaged.
        ValueError: the model is not built.
    """
    keras_state.parts(model)
    if step is not None:
        return keras_state.restore_into(manager, step, model, ("optimizer",))
    return keras_state.newest(manager, lambda info: keras_state.restore_into(manager, info.step, model, ("optimizer",)))


def _made(checkpoint: Checkpoint, custom_objects: Mapping[str, Any] | None, *, compile: bool, safe_mode: bool) -> Any:
    """The model that the step's configuration describes, without its weights."""
    where = checkpoint.location
    if CONFIG not in checkpoint.assets:
        raise StateMismatchError(
            f"{where!r} holds no architecture ({CONFIG!r} is missing): make the model and use restore_weights",
            missing=(CONFIG,),
        )
    config = _config(checkpoint)
    if safe_mode and _has_code(config):
        raise UnsafeCheckpointError(
            f"the model in {where!r} has a Lambda layer, whose code would be run: "
            "pass safe_mode=False if you trust whoever saved it",
            file=CONFIG,
        )
    if not compile:
        config["compile_config"] = None
    library = _library(str(facts_of(checkpoint.info).get("framework", FRAMEWORKS[0])))
    with _sharing(library):
        return library.deserialize_keras_object(config, custom_objects=dict(custom_objects or {}), safe_mode=safe_mode)


def _config(checkpoint: Checkpoint) -> dict[str, JSON]:
    where = checkpoint.location
    try:
        config = json.loads(checkpoint.asset(CONFIG))
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{CONFIG!r} in {where!r} is no JSON: {error}", file=CONFIG) from error
    if not isinstance(config, dict):
        raise CorruptCheckpointError(f"{CONFIG!r} in {where!r} describes no model", file=CONFIG)
    return config


def _has_code(config: JSON) -> bool:
    """Whether a configuration holds marshalled functions, in the form of either Keras."""
    left = [config]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if value.get("class_name") == "__lambda__" or "lambda" in (
                value.get("function_type"),
                value.get("output_shape_type"),
            ):
                return True
            left += value.values()
        elif isinstance(value, list):
            left += value
    return False


def _library(name: str) -> Any:
    """The module of that Keras which makes configurations of objects, and objects of configurations."""
    if name not in FRAMEWORKS:
        raise CorruptCheckpointError(f"the step says that {name!r} saved it, which is no Keras")
    try:
        importlib.import_module(name)
        return importlib.import_module(f"{name}.src.saving.serialization_lib")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"a model of {name} needs it: pip install {name}") from error


def _sharing(library: Any) -> AbstractContextManager[Any]:
    """Where Keras keeps objects that stand in two places one object."""
    scope: AbstractContextManager[Any] = getattr(library, "ObjectSharingScope", nullcontext)()
    return scope


def _layer_files(model: Any) -> Iterator[tuple[str, bytes]]:
    """What layers keep outside of variables (vocabularies), as a ``.keras`` archive has it."""
    for path, layer in keras_state.parts(model).layers.items():
        if not callable(getattr(layer, "save_assets", None)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            for file in sorted(Path(folder).rglob("*")):
                if file.is_file():
                    yield "/".join((FILES, *path, *file.relative_to(folder).parts)), file.read_bytes()


def _load_layer_files(checkpoint: Checkpoint, model: Any) -> None:
    files = facts_of(checkpoint.info).get(FILES) or {}
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise CorruptCheckpointError(f"step {checkpoint.location!r} lists no files of its layers", file=CONFIG)
    for path, layer in keras_state.parts(model).layers.items():
        start = "/".join((FILES, *path, ""))
        mine = {key: name[len(start) :] for key, name in files.items() if name.startswith(start)}
        if not callable(getattr(layer, "load_assets", None)) or not mine:
            continue
        with tempfile.TemporaryDirectory() as folder:
            for key, name in mine.items():
                (Path(folder) / _plain(name, key)).write_bytes(checkpoint.asset(key))
            layer.load_assets(folder)


def _plain(name: str, key: str) -> str:
    if Path(name).name != name or name in ("", ".", ".."):
        raise UnsafeCheckpointError(f"asset {key!r} would be written to {name!r}, which is no plain file name", file=key)
    return name


def build_as(manager: CheckpointManager, step: int, model: Any) -> None:
    """Builds a model for inputs of the shape that the saved one was built for.

    Raises:
        ValueError: the step does not say how.
    """
    with manager.open(step) as checkpoint:
        config = _config(checkpoint) if CONFIG in checkpoint.assets else {}
    if config.get("build_config") and hasattr(model, "build_from_config"):
        model.build_from_config(config["build_config"])
    if not model.built:
        raise ValueError("the model is not built yet, and cannot be restored: call it on a batch of data before fit")
