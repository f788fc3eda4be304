"""Which steps a run has, and how one is opened: read from the records each time, so it is never stale.

"Newest" is the largest `StepInfo.order` among the records; no pointer, name, time or memory of a process decides it. Steps
that other tools wrote beside them (`foreign`) are older than all of them.
"""

import itertools
import logging
import warnings
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias, TypeVar

from ckptmgr import foreign, garbage, linked
from ckptmgr.backend import Backend
from ckptmgr.checkpoint import Checkpoint, files_of, open_managed
from ckptmgr.errors import (
    CheckpointError,
    CorruptCheckpointError,
    FormatVersionError,
    StateMismatchError,
    StepExistsError,
    StepNotFoundError,
    UnsafeCheckpointError,
    shown,
)
from ckptmgr.foreign import Foreign
from ckptmgr.ledger import Found, Unreadable, check, check_is_run, closed, look, read_record, snapshot
from ckptmgr.manifest import MANIFEST, TREE, Manifest, folder_name
from ckptmgr.naming import StepNaming, parse_foreign
from ckptmgr.step import StepInfo
from ckptmgr.storage import Folder, Head
from ckptmgr.transfer import Problem, Progress, Verify

log = logging.getLogger(__name__)
T = TypeVar("T")


class Committed(NamedTuple):
    """A committed step: the record it was read from, its manifest, and what a user sees of it."""

    found: Found
    manifest: Manifest
    info: StepInfo

    @property
    def key(self) -> Hashable:
        """What tells it from everything else that has been, or will be, this step."""
        return self.manifest.attempt


Known: TypeAlias = Committed | Foreign


class _Made(NamedTuple):
    """What was last made of the records of a run. It is never changed."""

    found: list[Found]
    by_name: Mapping[str, Committed]
    steps: list[Committed]


class Steps(NamedTuple):
    """What a run has: committed steps, those of other tools whose number is not ours, damaged records, and files beside them.

    With the damaged records come links that stand where steps would be.

    The first two come oldest first.
    """

    committed: list[Committed]
    foreign: list[Foreign]
    unreadable: list[Unreadable]
    files: Mapping[str, Head]

    @property
    def known(self) -> list[Known]:
        """All steps, oldest first."""
        return [*self.foreign, *self.committed]  # all that other tools wrote comes before what was saved here


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification found: the steps it looked at, and what is damaged in them. Printed, lines for each step.

    ``unread`` are those of them that were not read: the store did not let that be, or a link is not followed.
    """

    steps: tuple[int, ...]
    problems: tuple[tuple[int, Problem], ...]
    unread: tuple[int, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything was read, and nothing is damaged."""
        return not self.problems

    def __str__(self) -> str:
        found = {step: [problem.message for of, problem in self.problems if of == step] for step in self.steps}
        return "\n".join(f"step {step}: {line}" for step, lines in found.items() for line in lines or ["ok"])


@dataclass(frozen=True, slots=True)
class Skipped:
    """A newer step that a restore passed over, and why."""

    step: int
    error: CheckpointError


@dataclass(frozen=True, slots=True)
class Run:
    """The folder of a run and the names of its steps. ``backend`` stands in for the installed one of its name."""

    folder: Folder
    naming: StepNaming
    backend: Backend | None = None
    _made: dict[str, "_Made"] = field(default_factory=dict, init=False, repr=False, compare=False)

    @garbage.later()
    def steps(self, *, has_closed: bool = False) -> Steps:
        """All steps, and the records that cannot be decoded (each is logged), by one listing.

        Should two folders hold the same step, the one saved last counts. A step of another tool does not count where a record
        of ours has its number. With ``has_closed`` records and folders that the store does not let be read are among those that
        cannot be decoded; else they are its error, for nobody knows what they hide.
        """
        found, unreadable, files, folders, links = snapshot(self.folder, self.naming, has_closed=has_closed)
        if has_closed:
            folders, shut = self._opened(folders)
            unreadable = [*unreadable, *shut]
        for entry in unreadable:
            log.warning("%s", entry.error)
        committed = self._committed(found)
        oldest = min([0, *(known.info.sequence for known in committed[:1])])
        if not (files or folders or links):  # as most often
            return Steps(committed, [], unreadable, files)
        taken = {known.info.step for known in committed} | {entry.step for entry in unreadable}
        others = foreign.find(self.folder, self.naming, files, folders=folders, own=self.backend, taken=taken, below=oldest)
        hiding = linked.hiding(self.folder, self.naming, links, files, folders, taken=taken, own=self.backend)
        refused = [linked.refused(self.folder, link) for link in hiding]
        for entry in refused:
            log.warning("%s", entry.error)
        return Steps(committed, others, [*unreadable, *refused], files)

    def _opened(self, folders: Collection[str]) -> tuple[list[str], list[Unreadable]]:
        """The folders without those that the store does not let be listed, and these."""
        shut: dict[str, Unreadable] = {}
        for name in folders:
            step = self.naming.parse(name)
            if (step := parse_foreign(name) if step is None else step) is not None:
                try:
                    self.folder.folder(name).list()
                except OSError as error:
                    shut[name] = closed(self.folder, name, step, error)
        return [name for name in folders if name not in shut], [*shut.values()]

    def committed(self) -> list[Committed]:
        """The committed steps alone, oldest first: what other tools wrote is not looked at."""
        return self._committed(snapshot(self.folder, self.naming)[0])

    def name_of(self, step: int) -> str | None:
        """The folder that holds the step already, where its name does not follow from the step alone; None otherwise.

        A step saved again with other metadata in its name must meet the record it has, not get a second one.
        """
        if not self.naming.needs_metadata:
            return None
        return next((known.found.name for known in self.steps().committed if known.info.step == step), None)

    def refuse_foreign(self, step: int) -> None:
        """Raises StepExistsError if another tool has written a step of that number; CheckpointError if this is no run."""
        files, folders = self.folder.list()
        check_is_run(self.folder, files, folders)
        beside = foreign.file_sets(self.folder, self.naming, files, self.backend)
        inside = foreign.folder_sets(self.folder, self.naming, folders, self.backend, only=step)
        for found in itertools.chain(beside, inside):
            if found.step == step:
                text = f"step {step} is there already, as {self.folder.location(found.stem)!r} of another tool"
                raise StepExistsError(f"{text}: adopt it, pass overwrite=True, or save another step", step=step)

    def look(self, step: int) -> list[Found | Unreadable]:
        """The records in all folders whose names are that step's: more than one if somebody copied or renamed one."""
        names = [name for name in self.folder.list().folders if self.naming.parse(name) == step]
        return [found for name in names if (found := look(self.folder, name, step))]

    def find(self, step: int) -> Known:
        """One step, of ours or of another tool.

        Raises:
            StepNotFoundError: there is none; the message lists steps that are there.
            CorruptCheckpointError: its record is damaged.
        """
        if own := self._own(step):
            return own
        steps = self.steps()
        for known in steps.known:
            if known.info.step == step:
                return known
        for entry in steps.unreadable:
            if entry.step == step:
                raise entry.error
        raise self.not_found(step, steps)

    def _own(self, step: int) -> Committed | None:
        """One committed step, by its own record: no other is read. None also if a record of that step is damaged."""
        looked = self.look(step)
        found = [self._made_of(each, None) for each in looked if isinstance(each, Found) and each.record.manifest]
        is_sure = not any(isinstance(each, Unreadable) for each in looked)
        return max(found, key=lambda known: known.info.order, default=None) if is_sure else None

    def find_own(self, step: int) -> Committed:
        """One committed step. Raises like `find`; StepNotFoundError also for a step of another tool."""
        known = self.find(step)
        if isinstance(known, Foreign):
            raise self.not_own(known)
        check(self.folder, known.found)
        return known

    def not_found(self, step: int | None, steps: Steps) -> StepNotFoundError:
        """The error for a step that is not there, or that only another tool has written."""
        if known := next((known for known in steps.foreign if known.info.step == step), None):
            return self.not_own(known)
        committed, others = ([known.info.step for known in each] for each in (steps.committed, steps.foreign))
        what = "no step is" if step is None else f"step {step} is not"
        listed = f"committed: {shown(_nearest(committed, step)) or 'none'}"
        listed += "".join(f"; {entry.error}" for entry in steps.unreadable if entry.step == step)
        if others:
            listed += f"; of other tools: {shown(_nearest(others, step))}"
        text = f"{what} committed in {self.folder.location()!r} ({listed})"
        return StepNotFoundError(text, step=step, committed=committed)

    def not_own(self, known: Foreign) -> StepNotFoundError:
        """The error for what can only be done with a step of ours."""
        step = known.info.step
        text = f"step {step} is not committed: {known.info.path!r} is of another tool and is only read; adopt({step}) it first"
        return StepNotFoundError(text, step=step)

    def use(self, known: Known, verify: Verify, make: Callable[[Checkpoint], T]) -> T:
        """What ``make`` makes of the step as a lazy checkpoint."""
        if isinstance(known, Foreign):
            return foreign.use(self.folder, known, verify, make)
        return make(self.open(known, verify))

    def open(self, known: Committed, verify: Verify) -> Checkpoint:
        """The committed step as a lazy checkpoint. Raises CorruptCheckpointError, also for what its listing left out."""
        check(self.folder, known.found)

        def is_current() -> bool:
            now = read_record(self.folder, known.found.name, known.info.step)
            return now is not None and now.record.manifest is not None and now.record.manifest.attempt == known.manifest.attempt

        folder = files_of(self.folder, known.found.name, known.manifest)
        return open_managed(folder, known.manifest, known.info, verify=verify, is_current=is_current)

    def with_step(self, step: int, verify: Verify, use: Callable[[Checkpoint], T], *, known: Known | None = None) -> T:
        """What ``use`` makes of the step; if it is overwritten meanwhile, of the new attempt. ``known`` if it was just found.

        Raises:
            StepNotFoundError: no such step, or it was deleted meanwhile.
        """
        known = known or self.find(step)
        while True:
            try:
                return self.use(known, verify, use)
            except StepNotFoundError:
                before, known = known, self.find(step)
                if before.key == known.key:
                    raise

    def with_newest(self, verify: Verify, use: Callable[[Checkpoint], T], *, stacklevel: int) -> tuple[T, list[Skipped]]:
        """What ``use`` makes of the newest step that passes its checks, and the newer ones that did not, each warned about.

        A step that is deleted or overwritten meanwhile is passed over without a word, and what is newest then is taken: it may
        have been removed for one that was not there before. A step written by a newer format is no reason to fall back.

        Raises:
            StepNotFoundError: there is no step; its ``step`` is None, or one that was deleted while it was in use.
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
            steps = self.steps()
            for entry in steps.unreadable:
                if (damaged := (entry.name, entry.version)) not in passed:
                    passed.add(damaged)
                    skip(entry.step, entry.error)
            left = [known for known in steps.known if known.key not in passed]
            if not left:
                break
            newest = left[-1]
            passed.add(newest.key)
            try:
                return self.use(newest, verify, use), skipped
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
            check_is_run(self.folder, steps.files, self.folder.list().folders if MANIFEST in steps.files else ())
            raise gone or self.not_found(None, steps)
        raise CorruptCheckpointError(
            f"no step in {self.folder.location()!r} passes its checks ({shown([entry.step for entry in skipped])}); "
            f"the newest: {skipped[0].error}",
            step=skipped[0].step,
        ) from skipped[0].error

    def verify(self, step: int | None, verify: Verify, *, full: bool, progress: Progress | None) -> VerifyReport:
        """Compares every byte of a step (of all steps, with None) with what was written; see `Checkpoint.verify`.

        Raises:
            StepNotFoundError: no such step.
            OSError: from the store. With None, a step that it does not let be read is a problem, if the run can be listed.
        """
        own = None if step is None else self._own(step)
        steps = Steps([own], [], [], {}) if own else self.steps(has_closed=step is None)
        damaged = [entry for entry in steps.unreadable if step in (None, entry.step)]
        chosen = {known.info.step: known for known in steps.known if step in (None, known.info.step)}
        if step is not None and not chosen and not damaged:
            raise self.not_found(step, steps)
        seen = [entry.step for entry in damaged]
        problems = [(entry.step, Problem(MANIFEST, None, str(entry.error))) for entry in damaged]
        unread = [entry.step for entry in damaged if entry.is_unread]
        for each, known in chosen.items():
            try:
                found = self.with_step(each, verify, lambda it: it.verify(full=full, progress=progress), known=known)
            except CorruptCheckpointError as error:
                found = [Problem(error.file or TREE, error.tensor, str(error))]
            except StepNotFoundError:
                if step is not None:
                    raise
                continue  # retention does not wait for a verification of all
            except OSError as error:
                if step is not None:
                    raise
                self.folder.list()  # a store that does not answer at all is not asked for each of many steps
                found = [_unread(error, known)]
                unread.append(each)
            seen.append(each)
            problems += [(each, problem) for problem in found]
        return VerifyReport(tuple(seen), tuple(problems), tuple(unread))

    def _committed(self, found: list[Found]) -> list[Committed]:
        """The committed steps among the records, oldest first. What was made of a record before is used again."""
        last = self._made.get("last")
        if last is None or last.found is not found:
            made = {record.name: self._made_of(record, last) for record in found if record.record.manifest}
            steps: dict[int, Committed] = {}
            for known in sorted(made.values(), key=lambda known: known.info.order):
                steps.pop(known.info.step, None)
                steps[known.info.step] = known
            self._made["last"] = last = _Made(found, made, [*steps.values()])
        return [*last.steps]

    def _made_of(self, found: Found, last: "_Made | None") -> Committed:
        known = last.by_name.get(found.name) if last else None
        if known is not None and known.found is found:
            return known
        manifest = found.record.manifest
        assert manifest is not None
        path = self.folder.location(f"{found.name}/{folder_name(manifest.attempt)}")
        return Committed(found, manifest, manifest.info(found.record.pins, name=found.name, path=path))


def _unread(error: OSError, known: Known) -> Problem:
    where = str(error.filename or known.info.path)
    return Problem(where.rpartition("/")[2], None, f"{where!r} cannot be read: {error.strerror or error}")


def _nearest(steps: list[int], to: int | None) -> list[int]:
    """Steps in the order in which they may be meant: near ones first, or the latest ones."""
    return steps[::-1] if to is None else sorted(steps, key=lambda step: (abs(step - to), -step))
