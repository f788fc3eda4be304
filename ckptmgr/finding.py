"""Which steps a run has, and how one is opened: read from the records each time, so it is never stale.

"Newest" is the largest `StepInfo.order` among the records; no pointer, name, time or memory of a process decides it.
"""

import logging
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from ckptmgr.checkpoint import Checkpoint, open_managed
from ckptmgr.errors import (
    CheckpointError,
    CorruptCheckpointError,
    FormatVersionError,
    StateMismatchError,
    StepNotFoundError,
    UnsafeCheckpointError,
    shown,
)
from ckptmgr.ledger import Found, Unreadable, read_record, snapshot
from ckptmgr.manifest import Manifest, folder_name
from ckptmgr.naming import StepNaming
from ckptmgr.step import StepInfo
from ckptmgr.storage import Folder
from ckptmgr.transfer import Verify

log = logging.getLogger(__name__)
T = TypeVar("T")


class Committed(NamedTuple):
    """A committed step: the record it was read from, its manifest, and what a user sees of it."""

    found: Found
    manifest: Manifest
    info: StepInfo


@dataclass(frozen=True, slots=True)
class Skipped:
    """A newer step that a restore passed over, and why."""

    step: int
    error: CheckpointError


@dataclass(frozen=True, slots=True)
class Run:
    """The folder of a run and the names of its steps."""

    folder: Folder
    naming: StepNaming

    def committed(self) -> tuple[list[Committed], list[Unreadable]]:
        """All committed steps in order of their saves, and the records that cannot be read (each is logged).

        Should two folders hold the same step, the one saved last counts.
        """
        found, unreadable = snapshot(self.folder, self.naming)
        for entry in unreadable:
            log.warning("%s", entry.error)
        steps: dict[int, Committed] = {}
        for step in sorted(
            (self._known(record) for record in found if record.record.manifest), key=lambda known: known.info.order
        ):
            steps[step.info.step] = step
        return sorted(steps.values(), key=lambda known: known.info.order), unreadable

    def name_of(self, step: int) -> str | None:
        """The folder that holds the step already, where its name does not follow from the step alone; None otherwise.

        A step saved again with other metadata in its name must meet the record it has, not get a second one.
        """
        if not self.naming.needs_metadata:
            return None
        return next((known.found.name for known in self.committed()[0] if known.info.step == step), None)

    def names(self, step: int) -> list[str]:
        """All folders whose names are that step's: more than one if somebody copied or renamed one."""
        return [name for name in self.folder.list().folders if self.naming.parse(name) == step]

    def find(self, step: int) -> Committed:
        """One committed step.

        Raises:
            StepNotFoundError: it is not committed; the message lists steps that are.
            CorruptCheckpointError: its record is damaged.
        """
        committed, unreadable = self.committed()
        for known in committed:
            if known.info.step == step:
                return known
        for entry in unreadable:
            if entry.step == step:
                raise entry.error
        raise self.not_found(step, committed)

    def not_found(self, step: int | None, committed: list[Committed]) -> StepNotFoundError:
        """The error for a step that is not committed."""
        steps = [known.info.step for known in committed]
        what = "no step is" if step is None else f"step {step} is not"
        return StepNotFoundError(
            f"{what} committed in {self.folder.location()!r} (committed: {shown(steps[::-1]) or 'none'})",
            step=step,
            committed=steps,
        )

    def open(self, known: Committed, verify: Verify) -> Checkpoint:
        """The step as a lazy checkpoint."""

        def is_current() -> bool:
            now = read_record(self.folder, known.found.name, known.info.step)
            return now is not None and now.record.manifest is not None and now.record.manifest.attempt == known.manifest.attempt

        folder = self.folder.folder(known.found.name).folder(folder_name(known.manifest.attempt))
        return open_managed(folder, known.manifest, known.info, verify=verify, is_current=is_current)

    def with_step(self, step: int, verify: Verify, use: Callable[[Checkpoint], T]) -> T:
        """What ``use`` makes of the step; if it is overwritten meanwhile, of the new attempt.

        Raises:
            StepNotFoundError: no such step, or it was deleted meanwhile.
        """
        while True:
            known = self.find(step)
            try:
                return use(self.open(known, verify))
            except StepNotFoundError:
                if self.find(step).manifest.attempt == known.manifest.attempt:
                    raise

    def with_newest(self, verify: Verify, use: Callable[[Checkpoint], T], *, stacklevel: int) -> tuple[T, list[Skipped]]:
        """What ``use`` makes of the newest step that passes its checks, and the newer ones that did not, each warned about.

        A step that is deleted or overwritten meanwhile is passed over without a word, and what is newest then is taken: it may
        have been removed for one that was not there before. A step written by a newer format is no reason to fall back.

        Raises:
            StepNotFoundError: nothing is committed; its ``step`` is None, or one that was deleted while it was in use.
            CorruptCheckpointError: there are steps, but none passes.
            FormatVersionError: a newer ckptmgr wrote the newest step.
        """
        skipped: list[Skipped] = []
        passed: set[Hashable] = set()
        gone: StepNotFoundError | None = None

        def skip(step: int, error: CheckpointError) -> None:
            if isinstance(error, FormatVersionError):
                raise error
            warnings.warn(f"step {step} is skipped: {error}", RuntimeWarning, stacklevel=stacklevel + 2)
            skipped.append(Skipped(step, error))

        while True:
            committed, unreadable = self.committed()
            for entry in unreadable:
                if entry.version not in passed:
                    passed.add(entry.version)
                    skip(entry.step, entry.error)
            left = [known for known in committed if known.manifest.attempt not in passed]
            if not left:
                break
            newest = left[-1]
            passed.add(newest.manifest.attempt)
            try:
                return use(self.open(newest, verify)), skipped
            except StepNotFoundError as error:
                gone = error
                log.info("step %d was deleted or overwritten while it was opened", newest.info.step)
            except (CorruptCheckpointError, UnsafeCheckpointError) as error:
                skip(newest.info.step, error)
            except StateMismatchError as error:
                if skipped:
                    error.add_note(f"step {skipped[-1].step} was tried first and is damaged: arrays may hold some of its bytes")
                raise
        if not skipped:
            raise gone or self.not_found(None, [])
        raise CorruptCheckpointError(
            f"no step in {self.folder.location()!r} passes its checks ({shown([entry.step for entry in skipped])}); "
            f"the newest: {skipped[0].error}",
            step=skipped[0].step,
        ) from skipped[0].error

    def _known(self, found: Found) -> Committed:
        manifest = found.record.manifest
        assert manifest is not None
        path = self.folder.folder(found.name).folder(folder_name(manifest.attempt)).location()
        return Committed(found, manifest, manifest.info(found.record.pins, name=found.name, path=path))
