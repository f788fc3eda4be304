"""Further names of files: what they share, when they are refused, and what they do to the age of debris."""

import errno
import os
from pathlib import Path
from unittest import mock

import pytest
from incrementals import manager_of, state
from syscalls import counting, failing_at

from ckptmgr.storage import LinkingStore, PosixStore


@pytest.fixture
def store(tmp_path: Path) -> PosixStore:
    store = PosixStore(tmp_path / "run")
    store.put("old/a/f", [[b"bytes"]], 5)
    return store


def test_both_names_are_of_the_same_file_and_go_one_by_one(store: PosixStore, tmp_path: Path) -> None:
    assert isinstance(store, LinkingStore)
    assert store.link("old/a/f", "new/b/g")

    assert (tmp_path / "run/old/a/f").samefile(tmp_path / "run/new/b/g")
    store.delete(["old/a/f"])
    assert store.read("new/b/g") == (b"bytes", b"bytes")


def test_the_new_name_is_durable_when_link_returns(store: PosixStore) -> None:
    with counting() as calls:
        store.link("old/a/f", "new/b/g")

    names = [(call.name, Path(call.path).name) for call in calls]
    assert names[-2:] == [("link", "g"), ("fsync", "b")]
    assert [call for call in names[:-2] if call[0] == "fsync"] == [("fsync", "run"), ("fsync", "new")]


def test_what_is_gone_or_no_file_has_no_second_name(store: PosixStore, tmp_path: Path) -> None:
    (tmp_path / "run/old/a/soft").symlink_to(tmp_path / "run/old/a/f")
    (tmp_path / "run/old/a/folder").mkdir()

    assert not store.link("old/a/none", "new/g")
    assert not store.link("none/f", "new/g")
    assert not store.link("old/a/soft", "new/g")
    assert not store.link("old/a/folder", "new/g")
    assert store.read("new/g") is None


def test_a_name_that_is_taken_stays(store: PosixStore) -> None:
    store.put("new/g", [[b"other"]], 5)

    assert not store.link("old/a/f", "new/g")
    assert store.read("new/g") == (b"other", b"other")


@pytest.mark.parametrize("code", [errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS], ids=errno.errorcode.get)
def test_file_systems_that_refuse_links_get_whole_files(tmp_path: Path, code: int) -> None:
    manager = manager_of(PosixStore(tmp_path / "run"))
    manager.save(1, state(1))
    with counting() as calls:
        manager.save(2, state(2))
    links = [n for n, call in enumerate(calls) if call.name == "link" and "manifest" not in call.path]

    with failing_at(links[0], code):
        manager.save(3, state(3))

    assert links
    assert manager.verify().ok
    manager.delete(2)
    manager.delete(1)
    assert manager.verify(3).ok


def test_full_disk_is_an_error(store: PosixStore) -> None:
    with failing_at(2, errno.ENOSPC), pytest.raises(OSError, match="No space"):
        store.link("old/a/f", "new/g")


def test_errors_of_a_link_name_the_whole_path(store: PosixStore, tmp_path: Path) -> None:
    broken = OSError(errno.EIO, "broken", "f", None, "g")
    with mock.patch("os.link", side_effect=broken), pytest.raises(OSError, match="broken") as caught:
        store.link("old/a/f", "new/g")

    assert caught.value.filename == str(tmp_path / "run/new/g")


def test_new_names_of_its_bytes_do_not_make_debris_look_alive(store: PosixStore, tmp_path: Path) -> None:
    store.link("old/a/f", "dead/a/f")
    before = store.list("dead/a/").files["f"]
    while os.stat(tmp_path / "run/old/a/f").st_ctime <= before.modified:  # the clock of some file systems is coarse
        store.link("old/a/f", "new/g")
        store.delete(["new/g"])

    assert store.list("dead/a/").files["f"] == before
