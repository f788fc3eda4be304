"""Files of committed steps: whether they are there in their sizes, or, deep, with every byte that was written."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ckptmgr import backend as backends
from ckptmgr import transfer
from ckptmgr.checksum import crc32c
from ckptmgr.diagnosis.cures import Cures
from ckptmgr.diagnosis.findings import Finding, Severity
from ckptmgr.diagnosis.looking import Look, StepFolder
from ckptmgr.diagnosis.tiers import Remote
from ckptmgr.diagnosis.words import steps
from ckptmgr.errors import BackendNotFoundError, CheckpointError, CorruptCheckpointError, StepNotFoundError
from ckptmgr.finding import Run
from ckptmgr.layout import Part
from ckptmgr.manifest import ASSET, TREE, FileEntry, Origin
from ckptmgr.storage import PosixStore
from ckptmgr.transfer import Problem, Progress
from ckptmgr.treefile import TreeText


@dataclass(frozen=True, slots=True)
class Wrong:
    """A file that is not as it was written, and the committed steps that have it, oldest save first.

    ``stops``: they cannot be restored by that. Else it is an asset, or the structure around the tensors, which only tools of
    the format read.
    """

    path: str
    message: str
    entry: FileEntry | None
    origin: Origin | None
    steps: tuple[int, ...]
    stops: bool

    @property
    def is_asset(self) -> bool:
        """Whether it is the user's own, which a restore does not read."""
        return bool(self.entry and self.entry.extra.get(ASSET))


class _Found:
    """Wrong files by their paths, while steps are looked at."""

    def __init__(self) -> None:
        self._messages: dict[str, list[str]] = {}
        self._users: dict[str, dict[int, FileEntry | None]] = {}
        self._stops: set[str] = set()

    def add(self, step: StepFolder, file: str, message: str, *, stops: bool) -> None:
        entry = next((entry for entry in step.manifest.files if entry.name == file), None) if step.manifest else None
        path = _path(step, entry) if entry else f"{step.place}/{file}"
        messages = self._messages.setdefault(path, [])
        messages += [message] if message not in messages else []
        self._users.setdefault(path, {})[step.step] = entry
        self._stops.update([path] if stops else [])

    def all(self) -> list[Wrong]:
        return [self._wrong(path, users) for path, users in self._users.items()]

    def _wrong(self, path: str, users: Mapping[int, FileEntry | None]) -> Wrong:
        entries = [entry for entry in users.values() if entry]
        origin = next((entry.origin for entry in entries if entry.origin), None)
        return Wrong(
            path, "; ".join(self._messages[path][:3]), next(iter(entries), None), origin, tuple(users), path in self._stops
        )


def wrong_files(look: Look) -> list[Wrong]:
    """Files that are missing, or have another size than was written. Nothing is read but what looks wrong, once more."""
    found = _Found()
    for step in look.committed:
        manifest = step.manifest if step.listed.closed is None else None
        wrong = [entry for entry in manifest.files if look.size(_path(step, entry)) != entry.nbytes] if manifest else []
        problems = _again(look, step, wrong)
        needed = _needed(look, step) if problems else {}
        for problem, entry in problems:
            head = look.root.head(_path(step, entry))
            stops = needed is None or needed.get(entry.name, -1) > (head.nbytes if head else -1)
            found.add(step, entry.name, problem.message, stops=stops and not entry.extra.get(ASSET))
    return found.all()


def _needed(look: Look, step: StepFolder) -> Mapping[str, float] | None:
    """Of each file of the step in which tensors are, up to which byte a restore needs it; None if it cannot be opened."""
    manifest, needed = step.manifest, dict[str, float]({TREE: math.inf})
    entry = next((entry for entry in manifest.files if entry.name == TREE), None) if manifest else None
    if manifest is None or entry is None:
        return None
    try:
        read = look.root.read(_path(step, entry))
        if read is None or crc32c(read[0]) != entry.crc32c:
            return None
        tree = TreeText(read[0], [entry.name for entry in manifest.files], where=look.root.location(_path(step, entry))).tree
    except (CheckpointError, OSError):
        return None
    for row in tree.rows:  # what is not raw bytes is decoded by a reader of the format, which needs all of the file
        end = math.inf if row.offset is None else row.offset + Part(row.name, row.spec, row.box).nbytes
        needed[row.file] = max(end, needed.get(row.file, 0))
    return needed


def damaged_files(look: Look, known: Sequence[Wrong], progress: Progress | None) -> tuple[list[Wrong], Look]:
    """Files whose bytes are not what was written, of the steps that sizes do not keep from being restored: every byte is read.

    In the look that comes back, steps are closed that have a file which cannot be read.

    Raises:
        OSError: a storage that is not a disk fails, and not for want of a permission.
    """
    bad = broken(known)
    chosen = [step for step in look.committed if step.step not in bad and step.listed.closed is None]
    total = sum(step.manifest.nbytes for step in chosen if step.manifest)
    run, done, found = Run(look.root, look.naming), 0, _Found()
    closed: dict[str, StepFolder] = {}
    for step in chosen:
        told = None if progress is None else lambda nbytes, _, done=done, tell=progress: tell(done + nbytes, total)
        problems: Sequence[Problem] = ()
        try:
            problems = _verified(run, look, step, told)
        except OSError as error:
            if not (isinstance(look.root.store, PosixStore) or isinstance(error, PermissionError)):
                raise
            closed[step.name] = step._replace(listed=step.listed._replace(closed=error))
        needed = _needed(look, step) if problems else {}
        for problem in problems:
            stops = needed is None or problem.tensor is not None or needed.get(problem.file) == math.inf
            found.add(step, problem.file, problem.message, stops=stops)
        done += step.manifest.nbytes if step.manifest else 0
    return found.all(), replace(look, steps={**look.steps, **closed})


def _verified(run: Run, look: Look, step: StepFolder, progress: Progress | None) -> list[Problem]:
    try:
        known = step.committed(look.root)
        return run.with_step(step.step, "full", lambda it: it.verify(full=True, progress=progress), known=known)
    except CorruptCheckpointError as error:
        return [Problem(error.file or TREE, error.tensor, str(error))]
    except StepNotFoundError:
        return []  # retention does not wait for a diagnosis


def _path(step: StepFolder, entry: FileEntry) -> str:
    return entry.origin.path if entry.origin else f"{step.place}/{entry.name}"


def _again(look: Look, step: StepFolder, entries: Sequence[FileEntry]) -> list[tuple[Problem, FileEntry]]:
    """Those that are wrong now, unless the step is another one, or gone: it may have come after the listing, or be going."""
    if not entries:
        return []
    by_path = {_path(step, entry): entry for entry in entries}
    problems = transfer.check(look.root, [(path, entry.nbytes, 0) for path, entry in by_path.items()], full=False)
    now = look.again(step).manifest if problems else None
    if now is None or step.manifest is None or now.attempt != step.manifest.attempt:
        return []
    return [(problem, by_path[problem.file]) for problem in problems]


@dataclass(frozen=True, slots=True)
class Contents:
    """Tells of wrong files, and of formats that are not installed; ``falls_to`` is the step that a restore gives instead."""

    look: Look
    cures: Cures
    far: Remote | None
    is_moved: bool  # folders of steps are under other names, or links, and with them files that others refer to

    def findings(self, wrong: Sequence[Wrong], falls_to: int | None) -> Iterator[Finding]:
        """One for each wrong file, and for each format that cannot be used."""
        newest = self.look.committed[-1].step if self.look.committed else None
        healed: set[int] = set()  # by what is told first: no step is taken out twice
        for each in wrong:
            yield self._finding(each, newest in each.steps, falls_to, healed)
            healed.update(each.steps if each.stops else self._there(each))
        yield from self._formats()

    def _finding(self, wrong: Wrong, is_newest: bool, falls_to: int | None, healed: Collection[int]) -> Finding:
        found = f"{steps(wrong.steps)}: {wrong.message}"
        if wrong.origin:
            found += f" (step {wrong.origin.step} has written it, and the others refer to it)"
        heals, commands = self._cure(wrong, healed)
        means = self._means(wrong, is_newest, falls_to)
        severity: Severity = "problem" if wrong.stops else "warning"
        return Finding(severity, "damaged-file", found, means, heals, commands, step=wrong.steps[-1], file=wrong.path)

    def _means(self, wrong: Wrong, is_newest: bool, falls_to: int | None) -> str:
        if wrong.is_asset:
            return "This asset is lost. The state restores: it does not need the assets."
        if not wrong.stops:
            return "All tensors are whole: the state restores. Other tools may refuse the file, or read it wrongly."
        rest = "" if wrong.path.endswith(f"/{TREE}") else ", but for tensors in its other files"
        means = f"{steps(wrong.steps).capitalize()} cannot be restored{rest}. A restore without a step "
        if not is_newest:
            return f"{means}does not touch it: a newer one is there."
        return f"{means}warns, and " + ("finds no older one." if falls_to is None else f"goes back to step {falls_to}.")

    def _cure(self, wrong: Wrong, healed: Collection[int]) -> tuple[str, tuple[str, ...]]:
        if wrong.origin and self.is_moved:
            return "It may be in a folder that was renamed, or is a link: heal what is said of those, and look again.", ()
        there = self._there(wrong)
        if wrong.is_asset and not there:
            return "Put the file back from elsewhere; or leave it, if nobody needs it.", ()
        if not (wrong.stops or there):
            return "Restore the step and save it again (overwrite=True); or leave it, if only ckptmgr reads it.", ()
        left = [step for step in wrong.steps if step not in healed]
        if not left:
            return f"It is healed with what is told of {steps(wrong.steps)} above.", ()
        lost = [step for step in left if step not in there and wrong.stops]
        commands = [self.cures.repair(self.far.url, found)] if self.far and (found := [*filter(there.count, left)]) else []
        commands += [self._deleted(lost)] if lost else []
        if self.far and there:
            heals = f"Copy {steps(there)} from {self.far.url!r}: what is here goes when that has come."
            heals += (
                f" Take {steps(lost)} out." if lost else " If that is damaged too, take it out (`ckptmgr delete`)." * wrong.stops
            )
            return heals, tuple(commands)
        text = "Nothing here brings the bytes back. If another run has it, `ckptmgr cp --repair` brings it from there"
        return f"{text}. Else take it out; or leave it, and restores pass it over.", tuple(commands)

    def _there(self, wrong: Wrong) -> list[int]:
        """The steps that the far tier has."""
        return [step.step for step in self.look.committed if step.step in wrong.steps and self.far and self.far.has(step)]

    def _deleted(self, lost: Collection[int]) -> str:
        pinned = [step for step in self.look.committed if step.step in lost and step.record and step.record.pins]
        return self.cures.delete(*lost, is_pinned=bool(pinned))

    def _formats(self) -> Iterator[Finding]:
        users: dict[str, list[int]] = {}
        for step in self.look.committed:
            if step.manifest:
                users.setdefault(step.manifest.backend, []).append(step.step)
        for name, numbers in users.items():
            commands: tuple[str, ...] = ()
            try:
                backends.find(name)
            except BackendNotFoundError:
                heals = f"Install the package that brings the backend {name[:80]!r}."
                found = f"{steps(numbers)}: of the format {name[:80]!r}, for which nothing is installed"
            except ImportError as error:
                extra = name.replace("_", "-")
                heals, commands = "Install what it needs.", (f"pip install 'ckptmgr[{extra}]'",) if _is_ours(error) else ()
                found = f"{steps(numbers)}: of the format {name!r}: {error}"
            else:
                continue
            means = "They restore all the same, but for string tensors and what is not stored as it is; nothing can be saved so."
            yield Finding("warning", "missing-format", found, means, heals, commands, step=numbers[-1])


def _is_ours(error: ImportError) -> bool:
    return "ckptmgr[" in str(error)


def broken(wrong: Sequence[Wrong]) -> set[int]:
    """The steps that a restore passes over because of these files."""
    return {step for each in wrong if each.stops for step in each.steps}
