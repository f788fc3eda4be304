"""Ctrl-C while a command starts processes: it ends the command alone, which ends them, and comes when all are known."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uninterrupted() -> Iterator[None]:
    """What is started inside is never interrupted, and starting it is not either: an interrupt is raised at the end.

    To be entered in the main thread. Python's own handler runs there for a signal that any thread has taken, so that a
    mask, which is what new processes inherit, would not keep it from here.
    """
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if came and callable(handler):
        handler(signal.SIGINT, None)
