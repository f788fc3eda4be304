"""A few tensors of many, or only their names, from an object of 2 GB: little more is transferred than was asked for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from services import Sparse
from typer.testing import CliRunner

import ckptmgr
from ckptmgr import CheckpointManager
from ckptmgr.box import Box
from ckptmgr.cli.app import app

pytestmark = pytest.mark.cloud
SHAPE = (512, 1024)  # 2 MiB in float32
COUNT = 1_000
FEW = range(0, COUNT, 100)
FORMS = {"safetensors": "model.safetensors", "hdf5": "model.h5", "tf_bundle": "model"}


@pytest.fixture(scope="module")
def sparse() -> Iterator[Sparse]:
    with Sparse() as server:
        yield server


@pytest.fixture(scope="module", params=FORMS)
def run(request: pytest.FixtureRequest, sparse: Sparse) -> CheckpointManager:
    """A run with one step of 2 GB, in memory that is never touched, and not kept by the server."""
    manager = CheckpointManager(f"s3://test-bucket/{request.param}", backend=request.param, storage_options=sparse.options())
    manager.save(1, {"model": state()})
    sparse.sent()
    return manager


@pytest.fixture
def user(sparse: Sparse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever calls the command has the server and its keys in the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", sparse.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")


def state() -> dict[str, Any]:
    return {f"layer.{number}": np.zeros(SHAPE, np.float32) for number in range(COUNT)}


def test_ten_tensors_of_a_thousand_cost_what_they_have(run: CheckpointManager, sparse: Sparse) -> None:
    into = {"model": {f"layer.{number}": np.ones(SHAPE, np.float32) for number in FEW}}

    run.restore(into=into, strict=False)

    needed = sum(array.nbytes for array in into["model"].values())
    assert sparse.sent()[0] <= 1.1 * needed
    assert not any(array.any() for array in into["model"].values())


def test_rows_of_a_tensor_cost_what_they_have(run: CheckpointManager, sparse: Sparse) -> None:
    with run.open(1) as checkpoint:
        sparse.sent()
        assert checkpoint.read("model/layer.7", Box((10, 0), (60, 1024))).shape == (50, 1024)

    assert sparse.sent() == (50 * 4096, 1)


def test_small_neighbours_come_together(sparse: Sparse) -> None:
    manager = CheckpointManager("s3://test-bucket/small", storage_options=sparse.options())
    manager.save(1, {f"t{number:03}": np.full(3_000, number, np.float32) for number in range(100)})
    wanted = {f"t{number:03}": np.zeros(3_000, np.float32) for number in range(0, 100, 5)}  # 48 KiB apart
    sparse.sent()

    manager.restore(into=wanted, strict=False)

    assert sparse.sent()[1] <= 4  # the record, the tree, one range of tensors
    assert [int(array[0]) for array in wanted.values()] == [*range(0, 100, 5)]


def test_showing_a_step_of_two_gigabytes_costs_little(run: CheckpointManager, sparse: Sparse, user: None) -> None:
    assert "2.1 GB in 1000 tensors" in shown(run.folder.location(""))

    assert sparse.sent()[0] < 1_000_000


@pytest.mark.parametrize("backend", FORMS)
def test_showing_a_file_of_two_gigabytes_costs_little(backend: str, sparse: Sparse, user: None) -> None:
    url = f"s3://test-bucket/bare/{FORMS[backend]}"
    ckptmgr.save(url, state(), backend=backend, storage_options=sparse.options())
    sparse.sent()

    assert "2.1 GB in 1000 tensors" in shown(url)

    assert sparse.sent()[0] < 1_000_000


def shown(url: str) -> str:
    """What the command says of it."""
    done = CliRunner().invoke(app, ["show", url])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_difference_from_a_file_of_a_few_tensors_costs_what_they_have(
    run: CheckpointManager, sparse: Sparse, tmp_path: Path
) -> None:
    few = {f"layer.{number}": np.zeros(SHAPE, np.float32) for number in FEW}
    ckptmgr.save(tmp_path / "few.h5", {"model": few}, backend="hdf5")
    sparse.sent()

    with run.open(1) as all_of_them:
        report = ckptmgr.diff(tmp_path / "few.h5", all_of_them)

    assert [len(report.tensors), report.same] == [COUNT - len(few), len(few)]
    assert sparse.sent()[0] <= 1.1 * sum(array.nbytes for array in few.values())
