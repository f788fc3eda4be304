"""A step that somebody moved away, with a link in its place: it is never followed, and never passed over in silence."""

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import state
from safetensors.numpy import save_file
from test_cli import call

import ckptmgr
from ckptmgr import CheckpointManager, CorruptCheckpointError, KeepLast, TieredManager, UnsafeCheckpointError
from ckptmgr.diagnosis import diagnose
from ckptmgr.storage import PosixStore


@pytest.fixture
def run(tmp_path: Path) -> Path:
    manager = CheckpointManager(tmp_path / "run")
    for step in (100, 200, 300):
        manager.save(step, state(step))
    return tmp_path / "run"


def moved(path: Path) -> Path:
    """Moves it out of the run, and leaves a link."""
    target = path.parents[len(path.parents) - 1 - path.parts.index("run")] / "disk" / path.name
    target.parent.mkdir(exist_ok=True)
    shutil.move(path, target)
    path.symlink_to(target)
    return target


PARTS = ["step-00000300", "step-00000300/manifest.json"]


@pytest.mark.parametrize("part", PARTS)
def test_an_older_step_is_restored_with_a_warning_that_names_the_link_and_what_to_do(run: Path, part: str) -> None:
    target = moved(run / part)

    with pytest.warns(RuntimeWarning, match=f"step 300 is skipped: '{run / part}' .* link to '{target}'.*put what it leads to"):
        restored = CheckpointManager(run).restore()

    assert (restored.step, [skipped.step for skipped in restored.report.skipped]) == (200, [300])


@pytest.mark.parametrize("part", PARTS)
def test_nothing_is_done_with_a_linked_step(run: Path, part: str) -> None:
    target, manager = moved(run / part), CheckpointManager(run, retention=KeepLast(1))
    before = sorted(target.rglob("*")), target.lstat().st_mtime_ns

    for use in (manager.restore, manager.open, manager.path, lambda step: manager.pin(step, "paper")):
        with pytest.raises(UnsafeCheckpointError, match=r"step-00000300.*links in a run are not followed"):
            use(300)
    with pytest.raises(ckptmgr.StepNotFoundError, match="symbolic link"):
        manager.delete(300)
    with pytest.raises(OSError, match="run/step-00000300"):
        manager.save(300, state(3))
    manager.collect()
    manager.sweep(0)

    assert (run / part).is_symlink()
    assert (sorted(target.rglob("*")), target.lstat().st_mtime_ns) == before


def test_steps_and_latest_tell_it_in_the_log(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    moved(run / "step-00000300")

    with caplog.at_level(logging.WARNING):
        latest = CheckpointManager(run).latest()

    assert latest
    assert latest.step == 200
    assert "step 300" in caplog.text


def test_a_run_whose_only_step_is_a_link_is_not_begun_anew(tmp_path: Path) -> None:
    CheckpointManager(tmp_path / "run").save(1, state(1))
    moved(tmp_path / "run" / "step-00000001")

    with pytest.warns(RuntimeWarning, match="step 1 is skipped"), pytest.raises(CorruptCheckpointError, match="symbolic link"):
        CheckpointManager(tmp_path / "run").restore_or_initialize(state(0))


def test_verify_and_copy_tell_it(run: Path, tmp_path: Path) -> None:
    moved(run / "step-00000300")

    report = CheckpointManager(run).verify()
    with pytest.raises(UnsafeCheckpointError, match="symbolic link"):
        ckptmgr.copy(run, tmp_path / "copy")

    assert [step for step, _ in report.problems] == [300]
    assert report.unread == (300,)
    assert [info.step for info in CheckpointManager(tmp_path / "copy").steps()] == [100, 200]


def test_a_link_that_leads_nowhere_is_told_too(run: Path) -> None:
    (run / "step-00000400").symlink_to("/nowhere/step-00000400")

    with pytest.warns(RuntimeWarning, match="step 400 is skipped: .*'/nowhere/step-00000400'"):
        assert CheckpointManager(run).restore().step == 300


def test_a_link_to_another_step_of_the_run_hides_nothing(run: Path) -> None:
    (run / "step-00000900").symlink_to("step-00000300")
    (run / "checkpoint-900").symlink_to(run / "step-00000300")
    (run / "latest").symlink_to("step-00000300")
    (run / "2024").symlink_to("/usr")

    assert CheckpointManager(run).restore().step == 300


def test_the_other_tier_has_what_is_a_link_here(run: Path, tmp_path: Path) -> None:
    with TieredManager(CheckpointManager(run), CheckpointManager(tmp_path / "far")) as tiers:
        tiers.wait()
        moved(run / "step-00000300")

        with pytest.warns(RuntimeWarning, match="a copy of step 300 is skipped: .*symbolic link"):
            assert tiers.restore().step == 300


@pytest.mark.parametrize("name", ["checkpoint-500/model.safetensors", "checkpoint-500.safetensors", "500/model.safetensors"])
def test_steps_of_other_tools_that_are_links_are_told(tmp_path: Path, name: str) -> None:
    for step, folder in ((400, "run"), (500, "run")):
        path = tmp_path / folder / name.replace("500", str(step))
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"w": np.full(2, step)}, path)
    moved(tmp_path / "run" / name.partition("/")[0])

    with pytest.warns(RuntimeWarning, match="step 500 is skipped: .*symbolic link"):
        assert CheckpointManager(tmp_path / "run").restore().step == 400
    diagnosis = diagnose(tmp_path / "run")
    assert (diagnosis.restores, diagnosis.skips) == (400, (500,))
    assert [(finding.kind, finding.commands) for finding in diagnosis.findings if finding.step == 500] == [("link", ())]


def test_files_that_are_links_are_steps_where_links_to_files_are_followed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    save_file({"w": np.zeros(2)}, tmp_path / "blob")
    (tmp_path / "run" / "checkpoint-500.safetensors").symlink_to(tmp_path / "blob")

    assert CheckpointManager(tmp_path / "run", storage_options={"follow_links": True}).restore().step == 500


def test_the_doctor_says_what_a_restore_passes_over(run: Path) -> None:
    moved(run / "step-00000300")
    os.symlink("step-00000100", run / "step-00000900")

    diagnosis = diagnose(run)

    assert (diagnosis.restores, diagnosis.skips) == (200, (300,))
    assert [finding.step for finding in diagnosis.findings if finding.kind == "link"] == [300, 900]


def test_a_listing_tells_of_links_beside_what_it_lists(run: Path) -> None:
    (run / "loop").symlink_to("loop")
    (run / "file").symlink_to("step-00000100/manifest.json")

    listing, followed = (PosixStore(run, follow_links=follow).list("") for follow in (False, True))

    assert listing == ({}, ("step-00000100", "step-00000200", "step-00000300"))
    assert (listing.links, followed.links) == (["file", "loop"], ["loop"])
    assert [*followed.files] == ["file"]


def test_the_command_tells_of_a_run_that_has_only_links(tmp_path: Path) -> None:
    CheckpointManager(tmp_path / "run").save(1, state(1))
    moved(tmp_path / "run" / "step-00000001")

    done = call("verify", tmp_path / "run")
    assert (done.exit_code, done.stdout.splitlines()[0]) == (1, "step 1: not read")
    for command in (["ls"], ["show"], ["gc", "--keep-last", "1", "--yes"], ["cp", tmp_path / "copy"]):
        done = call(command[0], tmp_path / "run", *command[1:])
        assert "is a symbolic link" in done.stderr
        assert done.exit_code == (1 if command[0] in ("show", "cp") else 0)
