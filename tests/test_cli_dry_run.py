"""``--dry-run`` of `cp`, `migrate` and `sweep`: what is printed, the exit codes, and that nothing is changed."""

import json
from pathlib import Path

import pytest
from runs import state
from test_cli import call, document
from test_copying_plan import held

from ckptmgr import CheckpointManager


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (1, 2, 3):
        CheckpointManager(tmp_path / "run").save(step, state(step))
    dead = tmp_path / "run" / "step-00000004" / "a-0123456789abcdef"
    dead.mkdir(parents=True)
    (dead / "model.safetensors").write_bytes(b"half")
    return tmp_path / "run"


def test_cp_tells_what_would_be_copied(run: Path, tmp_path: Path) -> None:
    call("cp", run, tmp_path / "copy", "--step", 2)
    before = held(tmp_path)

    lines = call("cp", run, tmp_path / "copy", "--dry-run").stdout.splitlines()
    told = document("cp", run, tmp_path / "copy", "--dry-run")

    assert held(tmp_path) == before
    assert [line.split()[:2] for line in lines[:3]] == [["step", f"{step}:"] for step in (1, 2, 3)]
    assert lines[1] == "step 2: there already"
    assert lines[3].startswith("2 steps would be copied, ")
    assert (told["dry_run"], [step["status"] for step in told["steps"]]) == (True, ["plan", "there", "plan"])


def test_migrate_tells_what_would_be_copied_and_converted(run: Path, tmp_path: Path) -> None:
    before = held(tmp_path)

    copied = call("migrate", run, tmp_path / "other", "--dry-run").stdout.splitlines()
    converted = document("migrate", run, tmp_path / "other", "--to", "npz", "--steps", "1,3", "--dry-run")

    assert held(tmp_path) == before
    assert [line.partition(",")[0] for line in copied[:3]] == [f"step {step}: would be copied" for step in (1, 2, 3)]
    assert copied[3] == f"3 steps would be migrated into {tmp_path / 'other'}"
    assert [(step["step"], step["status"]) for step in converted["steps"]] == [(1, "converted"), (3, "converted")]


@pytest.mark.parametrize(("command", "done"), [("cp", "copied"), ("migrate", "migrated")])
def test_what_would_fail_is_told_and_is_the_exit_code(run: Path, tmp_path: Path, command: str, done: str) -> None:
    CheckpointManager(tmp_path / "other").save(2, state(9))

    told = call(command, run, tmp_path / "other", "--dry-run")

    assert told.exit_code == 1
    assert f"step 2 cannot be {done}: step 2 is committed already" in told.stderr
    assert json.loads(call(command, run, tmp_path / "other", "--dry-run", "--json").stdout)["dry_run"] is True
    assert [info.step for info in CheckpointManager(tmp_path / "other").steps()] == [2]


def test_sweep_tells_what_would_be_deleted(run: Path, tmp_path: Path) -> None:
    before = held(tmp_path)

    fresh = call("sweep", run, "--dry-run").stdout
    done = call("sweep", run, "--grace", "0s", "--dry-run").stdout
    told = document("sweep", run, "--grace", "0s", "--dry-run")

    assert held(tmp_path) == before
    assert fresh == "would sweep 0 bytes: 0 files, 0 claims, 0 unfinished writes\n"
    assert done == "would sweep 4 bytes: 1 file, 0 claims, 0 unfinished writes\n"
    assert (told["dry_run"], told["files"], told["nbytes"]) == (True, 1, 4)
    assert document("sweep", run, "--grace", "0s") == {**told, "dry_run": False}
