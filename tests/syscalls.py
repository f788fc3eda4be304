"""Lets every single system call by which `PosixStore` changes the disk be the last one, or fail.

::

    with counting() as calls:                          # what happens, in order
        action()
    for n in range(len(calls)):                        # n is an index into calls
        with dying_at(n, when="after"): ...            # SIGKILL of this process: use it in `in_child`
        with failing_at(n, errno.ENOSPC): ...          # OSError instead of the call, or after it

Only calls made by the modules of `ckptmgr.storage` count, and only those that change something or make it durable. Calls of
all threads are counted together, so the code under test has to make them in the same order each time.
"""

import faulthandler
import fcntl
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

import frameworks

import ckptmgr.storage.posix  # noqa: F401  (loads every module that is watched)
from ckptmgr.storage import vectored

When = Literal["before", "after"]
STDERR = 2  # where pytest captures it; sys.stderr may be another one
_CHANGING = {"open", "mkdir", "rmdir", "pwritev", "fsync", "replace", "link", "unlink", "utime", "flock"}


@dataclass(slots=True)
class Call:
    """A system call: its name, the path it changes or makes durable, and for replace and link the path it comes from."""

    name: str
    path: str
    source: str = ""
    is_done: bool = False  # it was made, and did not raise


@contextmanager
def counting() -> Iterator[list[Call]]:
    """The calls that are made inside, in order."""
    with _watching(lambda _, call: call()) as calls:
        yield calls


@contextmanager
def dying_at(n: int, when: When = "before") -> Iterator[list[Call]]:
    """Kills this process before or after call ``n`` takes effect."""

    def act(index: int, call: Callable[[], Any]) -> Any:
        try:
            return call() if index < n or when == "after" else None
        finally:
            if index == n:
                os.kill(os.getpid(), signal.SIGKILL)

    with _watching(act) as calls:
        yield calls


@contextmanager
def failing_at(n: int, code: int, when: When = "before", *, lasting: bool = False) -> Iterator[list[Call]]:
    """Lets call ``n`` (and all later ones, if ``lasting``) raise OSError, without effect or after it was made."""

    def act(index: int, call: Callable[[], Any]) -> Any:
        if index < n or (index > n and not lasting):
            return call()
        if when == "after":
            result = call()
            if calls[index].name == "open":
                os.close(result)
        raise OSError(code, os.strerror(code))

    with _watching(act) as calls:
        yield calls


def in_child(action: Callable[[], Any]) -> int:
    """Runs ``action`` in a forked child: 0 if it returned, 1 if it raised (told on stderr), -9 if it was killed."""
    return exit_code(start_child(action))


def start_child(action: Callable[[], Any]) -> int:
    """Begins ``action`` in a forked child and gives its process id, for `exit_code`.

    A child that crashes tells the stack of each thread on stderr, which pytest shows beside the test that failed.
    """
    found = frameworks.loaded()
    assert not found, f"a process with {', '.join(found)} loaded must not fork: name them as tests/frameworks.py says"
    child = os.fork()
    if child == 0:
        try:
            faulthandler.enable(STDERR)
            action()
        except BaseException:  # noqa: BLE001  a child must never go on with the tests of its parent
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def exit_code(child: int) -> int:
    """Waits for a child of `start_child`; see `in_child`."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def _watching(act: Callable[[int, Callable[[], Any]], Any]) -> Iterator[list[Call]]:
    """Passes the number of each call, and the call itself, to ``act``, which gives its result."""
    calls: list[Call] = []
    guard = threading.Lock()

    def done(call: Call, result: Any) -> Any:
        call.is_done = True
        return result

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return function(*args, **options)
            with guard:
                index = len(calls)
                calls.append(_described(name, args, options))
            return act(index, lambda: done(calls[index], function(*args, **options)))

        return call

    with mock.patch.object(vectored, "reserve", watched("fallocate", vectored.reserve)):
        watched_modules = [module for name, module in sys.modules.items() if name.startswith("ckptmgr.storage.")]
        patches = [
            mock.patch.object(module, system.__name__, _Watched(system, watched))
            for module in watched_modules
            for system in (os, fcntl)
            if getattr(module, system.__name__, None) is system
        ]
        try:
            for patch in patches:
                patch.start()
            yield calls
        finally:
            for patch in patches:
                patch.stop()


class _Watched:
    """A module as its users see it, with the changing calls watched."""

    def __init__(self, module: Any, watched: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        self._module = module
        self._watched = watched

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        return self._watched(name, value) if name in _CHANGING else value


def _described(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Call:
    if name in ("replace", "link"):
        return Call(name, _path(args[1], options.get("dst_dir_fd")), _path(args[0], options.get("src_dir_fd")))
    return Call(name, _path(args[0], options.get("dir_fd")))


def _path(target: int | str, folder: int | None) -> str:
    if isinstance(target, int):
        return os.readlink(f"/proc/self/fd/{target}")
    return target if folder is None else os.path.join(_path(folder, None), target)
