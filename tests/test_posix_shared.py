"""`PosixStore` in a folder that others write to, delete, lock or cannot lock at the same time."""

import copy
import errno
import fcntl
import os
import random
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from disks import put, read
from syscalls import exit_code, in_child, start_child

from ckptmgr.storage import Answer, PosixStore, lock, newfile

OK, NO = Answer.OK, Answer.NO


@pytest.fixture
def store(tmp_path: Path) -> PosixStore:
    return PosixStore(tmp_path / "run", lock_timeout_s=60)


def in_processes_and_threads(processes: int, threads: int, action: Callable[[int], object]) -> None:
    """Runs ``action(n)`` for every n at the same time, in ``processes`` children of ``threads`` threads each."""

    def run_threads(first: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(action, range(first, first + threads)))

    firsts = range(0, processes * threads, threads)
    children = [start_child(lambda first=first: run_threads(first)) for first in firsts]
    assert [exit_code(child) for child in children] == [0] * processes


def test_one_winner_for_every_version(store: PosixStore, tmp_path: Path) -> None:
    """Each change makes a content of its own, so each content may be consumed by one change only."""
    keys = ["0/record", "1/record", "2/record"]

    def change_at_random(n: int) -> None:
        dice = random.Random(n)
        with open(tmp_path / f"log-{n}", "w") as log:
            for turn in range(40):
                key, new = dice.choice(keys), f"{n}-{turn}"
                old = read(store, key)
                if old is None:
                    answer, call = store.create(key, new.encode()), f"{key} - {new}"
                elif dice.random() < 0.3:
                    answer, call = store.remove(key, old), f"{key} {old.decode()} -"
                else:
                    answer, call = store.replace(key, new.encode(), old), f"{key} {old.decode()} {new}"
                if answer is OK:
                    log.write(call + "\n")
                else:
                    assert answer is NO

    in_processes_and_threads(8, 2, change_at_random)

    changes = [line.split() for path in tmp_path.glob("log-*") for line in path.read_text().splitlines()]
    assert len(changes) > 50
    for key in keys:
        made = [new for where, _, new in changes if where == key and new != "-"]
        consumed = [old for where, old, _ in changes if where == key and old != "-"]
        last = read(store, key)
        assert len(set(consumed)) == len(consumed)
        assert set(made) - set(consumed) == ({last.decode()} if last else set())
        assert set(consumed) <= set(made)
    assert store.uploads("") == []


def test_one_winner_for_every_create(store: PosixStore, tmp_path: Path) -> None:
    def create_all(n: int) -> None:
        for step in range(10):
            if store.create(f"{step}/record", b"%d" % n) is OK:
                (tmp_path / f"winner-{step}-{n}").touch()

    in_processes_and_threads(8, 2, create_all)

    winners = sorted(path.name for path in tmp_path.glob("winner-*"))
    assert winners == sorted(f"winner-{step}-{read(store, f'{step}/record').decode()}" for step in range(10))


def test_folders_may_be_removed_while_they_are_empty(store: PosixStore) -> None:
    put(store, "other")

    def write_or_prune(n: int) -> None:
        for turn in range(60):
            if n:
                store.delete([f"step/{turn % 3}/", "step/"])
            else:
                put(store, f"step/{turn % 3}/file")
                store.delete([f"step/{turn % 3}/file"])
                assert store.create("step/record", b"x") is OK
                assert store.remove("step/record", b"x") is OK

    in_processes_and_threads(4, 1, write_or_prune)

    assert store.list("") == ({"other": store.head("other")}, ())


def test_a_folder_that_never_stays_is_told(store: PosixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, "other")
    monkeypatch.setattr(os, "mkdir", lambda *_, **__: None)
    monkeypatch.setattr(newfile, "_TRIES", 3)

    with pytest.raises(FileNotFoundError, match=r"again and again: .*run/step/file"):
        put(store, "step/file")


def test_a_folder_deleted_during_a_put_fails_it_and_not_the_next(store: PosixStore, tmp_path: Path) -> None:
    def windows() -> Iterator[list[bytes]]:
        yield [b"half"]
        shutil.rmtree(tmp_path / "run" / "step")
        yield [b"half"]

    with pytest.raises(FileNotFoundError, match=r"unfinished file.*step/a/file"):
        store.put("step/a/file", windows(), 8)
    assert store.list("") == ({}, ())
    put(store, "step/a/file")

    assert read(store, "step/a/file") == b"x"


def test_a_run_deleted_under_us_is_empty_and_can_be_begun_again(store: PosixStore, tmp_path: Path) -> None:
    store.create("step/record", b"x")
    shutil.rmtree(tmp_path / "run")

    assert store.list("") == ({}, ())
    assert store.read("step/record") is None
    assert store.replace("step/record", b"y", b"x") is NO
    assert store.remove("step/record", b"x") is NO
    store.delete(["step/record", "step/"])
    assert store.now() > 0
    assert os.listdir(tmp_path) == []
    assert store.create("step/record", b"z") is OK


def test_a_stopped_process_delays_changes_of_records_and_nothing_else(store: PosixStore, tmp_path: Path) -> None:
    store.create("step/record", b"x")
    hasty = PosixStore(tmp_path / "run", lock_timeout_s=0.05)
    with open(tmp_path / "run" / ".ckptmgr.lock", "rb") as held_by_another:
        fcntl.flock(held_by_another, fcntl.LOCK_EX)

        for call in (
            lambda: hasty.create("other/record", b"y"),
            lambda: hasty.replace("step/record", b"y", b"x"),
            lambda: hasty.remove("step/record", b"x"),
        ):
            with pytest.raises(TimeoutError, match=r"another process.*run/\.ckptmgr\.lock"):
                call()
        put(hasty, "step/a/file")
        assert read(hasty, "step/record") == b"x"
        assert hasty.list("step/").folders == ("a",)
        assert hasty.now() > 0

    assert store.uploads("") == []
    assert store.read("other/record") is None
    assert hasty.replace("step/record", b"y", b"x") is OK


def test_a_killed_process_leaves_no_lock(store: PosixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def die_with_the_lock() -> None:
        monkeypatch.setattr(os, "link", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        store.create("step/record", b"x")

    assert in_child(die_with_the_lock) == -9

    assert store.create("step/record", b"y") is OK
    assert len(store.uploads("step/")) == 1


def test_a_copy_of_a_store_works_as_well(store: PosixStore) -> None:
    store.create("record", b"x")

    assert copy.deepcopy(store).replace("record", b"y", b"x") is OK


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(lock, "_warned_roots", {})


@pytest.mark.usefixtures("no_locks")
def test_without_locks_one_warning_for_each_root(store: PosixStore, tmp_path: Path) -> None:
    assert not store.is_weak
    with pytest.warns(UserWarning, match=r"'.*/run' has no locks: let only one process"):
        assert store.create("record", b"x") is OK
    assert store.is_weak

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.create("record", b"y") is NO
        assert PosixStore(tmp_path / "run").replace("record", b"y", b"x") is OK
        assert store.replace("record", b"z", b"x") is NO
        assert store.remove("record", b"y") is OK
    with pytest.warns(UserWarning, match="other"):
        PosixStore(tmp_path / "other").create("record", b"x")


@pytest.mark.usefixtures("no_locks")
@pytest.mark.filterwarnings("ignore:the file system")
def test_create_is_exclusive_even_without_locks(store: PosixStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: store.create("record", b"%d" % n), range(8)))

    assert sorted(answers, key=str) == [NO] * 7 + [OK]
