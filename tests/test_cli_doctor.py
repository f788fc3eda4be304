"""``ckptmgr doctor``: what it prints, its exit codes, and that a shell can run what it prints."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from runs import state
from sickness import file_of, killed, on_a_disk, saved, snapshot
from test_cli import COMMAND, call

from ckptmgr import CheckpointManager, StepNaming

__all__ = ["on_a_disk"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    saved(tmp_path / "a run's")  # of a name that a shell must be given with care
    return tmp_path / "a run's"


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Runs a line as it was printed, with the installed command."""
    environ = {**os.environ, "PATH": f"{COMMAND.parent}:{os.environ['PATH']}"}
    return subprocess.run(["sh", "-c", line], env=environ, capture_output=True, text=True, timeout=60)


def commands(output: str) -> list[str]:
    return [line.strip().removeprefix("$ ") for line in output.splitlines() if line.startswith("    $ ")]


def test_a_healthy_run_is_one_line(run: Path) -> None:
    done = call("doctor", run, "--deep")

    assert (done.exit_code, done.stdout) == (0, f"ok: {run}: 3 committed; a restore gives step 300\n")


def test_what_is_printed_heals_in_a_shell(run: Path) -> None:
    os.truncate(file_of(run, 300), 9)
    killed(lambda: CheckpointManager(run).save(400, state(400)), "ckptmgr.commit.Attempt.commit")
    before = snapshot(run)

    done = subprocess.run([COMMAND, "doctor", run, "--grace", "0s"], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr, snapshot(run)) == (1, "", before)
    first, *rest = done.stdout.splitlines()
    assert first == f"problem: {run}: 3 committed; a restore gives step 200, not 300"
    told = [line.split(": ")[:2] for line in rest if line.startswith(("problem", "warning"))]
    assert told == [["problem", "step 300"], ["warning", "step 400"]]
    for line in commands(done.stdout):
        assert shell(line).returncode == 0, line
    again = shell(f'ckptmgr doctor "{run}" --grace 0s --deep')
    assert again.returncode == 0
    assert f"{run}: 2 committed; a restore gives step 200\n" in again.stdout


def test_a_save_that_may_be_in_progress_is_no_failure(run: Path) -> None:
    killed(lambda: CheckpointManager(run).save(400, state(400)), "ckptmgr.commit.Attempt.commit")

    done = call("doctor", run)

    assert done.exit_code == 0
    assert "note: step 400: a save was begun by process" in done.stdout
    assert "in progress, or was interrupted" in done.stdout


def test_json_has_all_of_it(run: Path) -> None:
    file_of(run, 300, "tree.json").unlink()

    done = call("doctor", run, "--json")
    told = json.loads(done.stdout)

    assert done.exit_code == 1
    assert (told["severity"], told["restores"], told["skips"], told["steps"]) == ("problem", 200, [300], [100, 200, 300])
    (finding,) = told["findings"]
    assert (finding["kind"], finding["step"]) == ("damaged-file", 300)
    assert finding["file"].endswith("/tree.json")


def test_wrong_naming_prints_the_right_one(tmp_path: Path) -> None:
    saved(tmp_path / "run", naming=StepNaming("ckpt-{step}"))

    done = call("doctor", tmp_path / "run")

    assert done.exit_code == 1
    (line,) = commands(done.stdout)
    assert "--naming" in line
    assert shell(line).returncode == 0
    assert call("doctor", tmp_path / "run", "--naming", "ckpt-{step}").exit_code == 0


def test_nothing_there_and_not_a_run_are_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")

    for place, text in (("typo", "nothing is at"), ("notes.txt", "is a file, and no run")):
        done = call("doctor", tmp_path / place)
        assert done.exit_code == 1
        assert text in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt"]


@pytest.mark.parametrize("options", [["--grace", "soon"], ["--naming", "ckpt"]])
def test_options_that_say_nothing_are_wrong_usage(run: Path, options: list[str]) -> None:
    assert call("doctor", run, *options).exit_code == 2


def test_a_url_of_no_store_is_wrong_usage() -> None:
    assert call("doctor", "gopher://bucket/run").exit_code == 2


def test_control_characters_are_shown_not_sent(run: Path) -> None:
    (run / "step-00000300" / "\x1b[2J\n").write_text("x")

    assert "\x1b" not in call("doctor", run).stdout
