"""Checkpoints that ckptmgr writes, restored by TensorFlow, tf_keras and Keras 3."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import tf, tf_keras
from tf_programs import PROGRAMS, fitted, flat, layers, sequential_model

import ckptmgr
from ckptmgr import CheckpointManager
from ckptmgr_tf_bundle import TFBundleBackend


@pytest.fixture(params=PROGRAMS)
def make(request: pytest.FixtureRequest) -> Any:
    return PROGRAMS[request.param]


def test_saved_program_is_restored_to_the_bit_and_trains_on_alike(make: Any, tmp_path: Path) -> None:
    program, fresh = make(1), make(2)
    prefix = str(tmp_path / "cp.ckpt")

    # Without the counter that only `tf.train.Checkpoint` asks for, `load_weights` finds nothing that it has no use for.
    ckptmgr.save(prefix, program.state, backend=TFBundleBackend(save_counter=program.is_counted))
    fresh.restore(prefix)
    assert flat(fresh.state) == flat(program.state)
    program.train()
    fresh.train()

    assert flat(fresh.state) == flat(program.state)


def test_step_of_a_manager_is_restored_to_the_bit_and_trains_on_alike(make: Any, tmp_path: Path) -> None:
    program, fresh = make(1), make(2)
    manager = CheckpointManager(tmp_path / "run", backend="tf_bundle")

    manager.save(5, program.state)
    fresh.restore(manager.path(5) + "/model")
    assert flat(fresh.state) == flat(program.state)
    program.train()
    fresh.train()

    assert flat(fresh.state) == flat(program.state)


def test_what_tensorflow_wrote_is_loaded_saved_and_restored_by_it(make: Any, tmp_path: Path) -> None:
    program, fresh = make(1), make(2)
    theirs, ours = program.write(str(tmp_path / "theirs")), str(tmp_path / "ours")

    ckptmgr.save(ours, ckptmgr.load(theirs), backend="tf_bundle")
    fresh.restore(ours)
    assert flat(fresh.state) == flat(program.state)
    program.train()
    fresh.train()

    assert flat(fresh.state) == flat(program.state)


def test_what_tensorflow_wrote_becomes_the_step_of_a_manager_that_it_restores(make: Any, tmp_path: Path) -> None:
    program, fresh = make(1), make(2)
    theirs = program.write(str(tmp_path / "theirs"))
    manager = CheckpointManager(tmp_path / "run", backend="tf_bundle")

    manager.save(1, ckptmgr.load(theirs))
    manager.save(2, manager.restore(1).state)
    fresh.restore(manager.path(2) + "/model")

    assert flat(fresh.state) == flat(program.state)


def test_load_checkpoint_gives_every_tensor_of_ours(make: Any, tmp_path: Path) -> None:
    program = make(1)
    prefix = str(tmp_path / "cp.ckpt")

    ckptmgr.save(prefix, program.state, backend="tf_bundle")

    reader = tf.train.load_checkpoint(prefix)
    with ckptmgr.open_checkpoint(prefix, backend=TFBundleBackend(names="keys")) as checkpoint:
        ours = {name: checkpoint.read(name) for name in [*checkpoint.specs, *checkpoint.aliases]}  # tied ones share an entry
    assert len(ours) >= len(flat(program.state))
    assert flat({key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}) == flat(ours)


def test_read_asks_for_no_counter(tmp_path: Path) -> None:
    prefix = str(tmp_path / "ck")
    v = tf.Variable([0.0, 0.0])

    ckptmgr.save(prefix, {"v": np.float32([1, 2])}, backend=TFBundleBackend(save_counter=False))
    tf.train.Checkpoint(v=v).read(prefix).assert_consumed()

    assert v.numpy().tolist() == [1, 2]
    assert [name for name, _ in tf.train.list_variables(prefix) if not name.startswith("_")] == ["v/.ATTRIBUTES/VARIABLE_VALUE"]


def test_counter_of_the_state_is_the_one_that_restore_sets(tmp_path: Path) -> None:
    prefix = str(tmp_path / "ck")
    checkpoint = tf.train.Checkpoint(v=tf.Variable(0.0))

    ckptmgr.save(prefix, {"v": np.float32(1), "save_counter": 41}, backend="tf_bundle")
    checkpoint.restore(prefix).assert_consumed()

    assert checkpoint.save(str(tmp_path / "next")).endswith("next-42")


def test_weights_alone_are_loaded_into_a_model_without_optimizer(tmp_path: Path) -> None:
    model, fresh = sequential_model(1), sequential_model(2)
    prefix = str(tmp_path / "cp.ckpt")

    ckptmgr.save(prefix, layers(model), backend=TFBundleBackend(save_counter=False))
    fresh.load_weights(prefix).assert_consumed()

    assert flat(layers(fresh)) == flat(layers(model))


def test_weights_beside_slots_are_taken_by_a_model_that_has_no_use_for_slots(tmp_path: Path) -> None:
    program, fresh = PROGRAMS["legacy"](1), sequential_model(2)
    prefix = str(tmp_path / "cp.ckpt")

    ckptmgr.save(prefix, program.state, backend="tf_bundle")
    fresh.load_weights(prefix).assert_existing_objects_matched()

    weights = {path: leaf for path, leaf in flat(program.state).items() if path[0] != "optimizer" and "/" not in path[-1]}
    assert flat(layers(fresh)) == weights


def test_layers_may_be_named_by_their_position_among_all(tmp_path: Path) -> None:
    model, fresh = sequential_model(1), sequential_model(2)
    prefix = str(tmp_path / "cp.ckpt")
    names = dict(zip(layers(model), ("layer-0", "layer-2", "layer-3"), strict=True))

    ckptmgr.save(prefix, {names[name]: weights for name, weights in layers(model).items()}, backend="tf_bundle")
    fresh.load_weights(prefix).assert_existing_objects_matched()

    assert flat(layers(fresh)) == flat(layers(model))


def test_optimizer_that_has_no_variables_yet_is_restored_when_it_makes_them(tmp_path: Path) -> None:
    program = PROGRAMS["sequential"](1)
    fresh = sequential_model(2, tf_keras.optimizers.Adam(0.01))
    prefix = str(tmp_path / "cp.ckpt")

    ckptmgr.save(prefix, program.state, backend="tf_bundle")
    fresh.load_weights(prefix)
    fitted(fresh, 6, 2)
    program.train()

    assert flat(layers(fresh)) == {path: leaf for path, leaf in flat(program.state).items() if path[0] != "optimizer"}


def test_dtype_of_another_width_is_refused_by_tensorflow_so_ours_stay_as_they_are(tmp_path: Path) -> None:
    prefix = str(tmp_path / "ck")

    ckptmgr.save(prefix, {"v": np.zeros(2, np.float64)}, backend="tf_bundle")

    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.train.Checkpoint(v=tf.Variable([0.0, 0.0])).restore(prefix)
