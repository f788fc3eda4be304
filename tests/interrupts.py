"""Lets Ctrl-C come at every place where Python looks for signals: after each call of C, and at the entry of each function.

::

    total = interrupted_at(None, action)  # how many such places there are
    for place in range(total):
        interrupted_at(place, action)

A signal that comes while a system call is made is told to the program right after it, before its result is assigned.

Not where an error goes on in a generator, as in that of a context manager: Python looks for signals only behind its ``except``
or ``finally``, while an error of a profiler's there would keep it from both. Nor in `threading.Thread.start` and `join`, where
an interrupt may leave a lock of Python's own as it should not be: that raises RuntimeError, with the interrupt as its context.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import _GeneratorContextManager
from types import FrameType
from typing import Any

_EXIT = _GeneratorContextManager.__exit__.__code__


def interrupted_at(place: int | None, action: Callable[[], object], *, is_raised: bool = False) -> int:
    """Raises KeyboardInterrupt in this thread at that place of the action; gives how many were reached.

    Whatever else is raised passes through, and the interrupt too if that is said.
    """
    reached = 0

    def look(frame: FrameType, event: str, _: Any) -> None:
        nonlocal reached
        if event in ("call", "c_return") and frame.f_code.co_filename != threading.__file__ and not is_thrown_into(frame):
            reached += 1
            if reached - 1 == place:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(look)
    try:
        action()
    except KeyboardInterrupt:
        if is_raised:
            raise
    finally:
        sys.setprofile(None)
    return reached


def is_thrown_into(frame: FrameType) -> bool:
    """Whether it is the generator of a context manager that is told of an error."""
    above = frame.f_back
    return above is not None and above.f_code is _EXIT and above.f_locals["typ"] is not None


def signalled_after(seconds: float, action: Callable[[], object]) -> None:
    """A real signal comes that much later, and raises KeyboardInterrupt in this thread, which ends the action."""
    was = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            action()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        pass
    except RuntimeError as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
    finally:
        signal.signal(signal.SIGALRM, was)


def threads() -> int:
    """How many threads the system knows of this process."""
    return len(os.listdir("/proc/self/task"))


def descriptors() -> dict[int, str]:
    """What this process has open, by descriptor."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # that of the listing itself
            continue
    return found


def wait_for(is_so: Callable[[], bool]) -> None:
    """Returns when it is so."""
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)
