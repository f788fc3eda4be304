"""The checkpoint manager: names steps, writes them whole, keeps what retention asks for, finds and restores them.

A step exists exactly when its record has a manifest. Everything that must be decided between processes is decided
by one conditional change of that record (`commit`); the manager holds no state of its own that could be wrong.
"""

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from ckptmgr import backend as backends
from ckptmgr import commit, materializing, saving
from ckptmgr import sweep as sweeping
from ckptmgr.adopting import Adoption
from ckptmgr.backend import Backend
from ckptmgr.checkpoint import Cast, Checkpoint, Restored
from ckptmgr.finding import Run, VerifyReport
from ckptmgr.group import Group, Solo
from ckptmgr.hints import Hints
from ckptmgr.incremental import Incremental
from ckptmgr.manifest import Manifest
from ckptmgr.naming import StepNaming, checked_step
from ckptmgr.planner import Planner
from ckptmgr.renaming import Renaming
from ckptmgr.resuming import restored_or_initial, with_skipped
from ckptmgr.retention import KeepAll, Plan, Retention, best, plan
from ckptmgr.saving import Asset, Prepared
from ckptmgr.step import JSON, StepInfo
from ckptmgr.storage import open_folder
from ckptmgr.sweep import Swept
from ckptmgr.timing import Timing
from ckptmgr.transfer import Progress, Verify

__all__ = ["CheckpointManager", "VerifyReport"]

T = TypeVar("T")
STEM = "model"


class CheckpointManager:
    """Saves, keeps, finds and restores the steps of one run.

    Args:
        url: folder of the run; a path or any supported URL. It is created by the first save.
        backend: name of an installed file format, or a `Backend`.
        retention: which steps to keep, applied after each committed save; the newest and pinned steps are always kept.
        naming: names of the steps' folders.
        storage_options: for the storage, as fsspec takes them.
        group: processes that save together; in this version one, `Solo()`. Another size is a ValueError.
        max_file_nbytes: most tensor bytes in one file; a state over it is cut into several files.
        verify: what restores check: ``"full"`` (every byte that is read), ``"fast"`` (sizes and structure), ``"off"``.
        run: id of the training run, written into each manifest. By default that of the step last restored, else a new one.
        progress: called as ``progress(bytes_done, bytes_total)`` while bytes move.
        incremental: True, or globs on names: files that equal those of the step before are not written again.

    Any number of managers, threads and processes may use one run at a time.

    Checkpoints that other tools wrote into the folder itself are steps as well, older than all that are saved here, if
    the stem of their files means a step by ``naming`` or a usual scheme (``ckpt-500``, ``cp-0005.ckpt``). They are listed,
    restored and verified like others, and never changed or deleted unless they are adopted (`adopt`).
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        backend: str | Backend = "safetensors",
        retention: Retention = KeepAll(),  # noqa: B008 - a frozen value
        naming: StepNaming = StepNaming(),  # noqa: B008 - a frozen value
        storage_options: Mapping[str, Any] | None = None,
        group: Group | None = None,
        max_file_nbytes: int | None = None,
        verify: Verify = "full",
        run: str | None = None,
        progress: Progress | None = None,
        incremental: bool | str | Sequence[str] = False,
    ) -> None:
        self.backend = backends.find(backend) if isinstance(backend, str) else backend
        if not isinstance(retention, Retention):
            raise TypeError(f"retention must be a policy, as KeepLast(3), not {retention!r}")
        if not isinstance(naming, StepNaming):
            raise TypeError(f"naming must be a StepNaming, as StepNaming('ckpt-{{step}}'), not {naming!r}")
        self.retention = retention
        self.naming = naming
        self.folder = open_folder(url, storage_options)
        self.max_file_nbytes = max_file_nbytes
        if verify not in ("full", "fast", "off"):
            raise ValueError(f"verify must be 'full', 'fast' or 'off', not {verify!r}")
        self.verify_reads: Verify = verify
        self.progress = progress
        self._steps = Run(self.folder, naming, self.backend)
        self._hints = Hints(self._steps)
        if not isinstance(run, str | None):
            raise TypeError(f"run must be a string, not {run!r}")
        self._run = run
        self._incremental = Incremental(self._steps, incremental)
        self._planner = Planner(STEM, self._incremental.groups)
        self._group = group or Solo()
        if self._group.size != 1:
            raise ValueError(f"a group of {self._group.size} processes cannot save together yet: use one process")

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
        """Saves the state as a step; when this returns it is durable and visible to every reader.

        If it raises, the step is as it was before (with ``overwrite``, the old one is still whole); only
        `CommitUnknownError` leaves open which. Retention runs after the commit: an error there is raised with a note that
        the step is committed. ``metrics`` are numbers; NaN is never best. ``metadata`` is plain JSON. ``assets`` are files to
        lie beside the state: bytes, or paths of local files. ``overwrite`` leaves files of another tool's step where they are.

        Raises:
            StepExistsError: the step is there, ours or another tool's, and ``overwrite`` is not set; nothing was written.
            UnsupportedLeafError, UnsupportedTensorError: the state holds something that cannot be stored exactly.
            TypeError, ValueError: no usable step, metric, metadata or asset; nothing was written.
            SaveError: another writer took the step over, or a sweep removed the claim.
            CheckpointError, OSError: the manager was given the folder of one step; the storage failed, with its own error.
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
        """The first half of `save`: looks at everything, and writes nothing.

        Plain values, random generators, metrics and assets are taken now; of arrays only dtypes and shapes, so their bytes
        must stay as they are until `complete` returns. Raises as `save` does for what cannot be stored.
        """
        given = (metrics or {}, metadata or {}, assets or {}, overwrite)
        return saving.prepare(step, state, *given, lambda flat: self._planner.plan(flat, self.backend, self.max_file_nbytes))

    def complete(
        self, prepared: Prepared, *, on_written: Callable[[], object] = lambda: None, after: int | None = None
    ) -> StepInfo:
        """The second half of `save`, once: writes what was prepared, calls ``on_written``, commits, applies retention.

        ``after`` is a sequence of a step elsewhere that this one is newer than, if there is one.
        """
        step, timing = prepared.step, prepared.timing or Timing()
        timing.reached("begun")
        name = self._steps.name_of(step) or self.naming.format(step, prepared.metadata)
        if not prepared.overwrite:
            self._steps.refuse_foreign(step)
        attempt = commit.begin(self.folder, name, step, overwrite=prepared.overwrite)

        def manifest(sequence: int) -> Manifest:
            return prepared.manifest(
                attempt.attempt,
                entries,
                sequence=sequence if after is None else max(sequence, after + 1),
                run=self.run,
                backend=self.backend.name,
            )

        with attempt.undone_if_it_fails():
            entries, timing.reused = self._incremental.write_step(attempt, prepared, progress=self.progress)
            timing.reached("written")
            on_written()
            info = attempt.commit(self.naming, manifest, before_delete=lambda old: self._hints.replaced(name, old))
        if self.retention != KeepAll() or self._hints.follow(self.backend):  # otherwise there is nothing to remove or to write
            self._collect_after(f"step {step} is committed")
        return info

    @property
    def run(self) -> str:
        """The id that saves of this manager carry: given, or of the step last restored, or new."""
        if self._run is None:
            self._run = secrets.token_hex(8)
        return self._run

    def go_on_with(self, run: str) -> None:
        """Lets saves of this manager carry that id from now on, unless they have one already; a restore does that."""
        self._run = run if self._run is None else self._run

    # ---- finding

    def steps(self) -> list[StepInfo]:
        """All steps in order of their saves, the latest last. A damaged record is logged and left out.

        Those of other tools (``is_foreign``) come first, in the order that their own tool's hints tell, or by step.
        """
        return [known.info for known in self._steps.steps().known]

    def latest(self) -> StepInfo | None:
        """The step saved last, by sequence; None if there is none."""
        infos = self.steps()
        return infos[-1] if infos else None

    def best(self, metric: str, mode: Literal["min", "max"] = "min") -> StepInfo | None:
        """The step with the best value of a metric; ties go to the newer one, NaN and steps without it never win."""
        return best(self.steps(), metric, mode)

    def path(self, step: int) -> str:
        """Where the step's files lie: a folder that the format's own tools can open. Of another tool's step, its stem.

        Raises:
            StepNotFoundError: no such step.
        """
        return self._steps.find(checked_step(step)).info.path

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
        """The state of a step, or of the newest good one.

        ``into`` says what is wanted: its leaves give shape, dtype and device; mutable arrays are filled in place, others are
        made anew. Without it: dicts, lists, tuples, scalars and numpy arrays. With ``step`` None, a newest step that
        fails its checks is warned about, listed in ``report.skipped`` and left in place, and the next older one is taken.
        ``verify`` overrides the manager's own; the other arguments are those of `Checkpoint.restore`.

        Raises:
            StepNotFoundError: no such step, or no step at all.
            CorruptCheckpointError: the step asked for (or every step) is damaged.
            StateMismatchError: ``into`` and the checkpoint differ; nothing was changed.
        """

        def restored(checkpoint: Checkpoint) -> Restored:
            with checkpoint:
                options: dict[str, Any] = {"into": into, "select": select, "rename": rename, "cast": cast, "strict": strict}
                return checkpoint.restore(**options, verify=verify, progress=self.progress, mmap=mmap, copy=copy)

        result = self._with_step(step, restored)
        if result.info is not None and not result.info.is_foreign:
            self.go_on_with(result.info.run)
        return result

    @overload
    def restore_or_initialize(self, init: Callable[[], T]) -> tuple[int, T]: ...
    @overload
    def restore_or_initialize(self, init: T) -> tuple[int, T]: ...
    def restore_or_initialize(self, init: Any) -> tuple[int, Any]:
        """The newest good step and its state restored into ``init``, or ``(0, init)`` if nothing is saved yet.

        ``init`` is a fresh state, or a function that makes one. Steps count what is done, so a loop goes on at ``step + 1``.

        Raises:
            CorruptCheckpointError: there are steps, but none is good: training must not silently start anew.
            StateMismatchError: the step and ``init`` differ.
        """
        return restored_or_initial(lambda state: self.restore(into=state), init)

    def open(self, step: int | None = None) -> Checkpoint:
        """A step opened lazily (the newest that opens, with ``step`` None, as in `restore`).

        Raises:
            StepNotFoundError: no such step.
            CorruptCheckpointError: its ``tree.json`` is damaged.
        """
        if step is not None:
            return self._steps.with_step(checked_step(step), self.verify_reads, lambda checkpoint: checkpoint)
        return self._steps.with_newest(self.verify_reads, lambda checkpoint: checkpoint, stacklevel=2)[0]

    def verify(self, step: int | None = None, *, full: bool = True) -> VerifyReport:
        """Reads every byte of a step (of all steps, with None) and compares it with its manifest.

        Raises:
            StepNotFoundError: no such step.
        """
        wanted = None if step is None else checked_step(step)
        return self._steps.verify(wanted, self.verify_reads, full=full, progress=self.progress)

    # ---- keeping

    def delete(self, step: int, *, seen: StepInfo | None = None) -> None:
        """Removes a step: first from its record, then its files. A damaged record is removed too, its files left to `sweep`.

        Raises:
            StepNotFoundError: no such step, or it is another tool's.
            CheckpointError: it is not as ``seen`` tells: it was saved anew, or has other pins. It stays.
        """
        step = checked_step(step)
        found = self._steps.look(step)
        with self._hints.deleting(step, found):
            deleted = [it for it in found if commit.delete(self.folder, it.name, step, corrupt_ok=True, found=it, seen=seen)]
        if not deleted:
            raise self._steps.not_found(step, self._steps.steps())

    def pin(self, step: int, name: str) -> None:
        """Keeps a step from retention until the pin of that name is taken out. Raises StepNotFoundError."""
        known = self._steps.find_own(checked_step(step))
        commit.pin(self.folder, known.found.name, known.info.step, name, found=known.found)

    def unpin(self, step: int, name: str) -> None:
        """Takes a pin out; one that is not there is fine. Raises StepNotFoundError."""
        known = self._steps.find_own(checked_step(step))
        commit.unpin(self.folder, known.found.name, known.info.step, name, found=known.found)

    def plan(self) -> Plan:
        """What `collect` would keep and remove now, with the reasons. Changes nothing. Steps of other tools are not in it."""
        return plan(self.retention, [known.info for known in self._steps.steps().committed])

    def collect(self) -> Plan:
        """Applies retention and returns the plan it carried out.

        A step that was pinned, overwritten or deleted since the plan was made is left for the next time.
        """
        steps = self._steps.steps()
        decided = plan(self.retention, [known.info for known in steps.committed])
        dropped = {info.order for info in decided.dropped}
        victims = [known for known in steps.committed if known.info.order in dropped]
        left = [known for known in steps.known if known.info.order not in dropped]
        with self._hints.without(victims, left):
            commit.collect(self.folder, [known.found for known in victims])
        return decided

    def adopt(self, step: int | None = None) -> list[StepInfo]:
        """Makes a committed step of one that another tool wrote (of all of them, with None), and gives what it made.

        The files are copied byte for byte, checked and committed, and only then are the originals deleted. The step restores
        as before, keeps its time and its place in the order of steps, and is now subject to retention, which runs at
        the end. If this is interrupted nothing is lost, and to adopt again finishes it. With None, a damaged step is warned
        about and left as it is, the oldest of all.

        Raises:
            StepNotFoundError: no such step.
            StepExistsError: the step is committed, and was not adopted.
            ValueError: other tools wrote newer steps, which the step asked for would overtake: adopt these first.
            CorruptCheckpointError, UnsafeCheckpointError: the step asked for is damaged, or has tensors elsewhere; it stays.
        """
        wanted = None if step is None else checked_step(step)
        adopted = Adoption(self._steps, lambda: self.run, self._hints.refresh, self.progress).adopt(wanted)
        self._collect_after(f"{len(adopted)} steps are adopted")
        return adopted

    def materialize(self, step: int) -> StepInfo:
        """Makes a step self-contained that refers to files of older ones, as incremental saves do where there are no links.

        Its files are copied, checked and committed in one moment, and it keeps its place in the order of steps, its time and its
        pins. A step that is self-contained stays as it is. Until this returns the step is as it was.

        Raises:
            StepNotFoundError: no such step, or it is another tool's, or it was deleted meanwhile.
            CorruptCheckpointError: a file is damaged.
        """
        return materializing.materialize(self._steps, checked_step(step), before_delete=self._hints.replaced)

    def sweep(self, grace: timedelta | float = timedelta(hours=1), *, empty_records: bool = False) -> Swept:
        """Removes what interrupted saves left, once it has shown no sign of life for ``grace`` (seconds, or a timedelta).

        Committed steps, foreign files and saves in progress are not touched. ``empty_records`` also removes the empty
        records that deletes leave on stores without a conditional remove; only when nobody is saving.
        """
        self._hints.refresh()  # of saves and deletes that died they may name what goes now
        grace_s = grace.total_seconds() if isinstance(grace, timedelta) else float(grace)
        return sweeping.sweep(self.folder, self.naming, grace_s=grace_s, empty_records=empty_records)

    def close(self) -> None:
        """Ends the use of this manager. Saves are durable when they return, so there is nothing to wait for."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CheckpointManager({self.folder.location()!r}, backend={self.backend.name!r}, retention={self.retention!r})"

    def _with_step(self, step: int | None, use: Callable[[Checkpoint], Restored]) -> Restored:
        if step is not None:
            return self._steps.with_step(checked_step(step), self.verify_reads, use)
        return with_skipped(*self._steps.with_newest(self.verify_reads, use, stacklevel=3))

    def _collect_after(self, done: str) -> None:
        try:
            self.collect()
        except OSError as error:
            error.add_note(f"{done}; removing older steps after it failed")
            raise
