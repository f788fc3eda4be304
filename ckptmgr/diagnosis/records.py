"""Records that cannot be read, and what a restore does about them."""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ckptmgr.diagnosis.cures import Cures, pip, shell
from ckptmgr.diagnosis.findings import Finding
from ckptmgr.diagnosis.looking import Look, StepFolder, record_at
from ckptmgr.diagnosis.tiers import Remote
from ckptmgr.errors import CorruptCheckpointError, FormatVersionError
from ckptmgr.manifest import MANIFEST, Manifest
from ckptmgr.storage import PosixStore

_DENIED = (errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class Records:
    """Finds them in a run as it was seen."""

    look: Look
    cures: Cures
    far: Remote | None = None

    def findings(self) -> Iterator[Finding]:
        """One for each record that cannot be read, and for steps of which there are two."""
        newer = [each for each in self.look.steps.values() if isinstance(each.trouble, FormatVersionError)]
        if newer:
            yield self._newer(newer)
        for step in self.look.steps.values():
            if isinstance(step.trouble, CorruptCheckpointError):
                yield self._renamed(step) or self._damaged(step)
            elif isinstance(step.trouble, OSError):
                yield self._denied(step, step.trouble)
            elif step.listed.closed is not None:
                yield self._closed(step, step.listed.closed)
        yield from self._twice()

    def _newer(self, steps: list[StepFolder]) -> Finding:
        which = ", ".join(str(each.step) for each in steps[:5]) + (f" and {len(steps) - 5} more" if len(steps) > 5 else "")
        found = f"step {which}: {steps[0].trouble}"
        means = "The step is good. A restore without a step stops rather than go back behind it; other steps restore by number."
        heals = "Upgrade ckptmgr."
        place = f"{steps[0].name}/{MANIFEST}"
        return Finding("problem", "newer-format", found, means, heals, (pip("ckptmgr"),), step=steps[0].step, file=place)

    def _renamed(self, step: StepFolder) -> Finding | None:
        """A good record in the folder of another step."""
        manifest = self._manifest_in(step)
        if manifest is None or manifest.step == step.step:
            return None
        found = f"step {step.step}: the folder {step.name!r} has the record of step {manifest.step}: it was renamed or copied"
        right = self._free_name(manifest)
        place = f"{step.name}/{MANIFEST}"
        commands: tuple[str, ...] = ()
        if self._is_copy(manifest):
            means = f"Nothing is lost if step {manifest.step} is whole. A restore warns of this folder, and passes it over."
            heals = f"It is a copy of step {manifest.step}, which is there: take it out."
            commands = () if self._is_beside(step) else (self.cures.delete(step.step), self.cures.sweep())
        elif right is None:
            means = f"Step {manifest.step} is not found under this name. A restore warns of it, and passes it over."
            heals = "Its own name is taken by another folder: give that one its own name first, then this one. Delete neither."
        else:
            means = f"Step {manifest.step} is not found under this name. A restore warns of it, and passes it over."
            heals = "Give the folder its name again."
            where = self.look.root.location
            is_local = isinstance(self.look.root.store, PosixStore)
            commands = shell("mv", where(step.name), where(right)) if is_local else ()
        return Finding("problem", "renamed-step", found, means, heals, commands, step=step.step, file=place)

    def _manifest_in(self, step: StepFolder) -> Manifest | None:
        try:
            record, _ = record_at(self.look.root, step.name, None, step.listed.record)
        except (CorruptCheckpointError, FormatVersionError, OSError):
            return None
        return record.manifest if record else None

    def _free_name(self, manifest: Manifest) -> str | None:
        try:
            name = self.look.naming.format(manifest.step, manifest.metadata)
        except ValueError:
            return None
        return None if name in self.look.steps or name in self.look.folders else name

    def _damaged(self, step: StepFolder) -> Finding:
        found = f"step {step.step}: {step.trouble}"
        means = "Without its record the step cannot be restored. A restore without a step warns, and passes it over."
        heals = (
            "Bring manifest.json back from a copy of the run, if there is one. Else take the step out; a later sweep removes its "
            "files. Their tensors can still be read: `ckptmgr show` takes the folder a-..."
        )
        commands: tuple[str, ...] = (self.cures.delete(step.step),)
        if self._is_beside(step):
            means = f"Step {step.step} is whole, in another folder. Restores without a step warn of this one, and pass it over."
            heals, commands = f"Move the folder {step.name!r} out of the run.", ()
        elif self.far and self.far.has(step):
            heals = f"Copy the step from {self.far.url!r}; a later sweep removes the files that are here."
            commands = (self.cures.repair(self.far.url, [step.step]),)
        place = f"{step.name}/{MANIFEST}"
        return Finding("problem", "damaged-record", found, means, heals, commands, step=step.step, file=place)

    def _is_copy(self, manifest: Manifest) -> bool:
        """Whether the very same save is in its own place."""
        return any(each.manifest and each.manifest.attempt == manifest.attempt for each in self.look.committed)

    def _is_beside(self, step: StepFolder) -> bool:
        """Whether another folder has the step of that number: to delete it would take both."""
        return any(each.step == step.step for each in self.look.committed)

    def _closed(self, step: StepFolder, error: OSError) -> Finding:
        """A step whose record can be read, and whose files cannot be listed, or not all be read."""
        lost = "Nothing is lost." if error.errno in _DENIED else "Whether anything is lost cannot be told."
        means = f"{lost} The step cannot be restored, and a restore that comes to it stops with that error."
        return replace(self._denied(step, error), means=means)

    def _denied(self, step: StepFolder, error: OSError) -> Finding:
        place = self.look.root.location(step.name)
        seen = str(error.filename or place)
        found = f"step {step.step}: {seen!r} cannot be looked at: {error.strerror or error}"
        place = place if seen.startswith(place) else seen  # a file that an older step has written
        means = (
            "Nothing is lost. Lists of the run, and restores without a step, stop with that error. Other steps restore by number."
        )
        commands: tuple[str, ...] = ()
        heals = "Let this user read it, or look again: it is the storage that refuses."
        if isinstance(self.look.root.store, PosixStore) and error.errno in _DENIED:
            owner = _owner(place)
            is_mine = owner in (os.geteuid(), None) or os.geteuid() == 0
            heals = "Give the permission back." if is_mine else f"User {owner} owns it: have the permission given back."
            commands = shell("chmod", "-R", "u+rwX" if is_mine else "a+rX", place)
        return Finding("problem", "unreadable", found, means, heals, commands, step=step.step, file=step.name)

    def _twice(self) -> Iterator[Finding]:
        chosen = {each.step: each.name for each in self.look.committed}
        for step in self.look.steps.values():
            other = chosen.get(step.step)
            if step.manifest and other and step.name != other:
                found = f"step {step.step}: it is in {step.name!r} and in {other!r}"
                means = f"Nothing is lost. {other!r}, which was saved last, is the step; the other is never looked at."
                heals = "If you need one only, move the other out of the run."
                yield Finding("note", "step-twice", found, means, heals, step=step.step, file=step.name)


def refusal(look: Look) -> str:
    """Why a restore without a step would be an error of its own, before any step is tried; empty if it would not."""
    troubles = [each.trouble for each in look.steps.values()]
    for error in troubles:
        if isinstance(error, OSError):
            return told(look, error)
    return next((str(error) for error in troubles if isinstance(error, FormatVersionError)), "")


def told(look: Look, error: OSError) -> str:
    """The error, and where it was met."""
    return f"{error.filename or look.root.location()}: {error.strerror or error}"


def _owner(path: str) -> int | None:
    try:
        return os.stat(path).st_uid
    except OSError:
        return None
