"""Copies that follow the saves of one tier into another, in the background: which are due, one after another, and what failed.

The laws: what is due is derived from the records of the two runs and from nothing else, so whoever starts anew goes on where
another has died. A copy that fails fails no save, is tried again at the next save or start, and is told once.
"""

import atexit
import contextlib
import logging
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from ckptmgr.copying import Readback, copy_step
from ckptmgr.errors import CorruptCheckpointError, StepExistsError, StepNotFoundError
from ckptmgr.finding import Run
from ckptmgr.hints import Hints
from ckptmgr.manager import CheckpointManager
from ckptmgr.retention import KeepAll, Retention, plan
from ckptmgr.step import StepInfo
from ckptmgr.telling import let_go, raise_together
from ckptmgr.transfer import Progress

logger = logging.getLogger(__name__)

Key: TypeAlias = tuple[int, int, str, datetime]
Upload: TypeAlias = Retention | Callable[[StepInfo], bool]
_Bell: TypeAlias = "queue.SimpleQueue[None]"

_PATIENCE_S = 0.1  # until it is looked again: a ring may be lost to an interrupt


def key(info: StepInfo) -> Key:
    """What a step and all its copies have in common, and no other step."""
    return info.step, info.sequence, info.run, info.created


def due(
    local: Sequence[StepInfo], remote: Sequence[StepInfo], retention: Retention, upload: Upload | None = None
) -> list[StepInfo]:
    """The local steps that are to be copied, newest first: those that the remote tier lacks, and would keep by ``retention``.

    Both come oldest first. With ``upload`` only those that it wants. A step that has been saved again elsewhere is not.
    """
    there = {key(info) for info in remote}
    sequences = {info.step: info.sequence for info in remote}
    if upload is None:
        wanted: Sequence[StepInfo] = local
    elif isinstance(upload, Retention):
        kept = upload.keep(local)
        wanted = [info for info in local if info.step in kept or info.pins]
    else:
        wanted = [info for info in local if upload(info)]
    missing = [info for info in wanted if key(info) not in there and sequences.get(info.step, info.sequence) <= info.sequence]
    if not missing:
        return []
    numbers = {info.step for info in missing}
    kept_there = plan(retention, [*missing, *(info for info in remote if info.step not in numbers)]).kept
    orders = {info.order for info in kept_there}
    return [info for info in reversed(missing) if info.order in orders]


@dataclass(frozen=True, slots=True, repr=False)
class KeepUncopied(Retention):
    """The steps whose copy is due or under way, as far as ``held`` wants them."""

    uploader: "Uploader"
    held: Retention

    def keep(self, steps: Sequence[StepInfo]) -> Mapping[int, str]:
        """Those that it wants of them."""
        uncopied = self.uploader.uncopied(steps)
        return {step: str(self) for step in self.held.keep(uncopied)} if uncopied else {}

    def __repr__(self) -> str:
        return f"KeepUncopied({self.held!r})"

    def __str__(self) -> str:
        return "not copied yet"


class _Ended(Exception):
    """The copy is to end here; another time it is gone on with."""


class Uploader:
    """Copies steps of one manager's run into another's, in a thread of its own. Threads may share it.

    ``known`` are the steps of the remote run when they were last looked at; None before that.
    """

    def __init__(
        self,
        local: CheckpointManager,
        remote: CheckpointManager,
        *,
        upload: Upload | None,
        verify: Readback,
        progress: Progress | None,
    ) -> None:
        self.local, self.remote = local, remote
        self.known: list[StepInfo] | None = None
        self._source, self._target = (Run(each.folder, each.naming, each.backend) for each in (local, remote))
        self._upload: Upload | None = upload
        self._verify: Readback = verify
        self._progress = progress
        self._pid = os.getpid()
        self._copying = threading.RLock()  # held while a step is copied
        self._current: StepInfo | None = None
        self._unwanted: set[int] = set()
        self._is_ended = False
        self._hopeless: set[Key] = set()  # of which another try would end as the last one
        self._failures: dict[Key, BaseException] = {}
        self._told: set[Key] = set()
        self._bells: queue.SimpleQueue[tuple[Uploader, _Bell] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        weakref.finalize(self, self._bells.put, None).atexit = False  # ends the thread
        # Again, to come before whatever frameworks have registered since the last time: handlers run in reverse order.
        atexit.unregister(_at_exit)
        atexit.register(_at_exit)

    def check(self) -> None:
        """Raises RuntimeError where nothing can be copied any more."""
        if os.getpid() != self._pid:
            raise RuntimeError(f"this TieredManager is of process {self._pid}, which forked this one: make a new one here")
        if self._is_ended:
            raise RuntimeError("this TieredManager is closed: make a new one")

    @property
    def has_failed(self) -> bool:
        """Whether there is something to tell."""
        return not self._told.issuperset(self._failures)

    def look(self) -> None:
        """Looks at the remote run as it is now. Raises OSError."""
        self.seen([known.info for known in self._target.steps().committed])

    def seen(self, remote: list[StepInfo]) -> None:
        """Takes what somebody has seen of the remote run."""
        self.known = remote

    def bring_back(self, step: int) -> None:
        """Copies a step of the remote run into the local one, in place of what may be there: it is damaged, or older."""
        copy_step(self._target, self._target.find_own(step), self._source, overwrite=True, anew=True, verify="fast")

    def uncopied(self, local: Sequence[StepInfo]) -> list[StepInfo]:
        """Those of the local steps whose copy is due or under way, oldest first, by what is known of the remote run."""
        wanted = {key(info) for info in self._due(local)} | {key(info) for info in [self._current] if info}
        return [info for info in local if key(info) in wanted]

    def wake(self) -> _Bell:
        """Has all copied that is due now; the bell rings when that is done or has failed."""
        self.check()
        bell: _Bell = queue.SimpleQueue()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=_work, args=(self._bells,), name="ckptmgr-copies", daemon=True)
            self._thread.start()
        _unfinished[self] = None
        self._bells.put((self, bell))
        return bell

    def wait(self, timeout: float | None = None) -> None:
        """Returns when all that is due has been copied or has failed; see `TieredManager.wait`."""
        bell = self.wake()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _PATIENCE_S if deadline is None else min(_PATIENCE_S, deadline - time.monotonic())
            if left <= 0:
                raise TimeoutError(f"not all steps are copied to {self.remote.folder.location()!r} in {timeout} s; it goes on")
            with contextlib.suppress(queue.Empty):
                bell.get(timeout=left)
                return

    def raise_failures(self) -> None:
        """Raises what has failed and is not told yet."""
        raise_together(self.failures())

    def failures(self) -> list[BaseException]:
        """What has failed, was not told yet, and has not been done since. It is told by this."""
        untold = [each for each in list(self._failures) if each not in self._told]
        self._told.update(untold)
        if not self._bells.qsize() and self._current is None:
            _unfinished.pop(self, None)
        return [self._failures[each] for each in untold]

    def end(self) -> None:
        """Ends the copy under way between two windows, and copies no more."""
        self._is_ended = True
        self._bells.put(None)
        thread = self._thread
        if thread is not None and thread.is_alive():
            thread.join()
        _unfinished.pop(self, None)

    @contextmanager
    def without(self, step: int) -> Iterator[None]:
        """Inside, no copy of the step is made: the one under way ends, and no other begins."""
        self._unwanted.add(step)
        with self._copying:
            try:
                yield
                self.known = None if self.known is None else [info for info in self.known if info.step != step]
            finally:
                self._unwanted.discard(step)

    def copy_all_due(self) -> None:
        """What the thread does when it is woken."""
        is_looked = False
        tried: set[Key] = set()
        while not self._is_ended:
            with self._copying:
                left: list[StepInfo] = []
                try:
                    left = [info for info in self._due(self._own()) if key(info) not in tried]
                    if left and not is_looked:
                        self.look()
                        is_looked = True
                        left = self._due(self._own())
                # Whatever it is, it is told by the thread that saves.
                except BaseException as error:  # noqa: BLE001
                    for info in left[:1]:
                        self._fail(info, error)
                    return
                if not left:
                    return
                tried.add(key(left[0]))
                self._copy(left[0])

    def _own(self) -> list[StepInfo]:
        return [known.info for known in self._source.steps().committed]

    def _due(self, local: Sequence[StepInfo]) -> list[StepInfo]:
        own = [info for info in local if not info.is_foreign and key(info) not in self._hopeless]
        return due(own, self.known or (), self.remote.retention, self._upload)

    def _copy(self, info: StepInfo) -> None:
        self._current = info
        try:
            known = self._source.find_own(info.step)
            if key(known.info) != key(info):
                return  # saved again meanwhile
            older = any(each.step == info.step and each.sequence < info.sequence for each in self.known or ())
            done = copy_step(self._source, known, self._target, overwrite=older, verify=self._verify, progress=self._tell)
            self.known = sorted(
                [*(each for each in self.known or () if each.step != info.step), done.info], key=lambda each: each.order
            )
            for name in sorted(self._source.find_own(info.step).info.pins - done.info.pins):
                self.remote.pin(info.step, name)
            self._apply_retention()
            self._failures.pop(key(info), None)
            self._told.discard(key(info))
            logger.info("copied step %d to %r", info.step, self.remote.folder.location())
        except StepNotFoundError as error:
            logger.info("step %d is not copied: %s", info.step, error)
        except _Ended:
            pass
        # Whatever it is, it is told by the thread that saves.
        except BaseException as error:  # noqa: BLE001
            if isinstance(error, CorruptCheckpointError | StepExistsError):
                self._hopeless.add(key(info))
            self._fail(info, error)
        finally:
            self._current = None

    def _apply_retention(self) -> None:
        if self.remote.retention == KeepAll() and not Hints(self._target).follow(self.local.backend):
            return  # there is nothing to remove or to write
        dropped = {each.order for each in self.remote.collect().dropped}
        self.known = [each for each in self.known or () if each.order not in dropped]

    def _tell(self, done: int, total: int) -> None:
        info = self._current
        if self._is_ended or (info is not None and info.step in self._unwanted):
            raise _Ended
        if self._progress is not None:
            self._progress(done, total)

    def _fail(self, info: StepInfo, error: BaseException) -> None:
        if type(self._failures.get(key(info))) is type(error):
            return  # it failed so before
        self._told.discard(key(info))
        where = self.remote.folder.location()
        again = "" if key(info) in self._hopeless else "; it is tried again at the next save or start"
        error.add_note(f"raised by the copy of step {info.step} to {where!r}{again}")
        let_go(error)
        logger.warning("step %d was not copied to %r%s: %s", info.step, where, again, error)
        self._failures[key(info)] = error.with_traceback(None)


_unfinished: dict[Uploader, None] = {}
"""All that may have something to copy or to tell. It keeps those that nobody else does."""

os.register_at_fork(after_in_child=_unfinished.clear)  # they go on in the parent


def _work(bells: "queue.SimpleQueue[tuple[Uploader, _Bell] | None]") -> None:
    """What the thread does. It keeps nothing alive while it waits, so that an uploader nobody needs ends it."""
    while (first := bells.get()) is not None:
        uploader, bell = first
        uploader.copy_all_due()
        if not uploader.has_failed:
            _unfinished.pop(uploader, None)
        bell.put(None)
        del uploader, bell, first


def _at_exit() -> None:
    for uploader in list(_unfinished):
        uploader.wait()
        for error in uploader.failures():  # nobody is left to raise it to: told as an error that ends a program is
            sys.excepthook(type(error), error, error.__traceback__)
