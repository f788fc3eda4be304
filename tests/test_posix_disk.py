"""What `PosixStore` does with permissions, and on full and read-only disks."""

import errno
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from disks import put, read, tree
from syscalls import counting, in_child

from ckptmgr.storage import Answer, PosixStore

NOBODY = 65534


@pytest.fixture
def store(tmp_path: Path) -> PosixStore:
    return PosixStore(tmp_path / "run", lock_timeout_s=30)


@pytest.mark.parametrize(
    ("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0o077, 0o600, 0o700)]
)
def test_permissions_follow_the_umask(store: PosixStore, tmp_path: Path, umask: int, file_mode: int, folder_mode: int) -> None:
    def write() -> None:
        os.umask(umask)
        put(store, "step/a/file")
        store.create("step/record", b"x")
        store.replace("step/record", b"y", b"x")
        store.create("step/claim", b"x")

    assert in_child(write) == 0

    modes = {name: (tmp_path / "run" / name).stat().st_mode & 0o7777 for name in [".", *tree(tmp_path / "run")]}
    folders = {".", "step", "step/a"}
    assert modes == {name: folder_mode if name in folders else file_mode for name in modes}
    assert len(modes) == 7


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that other users reach, which pytest's are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o700)
    shutil.rmtree(folder)


def as_nobody(action: Callable[[], None]) -> int:
    """Runs ``action`` in a child without root's power to ignore permissions."""

    def drop_and_act() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        action()

    return in_child(drop_and_act)


def test_a_read_only_folder_is_read_and_refuses_the_rest(open_to_all: Path) -> None:
    store = PosixStore(open_to_all / "run")
    store.create("step/record", b"x")
    put(store, "step/a/file")
    for path in (open_to_all / "run").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (open_to_all / "run").chmod(0o555)
    before = {path: path.stat() for path in open_to_all.rglob("*")}

    def use() -> None:
        with counting() as calls:
            assert (read(store, "step/record"), read(store, "step/a/file")) == (b"x", b"x")
            assert store.list("").folders == ("step",)
            assert store.head("step/a/file").nbytes == 1
            assert store.uploads("") == []
            assert abs(store.now() - store.head("step/record").modified) < 3600
        assert calls == []
        for refused in (
            lambda: put(store, "step/a/file"),
            lambda: put(store, "new/file"),
            lambda: store.create("step/claim", b"x"),
            lambda: store.replace("step/record", b"y", b"x"),
            lambda: store.remove("step/record", b"x"),
            lambda: store.delete(["step/a/file"]),
        ):
            with pytest.raises(PermissionError, match=str(open_to_all / "run")):
                refused()

    assert as_nobody(use) == 0
    assert {path: path.stat()[:9] for path in open_to_all.rglob("*")} == {path: before[path][:9] for path in before}


def test_an_unreadable_file_or_folder_is_not_taken_for_absent(open_to_all: Path) -> None:
    store = PosixStore(open_to_all / "run")
    put(store, "record")
    put(store, "step/record")
    (open_to_all / "run" / "record").chmod(0)
    (open_to_all / "run" / "step").chmod(0)

    def use() -> None:
        for call in (store.read, store.file):
            with pytest.raises(PermissionError, match=r"run/record"):
                call("record")
        for call in (store.read, store.head, lambda _: store.list("step/"), lambda _: store.uploads("")):
            with pytest.raises(PermissionError, match=r"run/step"):
                call("step/record")

    assert as_nobody(use) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_shows_before_the_first_byte(small_disk: Path) -> None:
    store = PosixStore(small_disk / "run")
    put(store, "old", b"o" * 500_000)

    for key in ("old", "new/file"):
        with pytest.raises(OSError, match=f"run/{key}") as caught:
            store.put(key, (pytest.fail("bytes were asked for") for _ in range(1)), 600_000)
        assert caught.value.errno == errno.ENOSPC

    assert read(store, "old") == b"o" * 500_000
    assert store.uploads("") == []
    put(store, "new/file", b"n" * 400_000)


def test_a_completely_full_disk_can_be_read_and_emptied(small_disk: Path) -> None:
    store = PosixStore(small_disk / "run")
    store.create("step/record", b"x")
    put(store, "step/file", b"f" * 100_000)
    with open(small_disk / "filler", "wb", buffering=0) as filler, suppress(OSError):
        while filler.write(b"f" * 4096):
            pass

    for call in (lambda: store.create("step/claim", b"c" * 9_000), lambda: store.replace("step/record", b"r" * 9_000, b"x")):
        with pytest.raises(OSError, match="No space"):
            call()
    assert read(store, "step/record") == b"x"
    assert store.read("step/claim") is None
    assert store.remove("step/record", b"x") is Answer.OK
    store.delete(["step/file"])

    assert store.list("") == ({}, ())


def test_a_read_only_disk_is_read_and_refuses_the_rest(small_disk: Path) -> None:
    store = PosixStore(small_disk / "run")
    store.create("record", b"x")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)

    assert read(store, "record") == b"x"
    assert set(store.list("").files) == {"record"}
    assert store.now() > 0
    for call in (lambda: put(store, "a"), lambda: store.create("b", b""), lambda: store.replace("record", b"y", b"x")):
        with pytest.raises(OSError, match="Read-only") as caught:
            call()
        assert caught.value.errno == errno.EROFS


def test_a_limit_on_file_sizes_shows_before_the_first_byte(store: PosixStore, tmp_path: Path) -> None:
    def exceed() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(OSError, match="run/step/file") as caught:
            store.put("step/file", (pytest.fail("bytes were asked for") for _ in range(1)), 100_001)
        assert caught.value.errno == errno.EFBIG
        put(store, "step/file", bytes(100_000))

    assert in_child(exceed) == 0
    assert tree(tmp_path / "run") == ["step", "step/file"]
