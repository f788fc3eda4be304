"""A run of 50 steps migrated by workers of each kind, one of which is killed in the middle; and migrated again."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from every_store import options
from services import S3

from ckptmgr import CheckpointManager

HERE = Path(__file__).parent
PROGRAM = HERE / "migrate_program.py"
MPI = [str(Path(sys.executable).parent / "mpiexec"), "-n", "3"]
COUNT = 50


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 0 to 49, saved in any order."""
    folder = tmp_path_factory.mktemp("from")
    order = random.Random(5).sample(range(COUNT), COUNT)
    with CheckpointManager(folder, run="r") as manager:
        for step in order:
            manager.save(step, {"w": np.full(100, step, np.float32), "step": step}, metrics={"loss": 1 / (1 + step)})
    return folder


def migrated(
    kind: str, run: Path | str, folder: Path, target: str = "", options: dict[str, Any] | None = None
) -> dict[str, list[int]] | None:
    """What the program says; None if it was killed. The new run is in the folder, or elsewhere."""
    mpi = kind == "mpi"
    command = [*(MPI if mpi else []), sys.executable, *(["-m", "mpi4py.futures"] if mpi else []), str(PROGRAM)]
    arguments = [kind, str(run), target or str(folder / "new"), str(folder / "flag"), json.dumps(options)]
    paths = [str(HERE), str(HERE.parent), str(HERE.parent / "backends"), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command + arguments, capture_output=True, text=True, env=env, timeout=120, cwd=folder)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def told(folder: Path | str, options: dict[str, Any] | None = None) -> list[tuple]:
    steps = CheckpointManager(folder, storage_options=options).steps()
    return [(info.step, info.sequence, info.created, dict(info.metrics)) for info in steps]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["threads", "processes", "dask", "mpi"])
def test_with_a_worker_killed_in_the_middle_all_steps_are_there_once_and_whole(run: Path, tmp_path: Path, kind: str) -> None:
    first = migrated(kind, run, tmp_path)
    assert (tmp_path / "flag").exists()
    halfway = CheckpointManager(tmp_path / "new").verify()
    again = migrated(kind, run, tmp_path)

    assert halfway.ok
    if kind == "dask":  # which gives the work of a worker that died to another
        assert first is not None
        assert len(first["converted"]) == COUNT
    else:
        assert len(halfway.steps) < COUNT
    assert again is not None
    assert again["failed"] == []
    assert sorted(again["there"]) == sorted(halfway.steps)
    with CheckpointManager(tmp_path / "new") as manager:
        assert told(tmp_path / "new") == told(run)
        assert manager.verify().ok
        for step in range(COUNT):
            state = manager.restore(step).state
            assert state["step"] == step
            assert np.array_equal(state["w"], np.full(100, step, np.float32))
        manager.sweep(grace=0)
        assert len(list((tmp_path / "new").glob("*/a-*"))) == len(list((tmp_path / "new").glob("*/manifest.json"))) == COUNT


@pytest.mark.cloud
@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_a_run_in_a_bucket_is_migrated_into_another_although_a_worker_is_killed(tmp_path: Path, s3_server: S3, kind: str) -> None:
    url, given = f"s3://test-bucket{tmp_path}", options(s3_server)
    with CheckpointManager(f"{url}/from", storage_options=given) as manager:
        for step in (26, 23, 25, 24):
            manager.save(step, {"w": np.full(300_000, step, np.float32), "step": step}, metrics={"loss": step / 2})

    assert migrated(kind, f"{url}/from", tmp_path, f"{url}/new", given) is None or kind == "processes"
    assert (tmp_path / "flag").exists()
    new = CheckpointManager(f"{url}/new", backend="npz", storage_options=given)
    halfway = [info.step for info in new.steps()]
    assert new.verify().ok
    assert 25 not in halfway
    again = migrated(kind, f"{url}/from", tmp_path, f"{url}/new", given)

    assert again is not None
    assert (again["failed"], sorted(again["there"])) == ([], sorted(halfway))
    assert told(f"{url}/new", given) == told(f"{url}/from", given)
    assert new.verify().ok
    for step in (23, 24, 25, 26):
        assert np.array_equal(new.restore(step).state["w"], np.full(300_000, step, np.float32))
