"""A save that goes on in the background, as a future: what became of it, and when.

Where names are those of `concurrent.futures.Future`, they mean the same. It waits on a `queue.SimpleQueue`, as
`transfer.lanes` does and for its reason: an interrupt while waiting must not leave a lock behind that the writer needs.
"""

import contextlib
import logging
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError

from ckptmgr.step import StepInfo
from ckptmgr.timing import SaveStats, Timing

logger = logging.getLogger(__name__)

_PATIENCE_S = 0.1  # until it is looked again: a ring may be lost to an interrupt


class Cancelled(CancelledError):
    """The end of a save that was never begun, told apart from whatever a store may raise."""


class _Asker:
    """Somebody who waits. It lives for as long as the call does, whatever interrupt ends that."""


class PendingSave:
    """What `BackgroundSaver.save` gives at once. Any thread may use it.

    ``step`` is the step that is saved. ``skipped``: this is not saved, for the saver was busy (``on_busy="skip"``).
    """

    def __init__(self, step: int, clock: Callable[[], float], started: float, tell: Callable[["PendingSave"], object]) -> None:
        self.step = step
        self.skipped = False
        self.timing = Timing(clock, started)
        self.writer: threading.Thread | None = None
        self._tell = tell
        self._pid = os.getpid()
        self._begun = threading.Lock()  # held from when it is begun or cancelled
        self._end: StepInfo | BaseException | None = None
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._callbacks: deque[Callable[[PendingSave], object]] = deque()
        self._askers: list[weakref.ref[_Asker]] = []  # who waits for the result, and is told it

    @property
    def nbytes(self) -> int:
        """Size of the state's tensors."""
        return self.timing.nbytes

    @property
    def staged(self) -> bool:
        """Whether the copy of the state is complete. It may be changed before that, too: as soon as `save` has returned."""
        return "staged" in self.timing.moments

    @property
    def stats(self) -> SaveStats:
        """Sizes and times so far."""
        return self.timing.stats

    def done(self) -> bool:
        """Whether it is committed, failed or cancelled."""
        return self._end is not None

    def cancelled(self) -> bool:
        """Whether it is not saved because the saver was busy: it was skipped, or replaced before it was begun."""
        return isinstance(self._end, Cancelled)

    def result(self, timeout: float | None = None) -> StepInfo:
        """The committed step, when it is there. After ``timeout`` seconds: TimeoutError, and the save goes on.

        Raises:
            CancelledError: it was skipped or replaced (of `concurrent.futures`).
            Exception: what the save raised; the saver then does not raise it any more.
        """
        end = self._ended(timeout)
        try:
            if isinstance(end, BaseException):
                raise end
            return end
        finally:
            del self, end  # an error that refers to itself would keep what its callers had until garbage is looked for

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the save raised, when it has ended, or None. Otherwise like `result`."""
        end = self._ended(timeout)
        if isinstance(end, Cancelled):
            raise end
        return end if isinstance(end, BaseException) else None

    def add_done_callback(self, call: Callable[["PendingSave"], object]) -> None:
        """Has ``call(self)`` made when the save has ended, by the thread that writes; at once if it has ended already.

        What it raises is logged. It can neither save with the same saver, nor wait for it.
        """
        self._callbacks.append(call)
        if self.done():
            self._call_back()

    def __repr__(self) -> str:
        is_error = isinstance(self._end, BaseException)
        told = "cancelled" if self.cancelled() else "failed" if is_error else "committed" if self.done() else "pending"
        return f"<PendingSave of step {self.step}: {told}>"

    # ---- for the saver

    def claim(self) -> bool:
        """Takes the right to begin it or to cancel it, which only the first who asks gets."""
        return self._begun.acquire(blocking=False)

    def end(self, end: StepInfo | BaseException) -> None:
        """Ends it, and calls who wants to know."""
        self._end = end
        self._bell.put(None)
        self._call_back()

    def wait(self, timeout: float | None = None) -> StepInfo | BaseException:
        """How it ended, once it has. Nobody is told by this.

        Raises:
            TimeoutError: it has not in that time.
            RuntimeError: it will never end here: this is the thread that writes it, or a process that was forked since.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._end is None:
            if os.getpid() != self._pid:
                raise RuntimeError(f"step {self.step} is saved by process {self._pid}, which forked this one: ask there")
            if threading.current_thread() is self.writer:
                raise RuntimeError(f"this is the thread that writes step {self.step}, which cannot wait for itself")
            left = _PATIENCE_S if deadline is None else min(_PATIENCE_S, deadline - time.monotonic())
            if left <= 0:
                raise TimeoutError(f"the background save of step {self.step} has not ended in {timeout} s; it goes on")
            with contextlib.suppress(queue.Empty):
                self._bell.get(timeout=left)
                self._bell.put(None)  # for others who wait
        return self._end

    @property
    def is_asked_for(self) -> bool:
        """Whether somebody waits for the result now, who will be told how it ended."""
        return any(entry() is not None for entry in self._askers)

    def _ended(self, timeout: float | None) -> StepInfo | BaseException:
        asker = _Asker()
        entry = weakref.ref(asker)
        try:
            self._askers.append(entry)
            end = self.wait(timeout)
            self._tell(self)
        finally:
            del asker
            with contextlib.suppress(ValueError):
                self._askers.remove(entry)
        return end

    def _call_back(self) -> None:
        while self._callbacks:
            try:
                call = self._callbacks.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                call(self)
            except BaseException as error:  # as of a Future: the save has ended, and there is nobody to raise it to
                if not isinstance(error, Exception) and threading.current_thread() is not self.writer:
                    raise  # an interrupt; whereas the thread that writes may have more to write
                logger.exception("a callback of the background save of step %d failed", self.step)
