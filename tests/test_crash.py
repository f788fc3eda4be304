"""Death and failure at every single system call, and at random moments: no committed step is ever lost or changed.

Children are forked from this warm process, so that a death costs milliseconds. A check after a death is done by
another fresh process-like manager: nothing is remembered between them.
"""

import contextlib
import errno
import os
import random
import select
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from syscalls import counting, dying_at, failing_at, in_child, start_child

from ckptmgr import BackgroundSaver, CheckpointManager, KeepLast

NEW = 4
Action = Callable[[Path], object]


def state(step: int, version: int = 0) -> dict:
    rng = np.random.default_rng([step, version])
    return {"w": rng.random((50, 20)), "half": rng.random(9).astype(np.float16), "step": step, "version": version}


def same(found: dict, step: int, version: int = 0) -> bool:
    expected = state(step, version)
    return all(np.array_equal(found[name], value) for name, value in expected.items())


def save(root: Path) -> None:
    CheckpointManager(root, max_file_nbytes=4000).save(NEW, state(NEW), assets={"notes.txt": b"n"})


def save_in_background(root: Path) -> None:
    with BackgroundSaver(CheckpointManager(root, max_file_nbytes=4000)) as saver:
        saver.save(NEW, state(NEW), assets={"notes.txt": b"n"})


def save_first(root: Path) -> None:
    CheckpointManager(root / "new").save(NEW, state(NEW))


def overwrite(root: Path) -> None:
    CheckpointManager(root).save(3, state(3, version=1), overwrite=True)


def delete(root: Path) -> None:
    CheckpointManager(root).delete(2)


def collect(root: Path) -> None:
    CheckpointManager(root, retention=KeepLast(1)).collect()


def save_and_collect(root: Path) -> None:
    CheckpointManager(root, retention=KeepLast(2)).save(NEW, state(NEW))


def pin(root: Path) -> None:
    CheckpointManager(root).pin(1, "paper")


def sweep(root: Path) -> None:
    CheckpointManager(root).sweep(grace=0)


ACTIONS: list[Action] = [save, save_in_background, save_first, overwrite, delete, collect, save_and_collect, pin, sweep]


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """Steps 1 to 3, and the leavings of two saves that died: one before its first file, one in the middle."""
    root = tmp_path_factory.mktemp("template") / "run"
    for step in (1, 2, 3):
        CheckpointManager(root).save(step, state(step))
    with counting() as calls:
        CheckpointManager(root).save(9, state(9))
    CheckpointManager(root).delete(9)
    for step, n in ((9, len(calls) // 3), (3, len(calls) // 2)):
        again = lambda step=step, n=n: dies(n, lambda: CheckpointManager(root).save(step, state(step), overwrite=True))  # noqa: E731
        assert in_child(again) == -signal.SIGKILL
    return root


def dies(n: int, call: Callable[[], object], when: str = "after") -> None:
    with dying_at(n, when=when):
        call()


def count(template: Path, tmp_path: Path, action: Action) -> int:
    shutil.copytree(template, tmp_path / "count")
    with counting() as calls:
        action(tmp_path / "count")
    return len(calls)


def check(root: Path, action: Action, *, finished: bool) -> None:
    """What must hold after the action died or failed anywhere: whole steps only, none lost, and no debris after a sweep."""
    folder = root / "new" if action is save_first else root
    manager = CheckpointManager(folder)
    found = {info.step: manager.restore(info.step).state for info in manager.steps()}
    before = set() if action is save_first else {1, 2, 3}
    may_go = {delete: {2}, collect: {1, 2}, save_and_collect: {1, 2}}.get(action, set())
    may_come = {NEW} if action in (save, save_in_background, save_first, save_and_collect) else set()

    assert before - may_go <= set(found) <= before | may_come
    assert all(same(tensors, step, tensors["version"]) for step, tensors in found.items())
    assert all(tensors["version"] == 0 or action is overwrite for tensors in found.values())
    if finished and action is not overwrite:
        assert may_come <= set(found)
    if NEW in found:
        assert manager.latest().step == NEW
    elif found:
        assert manager.restore().step == 3

    manager.save(10, state(10))
    manager.sweep(grace=0)

    assert same(manager.restore().state, 10)
    assert {info.step for info in manager.steps()} == {*found, 10}
    assert manager.verify().ok
    expected = {folder / ".ckptmgr.lock"}
    for info in manager.steps():
        with manager.open(info.step) as checkpoint:
            expected |= {folder / info.name / "manifest.json", *(Path(info.path) / entry.name for entry in checkpoint.files)}
    left = {path for path in folder.rglob("*") if not path.is_dir() or not any(path.iterdir())}
    assert left - {root / "new"} == expected, "debris"


@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
@pytest.mark.parametrize("when", ["before", "after"])
def test_every_system_call_may_be_the_last_before_death(template, tmp_path, action, when):
    total = count(template, tmp_path, action)
    for n in range(total):
        root = tmp_path / f"run-{n}"
        shutil.copytree(template, root)

        status = in_child(lambda n=n, root=root: dies(n, lambda: action(root), when))

        assert status == -signal.SIGKILL, f"call {n} of {total} was never reached"
        check(root, action, finished=False)
        shutil.rmtree(root)


@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=errno.errorcode.get)
def test_every_system_call_may_fail(template, tmp_path, action, code):
    total = count(template, tmp_path, action)
    for n in range(total):
        root = tmp_path / f"run-{n}"
        shutil.copytree(template, root)

        finished = True
        with failing_at(n, code), contextlib.ExitStack() as stack:
            stack.push(lambda kind, error, trace: kind is not None and issubclass(kind, OSError))
            finished = False
            action(root)
            finished = True

        check(root, action, finished=finished)
        shutil.rmtree(root)


@pytest.mark.slow
def test_a_full_disk_that_stays_full_harms_no_step(template, tmp_path):
    total = count(template, tmp_path, save)
    for n in range(0, total):
        root = tmp_path / f"run-{n}"
        shutil.copytree(template, root)

        with failing_at(n, errno.ENOSPC, lasting=True), contextlib.suppress(OSError):
            save(root)

        check(root, save, finished=False)
        shutil.rmtree(root)


@pytest.mark.slow
def test_200_random_kills_of_a_saving_loop_lose_nothing(tmp_path):
    rng = random.Random(1)
    kills = acknowledged = interrupted = 0
    while kills < 200:
        receive, send = os.pipe()
        child = start_child(lambda send=send: _save_for_ever(tmp_path, send))
        os.close(send)
        select.select([receive], [], [], 30)  # at least one save of each life is under way
        time.sleep(rng.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(receive, "rb") as stream:
            told = stream.read().split()
        kills += 1
        acknowledged = max([acknowledged, *map(int, told)])

        manager = CheckpointManager(tmp_path)
        steps = manager.steps()

        assert max([0, *(info.step for info in steps)]) >= acknowledged
        assert all(same(manager.restore(info.step).state, info.step) for info in steps)
        assert not steps or manager.restore().step == steps[-1].step
        swept = manager.sweep(grace=0)
        interrupted += bool(swept.claims or swept.files or swept.uploads)
        assert [info.step for info in manager.steps()] == [info.step for info in steps]
    assert interrupted > 50, "too few kills hit a save"
    assert len(list(tmp_path.glob("step-*"))) == len(CheckpointManager(tmp_path).steps())


def _save_for_ever(root: Path, send: int) -> None:
    manager = CheckpointManager(root, retention=KeepLast(3))
    latest = manager.latest()
    step = latest.step if latest else 0
    os.write(send, b" ")
    while True:
        step += 1
        manager.save(step, state(step))
        os.write(send, b"%d " % step)
