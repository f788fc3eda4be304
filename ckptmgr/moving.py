"""One step of a run into another: what a worker does, in this process or any other.

The law: a call is complete in itself. It gets plain values, opens both runs, and what it made is a step that is committed
whole, or nothing; so it may be killed anywhere, and made again. What tells a step that is there already is written into its
manifest: the ``identity``, of what it was made from and by which rules.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from ckptmgr import backend as backends
from ckptmgr import commit, foreign, foreigncopy, saving, transfer
from ckptmgr.checkpoint import Checkpoint, open_files
from ckptmgr.commit import Attempt
from ckptmgr.converting import convert_step
from ckptmgr.convertreport import ConvertReport
from ckptmgr.copying import Readback, copy_step
from ckptmgr.errors import SaveError, StepExistsError, StepNotFoundError, UnsafeCheckpointError
from ckptmgr.finding import Committed, Known, Run
from ckptmgr.foreign import Foreign
from ckptmgr.hints import Hints
from ckptmgr.ledger import Found, change, gave_up, look, read_record, tries
from ckptmgr.manifest import TREE, FileEntry, Manifest, folder_name, this_writer
from ckptmgr.migratereport import Migrated, NotMigrated
from ckptmgr.naming import StepNaming
from ckptmgr.renaming import Rule
from ckptmgr.saving import Prepared
from ckptmgr.step import JSON, StepInfo
from ckptmgr.storage import Answer, open_folder
from ckptmgr.transfer import Progress

MIGRATED = "migrated"  # the field of a manifest that says where a step was made from

_FOLDERS = "the folder of another tool's step is taken along without those in it"
_TAKEN = "the new format has a file of that name"


@dataclass(frozen=True, slots=True)
class Rules:
    """What is changed on the way; see `ckptmgr.convert`."""

    to: str | None = None
    rename: tuple[Rule, ...] = ()
    select: tuple[str, ...] | None = None
    cast: Mapping[str, str] = field(default_factory=dict)
    max_file_nbytes: int | None = None

    @classmethod
    def given(
        cls,
        to: str | None,
        rename: Sequence[Rule],
        select: Sequence[str] | str | None,
        cast: Mapping[str, str] | None,
        max_file_nbytes: int | None,
    ) -> Self:
        """Them as `migrate` is given them."""
        globs = None if select is None else (select,) if isinstance(select, str) else tuple(select)
        return cls(to, tuple(rename), globs, dict(cast or {}), max_file_nbytes)

    def how(self, known: Known) -> Literal["copied", "converted"]:
        """What becomes of the step.

        Raises:
            UnsafeCheckpointError: another tool's folder that is no set of files, and is to be copied.
            BackendNotFoundError, MissingDependencyError: there is no such format.
        """
        if not self.are_none(known.info.backend):
            backends.find(self.to or known.info.backend)
            return "converted"
        if isinstance(known, Foreign) and known.is_whole:
            text = f"step {known.info.step}, {known.info.path!r}, is a folder of {known.backend.name!r}, which is no set of files"
            raise UnsafeCheckpointError(f"{text}: say to=, and it is converted", step=known.info.step)
        return "copied"

    def are_none(self, backend: str) -> bool:
        """Whether a step of that format stays byte for byte as it is."""
        is_same = self.to in (None, backend)
        return is_same and not (self.rename or self.select is not None or self.cast or self.max_file_nbytes is not None)

    def to_json(self) -> JSON:
        """Them as plain JSON. A function is told by its name alone."""
        return [self.to, [_rule_json(rule) for rule in self.rename], self.select, dict(self.cast), self.max_file_nbytes]


@dataclass(frozen=True, slots=True)
class Errand:
    """What is the same for all steps of a migration. Picklable, where rules and options are."""

    source: str
    target: str
    naming: StepNaming
    rules: Rules
    overwrite: bool
    verify: Readback
    source_options: Mapping[str, Any] | None = None
    target_options: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A step that is to be migrated, as it was found: of ours by its attempt, of another tool with its files."""

    step: int
    identity: str
    sequence: int
    run: str
    nbytes: int
    attempt: str = ""
    foreign: Foreign | None = None


def identity(known: Known, rules: Rules) -> str:
    """What tells a step made from this one by these rules from any other."""
    made: dict[str, JSON] = {"rules": None if rules.are_none(known.info.backend) else rules.to_json()}
    if isinstance(known, Foreign):
        files = {name: list(head) for name, head in {**known.files, **known.beside}.items()}
        made |= {"backend": known.backend.name, "name": known.info.name, "files": files}
    else:
        made["attempt"] = known.manifest.attempt
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def mark_of(manifest: Manifest | None) -> Mapping[str, JSON]:
    """What a manifest says of where its step was made from; empty if it is of no migration."""
    mark = manifest.extra.get(MIGRATED) if manifest else None
    return mark if isinstance(mark, dict) else {}


def migrate_step(errand: Errand, asked: Asked, progress: Progress | None = None) -> Migrated | NotMigrated:
    """Migrates one step, and tells what became of it. Raises nothing that an error can tell. ``progress`` is called here."""
    try:
        return _Move(errand, asked, progress).made()
    except Exception as error:  # noqa: BLE001 - it is told: who gathers may be another process, where not all errors get
        return NotMigrated(asked.step, type(error).__name__, str(error))


class _Move:
    """One step on its way."""

    def __init__(self, errand: Errand, asked: Asked, progress: Progress | None) -> None:
        self.errand, self.asked, self.progress = errand, asked, progress
        self.source = Run(open_folder(errand.source, errand.source_options), errand.naming)
        self.target = Run(open_folder(errand.target, errand.target_options), errand.naming)

    def made(self) -> Migrated:
        if there := self._there():
            return there
        try:
            return self._of_other_tool(self.asked.foreign) if self.asked.foreign else self._own()
        except (StepExistsError, SaveError):  # the same errand may have been given twice
            if there := self._there():
                return there
            raise

    def _there(self) -> Migrated | None:
        target, step = self.target, self.asked.step
        name = target.name_of(step) if target.naming.needs_metadata else target.naming.format(step)
        found = look(target.folder, name, step) if name else None
        manifest = found.record.manifest if isinstance(found, Found) else None
        if not name or not isinstance(found, Found) or not manifest or mark_of(manifest).get("identity") != self.asked.identity:
            return None
        path = target.folder.location(f"{name}/{folder_name(manifest.attempt)}")
        return Migrated(manifest.info(found.record.pins, name=name, path=path), "there")

    def _own(self) -> Migrated:
        known, errand = self.source.find_own(self.asked.step), self.errand
        if known.manifest.attempt != self.asked.attempt:
            text = f"step {self.asked.step} in {known.info.path!r} was overwritten meanwhile: migrate it again"
            raise StepNotFoundError(text, step=self.asked.step)
        if errand.rules.are_none(known.info.backend):
            options: dict[str, Any] = {"overwrite": errand.overwrite, "verify": errand.verify, "progress": self.progress}
            copied = copy_step(self.source, known, self.target, **options)
            return Migrated(copied.info, "there" if copied.was_there else "copied")
        with self.source.open(known, "full") as opened:
            return self._converted(opened, known)

    def _of_other_tool(self, known: Foreign) -> Migrated:
        root = self.source.folder
        if not known.is_there(root):
            raise self._replaced(known)
        if self.errand.rules.how(known) == "converted":
            with foreign.explained(root, known), open_files(known.backend, known.place(root), known.main) as opened:
                return self._converted(opened, known)
        content = foreigncopy.content_of(root, known)
        lost: dict[str, str] = {}

        def write(attempt: Attempt) -> tuple[FileEntry, ...]:
            files = foreigncopy.copy_files(root, attempt.folder, known, content, self.progress)
            return (*files, *self._beside(known, attempt, files, lost))

        return Migrated(self._committed(known, {}, known.backend.name, write), "copied", lost)

    def _converted(self, opened: Checkpoint, known: Known) -> Migrated:
        rules = self.errand.rules
        backend = backends.find(rules.to or known.info.backend)
        lost: dict[str, str] = {}

        def complete(prepared: Prepared) -> StepInfo:
            def write(attempt: Attempt) -> tuple[FileEntry, ...]:
                files = saving.write_step(attempt.folder, prepared.plan, prepared.assets, progress=self.progress)
                return (*files, *self._beside(known, attempt, files, lost))

            done.append(self._committed(known, prepared.metadata, backend.name, write, prepared.metrics))
            return done[0]

        done: list[StepInfo] = []
        report: ConvertReport = convert_step(
            opened,
            self.target.folder,
            self.asked.step,
            backend,
            complete,
            rename=rules.rename,
            select=rules.select,
            cast=rules.cast,
            overwrite=self.errand.overwrite,
            max_file_nbytes=rules.max_file_nbytes,
        )
        return Migrated(done[0], "converted", {**report.lost, **lost})

    def _beside(self, known: Known, attempt: Attempt, files: Sequence[FileEntry], lost: dict[str, str]) -> tuple[FileEntry, ...]:
        """What another tool has beside the weights, copied into the attempt; what has no place there is noted as lost."""
        if isinstance(known, Committed) or not known.inside or known.is_whole:
            return ()
        lost |= {f"folder {name!r}": _FOLDERS for name in known.place(self.source.folder).list().folders}
        taken = {entry.name for entry in files} | {TREE}
        lost |= {f"file {name!r}": _TAKEN for name in known.beside if name in taken}
        left = known._replace(beside={name: head for name, head in known.beside.items() if name not in taken})
        return foreigncopy.copy_beside(self.source.folder, attempt.folder, left)

    def _committed(
        self,
        known: Known,
        metadata: Mapping[str, JSON],
        backend: str,
        write: Callable[[Attempt], tuple[FileEntry, ...]],
        metrics: Mapping[str, float] | None = None,
    ) -> StepInfo:
        """The step, once ``write`` has written its files and they were read back."""
        target, step, info = self.target, self.asked.step, known.info
        name = self._name(known, metadata)
        if not self.errand.overwrite:
            target.refuse_foreign(step)
        attempt = _begin(target, name, step, overwrite=self.errand.overwrite, pins=info.pins)
        with attempt.undone_if_it_fails():
            files = write(attempt)
            if isinstance(known, Foreign) and not known.is_there(self.source.folder):
                raise self._replaced(known)
            facts = [(entry.name, entry.nbytes, entry.crc32c) for entry in files]
            if problems := transfer.check(attempt.folder, facts, full=self.errand.verify == "full"):
                raise SaveError(f"{problems[0].message}, though these were written: nothing is committed; migrate the step again")
            manifest = Manifest(
                step=step,
                attempt=attempt.attempt,
                sequence=self.asked.sequence,
                run=info.run or self.asked.run,
                created=info.created,
                backend=backend,
                nbytes=sum(entry.nbytes for entry in files),
                files=files,
                metrics=metrics or {},
                metadata=metadata,
                writer=this_writer(),
                extra={MIGRATED: {"identity": self.asked.identity, "from": info.path}},
            )
            return attempt.commit(target.naming, lambda _: manifest, before_delete=lambda old: Hints(target).replaced(name, old))

    def _name(self, known: Known, metadata: Mapping[str, JSON]) -> str:
        """The folder of the step: the one it has, or by the naming, or what another tool called it, if that is such a name."""
        target, step, stem = self.target, self.asked.step, known.info.name
        if isinstance(known, Foreign) and target.naming.needs_metadata and target.naming.parse(stem) == step:
            return target.name_of(step) or stem
        return target.name_of(step) or target.naming.format(step, metadata)

    def _replaced(self, known: Foreign) -> StepNotFoundError:
        step = self.asked.step
        return StepNotFoundError(
            f"step {step}, {known.info.path!r}, was removed or replaced meanwhile: migrate it again", step=step
        )


def _begin(target: Run, name: str, step: int, *, overwrite: bool, pins: frozenset[str]) -> Attempt:
    """A new attempt. Pins are in the record before the step is: no retention ever sees it without them."""
    attempt = commit.begin(target.folder, name, step, overwrite=overwrite)
    for _ in tries() if pins else ():
        found = read_record(target.folder, name, step)
        if found is None or found.record.claim != attempt.claim:
            return attempt  # which cannot commit any more, and will tell why
        if change(target.folder.folder(name), found, found.record.renewed(pins=found.record.pins | pins)) is Answer.OK:
            return replace(attempt, found=None)
    if pins:
        raise gave_up(target.folder, name, "pinned")
    return attempt


def _rule_json(rule: Rule) -> JSON:
    if callable(rule):
        return f"{getattr(rule, '__module__', '')}:{getattr(rule, '__qualname__', repr(rule))}"
    old, new = rule
    return [old.pattern, old.flags, new] if isinstance(old, re.Pattern) else [old, new]
