"""What is special about file systems of fsspec: those that can only be read, and those without conditions."""

import sys
from collections.abc import Callable, Iterator
from errno import ENOENT
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from every_store import options, place
from runs import state
from webserver import served

from ckptmgr import CheckpointManager, MissingDependencyError
from ckptmgr.storage import Answer, FilesystemStore, open_folder


class Handler(SimpleHTTPRequestHandler):
    """It gives the whole file for every range."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The URL of ``tmp_path`` by HTTP."""
    with served(partial(Handler, directory=str(tmp_path))) as port:
        yield f"http://127.0.0.1:{port}"


def test_a_run_on_a_web_server_is_read(tmp_path: Path, site: str) -> None:
    for step in (1, 2):
        CheckpointManager(tmp_path / "run").save(step, state(step))

    manager = CheckpointManager(f"{site}/run")

    assert [info.step for info in manager.steps()] == [1, 2]
    assert manager.restore().state["epoch"] == 2
    assert (manager.restore(1).state["model"]["w"] == 1).all()
    manager.verify(2)


def test_what_can_only_be_read_says_so(tmp_path: Path, site: str) -> None:
    CheckpointManager(tmp_path / "run").save(1, state(1))
    manager = CheckpointManager(f"{site}/run")

    for change in (lambda: manager.save(2, state(2)), lambda: manager.delete(1)):
        with pytest.raises(OSError, match=r"can only be read.*/run"):
            change()

    assert [info.step for info in manager.steps()] == [1]


def test_without_conditions_one_warning_is_given(tmp_path: Path) -> None:
    store = FilesystemStore(f"file://{tmp_path}/run")

    with pytest.warns(UserWarning, match="run' does not honour conditional writes: let only one process at a time"):
        assert store.create("a", b"1") is Answer.OK
    assert store.create("a", b"2") is Answer.NO
    assert FilesystemStore(f"file://{tmp_path}/run").create("b", b"1") is Answer.OK

    assert store.is_weak
    assert sorted(store.list("").files) == ["a", "b"]


def test_a_run_in_memory_is_shared_by_all_managers(tmp_path: Path) -> None:
    url = f"memory:/{tmp_path}"
    CheckpointManager(url).save(1, {"w": np.arange(3)})

    assert (CheckpointManager(url).restore().state["w"] == np.arange(3)).all()
    assert not CheckpointManager(url).folder.store.is_weak


def test_a_file_system_whose_package_is_missing_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.implementations.smb", None)

    with pytest.raises(MissingDependencyError, match="smb"):
        FilesystemStore("smb://host/run").list("")


@pytest.mark.cloud
@pytest.mark.parametrize("cloud", ["s3", "gcs", "azure"])
def test_whatever_a_client_raises_is_an_os_error_that_names_the_file(request: pytest.FixtureRequest, cloud: str) -> None:
    server, proxy = (request.getfixturevalue(f"{cloud}_{kind}") for kind in ("server", "proxy"))
    url, _ = place(f"{cloud}-fsspec", request)
    store = open_folder(url, {**options(server, proxy.endpoint), "client": "fsspec"}).store
    proxy.rules()
    store.put("record", [[b"data" * 100]], 400)
    large = bytes(9 << 20)  # in parts
    assert store.create("probed", b"x") is Answer.OK

    def refused(call: Callable[[], object], error: type[OSError], **fault: object) -> None:
        proxy.rules(fault)
        with pytest.raises(error, match="run"):
            call()
        proxy.rules()

    refused(lambda: store.read("record"), OSError, do="truncate", bytes=10, method="GET")
    refused(lambda: store.read("record"), PermissionError, do="status", code=403, method="GET")
    refused(lambda: store.put("large", [[large]], len(large)), OSError, do="status", code=403, method="PUT|POST")
    missing = open_folder(url.replace("//test-", "//no-such-"), {**options(server), "client": "fsspec"}).store
    with pytest.raises(FileNotFoundError, match="the bucket does not exist") as told:
        missing.create("x", b"")
    assert told.value.errno == ENOENT
