"""What a URL is that is no run with steps: nothing, a file, a step's own folder, a folder of runs, or a run of other names."""

import difflib
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ckptmgr import backend as backends
from ckptmgr.diagnosis.cures import Cures
from ckptmgr.diagnosis.findings import Finding
from ckptmgr.diagnosis.looking import Look, record_at
from ckptmgr.errors import BackendNotFoundError, CheckpointError, shown
from ckptmgr.manifest import MANIFEST, parse_attempt
from ckptmgr.naming import FOREIGN, StepNaming
from ckptmgr.storage import Folder, open_folder

_MOST = 64  # folders that are looked into
_TOLD = 3  # namings that are told
_DIGITS = 4_000  # of a number that Python reads

Options = Mapping[str, object] | None


@dataclass(frozen=True, slots=True)
class Place:
    """Finds out, for a run as it was seen; ``options`` are its storage's."""

    url: str
    look: Look
    cures: Cures
    options: Options

    @property
    def is_empty(self) -> bool:
        """Whether no file or folder is there."""
        return not (self.look.files or self.look.folders or self.look.steps or self.look.uploads)

    def findings(self, *, has_steps: bool) -> Iterator[Finding]:
        """What it is; nothing for a run whose steps are named as they are looked for."""
        if self.is_empty:
            yield self._nothing()
            return
        if own := self._inside():
            yield own
            return
        named = list(self._other_names(has_steps=has_steps))
        yield from named
        if not (has_steps or named or any(step.trouble for step in self.look.steps.values())):
            yield self._runs() or self._checkpoint() or self._no_steps()

    def _nothing(self) -> Finding:
        parent, name = _split(self.url)
        try:
            above = open_folder(parent, self.options)
            listing = above.list() if name else None
        except (OSError, ValueError, CheckpointError):
            listing = None
        if listing and name in listing.files:
            found = f"{self.url!r} is a file, and no run"
            means = "A run is a folder, with a folder for each step. A single checkpoint is looked at by other commands."
            return Finding("problem", "not-a-run", found, means, "Look at it as a checkpoint.", self._as_checkpoint)
        if listing and name in listing.folders:
            found, means = f"{self.url!r} is an empty folder", "A restore starts from scratch: nothing has been saved there yet."
            return Finding("problem", "nothing-there", found, means, "Check the path, if steps should be there.")
        found = f"nothing is at {self.url!r}"
        near = difflib.get_close_matches(name, listing.folders, 3) if listing else []
        means = "A restore starts from scratch: is the name right, and has anything been saved yet?"
        heals = f"Near it are {shown(near)}." if near else "Check the path, and the working folder if it is a relative one."
        commands = tuple(self._doctor(_joined(parent, each)) for each in near)
        return Finding("problem", "nothing-there", found, means, heals, commands)

    def _inside(self) -> Finding | None:
        """A finding if it is the folder of a step, or of an attempt."""
        above, name = _split(self.url.rstrip("/"))
        is_attempt = parse_attempt(name) is not None
        if not is_attempt and (MANIFEST not in self.look.files or not any(map(parse_attempt, self.look.folders))):
            return None
        run = _split(above)[0] if is_attempt else above
        what = "one attempt of a step" if is_attempt else "one step of a run"
        found = f"{self.url!r} is the folder of {what}, and no run"
        means = "Restores look for steps in a run's folder; here they find none."
        return Finding("problem", "not-a-run", found, means, "Give the run's own folder.", (self._doctor(run or "."),))

    def _other_names(self, *, has_steps: bool) -> Iterator[Finding]:
        """Committed steps in folders whose names are not those that are looked for: the run seems empty, or shorter."""
        known: dict[str, int] = {}
        for name in self.look.folders[-_MOST:]:
            if (step := _step_in(self.look.root, name)) is not None:
                known[name] = step
        for template, names in itertools.islice(_templates(known).items(), _TOLD):
            text = f"steps with other names than {self.look.naming.template!r}: {shown(names, 3)}"
            means = "They are not found under this naming. "
            means += (
                "Those that are found are all that it restores."
                if has_steps
                else "A restore finds no step, and starts from scratch."
            )
            heals = f"Look with their naming; in the program: naming=StepNaming({template!r})."
            commands = (self.cures.of(self.url, StepNaming(template)).command("doctor"),)
            severity = "warning" if has_steps else "problem"
            yield Finding(severity, "other-naming", text, means, heals, commands, file=names[-1])  # type: ignore[arg-type]

    def _runs(self) -> Finding | None:
        """A finding if there are runs in the folders below."""
        runs = [name for name in self.look.folders[:_MOST] if name.isprintable() and _is_run(self.look.root.folder(name))]
        if not runs:
            return None
        found = f"{self.url!r} is a folder of runs: {shown(runs)}"
        means = "It has no steps of its own. A restore from here finds none, and starts from scratch."
        commands = tuple(self._doctor(_joined(self.url, name)) for name in runs[:3])
        return Finding("problem", "folder-of-runs", found, means, "Give one of the runs.", commands)

    def _checkpoint(self) -> Finding | None:
        """A finding if the folder is a checkpoint by itself."""
        try:
            name = backends.detect(self.look.root, "").name
        except (CheckpointError, BackendNotFoundError, OSError, ValueError):
            return None
        found = f"{self.url!r} is a checkpoint of the format {name!r}, and no run"
        means = "A run is a folder with a folder for each step. A restore from here finds none, and starts from scratch."
        return Finding("problem", "not-a-run", found, means, "Look at it as a checkpoint.", self._as_checkpoint)

    def _no_steps(self) -> Finding:
        found = f"no step is committed in {self.url!r}"
        means = "A restore finds none, and starts from scratch."
        return Finding("note", "no-step", found, means, "Nothing, if this is the right folder and no save has ended yet.")

    @property
    def _as_checkpoint(self) -> tuple[str, ...]:
        return tuple(self.cures.command(name, has_naming=False) for name in ("show", "verify"))

    def _doctor(self, url: str) -> str:
        return self.cures.of(url).command("doctor")


def _step_in(root: Folder, name: str) -> int | None:
    """The step that is committed in a folder, whatever its name."""
    try:
        head = root.folder(name).head(MANIFEST)
        record, _ = record_at(root, name, None, head) if head else (None, None)
    except (CheckpointError, OSError):
        return None
    return record.manifest.step if record and record.manifest else None


def _templates(known: Mapping[str, int]) -> dict[str, list[str]]:
    """Names by templates that give them: one for all if there is such a one, else a usual one of other tools, else several."""
    found: dict[str, list[str]] = {}
    for name, step in known.items():
        if template := _template(name, step):
            found.setdefault(template, []).append(name)
    if len(found) > 1:
        for naming in FOREIGN:
            if all(naming.parse(name) == step for name, step in known.items()):
                return {naming.template: [*known]}
    return found


def _template(name: str, step: int) -> str | None:
    """A template by which the folder of that step has its name."""
    for digits in reversed([*re.finditer("[0-9]+", name)]):
        if int(digits[0][:_DIGITS]) != step:
            continue
        width = f":0{len(digits[0])}d" if digits[0].startswith("0") and len(digits[0]) > 1 else ""
        template = f"{_literal(name[: digits.start()])}{{step{width}}}{_literal(name[digits.end() :])}"
        try:
            naming = StepNaming(template)
        except ValueError:
            continue
        if naming.parse(name) == step:
            return template
    return None


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _is_run(folder: Folder) -> bool:
    try:
        return any(folder.folder(name).head(MANIFEST) for name in folder.list().folders[:3])
    except OSError:
        return False


def _split(url: str) -> tuple[str, str]:
    parent, slash, name = url.rstrip("/").replace(os.sep, "/").rpartition("/")
    return parent or ("/" if slash else "."), name


def _joined(parent: str, name: str) -> str:
    return name if parent in ("", ".") else f"{parent.rstrip('/')}/{name}"
