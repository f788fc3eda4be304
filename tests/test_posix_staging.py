"""Files that `PosixStore` keeps without their names, and what becomes of them."""

import errno
from pathlib import Path

import pytest
from disks import put, read, tree
from syscalls import counting, failing_at

from ckptmgr.storage import PosixStore, StagingStore, Upload
from ckptmgr.storage.newfile import TEMPORARY


@pytest.fixture
def store(tmp_path: Path) -> PosixStore:
    return PosixStore(tmp_path / "run")


def stage(store: PosixStore, key: str, data: bytes = b"new") -> Upload:
    return store.stage(key, [[data]], len(data))


def test_a_staged_file_is_an_upload_and_is_not_seen(store: PosixStore, tmp_path: Path) -> None:
    put(store, "step/file", b"old")

    upload = stage(store, "step/file")

    assert isinstance(store, StagingStore)
    assert read(store, "step/file") == b"old"
    assert set(store.list("step/").files) == {"file"}
    assert store.uploads("") == [upload]
    assert TEMPORARY.fullmatch(upload.id)
    assert (tmp_path / "run" / upload.key).read_bytes() == b"new"


@pytest.mark.parametrize("key", ["file", "step/a/file"])
def test_a_staged_file_takes_its_name_from_another(store: PosixStore, tmp_path: Path, key: str) -> None:
    put(store, key, b"old")

    store.rename({key: stage(store, key)})

    assert read(store, key) == b"new"
    assert store.uploads("") == []
    assert [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()] == ["file"]


def test_an_aborted_one_is_gone_and_cannot_take_its_name(store: PosixStore, tmp_path: Path) -> None:
    put(store, "file", b"old")
    upload = stage(store, "file")
    store.abort(upload)

    with pytest.raises(FileNotFoundError) as caught:
        store.rename({"file": upload})

    assert caught.value.filename == str(tmp_path / "run" / "file")
    assert tree(tmp_path / "run") == ["file"]
    assert read(store, "file") == b"old"


@pytest.mark.parametrize("data", [b"ne", b"newer"], ids=["too short", "too long"])
def test_of_one_that_is_not_whole_nothing_is_left(store: PosixStore, tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"run/file.* the 3 bytes that were announced"):
        store.stage("file", [[data]], 3)

    assert tree(tmp_path / "run") == []


def test_only_a_staged_file_beside_the_name_takes_it(store: PosixStore, tmp_path: Path) -> None:
    put(store, "other")
    upload = stage(store, "step/file")

    for wrong, key in ((upload, "file"), (Upload("other", "other", 0.0), "file"), (Upload("../x", "x", 0.0), "file")):
        with pytest.raises(ValueError, match=r"no unfinished file|no safe key"):
            store.rename({"step/file": upload, key: wrong})

    assert tree(tmp_path / "run") == ["other", "step", f"step/{upload.id}"]


@pytest.mark.parametrize("key", ["../x", "a//b", ".ckptmgr.lock", ".ckptmgr-0123456789abcdef.tmp"])
def test_an_unsafe_or_reserved_name_is_refused(store: PosixStore, tmp_path: Path, key: str) -> None:
    upload = Upload(".ckptmgr-0123456789abcdef.tmp", "", 0.0)

    for call in (lambda: stage(store, key), lambda: store.rename({key: upload})):
        with pytest.raises(ValueError, match=r"key|name"):
            call()

    assert tree(tmp_path) == []


def test_its_bytes_are_durable_first_and_its_name_when_rename_returns(store: PosixStore, tmp_path: Path) -> None:
    put(store, "file", b"old")

    with counting() as calls:
        upload = stage(store, "file")
        store.rename({"file": upload})

    done = [(call.name, Path(call.path).name) for call in calls]
    assert done[-4:] == [("pwritev", upload.id), ("fsync", upload.id), ("replace", "file"), ("fsync", "run")]


def test_files_that_appear_together_cost_one_sync_of_their_folder(store: PosixStore) -> None:
    staged = {key: stage(store, key) for key in ("step/a", "step/b", "c")}

    with counting() as calls:
        store.rename(staged)

    assert [(call.name, Path(call.path).name) for call in calls][:3] == [("replace", "a"), ("replace", "b"), ("replace", "c")]
    assert sorted((call.name, Path(call.path).name) for call in calls[3:]) == [("fsync", "run"), ("fsync", "step")]


@pytest.mark.parametrize("name", ["open", "fallocate", "pwritev", "fsync"])
def test_a_full_disk_leaves_nothing_and_names_the_file(store: PosixStore, tmp_path: Path, name: str) -> None:
    put(store, "file", b"old")
    with counting() as calls:
        store.abort(stage(store, "file"))
    n = [call.name for call in calls].index(name)

    with failing_at(n, errno.ENOSPC), pytest.raises(OSError, match=r"run/file") as caught:
        stage(store, "file")

    assert caught.value.errno == errno.ENOSPC
    assert tree(tmp_path / "run") == ["file"]
