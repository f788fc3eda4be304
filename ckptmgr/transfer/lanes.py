"""Threads of one transfer: none outlives it, and the first error of any is raised to the caller.

Where no thread can be had (`threads`), the caller's does it all.

Only `queue.SimpleQueue` is waited on: a KeyboardInterrupt in the middle of `queue.Queue` or `threading.Condition` can
lose a wake-up for ever, and one in `Thread.join` marks a thread as ended that is not (CPython 3.11, bpo-45274).
"""

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from ckptmgr.threads import started

T = TypeVar("T")

_PATIENCE_S = 0.1  # until a thread is looked after whose ring was lost to an interrupt


class Lane:
    """One thread beside the caller's that makes calls in order, with at most ``depth`` of them waiting or being made.

    A context manager; leaving it ends the thread, which the first call for it begins. After an error no further call is
    made, and `submit` and `wait` raise it.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._pending = 0
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(
            target=_make, args=(self._calls, self._made, self._errors), name="ckptmgr-lane", daemon=True
        )

    def submit(self, call: Callable[[], object], *, is_short: bool = False) -> None:
        """Has the call made after all earlier ones; waits while there are too many.

        One that ``is_short`` takes less time than a thread does to begin: it is made here, if none is known to wait.
        """
        if (is_short and self._pending == 0) or not (self._thread.ident or self._begins()):
            call()
            return
        self._wait(self._depth - 1)
        self._calls.put(call)
        self._pending += 1

    def wait(self) -> None:
        """Returns when all calls so far have been made."""
        self._wait(0)

    def _begins(self) -> bool:
        end = weakref.finalize(self, self._calls.put, None)  # should `__exit__` be interrupted at its first line
        end.atexit = False
        if started(self._thread):
            return True
        end.detach()
        return False

    def _wait(self, most: int) -> None:
        while self._pending > most:
            self._made.get()
            self._pending -= 1
        if self._errors:
            raise self._errors[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._calls.put(None)  # also for a thread whose start was interrupted
        if self._thread.is_alive():
            self._thread.join()


def _make(
    calls: "queue.SimpleQueue[Callable[[], object] | None]", made: "queue.SimpleQueue[None]", errors: list[BaseException]
) -> None:
    """What the thread of a lane does. It keeps nothing alive while it waits, so that a lane nobody has any more ends it."""
    while (call := calls.get()) is not None:
        try:
            if not errors:
                call()
        # Whatever it is, it is raised in the caller's thread.
        except BaseException as error:  # noqa: BLE001
            errors.append(error)
        del call
        made.put(None)


def share(tasks: Iterable[T], work: Callable[[Iterator[T]], Any], workers: int) -> None:
    """Has ``work`` go through the tasks in the calling thread and ``workers - 1`` others, each task taken by one of them.

    Returns when all threads have ended. If one fails, the others stop after the task they are at, and its error is raised.
    """
    line = _Line(tasks)
    crew = _Crew(line, work)
    try:
        for _ in range(workers - 1):
            if not crew.start():
                break
        work(line)
        crew.wait()
    finally:
        # Again, for the one above may be what was interrupted: nothing may be done any more for a call that has failed.
        line.is_closed = True
        try:
            crew.wait()
        except BaseException:  # an interrupt at its first line
            crew.wait()
            raise
    for error in crew.ends:
        if error is not None:
            raise error


class _Crew:
    """The other threads of `share`, and how each that has ended did so."""

    def __init__(self, line: "_Line[T]", work: Callable[[Iterator[T]], Any]) -> None:
        self._line: _Line[Any] = line
        self._work = work
        self._threads: list[threading.Thread] = []
        self.ends: list[BaseException | None] = []
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()

    def start(self) -> bool:
        """One thread more; False if none can be had."""
        thread = threading.Thread(target=self._run, name="ckptmgr-share", daemon=True)
        if is_started := started(thread):
            self._threads.append(thread)
        return is_started

    def wait(self) -> None:
        """Returns when all threads have ended."""
        while len(self.ends) < len(self._threads):
            with contextlib.suppress(queue.Empty):
                self._bell.get(timeout=_PATIENCE_S)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        end: BaseException | None = None
        try:
            self._work(self._line)
        # Whatever it is, it is raised in the caller's thread.
        except BaseException as error:  # noqa: BLE001
            end = error
        self._line.is_closed = True
        self.ends.append(end)
        self._bell.put(None)


class _Line(Iterator[T]):
    """An iterator that several threads draw from, until it is closed."""

    def __init__(self, tasks: Iterable[T]) -> None:
        self._tasks = iter(tasks)
        self._lock = threading.Lock()
        self.is_closed = False

    def __next__(self) -> T:
        with self._lock:
            if self.is_closed:
                raise StopIteration
            return next(self._tasks)
