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
from typing import TypeAlias

from ckptmgr.copying import Readback, copy_step
from ckptmgr.due import Key, Upload, due, key
from ckptmgr.errors import CorruptCheckpointError, StepExistsError, StepNotFoundError
from ckptmgr.exiting import before_exit
from ckptmgr.finding import Run
from ckptmgr.hints import Hints
from ckptmgr.manager import CheckpointManager
from ckptmgr.retention import KeepAll, Retention
from ckptmgr.step import StepInfo
from ckptmgr.telling import let_go
from ckptmgr.threads import alive, started
from ckptmgr.transfer import Progress

logger = logging.getLogger(__name__)

_Bell: TypeAlias = "queue.SimpleQueue[None]"

LOOK_S = 30.0  # how long the first save waits for a remote tier
END_S = 5.0  # how long an end waits for a store that does not answer
_PATIENCE_S = 0.1  # until it is looked again: a ring may be lost to an interrupt


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
        self._knowing = threading.Lock()  # held while `known` is changed
        self._current: StepInfo | None = None
        self._copier = 0  # the thread that copies it
        self._unwanted: list[int] = []
        self._is_busy = False
        self._is_ended = False
        self._hopeless: set[Key] = set()  # of which another try would end as the last one
        self._failed: dict[Key, StepInfo] = {}
        self._failures: dict[Key | None, BaseException] = {}  # None: of what comes before any copy
        self._told: set[Key | None] = set()
        self._bells: queue.SimpleQueue[tuple[Uploader, _Bell] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        weakref.finalize(self, self._bells.put, None).atexit = False  # ends the thread
        before_exit(_wait_for_all)
        # Again, to come before whatever frameworks have registered since the last time: handlers run in reverse order.
        atexit.unregister(_at_exit)
        atexit.register(_at_exit)

    def check(self) -> None:
        """Raises RuntimeError where nothing can be copied any more."""
        self._check_process()
        if self._is_ended:
            raise RuntimeError("this TieredManager is closed: make a new one")

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(f"this TieredManager is of process {self._pid}, which forked this one: make a new one here")

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or goes on in the process that forked this one."""
        return self._is_ended or os.getpid() != self._pid

    @property
    def has_failed(self) -> bool:
        """Whether there is something to tell."""
        return not self._told.issuperset(self._failures)

    def look(self) -> None:
        """Looks at the remote run as it is now. Raises OSError."""
        self.seen([known.info for known in self._target.steps().committed])

    def look_soon(self) -> None:
        """Looks at the remote run; goes on without it, for whoever waits for this, if it cannot be reached or takes long."""

        def look() -> None:
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - the copies will meet it, and tell it
                logger.warning("saves begin without a look at the remote tier: %s", error)

        looking = threading.Thread(target=look, name="ckptmgr-look", daemon=True)
        if not started(looking):
            look()
            return
        looking.join(LOOK_S)
        if looking.is_alive():
            logger.warning("saves begin without a look at the remote tier, which has not answered in %g s", LOOK_S)

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
        self._thread = alive(self._thread, "ckptmgr-copies", _work, self._bells)
        if self._thread is not None:
            self._bells.put((self, bell))
        else:
            with self._copying:
                self.copy_all_due()
            bell.put(None)
        if self._thread is not None or self.has_failed:
            _unfinished[self] = None  # after that: the thread may just be taking it out
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

    def failures(self) -> list[BaseException]:
        """What has failed, was not told yet, and has not been done since. It is told by this."""
        untold = [each for each in list(self._failures) if each not in self._told]
        self._told.update(untold)
        if not self._is_busy and self._bells.empty():
            _unfinished.pop(self, None)
        return [self._failures[each] for each in untold]

    def end(self) -> None:
        """Ends the copy under way between two windows, and copies no more. Does not wait long for a store that hangs."""
        self._is_ended = True
        self._bells.put(None)
        thread = self._thread
        if thread is not None and thread.is_alive():
            thread.join(END_S)
        _unfinished.pop(self, None)

    @contextmanager
    def without(self, step: int) -> Iterator[None]:
        """Inside, no copy of the step is made: the one under way ends, and no other begins. Others go on."""
        self._check_process()
        self._unwanted.append(step)  # first: the thread looks at this after it has told what is current
        try:
            while self._is_copying(step):
                if self._copying.acquire(timeout=_PATIENCE_S):
                    self._copying.release()
            yield
            self._change_known(lambda known: [info for info in known if info.step != step])
            for each in [each for each, info in list(self._failed.items()) if info.step == step]:
                self._forget(each)
        finally:
            self._unwanted.remove(step)

    def _is_copying(self, step: int) -> bool:
        current = self._current
        return current is not None and current.step == step and threading.get_ident() != self._copier

    def copy_all_due(self) -> None:
        """What the thread does when it is woken."""
        self._is_busy, left = True, list[StepInfo]()
        tried: set[Key] = set()
        is_looked = False
        try:
            while not self._is_ended:
                left = [info for info in self._due(self._own()) if key(info) not in tried]
                if not left:
                    self._forget_what_healed()
                    return
                if not is_looked:
                    self.look()
                    is_looked = True
                    continue
                tried.add(key(left[0]))
                # A tier that does not answer any more is not asked for each of many steps: each may take minutes.
                if not self._copy(left[0]) and not self._is_answered():
                    return
        # Whatever it is, it is told by the thread that saves.
        except BaseException as error:  # noqa: BLE001
            self._fail(None, error, f"the copy of step {left[0].step}" if left else "the search for steps to copy")
        finally:
            self._is_busy = False

    def _is_answered(self) -> bool:
        try:
            self.look()
        except OSError:
            return False
        return True

    def _change_known(self, change: Callable[[list[StepInfo]], list[StepInfo]]) -> None:
        with self._knowing:
            self.known = change(self.known) if self.known is not None else None

    def _own(self) -> list[StepInfo]:
        return [known.info for known in self._source.steps().committed]

    def _due(self, local: Sequence[StepInfo]) -> list[StepInfo]:
        own = [info for info in local if not info.is_foreign and key(info) not in self._hopeless]
        return due(own, self.known or (), self.remote.retention, self._upload)

    def _copy(self, info: StepInfo) -> bool:
        """Copies a step, if it is still there. False if a store failed, and all the others may too."""
        with self._copying:
            self._current, self._copier = info, threading.get_ident()
            try:
                if info.step not in self._unwanted:
                    self._send(info)
            except StepNotFoundError as error:
                logger.info("step %d is not copied: %s", info.step, error)
            except _Ended:
                pass
            # Whatever it is, it is told by the thread that saves.
            except BaseException as error:  # noqa: BLE001
                is_hopeless = isinstance(error, CorruptCheckpointError | StepExistsError)
                if is_hopeless:
                    self._hopeless.add(key(info))
                self._failed[key(info)] = info
                self._fail(key(info), error, f"the copy of step {info.step}")
                return is_hopeless or not isinstance(error, OSError)
            finally:
                self._current = None
        return True

    def _send(self, info: StepInfo) -> None:
        known = self._source.find_own(info.step)
        if key(known.info) != key(info):
            return  # saved again meanwhile
        there = [each for each in self.known or () if each.step == info.step and each.sequence < info.sequence]
        instead_of = there[-1].attempt if there else None
        done = copy_step(
            self._source, known, self._target,
            overwrite=bool(there), instead_of=instead_of, verify=self._verify, progress=self._tell,
        )  # fmt: skip
        self._change_known(
            lambda steps: sorted([*(each for each in steps if each.step != info.step), done.info], key=lambda each: each.order)
        )
        self._follow_pins(known.info, done.info)
        self._apply_retention()
        self._forget(key(info))
        logger.info("copied step %d to %r", info.step, self.remote.folder.location())

    def _follow_pins(self, before: StepInfo, copy: StepInfo) -> None:
        """Pins that came, or were taken out, while the step was copied."""
        now = self._source.find_own(before.step).info.pins
        for name in sorted(now - copy.pins):
            self.remote.pin(copy.step, name)
        for name in sorted((before.pins & copy.pins) - now):
            self.remote.unpin(copy.step, name)

    def _apply_retention(self) -> None:
        if self.remote.retention == KeepAll() and not Hints(self._target).follow(self.local.backend):
            return  # there is nothing to remove or to write
        dropped = {each.order for each in self.remote.collect().dropped}
        self._change_known(lambda steps: [each for each in steps if each.order not in dropped])

    def _tell(self, done: int, total: int) -> None:
        info = self._current
        if self._is_ended or (info is not None and info.step in self._unwanted):
            raise _Ended
        if self._progress is not None:
            self._progress(done, total)

    def _fail(self, failed: Key | None, error: BaseException, what: str) -> None:
        if type(self._failures.get(failed)) is type(error):
            return  # it failed so before
        self._told.discard(failed)
        where = self.remote.folder.location()
        again = "" if failed in self._hopeless else "; it is tried again at the next save or start"
        error.add_note(f"raised by {what} to {where!r}{again}")
        let_go(error)
        logger.warning("%s to %r failed, and it was not copied%s: %s", what, where, again, error)
        self._failures[failed] = error.with_traceback(None)

    def _forget(self, failed: Key | None) -> None:
        self._failed.pop(failed, None) if failed else None
        self._failures.pop(failed, None)
        self._told.discard(failed)

    def _forget_what_healed(self) -> None:
        """What had failed and is done, or is not wanted in the remote tier any more, is not told."""
        self._forget(None)
        failed = sorted(self._failed.values(), key=lambda info: info.order)
        wanted = {key(info) for info in due(failed, self.known or (), self.remote.retention, self._upload)}
        for each in [key(info) for info in failed]:
            if each not in wanted | self._hopeless:
                self._forget(each)


_unfinished: dict[Uploader, None] = {}
"""All that may have something to copy or to tell. It keeps those that nobody else does."""

os.register_at_fork(after_in_child=_unfinished.clear)  # they go on in the parent


def _work(bells: "queue.SimpleQueue[tuple[Uploader, _Bell] | None]") -> None:
    """What the thread does. It keeps nothing alive while it waits, so that an uploader nobody needs ends it."""
    while (first := bells.get()) is not None:
        uploader, rung = first[0], [first[1]]
        is_last = False
        while not (is_last or bells.empty()):  # one look is for all who have rung before it
            another = bells.get()
            is_last = another is None
            rung += [another[1]] if another else []
        uploader.copy_all_due()
        if not uploader.has_failed:
            _unfinished.pop(uploader, None)
            if not (bells.empty() or is_last or uploader.is_over):
                _unfinished[uploader] = None
        for bell in rung:
            bell.put(None)
        del uploader, first, rung
        if is_last:
            return


def _wait_for_all() -> None:
    for uploader in [each for each in _unfinished if not each.is_over]:
        uploader.wait()


def _at_exit() -> None:
    _wait_for_all()
    for uploader in list(_unfinished):
        for error in uploader.failures():  # nobody is left to raise it to: told as an error that ends a program is
            sys.excepthook(type(error), error, error.__traceback__)
