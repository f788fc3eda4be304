"""Folders of other tools that hold one step each, as Transformers writes them: found, read, and never changed."""

from pathlib import Path

import numpy as np
import pytest
from runs import files, state
from safetensors.numpy import save_file

import ckptmgr
from ckptmgr import CheckpointManager, CorruptCheckpointError, StepExistsError, StepNaming


def write(folder: Path, step: int, name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"w": np.full(3, step, np.float32)}, folder / name)
    return folder


def steps(folder: Path, **options) -> list[int]:
    return [info.step for info in CheckpointManager(folder, **options).steps()]


def test_a_folder_is_a_step_and_the_weights_in_it_are_its_state(tmp_path: Path) -> None:
    for step in (1000, 200):
        place = write(tmp_path / f"checkpoint-{step}", step)
        (place / "trainer_state.json").write_text("{}")
        (place / "training_args.bin").write_bytes(b"any")
        (place / "optimizer.pt").write_bytes(b"any")
    before = files(tmp_path)

    with CheckpointManager(tmp_path) as manager:
        old, new = manager.steps()
        assert (old.step, new.step) == (200, 1000)
        assert (new.is_foreign, new.name, new.path) == (True, "checkpoint-1000", str(tmp_path / "checkpoint-1000"))
        assert new.backend == "safetensors"
        assert new.nbytes == (tmp_path / "checkpoint-1000" / "model.safetensors").stat().st_size
        assert manager.restore().state["w"][0] == 1000
        assert manager.restore(200).state["w"][0] == 200
        assert manager.verify().steps == (200, 1000)
    assert files(tmp_path) == before


def test_a_set_of_torch_with_its_index_is_one_step(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-7").mkdir()
    ckptmgr.save(tmp_path / "checkpoint-7" / "model.pt", {"w": np.ones(3)}, backend="torch")

    assert CheckpointManager(tmp_path).restore(7).state["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "file", "is_step"),
    [
        ("checkpoint-5", "model.safetensors", True),
        ("checkpoint-5", "odd.safetensors", True),
        ("step_5", "odd.safetensors", True),
        ("5", "model.safetensors", True),
        ("5", "odd.safetensors", False),  # a number alone may be anything
        ("data", "model.safetensors", False),
        ("checkpoint-5-backup", "model.safetensors", False),
    ],
)
def test_the_name_of_the_folder_means_the_step(tmp_path: Path, name: str, file: str, is_step: bool) -> None:
    write(tmp_path / name, 5, file)

    assert steps(tmp_path) == [5] * is_step


def test_a_folder_of_several_checkpoints_of_which_none_is_called_the_model_is_no_step(tmp_path: Path) -> None:
    for file in ("a.safetensors", "b.safetensors"):
        write(tmp_path / "checkpoint-5", 5, file)

    assert steps(tmp_path) == []


def test_a_folder_that_is_a_checkpoint_by_itself_is_a_step(tmp_path: Path) -> None:
    for step, last in ((100, ".metadata"), (200, "other")):  # the save of the latter was interrupted
        (tmp_path / f"step-{step}").mkdir()
        for name in ("__0_0.distcp", last):
            (tmp_path / f"step-{step}" / name).write_bytes(b"any")

    assert [(info.step, info.backend) for info in CheckpointManager(tmp_path).steps()] == [(100, "torch_dcp")]


def test_a_step_of_ours_is_not_looked_into(tmp_path: Path) -> None:
    naming = StepNaming("checkpoint-{step}")
    write(tmp_path / "checkpoint-5", 5)
    with CheckpointManager(tmp_path, naming=naming) as manager:
        with pytest.raises(StepExistsError, match="another tool"):
            manager.save(5, state(5))
        manager.save(6, state(6))
        manager.save(5, state(5), overwrite=True)

        assert [(info.step, info.is_foreign) for info in manager.steps()] == [(6, False), (5, False)]
        assert manager.restore(5).state["epoch"] == 5
    assert (tmp_path / "checkpoint-5" / "model.safetensors").exists()


def test_a_claim_of_ours_does_not_hide_what_was_there_before(tmp_path: Path) -> None:
    naming = StepNaming("checkpoint-{step}")
    write(tmp_path / "checkpoint-5", 5)
    with CheckpointManager(tmp_path, naming=naming) as manager:
        prepared = manager.prepare(5, state(5), overwrite=True)
        seen = []

        manager.complete(prepared, on_written=lambda: seen.extend(manager.steps()))

    assert [(info.step, info.is_foreign) for info in seen] == [(5, True)]


def test_it_is_not_adopted_and_the_others_are(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint-5", 5)
    save_file({"w": np.zeros(3)}, tmp_path / "ckpt-4.safetensors")
    with CheckpointManager(tmp_path) as manager:
        with pytest.warns(RuntimeWarning, match="step 5 is not adopted: .* migrate it"):
            adopted = manager.adopt()

        assert [info.step for info in adopted] == [4]
        assert [(info.step, info.is_foreign) for info in manager.steps()] == [(5, True), (4, False)]
    assert (tmp_path / "checkpoint-5" / "model.safetensors").exists()


def test_damage_in_it_is_told(tmp_path: Path) -> None:
    file = write(tmp_path / "checkpoint-5", 5) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])

    with pytest.raises(CorruptCheckpointError) as caught:
        CheckpointManager(tmp_path).restore(5)
    assert caught.value.step == 5
