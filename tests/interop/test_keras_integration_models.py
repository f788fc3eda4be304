"""`save_model` and `load_model`: a whole model as a step, and back without the program that made it."""

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import keras
from keras_models import (
    custom,
    data,
    iterations,
    nested,
    optimizer_values,
    predictions,
    same,
    subclassed,
    train,
    tutorial,
    weights,
    with_custom,
)

from ckptmgr import (
    CheckpointManager,
    CorruptCheckpointError,
    StateMismatchError,
    StepNotFoundError,
    UnsafeCheckpointError,
    arrays,
)
from ckptmgr.integrations.keras import CheckpointCallback, load_model, restore_weights, save_model

ONLY_READ = {"orbax", "torch_dcp"}
BACKENDS = sorted({entry.name for entry in importlib.metadata.entry_points(group="ckptmgr.backends")} - ONLY_READ)


def check(model: Any, loaded: Any) -> None:
    """Equal in what they predict and remember, and after one more step of training."""
    assert np.array_equal(predictions(loaded), predictions(model))
    assert same(optimizer_values(loaded), optimizer_values(model))
    x, y = data()
    losses = [np.asarray(each.train_on_batch(x[:8], y[:8])) for each in (model, loaded)]
    assert np.array_equal(losses[0], losses[1])
    assert same(weights(loaded), weights(model))
    assert same(optimizer_values(loaded), optimizer_values(model))


@pytest.mark.parametrize("make", [tutorial, nested])
@pytest.mark.parametrize("backend", BACKENDS)
def test_loaded_model_goes_on_as_the_saved_one(lib: Any, tmp_path: Path, make: Any, backend: str) -> None:
    manager = CheckpointManager(tmp_path / "run", backend=backend)
    model = make(lib)
    train(model)

    info = save_model(manager, 6, model, metrics={"loss": 0.5}, metadata={"note": "first"})

    assert (dict(info.metrics), info.metadata["note"]) == ({"loss": 0.5}, "first")
    check(model, load_model(manager))


def test_step_of_the_callback_is_a_whole_model(lib: Any, manager: CheckpointManager) -> None:
    model = tutorial(lib)
    train(model, CheckpointCallback(manager, save_freq=4), epochs=2)

    first, last = load_model(manager, 4), load_model(manager)

    assert iterations(first) == 4
    check(model, last)


def test_custom_layer_is_found_by_name(lib: Any, manager: CheckpointManager) -> None:
    layer = custom(lib)
    model = with_custom(lib, layer)
    train(model, CheckpointCallback(manager))

    check(model, load_model(manager, custom_objects={"Scale": layer}))


def test_registered_layer_needs_no_name(lib: Any, manager: CheckpointManager) -> None:
    layer = lib.saving.register_keras_serializable("ckptmgr_tests")(custom(lib))
    model = with_custom(lib, layer)
    train(model, CheckpointCallback(manager))

    check(model, load_model(manager))


def test_unknown_layer_is_keras_own_error(lib: Any, manager: CheckpointManager) -> None:
    train(with_custom(lib, custom(lib)), CheckpointCallback(manager))

    with pytest.raises(TypeError, match="Scale"):
        load_model(manager)


def test_subclassed_model_fills_one_of_its_class(lib: Any, manager: CheckpointManager) -> None:
    model, fresh = subclassed(lib), subclassed(lib)
    train(model, CheckpointCallback(manager, save_weights_only=True))

    restore_weights(manager, fresh)

    check(model, fresh)


def test_config_is_that_of_a_keras_archive(manager: CheckpointManager) -> None:
    model = tutorial(keras)
    save_model(manager, 0, model)

    with manager.open(0) as checkpoint:
        config, about = (json.loads(checkpoint.asset(name)) for name in ("config.json", "metadata.json"))

    assert list(config) == ["module", "class_name", "config", "registered_name", "build_config", "compile_config"]
    assert config["compile_config"]["optimizer"]["class_name"] == "Adam"
    assert about["keras_version"] == keras.__version__


def test_model_can_be_loaded_without_being_compiled(lib: Any, manager: CheckpointManager) -> None:
    model = tutorial(lib)
    train(model, CheckpointCallback(manager))

    loaded = load_model(manager, compile=False)

    assert getattr(loaded, "optimizer", None) is None
    assert np.array_equal(predictions(loaded), predictions(model))


def test_model_that_was_never_trained_comes_back(lib: Any, manager: CheckpointManager) -> None:
    model = tutorial(lib)
    save_model(manager, 0, model)

    loaded = load_model(manager)

    train(loaded)
    train(model)
    check(model, loaded)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras asks TensorFlow's variables for it
def test_model_that_was_also_saved_as_h5_keeps_its_optimizer(lib: Any, manager: CheckpointManager, tmp_path: Path) -> None:
    model = tutorial(lib, optimizer=lib.optimizers.Adamax(0.01))
    train(model)
    model.save(tmp_path / "model.h5")

    save_model(manager, 6, model)

    check(model, load_model(manager))


def test_learning_rate_that_was_changed_comes_back(lib: Any, manager: CheckpointManager) -> None:
    model = tutorial(lib)
    train(model)
    model.optimizer.learning_rate.assign(0.25)
    save_model(manager, 1, model)

    assert float(arrays.host_array(load_model(manager).optimizer.learning_rate)) == 0.25


def test_lambda_is_refused_unless_it_is_trusted(lib: Any, manager: CheckpointManager) -> None:
    model = lib.Sequential([lib.layers.Input((4,)), lib.layers.Dense(1), lib.layers.Lambda(lambda x: 2 * x, output_shape=(1,))])
    save_model(manager, 0, model)

    with pytest.raises(UnsafeCheckpointError, match="safe_mode=False"):
        load_model(manager)
    assert np.array_equal(predictions(load_model(manager, safe_mode=False)), predictions(model))


def test_step_without_an_architecture_says_what_to_do(lib: Any, manager: CheckpointManager) -> None:
    train(tutorial(lib), CheckpointCallback(manager, save_weights_only=True))

    with pytest.raises(StateMismatchError, match="restore_weights"):
        load_model(manager, 6)
    with pytest.raises(StepNotFoundError):
        load_model(manager)


def test_damaged_step_is_passed_over_for_an_older_one(lib: Any, manager: CheckpointManager) -> None:
    train(tutorial(lib), CheckpointCallback(manager), epochs=2)
    (Path(manager.path(12)) / "config.json").write_bytes(b"{}")

    with pytest.warns(RuntimeWarning, match="step 12 is skipped"):
        assert iterations(load_model(manager)) == 6
    with pytest.raises(CorruptCheckpointError):
        load_model(manager, 12)


@pytest.mark.parametrize("text", [b"[1]", b"{", b"[" * 100_000], ids=["list", "cut", "deep"])
def test_config_that_is_none_is_damage(manager: CheckpointManager, text: bytes) -> None:
    manager.save(0, {"layers": {}}, assets={"config.json": text}, metadata={"keras": {"framework": "keras", "holds": "model"}})

    with pytest.raises(CorruptCheckpointError, match=r"config\.json"):
        load_model(manager, 0)


def test_framework_that_is_none_is_never_imported(manager: CheckpointManager) -> None:
    manager.save(0, {"layers": {}}, assets={"config.json": b"{}"}, metadata={"keras": {"framework": "antigravity"}})

    with pytest.raises(CorruptCheckpointError, match="'antigravity'"):
        load_model(manager, 0)


def test_adapted_normalization_computes_as_before(lib: Any, manager: CheckpointManager) -> None:
    layer = lib.layers.Normalization()
    layer.adapt(data()[0])
    model = lib.Sequential([lib.layers.Input((4,)), layer, lib.layers.Dense(1)])
    save_model(manager, 0, model)

    assert np.array_equal(predictions(load_model(manager)), predictions(model))


def test_vocabulary_of_a_layer_is_kept(manager: CheckpointManager) -> None:
    layer = keras.layers.StringLookup()
    layer.adapt(["b", "a", "b"])
    words = keras.Sequential([keras.layers.Input((1,), dtype="string"), layer])
    save_model(manager, 0, words)

    with manager.open() as checkpoint:
        assert "assets/layers/string_lookup/vocabulary.txt" in checkpoint.metadata["keras"]["assets"].values()
    assert load_model(manager).layers[0].get_vocabulary() == ["[UNK]", "b", "a"]


def test_layer_files_stay_in_their_folder(manager: CheckpointManager) -> None:
    layer = keras.layers.StringLookup()
    layer.adapt(["b", "a"])
    save_model(manager, 0, keras.Sequential([keras.layers.Input((1,), dtype="string"), layer]))
    with manager.open() as checkpoint:
        assets = {name: checkpoint.asset(name) for name in checkpoint.assets}
        facts = {**checkpoint.metadata["keras"], "assets": {"assets-0": "assets/layers/string_lookup/../../evil"}}
    manager.save(1, {}, assets=assets, metadata={"keras": facts})

    with pytest.raises(UnsafeCheckpointError, match="evil"):
        load_model(manager, 1)


def test_model_without_a_config_is_refused_before_it_is_trained(lib: Any, manager: CheckpointManager) -> None:
    class Own(lib.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, factory: Any) -> None:
            super().__init__()
            self.inner = factory()

        def call(self, x: Any) -> Any:
            return self.inner(x)

        def get_config(self) -> Any:
            raise NotImplementedError("tell me")

    model = lib.Sequential([lib.layers.Input((4,)), Own(lambda: lib.layers.Dense(1))])
    model.compile(optimizer="sgd", loss="mse")
    before = weights(model)

    with pytest.raises(NotImplementedError):
        train(model, CheckpointCallback(manager))
    assert same(weights(model), before)


def test_run_can_be_moved(lib: Any, tmp_path: Path) -> None:
    model = tutorial(lib)
    train(model, CheckpointCallback(CheckpointManager(tmp_path / "run")))
    shutil.move(tmp_path / "run", tmp_path / "moved")

    check(model, load_model(CheckpointManager(tmp_path / "moved")))
