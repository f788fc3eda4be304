"""Objects that others have put into a run in the clouds, under names that no file of ours can have: nothing is hidden by them."""

import asyncio
from typing import Any

import pytest
from every_store import REMOTE, place
from runs import state

from ckptmgr import CheckpointManager
from ckptmgr.storage import clouds
from ckptmgr.storage.clients import client_of

pytestmark = pytest.mark.cloud
ATTEMPT = "a-0123456789abcdef"


class Strange:
    """A run of one step, and the way to put an object under any name into its folder."""

    def __init__(self, name: str, request: pytest.FixtureRequest) -> None:
        url, options = place(name, request)
        self.manager = CheckpointManager(url, storage_options=options)
        self.manager.save(1, state(1))
        where = clouds.split(url)
        self._bucket, self._prefix = where.bucket, where.prefix
        self._kind = name.partition("-")[0]
        self._client: Any = client_of(where, {key: value for key, value in options.items() if key != "client"})

    def put(self, name: str, data: bytes = b"x") -> None:
        fs, key = self._client.fs, self._prefix + name
        if self._kind == "gcs":
            url = f"{fs._location}/upload/storage/v1/b/{self._bucket}/o"
            assert self._client._ask("POST", url, {"uploadType": "media", "name": key}, data)[0] < 400
        elif self._kind == "azure":
            asyncio.run_coroutine_threadsafe(self._client._blob(key).upload_blob(data, overwrite=True), fs.loop).result()
        else:
            fs.call_s3("put_object", Bucket=self._bucket, Key=key, Body=data)


@pytest.fixture(params=REMOTE)
def run(request: pytest.FixtureRequest) -> Strange:
    return Strange(request.param, request)


@pytest.mark.parametrize("name", ["logs//events", "step-00000002/x//y"])
def test_name_that_is_no_path_does_not_keep_steps_from_being_found(run: Strange, name: str) -> None:
    run.put(name)

    run.manager.save(3, state(3))

    assert [info.step for info in run.manager.steps()] == [1, 3]
    assert run.manager.sweep(0).files == 0
    assert run.manager.restore().step == 3


def test_objects_that_stand_for_folders_are_nothing(run: Strange) -> None:
    attempt = str(run.manager.path(1)).rpartition("/")[2]
    for name in ("", "step-00000001/", f"step-00000001/{attempt}/", f"step-00000001/{ATTEMPT}/"):
        run.put(name, b"")

    swept = run.manager.sweep(0)

    assert (swept.files, swept.foreign) == (0, ())
    assert [info.step for info in run.manager.steps()] == [1]
    assert run.manager.verify(1).ok
