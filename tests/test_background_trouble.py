"""`BackgroundSaver` when saves fail or are interrupted: each failure is told once, and nothing older is lost."""

import _thread
import concurrent.futures
import contextlib
import errno
import gc
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from holding import PATIENCE_S, HeldManager
from interrupts import interrupted_at

from ckptmgr import BackgroundSaver, CheckpointManager, KeepLast, PendingSave, UnsupportedLeafError, background
from ckptmgr.pending import Cancelled
from ckptmgr.saving import Prepared

STATE = {"w": np.ones(3)}


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[HeldManager]:
    """A manager whose save of step 2 fails; step 1 is there."""
    manager = HeldManager(tmp_path / "run", retention=KeepLast(1))
    CheckpointManager(tmp_path / "run").save(1, STATE)
    manager.failing[2] = OSError(errno.ENOSPC, "No space left on device")
    manager.go.set()
    yield manager
    manager.go.set()


def failed(saver: BackgroundSaver) -> PendingSave:
    """A save that has failed, which nobody was told."""
    pending = saver.save(2, STATE)
    pending.wait()
    return pending


def steps(manager: CheckpointManager) -> list[int]:
    return [info.step for info in manager.steps()]


TELLING: dict[str, Callable[[BackgroundSaver], object]] = {
    "save": lambda saver: saver.save(3, STATE),
    "wait": lambda saver: saver.wait(),
    "close": lambda saver: saver.close(),
    "exit": lambda saver: saver.__exit__(None, None, None),
}


@pytest.mark.parametrize("way", TELLING)
def test_a_failure_is_told_once_with_its_step(failing: HeldManager, way: str) -> None:
    saver = BackgroundSaver(failing)
    saver.save(2, STATE)

    with pytest.raises(OSError, match="No space left") as caught:
        TELLING[way](saver)
    saver.close()

    assert caught.value.__notes__ == ["raised by the background save of step 2"]
    assert steps(failing) == [1]


@pytest.mark.parametrize("way", TELLING)
def test_what_another_thread_waits_for_is_told_there_and_nowhere_else(
    failing: HeldManager, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = BackgroundSaver(failing)
    pending = saver.save(2, STATE)
    wait, others = pending.wait, []

    def wait_and_let_others_ask(timeout: float | None = None) -> object:
        monkeypatch.undo()
        end = wait(timeout)
        with concurrent.futures.ThreadPoolExecutor(1) as other:
            others.append(other.submit(TELLING[way], saver).exception(PATIENCE_S))
        return end

    monkeypatch.setattr(pending, "wait", wait_and_let_others_ask)
    with pytest.raises(OSError, match="No space"):
        pending.result()
    saver.close()

    assert others == [None]
    assert steps(failing) == ([3] if way == "save" else [1])


def test_an_interrupt_of_who_waits_leaves_the_failure_to_others(failing: HeldManager) -> None:
    with BackgroundSaver(failing) as saver:
        total = interrupted_at(None, failed(saver).exception)
        for place in range(total):
            pending = failed(saver)
            interrupted_at(place, pending.exception)

            assert not pending.is_asked_for
            with pytest.raises(OSError, match="No space") if pending in background._unfinished else contextlib.nullcontext():
                saver.save(3, STATE, overwrite=True)


def test_an_error_that_is_kept_is_not_one_who_still_waits(failing: HeldManager) -> None:
    failing.go.clear()
    with BackgroundSaver(failing) as saver:
        pending = saver.save(2, STATE)
        with pytest.raises(TimeoutError) as kept:
            pending.result(0.01)
        failing.go.set()
        with pytest.raises(OSError, match="No space"):
            saver.wait()

    assert kept.value.__traceback__ is not None


def test_after_a_failure_was_told_saves_go_on(failing: HeldManager) -> None:
    with BackgroundSaver(failing) as saver:
        saver.save(2, STATE)
        with pytest.raises(OSError, match="No space"):
            saver.save(3, STATE)
        saver.save(4, STATE)

    assert steps(failing) == [4]


def test_a_result_that_was_asked_for_is_not_told_again(failing: HeldManager) -> None:
    with BackgroundSaver(failing) as saver:
        pending = saver.save(2, STATE)
        with pytest.raises(OSError, match="No space"):
            pending.result()

        assert isinstance(pending.exception(), OSError)
        assert (pending.done(), pending.cancelled()) == (True, False)
        saver.wait()


def test_the_error_that_ends_a_block_has_a_note_of_the_failure(failing: HeldManager, caplog: pytest.LogCaptureFixture) -> None:
    def train() -> None:
        with BackgroundSaver(failing) as saver:
            saver.save(2, STATE)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        train()

    assert "No space left on device; raised by the background save of step 2" in caught.value.__notes__[0]
    assert [record.levelno for record in caplog.records if record.name == "ckptmgr.background"] == [logging.ERROR]


def test_two_failures_are_told_together(failing: HeldManager) -> None:
    failing.go.clear()
    failing.failing[3] = ValueError("third")
    saver = BackgroundSaver(failing, on_busy="replace")
    saver.save(2, STATE)
    assert failing.begun.wait(PATIENCE_S)
    saver.save(3, STATE)
    failing.go.set()

    with pytest.raises(OSError, match="No space") as caught:
        saver.close()

    assert "after it, another one failed: ValueError: third; raised by the background save of step 3" in caught.value.__notes__
    saver.close()


def test_an_error_that_is_kept_does_not_keep_the_state(failing: HeldManager, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[object]] = []

    def full(prepared: Prepared) -> None:
        array = prepared.plan.flat.tensors["w"]
        held.append(weakref.ref(array))
        raise OSError(errno.ENOSPC, "No space left on device")

    def failed(prepared: Prepared, **options: object) -> None:
        try:
            full(prepared)
        except OSError as error:
            raise ValueError("cannot be saved") from error

    monkeypatch.setattr(failing, "complete", failed)
    with BackgroundSaver(failing) as saver:
        error = saver.save(2, STATE).exception()

    assert isinstance(error, ValueError)
    assert error.__cause__ is not None
    assert held[0]() is None


@pytest.mark.parametrize("way", ["wait", "result"])
def test_a_failure_that_was_caught_keeps_nothing_of_who_caught_it(failing: HeldManager, way: str) -> None:
    class Model:
        pass

    def train() -> weakref.ref[Model]:
        model = Model()
        with contextlib.suppress(OSError):
            (saver.save(2, STATE).result if way == "result" else saver.wait)()
        return weakref.ref(model)

    with BackgroundSaver(failing) as saver:
        if way == "wait":
            saver.save(2, STATE)
        gc.collect()
        gc.disable()
        try:
            assert train()() is None
        finally:
            gc.enable()


def test_a_state_that_cannot_be_saved_takes_nobodys_place(failing: HeldManager) -> None:
    failing.go.clear()
    with BackgroundSaver(failing, on_busy="replace") as saver:
        saver.save(3, STATE)
        assert failing.begun.wait(PATIENCE_S)
        saver.save(4, STATE)
        with pytest.raises(UnsupportedLeafError):
            saver.save(5, {"w": object()})
        failing.go.set()

    assert steps(failing) == [4]


def test_a_callback_that_ends_its_thread_does_not_end_that_of_the_saver(failing: HeldManager) -> None:
    failing.go.clear()
    saver = BackgroundSaver(failing, on_busy="replace")
    seen: list[int] = []
    first = saver.save(3, STATE)
    assert failing.begun.wait(PATIENCE_S)
    first.add_done_callback(lambda done: sys.exit(1))
    first.add_done_callback(lambda done: seen.append(done.step))
    second = saver.save(4, STATE)
    failing.go.set()

    assert second.result(PATIENCE_S).step == 4
    assert seen == [3]
    saver.close()


@pytest.mark.parametrize("call", [*TELLING, "result"])
def test_the_thread_that_writes_is_told_that_it_cannot_wait_for_itself(failing: HeldManager, call: str) -> None:
    failing.go.clear()
    told: list[str] = []
    saver = BackgroundSaver(failing, on_busy="replace")

    def called_back(done: PendingSave) -> None:
        try:
            {**TELLING, "result": lambda saver: second.result()}[call](saver)
        except RuntimeError as error:
            told.append(str(error))

    first = saver.save(3, STATE)
    assert failing.begun.wait(PATIENCE_S)
    first.add_done_callback(called_back)
    second = saver.save(4, STATE)
    failing.go.set()
    second.result(PATIENCE_S)
    saver.close()

    assert len(told) == 1
    assert "cannot wait for itself" in told[0]
    assert steps(failing) == [4]


def test_a_cancelled_error_of_the_store_is_a_failure(failing: HeldManager) -> None:
    failing.failing[2] = concurrent.futures.CancelledError("by the store")
    saver = BackgroundSaver(failing)
    pending = saver.save(2, STATE)

    with pytest.raises(Exception, match="by the store"):
        saver.wait()

    assert not pending.cancelled()
    assert not isinstance(pending.exception(), Cancelled)


@pytest.mark.parametrize("call", ["wait", "result", "save", "close"])
def test_an_interrupt_while_waiting_leaves_a_saver_that_works(failing: HeldManager, call: str) -> None:
    failing.failing.clear()
    failing.go.clear()
    saver = BackgroundSaver(failing)
    pending = saver.save(2, STATE)
    calls = {**TELLING, "result": lambda saver: pending.result()}

    threading.Timer(0.2, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        calls[call](saver)

    assert not pending.done()
    failing.go.set()
    saver.save(5, STATE)
    saver.close()
    assert pending.result().step == 2
    assert steps(failing) == [5]


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_while_a_save_is_handed_over_loses_or_makes_it_whole(
    failing: HeldManager, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    saver = BackgroundSaver(failing)
    saver.save(4, STATE)
    saver.wait()
    jobs = saver._jobs

    class Interrupted:
        def put(self, job: object) -> None:
            if when == "after":
                jobs.put(job)  # type: ignore[arg-type]
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saver, "_jobs", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            saver.save(5, STATE)
    saver.save(6, {"w": np.full(3, 6.0)})
    saver.close()

    assert steps(failing) == [6]
    assert failing.restore().state["w"].tolist() == [6, 6, 6]
