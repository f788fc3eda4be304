"""``ckptmgr adopt``: what it does, what it tells before, and its exit codes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptmgr
from ckptmgr import CheckpointManager

COMMAND = Path(sys.executable).with_name("ckptmgr")


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, "adopt", *map(str, arguments)], capture_output=True, text=True, check=False)


def found(*arguments: object) -> Any:
    return json.loads(call(*arguments, "--json").stdout)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder in which TensorFlow saved three steps."""
    for step in (5, 10, 15):
        ckptmgr.save(tmp_path / "run" / f"ckpt-{step}", {"layer": {"w": np.full(3, step, np.float32)}}, backend="tf_bundle")
    return tmp_path / "run"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def damage(run: Path, step: int) -> None:
    data = run / f"ckpt-{step}.data-00000-of-00001"
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])


def test_all_steps_become_committed_ones_in_their_order(run: Path) -> None:
    done = call(run)

    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["step 15", "step 10", "step 5", "3 steps adopted"]
    with CheckpointManager(run) as manager:
        assert [(info.step, info.is_foreign) for info in manager.steps()] == [(5, False), (10, False), (15, False)]
        assert manager.restore(10).state["layer"]["w"].tolist() == [10, 10, 10]
    assert names(run) == {"checkpoint", "step-00000005", "step-00000010", "step-00000015"}


def test_a_dry_run_tells_what_would_be_done_and_writes_nothing(run: Path) -> None:
    (run / "ckpt-10.index").write_bytes(b"no index")
    before = names(run)

    done = call(run, "--dry-run")

    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "2 steps would be adopted"
    assert "step 15" in done.stdout
    assert done.stderr.startswith("ckptmgr: step 10 cannot be adopted: ")
    assert names(run) == before


def test_a_damaged_step_stays_and_the_exit_code_tells(run: Path) -> None:
    damage(run, 10)

    done = call(run)

    assert done.returncode == 1
    assert "step 10 was not adopted: " in done.stderr
    assert {"ckpt-10.index", "step-00000005", "step-00000015"} < names(run)


def test_as_json_every_step_has_its_status(run: Path) -> None:
    (run / "ckpt-10.index").write_bytes(b"no index")

    planned = [(each["step"], each["status"]) for each in found(run, "--dry-run")["steps"]]
    made = found(run)["steps"]

    assert planned == [(15, "plan"), (10, "refused"), (5, "plan")]
    assert [(each["step"], each["status"]) for each in made] == [(15, "adopted"), (10, "refused"), (5, "adopted")]
    assert "ckpt-10" in made[1]["message"]


def test_one_step_is_adopted_if_it_overtakes_none(run: Path) -> None:
    too_early, newest = call(run, "--step", 5), call(run, "--step", 15)

    assert too_early.returncode == 2
    assert "adopt these first" in " ".join(too_early.stderr.split())
    assert (newest.returncode, newest.stdout.splitlines()[-1]) == (0, "1 step adopted")
    assert call(run, "--step", 15).returncode == 0  # it was adopted, and nothing is left to do
    assert call(run, "--step", 7).returncode == 1


def test_what_an_interrupted_adoption_left_is_told_and_deleted(run: Path) -> None:
    kept = {path.name: path.read_bytes() for path in run.iterdir() if path.name.startswith("ckpt-15")}
    call(run)
    for name, data in kept.items():
        (run / name).write_bytes(data)

    planned = found(run, "--dry-run")["steps"]
    call(run)

    assert [(each["step"], each["status"]) for each in planned] == [(15, "left over")]
    assert not names(run) & kept.keys()
    assert found(run)["steps"] == []


def test_a_folder_of_nothing_is_an_error(tmp_path: Path) -> None:
    assert call(tmp_path / "typo").returncode == 1
