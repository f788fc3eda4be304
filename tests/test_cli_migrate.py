"""``ckptmgr migrate``: what it makes, what it tells, and its exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from ckptmgr import CheckpointManager
from ckptmgr.cli.app import app
from ckptmgr.storage.lock import exclusive

COMMAND = Path(sys.executable).with_name("ckptmgr")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["migrate", *map(str, arguments)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with CheckpointManager(tmp_path / "run") as manager:
        for step in (1, 2, 3):
            manager.save(step, {"net": {"w": np.full(3, step, np.float32)}, "epoch": step})
    return tmp_path / "run"


def test_all_steps_are_copied_and_passed_over_the_next_time(run: Path, tmp_path: Path) -> None:
    first, second = call(run, tmp_path / "new"), call(run, tmp_path / "new")

    assert (first.exit_code, second.exit_code) == (0, 0), first.output + second.output
    assert first.stdout.splitlines() == [*(f"step {n}: copied" for n in (1, 2, 3)), f"3 steps in {tmp_path / 'new'}"]
    assert second.stdout.splitlines()[0] == "step 1: there already"


def test_steps_are_chosen_and_converted_by_processes(run: Path, tmp_path: Path) -> None:
    options = ["--steps", "1,3", "--to", "npz", "--workers", 2, "--processes", "--cast", "*/w=float64", "--rename", "net=model"]

    done = call(run, tmp_path / "new", *options, "--json")

    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [(each["step"], each["status"], each["backend"]) for each in told["steps"]] == [
        (1, "converted", "npz"),
        (3, "converted", "npz"),
    ]
    assert CheckpointManager(tmp_path / "new").restore(3).state["model"]["w"].dtype == np.float64


def test_a_step_that_fails_is_told_and_the_exit_code_is_1(run: Path, tmp_path: Path) -> None:
    call(run, tmp_path / "new", "--to", "npz", "--steps", "latest")

    done = call(run, tmp_path / "new", "--json")

    assert done.exit_code == 1
    assert [(each["step"], each["status"]) for each in json.loads(done.stdout)["steps"]] == [
        (1, "copied"),
        (2, "copied"),
        (3, "failed"),
    ]
    assert "step 3 was not migrated" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--steps", "newest"], "--steps"), (["--cast", "w"], "--cast"), (["--rename", "w"], "--rename")],
)
def test_wrong_options_are_errors_of_usage(run: Path, tmp_path: Path, options: list[str], message: str) -> None:
    done = call(run, tmp_path / "new", *options)

    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.parametrize("victim", ["command", "worker"])
def test_whichever_of_its_processes_is_killed_all_of_them_end_and_again_it_finishes(
    run: Path, tmp_path: Path, victim: str
) -> None:
    arguments = ["migrate", run, tmp_path / "new", "--to", "npz", "--workers", 2, "--processes"]
    lock = tmp_path / "new" / ".ckptmgr.lock"
    lock.parent.mkdir()

    with exclusive(str(lock), 0):  # no worker gets any further
        started = subprocess.Popen(
            [COMMAND, *map(str, arguments)], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            while not (waiting := holders(started.pid, lock)):
                assert started.poll() is None
                time.sleep(0.01)
            os.kill(started.pid if victim == "command" else waiting[0], signal.SIGKILL)
            started.communicate(timeout=60)  # what it says ends with the last process that could say something
        finally:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
    again = CliRunner().invoke(app, [*map(str, arguments)])

    assert (started.returncode, again.exit_code) == (-signal.SIGKILL if victim == "command" else 1, 0), again.output
    with CheckpointManager(tmp_path / "new", backend="npz") as manager:
        assert [info.step for info in manager.steps()] == [1, 2, 3]
        manager.sweep(grace=0)
        assert manager.verify().ok
    assert len([*tmp_path.glob("new/*/a-*")]) == 3


def holders(session: int, path: Path) -> list[int]:
    """The processes of a session, but for its first, that have a file open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getsid(int(process.name)) == session != int(process.name):
                found += [int(process.name) for fd in (process / "fd").iterdir() if os.readlink(fd) == str(path)]
    return found
