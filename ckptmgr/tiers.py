"""Two places for a run: a near one that saves are fast in, and a far one that outlives the machine.

The laws: a step is saved when the near tier has committed it, and no trouble with the far one changes that. Copies are made
by `copying`, in the background, so the far tier has whole steps or none. Nothing but the records of both says what is where.
A restore takes the newest step of both, from the near tier where that is good.
"""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import reduce
from operator import or_
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from ckptmgr.checkpoint import Cast, Checkpoint, Restored
from ckptmgr.copying import Readback
from ckptmgr.due import Upload
from ckptmgr.errors import (
    SaveError,
    StepExistsError,
    StepNotFoundError,
)
from ckptmgr.finding import VerifyReport
from ckptmgr.manager import CheckpointManager
from ckptmgr.naming import checked_step
from ckptmgr.nearest import Nearest
from ckptmgr.renaming import Renaming
from ckptmgr.resuming import restored_or_initial, with_skipped
from ckptmgr.retention import KeepAll, Retention, best
from ckptmgr.saving import Asset, Prepared
from ckptmgr.step import JSON, StepInfo
from ckptmgr.sweep import Swept
from ckptmgr.telling import raise_together, shown_whole
from ckptmgr.transfer import Progress, Verify
from ckptmgr.uploading import KeepUncopied, Uploader

logger = logging.getLogger(__name__)
T = TypeVar("T")


class TieredManager:
    """Saves into a near tier, and copies the steps into a far one in the background.

    Args:
        local: the near tier: saves go there, and are done when it has committed them.
        remote: the far tier. Each has its own retention, naming and options; both belong to this from now on.
        upload: which steps are copied: a policy, as ``KeepEvery(10_000)``, or a function of a `StepInfo`. Pinned steps always
            are. By default all that the remote tier's retention would keep.
        hold: of the steps whose copy is due or under way, those that local retention must leave, as ``KeepLast(5)`` or
            ``KeepBytes(10**11)``; None: it need not leave any.
        fill: whether a restore from the remote tier first brings the step into the local one.
        verify: how a copy is checked before it is committed: ``"fast"``, sizes, for the bytes are checked on their way; or
            ``"full"``: it is read back.
        progress: called as ``progress(bytes_done, bytes_total)`` of each step while it is copied, in the thread that copies.

    A context manager, which ends with `close`. What a `CheckpointManager` has mostly is here too, over both tiers; what is not
    is to be had of `local` and `remote`. A step is the same in both if number, sequence, run and time are. Threads may share it;
    in a process that was forked it cannot be used.
    """

    def __init__(
        self,
        local: CheckpointManager,
        remote: CheckpointManager,
        *,
        upload: Upload | None = None,
        hold: Retention | None = KeepAll(),  # noqa: B008 - a frozen value
        fill: bool = False,
        verify: Readback = "fast",
        progress: Progress | None = None,
    ) -> None:
        if verify not in ("fast", "full"):
            raise ValueError(f"verify must be 'fast' or 'full', not {verify!r}")
        if upload is not None and not isinstance(upload, Retention) and not callable(upload):
            raise TypeError(f"upload must be a policy, as KeepEvery(1000), or a function of a StepInfo, not {upload!r}")
        if local.folder == remote.folder or local.folder.location() == remote.folder.location():
            raise ValueError(f"both tiers are in {local.folder.location()!r}: the remote one must be another place")
        self.local, self.remote = local, remote
        self.fill = fill
        self._uploader = Uploader(local, remote, upload=upload, verify=verify, progress=progress)
        self._has_looked = False
        self._has_held = False  # whether a save since the last wait may have left steps because of their copies
        local.retention = _without_old_holds(local.retention, remote)
        if hold is not None and local.retention != KeepAll():
            local.retention = local.retention | KeepUncopied(self._uploader, hold)
        self._nearest = Nearest(local, remote, self._uploader.seen)

    # ---- saving

    def save(
        self,
        step: int,
        state: Any,
        *,
        metrics: Mapping[str, Any] | None = None,
        metadata: Mapping[str, JSON] | None = None,
        assets: Mapping[str, Asset] | None = None,
        overwrite: bool = False,
    ) -> StepInfo:
        """Saves the state in the local tier, as `CheckpointManager.save` does; copies follow in the background.

        The first save of a process that has not looked at the remote tier looks at it, to be newer than all that is there. That
        it cannot be reached is logged, and no more.

        Raises:
            StepExistsError: the step is in the local tier, or was seen in the remote one, and ``overwrite`` is not set.
            Exception: as `CheckpointManager.save` of the local tier.
        """
        return self.complete(self.prepare(step, state, metrics=metrics, metadata=metadata, assets=assets, overwrite=overwrite))

    def prepare(
        self,
        step: int,
        state: Any,
        *,
        metrics: Mapping[str, Any] | None = None,
        metadata: Mapping[str, JSON] | None = None,
        assets: Mapping[str, Asset] | None = None,
        overwrite: bool = False,
    ) -> Prepared:
        """The first half of `save`; see `CheckpointManager.prepare`."""
        self._uploader.check()
        prepared = self.local.prepare(step, state, metrics=metrics, metadata=metadata, assets=assets, overwrite=overwrite)
        if not overwrite and any(info.step == prepared.step for info in self._uploader.known or ()):
            text = f"step {prepared.step} is committed already in {self.remote.folder.location()!r}"
            raise StepExistsError(f"{text}: pass overwrite=True, or save another step", step=prepared.step)
        return prepared

    def complete(self, prepared: Prepared, *, on_written: Callable[[], object] = lambda: None) -> StepInfo:
        """The second half of `save`; see `CheckpointManager.complete`."""
        self._uploader.check()
        if self._uploader.known is None and not self._has_looked:
            self._has_looked = True  # not at each save: a tier that cannot be reached may take minutes to tell
            self._uploader.look_soon()
        newest = max((info.sequence for info in self._uploader.known or ()), default=None)
        try:
            info = self.local.complete(prepared, on_written=on_written, after=newest)
            self._has_held = True
            return info
        finally:
            self._uploader.wake()

    def wait(self, timeout: float | None = None) -> None:
        """Tries to copy all that is due now, also what has failed before; returns when it is copied.

        After saves local retention is then applied once more, to steps that were kept only until they are copied.

        Raises:
            TimeoutError: it is not yet in ``timeout`` seconds. It goes on.
            Exception: what a copy raised, once, with a note that tells the step; or an OSError of the local retention.
        """
        self._uploader.wait(timeout)
        errors = self._let_go()
        raise_together([*self._uploader.failures(), *errors])

    def close(self, *, wait: bool = True) -> None:
        """Waits as `wait` does, applies local retention as that does, and ends. Nothing can be saved any more.

        Without ``wait`` the copy under way ends where it is, and what is left is copied when the same two tiers are
        next saved to, or waited for, in any process.

        Raises:
            Exception: what a copy raised that was not told yet.
        """
        errors = self._end(wait)
        raise_together([*self._uploader.failures(), *errors])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        errors = self._end(wait=True)
        failures = [*self._uploader.failures(), *errors]
        if error is None:
            raise_together(failures)
            return
        for failure in failures:  # the error that ends the block is the one to raise
            error.add_note(f"before, {'local retention' if failure in errors else 'a copy'} failed: {shown_whole(failure)}")

    # ---- finding

    def steps(self) -> list[StepInfo]:
        """All steps of both tiers in order of their saves, each once, as the nearest tier has it.

        If the remote tier cannot be reached, that is warned about, and those of the local one are all, if it has any.
        """
        return self._nearest.steps()

    def latest(self) -> StepInfo | None:
        """The step saved last, by sequence; None if there is none."""
        infos = self.steps()
        return infos[-1] if infos else None

    def best(self, metric: str, mode: Literal["min", "max"] = "min") -> StepInfo | None:
        """The step with the best value of a metric; see `CheckpointManager.best`."""
        return best(self.steps(), metric, mode)

    def path(self, step: int) -> str:
        """Where the step's files lie nearest. Raises StepNotFoundError."""
        return self._nearest.find(checked_step(step)).info.path

    # ---- restoring

    def restore(
        self,
        step: int | None = None,
        *,
        into: Any = None,
        select: Sequence[str] | str | None = None,
        rename: Renaming | None = None,
        cast: Cast = "no",
        strict: bool = True,
        verify: Verify | None = None,
        mmap: bool = False,
        copy: bool = False,
    ) -> Restored:
        """The state of a step, or of the newest good one of both tiers; otherwise as `CheckpointManager.restore`.

        A copy in the local tier that is damaged or cannot be read is warned about and listed in ``report.skipped``, and the
        remote tier's copy of the same step is taken; only then, with ``step`` None, an older step.
        """

        def restored(tier: CheckpointManager, info: StepInfo) -> Restored:
            options: dict[str, Any] = {"into": into, "select": select, "rename": rename, "cast": cast, "strict": strict}
            return self._filled(tier, info).restore(info.step, **options, verify=verify, mmap=mmap, copy=copy)

        result = with_skipped(*self._nearest.use(step, restored))
        if result.info is not None and not result.info.is_foreign:
            self.local.go_on_with(result.info.run)
        return result

    @overload
    def restore_or_initialize(self, init: Callable[[], T]) -> tuple[int, T]: ...
    @overload
    def restore_or_initialize(self, init: T) -> tuple[int, T]: ...
    def restore_or_initialize(self, init: Any) -> tuple[int, Any]:
        """The newest good step and its state restored into ``init``; see `CheckpointManager.restore_or_initialize`.

        Raises:
            OSError: the remote tier cannot be reached, and the local one is empty: training must not silently start anew.
        """
        return restored_or_initial(lambda state: self.restore(into=state), init)

    def open(self, step: int | None = None) -> Checkpoint:
        """A step opened lazily, in the nearest tier where it opens; the newest of both, with ``step`` None."""
        return self._nearest.use(step, lambda tier, info: tier.open(info.step))[0]

    def verify(self, step: int | None = None, *, full: bool = True) -> VerifyReport:
        """Reads every byte of a step (of all steps, with None) in each tier that has it; messages tell which file is damaged.

        Raises:
            StepNotFoundError: no tier has such a step.
            OSError: from either tier.
        """
        wanted = None if step is None else checked_step(step)
        reports = []
        for tier in (self.local, self.remote):
            with suppress(StepNotFoundError):
                reports.append(tier.verify(wanted, full=full))
        if not reports:
            raise self._nearest.not_found(wanted)
        seen = dict.fromkeys(number for report in reports for number in report.steps)
        problems = tuple(problem for report in reports for problem in report.problems)
        return VerifyReport(tuple(seen), problems, tuple(dict.fromkeys(number for report in reports for number in report.unread)))

    # ---- keeping

    def delete(self, step: int) -> None:
        """Removes a step from both tiers; a copy of it under way ends.

        Raises:
            StepNotFoundError: no tier has such a step.
            OSError: from either tier; it may be left in the remote one.
        """
        step = checked_step(step)
        with self._uploader.without(step):
            self._in_each(step, lambda tier: tier.delete(step))

    def pin(self, step: int, name: str) -> None:
        """Keeps a step from retention in both tiers, until the pin of that name is taken out. Raises StepNotFoundError."""
        step = checked_step(step)
        self._in_each(step, lambda tier: tier.pin(step, name))

    def unpin(self, step: int, name: str) -> None:
        """Takes a pin out in both tiers. Raises StepNotFoundError."""
        step = checked_step(step)
        self._in_each(step, lambda tier: tier.unpin(step, name))

    def sweep(self, grace: timedelta | float = timedelta(hours=1)) -> Swept:
        """Removes what interrupted saves and copies left in both tiers; see `CheckpointManager.sweep`."""
        return self.local.sweep(grace) + self.remote.sweep(grace)

    def __repr__(self) -> str:
        return f"TieredManager({self.local!r}, {self.remote!r})"

    def _end(self, wait: bool) -> list[OSError]:
        """Ends the copies; gives what the local retention raised."""
        if self._uploader.is_over:
            return []
        try:
            if not wait:
                return []
            self._uploader.wait()
            return self._let_go()
        finally:  # also when a second Ctrl-C ends the waiting
            self._uploader.end()

    def _let_go(self) -> list[OSError]:
        """Applies local retention to the steps that it had to leave until they were copied; gives the error if it fails."""
        if not (self._has_held and any(isinstance(each, KeepUncopied) for each in self.local.retention.policies)):
            return []
        self._has_held = False
        try:
            self.local.collect()
        except OSError as error:
            error.add_note("the copies have ended; removing older local steps after them failed")
            return [error]
        return []

    def _filled(self, tier: CheckpointManager, info: StepInfo) -> CheckpointManager:
        """The tier to restore from: the local one, once it has the step, if it is to be filled."""
        if tier is self.local or not self.fill or info.is_foreign:
            return tier
        try:
            # What the local tier may have under that number is damaged, or was saved before it.
            self._uploader.bring_back(info.step)
        except (OSError, SaveError) as error:
            text = f"step {info.step} is not brought into {self.local.folder.location()!r}: {error}"
            warnings.warn(text, RuntimeWarning, stacklevel=6)
            return tier
        return self.local

    def _in_each(self, step: int, call: Callable[[CheckpointManager], object]) -> None:
        """Makes the call for each tier that has the step."""
        missing = 0
        for tier in (self.local, self.remote):
            try:
                call(tier)
            except StepNotFoundError:
                missing += 1
        if missing == 2:
            raise self._nearest.not_found(step)


def _without_old_holds(retention: Retention, remote: CheckpointManager) -> Retention:
    """The policies without those that earlier tiers of the same managers have added: what they know is old."""
    where = remote.folder.location()
    left = [
        each
        for each in retention.policies
        if not (isinstance(each, KeepUncopied) and (each.uploader.is_over or each.uploader.remote.folder.location() == where))
    ]
    return reduce(or_, left)
