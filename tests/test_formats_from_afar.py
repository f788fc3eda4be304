"""Files of every format where a URL says: what other tools wrote there is read, and what is written there they can read."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from every_store import options
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors
from services import S3, Service
from tf_bundles import write_arrays

import ckptmgr
from ckptmgr.storage import Folder, open_folder

pytestmark = pytest.mark.cloud
TENSORS = {"w": np.arange(12.0).reshape(3, 4), "b": np.ones(3, np.float32)}


@pytest.fixture(params=["obstore", "fsspec"])
def given(request: pytest.FixtureRequest, s3_server: S3) -> dict:
    return {**options(s3_server), "client": request.param}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"s3://test-bucket{tmp_path}"


def upload(folder: Folder, files: list[Path]) -> None:
    for file in files:
        folder.write(file.name, file.read_bytes())


def check(found: dict) -> None:
    for name, expected in TENSORS.items():
        assert (np.asarray(found[name]) == expected).all()
        assert found[name].dtype == expected.dtype


def test_safetensors_of_another_tool(url: str, given: dict) -> None:
    open_folder(url, given).write("model.safetensors", save_safetensors(TENSORS))

    check(ckptmgr.load(f"{url}/model.safetensors", storage_options=given))


def test_our_safetensors_for_another_tool(url: str, given: dict) -> None:
    ckptmgr.save(f"{url}/model.safetensors", TENSORS, storage_options=given)

    check(load_safetensors(open_folder(url, given).read("model.safetensors")[0]))


@pytest.mark.parametrize("chunked", [False, True])
def test_hdf5_of_another_tool(url: str, given: dict, tmp_path: Path, chunked: bool) -> None:
    with h5py.File(tmp_path / "model.h5", "w") as file:
        for name, array in TENSORS.items():
            file.create_dataset(name, data=array, **({"chunks": True, "compression": "gzip"} if chunked else {}))
    upload(open_folder(url, given), [tmp_path / "model.h5"])

    check(ckptmgr.load(f"{url}/model.h5", storage_options=given))


def test_a_tensorflow_checkpoint_of_another_tool(url: str, given: dict, tmp_path: Path) -> None:
    write_arrays(tmp_path, TENSORS)
    upload(open_folder(url, given), sorted(tmp_path.glob("x.*")))

    check(ckptmgr.load(f"{url}/x.index", storage_options=given))


def test_a_run_of_another_tool_is_listed_and_adopted(url: str, s3_server: Service) -> None:
    given = options(s3_server)
    for step in (5, 10):
        open_folder(url, given).write(f"ckpt-{step}.safetensors", save_safetensors({"w": np.full(3, step)}))
    manager = ckptmgr.CheckpointManager(url, storage_options=given)

    assert [(info.step, info.is_foreign) for info in manager.steps()] == [(5, True), (10, True)]
    manager.adopt()

    assert [(info.step, info.is_foreign) for info in manager.steps()] == [(5, False), (10, False)]
    assert (manager.restore().state["w"] == 10).all()


@pytest.mark.parametrize("backend", ["safetensors", "hdf5", "tf_bundle"])
def test_a_step_in_every_format(url: str, given: dict, backend: str) -> None:
    manager = ckptmgr.CheckpointManager(url, backend=backend, storage_options=given)

    manager.save(1, {**TENSORS, "epoch": 1})

    check(manager.restore().state)
    manager.verify(1)
