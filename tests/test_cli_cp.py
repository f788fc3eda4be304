"""``ckptmgr cp``: what it copies, what it prints, and its exit codes."""

import json
from pathlib import Path

import numpy as np
import pytest
from runs import state
from safetensors.numpy import save_file
from test_cli import call, damage, document

from ckptmgr import CheckpointManager


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    with CheckpointManager(folder) as manager:
        for step in (1, 2, 3):
            manager.save(step, state(step), metrics={"loss": 1 / step})
    return folder


def steps(folder: Path) -> list[int]:
    return [info.step for info in CheckpointManager(folder).steps()]


@pytest.mark.parametrize(
    ("options", "expected"),
    [([], [1, 2, 3]), (["--all"], [1, 2, 3]), (["--latest"], [3]), (["--step", 1, "--step", 2], [1, 2])],
)
def test_cp_copies_the_steps_that_are_asked_for(run: Path, tmp_path: Path, options: list[object], expected: list[int]) -> None:
    done = call("cp", run, tmp_path / "copy", *options)

    assert done.exit_code == 0
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [f"step {step}" for step in expected]
    assert steps(tmp_path / "copy") == expected
    assert call("verify", tmp_path / "copy").exit_code == 0


def test_cp_again_copies_nothing(run: Path, tmp_path: Path) -> None:
    first = document("cp", run, tmp_path / "copy")["steps"]
    second = document("cp", run, tmp_path / "copy")["steps"]

    assert [(step["step"], step["status"]) for step in first] == [(1, "copied"), (2, "copied"), (3, "copied")]
    assert [(step["status"], step["sent_nbytes"], step["sent"]) for step in second] == [("there", 0, [])] * 3
    assert first[0]["sent_nbytes"] == first[0]["nbytes"]
    assert call("cp", run, tmp_path / "copy", "--latest").stdout == "step 3: there already\n"


def test_cp_of_a_damaged_step_copies_the_others_and_fails(run: Path, tmp_path: Path) -> None:
    damage(run, 2)

    done = call("cp", run, tmp_path / "copy")
    assert (done.exit_code, steps(tmp_path / "copy")) == (1, [1, 3])
    assert "step 2 was not copied" in done.stderr
    assert "Traceback" not in done.output
    told = call("cp", run, tmp_path / "copy", "--json")
    assert told.exit_code == 1
    assert [step["status"] for step in json.loads(told.stdout)["steps"]] == ["there", "failed", "there"]


def test_cp_overwrites_only_if_asked(run: Path, tmp_path: Path) -> None:
    CheckpointManager(tmp_path / "copy").save(2, state(9))

    done = call("cp", run, tmp_path / "copy", "--step", 2)
    assert done.exit_code == 1
    assert "committed already" in done.stderr
    assert call("cp", run, tmp_path / "copy", "--step", 2, "--overwrite", "--fast").exit_code == 0
    assert CheckpointManager(tmp_path / "copy").restore(2).state["epoch"] == 2


@pytest.mark.parametrize("harm", ["flip", "cut", "record"])
def test_cp_repairs_damaged_copies_if_asked(run: Path, tmp_path: Path, harm: str) -> None:
    call("cp", run, tmp_path / "copy")
    copy = CheckpointManager(tmp_path / "copy")
    copy.pin(2, "paper")
    file = Path(copy.path(2))
    if harm == "flip":
        damage(tmp_path / "copy", 2)
    elif harm == "cut":
        (file / "tree.json").unlink()
    else:
        (file.parent / "manifest.json").write_bytes(b"{")

    done = document("cp", run, tmp_path / "copy", "--repair", *(["--fast"] if harm == "cut" else []))["steps"]

    assert [step["status"] for step in done] == ["there", "copied", "there"]
    assert call("verify", tmp_path / "copy").exit_code == 0
    assert [info.pins for info in copy.steps()] == [set(), set() if harm == "record" else {"paper"}, set()]


def test_cp_leaves_a_damaged_copy_until_a_good_one_is_there(run: Path, tmp_path: Path) -> None:
    call("cp", run, tmp_path / "copy")
    for each in (run, tmp_path / "copy"):
        damage(each, 2)

    assert call("cp", run, tmp_path / "copy", "--repair").exit_code == 1
    assert steps(tmp_path / "copy") == [1, 2, 3]


def test_cp_repairs_no_other_step_of_the_number(run: Path, tmp_path: Path) -> None:
    CheckpointManager(tmp_path / "copy").save(2, state(9))
    damage(tmp_path / "copy", 2)

    assert call("cp", run, tmp_path / "copy", "--step", 2, "--repair").exit_code == 1
    assert CheckpointManager(tmp_path / "copy").steps()[0].run != CheckpointManager(run).steps()[0].run


def test_cp_needs_a_run_and_one_choice_of_steps(run: Path, tmp_path: Path) -> None:
    assert call("cp", tmp_path / "typo", tmp_path / "copy").exit_code == 1
    assert call("cp", run, tmp_path / "copy", "--step", 9).exit_code == 1
    assert call("cp", run, tmp_path / "copy", "--latest", "--all").exit_code == 2
    assert call("cp", run, "nowhere://bucket/run").exit_code == 2
    assert not (tmp_path / "copy").exists()


def test_cp_says_which_steps_of_other_tools_it_leaves_out(run: Path, tmp_path: Path) -> None:
    save_file({"w": np.zeros(2)}, run / "ckpt-500.safetensors")
    save_file({"w": np.zeros(2)}, run / "ckpt-600.safetensors")

    done = call("cp", run, tmp_path / "copy")

    adopt, migrate = f"ckptmgr adopt {run}", f"ckptmgr migrate {run} {tmp_path / 'copy'}"
    line = (
        f"left out, of other tools: 2 steps (500, 600); '{adopt}' makes them steps of this run, or '{migrate}' brings them along"
    )
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, line)
    assert document("cp", run, tmp_path / "copy")["left_out"] == [500, 600]
    assert "left out" not in call("cp", run, tmp_path / "copy", "--latest").output
    call("migrate", run, tmp_path / "copy")
    assert steps(tmp_path / "copy") == [500, 600, 1, 2, 3]


def test_cp_does_not_advise_to_adopt_what_lies_in_folders(run: Path, tmp_path: Path) -> None:
    (run / "checkpoint-500").mkdir()
    save_file({"w": np.zeros(2)}, run / "checkpoint-500" / "model.safetensors")

    done = call("cp", run, tmp_path / "copy")

    migrate = f"'ckptmgr migrate {run} {tmp_path / 'copy'}' brings them along"
    assert done.stdout.splitlines()[-1] == f"left out, of other tools: 1 step (500); {migrate}"
