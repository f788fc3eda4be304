"""Makes committed steps of what other tools wrote into the folder of a run.

A file set is copied byte for byte into an attempt of its own, checked, and committed; only then do the originals go. The law:
at any moment the step is there, whole, as the other tool's, or as ours, or as both. What is left of the originals if that
is interrupted goes when the step is adopted again, if it still is what was committed.

Nor does the order of steps ever change by it. Steps of other tools are older than all that are committed, so the newest of
them is adopted first, and becomes the oldest of these.
"""

import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from ckptmgr import commit, transfer
from ckptmgr.errors import (
    CheckpointError,
    CorruptCheckpointError,
    StepExistsError,
    StepNotFoundError,
    UnsafeCheckpointError,
    UnsupportedTensorError,
    shown,
)
from ckptmgr.finding import Committed, Known, Run, Steps
from ckptmgr.foreign import Foreign
from ckptmgr.foreigncopy import content_of, copy_files
from ckptmgr.manifest import TREE, FileEntry, Manifest, this_writer
from ckptmgr.step import StepInfo
from ckptmgr.transfer import Progress

ADOPTED = "adopted"  # the field of a manifest that has the stem of the files that were adopted

_TOGETHER, _TOGETHER_NBYTES = 32, 256 << 20  # steps whose originals are deleted together: each time costs a look at the whole run

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NotAdopted:
    """A step of another tool that stays one, and why."""

    info: StepInfo
    error: CheckpointError


@dataclass(frozen=True, slots=True)
class Adoption:
    """How steps of other tools are adopted.

    ``run_id`` gives the run for their manifests. ``settle`` is called after a commit, before the originals are deleted, for
    whatever may name them; it does not raise. ``progress`` counts the bytes of all steps.
    """

    run: Run
    run_id: Callable[[], str]
    settle: Callable[[], object]
    progress: Progress | None = None

    def adopt(self, step: int | None) -> list[StepInfo]:
        """Adopts a step, or all there are; gives them oldest first. See `CheckpointManager.adopt`."""
        adopted: list[StepInfo] = []
        for end in self.each(step):
            if isinstance(end, NotAdopted):
                warnings.warn(f"step {end.info.step} is not adopted: {end.error}", RuntimeWarning, stacklevel=3)
            else:
                adopted.append(end)
        return adopted[::-1]

    def each(self, step: int | None) -> Iterator[StepInfo | NotAdopted]:
        """Adopts one after another, the newest first, and tells of each once it is committed.

        Small steps are deleted where they were several at a time: only when this is exhausted are all originals gone. Raises as
        `CheckpointManager.adopt` does for the step asked for; of all, those that cannot be adopted are told.
        """
        steps = self.run.steps()
        for own in steps.committed:
            if ADOPTED in own.manifest.extra and step in (None, own.info.step):
                self._finish(own, steps.files)
        if step is None:
            yield from self._all(steps.foreign)
            return
        known = self._find(step, steps)
        if isinstance(known, Foreign):
            _check_is_newest(known, steps.foreign)
            info = self._adopted(known, self.progress)
            self._delete_all([known])
            yield info
        else:
            yield known.info

    def plan(self, step: int | None) -> list[StepInfo | NotAdopted]:
        """What `each` would do, newest first: only what opening the files tells is looked at, and nothing is written.

        A step that was adopted, of whose originals something is left, is there with its own ``info``. Raises as `each` does.
        """
        steps = self.run.steps()
        left = [own.info for own in steps.committed if step in (None, own.info.step) and _left(own, steps.files)]
        if step is None:
            return [*left[::-1], *map(self._planned, steps.foreign[::-1])]
        known = self._find(step, steps)
        if not isinstance(known, Foreign):
            return [*left]
        _check_is_newest(known, steps.foreign)
        return [self._planned(known)]

    def _find(self, step: int, steps: Steps) -> Known:
        known = next((known for known in steps.known if known.info.step == step), None)
        if known is None:
            raise self.run.not_found(step, steps)
        if isinstance(known, Foreign) or ADOPTED in known.manifest.extra:
            return known
        raise StepExistsError(f"step {step} is committed already, in {known.info.path!r}: there is nothing to adopt", step=step)

    def _planned(self, known: Foreign) -> StepInfo | NotAdopted:
        try:
            _check_is_beside(known)
            content_of(self.run.folder, known)
        except (CorruptCheckpointError, UnsafeCheckpointError, UnsupportedTensorError, StepNotFoundError) as error:
            return NotAdopted(known.info, error)
        return known.info

    def _all(self, steps: Sequence[Foreign]) -> Iterator[StepInfo | NotAdopted]:
        total, done = sum(known.info.nbytes for known in steps), 0
        waiting: list[Foreign] = []  # committed, and their originals still there
        for known in reversed(steps):
            try:
                info = self._adopted(known, self._onward(done, total))
            except (StepNotFoundError, StepExistsError) as error:  # somebody else was faster
                log.info("step %d is not adopted: %s", known.info.step, error)
            except (CorruptCheckpointError, UnsafeCheckpointError, UnsupportedTensorError) as error:
                yield NotAdopted(known.info, error)
            else:
                waiting.append(known)
                if len(waiting) >= _TOGETHER or sum(each.info.nbytes for each in waiting) >= _TOGETHER_NBYTES:
                    self._delete_all(waiting)
                    waiting = []
                yield info
            done += known.info.nbytes
        self._delete_all(waiting)

    def _onward(self, done: int, total: int) -> Progress | None:
        """Progress of one step as that of all of them."""
        tell = self.progress
        return None if tell is None else lambda now, _: tell(done + now, total)

    def _adopted(self, known: Foreign, progress: Progress | None) -> StepInfo:
        """Copies and commits a step. The originals stay."""
        folder, step = self.run.folder, known.info.step
        _check_is_beside(known)
        content = content_of(folder, known)
        attempt = commit.begin(folder, self._name(known), step, overwrite=False)

        def manifest(_: int) -> Manifest:
            return Manifest(
                step=step,
                attempt=attempt.attempt,
                sequence=min([1, *(each.info.sequence for each in self.run.committed())]) - 1,
                run=self.run_id(),
                created=known.info.created,
                backend=known.backend.name,
                nbytes=sum(entry.nbytes for entry in entries),
                files=entries,
                writer=this_writer(),
                extra={ADOPTED: known.info.name},
            )

        with attempt.undone_if_it_fails():
            entries = copy_files(folder, attempt.folder, known, content, progress)
            return attempt.commit(self.run.naming, manifest)

    def _delete_all(self, committed: Sequence[Foreign]) -> None:
        """Deletes the originals of steps that are committed now, once nothing names them any more."""
        if committed:
            self.settle()
        for known in committed:
            if known.is_there(self.run.folder):
                self._delete([*known.files])
            else:
                text = "%r has changed since it was adopted as step %d, and is left"
                log.warning(text, known.info.path, known.info.step)

    def _name(self, known: Foreign) -> str:
        """The folder of the new step: by the naming, or its stem, if that is such a name and tells what the step does not."""
        naming, stem = self.run.naming, known.info.name
        if naming.needs_metadata and naming.parse(stem) == known.info.step and stem not in known.files:
            return stem
        return naming.format(known.info.step)

    def _finish(self, known: Committed, files: Collection[str]) -> None:
        """Deletes what is left of the originals of an adopted step, if it is what was committed."""
        left = _left(known, files)
        if not left:
            return
        problems = transfer.check(self.run.folder, [(entry.name, entry.nbytes, entry.crc32c) for entry in left])
        if problems:
            text = "%s: not what was adopted as step %d under that name, and left"
            log.warning(text, problems[0].message, known.info.step)
            return
        self.settle()
        self._delete([entry.name for entry in left])

    def _delete(self, names: Sequence[str]) -> None:
        """The file to open first: without it the rest is no step any more."""
        for name in reversed(names):
            self.run.folder.delete([name])


def _left(known: Committed, files: Collection[str]) -> list[FileEntry]:
    """What of the originals of an adopted step is among the files of the run's folder."""
    entries = known.manifest.files if ADOPTED in known.manifest.extra else ()
    return [entry for entry in entries if entry.name in files and entry.name != TREE]


def _check_is_beside(known: Foreign) -> None:
    if known.inside:
        step = known.info.step
        text = f"step {step} has the folder {known.info.path!r} to itself, and other files there: migrate it into another run"
        raise UnsafeCheckpointError(text, step=step)


def _check_is_newest(known: Foreign, steps: Sequence[Foreign]) -> None:
    newer = [other.info.step for other in steps if other.info.order > known.info.order]
    if newer:
        text = f"step {known.info.step} would become newer than what other tools wrote after it ({shown(newer[::-1])})"
        raise ValueError(f"{text}: adopt these first, in this order, or all with adopt()")
