"""Files of committed steps: whether they are there in their sizes, or, deep, with every byte that was written."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ckptmgr import backend as backends
from ckptmgr import transfer
from ckptmgr.diagnosis.cures import Cures
from ckptmgr.diagnosis.findings import Finding, Severity
from ckptmgr.diagnosis.looking import Look, StepFolder
from ckptmgr.diagnosis.words import steps
from ckptmgr.errors import BackendNotFoundError, CorruptCheckpointError, StepNotFoundError
from ckptmgr.finding import Run
from ckptmgr.manifest import ASSET, TREE, FileEntry, Origin
from ckptmgr.transfer import Problem, Progress


@dataclass(frozen=True, slots=True)
class Wrong:
    """A file that is not as it was written, and the committed steps that need it, oldest save first."""

    path: str
    message: str
    entry: FileEntry | None
    origin: Origin | None
    steps: tuple[int, ...]

    @property
    def is_asset(self) -> bool:
        """Whether it is the user's own, which a restore does not read."""
        return bool(self.entry and self.entry.extra.get(ASSET))


class _Found:
    """Wrong files by their paths, while steps are looked at."""

    def __init__(self) -> None:
        self._messages: dict[str, list[str]] = {}
        self._users: dict[str, dict[int, FileEntry | None]] = {}

    def add(self, step: StepFolder, file: str, message: str) -> None:
        entry = next((entry for entry in step.manifest.files if entry.name == file), None) if step.manifest else None
        path = _path(step, entry) if entry else f"{step.place}/{file}"
        messages = self._messages.setdefault(path, [])
        messages += [message] if message not in messages else []
        self._users.setdefault(path, {})[step.step] = entry

    def all(self) -> list[Wrong]:
        return [self._wrong(path, users) for path, users in self._users.items()]

    def _wrong(self, path: str, users: Mapping[int, FileEntry | None]) -> Wrong:
        entries = [entry for entry in users.values() if entry]
        origin = next((entry.origin for entry in entries if entry.origin), None)
        return Wrong(path, "; ".join(self._messages[path][:3]), next(iter(entries), None), origin, tuple(users))


def wrong_files(look: Look) -> list[Wrong]:
    """Files that are missing, or have another size than was written. Nothing is read but what looks wrong, once more."""
    found = _Found()
    for step in look.committed:
        manifest = step.manifest if step.listed.closed is None else None
        wrong = [entry for entry in manifest.files if look.size(_path(step, entry)) != entry.nbytes] if manifest else []
        for problem, entry in _again(look, step, wrong):
            found.add(step, entry.name, problem.message)
    return found.all()


def damaged_files(look: Look, known: Sequence[Wrong], progress: Progress | None) -> list[Wrong]:
    """Files whose bytes are not what was written, of the steps that have all of them in their size: every byte is read."""
    bad = {step for each in known for step in each.steps}
    chosen = [step for step in look.committed if step.step not in bad and step.listed.closed is None]
    total = sum(step.manifest.nbytes for step in chosen if step.manifest)
    run, done, found = Run(look.root, look.naming), 0, _Found()
    for step in chosen:
        told = None if progress is None else lambda nbytes, _, done=done, tell=progress: tell(done + nbytes, total)
        for problem in _verified(run, look, step, told):
            found.add(step, problem.file, problem.message)
        done += step.manifest.nbytes if step.manifest else 0
    return found.all()


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
    remote: str | None
    remote_steps: frozenset[int]

    def findings(self, wrong: Sequence[Wrong], falls_to: int | None) -> Iterator[Finding]:
        """One for each wrong file, and for each format that cannot be used."""
        newest = self.look.committed[-1].step if self.look.committed else None
        for each in wrong:
            yield self._finding(each, newest in each.steps, falls_to)
        yield from self._formats()

    def _finding(self, wrong: Wrong, is_newest: bool, falls_to: int | None) -> Finding:
        found = f"{steps(wrong.steps)}: {wrong.message}"
        if wrong.origin:
            found += f" (step {wrong.origin.step} has written it, and the others refer to it)"
        heals, commands = self._cure(wrong)
        means = self._means(wrong, is_newest, falls_to)
        severity: Severity = "warning" if wrong.is_asset else "problem"
        return Finding(severity, "damaged-file", found, means, heals, commands, step=wrong.steps[-1], file=wrong.path)

    def _means(self, wrong: Wrong, is_newest: bool, falls_to: int | None) -> str:
        if wrong.is_asset:
            return "This asset is lost. The state restores: it does not need the assets."
        rest = "" if wrong.path.endswith(f"/{TREE}") else ", but for tensors in its other files"
        means = f"{steps(wrong.steps).capitalize()} cannot be restored{rest}. A restore without a step "
        if not is_newest:
            return f"{means}does not touch it: a newer one is there."
        return f"{means}warns, and " + ("finds no older one." if falls_to is None else f"goes back to step {falls_to}.")

    def _cure(self, wrong: Wrong) -> tuple[str, tuple[str, ...]]:
        there = [step for step in wrong.steps if step in self.remote_steps]
        commands = [self.cures.delete(step) for step in wrong.steps]
        if self.remote and there:
            commands += [self.cures.copy_from(self.remote, step) for step in there]
            return f"Take it out, and copy {steps(there)} from {self.remote!r}.", tuple(commands)
        if wrong.is_asset:
            return "Put the file back from elsewhere; or leave it, if nobody needs it.", ()
        text = "Nothing here brings the bytes back. Take it out, then copy it from elsewhere if you can (`ckptmgr cp`)"
        return f"{text}; or leave it, and restores pass it over.", tuple(commands)

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
    return {step for each in wrong if not each.is_asset for step in each.steps}
