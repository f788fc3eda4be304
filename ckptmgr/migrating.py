"""Whole runs into other runs: each step copied or converted, by any number of workers anywhere.

The law: the one who calls decides which steps, and in which order of saves they stand; workers make steps, each whole or
absent; and to call again finishes whatever was interrupted. Nobody who dies takes more than its own step's work along.
"""

import hashlib
import os
import queue
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from typing import Any, NamedTuple

from ckptmgr.commit import claimable
from ckptmgr.copying import Readback, Wanted, content
from ckptmgr.errors import CheckpointError, MigrationError, shown
from ckptmgr.finding import Committed, Known, Run, Steps
from ckptmgr.foreign import Foreign
from ckptmgr.hints import Hints
from ckptmgr.migratereport import Migrated, MigrateReport, NotMigrated
from ckptmgr.moving import MIGRATED, Asked, Errand, Rules, identity, mark_of, migrate_step
from ckptmgr.naming import StepNaming, checked_step
from ckptmgr.renaming import Rule
from ckptmgr.storage import open_folder
from ckptmgr.threads import Pool
from ckptmgr.transfer import Progress

WORKERS = 4  # threads, if nothing else is said: each has up to 64 MiB of tensors in memory
LOOK_S = 0.2  # between two looks at what threads have moved


def migrate(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    to: str | None = None,
    steps: Wanted = "all",
    executor: Executor | None = None,
    workers: int = WORKERS,
    rename: Sequence[Rule] = (),
    select: Sequence[str] | str | None = None,
    cast: Mapping[str, str] | None = None,
    max_file_nbytes: int | None = None,
    overwrite: bool = False,
    verify: Readback = "full",
    naming: StepNaming = StepNaming(),  # noqa: B008 - a frozen value
    src_options: Mapping[str, Any] | None = None,
    dst_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> MigrateReport:
    """Brings the steps of the run at ``src`` into the run at ``dst``, many at a time, and tells what became of each.

    Args:
        src: folder of a run; a path or any supported URL. Its steps are ours, or other tools': TensorFlow prefixes, series of
            ``.pt`` files, folders ``checkpoint-N`` and whatever else `CheckpointManager.steps` lists. It is only read.
        dst: folder of the run that gets them.
        to: name of the format they get. By default each keeps its own, and is copied byte for byte unless one of ``rename``,
            ``select``, ``cast`` and ``max_file_nbytes`` (as in `convert`) asks for something else.
        steps: ``"all"``, ``"latest"``, a step number or several.
        executor: who does the work: a pool of processes (spawned), Dask's ``client.get_executor()``, ``MPIPoolExecutor``. It has
            to reach both runs, and gets one picklable call for each step. By default a pool of ``workers`` threads.
        overwrite: whether other steps of these numbers may be replaced.
        verify: what of the written files is read back before a step is committed: ``"full"``, every byte; ``"fast"``, sizes.
        naming: of both runs.
        src_options, dst_options: for the storages.
        progress: called in this thread with the bytes that are done, and of all steps that are to be made: while they move where
            the threads are ours, else after each step.

    A step keeps its number, place in the order of saves, run, time, metrics, metadata, assets and pins; those of other tools
    come before all that were saved in the target, and what lies beside the weights in a folder becomes assets. A step that is
    there already, from the same attempt (of another tool: from files of the same names, sizes and times) by the same rules, is
    passed over: to finish what was interrupted, call this again. One step that fails does not keep the others from it. What a
    worker that was killed has left is never seen by readers; the next call takes its step over, or a sweep removes it.

    Raises:
        MigrationError: some steps were not migrated, the others are; names them. Its ``report`` is what would be returned.
        StepNotFoundError: ``src`` has no such step, or none at all.
        ValueError: both are the same run.
        OSError: a run cannot be listed.
    """
    rules = Rules.given(to, rename, select, cast, max_file_nbytes)
    look = _look(src, dst, steps, rules, naming, src_options, dst_options)
    errand = Errand(*look.where, naming, rules, overwrite, verify, src_options, dst_options)
    run = hashlib.sha256(look.where[0].encode()).hexdigest()[:16]
    places = _sequences(look.found.foreign, look.there)
    asked = [_asked(known, rules, places, run) for known in look.left]
    ends = dict(look.ends)
    with ExitStack() as stack:
        pool = executor or stack.enter_context(Pool(workers))
        ends |= _gathered(pool, errand, asked, progress, is_here=executor is None)
    Hints(look.target).refresh()
    where, report = look.where, look.report(ends)
    if report.failed:
        first = report.failed[0]
        text = f"{len(report.failed)} of {len(ends)} steps of {where[0]!r} were not migrated into {where[1]!r}: "
        text += f"{shown([each.step for each in report.failed])}; the others are. Step {first.step}: {first.message}"
        raise MigrationError(f"{text} ({first.kind}). To try these again, migrate again", report=report)
    return report


def plan_migration(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    to: str | None = None,
    steps: Wanted = "all",
    rename: Sequence[Rule] = (),
    select: Sequence[str] | str | None = None,
    cast: Mapping[str, str] | None = None,
    max_file_nbytes: int | None = None,
    overwrite: bool = False,
    naming: StepNaming = StepNaming(),  # noqa: B008 - a frozen value
    src_options: Mapping[str, Any] | None = None,
    dst_options: Mapping[str, Any] | None = None,
) -> MigrateReport:
    """What `migrate` would tell now, as far as it shows without opening a step. Nothing is changed.

    The ``info`` of a step that would be made is that of its original. Raises as `migrate`, but for MigrationError.
    """
    rules = Rules.given(to, rename, select, cast, max_file_nbytes)
    look = _look(src, dst, steps, rules, naming, src_options, dst_options)
    ends = dict(look.ends)
    for known in look.left:
        step, there = known.info.step, look.there.get(known.info.step)
        try:
            how = rules.how(known)
            if not overwrite:
                look.target.refuse_foreign(step)
                claimable(look.target.folder, there and there.found, overwrite=False)
            ends[step] = Migrated(known.info, how)
        except CheckpointError as error:
            ends[step] = NotMigrated(step, type(error).__name__, str(error))
    return look.report(ends)


class _Look(NamedTuple):
    """Both runs as they were found: what is ``there`` in the target, what is ``left`` to be made, and the ``ends`` of the rest.

    ``order`` has the numbers of all that are meant.
    """

    target: Run
    where: tuple[str, str]
    found: Steps
    there: Mapping[int, Committed]
    order: Sequence[int]
    left: Sequence[Known]
    ends: Mapping[int, Migrated | NotMigrated]

    def report(self, ends: Mapping[int, Migrated | NotMigrated]) -> MigrateReport:
        found = [ends[step] for step in dict.fromkeys(self.order)]
        steps = tuple(each for each in found if isinstance(each, Migrated))
        failed = tuple(each for each in found if isinstance(each, NotMigrated))
        return MigrateReport(*self.where, steps, failed)


def _look(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    steps: Wanted,
    rules: Rules,
    naming: StepNaming,
    src_options: Mapping[str, Any] | None,
    dst_options: Mapping[str, Any] | None,
) -> _Look:
    source, target = Run(open_folder(src, src_options), naming), Run(open_folder(dst, dst_options), naming)
    where = source.folder.location(), target.folder.location()
    if where[0] == where[1]:
        raise ValueError(f"{where[0]!r} cannot be migrated into itself")
    found, there = source.steps(has_closed=steps != "latest"), {known.info.step: known for known in target.steps().committed}
    chosen, failed = _choose(source, found, steps)
    ends: dict[int, Migrated | NotMigrated] = {each.step: each for each in failed}
    ends |= {step: done for known in chosen if (done := _there(known, there.get(step := known.info.step), rules))}
    left = [known for known in chosen if known.info.step not in ends]
    order = [*(each.step for each in failed), *(known.info.step for known in chosen)]
    return _Look(target, where, found, there, order, left, ends)


def _choose(source: Run, found: Steps, steps: Wanted) -> tuple[list[Known], list[NotMigrated]]:
    """The steps that are meant, oldest save first, and those of them whose record cannot be read."""
    known = {each.info.step: each for each in found.known}
    damaged = {each.step: NotMigrated(each.step, type(each.error).__name__, str(each.error)) for each in found.unreadable}
    if not isinstance(steps, str):
        numbers = {checked_step(step) for step in (steps if isinstance(steps, Iterable) else [steps])}
        if missing := sorted(numbers - known.keys() - damaged.keys()):
            raise source.not_found(missing[0], found)
    elif steps not in ("all", "latest"):
        raise ValueError(f"steps must be 'all', 'latest' or step numbers, not {steps!r}")
    elif not (known or damaged):
        raise source.not_found(None, found)
    else:
        numbers = {*known, *damaged} if steps == "all" else {*list(known)[-1:]} or {*damaged}
    return [each for step, each in known.items() if step in numbers], [damaged[step] for step in sorted(damaged.keys() & numbers)]


def _sequences(steps: Sequence[Foreign], there: Mapping[int, Committed]) -> dict[int, int]:
    """Sequences for all steps of other tools: as those that were migrated before have it, so that the order stays theirs.

    Else a listing that has grown since, and numbers its steps anew, would put later steps before earlier ones.
    """
    made = {step: known.info.sequence for step, known in there.items() if MIGRATED in known.manifest.extra}
    numbers = [known.info.step for known in steps]
    first = next((index for index, step in enumerate(numbers) if step in made), None)
    if first is None:
        return {known.info.step: known.info.sequence for known in steps}
    found: dict[int, int] = {}
    last = made[numbers[first]] - first - 1
    for step in numbers:
        last = found[step] = made.get(step, last + 1)
    return found


def _there(known: Known, there: Committed | None, rules: Rules) -> Migrated | None:
    """The step, if it was migrated before."""
    if there is None:
        return None
    is_copy = isinstance(known, Committed) and rules.are_none(known.info.backend)
    if isinstance(known, Committed) and is_copy and content(known.manifest) == content(there.manifest):
        return Migrated(there.info, "there")
    return Migrated(there.info, "there") if mark_of(there.manifest).get("identity") == identity(known, rules) else None


def _asked(known: Known, rules: Rules, sequences: Mapping[int, int], run: str) -> Asked:
    step, facts = known.info.step, (identity(known, rules), known.info.nbytes)
    if isinstance(known, Foreign):
        plain = known._replace(files=dict(known.files), beside=dict(known.beside))
        return Asked(step, facts[0], sequences[step], run, facts[1], foreign=plain)
    return Asked(step, facts[0], known.info.sequence, known.info.run, facts[1], attempt=known.manifest.attempt)


class _Meter:
    """The bytes of the steps asked for: of those that are done, and, where workers tell, of those under way."""

    def __init__(self, asked: Sequence[Asked], progress: Progress | None) -> None:
        self._sizes = {each.step: each.nbytes for each in asked}
        self._moved = dict.fromkeys(self._sizes, 0)
        self._progress = progress
        self._told = -1

    def of(self, step: int) -> Progress:
        """For the worker that makes the step, in any thread."""

        def moved(done: int, total: int) -> None:
            self._moved[step] = self._sizes[step] * min(done, total) // max(total, 1)

        return moved

    def end(self, step: int) -> None:
        """The step is done, which is told in the thread that calls this."""
        self._moved[step], self._told = self._sizes[step], -1
        self.tell()

    def tell(self) -> None:
        """Tells what is new, in the thread that calls this."""
        done = sum(self._moved.values())
        if self._progress is not None and done != self._told:
            self._told = done
            self._progress(done, sum(self._sizes.values()))


def _gathered(
    pool: Executor, errand: Errand, asked: Sequence[Asked], progress: Progress | None, *, is_here: bool
) -> dict[int, Migrated | NotMigrated]:
    """What became of each step, whatever became of the workers. If they are threads (``is_here``), they tell what they move."""
    ends: dict[int, Migrated | NotMigrated] = {}
    futures: dict[Future[Migrated | NotMigrated], Asked] = {}
    ended: queue.SimpleQueue[Future[Migrated | NotMigrated]] = queue.SimpleQueue()
    meter = _Meter(asked, progress)
    meter.tell()
    try:
        for each in asked:
            try:
                future = pool.submit(migrate_step, errand, each, *([meter.of(each.step)] if is_here else []))
            except RuntimeError as error:  # the pool is broken, or shut down
                ends[each.step] = _died(each, error)
            else:
                futures[future] = each
                future.add_done_callback(ended.put)
        left = len(futures)
        while left:
            try:
                future = ended.get(timeout=LOOK_S if progress else None)
            except queue.Empty:
                meter.tell()
                continue
            each, left = futures[future], left - 1
            ends[each.step] = _end_of(future, each)
            meter.end(each.step)
    finally:
        for future in futures:
            future.cancel()  # of an interrupted call; those that are done stay so
    return ends


def _end_of(future: "Future[Migrated | NotMigrated]", each: Asked) -> Migrated | NotMigrated:
    try:
        return future.result()
    except Exception as error:  # noqa: BLE001 - it is told: each executor has its own errors for a worker that died
        return _died(each, error)


def _died(each: Asked, error: Exception) -> NotMigrated:
    return NotMigrated(each.step, type(error).__name__, str(error) or "the worker ended without a word")
