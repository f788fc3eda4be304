"""Early writeback: every way writes the same bytes, and what is not known here is asked once."""

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptmgr.storage import PosixStore, writeback
from ckptmgr.storage.writeback import WAYS, Way, Writeback

libc = ctypes.CDLL(None)
WINDOWS = [[b"head", np.arange(1_000, dtype=np.int16)], [np.ones((3, 5), "<f4")], [bytearray(b"end")]]
BYTES = b"".join(bytes(memoryview(buffer).cast("B")) for window in WINDOWS for buffer in window)


@pytest.fixture(autouse=True)
def _nothing_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "_refused", set())


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def written(fd: int, way: Way) -> bytes:
    """The file's bytes after all windows were written that way."""
    file, done = Writeback(fd, way), 0
    for window in WINDOWS:
        nbytes = sum(memoryview(buffer).nbytes for buffer in window)
        file.write(window, done)
        file.start(done, nbytes)
        done += nbytes
    return os.pread(fd, 1 << 20, 0)


def refusing(calls: list[int], code: int) -> Callable[..., int]:
    """`sync_file_range` as ctypes calls it, with that error; ``calls`` gets the offset of each."""

    def call(fd: int, offset: int, nbytes: int, flags: int) -> int:
        calls.append(offset)
        ctypes.set_errno(code)
        return -1

    return call


@pytest.mark.parametrize("way", WAYS)
def test_every_way_writes_the_same_bytes(tmp_path: Path, way: Way) -> None:
    store = PosixStore(tmp_path, writeback=way)

    store.put("data", WINDOWS, len(BYTES))

    assert (tmp_path / "data").read_bytes() == BYTES


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ESPIPE])
def test_auto_takes_the_next_way_where_the_first_is_not_known(fd: int, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    asked: list[int] = []
    advised: list[tuple[int, ...]] = []
    monkeypatch.setattr(writeback, "_sync_file_range", refusing(asked, code))
    monkeypatch.setattr(os, "posix_fadvise", lambda *args: advised.append(args))

    assert written(fd, "auto") == BYTES

    assert asked == [0]
    assert [args[1:3] for args in advised] == [(0, 2004), (2004, 60), (2064, 3)]


def test_what_a_file_system_does_not_know_is_not_asked_again(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(writeback, "_sync_file_range", refusing(asked, errno.ENOSYS))

    written(fd, "sync_file_range")
    written(fd, "sync_file_range")

    assert asked == [0]


def test_a_hint_that_fails_is_asked_again_and_fails_no_write(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(writeback, "_sync_file_range", refusing(asked, errno.ENOMEM))

    assert written(fd, "auto") == BYTES

    assert asked == [0, 2004, 2064]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_bytes_that_the_disk_could_not_take_fail_the_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(writeback, "_sync_file_range", refusing([], code))
    store = PosixStore(tmp_path)

    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        store.put("data", WINDOWS, len(BYTES))

    assert (caught.value.errno, caught.value.filename) == (code, str(tmp_path / "data"))
    assert list(tmp_path.iterdir()) == []


def test_a_platform_without_any_of_the_calls_will_do(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "_sync_file_range", None)
    monkeypatch.delattr(os, "posix_fadvise")

    assert written(fd, "auto") == BYTES


@pytest.mark.parametrize(
    "error", [OSError(errno.EOPNOTSUPP, "no"), OSError(errno.EINVAL, "no"), NotImplementedError("no pwritev2")]
)
def test_a_write_that_may_not_skip_the_cache_goes_through_it(fd: int, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    flags: list[int] = []
    pwritev = os.pwritev

    def call(fd: int, buffers: list[Any], offset: int, flag: int) -> int:
        flags.append(flag)
        if flag:
            raise error
        return pwritev(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", call)

    assert written(fd, "dontcache") == BYTES

    assert flags == [0x80, 0, 0, 0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EINVAL])
def test_errors_of_the_write_come_through(fd: int, monkeypatch: pytest.MonkeyPatch, way: Way, code: int) -> None:
    def fail(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwritev", fail)

    with pytest.raises(OSError, match=r".") as caught:
        written(fd, way)

    assert caught.value.errno == code


def test_an_unknown_way_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"writeback must be one of 'auto', .* not 'fast'"):
        PosixStore(tmp_path, writeback="fast")  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(libc, "mincore"), reason="no mincore on this system")
@pytest.mark.parametrize("way", [way for way in WAYS if way != "dontcache"])
def test_what_was_written_stays_in_memory_for_whoever_copies_it(way: Way, tmp_path: Path) -> None:
    store = PosixStore(tmp_path, writeback=way)
    store.put("file", [[np.ones(2 << 20, np.uint8)] for _ in range(4)], 8 << 20)

    pages = np.memmap(tmp_path / "file", np.uint8, "r")
    found = np.zeros(len(pages) // os.sysconf("SC_PAGE_SIZE"), np.uint8)
    asked = libc.mincore(ctypes.c_void_p(pages.ctypes.data), ctypes.c_size_t(len(pages)), ctypes.c_void_p(found.ctypes.data))

    assert asked == 0
    assert (found & 1).all()
