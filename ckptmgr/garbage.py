"""Python's search for garbage cycles, put off while many objects are made that are all kept."""

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_pauses = 0
_was_enabled = False


@contextmanager
def later() -> Iterator[None]:
    """Puts the search off; for code that makes objects, a few for each of many tensors, and waits for nothing.

    Also a decorator, nested and in several threads at once: when the last one ends, collection is as it was before the
    first. It is a switch of the whole process, so one that another thread turns meanwhile is turned back.
    """
    # Each search goes through all that was made so far and finds nothing: 40 % of the time of restoring 20,000 tensors.
    global _pauses, _was_enabled
    is_off = False
    try:
        with _lock:
            if _pauses == 0:
                _was_enabled = gc.isenabled()
            _pauses, is_off = _pauses + 1, True  # nothing is called between these two, so no interrupt can part them
            gc.disable()
        yield
    finally:
        if is_off:
            with _lock:
                _pauses -= 1
                if _pauses == 0 and _was_enabled:
                    gc.enable()


def _begin_anew() -> None:
    """In a forked child, which has none of the threads that put it off."""
    global _lock, _pauses
    _lock = threading.Lock()
    if _pauses and _was_enabled:
        gc.enable()
    _pauses = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
