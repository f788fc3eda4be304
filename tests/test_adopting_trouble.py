"""What is not adopted, and what an adoption leaves: damage, files that change meanwhile, leavings of an interruption."""

import threading
from pathlib import Path

import numpy as np
import pytest
from pointing import PointingBackend, write_foreign
from runs import files, state

from ckptmgr import (
    CheckpointManager,
    CorruptCheckpointError,
    SaveError,
    StepExistsError,
    StepNotFoundError,
    UnsafeCheckpointError,
)
from ckptmgr.storage import PosixStore


@pytest.fixture
def manager(tmp_path) -> CheckpointManager:
    return CheckpointManager(tmp_path, backend=PointingBackend())


def originals(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name[0] != ".")


@pytest.mark.parametrize("decoded", [[], ["w"]], ids=["raw", "decoded"])
def test_a_damaged_tensor_is_not_adopted_and_stays_as_it_is(manager, tmp_path, decoded):
    write_foreign(tmp_path, "ckpt-5", {"v": np.zeros(3), "w": np.zeros(3)}, decoded=decoded)
    raw = (tmp_path / "ckpt-5.bin").read_bytes()[:-1] + b"x"
    (tmp_path / "ckpt-5.bin").write_bytes(raw)

    with pytest.raises(CorruptCheckpointError) as caught:
        manager.adopt(5)

    assert caught.value.tensor == "w"
    assert (tmp_path / "ckpt-5.bin").read_bytes() == raw
    assert files(tmp_path) == {"ckpt-5.bin", "ckpt-5.idx"}


def test_what_reads_differently_in_a_copy_is_not_adopted(tmp_path):
    class Moody(PointingBackend):
        def open(self, folder, path):
            source = super().open(folder, path)
            if folder.prefix:
                source.aliases = {"v": "w"}
            return source

    write_foreign(tmp_path, "ckpt-5", {"w": np.zeros(3)})

    with pytest.raises(CorruptCheckpointError, match="reads differently in a copy"):
        CheckpointManager(tmp_path, backend=Moody()).adopt(5)
    assert files(tmp_path) == {"ckpt-5.bin", "ckpt-5.idx"}


def test_of_all_a_damaged_one_is_warned_about_and_left(manager, tmp_path):
    for step in (1, 2, 3):
        write_foreign(tmp_path, f"ckpt-{step}", {"w": np.full(2, step)})
    (tmp_path / "ckpt-2.idx").write_text("nonsense")

    with pytest.warns(RuntimeWarning, match="step 2 is not adopted") as warned:
        adopted = manager.adopt()

    assert warned[0].filename == __file__
    assert [info.step for info in adopted] == [1, 3]
    assert (tmp_path / "ckpt-2.bin").exists()


def test_tensors_that_share_bytes_are_refused(manager, tmp_path):
    write_foreign(tmp_path, "ckpt-5", {"v": np.zeros(3), "w": np.zeros(3)}, has_sums=False)
    index = (tmp_path / "ckpt-5.idx").read_text()
    (tmp_path / "ckpt-5.idx").write_text(index.replace(", 24, ", ", 23, "))

    with pytest.raises(CorruptCheckpointError, match="'w' bytes that it cannot have"):
        manager.adopt(5)


def test_tensors_in_files_of_no_other_set_are_refused(manager, tmp_path):
    write_foreign(tmp_path, "ckpt-5", {"w": np.zeros(3)}, elsewhere={"w": "other.bin"})
    (tmp_path / "other.bin").write_bytes(bytes(24))

    with pytest.raises(UnsafeCheckpointError, match=r"tensor 'w' in .*other\.bin"):
        manager.adopt(5)


def test_a_step_that_is_not_there_is_not_found(manager):
    with pytest.raises(StepNotFoundError, match="step 5 is not committed"):
        manager.adopt(5)


def test_a_committed_step_of_ours_is_not_adopted(manager):
    manager.save(5, state(5))

    with pytest.raises(StepExistsError, match="nothing to adopt"):
        manager.adopt(5)


def test_a_step_saved_over_that_of_another_tool_hides_it_from_adoption(manager, tmp_path):
    write_foreign(tmp_path, "ckpt-5", {"w": np.zeros(1)})
    manager.save(5, state(5), overwrite=True)

    assert manager.adopt() == []
    assert (tmp_path / "ckpt-5.idx").exists()


def test_adopting_twice_gives_the_step_again(manager, tmp_path):
    write_foreign(tmp_path, "ckpt-5", {"w": np.zeros(1)})

    assert manager.adopt(5) == manager.adopt(5)
    assert manager.adopt() == []


@pytest.mark.parametrize("left", [["ckpt-5.bin"], ["ckpt-5.bin", "ckpt-5.idx"]])
def test_what_an_interrupted_adoption_left_goes_when_it_is_adopted_again(manager, tmp_path, left):
    write_foreign(tmp_path, "ckpt-5", {"w": np.arange(3)})
    kept = {name: (tmp_path / name).read_bytes() for name in left}
    manager.adopt()
    for name, data in kept.items():
        (tmp_path / name).write_bytes(data)

    assert manager.adopt() == []

    assert originals(tmp_path) == ["latest"]
    assert manager.verify(5).ok


def test_files_that_have_changed_since_are_left_and_told_of(manager, tmp_path, caplog):
    write_foreign(tmp_path, "ckpt-5", {"w": np.arange(3)})
    manager.adopt()
    write_foreign(tmp_path, "ckpt-5", {"w": np.arange(3) + 1})

    manager.adopt(5)

    assert originals(tmp_path) == ["ckpt-5.bin", "ckpt-5.idx", "latest"]
    assert "not what was adopted as step 5" in caplog.text


def test_files_that_change_before_they_are_deleted_are_left(manager, tmp_path, monkeypatch, caplog):
    write_foreign(tmp_path, "ckpt-5", {"w": np.arange(3)})
    monkeypatch.setattr(type(manager._hints), "refresh", lambda self: (tmp_path / "ckpt-5.bin").write_bytes(b"new"))

    manager.adopt()

    assert (tmp_path / "ckpt-5.bin").read_bytes() == b"new"
    assert "has changed since it was adopted as step 5" in caplog.text
    assert manager.restore(5).state["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("change", ["rewritten", "gone"])
def test_files_that_change_while_they_are_copied_are_not_committed(manager, tmp_path, monkeypatch, change):
    write_foreign(tmp_path, "ckpt-5", {"w": np.arange(3)}, has_sums=False)
    read = PosixStore._open

    def slow(self, key):
        if key == "ckpt-5.bin":
            (tmp_path / key).unlink(missing_ok=True)
            if change == "rewritten":
                (tmp_path / key).write_bytes(bytes(24))
        return read(self, key)

    monkeypatch.setattr(PosixStore, "_open", slow)
    with pytest.raises(StepNotFoundError, match="replaced while"):
        manager.adopt(5)
    assert not list(tmp_path.glob("step-*"))
    assert (tmp_path / "ckpt-5.idx").exists()


def test_two_who_adopt_at_once_lose_nothing(tmp_path):
    for step in range(1, 9):
        write_foreign(tmp_path, f"ckpt-{step}", {"w": np.full(50, step)})
    trouble: list[BaseException] = []

    def adopt() -> None:
        try:
            CheckpointManager(tmp_path, backend=PointingBackend()).adopt()
        except SaveError:  # the claim of a step was taken over: the other one has it
            pass
        except BaseException as error:  # noqa: BLE001 - told by the assertion below
            trouble.append(error)

    threads = [threading.Thread(target=adopt) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    manager = CheckpointManager(tmp_path, backend=PointingBackend())
    manager.adopt()

    assert trouble == []
    assert [(info.step, info.is_foreign) for info in manager.steps()] == [(step, False) for step in range(1, 9)]
    assert all((manager.restore(step).state["w"] == step).all() for step in range(1, 9))
    assert originals(tmp_path) == ["latest"]
