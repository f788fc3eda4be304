"""Runs shared with TensorFlow: its `latest_checkpoint` on a run of ours, and our manager on a run of its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import tf

from ckptmgr import CheckpointManager, KeepLast


@pytest.fixture
def manager(tmp_path: Path) -> CheckpointManager:
    return CheckpointManager(tmp_path / "run", backend="tf_bundle")


def state(value: int) -> dict[str, Any]:
    return {"v": np.float32([value])}


def latest(folder: Path) -> float | None:
    """The value in the checkpoint that TensorFlow takes for the latest."""
    prefix = tf.train.latest_checkpoint(str(folder))
    if prefix is None:
        return None
    variable = tf.Variable([-1.0])
    tf.train.Checkpoint(v=variable).restore(prefix).assert_consumed()
    return float(variable.numpy()[0])


def theirs(folder: Path, count: int, max_to_keep: int = 9) -> Any:
    """A run of TensorFlow's own manager, whose steps hold their numbers."""
    variable = tf.Variable([0.0])
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(v=variable), str(folder), max_to_keep=max_to_keep)
    for step in range(1, count + 1):
        variable.assign([float(step)])
        manager.save()
    return manager


def test_latest_is_each_step_right_after_it_was_saved(manager: CheckpointManager, tmp_path: Path) -> None:
    found = []
    for step in (3, 10, 4):
        manager.save(step, state(step))
        found.append(latest(tmp_path / "run"))

    assert found == [3, 10, 4]
    assert tf.train.latest_checkpoint(str(tmp_path / "run")) == manager.path(4) + "/model"


def test_latest_is_there_after_retention(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "run", backend="tf_bundle", retention=KeepLast(1))

    for step in range(3):
        manager.save(step, state(step))

    assert [info.step for info in manager.steps()] == [2]
    assert latest(tmp_path / "run") == 2


def test_latest_is_the_newest_of_those_that_a_collect_left(manager: CheckpointManager, tmp_path: Path) -> None:
    for step in range(4):
        manager.save(step, state(step))

    manager.retention = KeepLast(2)
    manager.collect()

    assert latest(tmp_path / "run") == 3
    named = tf.train.get_checkpoint_state(str(tmp_path / "run")).all_model_checkpoint_paths
    assert {*named} <= {manager.path(step) + "/model" for step in (2, 3)}


def test_latest_is_the_one_before_a_deleted_step(manager: CheckpointManager, tmp_path: Path) -> None:
    for step in range(3):
        manager.save(step, state(step))

    manager.delete(2)

    assert latest(tmp_path / "run") == 1


def test_there_is_no_latest_once_every_step_is_deleted(manager: CheckpointManager, tmp_path: Path) -> None:
    manager.save(1, state(1))

    manager.delete(1)

    assert tf.train.latest_checkpoint(str(tmp_path / "run")) is None


def test_latest_is_an_overwritten_step_as_it_is_now(manager: CheckpointManager, tmp_path: Path) -> None:
    manager.save(1, state(1))
    manager.save(2, state(2))

    manager.save(1, state(7), overwrite=True)

    assert latest(tmp_path / "run") == 7


def test_latest_is_found_after_the_run_was_moved(manager: CheckpointManager, tmp_path: Path) -> None:
    manager.save(1, state(1))
    manager.save(2, state(2))

    (tmp_path / "run").rename(tmp_path / "elsewhere")

    assert latest(tmp_path / "elsewhere") == 2


def test_tensorflows_manager_goes_on_from_a_run_of_ours(manager: CheckpointManager, tmp_path: Path) -> None:
    manager.save(1, state(1))
    manager.save(2, state(2))
    variable = tf.Variable([0.0])

    other = tf.train.CheckpointManager(tf.train.Checkpoint(v=variable), str(tmp_path / "run"), max_to_keep=None)
    restored = other.restore_or_initialize()

    assert restored == manager.path(2) + "/model"
    assert variable.numpy().tolist() == [2]


def test_tensorflows_manager_does_not_delete_steps_of_ours(manager: CheckpointManager, tmp_path: Path) -> None:
    manager.save(1, state(1))
    manager.save(2, state(2))
    checkpoint = tf.train.Checkpoint(v=tf.Variable([0.0]))

    other = tf.train.CheckpointManager(checkpoint, str(tmp_path / "run"), max_to_keep=1)
    other.restore_or_initialize()
    for number in range(3, 6):
        other.save(checkpoint_number=number)

    assert [(info.step, info.is_foreign) for info in manager.steps()] == [(5, True), (1, False), (2, False)]
    assert manager.verify().ok


def test_run_of_tensorflows_manager_is_listed_and_its_latest_restored(manager: CheckpointManager, tmp_path: Path) -> None:
    theirs(tmp_path / "run", 5, max_to_keep=3)

    assert [(info.step, info.is_foreign) for info in manager.steps()] == [(3, True), (4, True), (5, True)]
    assert manager.restore().state["v"].tolist() == [5]
    assert manager.restore(4).state["v"].tolist() == [4]
    assert manager.verify().ok


def test_latest_of_their_run_is_what_their_state_file_says(manager: CheckpointManager, tmp_path: Path) -> None:
    theirs(tmp_path / "run", 3)
    one, two, three = (str(tmp_path / "run" / f"ckpt-{step}") for step in (1, 2, 3))

    tf.compat.v1.train.update_checkpoint_state(str(tmp_path / "run"), two, [one, three, two])

    assert manager.latest().step == 2
    assert manager.restore().state["v"].tolist() == [2]


def test_adopted_run_of_theirs_is_one_of_ours_that_they_find(manager: CheckpointManager, tmp_path: Path) -> None:
    theirs(tmp_path / "run", 3)

    manager.adopt()

    assert [(info.step, info.is_foreign) for info in manager.steps()] == [(1, False), (2, False), (3, False)]
    assert not [*(tmp_path / "run").glob("ckpt-*.index")]
    assert latest(tmp_path / "run") == 3 == manager.restore().state["v"].item()


def test_step_of_ours_after_theirs_is_the_latest_for_both(manager: CheckpointManager, tmp_path: Path) -> None:
    theirs(tmp_path / "run", 2)

    manager.save(3, state(3))

    assert latest(tmp_path / "run") == 3 == manager.latest().step
    assert [info.step for info in manager.steps()] == [1, 2, 3]
