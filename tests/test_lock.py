import errno
import fcntl
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from syscalls import failing_at, in_child, start_child

from ckptmgr.storage.lock import exclusive


@contextmanager
def holder(path: str) -> Iterator[int]:
    """A child process that holds the lock until it is killed."""
    ready, tell = os.pipe()

    def hold() -> None:
        with exclusive(path, 5):
            os.write(tell, b"x")
            while True:
                signal.pause()

    child = start_child(hold)
    os.read(ready, 1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(tell)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "lock")


def test_the_lock_is_real_and_its_file_stays(path: str) -> None:
    for _ in range(2):
        with exclusive(path, 1) as is_real:
            assert is_real

        assert os.listdir(os.path.dirname(path)) == ["lock"]


def test_one_thread_at_a_time(path: str) -> None:
    inside = []

    def enter(n: int) -> None:
        with exclusive(path, 30):
            inside.append(n)
            time.sleep(0.001)
            assert inside == [n]
            inside.pop()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(enter, range(24)))


def test_a_stopped_holder_only_delays(path: str) -> None:
    with holder(path) as child:
        os.kill(child, signal.SIGSTOP)

        started = time.monotonic()
        with pytest.raises(TimeoutError, match="another process") as caught, exclusive(path, 0.2):
            pytest.fail("the lock is held by another")

        assert caught.value.filename == path
        assert 0.2 <= time.monotonic() - started < 5


def test_a_dead_holder_frees_the_lock(path: str) -> None:
    with holder(path):
        pass

    with exclusive(path, 0) as is_real:
        assert is_real


def test_who_waits_gets_the_lock_when_it_is_free(path: str) -> None:
    def enter() -> bool:
        with exclusive(path, 30) as is_real:
            return is_real

    with holder(path) as child, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(enter)
        os.kill(child, signal.SIGKILL)

        assert waiting.result()


def test_a_child_of_a_dead_holder_does_not_keep_the_lock(path: str) -> None:
    """A worker that was forked while its trainer saved, and outlives it."""
    told, tell = os.pipe()

    def hold_and_die_with_a_child_left() -> None:
        with exclusive(path, 5):
            worker = os.fork()
            if worker == 0:
                signal.pause()
            os.write(tell, b"%d" % worker)
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(hold_and_die_with_a_child_left) == -9
    worker = int(os.read(told, 20))
    try:
        with exclusive(path, 1) as is_real:
            assert is_real
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(told)
        os.close(tell)


def test_a_child_does_not_free_the_lock_of_its_parent(path: str) -> None:
    with exclusive(path, 1):
        assert in_child(lambda: None) == 0

        with pytest.raises(TimeoutError), exclusive(path, 0):
            pytest.fail("the parent holds it")


def test_a_child_that_leaves_the_block_of_its_parent_does_no_harm(path: str) -> None:
    """A signal handler may fork while the lock is held, and the child then runs to the end of the block."""
    held = exclusive(path, 1)
    held.__enter__()

    def leave() -> None:
        descriptor = os.open(os.devnull, os.O_RDONLY)  # it gets the number that the lock file had
        held.__exit__(None, None, None)
        os.fstat(descriptor)

    assert in_child(leave) == 0
    with pytest.raises(TimeoutError), exclusive(path, 0):
        pytest.fail("the parent holds it")
    held.__exit__(None, None, None)


def test_forks_and_locks_in_many_threads_do_not_hang(path: str) -> None:
    def lock_and_fork(_: int) -> int:
        with exclusive(path, 30):
            return in_child(lambda: None)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lock_and_fork, range(12))) == [0] * 12


def test_a_lock_file_that_was_deleted_meanwhile_is_not_the_lock(path: str) -> None:
    entered = threading.Event()

    def enter() -> bool:
        with exclusive(path, 30):
            entered.set()
            with open(path) as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True

    with ThreadPoolExecutor(1) as threads:
        with exclusive(path, 1):
            waiting = threads.submit(enter)
            time.sleep(0.05)  # it waits for the first file by now, or will see the second at once: both must work
            os.unlink(path)
        assert waiting.result()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_without_locks_the_lock_is_not_real(path: str, code: int) -> None:
    with failing_at(1, code) as calls, exclusive(path, 1) as is_real:
        assert not is_real

    assert [call.name for call in calls] == ["open", "flock", "flock"]


def test_another_error_of_the_lock_is_told(path: str) -> None:
    with failing_at(1, errno.EIO), pytest.raises(OSError, match="lock") as caught, exclusive(path, 1):
        pytest.fail("there is no lock")

    assert (caught.value.errno, caught.value.filename) == (errno.EIO, path)


def test_a_link_is_not_taken_for_the_lock_file(path: str, tmp_path: Path) -> None:
    os.symlink(tmp_path / "elsewhere", path)

    with pytest.raises(OSError, match="lock") as caught, exclusive(path, 1):
        pytest.fail("a link was followed")

    assert caught.value.errno == errno.ELOOP
    assert not (tmp_path / "elsewhere").exists()


def test_a_lock_file_of_another_user_will_do(path: str) -> None:
    with exclusive(path, 1):
        pass
    os.chmod(path, stat.S_IRUSR)

    with failing_at(0, errno.EACCES), exclusive(path, 1) as is_real:
        assert is_real


def test_a_folder_that_refuses_the_lock_file_says_so(path: str) -> None:
    with failing_at(0, errno.EACCES), pytest.raises(PermissionError, match="lock"), exclusive(path, 1):
        pytest.fail("there is no lock")
