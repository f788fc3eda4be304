"""The callback that saves while `fit` runs, for Keras 3 on every backend and for tf_keras.

Neither Keras asks for its own base class: a callback is what has the hooks. So one class serves both, and none is imported.
"""

import math
import os
import sys
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Literal, cast

import numpy as np

from ckptmgr import arrays
from ckptmgr.background import BackgroundSaver
from ckptmgr.integrations import keras_models, keras_state
from ckptmgr.integrations.keras_naming import unique
from ckptmgr.manager import CheckpointManager
from ckptmgr.pending import PendingSave
from ckptmgr.step import JSON

Mode = Literal["auto", "min", "max"]
Frequency = int | Literal["epoch"]


def _nothing(self: Any, *arguments: Any, **options: Any) -> None:
    """A hook that does nothing."""


_nothing.__dict__["_is_default"] = True  # Keras 3 may call the hooks of others in a thread if ours does nothing


class Hooks:
    """What `fit` of either Keras calls on a callback, doing nothing."""

    model: Any = None
    params: Mapping[str, Any] = {}
    _supports_tf_logs = False

    def set_params(self, params: Mapping[str, Any]) -> None:
        """Takes what `fit` tells of itself: ``epochs``, and ``steps`` in each if that is known."""
        self.params = params

    def set_model(self, model: Any) -> None:
        """Takes the model that is trained."""
        self.model = model

    on_train_begin = on_train_end = on_epoch_begin = on_epoch_end = _nothing
    on_batch_begin = on_batch_end = on_train_batch_begin = on_train_batch_end = _nothing
    on_test_begin = on_test_end = on_test_batch_begin = on_test_batch_end = _nothing
    on_predict_begin = on_predict_end = on_predict_batch_begin = on_predict_batch_end = _nothing

    def _implements_train_batch_hooks(self) -> bool:
        return True

    def _implements_test_batch_hooks(self) -> bool:
        return False

    def _implements_predict_batch_hooks(self) -> bool:
        return False


class Skipping:
    """Stands in for a model's train function while `fit` goes past batches that were trained before."""


class CheckpointCallback(Hooks):
    """Saves the model as steps of a run while `fit` trains it.

    The parameters mean what they mean in `keras.callbacks.ModelCheckpoint`, except that the best value is looked up among
    the metrics of the run's steps, so that a restart does not forget it, and that a monitored metric that is missing is an error.

    Args:
        manager: saves the steps, and applies its retention after each; or a `BackgroundSaver`, for which `fit` waits at its end.
        save_freq: ``"epoch"``, or after how many batches to save. Batches are counted over all epochs and restarts, so that
            20 means the steps 20, 40, ...; with ``steps_per_execution`` the first possible one after that.
        monitor: the metric that says which model is the best, as `fit` logs it.
        mode: whether the best is the ``"min"`` or the ``"max"``; ``"auto"`` tells it from the metric.
        save_best_only: save only if the metric is better than all before.
        save_weights_only: save weights and optimizer without the architecture, as `restore_weights` needs them.
        initial_value_threshold: a value that the first best one must be better than.
        verbose: with 1, each save prints a line.

    The number of a step is the number of batches trained so far, which the optimizer counts. Its metrics are the logs, its
    metadata ``epoch`` and ``batch``: how many epochs, and batches of the next one, are done. A step that is there already is
    replaced.

    Raises:
        TypeError: a path in place of a manager.
        ValueError: an argument out of its range; when training, a monitored metric that `fit` does not log.
        NotImplementedError: when training begins: the architecture cannot be saved; use ``save_weights_only``.
    """

    def __init__(
        self,
        manager: CheckpointManager | BackgroundSaver,
        *,
        save_freq: Frequency = "epoch",
        monitor: str = "val_loss",
        mode: Mode = "auto",
        save_best_only: bool = False,
        save_weights_only: bool = False,
        initial_value_threshold: float | None = None,
        verbose: int = 0,
    ) -> None:
        if isinstance(manager, str | os.PathLike):
            path = os.fspath(manager)
            raise TypeError(f"the callback saves into a run by its manager, CheckpointManager({path!r}), and not into a file")
        is_count = isinstance(save_freq, Integral) and not isinstance(save_freq, bool) and save_freq > 0
        if save_freq != "epoch" and not is_count:
            raise ValueError(f"save_freq must be 'epoch' or a number of batches, not {save_freq!r}")
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode must be 'auto', 'min' or 'max', not {mode!r}")
        threshold = initial_value_threshold
        if threshold is not None and (not isinstance(threshold, Real) or math.isnan(threshold)):
            raise ValueError(f"initial_value_threshold must be a number that values can be better than, not {threshold!r}")
        self._saver = manager
        self.manager = cast(CheckpointManager, manager.manager) if isinstance(manager, BackgroundSaver) else manager
        self.save_freq: Frequency = save_freq if isinstance(save_freq, str) else int(save_freq)
        self.monitor, self.mode = monitor, mode
        self.save_best_only, self.save_weights_only = save_best_only, save_weights_only
        self.best: float | None = None if threshold is None else float(threshold)
        self.verbose = verbose
        self.async_safe = False  # counted in another thread, the last batches of an epoch may be missing at its end
        self._lower: bool | None = None  # whether a lower value is better, once that is known
        self._step = self._epoch = self._batch = 0
        self._is_begun = False

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Refuses what could only fail after the first epoch."""
        self._is_begun = False
        if not self.save_weights_only and self.model.built:
            keras_models.described(self.model)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Starts to count. Another callback may have restored the model since the training began."""
        if not self._is_begun:
            self._is_begun = True
            self._step = _iterations(self.model, self._step)
        self._epoch, self._batch = epoch, 0

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Counts, and saves if it is time."""
        before, known = self._step, self.params.get("steps")
        done = min(batch + 1, known) if known else batch + 1
        if not isinstance(getattr(self.model, "train_function", None), Skipping):
            self._step += done - self._batch
        self._batch = done
        if self.save_freq != "epoch" and self._step // self.save_freq > before // self.save_freq:
            self._save(self._epoch, done, logs or {})

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Saves, with ``save_freq="epoch"``."""
        if self.save_freq == "epoch":
            self._save(epoch + 1, 0, logs or {})

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Waits for what is saved in the background; tells a failure."""
        if isinstance(self._saver, BackgroundSaver):
            self._saver.wait()

    def _save(self, epoch: int, batch: int, logs: Mapping[str, Any]) -> None:
        numbers = scalars(logs)
        if self.save_best_only and not self._is_best(numbers):
            self._say(f"{self.monitor} did not improve from {self.best}")
            return
        live = keras_state.parts(self.model)
        state = live.tree("optimizer", *(() if self.save_weights_only else ("random",)))
        assets: dict[str, bytes] = {}
        facts = keras_state.facts(self.model, "weights")
        if not self.save_weights_only:
            assets, facts = self._described()
            state |= self._position(epoch, batch, numbers)
            facts["holds"] = "fit"
        metadata: dict[str, JSON] = {"epoch": epoch, "batch": batch, keras_state.FACTS: facts}
        saved = self._saver.save(self._step, state, metrics=numbers, metadata=metadata, assets=assets, overwrite=True)
        if isinstance(saved, PendingSave) and saved.skipped:
            self._say(f"step {saved.step} is not saved, for an earlier one still is")
            return
        if self.save_best_only:
            self.best = numbers[self.monitor]
        self._say(f"saving step {saved.step}" if isinstance(saved, PendingSave) else f"saved step {saved.step} to {saved.path}")

    def _described(self) -> tuple[dict[str, bytes], dict[str, JSON]]:
        return keras_models.described(self.model)

    def _position(self, epoch: int, batch: int, logs: Mapping[str, float]) -> dict[str, Any]:
        """What going on with `fit` needs besides the model: the epochs before, and the metrics of the one that is begun."""
        history = getattr(self.model, "history", None)
        epochs = list(getattr(history, "epoch", ()))
        rows = {name: list(row) for name, row in getattr(history, "history", {}).items()}
        if not batch and epoch - 1 not in epochs:  # Keras' own record comes after us
            epochs.append(epoch - 1)
            for name, value in logs.items():
                rows.setdefault(name, []).append(value)
        rows = {name: row for name, row in rows.items() if len(scalars(dict(enumerate(row)))) == len(row)}
        keys = dict(zip(unique(name.replace("/", "_") for name in rows), rows, strict=True))
        record: dict[str, Any] = {
            "epochs": np.asarray(epochs, np.int64),
            "logs": {key: np.asarray(rows[name], np.float64) for key, name in keys.items()},
            "names": keys,
        }
        if states := keras_state.generators(self.model):
            record["generators"] = states
        metrics = keras_state.metric_values(self.model) if batch else {}
        return {"history": record, **({"metrics": metrics} if metrics else {})}

    def _is_best(self, logs: Mapping[str, float]) -> bool:
        if self.monitor not in logs:
            known = ", ".join(logs) or "none"
            raise ValueError(
                f"save_best_only needs the metric {self.monitor!r}, which is not logged when it is time to save (logged: {known})"
            )
        if self._lower is None:
            self._lower = _is_lower_better(self.model, self.monitor, self.mode)
            for info in self.manager.steps():
                if self._is_better(info.metrics.get(self.monitor, math.nan)):
                    self.best = info.metrics[self.monitor]
        return self._is_better(logs[self.monitor])

    def _is_better(self, value: float) -> bool:
        if math.isnan(value) or self.best is None:
            return not math.isnan(value)
        return value < self.best if self._lower else value > self.best

    def _say(self, text: str) -> None:
        if self.verbose:
            sys.stdout.write(f"\nEpoch {self._epoch + 1}: {text}\n")  # where the progress of `fit` goes


def scalars(logs: Mapping[Any, Any]) -> dict[Any, float]:
    """The logs that are numbers, as numbers."""
    found = {name: array(value) for name, value in logs.items()}
    return {name: float(value) for name, value in found.items() if value.ndim == 0 and value.dtype.kind in "biuf"}


def array(value: Any) -> np.ndarray[Any, Any]:
    """A number, or a variable or tensor of any framework, on the host."""
    return np.asarray(value if arrays.describe(value) is None else arrays.host_array(value))


def _iterations(model: Any, counted: int) -> int:
    """Batches that the optimizer has seen; without one, those that were counted here."""
    optimizer = getattr(model, "optimizer", None)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    # With gradient accumulation, Keras 3's `iterations` counts updates: several batches would be one step.
    found = getattr(inner, "_iterations", None)
    if found is None:
        found = getattr(inner, "iterations", None)
    return counted if found is None else int(array(found))


def _is_lower_better(model: Any, monitor: str, mode: Mode) -> bool:
    """Which way a metric improves. Metrics of Keras 3 say it themselves.

    Raises:
        ValueError: ``mode`` is ``"auto"``, and it cannot be told.
    """
    if mode != "auto":
        return mode == "min"
    name = monitor.removeprefix("val_")
    known = [inner for metric in model.metrics for inner in (metric, *(getattr(metric, "metrics", None) or ()))]
    directions = {metric.name: metric._direction for metric in known if getattr(metric, "_direction", None)}
    if name == "loss" or name in directions:
        return directions.get(name) != "up"
    if "acc" in name or name.startswith(("auc", "fmeasure")):
        return False
    if keras_state.framework(model) == "tf_keras":
        return True
    raise ValueError(f"it cannot be told whether {monitor!r} should be low or high: pass mode='min' or mode='max'")
