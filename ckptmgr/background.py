"""Saving while training goes on: `save` copies the state and returns, a thread beside writes and commits the copy.

The laws: a step holds the values of the moment of its `save`; the thread works on one save at a time, in their order; and
a failure is told exactly once, at the next call, or at the latest when the interpreter exits.
"""

import atexit
import logging
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeAlias

from ckptmgr.exiting import before_exit
from ckptmgr.naming import checked_step
from ckptmgr.pending import Cancelled, PendingSave
from ckptmgr.saving import Asset, Prepared
from ckptmgr.snapshot import Snapshot, Staging
from ckptmgr.step import JSON, StepInfo
from ckptmgr.telling import let_go, raise_together, shown_whole
from ckptmgr.threads import alive

logger = logging.getLogger(__name__)

OnBusy: TypeAlias = Literal["wait", "skip", "replace"]


class Saving(Protocol):
    """What saves in two halves, as `CheckpointManager` and `TieredManager` do; see their methods."""

    def prepare(
        self,
        step: int,
        state: Any,
        *,
        metrics: Mapping[str, Any] | None = None,
        metadata: Mapping[str, JSON] | None = None,
        assets: Mapping[str, Asset] | None = None,
        overwrite: bool = False,
    ) -> Prepared:
        """The first half."""

    def complete(self, prepared: Prepared) -> StepInfo:
        """The second half."""


class BackgroundSaver:
    """Saves steps of a manager, or of a `TieredManager`, in the background.

    Args:
        manager: writes, commits and applies retention, in the background; so its ``progress`` is called in another thread.
        on_busy: what `save` does while an earlier save goes on: ``"wait"`` for it; ``"skip"`` the new one; or ``"replace"`` the
            one that waits to be begun, so that at most one waits. Then there may be two copies of the state, otherwise one.
        overhead_budget: the part of the time that saves may block, as 0.03, for `should_save`.
        clock: gives seconds.

    A context manager, which ends with `close`. Threads may share it; their saves come one after another. In a process that
    was forked it cannot be used, and what the parent saves goes on there alone. Not for signal handlers.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        manager: Saving,
        *,
        on_busy: OnBusy = "wait",
        overhead_budget: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if on_busy not in ("wait", "skip", "replace"):
            raise ValueError(f"on_busy must be 'wait', 'skip' or 'replace', not {on_busy!r}")
        if overhead_budget is not None and not 0 < overhead_budget < 1:
            raise ValueError(f"overhead_budget is a part of the time, as 0.03, not {overhead_budget!r}")
        self.manager = manager
        self.on_busy = on_busy
        self.overhead_budget = overhead_budget
        self._clock = clock
        self._due = -float("inf")
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._is_closed = False
        self._free: list[Staging] = []
        self._last: Callable[[], _Job | None] = lambda: None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        weakref.finalize(self, self._jobs.put, None).atexit = False  # ends the thread
        before_exit(_wait_for_all)
        # Again, to come before whatever frameworks have registered since the last time: handlers run in reverse order.
        atexit.unregister(_at_exit)
        atexit.register(_at_exit)

    def save(
        self,
        step: int,
        state: Any,
        *,
        metrics: Mapping[str, Any] | None = None,
        metadata: Mapping[str, JSON] | None = None,
        assets: Mapping[str, Asset] | None = None,
        overwrite: bool = False,
    ) -> PendingSave:
        """Copies the state, and has it saved in the background; the arguments are those of `CheckpointManager.save`.

        When this returns, all of it may be changed. If it raises, nothing is saved of this step; an interrupt aside, which
        may come after all is done. An earlier save that failed is told here, once, before anything else is done.

        Raises:
            UnsupportedLeafError, UnsupportedTensorError, TypeError, ValueError: as of the manager; nothing was copied.
            MemoryError: there is no room for a copy of the state.
            RuntimeError: it is closed, or this is another process, the thread that writes, or the end of the interpreter.
            Exception: what an earlier save raised, with a note that tells its step.
        """
        started = self._clock()
        self._check_process()
        self._check_thread()
        with self._lock:
            if _is_exiting:
                raise RuntimeError("the interpreter exits, and waits for no further save: use the manager's `save`")
            if self._is_closed:
                raise RuntimeError("this BackgroundSaver is closed: make a new one")
            self._raise_failures()
            pending = PendingSave(checked_step(step), self._clock, started, _tell)
            if not self._has_room(pending):
                return pending
            self._raise_failures()  # of what was waited for
            prepared = self.manager.prepare(step, state, metrics=metrics, metadata=metadata, assets=assets, overwrite=overwrite)
            if self.on_busy == "replace" and (last := self._last()):  # only now: what cannot be saved takes nobody's place
                last.cancel(f"step {step} took its place")
            pending.timing.nbytes = prepared.timing.nbytes if prepared.timing else 0
            self._hand_over(pending, prepared)
            blocked = pending.timing.reached("blocked")
            if self.overhead_budget is not None:
                self._due = max(self._due, started) + blocked / self.overhead_budget
        return pending

    def should_save(self) -> bool:
        """Whether a save now would not wait for another, and all saves so far have blocked no more than their part of the time.

        At first it is True. A save that blocks for 30 ms is paid for by the second after it, with a budget of 0.03. Without a
        budget this is True whenever no save goes on.
        """
        return self._clock() >= self._due and not self._in_flight()

    def wait(self, timeout: float | None = None) -> None:
        """Returns when all saves so far have ended; raises what one raised that has not been told yet.

        Raises:
            TimeoutError: they have not in ``timeout`` seconds. They go on.
        """
        self._await(timeout)
        self._raise_failures()

    def close(self) -> None:
        """Waits for all saves and their callbacks, lets go of the memory, and raises what has not been told yet.

        Nothing can be saved any more.

        Raises:
            RuntimeError: this is the thread that writes.
            Exception: what a save raised.
        """
        self._check_thread()
        self._finish()
        self._raise_failures()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._finish()
        if error is None:
            self._raise_failures()
            return
        for failure in self._failures():  # the error that ends the block is the one to raise
            logger.error("a background save failed", exc_info=failure)
            error.add_note(f"before, a background save failed: {shown_whole(failure)}")

    def _has_room(self, new: PendingSave) -> bool:
        """Whether the new save may be begun: waits for room, or cancels the new one, as `on_busy` says."""
        if self.on_busy == "wait":
            self._await()
        elif self.on_busy == "skip" and (busy := self._in_flight()):
            new.skipped = True
            new.end(Cancelled(f"step {new.step} was not saved: step {busy[0].step} was still being saved"))
            return False
        return True

    def _hand_over(self, pending: PendingSave, prepared: Prepared) -> None:
        thread = self._thread = alive(self._thread, "ckptmgr-background", _work, self._jobs)
        staging = self._free.pop() if self._free else Staging()
        try:
            snapshot = staging.take(prepared, pending.timing)
        except BaseException:  # whatever it is, the memory is used again
            self._free.append(staging)
            raise
        if not snapshot.unfinished:
            pending.timing.reached("staged")
        pending.writer = thread or threading.current_thread()
        job = _Job(self.manager, pending, staging, snapshot, self._free)
        try:
            self._last = weakref.ref(job)
            _unfinished[pending] = self
            pending.timing.reached("blocked")  # as the manifest has it: the thread may be faster than this call's end
            if thread is not None:
                self._jobs.put(job)
        except BaseException:  # an interrupt, before the thread has the job or after that
            job.cancel("the call was interrupted")
            raise
        if thread is None:  # none can be had: done here, where its callbacks can save no more than in a thread
            self._thread = pending.writer
            job.do()
            self._thread = None

    def _in_flight(self) -> list[PendingSave]:
        return [pending for pending, saver in list(_unfinished.items()) if saver is self and not pending.done()]

    def _await(self, timeout: float | None = None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        for pending in self._in_flight():
            pending.wait(None if deadline is None else max(deadline - time.monotonic(), 0))

    def _failures(self, *, is_last: bool = False) -> list[BaseException]:
        """What saves raised that nobody has been told, oldest first. They are told by this.

        What somebody waits for in another thread is left to that, unless ``is_last``: no thread may come to anything any more.
        """
        mine = [pending for pending, saver in list(_unfinished.items()) if saver is self]
        ended = [pending for pending in mine if pending.done() and (is_last or not pending.is_asked_for)]
        ends = [pending.wait() for pending in ended if _tell(pending)]
        return [end for end in ends if isinstance(end, BaseException)]

    def _raise_failures(self) -> None:
        raise_together(self._failures())

    def _finish(self) -> None:
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._await()
            self._is_closed = True
            self._free.clear()
            self._jobs.put(None)
        thread = self._thread
        if thread is not None and thread.is_alive():
            thread.join()  # it may still be calling back

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(f"this BackgroundSaver is of process {self._pid}, which forked this one: make a new one here")

    def _check_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError("this is the thread that writes, which cannot wait for itself: let another thread do this")


_unfinished: dict[PendingSave, BackgroundSaver] = {}
"""All saves that are not done, and those whose failure nobody has been told. It keeps savers that nobody else does."""

os.register_at_fork(after_in_child=_unfinished.clear)  # they go on in the parent


@dataclass(slots=True, weakref_slot=True)
class _Job:
    """A save that was handed to the thread. Whoever claims it, the thread or who cancels it, gives its memory back."""

    manager: Saving
    pending: PendingSave
    staging: Staging
    snapshot: Snapshot | None
    free: list[Staging]

    def do(self) -> None:
        """Does it, if nobody has claimed it."""
        try:
            if self.pending.claim():
                self.end(self.result())
        finally:
            del self  # the error's frames lead to this one

    def result(self) -> StepInfo | BaseException:
        """Does it; gives how it ended, for `end`."""
        try:
            info = self.manager.complete(self._copied())
            self.pending.timing.reached("committed")
            return info
        # Whatever it is, it is raised in a caller's thread.
        except BaseException as error:  # noqa: BLE001
            error.add_note(f"raised by the background save of step {self.pending.step}")
            let_go(error)
            return error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
        finally:
            del self  # the error's frames lead to this one

    def cancel(self, why: str) -> bool:
        """Cancels it if it has not begun."""
        pending = self.pending
        if not pending.claim():
            return False
        self._copied()
        self.end(Cancelled(f"step {pending.step} was not saved: {why}"))
        return True

    def end(self, end: StepInfo | BaseException) -> None:
        """Gives its memory back, and has `PendingSave.end` tell how it ended."""
        self.snapshot = None
        self.free.append(self.staging)
        if isinstance(end, StepInfo | Cancelled):
            _tell(self.pending)  # there is nothing to tell
        self.pending.end(end)

    def _copied(self) -> Prepared:
        """What is to be saved, once all of it is copied."""
        assert self.snapshot is not None  # until the end
        for wait in self.snapshot.unfinished:
            wait()
        if not self.pending.staged:
            self.pending.timing.reached("staged")
        return self.snapshot.prepared


def _work(jobs: "queue.SimpleQueue[_Job | None]") -> None:
    """What the thread does. It keeps nothing alive while it waits, so that a saver nobody needs ends it."""
    while (job := jobs.get()) is not None:
        job.do()
        del job


def _tell(pending: PendingSave) -> bool:
    """Whether its end was still to be told; it counts as told now."""
    return _unfinished.pop(pending, None) is not None


_is_exiting = False


def _wait_for_all() -> None:
    for saver in list(dict.fromkeys(_unfinished.values())):
        if os.getpid() == saver._pid:
            saver._await()


def _at_exit() -> None:
    global _is_exiting
    _is_exiting = True
    for saver in list(dict.fromkeys(_unfinished.values())):
        saver._finish()
        for error in saver._failures(is_last=True):  # nobody is left to raise it to: told as an error that ends a program is
            sys.excepthook(type(error), error, error.__traceback__)
