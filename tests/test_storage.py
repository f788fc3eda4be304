import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from ckptmgr import CheckpointManager, MissingDependencyError
from ckptmgr.storage import FilesystemStore, Folder, ObjectStore, PosixStore, clients, clouds, open_folder


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}", "local://{}", "file://{}/"])
def test_every_form_of_a_local_path(tmp_path: Path, form: str) -> None:
    folder = open_folder(form.format(tmp_path / "run"))

    assert folder.location() == str(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_path_object(tmp_path: Path) -> None:
    assert open_folder(tmp_path / "run").location("x") == str(tmp_path / "run" / "x")


def test_relative_paths_and_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")

    assert open_folder("a/../run").location() == str(tmp_path / "run")
    assert open_folder("~/run").location() == "/home/somebody/run"


@pytest.mark.parametrize("name", ["a b", "100%", "#1", "x?y", "run::1", "%20", "ü", "a;b"])
def test_odd_names_mean_themselves_and_survive_the_url(tmp_path: Path, name: str) -> None:
    folder = open_folder(str(tmp_path / name))

    folder.write("file", b"x")

    assert (tmp_path / name / "file").read_bytes() == b"x"
    assert open_folder(folder.store.url).read("file") == (b"x", b"x")


def test_options_are_the_store_s_own(tmp_path: Path) -> None:
    store = open_folder(tmp_path, {"lock_timeout_s": 3.0}).store

    assert isinstance(store, PosixStore)
    assert store.lock_timeout_s == 3.0
    with pytest.raises(TypeError, match=r"unknown storage_options for a local folder: region \(.*follow_links.*\)"):
        open_folder(tmp_path, {"region": "eu"})


@pytest.mark.parametrize("url", ["unheard://of", "zip://a::file:///b.zip", "unheard://me:secret@host/run"])
def test_other_schemes_are_refused_by_name(url: str) -> None:
    with pytest.raises(ValueError, match=f"no store for '{url.split(':')[0]}' URLs .*file://") as caught:
        open_folder(url)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["s3://bucket/run", "gs://bucket/run", "gcs://bucket/run", "az://container/run", "abfs://container/run"]
)
def test_the_clouds_are_objects_unless_fsspec_is_asked_for(url: str) -> None:
    options = (
        {"account_name": "me"}
        if url.startswith("a")
        else {"token": "anon"}
        if url.startswith("g")
        else {"key": "k", "secret": "s"}
    )

    folder = open_folder(f"{url}/", options)
    other = open_folder(url, {**options, "client": "fsspec"})

    assert isinstance(folder.store, ObjectStore)
    assert isinstance(other.store, FilesystemStore)
    assert folder.location("step") == other.location("step") == f"{url}/step"


def test_without_obstore_the_clouds_are_fsspec_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clouds, "is_installed", lambda name: name != "obstore")

    assert isinstance(open_folder("s3://bucket/run", {"anon": True}).store, FilesystemStore)


@pytest.mark.parametrize(("url", "extra"), [("s3://b", "s3"), ("gcs://b", "gcs"), ("abfs://b", "azure")])
def test_without_any_client_it_says_what_to_install(url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clouds, "is_installed", lambda _: False)
    monkeypatch.setattr(clients, "is_installed", lambda _: False)

    with pytest.raises(MissingDependencyError, match=rf"pip install 'ckptmgr\[{extra}\]'"):
        open_folder(url)


def test_everything_else_is_fsspec_s_and_passwords_are_not_shown() -> None:
    store = open_folder("sftp://me:secret@host/run").store

    assert isinstance(store, FilesystemStore)
    assert isinstance(open_folder("memory://run").store, FilesystemStore)
    assert store.location("step") == "sftp://me@host/run/step"
    assert "secret" not in repr(store)


def test_a_client_is_one_of_two() -> None:
    with pytest.raises(ValueError, match="client='boto3' is neither 'obstore' nor 'fsspec'"):
        open_folder("s3://bucket/run", {"client": "boto3"})


@pytest.mark.parametrize("url", ["s3://bucket/run", "gs://bucket", "az://box/run", "memory://run"])
def test_a_path_object_that_was_a_url_is_refused_with_the_url(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ValueError, match=f"give '{url}' as a string"):
        open_folder(Path(url))


@pytest.mark.parametrize("url", ["s3://", "gs:///run", "az://"])
def test_a_url_names_a_bucket(url: str) -> None:
    with pytest.raises(ValueError, match="names no bucket"):
        open_folder(url)


def test_opening_touches_nothing(tmp_path: Path) -> None:
    open_folder(tmp_path / "run").list()

    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("method", ["is_cached", "mark"])
def test_a_store_with_a_method_of_its_own_is_not_taken_for_one_that_can_more(root: Folder, method: str) -> None:
    setattr(root.store, method, lambda *_: True)
    with mock.patch("ckptmgr.manager.open_folder", return_value=root):
        manager = CheckpointManager("memory:")

    for step in (1, 2):
        manager.save(step, {"w": np.arange(100_000)}, overwrite=True)
    manager.delete(1)

    assert manager.restore().state["w"].tolist() == [*range(100_000)]
    assert [info.step for info in manager.steps()] == [2]
