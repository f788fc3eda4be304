"""Several processes and threads at one run, through their managers: readers see whole steps, and always the newest."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from runs import files, state
from syscalls import start_child

from ckptmgr import (
    CheckpointManager,
    CorruptCheckpointError,
    KeepLast,
    StateMismatchError,
    StepNaming,
    StepNotFoundError,
    commit,
)
from ckptmgr import checkpoint as checkpoints
from ckptmgr.storage import PosixStore


@contextmanager
def saving(save: Callable[[int], object], count: int) -> Iterator[Callable[[], bool]]:
    """Another process that saves 1, 2, 3, ...; gives whether it is still at it."""
    child = start_child(lambda: [save(number) for number in range(1, count + 1)])
    ended: list[int] = []

    def is_saving() -> bool:
        if not ended:
            pid, status = os.waitpid(child, os.WNOHANG)
            ended.extend([status] if pid else [])
        return not ended

    yield is_saving
    while is_saving():
        pass
    assert ended == [0]


def is_whole(found: dict) -> bool:
    return bool((found["model"]["w"] == found["epoch"]).all() and (found["model"]["b"] == np.arange(3) + found["epoch"]).all())


def test_a_step_that_is_overwritten_all_the_time_is_always_restored_whole(tmp_path):
    manager = CheckpointManager(tmp_path)
    manager.save(1, state(0))
    seen = [0]

    with saving(lambda number: manager.save(1, state(number), overwrite=True), 100) as is_saving:
        while is_saving():
            for restored in (manager.restore(1), manager.restore()):
                assert is_whole(restored.state)
                seen.append(restored.state["epoch"])
            assert manager.verify().ok

    assert seen == sorted(seen)


def test_there_is_always_a_newest_step_while_retention_removes_the_older_ones(tmp_path):
    manager = CheckpointManager(tmp_path, retention=KeepLast(1))
    manager.save(1, state(1))
    seen = [1]

    with saving(lambda number: manager.save(number + 1, state(number + 1)), 150) as is_saving:
        while is_saving():
            step, restored = manager.restore_or_initialize(state(-1))
            assert step == restored["epoch"]
            assert is_whole(restored)
            latest = manager.latest()
            assert latest is not None
            seen += [step, latest.step]

    assert seen == sorted(seen)


def test_a_step_that_came_and_one_that_went_while_the_run_was_read_are_not_both_missed(tmp_path, monkeypatch):
    manager = CheckpointManager(tmp_path, retention=KeepLast(1))
    manager.save(1, state(1))
    manager.pin(1, "old")
    manager.save(2, state(2))
    reread, once = PosixStore.reread, [1]

    def slow(*args):
        if once and once.pop():
            manager.save(3, state(3))  # and retention removes step 2
        return reread(*args)

    monkeypatch.setattr(PosixStore, "reread", slow)
    assert manager.steps()[-1].step == 3


def test_a_step_overwritten_after_its_record_was_read_is_read_anew(manager, monkeypatch):
    manager.save(1, state(1))
    read, once = checkpoints.read_checked, [1]

    def slow(folder, entry):
        if once and once.pop():
            manager.save(1, state(2), overwrite=True)
        return read(folder, entry)

    monkeypatch.setattr(checkpoints, "read_checked", slow)
    assert manager.restore(1).state["epoch"] == 2


def test_a_fresh_state_is_not_taken_for_fresh_when_its_step_was_deleted_during_the_restore(manager, monkeypatch):
    manager.save(1, state(1))
    restore = checkpoints.restoring.restore

    def slow(*args, **options):
        manager.delete(1)
        return restore(*args, **options)

    monkeypatch.setattr(checkpoints.restoring, "restore", slow)
    with pytest.raises(StepNotFoundError, match=r"step 1 .* was deleted or overwritten"):
        manager.restore_or_initialize(state(0))


def test_verifying_a_run_does_not_mind_that_retention_removes_a_step_meanwhile(manager, monkeypatch):
    manager.save(1, state(1))
    manager.save(2, state(2))
    check = checkpoints.transfer.check

    def slow(*args, **options):
        if 1 in [info.step for info in manager.steps()]:
            manager.delete(1)
        return check(*args, **options)

    monkeypatch.setattr(checkpoints.transfer, "check", slow)
    report = manager.verify()

    assert report.ok
    assert report.steps == (2,)


def test_threads_that_share_a_manager_save_every_step(tmp_path):
    manager = CheckpointManager(tmp_path)
    errors: list[BaseException] = []

    def save(first: int) -> None:
        try:
            for step in range(first, first + 5):
                manager.save(step, state(step))
        except BaseException as error:  # noqa: BLE001 - told by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=save, args=(10 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert sorted(info.step for info in manager.steps()) == sorted(10 * index + step for index in range(4) for step in range(5))


def test_what_a_damaged_step_has_half_filled_does_not_pass_for_the_callers_own(manager):
    manager.save(1, {"a": np.zeros(3), "b": np.zeros(5)})
    manager.save(2, {"a": np.ones(3), "b": np.ones(3)})
    data = Path(manager.path(2)) / "model.safetensors"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)

    with pytest.warns(RuntimeWarning, match="step 2 is skipped"), pytest.raises(CorruptCheckpointError, match="'b'"):
        manager.restore(into={"a": np.full(3, 7.0), "b": np.full(3, 7.0)}, strict=False)


def test_a_deleted_step_does_not_come_back_from_a_copy_of_its_folder(tmp_path):
    manager = CheckpointManager(tmp_path, naming=StepNaming("e{epoch}-{step:03d}"))
    manager.save(1, state(1), metadata={"epoch": 1})
    shutil.copytree(tmp_path / "e1-001", tmp_path / "e2-001")

    manager.delete(1)

    assert manager.steps() == []


@pytest.mark.parametrize("options", [{"metrics": {9: 0.1, 10: 0.2}}, {"metrics": {"loss": 10**400}}])
def test_metrics_that_could_not_be_read_back_are_refused_before_anything_is_written(manager, tmp_path, options):
    with pytest.raises(TypeError, match="metric"):
        manager.save(1, state(1), **options)

    assert files(tmp_path) == set()


def test_a_run_id_is_a_string(tmp_path):
    with pytest.raises(TypeError, match="run must be a string, not 5"):
        CheckpointManager(tmp_path, run=5)


def test_a_manifest_that_could_not_be_read_back_is_not_committed(manager, tmp_path):
    class Strange(type(manager.backend)):
        name = 5

    manager.backend = Strange()
    with pytest.raises(CorruptCheckpointError, match="has 5 as 'backend'"):
        manager.save(1, state(1))

    assert manager.steps() == []
    assert files(tmp_path / "run") == set()


def test_a_save_interrupted_right_after_its_commit_stays_committed(manager, monkeypatch):
    def interrupted(*args, **names):
        raise KeyboardInterrupt

    monkeypatch.setattr(commit.Manifest, "info", interrupted)
    with pytest.raises(KeyboardInterrupt):
        manager.save(1, state(1))
    monkeypatch.undo()

    assert is_whole(manager.restore(1).state)


def test_a_mismatch_after_a_fallback_does_not_hide_that_arrays_may_have_changed(manager):
    manager.save(1, {"a": np.zeros(5)})
    manager.save(2, {"a": np.ones(3)})
    data = Path(manager.path(2)) / "model.safetensors"
    data.write_bytes(data.read_bytes()[:-1] + b"x")

    with pytest.warns(RuntimeWarning, match="step 2 is skipped"), pytest.raises(StateMismatchError) as caught:
        manager.restore(into={"a": np.zeros(3)})

    assert caught.value.__notes__ == ["step 2 was tried first and is damaged: arrays may hold some of its bytes"]
