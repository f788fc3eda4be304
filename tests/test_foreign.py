"""Runs that other tools wrote: what is found in them, in which order, and that nothing of them is ever changed."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pointing import PointingBackend, write_foreign
from runs import files, state
from safetensors.numpy import save_file

from ckptmgr import (
    CheckpointManager,
    CorruptCheckpointError,
    KeepLast,
    MissingDependencyError,
    StepExistsError,
    StepNaming,
    StepNotFoundError,
    backend,
)
from ckptmgr.storage import PosixStore


@pytest.fixture
def manager(tmp_path) -> CheckpointManager:
    return CheckpointManager(tmp_path, backend=PointingBackend())


def steps(manager: CheckpointManager) -> list[int]:
    return [info.step for info in manager.steps()]


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files(folder)}


def test_checkpoints_of_an_installed_format_are_steps(tmp_path):
    save_file({"w": np.full(3, 5.0)}, tmp_path / "ckpt-5.safetensors")

    (info,) = CheckpointManager(tmp_path).steps()

    assert (info.step, info.name, info.backend, info.is_foreign) == (5, "ckpt-5", "safetensors", True)
    assert (info.attempt, info.run, dict(info.metrics), dict(info.metadata), info.pins) == ("", "", {}, {}, frozenset())
    assert info.path == str(tmp_path / "ckpt-5")
    assert info.nbytes == (tmp_path / "ckpt-5.safetensors").stat().st_size


def test_a_committed_step_is_not_foreign(manager):
    manager.save(1, state(1))

    assert not manager.latest().is_foreign


def test_time_and_size_are_of_all_files_of_the_set(manager, tmp_path):
    write_foreign(tmp_path, "ckpt-5", {"w": np.zeros(4)})
    times = [(tmp_path / name).stat().st_ctime for name in ("ckpt-5.bin", "ckpt-5.idx")]

    info = manager.latest()

    assert info.created == datetime.fromtimestamp(max(times), UTC)
    assert info.nbytes == 32 + (tmp_path / "ckpt-5.idx").stat().st_size


@pytest.mark.parametrize(
    ("stem", "step"), [("ckpt-5", 5), ("cp-0010.ckpt", 10), ("123", 123), ("step_7", 7), ("mine-0009", 9), ("epoch=1-step=4", 4)]
)
def test_the_stem_means_the_step_by_the_runs_naming_or_a_usual_one(tmp_path, stem, step):
    write_foreign(tmp_path, stem, {"w": np.zeros(1)})

    manager = CheckpointManager(tmp_path, backend=PointingBackend(), naming=StepNaming("mine-{step:04d}"))

    assert steps(manager) == [step]


@pytest.mark.parametrize("stem", ["model", "ckpt-5-backup", "cp.ckpt", "odd\x07-5"])
def test_a_stem_that_means_no_step_or_cannot_be_shown_is_none(tmp_path, stem):
    write_foreign(tmp_path, stem, {"w": np.zeros(1)})

    assert steps(CheckpointManager(tmp_path, backend=PointingBackend(), naming=StepNaming("odd{tag}-{step}"))) == []


def test_the_own_naming_goes_before_the_usual_ones(tmp_path):
    write_foreign(tmp_path, "epoch_3_step_9", {"w": np.zeros(1)})

    manager = CheckpointManager(tmp_path, backend=PointingBackend(), naming=StepNaming("epoch_{step}_step_9"))

    assert steps(manager) == [3]


def test_a_set_without_its_last_file_is_no_step(manager, tmp_path):
    write_foreign(tmp_path, "ckpt-5", {"w": np.zeros(1)})
    (tmp_path / "ckpt-5.idx").unlink()

    assert manager.steps() == []


def test_files_in_folders_are_not_looked_at(manager, tmp_path):
    write_foreign(tmp_path / "sub", "ckpt-5", {"w": np.zeros(1)})

    assert manager.steps() == []


def test_without_hints_the_order_is_that_of_the_steps(manager, tmp_path):
    for step in (30, 9, 200):
        write_foreign(tmp_path, f"ckpt-{step}", {"w": np.zeros(1)})

    assert steps(manager) == [9, 30, 200]
    assert [info.sequence for info in manager.steps()] == [-3, -2, -1]


def test_what_hints_name_comes_last_in_their_order(manager, tmp_path):
    for step in (1, 2, 3, 4):
        write_foreign(tmp_path, f"ckpt-{step}", {"w": np.zeros(1)})
    (tmp_path / "latest").write_text("ckpt-3\ngone-7\nckpt-1\n")

    assert steps(manager) == [2, 4, 3, 1]
    assert manager.latest().step == 1
    assert manager.restore().step == 1


def test_all_steps_of_other_tools_are_older_than_all_of_ours(manager, tmp_path):
    manager.save(1, state(1))
    write_foreign(tmp_path, "ckpt-99", {"w": np.zeros(1)})
    manager.save(2, state(2))

    assert steps(manager) == [99, 1, 2]
    assert sorted(manager.steps(), key=lambda info: info.order) == manager.steps()


def test_a_committed_step_hides_the_one_of_another_tool(manager, tmp_path):
    write_foreign(tmp_path, "ckpt-1", {"w": np.zeros(1)})
    manager.save(1, state(1), overwrite=True)

    assert [info.is_foreign for info in manager.steps()] == [False]
    assert manager.restore(1).state["epoch"] == 1


def test_a_damaged_record_hides_it_too(manager, tmp_path):
    manager.save(1, state(1))
    write_foreign(tmp_path, "ckpt-1", {"w": np.zeros(1)})
    (Path(manager.path(1)).parent / "manifest.json").write_bytes(b"{}")

    assert manager.steps() == []
    with pytest.raises(CorruptCheckpointError, match="manifest"):
        manager.restore(1)


def test_of_two_for_one_step_the_one_that_hints_name_counts_and_a_warning_is_logged_once(manager, tmp_path, caplog):
    for stem in ("ckpt-5", "step-5"):
        write_foreign(tmp_path, stem, {"w": np.zeros(1)})
    (tmp_path / "latest").write_text("ckpt-5\n")

    (info,) = manager.steps()

    assert info.name == "ckpt-5"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "'step-5' (fake) and as 'ckpt-5' (fake): the latter is taken" in caplog.text


def test_of_two_for_one_step_the_one_that_counts_has_its_own_place_in_the_order(manager, tmp_path):
    for stem in ("ckpt-5", "ckpt-7", "step-5"):
        write_foreign(tmp_path, stem, {"w": np.zeros(1)})
    (tmp_path / "latest").write_text("step-5\n")

    assert [info.name for info in manager.steps()] == ["ckpt-7", "step-5"]


def test_of_two_for_one_step_without_hints_the_last_by_name_counts(manager, tmp_path):
    for stem in ("step-5", "ckpt-5"):
        write_foreign(tmp_path, stem, {"w": np.zeros(1)})

    assert manager.latest().name == "step-5"


def test_a_step_of_another_tool_restores_and_says_what_it_is(manager, tmp_path):
    write_foreign(tmp_path, "ckpt-5", {"w": np.arange(3), "b": np.float32(7)})
    w = np.zeros(3, np.int64)

    restored = manager.restore(into={"w": w, "b": 0.0})

    assert (restored.step, restored.info.is_foreign, restored.state["b"]) == (5, True, 7.0)
    assert restored.state["w"] is w
    assert w.tolist() == [0, 1, 2]


def test_training_goes_on_from_the_latest_of_another_tool(manager, tmp_path):
    for step in (5, 10):
        write_foreign(tmp_path, f"ckpt-{step}", {"w": np.full(2, step)})

    step, mine = manager.restore_or_initialize({"w": np.zeros(2, np.int64)})

    assert (step, mine["w"].tolist()) == (10, [10, 10])


def test_the_run_id_is_not_taken_from_another_tool(manager, tmp_path):
    write_foreign(tmp_path, "ckpt-5", {"w": np.zeros(1)})
    manager.restore()

    assert len(manager.save(6, state(6)).run) == 16


def test_open_verify_and_path_work_on_it(manager, tmp_path):
    write_foreign(tmp_path, "ckpt-5", {"w": np.arange(3)})

    with manager.open(5) as checkpoint:
        assert checkpoint.read("w").tolist() == [0, 1, 2]
        assert checkpoint.info.step == 5
    assert manager.path(5) == str(tmp_path / "ckpt-5")
    assert manager.best("loss") is None
    report = manager.verify()
    assert (report.ok, report.steps) == (True, (5,))


def test_verify_names_the_damaged_tensor(manager, tmp_path):
    write_foreign(tmp_path, "ckpt-5", {"v": np.zeros(3), "w": np.zeros(3)})
    with (tmp_path / "ckpt-5.bin").open("r+b") as file:
        file.seek(30)
        file.write(b"x")

    report = manager.verify()

    assert [(step, problem.tensor) for step, problem in report.problems] == [(5, "w")]


def test_a_damaged_newest_one_is_skipped_with_a_warning(manager, tmp_path):
    for step in (1, 2):
        write_foreign(tmp_path, f"ckpt-{step}", {"w": np.full(2, step)})
    (tmp_path / "ckpt-2.idx").write_text("nonsense")

    with pytest.warns(RuntimeWarning, match="step 2 is skipped"):
        restored = manager.restore()

    assert (restored.step, [entry.step for entry in restored.report.skipped]) == (1, [2])
    with pytest.raises(CorruptCheckpointError) as caught:
        manager.restore(2)
    assert caught.value.step == 2


def test_one_that_lacks_a_file_is_damaged(tmp_path):
    class Strict(PointingBackend):
        def open(self, folder, path):
            if folder.head(path.removesuffix(".idx") + ".bin") is None:
                raise FileNotFoundError("no data")
            return super().open(folder, path)

    write_foreign(tmp_path, "ckpt-5", {"w": np.zeros(3)})
    (tmp_path / "ckpt-5.bin").unlink()

    with pytest.raises(CorruptCheckpointError, match=r"step 5, .*ckpt-5' of another tool, is not whole: no data"):
        CheckpointManager(tmp_path, backend=Strict()).restore(5)


def test_one_that_goes_while_it_is_read_gives_way_to_what_is_newest_then(manager, tmp_path, monkeypatch):
    for step in (1, 2):
        write_foreign(tmp_path, f"ckpt-{step}", {"w": np.full(2, step)})
    read = PosixStore._open

    def slow(self, key):
        if key == "ckpt-2.bin":
            (tmp_path / "ckpt-2.idx").unlink(missing_ok=True)
            (tmp_path / "ckpt-2.bin").unlink(missing_ok=True)
        return read(self, key)

    monkeypatch.setattr(PosixStore, "_open", slow)
    assert manager.restore().step == 1


def test_one_that_is_adopted_while_it_is_read_is_read_as_ours(manager, tmp_path, monkeypatch):
    write_foreign(tmp_path, "ckpt-1", {"w": np.full(2, 1)})
    read, once = PosixStore._open, [1]

    def slow(self, key):
        if key == "ckpt-1.bin" and once and once.pop():
            manager.adopt()
        return read(self, key)

    monkeypatch.setattr(PosixStore, "_open", slow)
    restored = manager.restore(1)
    assert (restored.state["w"].tolist(), restored.info.is_foreign) == ([1, 1], False)


@pytest.mark.parametrize("call", ["delete", "pin", "unpin"])
def test_what_changes_a_step_refuses_and_says_to_adopt_it(manager, tmp_path, call):
    write_foreign(tmp_path, "ckpt-5", {"w": np.zeros(1)})
    before = contents(tmp_path)
    names = [] if call == "delete" else ["paper"]

    with pytest.raises(StepNotFoundError, match=r"ckpt-5' is of another tool .* adopt\(5\)") as caught:
        getattr(manager, call)(5, *names)

    assert caught.value.step == 5
    assert contents(tmp_path) == before


def test_retention_neither_drops_nor_counts_them(tmp_path):
    for step in (1, 2, 3):
        write_foreign(tmp_path, f"ckpt-{step}", {"w": np.zeros(1)})
    manager = CheckpointManager(tmp_path, retention=KeepLast(2))

    for step in (4, 5, 6):
        manager.save(step, state(step))

    assert [info.step for info in manager.plan().kept] == [5, 6]
    assert [info.step for info in CheckpointManager(tmp_path, backend=PointingBackend()).steps()] == [1, 2, 3, 5, 6]


def test_sweep_leaves_them(manager, tmp_path):
    write_foreign(tmp_path, "ckpt-5", {"w": np.zeros(1)})
    write_foreign(tmp_path, "ckpt-6", {"w": np.zeros(1)})
    (tmp_path / "ckpt-6.idx").unlink()
    before = contents(tmp_path)

    manager.sweep(grace=0)

    assert contents(tmp_path) == before


def test_saving_its_number_is_refused_before_anything_is_written(manager, tmp_path):
    write_foreign(tmp_path, "ckpt-5", {"w": np.zeros(1)})
    before = contents(tmp_path)

    with pytest.raises(
        StepExistsError, match=r"step 5 is there already, as .*ckpt-5' of another tool: adopt it, pass over"
    ) as caught:
        manager.save(5, state(5))

    assert caught.value.step == 5
    assert contents(tmp_path) == before


def test_overwriting_its_number_leaves_its_files_and_deleting_ours_shows_them_again(manager, tmp_path):
    write_foreign(tmp_path, "ckpt-5", {"w": np.zeros(1)})
    before = contents(tmp_path)

    manager.save(5, state(5), overwrite=True)

    assert contents(tmp_path).items() >= before.items()
    manager.delete(5)
    assert [info.is_foreign for info in manager.steps()] == [True]


def test_a_step_that_is_not_there_names_theirs_too(manager, tmp_path):
    for step in (5, 10):
        write_foreign(tmp_path, f"ckpt-{step}", {"w": np.zeros(1)})

    with pytest.raises(StepNotFoundError, match=r"\(committed: none; of other tools: 5, 10\)"):
        manager.restore(7)


def test_a_backend_that_cannot_be_imported_is_passed_over(tmp_path, monkeypatch, caplog):
    save_file({"w": np.zeros(3)}, tmp_path / "ckpt-5.safetensors")
    find = backend.find

    def partly(name):
        if name == "lacking":
            raise MissingDependencyError("pip install it")
        return find(name)

    monkeypatch.setattr(backend, "available", lambda: ["lacking", "safetensors"])
    monkeypatch.setattr(backend, "find", partly)
    assert steps(CheckpointManager(tmp_path)) == [5]
    assert caplog.records == []


def test_a_run_of_ours_is_listed_once_for_both(manager, tmp_path, monkeypatch):
    manager.save(1, state(1))
    write_foreign(tmp_path, "ckpt-5", {"w": np.zeros(1)})
    listed = []
    list_ = PosixStore.list
    monkeypatch.setattr(PosixStore, "list", lambda self, prefix: listed.append(prefix) or list_(self, prefix))

    manager.steps()

    assert listed == [""]


def test_without_files_in_the_folder_no_backend_is_asked(tmp_path, monkeypatch):
    manager = CheckpointManager(tmp_path)
    manager.save(1, state(1))
    monkeypatch.setattr(backend, "available", lambda: pytest.fail("backends were looked for"))

    assert steps(manager) == [1]
