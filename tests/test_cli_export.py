"""``ckptmgr export``: what it makes, what it tells, and its exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ckptmgr
from ckptmgr import CheckpointManager

COMMAND = Path(sys.executable).with_name("ckptmgr")


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, "export", *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with CheckpointManager(tmp_path / "run") as manager:
        for step in (1, 2):
            state = {"model": {"fc": {"kernel": np.full((2, 3), step, np.float32)}}, "optimizer": {"m": np.zeros(3)}}
            manager.save(step, state, assets={"config.json": b'{"model_type": "tiny"}'})
    return tmp_path / "run"


def test_the_newest_step_becomes_a_model_of_hugging_face(run: Path, tmp_path: Path) -> None:
    done = call(run, tmp_path / "hf", "--to", "hf")

    assert (done.returncode, done.stderr) == (0, "")
    assert ckptmgr.load(tmp_path / "hf")["fc.kernel"].tolist() == [[2, 2, 2], [2, 2, 2]]
    assert "1 tensors, 24 bytes, 1 compared with the source's checksums" in done.stdout
    assert "left out: 'optimizer/m'" in done.stdout
    assert done.stdout.splitlines()[-2:] == [f"  {tmp_path / 'hf' / name}" for name in ("config.json", "model.safetensors")]


def test_as_json_it_is_the_report(run: Path, tmp_path: Path) -> None:
    done = call(run, tmp_path / "w.pt", "--to", "torch", "--step", 1, "--select", "model/*", "--keep-prefix", "--json")

    report = json.loads(done.stdout)
    assert [(each["source"], each["name"]) for each in report["tensors"]] == [("model/fc/kernel", "model.fc.kernel")]
    assert report["files"] == [str(tmp_path / "w.pt")]
    assert report["left_out"] == ["optimizer/m"]


def test_rules_work_on_names_without_the_prefix(run: Path, tmp_path: Path) -> None:
    done = call(
        run, tmp_path / "w.pt", "--to", "torch", "--rules", "keras-to-torch", "--rename", "fc.=head.", "--cast", "*=float16"
    )

    assert done.returncode == 0, done.stderr
    weight = ckptmgr.load(tmp_path / "w.pt")["head.weight"]
    assert (weight.shape, weight.dtype) == ((3, 2), np.float16)


def test_several_steps_go_into_one_folder_of_tensorflow(run: Path, tmp_path: Path) -> None:
    for step in (1, 2):
        assert call(run, tmp_path / "tf", "--to", "tf", "--step", step).returncode == 0

    assert "ckpt-2" in (tmp_path / "tf" / "checkpoint").read_text().splitlines()[0]
    assert ckptmgr.load(tmp_path / "tf")["optimizer"]["m"].shape == (3,)


def test_what_is_there_stays_and_the_exit_code_tells(run: Path, tmp_path: Path) -> None:
    call(run, tmp_path / "hf", "--to", "hf", "--step", 1)

    done = call(run, tmp_path / "hf", "--to", "hf", "--step", 2)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "overwrite" in done.stderr
    assert ckptmgr.load(tmp_path / "hf")["fc.kernel"][0, 0] == 1
    assert call(run, tmp_path / "hf", "--to", "hf", "--step", 2, "--overwrite").returncode == 0


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (["--to", "onnx"], 2),
        (["--to", "hf", "--select", "x/*"], 2),
        (["--to", "hf", "--step", "9"], 1),
        (["--to", "keras"], 2),
        ([], 2),
    ],
)
def test_a_slip_is_an_error_and_nothing_is_written(run: Path, tmp_path: Path, wrong: list[str], code: int) -> None:
    done = call(run, tmp_path / "out", *wrong)

    assert (done.returncode, done.stdout) == (code, "")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_person_sees_a_bar(run: Path, tmp_path: Path) -> None:
    reader, terminal = os.openpty()

    done = subprocess.run(
        [COMMAND, "export", run, tmp_path / "hf", "--to", "hf"], stderr=terminal, stdout=subprocess.PIPE, check=False
    )

    os.close(terminal)
    shown = os.read(reader, 1 << 16)
    os.close(reader)
    assert done.returncode == 0
    assert b"export" in shown
