"""`CheckpointCallback`: the callback part of the Keras tutorial, with steps instead of files."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import keras
from keras_models import STEPS, optimizer_values, predictions, same, train, tutorial, weights

from ckptmgr import CheckpointManager, KeepBest, KeepLast, StateMismatchError
from ckptmgr.integrations.keras import CheckpointCallback, ResumeCallback, restore_weights
from ckptmgr.integrations.keras_state import parts


def logged(lib: Any, **values: list[float]) -> Any:
    """A callback that says what the metrics of each epoch are."""

    class Logged(lib.callbacks.Callback):  # type: ignore[misc,name-defined]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs.update({name: row[epoch] for name, row in values.items()})

    return Logged()


def steps(manager: CheckpointManager) -> list[int]:
    return [info.step for info in manager.steps()]


def test_each_epoch_is_a_step_with_its_metrics(lib: Any, manager: CheckpointManager) -> None:
    history = train(tutorial(lib), CheckpointCallback(manager), epochs=2, validation=True).history

    assert steps(manager) == [STEPS, 2 * STEPS]
    assert dict(manager.latest().metrics) == {name: row[-1] for name, row in history.items()}
    assert (manager.latest().metadata["epoch"], manager.latest().metadata["batch"]) == (2, 0)


def test_every_fifth_epoch_by_its_number_of_batches(lib: Any, manager: CheckpointManager) -> None:
    train(tutorial(lib), CheckpointCallback(manager, save_freq=5 * STEPS), epochs=10)

    assert steps(manager) == [5 * STEPS, 10 * STEPS]


def test_batches_are_counted_over_epochs_and_starts(lib: Any, manager: CheckpointManager) -> None:
    model = tutorial(lib)
    train(model, CheckpointCallback(manager, save_freq=4))
    train(model, CheckpointCallback(manager, save_freq=4))

    assert steps(manager) == [4, 8, 12]
    assert (manager.latest().metadata["epoch"], manager.latest().metadata["batch"]) == (0, 6)


def test_latest_weights_fill_an_untrained_model(lib: Any, manager: CheckpointManager) -> None:
    trained, fresh = tutorial(lib), tutorial(lib)
    train(trained, CheckpointCallback(manager, save_weights_only=True), epochs=2)

    restored = restore_weights(manager, fresh)

    assert restored.step == 2 * STEPS
    assert np.array_equal(predictions(fresh), predictions(trained))
    assert same(optimizer_values(fresh), optimizer_values(trained))


def test_model_that_is_not_compiled_gets_the_weights_alone(lib: Any, manager: CheckpointManager) -> None:
    trained = tutorial(lib)
    train(trained, CheckpointCallback(manager))
    fresh = lib.Sequential([lib.layers.Input((4,)), lib.layers.Dense(8), lib.layers.Dropout(0.2), lib.layers.Dense(1)])

    restore_weights(manager, fresh)

    assert same(weights(fresh), weights(trained))


def test_restored_weights_do_not_retrace_what_is_compiled(lib: Any, manager: CheckpointManager) -> None:
    model = tutorial(lib, run_eagerly=False, jit_compile=False)
    train(model, CheckpointCallback(manager))
    functions, variables = (model.train_function, model.predict_function), [id(variable) for variable in model.weights]

    restore_weights(manager, model)

    assert (model.train_function, model.predict_function) == functions
    assert [id(variable) for variable in model.weights] == variables


def test_other_model_is_refused_before_anything_is_changed(lib: Any, manager: CheckpointManager) -> None:
    train(tutorial(lib), CheckpointCallback(manager))
    other = tutorial(lib, units=9)
    before = weights(other)

    with pytest.raises(StateMismatchError, match="layers/dense/kernel") as caught:
        restore_weights(manager, other)

    assert len([name for name, _, _ in caught.value.report.mismatched if name.startswith("layers/")]) == 3
    assert same(weights(other), before)


def test_step_with_more_layers_than_the_model_is_refused(lib: Any, manager: CheckpointManager) -> None:
    train(tutorial(lib), CheckpointCallback(manager))
    other = lib.Sequential([lib.layers.Input((4,)), lib.layers.Dense(8)])

    with pytest.raises(StateMismatchError, match="layers/dense_1/kernel"):
        restore_weights(manager, other)


def test_step_with_weights_of_the_model_itself_is_refused_by_one_without(lib: Any, manager: CheckpointManager) -> None:
    model = tutorial(lib)
    manager.save(0, {**parts(model).tree(), "vars": {"gain": np.ones(3, np.float32)}})

    with pytest.raises(StateMismatchError, match="vars/gain"):
        restore_weights(manager, model)


def test_best_only_saves_what_is_better(lib: Any, manager: CheckpointManager) -> None:
    best = CheckpointCallback(manager, monitor="score", mode="max", save_best_only=True)
    train(tutorial(lib), logged(lib, score=[0.5, 0.4, 0.6]), best, epochs=3)

    assert steps(manager) == [STEPS, 3 * STEPS]
    assert best.best == 0.6


def test_best_value_is_remembered_across_restarts(lib: Any, manager: CheckpointManager) -> None:
    for scores in ([0.5, 0.6], [0.55, 0.7]):
        best = CheckpointCallback(manager, monitor="score", mode="max", save_best_only=True)
        train(tutorial(lib), logged(lib, score=scores), best, epochs=2)

    assert [info.metrics["score"] for info in manager.steps()] == [0.5, 0.7]


def test_threshold_is_to_be_passed_first(lib: Any, manager: CheckpointManager) -> None:
    best = CheckpointCallback(manager, monitor="val", mode="min", save_best_only=True, initial_value_threshold=0.3)
    train(tutorial(lib), logged(lib, val=[0.4, 0.2]), best, epochs=2)

    assert steps(manager) == [2 * STEPS]


def test_nan_is_never_the_best(lib: Any, manager: CheckpointManager) -> None:
    best = CheckpointCallback(manager, monitor="val", mode="min", save_best_only=True)
    train(tutorial(lib), logged(lib, val=[math.nan, 0.2]), best, epochs=2)

    assert steps(manager) == [2 * STEPS]


def test_missing_metric_is_an_error_that_names_those_there_are(lib: Any, manager: CheckpointManager) -> None:
    best = CheckpointCallback(manager, save_best_only=True)

    with pytest.raises(ValueError, match=r"'val_loss'.*loss, mae|'val_loss'.*mae, loss"):
        train(tutorial(lib), best)


def test_missing_metric_is_no_error_if_it_is_not_needed(lib: Any, manager: CheckpointManager) -> None:
    train(tutorial(lib), CheckpointCallback(manager))

    assert steps(manager) == [STEPS]


@pytest.mark.parametrize(("monitor", "is_lower"), [("val_loss", True), ("mae", True), ("val_accuracy", False)])
def test_auto_knows_which_way_a_metric_improves(lib: Any, manager: CheckpointManager, monitor: str, is_lower: bool) -> None:
    best = CheckpointCallback(manager, monitor=monitor, save_best_only=True)
    model = tutorial(lib, metrics=["mae", "accuracy"])
    train(model, logged(lib, val_loss=[1, 2], mae=[1, 2], val_accuracy=[1, 2]), best, epochs=2)

    assert steps(manager) == ([STEPS] if is_lower else [STEPS, 2 * STEPS])


def test_auto_that_cannot_be_told_asks_for_a_mode(manager: CheckpointManager) -> None:
    best = CheckpointCallback(manager, monitor="odd", save_best_only=True)

    with pytest.raises(ValueError, match="mode='min' or mode='max'"):
        train(tutorial(keras), logged(keras, odd=[1.0]), best)


def test_retention_of_the_manager_applies(lib: Any, tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "run", retention=KeepLast(1) | KeepBest("score", n=1, mode="max"))
    train(tutorial(lib), logged(lib, score=[0.1, 0.9, 0.2, 0.3]), CheckpointCallback(manager), epochs=4)

    assert steps(manager) == [2 * STEPS, 4 * STEPS]


def test_verbose_tells_of_each_save(lib: Any, manager: CheckpointManager, capsys: pytest.CaptureFixture[str]) -> None:
    train(tutorial(lib), CheckpointCallback(manager, verbose=1))

    assert f"Epoch 1: saved step {STEPS} to " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"save_freq": 0}, "save_freq"),
        ({"save_freq": True}, "save_freq"),
        ({"mode": "least"}, "mode"),
        ({"initial_value_threshold": "0.5"}, "initial_value_threshold"),
        ({"initial_value_threshold": math.nan}, "initial_value_threshold"),
    ],
)
def test_arguments_are_checked_at_once(manager: CheckpointManager, options: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        CheckpointCallback(manager, **options)


@pytest.mark.parametrize("callback", [CheckpointCallback, ResumeCallback])
def test_a_path_in_place_of_a_manager_is_refused_at_once(callback: Any, tmp_path: Path) -> None:
    for path in ("run/model.keras", tmp_path):
        with pytest.raises(TypeError, match=re.escape(f"CheckpointManager({str(path)!r})")):
            callback(path)


def test_numbers_may_be_those_of_numpy(manager: CheckpointManager) -> None:
    options = {"save_freq": np.int64(STEPS), "initial_value_threshold": np.float32(1e9), "monitor": "loss"}
    train(tutorial(keras), CheckpointCallback(manager, save_best_only=True, **options))

    assert steps(manager) == [STEPS]


def test_several_batches_in_one_call_save_at_the_first_possible(manager: CheckpointManager) -> None:
    model = tutorial(keras, steps_per_execution=4, run_eagerly=False, jit_compile=False)
    train(model, CheckpointCallback(manager, save_freq=3))

    assert steps(manager) == [4, 6]


def test_gradient_accumulation_still_counts_batches(manager: CheckpointManager) -> None:
    model = tutorial(keras, optimizer=keras.optimizers.Adam(gradient_accumulation_steps=2))
    train(model, CheckpointCallback(manager))
    train(model, CheckpointCallback(manager))

    assert steps(manager) == [STEPS, 2 * STEPS]


def test_something_else_than_a_model_is_refused(manager: CheckpointManager) -> None:
    with pytest.raises(TypeError, match="a model of Keras 3 or tf_keras"):
        restore_weights(manager, object())


def test_model_that_is_not_built_is_refused(lib: Any, manager: CheckpointManager) -> None:
    with pytest.raises(ValueError, match="not built"):
        restore_weights(manager, lib.Sequential([lib.layers.Dense(2)]))


def test_damaged_newest_step_is_passed_over(lib: Any, manager: CheckpointManager) -> None:
    train(tutorial(lib), CheckpointCallback(manager), epochs=2)
    file = Path(manager.path(2 * STEPS)) / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))

    with pytest.warns(RuntimeWarning, match="step 12 is skipped"):
        assert restore_weights(manager, tutorial(lib)).step == STEPS


def test_batches_are_counted_in_the_thread_that_trains(manager: CheckpointManager) -> None:
    # Keras 3 would call the batch hooks from a pool of threads: an epoch could end before its last batches are counted.
    assert not CheckpointCallback(manager).async_safe
