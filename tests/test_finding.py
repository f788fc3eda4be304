"""Which step is found, restored and opened, and what is said when none is: `CheckpointManager` on local disk."""

import json
import math
import os
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from runs import state

import ckptmgr
from ckptmgr import (
    CheckpointManager,
    CorruptCheckpointError,
    FormatVersionError,
    StateMismatchError,
    StepNaming,
    StepNotFoundError,
    UnsafeCheckpointError,
    commit,
    record,
)
from ckptmgr.finding import Run


def damage_record(manager: CheckpointManager, step: int) -> None:
    path = Path(manager.path(step)).parent / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"step"', b'"stop"'))


def test_restore_into_fills_the_callers_arrays_in_place(manager):
    manager.save(1, state(1))
    mine = state(0)
    w = mine["model"]["w"]

    restored = manager.restore(into=mine)

    assert restored.state["model"]["w"] is w
    assert w[0, 0] == 1
    assert restored.state["epoch"] == 1


def test_latest_is_the_last_saved_not_the_highest_number(manager):
    for step in (100, 300, 200):
        manager.save(step, state(step))

    assert manager.latest().step == 200
    assert [info.step for info in manager.steps()] == [100, 300, 200]
    assert manager.restore().step == 200


def test_best_ignores_nan_and_prefers_the_newer_on_a_tie(manager):
    for step, loss in enumerate([0.5, 0.3, math.nan, 0.3, 0.4]):
        manager.save(step, {}, metrics={"loss": loss})

    assert manager.best("loss").step == 3
    assert manager.best("loss", mode="max").step == 0
    assert manager.best("accuracy") is None


def test_open_reads_one_tensor_or_a_slice_without_the_rest(manager):
    manager.save(1, {"model": {"w": np.arange(12).reshape(4, 3)}, "tied": None})

    with manager.open(1) as checkpoint:
        assert list(checkpoint.specs) == ["model/w"]
        np.testing.assert_array_equal(checkpoint.read("model/w", ckptmgr.Box((1, 0), (3, 2))), [[3, 4], [6, 7]])
        with pytest.raises(KeyError, match="model/v"):
            checkpoint.read("model/v")


def test_a_damaged_newest_step_is_skipped_loudly_and_left_in_place(manager):
    for step in (1, 2):
        manager.save(step, state(step))
    path = Path(manager.path(2)) / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)

    with pytest.warns(RuntimeWarning, match="step 2 is skipped"):
        restored = manager.restore()

    assert restored.step == 1
    assert [entry.step for entry in restored.report.skipped] == [2]
    assert path.read_bytes() == raw
    with pytest.raises(CorruptCheckpointError, match="model"):
        manager.restore(2)


def test_when_no_step_is_good_training_does_not_start_anew(manager):
    manager.save(1, state(1))
    (Path(manager.path(1)) / "model.safetensors").unlink()

    with pytest.warns(RuntimeWarning), pytest.raises(CorruptCheckpointError, match="no step"):
        manager.restore_or_initialize(lambda: state(0))


def test_a_step_of_a_newer_format_is_no_reason_to_fall_back(manager):
    for step in (1, 2):
        manager.save(step, state(step))
    path = Path(manager.folder.location()) / "step-00000002" / "manifest.json"
    fields = json.loads(path.read_bytes())
    del fields["crc32c"]
    body = json.dumps(fields | {"format_version": 99}, indent=2).removesuffix("\n}") + ",\n"
    path.write_bytes(record.seal(body.encode()))

    with pytest.raises(FormatVersionError, match="99"):
        manager.restore()


def test_a_step_that_is_not_there_names_those_that_are(manager):
    manager.save(1, state(1))

    for call in (manager.restore, manager.open, manager.delete, manager.path, manager.verify):
        with pytest.raises(StepNotFoundError, match=r"committed: 1") as caught:
            call(5)
        assert caught.value.step == 5


def test_of_many_steps_the_nearest_are_named(manager):
    for step in range(100, 1001, 100):
        manager.save(step, {})

    with pytest.raises(StepNotFoundError, match=r"committed: 500, 600, 400, 700, 300"):
        manager.restore(510)


def test_a_mismatch_lists_everything_at_once_and_changes_nothing(manager):
    manager.save(1, state(1))
    mine = {"model": {"w": np.zeros((4, 4), np.float32), "bias": np.zeros(3, int)}, "epoch": 0, "note": ""}

    with pytest.raises(StateMismatchError) as caught:
        manager.restore(into=mine)

    message = str(caught.value)
    assert "model/w" in message
    assert "model/bias" in message
    assert "model/b" in message
    assert mine["epoch"] == 0
    assert not mine["model"]["w"].any()


def test_restore_or_initialize_goes_on_where_the_last_save_was(manager):
    step, mine = manager.restore_or_initialize(lambda: state(0))
    assert (step, mine["epoch"]) == (0, 0)
    manager.save(5, state(5))

    step, mine = CheckpointManager(manager.folder.location()).restore_or_initialize(lambda: state(0))

    assert (step, mine["epoch"]) == (5, 5)


def test_a_resumed_run_keeps_its_id_and_a_fresh_one_gets_a_new(manager):
    manager.save(1, state(1))
    resumed, fresh = (CheckpointManager(manager.folder.location()) for _ in range(2))
    resumed.restore()

    resumed.save(2, state(2))
    fresh.save(3, state(3))

    first, second, third = manager.steps()
    assert first.run == second.run != third.run


def test_a_run_can_be_moved_and_copied(manager, tmp_path):
    import shutil

    manager.save(1, state(1))
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    os.rename(tmp_path / "run", tmp_path / "moved")

    for name in ("copy", "moved"):
        assert CheckpointManager(tmp_path / name).restore().state["epoch"] == 1


def test_names_order_and_times_of_files_mean_nothing(manager, tmp_path):
    for step in (5, 3, 4):
        manager.save(step, state(step))
    for path in (tmp_path / "run").rglob("*"):
        os.utime(path, (random.Random(0).random(),) * 2)

    assert [info.step for info in manager.steps()] == [5, 3, 4]


def test_a_checkpoint_that_is_deleted_while_it_is_open_says_so(manager):
    manager.save(1, state(1))
    checkpoint = manager.open(1)
    manager.delete(1)

    with pytest.raises(StepNotFoundError, match="deleted or overwritten"):
        checkpoint.read("model/w")


def test_a_read_only_run_can_be_listed_and_restored(manager, tmp_path):
    manager.save(1, state(1))
    (tmp_path / "run" / ".ckptmgr.lock").unlink()
    for path in [tmp_path / "run", *(tmp_path / "run").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader = CheckpointManager(tmp_path / "run")
        assert reader.restore().step == 1
        assert reader.verify(1).ok

    assert not (tmp_path / "run" / ".ckptmgr.lock").exists()
    for path in [tmp_path / "run", *(tmp_path / "run").rglob("*")]:
        path.chmod(0o755)


def test_views_of_one_array_in_a_template_are_filled_one_after_another(manager):
    manager.save(1, {"a": np.zeros(8), "b": np.ones(8), "c": np.full(4, 2.0)})
    memory = np.full(12, 9.0)

    manager.restore(1, into={"a": memory[:8], "b": memory[4:], "c": np.zeros(4)})

    assert memory.tolist() == [0.0] * 4 + [1.0] * 8


def test_giant_files_in_place_of_records_hide_no_other_step(manager, tmp_path):
    for step in (1, 2, 3):
        manager.save(step, state(step))
    for step in (2, 3):
        os.truncate(tmp_path / "run" / f"step-0000000{step}" / "manifest.json", 1 << 30)

    assert [info.step for info in manager.steps()] == [1]
    with pytest.warns(RuntimeWarning, match="far larger than any record") as warned:
        assert manager.restore().step == 1
    assert [str(each.message)[:16] for each in warned] == ["step 2 is skippe", "step 3 is skippe"]


def test_a_damaged_record_is_logged_and_left_out(manager, caplog):
    for step in (1, 2):
        manager.save(step, state(step))
    damage_record(manager, 2)

    assert [info.step for info in manager.steps()] == [1]
    assert "step-00000002/manifest.json" in caplog.text


def test_of_two_folders_of_one_step_the_one_saved_last_counts(tmp_path):
    manager = CheckpointManager(tmp_path / "run", naming=StepNaming("e{epoch}-{step}"))
    for step, epoch in ((0, 0), (1, 9)):
        manager.save(step, state(step), metadata={"epoch": epoch})
    os.rename(tmp_path / "run" / "e9-1", tmp_path / "away")
    for step, epoch in ((2, 2), (1, 1)):
        manager.save(step, state(10 + step), metadata={"epoch": epoch})

    os.rename(tmp_path / "away", tmp_path / "run" / "e9-1")

    assert [(info.step, info.name) for info in manager.steps()] == [(0, "e0-0"), (2, "e2-2"), (1, "e1-1")]
    assert manager.restore(1).state["epoch"] == 11


def test_a_step_is_not_found_although_another_one_is_damaged(manager):
    for step in (1, 2, 3):
        manager.save(step, state(step))
    damage_record(manager, 3)

    with pytest.raises(StepNotFoundError, match=r"step 7 is not committed .* \(committed: 2, 1\)"):
        manager.restore(7)
    with pytest.raises(CorruptCheckpointError, match="step-00000003"):
        manager.restore(3)


def test_a_checkpoint_that_is_overwritten_while_it_is_open_says_so(manager):
    manager.save(1, state(1))
    checkpoint = manager.open(1)
    manager.save(1, state(2), overwrite=True)

    with pytest.raises(StepNotFoundError, match="deleted or overwritten"):
        checkpoint.read("model/w")


def test_a_checkpoint_that_is_deleted_while_another_save_claims_its_step_says_so(manager):
    manager.save(1, state(1))
    checkpoint = manager.open(1)
    commit.begin(manager.folder, "step-00000001", 1, overwrite=True)
    manager.delete(1)

    with pytest.raises(StepNotFoundError, match="deleted or overwritten"):
        checkpoint.read("model/w")


def test_each_damaged_step_is_warned_about_once(manager):
    for step in (1, 2, 3):
        manager.save(step, state(step))
    (Path(manager.path(2)) / "tree.json").unlink()
    damage_record(manager, 3)

    with pytest.warns(RuntimeWarning) as warned:
        restored = manager.restore()

    assert [entry.step for entry in restored.report.skipped] == [3, 2]
    assert len(warned) == 2


def test_an_unsafe_step_is_skipped_and_an_error_of_the_storage_is_not(manager):
    for step in (1, 2):
        manager.save(step, state(step))
    run = Run(manager.folder, manager.naming)

    def use(checkpoint, error):
        if checkpoint.info.step == 2:
            raise error
        return checkpoint.info.step

    with pytest.warns(RuntimeWarning, match="step 2 is skipped: a link"):
        found, skipped = run.with_newest("full", lambda it: use(it, UnsafeCheckpointError("a link")), stacklevel=1)
    assert (found, [entry.step for entry in skipped]) == (1, [2])
    with pytest.raises(OSError, match="disk"):
        run.with_newest("full", lambda it: use(it, OSError(5, "disk")), stacklevel=1)


def test_when_no_step_is_good_the_error_is_of_the_newest(manager):
    for step in (1, 2):
        manager.save(step, state(step))
        (Path(manager.path(step)) / "tree.json").unlink()

    with pytest.warns(RuntimeWarning), pytest.raises(CorruptCheckpointError, match=r"\(2, 1\)") as caught:
        manager.restore()

    assert caught.value.step == 2
