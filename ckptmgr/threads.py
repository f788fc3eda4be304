"""Threads where they can be had; where the system refuses them, who asked for one does its work itself.

So the law of a save or a copy holds at the very end of a program too. Python 3.12.0 and 3.12.1 refuse threads from the moment
the main thread has come to its end (repaired in 3.12.2), all versions from 3.12 on in what `atexit` calls; pools of
`concurrent.futures` refuse work even while other threads still go on; and a container may be at its limit of threads any time.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def started(thread: threading.Thread) -> bool:
    """Starts it; False if no thread can be had. Then it never runs, and is not alive."""
    try:
        thread.start()
    except RuntimeError:
        if thread.ident is not None:  # not refused: started twice
            raise
        return False
    return True


def alive(thread: threading.Thread | None, name: str, call: Callable[..., object], *args: object) -> threading.Thread | None:
    """The thread, if it is alive; otherwise a new one, a daemon that makes the call, or None if none can be had."""
    if thread is not None and thread.is_alive():
        return thread
    new = threading.Thread(target=call, args=args, name=name, daemon=True)
    return new if started(new) else None


class Pool(ThreadPoolExecutor):
    """A `ThreadPoolExecutor`; what no thread can be had for is done by the one that submits it, before `submit` returns."""

    _is_shut = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See `Executor.submit`.

        Raises:
            RuntimeError: after `shutdown`.
        """
        future: Future[T] = Future()
        call = _once(future, partial(fn, *args, **kwargs))
        try:
            if (own := self._queued(call)) is None:
                call()  # it may be in the queue of threads that could be had, so whoever comes first makes it
            else:
                own.add_done_callback(partial(_cancel_too, future))
            return future
        finally:
            del future  # the frames of an error that it keeps lead to this one

    def _queued(self, call: Callable[[], None]) -> Future[None] | None:
        try:
            return super().submit(call)
        except RuntimeError:
            if self._is_shut:
                raise
            return None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `Executor.shutdown`."""
        self._is_shut = True
        super().shutdown(wait, cancel_futures=cancel_futures)


def _cancel_too(future: Future[T], own: Future[None]) -> None:
    if own.cancelled():
        future.cancel()


def _once(future: Future[T], call: Callable[[], T]) -> Callable[[], None]:
    """What makes the call the first time, and has the future tell its end."""
    futures = [future]
    del future  # an error that it keeps would refer to itself, and to all that the call had, until garbage is looked for

    def make() -> None:
        try:
            future = futures.pop()
        except IndexError:
            return
        try:
            if future.set_running_or_notify_cancel():
                future.set_result(call())
        # Whatever it is, it is raised by who asks for the result.
        except BaseException as error:  # noqa: BLE001
            future.set_exception(error)
        finally:
            del future

    return make
