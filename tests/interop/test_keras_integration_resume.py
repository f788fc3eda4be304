"""`ResumeCallback`: a `fit` that was cut off goes on as if it had not been."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import keras, tf_keras
from keras_models import STEPS, data, iterations, optimizer_values, same, subclassed, train, tutorial, weights

from ckptmgr import CheckpointManager, CorruptCheckpointError, KeepLast, StateMismatchError, arrays
from ckptmgr.integrations.keras import CheckpointCallback, Position, ResumeCallback, restore_weights, resume_position
from ckptmgr.integrations.keras_state import parts


class Cut(Exception):
    pass


def cutting(lib: Any, after: int) -> Any:
    """A callback that breaks `fit` off after so many batches."""

    class Cutting(lib.callbacks.Callback):  # type: ignore[misc,name-defined]
        seen = 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.seen += 1
            if self.seen == after:
                raise Cut

    return Cutting()


def alike(lib: Any, **options: Any) -> Any:
    """A model with the same first weights each time."""
    lib.utils.set_random_seed(7)
    return tutorial(lib, **options)


def cut(lib: Any, manager: CheckpointManager, after: int, save_freq: Any, **options: Any) -> None:
    with pytest.raises(Cut):
        train(alike(lib, **options), ResumeCallback(manager, save_freq=save_freq), cutting(lib, after), epochs=3)


@pytest.mark.parametrize(("after", "save_freq"), [(8, 1), (11, 4), (STEPS, STEPS), (10, "epoch"), (2, 5)])
def test_resumed_training_ends_as_the_uninterrupted(lib: Any, manager: CheckpointManager, after: int, save_freq: Any) -> None:
    whole, resumed = alike(lib), alike(lib)
    expected = train(whole, epochs=3, validation=True)
    cut(lib, manager, after, save_freq)

    history = train(resumed, ResumeCallback(manager, save_freq=save_freq), epochs=3, validation=True)

    assert same(weights(resumed), weights(whole))
    assert same(optimizer_values(resumed), optimizer_values(whole))
    assert history.epoch == [0, 1, 2]
    assert history.history["loss"] == expected.history["loss"]
    assert history.history["mae"] == expected.history["mae"]


def test_random_streams_go_on(lib: Any, manager: CheckpointManager) -> None:
    whole, resumed = alike(lib), alike(lib)
    train(whole, epochs=2)
    cut(lib, manager, 8, 4)

    train(resumed, ResumeCallback(manager), epochs=2)

    states = [[np.array(arrays.host_array(state)) for state in parts(model).random.values()] for model in (whole, resumed)]
    assert len(states[0]) == 1
    assert same(*states)


@pytest.mark.parametrize(("after", "save_freq"), [(9, 4), (STEPS, STEPS)])
def test_dropout_without_a_seed_goes_on(lib: Any, manager: CheckpointManager, after: int, save_freq: int) -> None:
    whole = alike(lib, seed=None)
    train(whole, epochs=3)
    cut(lib, manager, after, save_freq, seed=None)
    resumed = alike(lib, seed=None)
    lib.utils.set_random_seed(8)

    train(resumed, ResumeCallback(manager), epochs=3)

    assert same(weights(resumed), weights(whole))


def test_training_that_was_complete_is_not_trained_again(lib: Any, manager: CheckpointManager) -> None:
    model, again = alike(lib), alike(lib)
    before = train(model, ResumeCallback(manager), epochs=2)

    after = train(again, ResumeCallback(manager), epochs=2)

    assert same(weights(again), weights(model))
    assert after.history == before.history


def test_more_epochs_continue_a_complete_training(lib: Any, manager: CheckpointManager) -> None:
    whole, model = alike(lib), alike(lib)
    train(whole, epochs=3)
    train(model, ResumeCallback(manager), epochs=2)

    again = alike(lib)
    train(again, ResumeCallback(manager), epochs=3)

    assert same(weights(again), weights(whole))


def test_next_fit_of_the_same_model_begins_at_its_own_first_epoch(lib: Any, manager: CheckpointManager) -> None:
    model = alike(lib)
    cut(lib, manager, 8, 4)
    train(model, ResumeCallback(manager), epochs=2)

    assert train(model, epochs=1).epoch == [0]
    assert iterations(model) == 3 * STEPS


def test_fit_that_breaks_off_while_skipping_leaves_no_trace(lib: Any, manager: CheckpointManager) -> None:
    model = alike(lib)
    cut(lib, manager, 5, 5)
    with pytest.raises(Cut):
        train(model, ResumeCallback(manager), cutting(lib, 2))

    train(model, epochs=1)

    assert iterations(model) == 5 + STEPS


def test_position_tells_where_data_must_begin(manager: CheckpointManager) -> None:
    assert resume_position(manager) == Position(0, 0, 0)

    cut(keras, manager, 9, 4)

    assert resume_position(manager) == Position(8, 1, 2)


def test_callback_beside_it_counts_on(lib: Any, manager: CheckpointManager, tmp_path: Path) -> None:
    other = CheckpointManager(tmp_path / "other")
    for after in (8, 0):
        callbacks = [CheckpointCallback(other, save_freq=3), ResumeCallback(manager, save_freq=4)]
        if after:
            with pytest.raises(Cut):
                train(alike(lib), *callbacks, cutting(lib, after), epochs=2)
        else:
            train(alike(lib), *callbacks, epochs=2)

    assert [info.step for info in other.steps()] == [3, 6, 9, 12]
    assert other.latest().metadata["batch"] == 6


def test_steps_of_a_whole_model_callback_will_do(lib: Any, manager: CheckpointManager) -> None:
    whole, resumed = alike(lib), alike(lib)
    train(whole, epochs=2)
    with pytest.raises(Cut):
        train(alike(lib), CheckpointCallback(manager, save_freq=4), cutting(lib, 9), epochs=2)

    train(resumed, ResumeCallback(manager), epochs=2)

    assert same(weights(resumed), weights(whole))


def optimizer(lib: Any, kind: str) -> Any:
    optimizers = lib.optimizers
    if kind == "schedule":
        return optimizers.SGD(optimizers.schedules.ExponentialDecay(0.1, 2, 0.5), momentum=0.9)
    if kind == "average":
        return optimizers.SGD(0.01, momentum=0.9, use_ema=True)
    if kind == "scale":
        scaled = optimizers if lib is keras else lib.mixed_precision
        return scaled.LossScaleOptimizer(optimizers.Adam())
    return optimizers.Adam(gradient_accumulation_steps=2) if lib is keras else optimizers.legacy.Adam()


@pytest.mark.parametrize("kind", ["schedule", "average", "scale", "accumulating or legacy"])
def test_every_kind_of_optimizer_goes_on(lib: Any, manager: CheckpointManager, kind: str) -> None:
    whole, broken, resumed = (alike(lib, optimizer=optimizer(lib, kind)) for _ in range(3))
    train(whole, epochs=2)
    with pytest.raises(Cut):
        train(broken, ResumeCallback(manager, save_freq=3), cutting(lib, 10), epochs=2)

    train(resumed, ResumeCallback(manager), epochs=2)

    assert resume_position(manager) == Position(12, 2, 0)
    assert same(weights(resumed), weights(whole))


def test_subclassed_model_goes_on(lib: Any, manager: CheckpointManager) -> None:
    def model() -> Any:
        lib.utils.set_random_seed(7)
        return subclassed(lib)

    whole, resumed = model(), model()
    train(whole, epochs=2)
    with pytest.raises(Cut):
        train(model(), ResumeCallback(manager, save_freq=2), cutting(lib, 9), epochs=2)

    train(resumed, ResumeCallback(manager), epochs=2)

    assert same(weights(resumed), weights(whole))


def test_model_that_is_not_built_is_built_as_the_saved_one(lib: Any, manager: CheckpointManager) -> None:
    def model() -> Any:
        lib.utils.set_random_seed(7)
        made = lib.Sequential([lib.layers.Dense(3), lib.layers.Dense(1)])
        made.compile(optimizer="sgd", loss="mse")
        return made

    whole, resumed = model(), model()
    train(whole, epochs=2)
    with pytest.raises(Cut):
        train(model(), ResumeCallback(manager, save_freq=2), cutting(lib, 9), epochs=2)

    train(resumed, ResumeCallback(manager), epochs=2)

    assert same(weights(resumed), weights(whole))


def test_other_model_is_refused_and_left_alone(lib: Any, manager: CheckpointManager) -> None:
    cut(lib, manager, 8, 4)
    other = tutorial(lib, units=9)
    before = weights(other)

    with pytest.raises(StateMismatchError, match="layers/dense/kernel"):
        train(other, ResumeCallback(manager))
    assert same(weights(other), before)


def test_damaged_newest_step_is_passed_over(lib: Any, manager: CheckpointManager) -> None:
    whole, resumed = alike(lib), alike(lib)
    train(whole, epochs=2)
    cut(lib, manager, 9, 4)
    (Path(manager.path(8)) / "model.safetensors").write_bytes(b"")

    with pytest.warns(RuntimeWarning, match="step 8 is skipped"):
        train(resumed, ResumeCallback(manager), epochs=2)

    assert same(weights(resumed), weights(whole))


def test_training_does_not_silently_start_anew_if_all_is_damaged(lib: Any, manager: CheckpointManager) -> None:
    cut(lib, manager, 8, 8)
    (Path(manager.path(8)) / "model.safetensors").write_bytes(b"")

    with pytest.warns(RuntimeWarning, match="step 8"), pytest.raises(CorruptCheckpointError):
        train(alike(lib), ResumeCallback(manager))


def test_training_does_not_silently_start_anew_if_no_record_can_be_read(lib: Any, manager: CheckpointManager) -> None:
    cut(lib, manager, 8, 8)
    (Path(manager.path(8)).parent / "manifest.json").write_bytes(b"damaged")

    with pytest.warns(RuntimeWarning, match="step 8"), pytest.raises(CorruptCheckpointError):
        train(alike(lib), ResumeCallback(manager))


def test_weights_alone_are_no_training_to_go_on_with(
    lib: Any, manager: CheckpointManager, caplog: pytest.LogCaptureFixture
) -> None:
    train(alike(lib), CheckpointCallback(manager, save_weights_only=True))

    with caplog.at_level(logging.WARNING):
        history = train(alike(lib), ResumeCallback(manager))

    assert "it starts anew" in caplog.text
    assert history.epoch == [0]


def test_retention_keeps_what_is_needed(lib: Any, tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "run", retention=KeepLast(1))
    cut(lib, manager, 9, 1)

    assert [info.step for info in manager.steps()] == [9]
    assert restore_weights(manager, tutorial(lib)).step == 9


def test_several_batches_in_one_call_are_skipped_together(lib: Any, manager: CheckpointManager) -> None:
    options = {"steps_per_execution": 4, "run_eagerly": False, "jit_compile": False}
    whole, resumed = alike(lib, **options), alike(lib, **options)
    train(whole, epochs=2)
    cut(lib, manager, 3, 4, **options)

    train(resumed, ResumeCallback(manager), epochs=2)

    assert resume_position(manager) == Position(12, 2, 0)
    assert same(weights(resumed), weights(whole))


def test_other_number_of_batches_in_one_call_is_refused(lib: Any, manager: CheckpointManager) -> None:
    cut(lib, manager, 3, 3)

    with pytest.raises(ValueError, match="steps_per_execution=4"):
        train(alike(lib, steps_per_execution=4), ResumeCallback(manager))


def test_batches_of_a_sequence_are_skipped_too(lib: Any, manager: CheckpointManager) -> None:
    class Batches(lib.utils.Sequence if lib is tf_keras else keras.utils.PyDataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> Any:
            x, y = data()
            return x[index : index + 8], y[index : index + 8]

    whole, resumed = alike(lib), alike(lib)
    whole.fit(Batches(), epochs=2, shuffle=False, verbose=0)
    callbacks = [ResumeCallback(manager, save_freq=2), cutting(lib, 9)]
    with pytest.raises(Cut):
        alike(lib).fit(Batches(), epochs=2, shuffle=False, verbose=0, callbacks=callbacks)

    resumed.fit(Batches(), epochs=2, shuffle=False, verbose=0, callbacks=[ResumeCallback(manager)])

    assert same(weights(resumed), weights(whole))


def test_random_numbers_that_cannot_be_read_are_warned_of(manager: CheckpointManager, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train(alike(tf_keras), ResumeCallback(manager))

    assert "enable_tf_random_generator" in caplog.text
