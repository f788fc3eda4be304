"""The doctor of what is no run: another naming, a folder of runs, a step's own folder, a file, nothing."""

from pathlib import Path

import numpy as np
import pytest
from runs import state
from sickness import file_of, found, obey, on_a_disk, saved
from test_diagnosis import looked, run

from ckptmgr import CheckpointManager, StepNaming, diagnose, save

__all__ = ["on_a_disk", "run"]


@pytest.mark.parametrize("template", ["ckpt-{step}", "ckpt-{step:05d}", "{step:07d}", "run-7-{step}"])
def test_another_naming_is_told_by_the_folders(tmp_path: Path, template: str) -> None:
    saved(tmp_path / "run", naming=StepNaming(template))

    diagnosis = looked(tmp_path / "run")
    finding = found(diagnosis, "other-naming")

    assert (diagnosis.restores, finding.severity) == (None, "problem")
    assert "starts from scratch" in finding.means
    assert f"naming=StepNaming({template!r})" in finding.heals
    assert "a restore gives step 300" in obey(finding)


def test_names_of_varying_width_and_text_are_told_by_a_usual_scheme(tmp_path: Path) -> None:
    naming = StepNaming("epoch_{epoch:d}_step_{step}")
    manager = CheckpointManager(tmp_path / "run", naming=naming)
    for step in (9, 10, 100):
        manager.save(step, state(step), metadata={"epoch": step // 9})

    finding = found(looked(tmp_path / "run"), "other-naming")

    assert finding.commands == (f"ckptmgr doctor {tmp_path}/run --naming '{naming.template}'",)
    assert "a restore gives step 100" in obey(finding)


def test_a_folder_of_runs_points_at_them(run: Path) -> None:
    finding = found(looked(run.parent), "folder-of-runs")

    assert "'run'" in finding.found
    assert "a restore gives step 300" in obey(finding)


def test_a_file_a_step_and_an_attempt_are_no_runs(run: Path) -> None:
    assert "is a file" in found(diagnose(file_of(run, 300)), "not-a-run").found
    assert obey(found(diagnose(file_of(run, 300)), "not-a-run"))
    for place in (run / "step-00000300", file_of(run, 300).parent):
        assert "a restore gives step 300" in obey(found(looked(place), "not-a-run"))


def test_a_checkpoint_of_another_tool_is_no_run(tmp_path: Path) -> None:
    save(tmp_path / "hub" / "model.safetensors", {"w": np.zeros(3)})

    assert "of the format 'safetensors'" in found(looked(tmp_path / "hub"), "not-a-run").found


def test_nothing_there_is_a_problem_that_names_what_is_near(run: Path) -> None:
    finding = found(diagnose(f"{run}s"), "nothing-there")

    assert "starts from scratch" in finding.means
    assert finding.commands == (f"ckptmgr doctor {run}",)
    assert not Path(f"{run}s").exists()


def test_a_run_without_a_step_yet_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "events.out").write_text("x")

    assert (looked(tmp_path / "run").severity, looked(tmp_path / "run").restores) == ("note", None)
