"""Going on with a `fit` that was cut off, as if it had not been.

`fit` is started again with the same arguments. What was saved is put back when it begins: weights, optimizer, random streams, and
where the training stood. Batches of the broken epoch that were trained before are drawn from the data and not trained again.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ckptmgr.checkpoint import Restored
from ckptmgr.errors import StepNotFoundError, shown
from ckptmgr.integrations import keras_models, keras_state
from ckptmgr.integrations.keras_callbacks import CheckpointCallback, Frequency, Skipping, array, scalars
from ckptmgr.integrations.keras_state import facts_of
from ckptmgr.manager import CheckpointManager
from ckptmgr.step import JSON, StepInfo

log = logging.getLogger(__name__)


class Position(NamedTuple):
    """How far a training was: ``step`` batches in all; ``epoch`` whole epochs and ``batch`` batches of the next."""

    step: int
    epoch: int
    batch: int


def resume_position(manager: CheckpointManager) -> Position:
    """Where `ResumeCallback` would go on: all zeros if nothing is saved.

    For data that differ from epoch to epoch: give `fit` those from the start of epoch ``epoch``.
    """
    found = [info for info in manager.steps() if _is_resumable(info)]
    return _position(found[-1]) if found else Position(0, 0, 0)


class ResumeCallback(CheckpointCallback):
    """Makes `fit` go on where it was cut off, and saves all that this needs.

    Give it to every start of the same script. With nothing saved, training starts from the beginning; else the newest good step
    is put back, and the final weights are those of an uninterrupted run, to the bit if training itself is deterministic.
    Restored are weights, optimizer, learning rate, the states of random layers, the metrics of the broken epoch, epoch and
    batch, and the history of the epochs before. The data must come in the same order in each start; see `resume_position`.

    Args:
        manager: its run holds the saves. Steps of a `CheckpointCallback` that saves whole models will do as well.
        save_freq: ``"epoch"``, or after how many batches to save.
        verbose: with 1, each save and restore prints a line.

    Raises:
        StateMismatchError: when training begins: the model is not the one that was saved; nothing was changed.
        CorruptCheckpointError: there are saves, and none is good.
        ValueError: the model is not built, and cannot be built as the saved one was; or ``steps_per_execution`` has changed.
    """

    def __init__(self, manager: CheckpointManager, *, save_freq: Frequency = "epoch", verbose: int = 0) -> None:
        super().__init__(manager, save_freq=save_freq, verbose=verbose)
        self.async_safe = False
        self._found: StepInfo | None = None
        self._restored: Mapping[str, Any] = {}
        self._start: _Start | None = None
        self._skipping: _SkippingOf | None = None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Puts the newest good step back into the model."""
        _warn_of_hidden_randomness(self.model)
        self._is_begun = False
        self._end_skipping()
        self._found, self._restored = None, {}
        try:
            restored = keras_state.newest(self.manager, lambda info: _restore(self.manager, info, self.model), _is_resumable)
        except StepNotFoundError:
            self._check_nothing_is_lost()
            return
        self._found, self._restored = restored.info, restored.state
        position = _position(restored.info)
        self._start = _Start(self.model, position.epoch)
        self._epoch = position.epoch
        self._say(f"going on at batch {position.batch}, from step {position.step}")

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Puts history and metrics back, once Keras has reset them, and starts to skip."""
        super().on_epoch_begin(epoch, logs)
        if self._start is not None:
            self._start.undo()
            self._start = None
        if self._found is None:
            return
        position, self._found = _position(self._found), None
        self._fill_history()
        self._step = position.step
        if position.batch and position.epoch == epoch:
            calls = _calls(position.batch, self.model, self.params.get("steps"))
            self._skipping = _SkippingOf(self.model, calls, self._restored.get("metrics", {}))
        else:
            self._set_generators()

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Ends the skipping when all is skipped."""
        if self._skipping is not None and not self._skipping.next():
            self._end_skipping()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Counts, and saves if it is time. After the last batch to skip, torch's generators are as they were then."""
        super().on_train_batch_end(batch, logs)
        if self._skipping is not None and not self._skipping.left:
            self._set_generators()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Saves, with ``save_freq="epoch"``."""
        self._end_skipping()
        super().on_epoch_end(epoch, logs)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Puts the history back if no epoch was left to train."""
        self._end_skipping()
        if self._start is not None:
            self._start.undo()
            self._start = None
        if self._found is not None:
            self._found = None
            self._fill_history()

    def _described(self) -> tuple[dict[str, bytes], dict[str, JSON]]:
        try:
            return super()._described()
        except NotImplementedError:  # a model without `get_config` can go on, it can only not be loaded
            return {}, keras_state.facts(self.model, "fit")

    def _fill_history(self) -> None:
        record, history = self._restored.get("history"), getattr(self.model, "history", None)
        if record is None or history is None:
            return
        history.epoch = [int(epoch) for epoch in record["epochs"]]
        history.history = {name: record["logs"][key].tolist() for key, name in record["names"].items()}

    def _set_generators(self) -> None:
        keras_state.set_generators(self.model, self._restored.get("history", {}).get("generators", {}))

    def _end_skipping(self) -> None:
        if self._skipping is not None:
            self._skipping.end()
            self._skipping = None

    def _check_nothing_is_lost(self) -> None:
        try:
            self.manager.open().close()  # raises if there are records, and none can be read
            log.warning("no step in %r has the state of a training: it starts anew", self.manager.folder.location())
        except StepNotFoundError:
            log.info("nothing is saved in %r: training starts", self.manager.folder.location())


class _Start:
    """Makes `fit` begin with an epoch, where either Keras looks for that; and not the next `fit` as well."""

    def __init__(self, model: Any, epoch: int) -> None:
        self.epoch = epoch
        self._model = model
        self._name = "_training_state" if hasattr(model, "_training_state") else "_initial_epoch"
        self._before = getattr(model, self._name, None)
        setattr(model, self._name, self if self._name == "_training_state" else epoch)

    def maybe_load_initial_counters_from_ckpt(self, *arguments: Any, **options: Any) -> tuple[int, int]:
        """Asked by tf_keras: the first epoch, and the first number of a batch in it, whose data it would not skip."""
        return self.epoch, 0

    def undo(self) -> None:
        """Leaves the model as it was."""
        setattr(self._model, self._name, self._before)


class _SkippingOf(Skipping):
    """Takes the place of a model's train function for some calls, in which it draws batches and trains nothing.

    If `fit` breaks off meanwhile, the first call out of step puts the train function back by itself.
    """

    def __init__(self, model: Any, calls: int, metrics: Mapping[str, Any]) -> None:
        self._model, self._train = model, model.train_function
        self.left, self._is_expected = calls, False
        self._metrics = metrics
        self._logs: dict[str, Any] | None = None
        self._set_metrics()
        model.train_function = self

    def next(self) -> bool:
        """Told before each batch: whether it is one to skip."""
        self._is_expected = self.left > 0
        return self._is_expected

    def end(self) -> None:
        """Puts the train function back."""
        if self._model.train_function is self:
            self._model.train_function = self._train

    def __call__(self, *arguments: Any) -> Any:
        """As the train function is called: with batches, with an iterator over them, or with JAX's state and batches."""
        if not self._is_expected:
            self.end()
            return self._train(*arguments)
        self.left, self._is_expected = self.left - 1, False
        batches = self._drawn(arguments[-1])
        if len(arguments) == 2:  # JAX: the state is with us, and none of it in the model
            return self._logs or {}, arguments[0]
        if self._logs is None and batches:
            self._make_metrics(batches[0])
        return self._logs or {}

    def _drawn(self, data: Any) -> list[Any]:
        if isinstance(data, list | tuple):
            return list(data)
        drawn = (next(data, None) for _ in range(_per_call(self._model)))
        return [batch for batch in drawn if batch is not None]

    def _make_metrics(self, batch: Any) -> None:
        """TensorFlow makes the variables of metrics when it first sees data."""
        self._model.test_step(batch)
        self._model.reset_metrics()
        self._set_metrics()
        if self._logs is None:
            log.warning("the metrics are not those that were saved: this epoch's cover only the rest of it")
            self._logs = {}

    def _set_metrics(self) -> None:
        """The metrics of the batches before, if the model has its metrics already, and what they say."""
        live = keras_state.metric_values(self._model)
        if {key: tuple(value.shape) for key, value in live.items()} != {key: value.shape for key, value in self._metrics.items()}:
            return
        for key, variable in live.items():
            variable.assign(self._metrics[key])
        self._logs = dict(scalars(self._model.get_metrics_result()))


def _warn_of_hidden_randomness(model: Any) -> None:
    """Keras 2 may leave random states inside of TensorFlow's kernels, where nobody can read them."""
    layers = keras_state.parts(model).layers.values() if model.built else ()
    hidden = [
        layer.name for layer in layers if getattr(vars(layer).get("_random_generator"), "_rng_type", "") == "legacy_stateful"
    ]
    if hidden:
        log.warning(
            "the random numbers of %s cannot be saved, so that a resumed training differs: "
            "call tf_keras.backend.experimental.enable_tf_random_generator() before the model is made",
            shown(hidden),
        )


def _is_resumable(info: StepInfo) -> bool:
    counts = [info.metadata.get("epoch"), info.metadata.get("batch")]
    return facts_of(info).get("holds") == "fit" and all(isinstance(count, int) and count >= 0 for count in counts)


def _position(info: StepInfo | None) -> Position:
    return Position(0, 0, 0) if info is None else Position(info.step, info.metadata["epoch"], info.metadata["batch"])


def _restore(manager: CheckpointManager, info: StepInfo, model: Any) -> Restored:
    if not model.built:
        keras_models.build_as(manager, info.step, model)
    return keras_state.restore_into(manager, info.step, model, ("optimizer", "random", "metrics", "history"))


def _per_call(model: Any) -> int:
    """How many batches one call of the train function trains."""
    count = getattr(model, "_steps_per_execution", None)
    if count is None:
        count = getattr(model, "steps_per_execution", None)
    return 1 if count is None else int(array(count))


def _calls(batches: int, model: Any, steps: int | None) -> int:
    per_call = _per_call(model)
    if batches % per_call and batches != steps:
        raise ValueError(
            f"the training was saved after batch {batches} of an epoch: that is no multiple of steps_per_execution={per_call}"
        )
    return math.ceil(batches / per_call)
