"""What a manager is given, and how it goes on from there into the saves, restores and checks of its steps."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from runs import files, state

from ckptmgr import CheckpointError, CheckpointManager, CorruptCheckpointError, KeepLast, StateMismatchError, StepNotFoundError
from ckptmgr import checkpoint as checkpoints
from ckptmgr import sweep as sweeping


def flip_last_byte(manager: CheckpointManager, step: int) -> None:
    path = Path(manager.path(step)) / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def damage_record(manager: CheckpointManager, step: int) -> None:
    path = Path(manager.path(step)).parent / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"step"', b'"stop"'))


def test_an_unknown_verify_is_refused_before_training_starts(tmp_path):
    with pytest.raises(ValueError, match="verify must be 'full', 'fast' or 'off', not 'on'"):
        CheckpointManager(tmp_path, verify="on")


@pytest.mark.parametrize("step", [1, None])
@pytest.mark.parametrize("verify", ["fast", "off"])
def test_restores_and_reads_check_what_the_manager_was_told_to(tmp_path, verify, step):
    CheckpointManager(tmp_path).save(1, state(1))
    manager = CheckpointManager(tmp_path, verify=verify)
    flip_last_byte(manager, 1)

    assert manager.restore(step).step == 1
    assert manager.open(step).read("model/w").shape == (4, 3)
    assert not manager.verify(1).ok


def test_one_restore_can_check_more_or_less_than_the_manager(tmp_path):
    manager = CheckpointManager(tmp_path)
    manager.save(1, state(1))
    flip_last_byte(manager, 1)

    assert manager.restore(1, verify="off").step == 1
    with pytest.raises(CorruptCheckpointError):
        CheckpointManager(tmp_path, verify="off").restore(1, verify="full")


def test_a_run_id_that_is_given_is_that_of_saves_and_outlives_a_restore(tmp_path):
    CheckpointManager(tmp_path).save(1, state(1))
    mine = CheckpointManager(tmp_path, run="mine")

    mine.restore()
    info = mine.save(2, state(2))

    assert mine.run == info.run == "mine"


def test_a_run_is_fixed_by_the_first_restore(tmp_path):
    for run in ("a", "b"):
        CheckpointManager(tmp_path, run=run).save(ord(run), state(1))
    manager = CheckpointManager(tmp_path)

    manager.restore(ord("a"))
    manager.restore(ord("b"))

    assert manager.run == "a"


def test_storage_options_reach_the_storage(tmp_path):
    with pytest.raises((TypeError, ValueError), match="token"):
        CheckpointManager(tmp_path, storage_options={"token": "x"})


def test_metadata_that_is_no_json_is_refused_before_anything_is_written(manager, tmp_path):
    with pytest.raises(TypeError, match="metadata/when"):
        manager.save(1, state(1), metadata={"when": object()})

    assert files(tmp_path) == set()


def test_a_step_tells_when_by_whom_and_how_large_it_was_saved(manager, tmp_path):
    before = datetime.now(UTC)
    info = manager.save(1, state(1), assets={"config.json": b"{}" * 500})

    written = [path for path in Path(info.path).iterdir() if path.is_file()]
    fields = json.loads((tmp_path / "run" / info.name / "manifest.json").read_bytes())["manifest"]
    assert before <= info.created <= datetime.now(UTC)
    assert info.nbytes == sum(path.stat().st_size for path in written)
    assert fields["writer"]["pid"] == os.getpid()


def test_progress_is_told_of_saves_restores_and_checks(tmp_path):
    seen: list[int] = []
    manager = CheckpointManager(tmp_path, progress=lambda done, total: seen.append(total))

    counts = []
    for use in (lambda: manager.save(1, state(1)), lambda: manager.restore(1), lambda: manager.verify(1)):
        use()
        counts.append(len(seen))

    assert 0 < counts[0] < counts[1] < counts[2]


def test_a_save_that_fails_removes_no_older_step(tmp_path, monkeypatch):
    for step in (1, 2):
        CheckpointManager(tmp_path).save(step, state(step))
    manager = CheckpointManager(tmp_path, retention=KeepLast(1))
    monkeypatch.setattr("ckptmgr.treefile.encode", lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        manager.save(3, state(3))

    assert [info.step for info in manager.steps()] == [1, 2]


@pytest.mark.parametrize("step", [1, None])
def test_what_a_restore_is_asked_for_is_what_it_gives(manager, step):
    manager.save(1, {"old": {"w": np.ones(3, np.float32), "b": np.ones(2)}})
    mine = {"new": {"w": np.zeros(3, np.float64)}}

    with pytest.raises(StateMismatchError):
        manager.restore(step, into=mine, select="new/w", rename=[("old", "new")])
    restored = manager.restore(step, into=mine, select="new/w", rename=[("old", "new")], cast="same_kind")

    assert restored.state["new"]["w"].tolist() == [1, 1, 1]
    assert list(manager.restore(step, select="old/b").state["old"]) == ["b"]


def test_what_does_not_fit_stays_as_it_is_without_strict(manager):
    manager.save(1, {"a": np.ones(3), "b": np.ones(3)})

    restored = manager.restore(into={"a": np.zeros(3), "b": np.full(5, 7.0), "c": np.full(2, 7.0)}, strict=False)

    assert restored.state["a"].tolist() == [1, 1, 1]
    assert restored.state["b"].tolist() == [7] * 5
    assert restored.report.missing == ("c",)


def test_a_value_that_only_the_damaged_step_had_does_not_pass_for_the_callers_own(manager):
    manager.save(1, {"a": np.zeros(3)})
    manager.save(2, {"a": np.ones(3), "b": np.ones(3)})
    flip_last_byte(manager, 2)

    with pytest.warns(RuntimeWarning, match="step 2 is skipped"), pytest.raises(CorruptCheckpointError, match="'b'"):
        manager.restore(into={"a": np.full(3, 7.0), "b": np.full(3, 7.0)}, strict=False)


def test_a_state_that_can_be_called_is_a_state_and_not_a_function_that_makes_one(manager):
    class Module:
        value = 7

        def __call__(self):
            raise AssertionError("a forward pass")

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, loaded):
            self.value = loaded["value"]

    module = Module()

    assert manager.restore_or_initialize(module) == (0, module)


@pytest.mark.parametrize("use", [CheckpointManager.restore, CheckpointManager.open])
def test_the_warning_of_a_skipped_step_points_at_the_callers_line(manager, use):
    for step in (1, 2):
        manager.save(step, state(step))
    (Path(manager.path(2)) / "tree.json").unlink()

    with pytest.warns(RuntimeWarning, match="step 2 is skipped") as warned:
        use(manager)

    assert [warning.filename for warning in warned] == [__file__]


def test_verifying_a_step_looks_at_no_other_one(manager):
    for step in (1, 2, 3):
        manager.save(step, state(step))
    damage_record(manager, 3)

    assert manager.verify(1).steps == (1,)
    assert manager.verify(1).ok
    assert [(step, problem.file) for step, problem in manager.verify(3).problems] == [(3, "manifest.json")]


def test_a_fast_verification_looks_at_sizes_alone(manager):
    manager.save(1, state(1))
    flip_last_byte(manager, 1)

    assert manager.verify(full=False).ok
    assert not manager.verify().ok


def test_a_verification_goes_on_after_a_step_that_does_not_open(manager):
    for step in (1, 2):
        manager.save(step, state(step))
    (Path(manager.path(1)) / "tree.json").unlink()

    report = manager.verify()

    assert report.steps == (1, 2)
    assert [(step, problem.file) for step, problem in report.problems] == [(1, "tree.json")]


def test_a_step_that_is_deleted_while_it_is_verified_alone_is_not_found(manager, monkeypatch):
    manager.save(1, state(1))
    check = checkpoints.transfer.check

    def slow(*args, **options):
        manager.delete(1)
        return check(*args, **options)

    monkeypatch.setattr(checkpoints.transfer, "check", slow)
    with pytest.raises(StepNotFoundError, match="step 1"):
        manager.verify(1)


@pytest.mark.parametrize("grace", [timedelta(days=2), 172_800])
def test_a_sweep_is_told_its_grace_in_seconds_and_whether_to_remove_empty_records(manager, monkeypatch, grace):
    told = {}
    monkeypatch.setattr(sweeping, "sweep", lambda folder, naming, **options: told.update(options))

    manager.sweep(grace, empty_records=True)

    assert told == {"grace_s": 172_800.0, "empty_records": True}


@pytest.mark.parametrize("step", ["1", 1.0, True])
def test_a_restore_of_what_is_no_step_is_a_mistake_of_the_caller(manager, step):
    manager.save(1, state(1))

    with pytest.raises(TypeError):
        manager.restore(step)


@pytest.mark.parametrize("call", ["restore", "open", "restore_or_initialize"])
def test_the_folder_of_a_step_is_not_taken_for_a_run_without_steps(tmp_path, call):
    with CheckpointManager(tmp_path) as manager:
        name = manager.save(1, state(1)).name

    with CheckpointManager(tmp_path / name) as manager, pytest.raises(CheckpointError, match="the folder of one step"):
        getattr(manager, call)(*([state(0)] if call == "restore_or_initialize" else []))


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_saved_into_the_folder_of_a_step(tmp_path, overwrite):
    with CheckpointManager(tmp_path) as manager:
        name = manager.save(1, state(1)).name
    before = files(tmp_path)

    with (
        CheckpointManager(tmp_path / name) as manager,
        pytest.raises(CheckpointError, match="the folder of one step, and no run"),
    ):
        manager.save(2, state(2), overwrite=overwrite)

    assert files(tmp_path) - {f"{name}/.ckptmgr.lock"} == before
    assert CheckpointManager(tmp_path).verify().ok
