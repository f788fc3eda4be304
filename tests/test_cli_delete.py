"""``ckptmgr delete``: the steps that somebody names, all of them or none; and lines of other commands that clean up."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from sickness import flip
from terminals import terminal
from test_cli import COMMAND, call, document

from ckptmgr import CheckpointManager, commit, save
from ckptmgr.errors import CheckpointError
from ckptmgr.ledger import Found
from ckptmgr.record import seal
from ckptmgr.storage import Answer, Folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Steps 1 to 3, the second one pinned."""
    with CheckpointManager(tmp_path / "run") as manager:
        for step in (1, 2, 3):
            manager.save(step, {"w": np.full(3, step)})
        manager.pin(2, "paper")
    return tmp_path / "run"


def steps(run: Path) -> list[int]:
    return [info.step for info in CheckpointManager(run).steps()]


def test_named_steps_go_and_others_stay(run: Path) -> None:
    done = call("delete", run, 1, 3, 1, "--yes")

    assert (done.exit_code, steps(run)) == (0, [2])
    assert "deleted 2 steps" in done.stdout
    assert sorted(path.name for path in run.glob("step-*")) == ["step-00000002"]


def test_a_dry_run_shows_them_and_deletes_none(run: Path) -> None:
    done = call("delete", run, 1, "--dry-run")

    assert (done.exit_code, steps(run)) == (0, [1, 2, 3])
    assert done.stdout.splitlines()[1].split()[0] == "1"


@pytest.mark.parametrize("other", [2, 9, 50])
def test_none_goes_if_one_is_pinned_not_there_or_of_another_tool(run: Path, other: int) -> None:
    save(run / "ckpt-50.safetensors", {"w": np.zeros(3)})

    done = call("delete", run, 1, other, "--yes")

    assert (done.exit_code, steps(run)) == (1, [50, 1, 2, 3])
    assert f"step {other} is" in done.stderr


def test_a_pinned_step_goes_if_that_is_said(run: Path) -> None:
    assert "'paper'" in call("delete", run, 2, "--yes").stderr
    assert call("delete", run, 2, "--pinned", "--yes").exit_code == 0
    assert steps(run) == [1, 3]


def test_a_step_with_a_damaged_record_goes_and_sweep_takes_its_files(run: Path) -> None:
    flip(run / "step-00000003" / "manifest.json")

    done = call("delete", run, 3, "--yes")

    assert (done.exit_code, steps(run)) == (0, [1, 2])
    assert "left to sweep" in done.stdout
    assert call("sweep", run, "--grace", "0s").exit_code == 0
    assert not (run / "step-00000003").exists()


def test_a_step_of_a_newer_format_is_left_alone(run: Path) -> None:
    record = run / "step-00000003" / "manifest.json"
    text = record.read_bytes().replace(b'"format_version": 1', b'"format_version": 2')
    record.write_bytes(seal(text[: text.rindex(b'  "crc32c"')]))
    before = record.read_bytes()

    done = call("delete", run, 3, "--yes")

    assert (done.exit_code, record.read_bytes()) == (1, before)
    assert "format version 2" in done.stderr


def test_json_tells_each_step(run: Path) -> None:
    flip(run / "step-00000003" / "manifest.json")

    told = document("delete", run, 1, 3, "--yes")

    assert (told["executed"], [(step["step"], bool(step["damaged"])) for step in told["steps"]]) == (
        True,
        [(1, False), (3, True)],
    )


def test_nobody_is_asked_in_a_pipe_and_nothing_goes(run: Path) -> None:
    done = call("delete", run, 1)

    assert (done.exit_code, steps(run)) == (2, [1, 2, 3])
    assert "--yes" in done.stderr


@pytest.mark.parametrize(("answer", "code", "left"), [(b"n\n", 1, [1, 2, 3]), (b"y\n", 0, [1, 2])])
def test_a_person_is_asked(run: Path, answer: bytes, code: int, left: list[int]) -> None:
    keyboard, screen = os.openpty()
    os.write(keyboard, answer)

    done = subprocess.run([COMMAND, "delete", run, "3"], stdin=screen, capture_output=True, text=True, check=False)

    os.close(keyboard)
    os.close(screen)
    assert (done.returncode, steps(run)) == (code, left)
    assert "Delete 1 step?" in done.stderr


@pytest.mark.parametrize("change", ["pin", "overwrite", "delete"])
def test_what_was_changed_while_the_question_was_read_stays(run: Path, change: str) -> None:
    with terminal([COMMAND, "delete", run, "1", "3"], run) as seen:
        seen.wait_for("[y/N]")
        with CheckpointManager(run) as manager:
            if change == "pin":
                manager.pin(3, "late")
            elif change == "overwrite":
                manager.save(3, {"w": np.zeros(3)}, overwrite=True)
            else:
                manager.delete(3)
        seen.press(b"y\n")
        assert seen.ended() == 1, seen.shown

    assert steps(run) == ([1, 2] if change == "delete" else [1, 2, 3])


@pytest.mark.parametrize("change", ["pin", "overwrite"])
def test_what_is_changed_right_before_it_goes_stays(run: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def drop(root: Folder, found: Found) -> Answer:
        if found.step == 3:
            monkeypatch.undo()
            with CheckpointManager(run) as manager:
                if change == "pin":
                    manager.pin(3, "late")
                else:
                    manager.save(3, {"w": np.zeros(3)}, overwrite=True)
        return dropped(root, found)

    dropped = commit.drop
    monkeypatch.setattr(commit, "drop", drop)
    done = call("delete", run, 1, 3, "--yes")

    assert (done.exit_code, steps(run)) == (1, [2, 3])
    assert "changed meanwhile, and stays" in done.stderr
    assert "deleted before: 1" in done.stderr
    assert CheckpointManager(run).verify(3).ok


def test_a_step_goes_only_as_it_was_seen_if_that_is_asked(run: Path) -> None:
    with CheckpointManager(run) as manager:
        seen = manager.steps()[-1]
        manager.pin(3, "late")

        with pytest.raises(CheckpointError, match=r"step 3 .* changed meanwhile, and stays"):
            manager.delete(3, seen=seen)
        manager.delete(3, seen=manager.steps()[-1])

        assert steps(run) == [1, 2]
