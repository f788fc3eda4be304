"""What `PosixStore` does beyond the conformance suite: unsafe keys, links, and what else lies in its folder."""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disks import put, read, tree

from ckptmgr.storage import Answer, PosixStore, Upload

UNSAFE = ["", "/", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "a/", "./a", "a/.", "a\0b"]
RESERVED = [".ckptmgr.lock", "step/.ckptmgr.lock", "step/.ckptmgr-0123456789abcdef.tmp"]


@pytest.fixture
def store(tmp_path: Path) -> PosixStore:
    return PosixStore(tmp_path / "run", lock_timeout_s=30)


@pytest.mark.parametrize("key", UNSAFE + RESERVED)
def test_unsafe_and_reserved_keys_are_refused(store: PosixStore, tmp_path: Path, key: str) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: put(store, key),
        lambda: store.create(key, b"x"),
        lambda: store.replace(key, b"x", b"x"),
        lambda: store.remove(key, b"x"),
        lambda: store.read(key),
        lambda: store.read_into(key, 0, [bytearray(1)]),
        lambda: store.file(key),
        lambda: store.head(key),
        lambda: store.abort(Upload(key.replace("tmp", "temp"), "", 0.0)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"key|name|unfinished"):
            call()

    assert tree(tmp_path) == []


@pytest.mark.parametrize("prefix", ["/", "..", "../", "a//", "no-slash", "a/../", "a\0/"])
def test_unsafe_prefixes_are_refused(store: PosixStore, prefix: str) -> None:
    for call in (store.list, store.uploads):
        with pytest.raises(ValueError, match=r"key|prefix"):
            call(prefix)


def test_one_unsafe_key_keeps_delete_from_deleting_any(store: PosixStore) -> None:
    put(store, "file")

    with pytest.raises(ValueError, match="safe"):
        store.delete(["file", "../file"])

    assert read(store, "file") == b"x"


def test_a_folder_key_deletes_an_empty_folder_and_those_above(store: PosixStore, tmp_path: Path) -> None:
    put(store, "kept/file")
    os.makedirs(tmp_path / "run" / "step" / "a" / "b")

    store.delete(["step/a/b/", "kept/", "nothing/"])

    assert tree(tmp_path / "run") == ["kept", "kept/file"]


def test_the_root_stays_when_all_is_deleted(store: PosixStore, tmp_path: Path) -> None:
    put(store, "file")

    store.delete(["file"])

    assert (tmp_path / "run").is_dir()


def test_our_own_names_are_not_listed(store: PosixStore, tmp_path: Path) -> None:
    store.create("step/record", b"x")
    (tmp_path / "run" / "step" / ".ckptmgr-0123456789abcdef.tmp").write_bytes(b"half")
    (tmp_path / "run" / "step" / ".ckptmgr-notes.tmp").write_bytes(b"foreign")

    assert store.list("") == ({}, ("step",))
    assert sorted(store.list("step/").files) == [".ckptmgr-notes.tmp", "record"]
    (upload,) = store.uploads("")
    assert upload[:2] == ("step/.ckptmgr-0123456789abcdef.tmp", ".ckptmgr-0123456789abcdef.tmp")
    store.abort(upload)
    assert store.uploads("") == []


def test_links_are_not_followed(store: PosixStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"precious")
    (outside / ".ckptmgr-0123456789abcdef.tmp").write_bytes(b"precious")
    put(store, "real/file")
    os.symlink(outside, tmp_path / "run" / "folder")
    os.symlink(outside / "file", tmp_path / "run" / "link")
    os.symlink("real/file", tmp_path / "run" / "inner")
    os.symlink("nowhere", tmp_path / "run" / "dangling")

    assert store.list("") == ({}, ("real",))
    assert store.list("folder/") == ({}, ())
    assert store.uploads("") == []
    for key in ("link", "inner", "dangling", "folder/file", "folder"):
        assert store.read(key) is None
        assert store.head(key) is None
        assert store.remove(key, b"precious") is Answer.NO if "/" not in key else True
        with pytest.raises(FileNotFoundError, match="links"):
            store.read_into(key, 0, [bytearray(1)])
    store.delete(["link", "inner", "dangling", "folder/file", "folder", "folder/"])
    assert len(os.listdir(tmp_path / "run")) == 6  # with the lock
    assert (outside / "file").read_bytes() == b"precious"


def test_nothing_is_written_through_a_link(store: PosixStore, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "file").write_bytes(b"precious")
    put(store, "other")
    os.symlink(tmp_path / "outside", tmp_path / "run" / "folder")
    os.symlink(tmp_path / "file", tmp_path / "run" / "link")

    for call in (lambda: put(store, "folder/file"), lambda: store.create("folder/file", b"x")):
        with pytest.raises(NotADirectoryError, match="run/folder"):
            call()
    with pytest.raises(FileExistsError, match="run/link"):
        store.create("link", b"x")
    put(store, "link", b"new")

    assert read(store, "link") == b"new"
    assert (tmp_path / "file").read_bytes() == b"precious"
    assert os.listdir(tmp_path / "outside") == []


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    os.symlink(tmp_path / "disk", tmp_path / "run")

    store = PosixStore(tmp_path / "run")
    put(store, "step/file")

    assert (tmp_path / "disk" / "step" / "file").read_bytes() == b"x"


def test_what_is_no_regular_file_is_absent_and_does_not_block(store: PosixStore, tmp_path: Path) -> None:
    put(store, "file")
    run = tmp_path / "run"
    os.mkdir(run / "folder")
    os.mkfifo(run / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(run / "socket"))  # absolute, it may be too long for a socket

        assert store.list("") == ({"file": store.head("file")}, ("folder",))
        for key in ("folder", "pipe", "socket"):
            assert store.read(key) is None
            assert store.head(key) is None
            with pytest.raises(FileNotFoundError, match=key):
                store.file(key)
            with pytest.raises(FileExistsError, match=key):
                store.create(key, b"x")
        store.delete(["folder", "pipe", "socket"])
        assert len(os.listdir(run)) == 5

    with pytest.raises(IsADirectoryError, match=r"'[^']*/run/folder'$"):
        put(store, "folder")


def test_names_that_are_not_utf8_are_listed_like_any_other(store: PosixStore, tmp_path: Path) -> None:
    put(store, "step/file")
    with open(os.fsencode(tmp_path / "run" / "step") + b"/\xff\xfe", "wb") as file:
        file.write(b"odd")
    os.mkdir(os.fsencode(tmp_path / "run") + b"/\xe9")

    (folder,) = [name for name in store.list("").folders if name != "step"]
    (name,) = [name for name in store.list("step/").files if name != "file"]

    assert read(store, f"step/{name}") == b"odd"
    assert store.list(f"{folder}/") == ({}, ())
    assert store.uploads("") == []
    store.delete(["step/file"])
    assert read(store, f"step/{name}") == b"odd"


def test_a_file_of_a_terabyte_is_not_read_into_memory(store: PosixStore, tmp_path: Path) -> None:
    put(store, "record")
    os.truncate(tmp_path / "run" / "record", 1 << 40)

    with pytest.raises(OSError, match="too large") as caught:
        store.read("record")

    assert caught.value.errno == errno.EFBIG


def test_a_store_stays_where_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = PosixStore("run")
    monkeypatch.chdir("/")

    put(store, "step/file")

    assert (tmp_path / "run" / "step" / "file").read_bytes() == b"x"
    assert store.location("step/file") == f"{tmp_path}/run/step/file"
    assert store.location("") == f"{tmp_path}/run"
    assert repr(store) == f"PosixStore('{tmp_path}/run')"


def test_an_open_file_stays_the_same_when_it_is_replaced(store: PosixStore) -> None:
    put(store, "file", b"old" * 10_000)
    file = store.file("file")
    start = file.read(3)

    put(store, "file", b"new" * 10_000)

    with file:
        assert start + file.read() == b"old" * 10_000
    assert read(store, "file") == b"new" * 10_000


def test_a_record_that_another_machine_replaced_is_read_again(store: PosixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, "record")
    fstat = os.fstat
    answers = [OSError(errno.ESTALE, "stale")]

    def stale_once(fd: int) -> os.stat_result:
        if answers:
            raise answers.pop()
        return fstat(fd)

    monkeypatch.setattr(os, "fstat", stale_once)

    assert read(store, "record") == b"x"


def test_links_to_files_are_followed_on_request_and_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"far")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "run" / "loop").symlink_to("loop")
    (tmp_path / "run" / "folder").symlink_to(tmp_path)
    store = PosixStore(tmp_path / "run", follow_links=True)

    store.delete(["link"])

    assert read(store, "link") == b"far"
    assert store.head("link").nbytes == 3
    assert store.head("broken") is None
    assert list(store.list("").files) == ["link"]
    assert store.list("").folders == ()
    assert read(store, "folder/elsewhere") is None
