"""Ctrl-C at any place of a save or restore, in a process that goes on: nothing is lost, kept open, locked or left running.

Set CKPTMGR_ALL_FAULTS=1 for every place.
"""

import functools
import gc
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from interrupts import descriptors, interrupted_at, signalled_after, threads, wait_for

from ckptmgr import BackgroundSaver, CheckpointManager, KeepLast
from ckptmgr.storage import PosixStore

IS_ALL = "CKPTMGR_ALL_FAULTS" in os.environ
# One that comes while a generator or a weak reference is let go of cannot be raised: Python tells of it and goes on.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]
PLACES, SIGNALS = (10**9, 2000) if IS_ALL else (60, 60)  # of each action, which has some thousand places


class Trainer:
    """A process with one run, which is interrupted again and again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.times = 0
        self.manager = self.opened()
        for step in (1, 2, 3):
            self.manager.save(step, state(step))
        self.into = state(0)

    def opened(self) -> CheckpointManager:
        """A manager that remembers nothing of the run."""
        manager = CheckpointManager(self.root, retention=KeepLast(2), max_file_nbytes=1 << 12)
        assert isinstance(manager.folder.store, PosixStore)
        manager.folder.store.lock_timeout_s = 1.0  # a lock that was lost shows soon
        self.times += 1
        if self.times % 2:  # the state in many windows, of which other threads make the checksums and read some
            manager.folder.store.window_nbytes = 1 << 10
        return manager

    def newest(self) -> int:
        latest = self.manager.latest()
        assert latest is not None
        return latest.step

    def save(self) -> None:
        self.manager.save(self.newest() + 1, state(self.newest() + 1))

    def overwrite(self) -> None:
        self.manager.save(self.newest(), state(self.newest()), overwrite=True)

    def save_in_background(self) -> None:
        with BackgroundSaver(self.manager) as saver:
            saver.save(self.newest() + 1, state(self.newest() + 1))

    def restore(self) -> None:
        self.opened().restore()

    def restore_into(self) -> None:
        self.manager.restore(into=self.into)

    def check(self, before: int) -> None:
        """The newest step is that of before or the one that was being saved, whole; and all works."""
        restored = self.manager.restore()
        assert restored.step in (before, before + 1)
        assert is_whole(restored.state, restored.step or 0)
        assert gc.isenabled()


ACTIONS: list[Callable[[Trainer], None]] = [
    Trainer.save,
    Trainer.overwrite,
    Trainer.save_in_background,
    Trainer.restore,
    Trainer.restore_into,
]


def state(step: int) -> dict:
    tensors = {f"w{index}": np.full((30, 20), step + index, np.float32) for index in range(4)}
    return {**tensors, "small": {str(index): np.full(3, step) for index in range(20)}, "step": step}


def is_open_only(before: dict[int, str]) -> bool:
    """Whether nothing else is open, but for what Python will close when it next looks for cycles."""
    return descriptors() == before or (gc.collect() >= 0 and descriptors() == before)


def is_whole(found: dict, step: int) -> bool:
    return found["step"] == step and all((found[f"w{index}"] == step + index).all() for index in range(4))


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(tmp_path / "run")


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
def test_an_interrupt_at_any_place_leaves_nothing_open_or_running(trainer: Trainer, action: Callable[[Trainer], None]) -> None:
    running = threads()
    action(trainer)
    total = interrupted_at(None, lambda: action(trainer))
    rng = random.Random(action.__name__)
    open_before = descriptors()

    for place in sorted(rng.sample(range(total), min(total, PLACES))):
        before = trainer.newest()
        interrupted_at(place, lambda: action(trainer))

        wait_for(lambda: threads() <= running)
        assert is_open_only(open_before), f"at place {place} of {total}"
        trainer.check(before)
        if before % 50 == 0:
            trainer.manager.sweep(grace=0)


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
def test_signals_at_random_moments_leave_nothing_open_or_running(trainer: Trainer, action: Callable[[Trainer], None]) -> None:
    rng = random.Random(action.__name__)
    running = threads()
    started = time.perf_counter()
    action(trainer)
    takes_s = time.perf_counter() - started
    open_before = descriptors()

    for _ in range(SIGNALS):
        before = trainer.newest()
        signalled_after(rng.uniform(1e-6, takes_s), lambda: action(trainer))

        wait_for(lambda: threads() <= running)
        assert is_open_only(open_before)
        trainer.check(before)


def test_whoever_handles_an_interrupt_has_the_lock_at_once(trainer: Trainer) -> None:
    # One that came between two lines of contextlib left a generator in the frames of the error, and the lock in that.
    def pin(name: str) -> None:
        trainer.manager.pin(3, name)

    total = interrupted_at(None, lambda: pin("paper"))
    for place in range(total):
        try:
            interrupted_at(place, functools.partial(pin, f"paper-{place}"), is_raised=True)
        except KeyboardInterrupt:
            if any(path.endswith(".ckptmgr.lock") for path in descriptors().values()):
                pin(f"poster-{place}")
