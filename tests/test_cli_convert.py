"""``ckptmgr convert``: what it makes, what it tells, and its exit codes."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import ckptmgr
from ckptmgr import CheckpointManager
from ckptmgr.cli.app import app


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with CheckpointManager(tmp_path / "run") as manager:
        for step in (1, 2):
            manager.save(step, {"net": {"w": np.full(3, step, np.float32)}, "epoch": step}, metrics={"loss": 0.5})
    return tmp_path / "run"


def test_the_newest_step_of_a_run_becomes_a_file(run: Path, tmp_path: Path) -> None:
    done = call(run, tmp_path / "b.h5")

    assert done.exit_code == 0, done.output
    assert ckptmgr.load(tmp_path / "b.h5")["epoch"] == 2
    assert "1 tensors, 12 bytes, 1 compared with the source's checksums" in done.stdout
    assert done.stdout.splitlines()[-1] == f"  {tmp_path / 'b.h5'}"


def test_a_file_becomes_a_step_with_other_names_and_dtypes(run: Path, tmp_path: Path) -> None:
    call(run, tmp_path / "b.h5", "--from-step", 1)

    done = call(
        tmp_path / "b.h5", tmp_path / "other", "--step", 7, "--to", "npz",
        "--rename", "net/=model/", "--cast", "*/w=float16", "--select", "model/*", "--json",
    )  # fmt: skip

    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["step"], report["backend"]) == (7, "npz")
    assert [(each["source"], each["name"], each["dtype"]) for each in report["tensors"]] == [("net/w", "model/w", "float16")]
    state = CheckpointManager(tmp_path / "other", backend="npz").restore(7).state
    assert state["model"]["w"].tolist() == [1.0, 1.0, 1.0]


def test_rules_come_from_a_file_or_a_built_in_set(run: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nglob = "net/w"\nto = "fc/kernel"\n[cast]\n"*" = "float16"\n')
    ckptmgr.save(tmp_path / "keras.npz", {"fc": {"kernel": np.ones((2, 3))}}, backend="npz")

    from_file = call(run, tmp_path / "a.npz", "--rules", rules)
    from_set = call(tmp_path / "keras.npz", tmp_path / "b.npz", "--rules", "keras-to-torch", "--rename", "fc.=head.")

    assert (from_file.exit_code, from_set.exit_code) == (0, 0), from_file.output + from_set.output
    assert ckptmgr.load(tmp_path / "a.npz")["fc"]["kernel"].dtype == np.float16
    assert ckptmgr.load(tmp_path / "b.npz")["head.weight"].shape == (3, 2)
    assert call(run, tmp_path / "c.npz", "--rules", tmp_path / "none.toml").exit_code == 1
    assert call(run, tmp_path / "c.npz", "--rules", "keras").exit_code in (1, 2)


def test_what_is_there_stays_and_the_exit_code_tells(run: Path, tmp_path: Path) -> None:
    call(run, tmp_path / "b.h5", "--from-step", 1)

    done = call(run, tmp_path / "b.h5")

    assert done.exit_code == 1
    assert "overwrite" in done.output
    assert ckptmgr.load(tmp_path / "b.h5")["epoch"] == 1
    assert call(run, tmp_path / "b.h5", "--overwrite").exit_code == 0
    assert ckptmgr.load(tmp_path / "b.h5")["epoch"] == 2


@pytest.mark.parametrize("wrong", [["--rename", "a"], ["--cast", "=x"], ["--select", "nothing"], ["--to", "nothing"]])
def test_a_slip_is_an_error_and_nothing_is_written(run: Path, tmp_path: Path, wrong: list[str]) -> None:
    done = call(run, tmp_path / "b.h5", *wrong)

    assert done.exit_code in (1, 2)
    assert not (tmp_path / "b.h5").exists()
