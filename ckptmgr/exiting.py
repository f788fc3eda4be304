"""What is waited for when the interpreter ends, while all of Python can still be used.

`atexit` is too late for that: pools of threads refuse work by then, and with them the clients of object stores.
"""

import concurrent.futures.thread  # noqa: F401 - its own end is to come after this one, so it is registered first
import threading
from collections.abc import Callable

_calls: list[Callable[[], object]] = []


def before_exit(call: Callable[[], object]) -> None:
    """Has the call made before threads end; of several the one that was asked for last comes first."""
    if call in _calls:
        _calls.remove(call)
    _calls.append(call)


def _make_calls() -> None:
    for call in reversed([*_calls]):
        call()


# What concurrent.futures does. Where it is missing, `atexit` handlers are all that there is.
getattr(threading, "_register_atexit", lambda call: None)(_make_calls)
