"""Snapshots of the real frameworks' leaves: copied where they can change, referenced where they cannot."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import jax, keras, tf, torch
from holding import HeldManager
from keras_models import STEPS, same, train, tutorial, weights

from ckptmgr import BackgroundSaver, CheckpointManager, UnsupportedLeafError, arrays, jaxarrays, tree
from ckptmgr.integrations.keras import CheckpointCallback, restore_weights
from ckptmgr.layout import Layout
from ckptmgr.saving import Plan, Prepared
from ckptmgr.snapshot import Staging


def taken(staging: Staging, leaf: Any) -> np.ndarray:
    prepared = Prepared(1, Plan(tree.flatten({"w": leaf}), Layout(())), {}, {}, {}, False)
    return staging.take(prepared).prepared.plan.flat.tensors["w"]


def parameter() -> tuple[Any, Callable[[], object]]:
    leaf = torch.nn.Parameter(torch.ones(4))
    return leaf, lambda: leaf.data.fill_(9)


def transposed() -> tuple[Any, Callable[[], object]]:
    leaf = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).t()
    return leaf, lambda: leaf.fill_(9)


def conjugated() -> tuple[Any, Callable[[], object]]:
    base = torch.ones(3, dtype=torch.complex64) * 1j
    return base.conj(), lambda: base.fill_(9)


def of_numpy() -> tuple[Any, Callable[[], object]]:
    base = np.arange(4.0)
    return torch.from_numpy(base), lambda: base.fill(9)


def tf_variable() -> tuple[Any, Callable[[], object]]:
    leaf = tf.Variable(tf.ones(1 << 16))
    return leaf, lambda: leaf.scatter_nd_add([[0]], [5.0])


def tf_half() -> tuple[Any, Callable[[], object]]:
    leaf = tf.Variable(tf.ones(5, tf.bfloat16))
    return leaf, lambda: leaf.assign_add(tf.ones(5, tf.bfloat16))


def keras_variable() -> tuple[Any, Callable[[], object]]:
    leaf = keras.Variable(np.ones(5, np.float32))
    return leaf, lambda: leaf.assign(np.zeros(5))


def torch_large() -> tuple[Any, Callable[[], object]]:
    leaf = torch.nn.Parameter(torch.ones(4, 1 << 18, dtype=torch.bfloat16))
    return leaf, lambda: leaf.data[-1].fill_(9)


CHANGING = [parameter, torch_large, transposed, conjugated, of_numpy, tf_variable, tf_half, keras_variable]


@pytest.mark.parametrize("make", CHANGING)
def test_what_can_change_is_copied(make: Callable[[], tuple[Any, Callable[[], object]]]) -> None:
    leaf, change = make()
    staging, expected = Staging(), np.array(arrays.host_array(leaf))

    copy = taken(staging, leaf)
    change()

    assert not np.array_equal(arrays.host_array(leaf), expected)
    assert np.array_equal(copy, expected)
    assert staging.nbytes > 0


IMMUTABLE = {
    "jax": lambda: jax.numpy.arange(1 << 16),
    "jax.bfloat16": lambda: jax.numpy.ones(3, "bfloat16"),
    "jax.key": lambda: jax.random.key(1),
    "tensorflow": lambda: tf.range(1 << 16),
    "tensorflow.bfloat16": lambda: tf.ones(3, tf.bfloat16),
}


@pytest.mark.parametrize("kind", IMMUTABLE)
def test_what_cannot_change_is_only_referenced(kind: str) -> None:
    leaf, staging = IMMUTABLE[kind](), Staging()

    held = taken(staging, leaf)

    assert np.array_equal(held, arrays.host_array(leaf))
    assert staging.nbytes == 0
    assert kind == "jax.key" or np.shares_memory(held, arrays.host_array(leaf))


def test_a_state_of_jax_arrays_costs_few_calls_for_each(manager: CheckpointManager) -> None:
    state, calls = {f"layers.{number}": jax.numpy.ones(3) for number in range(500)}, 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    with BackgroundSaver(manager) as saver:
        saver.save(1, state).result()
        sys.setprofile(count)
        try:
            saver.save(2, state)
        finally:
            sys.setprofile(None)

    assert calls < 4 * len(state)


def test_a_snapshot_is_in_the_order_of_the_state() -> None:
    state = {"b": np.ones(3), "c": jax.numpy.ones(3), "a": torch.ones(3), "d": jax.numpy.ones(3)}
    prepared = Prepared(1, Plan(tree.flatten(state), Layout(())), {}, {}, {}, False)

    assert list(Staging().take(prepared).prepared.plan.flat.tensors) == ["b", "c", "a", "d"]


def test_values_of_jax_arrays_are_read_only_where_jax_copies_them_too() -> None:
    class OnDevice:
        def _single_device_array_to_np_array_did_copy(self) -> tuple[np.ndarray, bool]:
            return np.ones(3), True

    found = [*jaxarrays.values([jax.numpy.ones(3)]), *jaxarrays.values([jax.numpy.ones(3, "bfloat16")])]
    found += jaxarrays.values([OnDevice(), OnDevice()])

    assert [array.flags.writeable for array in found] == [False] * 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [3, 1 << 16])
def test_a_jax_array_that_is_donated_or_deleted_keeps_its_values(size: int, dtype: str) -> None:
    donated, deleted = jax.numpy.ones(size, dtype), jax.numpy.ones(size, dtype)
    step = jax.jit(lambda array: array + 1, donate_argnums=0)

    held = [taken(Staging(), donated), taken(Staging(), deleted)]
    new = [step(donated)]
    deleted.delete()
    new += [jax.numpy.full(size, 7, dtype) for _ in range(5)]

    assert [np.unique(array).tolist() for array in held] == [[1], [1]]
    assert new[0][0] == 2


def test_a_deleted_jax_array_is_refused_at_the_call(manager: CheckpointManager) -> None:
    array = jax.numpy.ones(3)
    array.delete()

    with BackgroundSaver(manager) as saver, pytest.raises(UnsupportedLeafError, match="deleted jax array"):
        saver.save(1, {"w": array})


def test_modules_and_optimizers_of_torch_may_be_trained_at_once(tmp_path: Path) -> None:
    manager = HeldManager(tmp_path)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters())

    def train() -> None:
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()

    train()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with BackgroundSaver(manager) as saver:
        saver.save(1, {"model": model, "optimizer": optimizer, "rng": torch.get_rng_state()})
        train()
        manager.go.set()

    fresh = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    fresh_optimizer = torch.optim.Adam(fresh.parameters())
    manager.restore(into={"model": fresh, "optimizer": fresh_optimizer, "rng": torch.get_rng_state()})
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in before[0].items())
    moments = fresh_optimizer.state_dict()["state"]
    assert all(torch.equal(value, moments[key][name]) for key, row in before[1]["state"].items() for name, value in row.items())
    assert not torch.equal(model[0].weight, fresh[0].weight)


def test_a_model_of_keras_may_be_trained_at_once(lib: Any, tmp_path: Path) -> None:
    manager = HeldManager(tmp_path)
    manager.go.set()
    model = tutorial(lib)
    seen: list[list[np.ndarray]] = []

    class Noting(lib.callbacks.Callback):  # type: ignore[misc,name-defined]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            seen.append(weights(model))

    with BackgroundSaver(manager) as saver:
        train(model, CheckpointCallback(saver, save_weights_only=True, verbose=1), Noting(), epochs=3)

    infos = manager.steps()
    assert [info.metadata["epoch"] for info in infos] == [1, 2, 3]
    for info, expected in zip(infos, [*seen[1:], weights(model)], strict=True):
        fresh = tutorial(lib)
        restore_weights(manager, fresh, info.step)
        assert same(weights(fresh), expected)


def test_fit_tells_that_a_background_save_failed(lib: Any, tmp_path: Path) -> None:
    manager = HeldManager(tmp_path)
    manager.go.set()
    manager.failing[STEPS] = OSError("disk full")
    saver = BackgroundSaver(manager)

    with pytest.raises(OSError, match="disk full"):
        train(tutorial(lib), CheckpointCallback(saver), epochs=1)

    saver.close()
