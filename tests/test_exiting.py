"""What is to be saved when a program ends is saved, though the system gives no thread any more: see `exit_program`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from every_store import place
from exit_program import STATE, WAYS

from ckptmgr import CheckpointManager

PROGRAM = Path(__file__).with_name("exit_program.py")


def run(way: str, url: str, options: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), way, url, json.dumps(options)],
        capture_output=True, text=True, timeout=100, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False,
    )  # fmt: skip


def check(done: subprocess.CompletedProcess[str], way: str, manager: CheckpointManager) -> None:
    code, told = {"leave": (3, ""), "fail": (1, "ValueError: the loss is NaN\n")}.get(way, (0, ""))
    assert (done.returncode, done.stderr[-len(told) :] if told else done.stderr) == (code, told)
    restored = manager.restore().state
    assert restored["large"].tobytes() == STATE["large"].tobytes()
    assert all((restored["model"][name] == value).all() for name, value in STATE["model"].items())


@pytest.mark.parametrize("way", WAYS)
def test_what_is_unfinished_when_a_program_ends_is_saved(way: str, tmp_path: Path) -> None:
    near = {"near": str(tmp_path / "near")} if way == "copy" else {}

    done = run(way, str(tmp_path / "run"), near)

    check(done, way, CheckpointManager(tmp_path / "run"))


@pytest.mark.parametrize("backend", ["hdf5", "npz", "tf_bundle", "torch"])
def test_it_is_saved_in_every_format(backend: str, tmp_path: Path) -> None:
    CheckpointManager(tmp_path / "run", backend=backend).save(0, {"model": STATE["model"]})

    done = run("save", str(tmp_path / "run"), {"backend": backend, "incremental": True, "max_file_nbytes": 4 << 20})

    check(done, "save", CheckpointManager(tmp_path / "run"))


@pytest.mark.cloud
@pytest.mark.parametrize("way", ["save", "copy", "train_on", "save_last"])
@pytest.mark.parametrize("client", ["obstore", "fsspec"])
@pytest.mark.parametrize("cloud", ["s3"])
def test_it_is_saved_in_a_bucket(cloud: str, client: str, way: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url, given = place(cloud, request)
    given = {**given, "client": client}
    near = {"near": str(tmp_path / "near")} if way == "copy" else {}

    done = run(way, url, {"storage_options": given, **near})

    check(done, way, CheckpointManager(url, storage_options=given))
