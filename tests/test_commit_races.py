"""A thousand races on a real folder: threads and processes save, overwrite, delete, pin, collect, sweep and read at once."""

import multiprocessing
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from interleaving import Violation
from racing import Event, Log, LoggingStore, check_history, records_of
from saves import NAMING, begin, finish, is_whole, manifest, places, write

from ckptmgr import commit
from ckptmgr.errors import CommitUnknownError, SaveError, StepExistsError, StepNotFoundError
from ckptmgr.ledger import records
from ckptmgr.storage import Folder, PosixStore
from ckptmgr.sweep import sweep

ROUNDS = 500  # in threads, and as many in processes
WORKERS = 4
STEPS = (1, 2, 3)
KINDS = ("commit", "commit", "overwrite", "overwrite", "delete", "retention", "pin", "sweep", "sweep", "read")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a file system: what is tested here is the order of things, not the disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    place = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield place
    shutil.rmtree(place)


def test_threads_racing_on_a_run_keep_the_laws(folder: Path) -> None:
    logs = [Log() for _ in range(WORKERS)]
    barrier = threading.Barrier(WORKERS)
    troubles: list[BaseException] = []

    def work(number: int) -> None:
        try:
            race(folder, number, barrier, logs[number])
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:  # noqa: BLE001  raised below, in the test's own thread
            troubles.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert troubles == []
    check_end(folder, Log([event for log in logs for event in log.events]))


def test_processes_racing_on_a_run_keep_the_laws(folder: Path, tmp_path: Path) -> None:
    forking = multiprocessing.get_context("fork")
    barrier = forking.Barrier(WORKERS)
    paths = [tmp_path / f"log-{number}.json" for number in range(WORKERS)]

    def work(number: int) -> None:
        log = Log()
        try:
            race(folder, WORKERS + number, barrier, log)
        except BaseException:
            barrier.abort()
            raise
        log.save(paths[number])

    children = [forking.Process(target=work, args=(number,)) for number in range(WORKERS)]
    for child in children:
        child.start()
    for child in children:
        child.join()

    assert [child.exitcode for child in children] == [0] * WORKERS
    log = Log()
    for path in paths:
        log.load(path)
    check_end(folder, log)


def race(folder: Path, seed: int, barrier: Any, log: Log) -> None:
    chance = random.Random(seed)
    store = LoggingStore(PosixStore(folder), log)
    for _ in range(ROUNDS):
        store.why, step = chance.choice(KINDS), chance.choice(STEPS)
        barrier.wait()
        act(Folder(store), store.why, step, log)


def act(root: Folder, why: str, step: int, log: Log) -> None:
    name = NAMING.format(step)
    if why in ("commit", "overwrite"):
        log.events.append(saved(root, step, overwrite=why == "overwrite"))
    elif why == "delete":
        commit.delete(root, name, step)
    elif why == "retention":
        found, _ = records(root, NAMING)
        committed = sorted((each.record.manifest.sequence, each.step, each) for each in found if each.record.manifest)
        commit.collect(root, [each for *_, each in committed[:-1] if not each.record.pins])
    elif why == "sweep":
        sweep(root, NAMING, grace_s=0)
    elif why == "read":
        read(root, step)
    else:
        try:
            commit.pin(root, name, step, "paper")
            commit.unpin(root, name, step, "paper")
        except StepNotFoundError:
            pass


def saved(root: Folder, step: int, *, overwrite: bool) -> Event:
    """What the caller of a save was told."""
    event = Event("told", time.monotonic())
    try:
        attempt = begin(root, step, overwrite=overwrite)
        event.attempt = attempt.attempt
        write(attempt, nfiles=2)
        finish(attempt, nfiles=2)
        event.answer = "ok"
    except StepExistsError:
        event.answer = "exists"
    except CommitUnknownError:
        event.answer = "unknown"
    except SaveError:
        event.answer = "taken"
    except FileNotFoundError:  # a sweep without grace ended the unfinished file
        event.answer = "error"
    event.ended = time.monotonic()
    return event


def read(root: Folder, step: int) -> None:
    """I5: right bytes; or a file is missing, and the record says why."""
    found = manifest(root, step)
    for path, _, expected in places(NAMING.format(step), found) if found else ():
        data = root.read(path)
        if data is None and found == manifest(root, step):
            raise Violation(f"I5: {path} is missing, and its manifest is there")
        if data is not None and data[0] != expected:
            raise Violation(f"I5: {path} holds {data[0]!r}")


def check_end(folder: Path, log: Log) -> None:
    root = Folder(PosixStore(folder))

    commits = check_history(log, records_of(folder))

    assert commits > ROUNDS / 4
    assert {event.answer for event in log.events if event.attempt and not event.key} >= {"ok", "exists", "taken"}
    committed = [step for step in STEPS if manifest(root, step)]
    assert all(is_whole(root, step) for step in committed)
    sweep(root, NAMING, grace_s=0)
    expected = {NAMING.format(step) + "/manifest.json" for step in committed}
    expected |= {path for step in committed for path, *_ in places(NAMING.format(step), manifest(root, step))}
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert left == expected | {".ckptmgr.lock"}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {NAMING.format(step) for step in committed}
