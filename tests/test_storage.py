import os
from pathlib import Path

import pytest

from ckptmgr.storage import PosixStore, open_folder


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
    with pytest.raises(TypeError, match="region"):
        open_folder(tmp_path, {"region": "eu"})


@pytest.mark.parametrize("url", ["s3://bucket/run", "memory://run", "zip://a::file:///b.zip", "sftp://me:secret@host/run"])
def test_other_schemes_are_refused_by_name(url: str) -> None:
    with pytest.raises(ValueError, match=f"no store for '{url.split(':')[0]}' URLs .*file://") as caught:
        open_folder(url)

    assert "secret" not in str(caught.value)


def test_opening_touches_nothing(tmp_path: Path) -> None:
    open_folder(tmp_path / "run").list()

    assert os.listdir(tmp_path) == []
