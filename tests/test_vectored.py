import ctypes
import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from syscalls import in_child

from ckptmgr.storage import vectored


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def stingy(call: Callable[..., int], nbytes: int) -> Callable[..., int]:
    """The system call, moving at most ``nbytes`` bytes each time."""

    def moved(fd: int, buffers: list[Any], offset: int, flags: int = 0) -> int:
        views = [vectored._tail(buffer, 0) if vectored.size(buffer) else buffer for buffer in buffers]
        left, few = nbytes, []
        for view in views:
            few.append(view[: min(left, len(view))])
            left -= len(few[-1])
        return call(fd, few, offset)

    return moved


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 9), max_size=12), offset=st.integers(0, 5), limit=st.integers(1, 12))
def test_short_writes_and_reads_go_on(
    fd: int, monkeypatch: pytest.MonkeyPatch, sizes: list[int], offset: int, limit: int
) -> None:
    data = os.urandom(sum(sizes))
    ends = np.cumsum(sizes, dtype=int)
    buffers = [data[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    into = [bytearray(size) for size in sizes]

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", stingy(os.pwritev, limit))
        patched.setattr(os, "preadv", stingy(os.preadv, limit))
        vectored.write(fd, buffers, offset)
        vectored.read(fd, into, offset)

    assert os.pread(fd, 1_000, offset)[: len(data)] == data
    assert b"".join(into) == data


def test_arrays_of_every_layout_are_split_by_bytes(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3), np.array(7, ">i8"), np.ones((2, 1, 2), "<f4")]
    views = [memoryview(np.arange(4, dtype="<u2").reshape(2, 2))]
    monkeypatch.setattr(os, "pwritev", stingy(os.pwritev, 3))

    vectored.write(fd, [*arrays, *views], 0)

    assert os.pread(fd, 1_000, 0) == b"".join(buffer.tobytes() for buffer in [*arrays, *views])


def test_a_file_that_takes_nothing_more_is_an_error(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)

    with pytest.raises(OSError, match="no more bytes") as caught:
        vectored.write(fd, [b"x"], 0)

    assert caught.value.errno == errno.EIO


def test_a_buffer_with_gaps_is_refused(fd: int) -> None:
    with pytest.raises((ValueError, BufferError)):
        vectored.write(fd, [np.zeros((4, 4))[:, :2]], 0)


def test_the_end_of_the_file_is_told_with_what_is_missing(fd: int) -> None:
    os.write(fd, b"0123456789")

    with pytest.raises(EOFError, match=r"ends at byte 10, 5 bytes before"):
        vectored.read(fd, [bytearray(4), bytearray(8)], 3)


def test_space_is_reserved(fd: int) -> None:
    vectored.reserve(fd, 100_000)

    assert os.fstat(fd).st_size == 100_000
    assert os.fstat(fd).st_blocks * 512 >= 100_000


def test_nothing_to_reserve_is_fine(fd: int) -> None:
    vectored.reserve(fd, 0)

    assert os.fstat(fd).st_size == 0


def test_a_limit_shows_when_space_is_reserved(fd: int) -> None:
    def exceed() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
        with pytest.raises(OSError, match="File too large") as caught:
            vectored.reserve(fd, 1_001)
        assert caught.value.errno == errno.EFBIG

    assert in_child(exceed) == 0
    assert os.fstat(fd).st_size == 0


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_cannot_reserve_will_do(fd: int, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(vectored, "_fallocate", lambda *_: ctypes.set_errno(code) or -1)

    vectored.reserve(fd, 1_000)

    assert os.fstat(fd).st_size == 0


def test_an_interrupted_reservation_goes_on(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([errno.EINTR, errno.EINTR, 0])

    def fallocate(*_: int) -> int:
        code = next(answers)
        ctypes.set_errno(code)
        return -1 if code else 0

    monkeypatch.setattr(vectored, "_fallocate", fallocate)

    vectored.reserve(fd, 1_000)

    assert list(answers) == []


def test_a_platform_that_cannot_reserve_will_do(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectored, "_fallocate", None)

    vectored.reserve(fd, 1_000)

    assert os.fstat(fd).st_size == 0
