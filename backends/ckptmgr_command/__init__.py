"""The console script ``ckptmgr``, in a package of its own: what it starts with is there before `ckptmgr` is imported.

That import takes a third of a second, in which there is nothing yet that an interrupt would have to undo or to tell.
"""

import gc
import importlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # 128 and the number of SIGINT, as shells say it


def main() -> None:
    """Runs the command line in `sys.argv` and ends the process; see `ckptmgr.cli`."""
    with _interruptible(), _without_collections():
        command = importlib.import_module("ckptmgr.cli")
    command.main()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the process at once, and shows no traceback; if the process is to ignore it, it does."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _without_collections() -> Iterator[None]:
    """What modules are made of stays: to look for garbage in it again and again is a tenth of the time that a start takes."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)
