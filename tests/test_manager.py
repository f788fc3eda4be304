"""`CheckpointManager`: what a user sees of saves, restores, retention and errors, on local disk."""

import math
from datetime import timedelta
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from runs import files, state

from ckptmgr import (
    CheckpointManager,
    KeepBest,
    KeepLast,
    Solo,
    StepExistsError,
    StepNaming,
    UnsupportedLeafError,
    UnsupportedTensorError,
    commit,
)


def manager(tmp_path) -> CheckpointManager:
    return CheckpointManager(tmp_path / "run")


def test_a_saved_step_comes_back_bit_exact(manager):
    info = manager.save(7, state(7), metrics={"loss": 0.5}, metadata={"git": "abc"})

    restored = manager.restore()

    assert restored.step == 7
    assert restored.state["epoch"] == 7
    assert restored.state["note"] == "é"
    np.testing.assert_array_equal(restored.state["model"]["w"], np.full((4, 3), 7, np.float32))
    assert restored.state["model"]["b"].dtype == np.arange(3).dtype
    assert restored.info == info
    assert restored.info.metrics == {"loss": 0.5}
    assert restored.info.metadata == {"git": "abc"}


def test_a_run_is_created_by_its_first_save_and_not_before(tmp_path):
    manager = CheckpointManager(tmp_path / "deep" / "run")

    assert manager.steps() == []
    assert manager.latest() is None
    assert manager.plan().kept == []
    assert not (tmp_path / "deep").exists()
    manager.save(0, {})
    assert [info.step for info in manager.steps()] == [0]


def test_an_empty_state_and_an_empty_tensor_are_states_like_others(manager):
    manager.save(1, {})
    manager.save(2, {"nothing": np.zeros((0, 3), np.int8)})

    assert manager.restore(1).state == {}
    assert manager.restore(2).state["nothing"].shape == (0, 3)
    assert manager.verify().ok


def test_saving_a_committed_step_again_is_refused_and_changes_nothing(manager, tmp_path):
    manager.save(3, state(3))
    before = {name: (tmp_path / "run" / name).read_bytes() for name in files(tmp_path / "run")}

    with pytest.raises(StepExistsError, match="3"):
        manager.save(3, state(4))

    assert {name: (tmp_path / "run" / name).read_bytes() for name in files(tmp_path / "run")} == before


def test_overwrite_replaces_the_step_and_leaves_no_file_of_the_old_one(manager, tmp_path):
    manager.save(3, state(3))
    manager.save(3, state(4), overwrite=True)

    assert manager.restore(3).state["epoch"] == 4
    assert len([name for name in files(tmp_path / "run") if name.endswith(".safetensors")]) == 1


def test_retention_keeps_the_newest_although_an_old_run_has_higher_steps(tmp_path):
    CheckpointManager(tmp_path).save(900, state(900))
    fresh = CheckpointManager(tmp_path, retention=KeepLast(1))

    fresh.save(10, state(10))

    assert [info.step for info in fresh.steps()] == [10]


def test_a_pinned_step_survives_retention_until_it_is_unpinned(tmp_path):
    manager = CheckpointManager(tmp_path, retention=KeepLast(1))
    manager.save(1, state(1))
    manager.pin(1, "paper")
    manager.save(2, state(2))
    assert [info.step for info in manager.steps()] == [1, 2]

    manager.unpin(1, "paper")
    manager.collect()

    assert [info.step for info in manager.steps()] == [2]


def test_the_plan_says_why_and_collect_does_exactly_that(tmp_path):
    for step, loss in enumerate([0.5, math.nan, 0.2, 0.9]):
        CheckpointManager(tmp_path).save(step, state(step), metrics={"loss": loss})
    manager = CheckpointManager(tmp_path, retention=KeepBest("loss", n=1, mode="min"))

    plan = manager.plan()
    done = manager.collect()

    assert [info.step for info in plan.kept] == [2, 3]
    assert all(verdict.reasons for verdict in plan)
    assert [info.step for info in done.dropped] == [0, 1]
    assert [info.step for info in manager.steps()] == [2, 3]


def test_metrics_survive_as_they_are(manager):
    values = {"nan": math.nan, "inf": math.inf, "tiny": 5e-324, "numpy": np.float32(0.1)}
    manager.save(1, {}, metrics=values)

    metrics = CheckpointManager(manager.folder.location()).latest().metrics

    assert math.isnan(metrics["nan"])
    assert metrics["inf"] == math.inf
    assert metrics["tiny"] == 5e-324
    assert metrics["numpy"] == float(np.float32(0.1))


@pytest.mark.parametrize("bad", ["high", "0.5", None, 1j, np.zeros(2)])
def test_a_metric_that_is_no_number_is_refused_before_anything_is_written(manager, tmp_path, bad):
    with pytest.raises(TypeError, match="'loss'"):
        manager.save(1, {}, metrics={"loss": bad})

    assert files(tmp_path) == set()


@pytest.mark.parametrize("bad", [-1, 1.5, "7", True])
def test_a_step_must_be_a_whole_number(manager, bad):
    with pytest.raises((TypeError, ValueError)):
        manager.save(bad, {})


def test_a_step_of_a_quintillion_is_a_step(manager):
    manager.save(10**18, state(1))

    assert manager.latest().step == 10**18
    assert manager.restore(10**18).state["epoch"] == 1


def test_an_unsupported_leaf_is_named_and_nothing_is_written(manager, tmp_path):
    with pytest.raises(UnsupportedLeafError, match="model/callback"):
        manager.save(1, {"model": {"callback": lambda: None}})
    with pytest.raises(UnsupportedTensorError, match="phase"):
        manager.save(1, {"phase": np.zeros(2, np.complex128)})

    assert files(tmp_path) == set()


def test_assets_lie_beside_the_state_and_are_verified(manager, tmp_path):
    (tmp_path / "vocab.txt").write_text("a b c")
    manager.save(1, state(1), assets={"config.json": b"{}", "vocab.txt": tmp_path / "vocab.txt"})

    with manager.open(1) as checkpoint:
        assert sorted(checkpoint.assets) == ["config.json", "vocab.txt"]
        assert checkpoint.asset("vocab.txt") == b"a b c"
        with pytest.raises(KeyError, match="nothing"):
            checkpoint.asset("nothing")
    assert (Path(manager.path(1)) / "config.json").read_bytes() == b"{}"


@pytest.mark.parametrize("name", ["tree.json", "model.safetensors", "../up", "a/b", "", ".hidden\0"])
def test_an_asset_cannot_take_a_name_that_is_ours_or_leave_the_folder(manager, name):
    with pytest.raises(ValueError, match=r"^asset name"):
        manager.save(1, state(1), assets={name: b"x"})


@pytest.mark.parametrize("asset", [5, {"a": 1}, None])
def test_an_asset_that_is_neither_bytes_nor_a_path_is_refused(manager, asset):
    with pytest.raises(TypeError, match=r"'config\.json' must be bytes"):
        manager.save(1, state(1), assets={"config.json": asset})


@pytest.mark.parametrize("wrong", [{"retention": 3}, {"naming": "ckpt-{step}"}])
def test_a_policy_or_naming_that_is_none_is_refused_before_training_starts(tmp_path, wrong):
    with pytest.raises(TypeError, match=f"{next(iter(wrong))} must be a"):
        CheckpointManager(tmp_path, **wrong)


def test_a_class_with_a_state_makes_the_initial_state(manager):
    class Counter:
        value = 7

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state):
            self.value = state["value"]

    manager.save(1, Counter())
    Counter.value = 0

    assert manager.restore_or_initialize(Counter)[1].value == 7


def test_reports_are_short_when_printed(manager):
    manager.save(1, state(1))

    assert repr(manager.restore()) == "<Restored step 1: dict, 4 filled>"
    assert str(manager.verify()) == "step 1: ok"


def test_files_of_a_step_open_in_the_formats_own_library(tmp_path):
    from safetensors.numpy import load_file

    manager = CheckpointManager(tmp_path, max_file_nbytes=200)
    manager.save(1, {f"w{i}": np.full(10, i, np.float64) for i in range(5)})

    folder = Path(manager.path(1))
    loaded = {name: array for path in folder.glob("model-*.safetensors") for name, array in load_file(path).items()}

    assert sorted(path.name for path in folder.glob("*.index.json")) == ["model.safetensors.index.json"]
    assert sorted(loaded) == [f"w{i}" for i in range(5)]
    assert manager.restore(1).state["w3"][0] == 3


def test_deleting_a_step_removes_its_folder_and_nothing_else(manager, tmp_path):
    for step in (1, 2):
        manager.save(step, state(step))

    manager.delete(1)

    assert [info.step for info in manager.steps()] == [2]
    assert not (tmp_path / "run" / "step-00000001").exists()


def test_a_step_whose_record_is_damaged_can_be_deleted_or_overwritten(manager, tmp_path):
    for step in (1, 2):
        manager.save(step, state(step))
        record = tmp_path / "run" / f"step-{step:08d}" / "manifest.json"
        record.write_bytes(record.read_bytes().replace(b'"step"', b'"stop"'))
    assert manager.steps() == []
    assert not manager.verify().ok

    manager.delete(1)
    manager.save(2, state(20), overwrite=True)
    manager.sweep(grace=0)

    assert [info.step for info in manager.steps()] == [2]
    assert manager.restore().state["epoch"] == 20
    assert not (tmp_path / "run" / "step-00000001").exists()


def test_foreign_files_are_neither_counted_nor_deleted(manager, tmp_path):
    manager.save(1, state(1))
    foreign = [
        "notes.txt",
        "step-00000009/model.bin",
        "step-abc/x",
        "step-00000001/mine.txt",
        "step-00000001-backup/manifest.json",
    ]
    for name in foreign:
        path = tmp_path / "run" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")

    manager.sweep(grace=0)
    manager.delete(1)

    assert manager.steps() == []
    assert all((tmp_path / "run" / name).read_text() == "mine" for name in foreign)


def test_other_placeholders_in_names_come_from_metadata(tmp_path):
    manager = CheckpointManager(tmp_path, naming=StepNaming("epoch-{epoch:02d}-step-{step}"))
    manager.save(40, state(40), metadata={"epoch": 2})

    assert (tmp_path / "epoch-02-step-40").is_dir()
    assert manager.restore(40).state["epoch"] == 40
    manager.delete(40)
    assert manager.steps() == []


def test_a_state_of_20000_tensors_comes_back(manager):
    big = {f"block/{i}": np.full(i % 7, i, np.int32) for i in range(20_000)}
    manager.save(1, big)

    restored = manager.restore(1).state

    assert list(restored) == list(big)
    assert all(np.array_equal(restored[name], big[name]) for name in big)


def test_progress_reaches_the_total(tmp_path):
    seen: list[tuple[int, int]] = []
    manager = CheckpointManager(tmp_path, progress=lambda done, total: seen.append((done, total)))

    manager.save(1, {"w": np.zeros(1 << 20, ml_dtypes.bfloat16)})
    manager.restore()

    assert seen[-1][0] == seen[-1][1] >= 1 << 21


def test_a_retention_error_after_the_commit_says_that_the_step_is_committed(tmp_path, monkeypatch):
    manager = CheckpointManager(tmp_path, retention=KeepLast(1))
    manager.save(1, state(1))
    monkeypatch.setattr(type(manager.folder.store), "remove", _raise_eio)

    with pytest.raises(OSError, match="disk") as caught:
        manager.save(2, state(2))

    assert any("step 2 is committed" in note for note in caught.value.__notes__)
    assert manager.restore().step == 2


def _raise_eio(*_: object) -> None:
    raise OSError(5, "disk")


def test_sweep_spares_what_shows_signs_of_life(manager, tmp_path):
    manager.save(1, state(1))
    attempt = commit.begin(manager.folder, "step-00000002", 2, overwrite=False)
    attempt.folder.write("model.safetensors", b"half")

    manager.sweep(grace=timedelta(hours=1))
    assert (tmp_path / "run" / "step-00000002").exists()
    manager.sweep(grace=0)

    assert not (tmp_path / "run" / "step-00000002").exists()
    assert manager.restore().step == 1


def test_run_files_of_a_backend_are_written_after_commit_and_collect(tmp_path):
    from ckptmgr_safetensors import SafetensorsBackend

    class Pointing(SafetensorsBackend):
        def run_files(self, steps):
            return {"latest": str(steps[-1][1].step).encode() if steps else b"none"}

        def run_order(self, folder):
            return []

    manager = CheckpointManager(tmp_path, backend=Pointing(), retention=KeepLast(1))
    for step in (1, 2):
        manager.save(step, state(step))
    assert (tmp_path / "latest").read_bytes() == b"2"

    manager.delete(2)

    assert (tmp_path / "latest").read_bytes() == b"none"


def test_a_step_saved_again_under_other_metadata_in_its_name_is_the_same_step(tmp_path):
    manager = CheckpointManager(tmp_path, naming=StepNaming("epoch-{epoch}-step-{step}"))
    manager.save(40, state(1), metadata={"epoch": 2})

    with pytest.raises(StepExistsError):
        manager.save(40, state(2), metadata={"epoch": 3})
    manager.save(40, state(3), metadata={"epoch": 3}, overwrite=True)

    assert [path.name for path in tmp_path.glob("epoch-*")] == ["epoch-2-step-40"]
    assert manager.restore(40).state["epoch"] == 3
    assert manager.latest().metadata == {"epoch": 3}


def test_a_group_of_several_processes_is_refused_until_it_can_save(tmp_path):
    class Pair(Solo):
        size = 2

    with pytest.raises(ValueError, match="group of 2"):
        CheckpointManager(tmp_path, group=Pair())


@pytest.mark.parametrize("error", [OSError(28, "disk full"), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
def test_a_save_that_fails_while_it_writes_leaves_nothing_behind(manager, tmp_path, monkeypatch, error):
    manager.save(1, state(1))
    before = files(tmp_path / "run")

    def fail(*_):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("ckptmgr.treefile.encode", fail)
        with pytest.raises(type(error)):
            manager.save(2, state(2))

    assert files(tmp_path / "run") == before
    assert manager.sweep(grace=0).files == 0
    manager.save(2, state(2))
    assert manager.restore().step == 2
