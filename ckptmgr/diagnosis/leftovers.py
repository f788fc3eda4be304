"""What interrupted saves, copies and deletions have left, and from when on a sweep takes it.

The law: what is told here to be swept, a sweep with the same grace period removes; and what may be a save in progress is a note.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

from ckptmgr.copying import COPY
from ckptmgr.diagnosis.cures import Cures
from ckptmgr.diagnosis.findings import Finding
from ckptmgr.diagnosis.looking import Look, StepFolder, Unfinished
from ckptmgr.diagnosis.words import aged, at, counted, sized, written_by
from ckptmgr.errors import shown
from ckptmgr.manifest import folder_name
from ckptmgr.record import Claim, Hold, Record
from ckptmgr.storage import Head, PosixStore
from ckptmgr.storage.weak import is_probe

_SAVE_OR_COPY = {True: "copy", False: "save"}


@dataclass(frozen=True)
class Leftovers:
    """Finds them in a run as it was seen. The cures' ``grace_s`` is how long what shows no sign of life may yet be alive."""

    look: Look
    cures: Cures

    def findings(self) -> Iterator[Finding]:
        """One for each claim, each attempt that no record names, and each sort of what else is left."""
        for step in self.look.steps.values():
            if step.trouble is not None or step.listed.closed is not None:
                continue  # a sweep leaves all of it, or stops
            if step.record and step.record.claim:
                yield self._claim(step, step.record.claim)
            yield from self._unnamed(step)
            yield from self._holds(step)
            yield from self._pins(step)
        yield from self._loose()

    def _claim(self, step: StepFolder, claim: Claim) -> Finding:
        files = step.listed.attempts.get(claim.attempt, {})
        is_copy = COPY in claim.extra
        what = _SAVE_OR_COPY[is_copy]
        uploads = self.look.uploads_at(f"{step.name}/{folder_name(claim.attempt)}/")
        found = (
            f"step {step.step}: a {what} was begun by {written_by(claim.writer)}, and is not committed; {_held(files, uploads)}"
        )
        old = "The committed step of that number is untouched." if step.manifest else "The step does not exist."
        finding = Finding("warning", f"interrupted-{what}", found, old, step=step.step, file=step.name)
        again = " Or run the same `ckptmgr cp` again: it goes on where this one ended." if is_copy else ""
        return self._judged(finding, _signs({**files, "": step.listed.record}, uploads), also=again)

    def _unnamed(self, step: StepFolder) -> Iterator[Finding]:
        record = step.record or Record()
        begun = {attempt for upload in self.look.uploads_at(f"{step.name}/") if (attempt := upload.attempt)}
        for attempt in sorted({*step.listed.attempts, *begun} - record.named - self._referred):
            place = f"{step.name}/{folder_name(attempt)}"
            uploads = self.look.uploads_at(f"{place}/")
            now = self.look.again(step)  # a deletion that is under way is none that was interrupted
            files = now.listed.attempts.get(attempt)
            if now.trouble or attempt in (now.record or Record()).named or (files is None and not uploads):
                continue
            found = f"step {step.step}: {place} is of an attempt that no record names; {_held(files or {}, uploads)}"
            if step.listed.record is None:
                means = (
                    "There is no record, so this is no step: a deletion was interrupted, the run is being copied into place, "
                    "or somebody removed manifest.json. If so, bring that back before you sweep."
                )
            else:
                means = "An interrupted save or deletion has left it. Nothing will ever read it."
            finding = Finding("warning", "unnamed-attempt", found, means, step=step.step, file=place)
            if not (files or uploads) and self._has_others(place):
                means = "ckptmgr has made the folder, and others have put folders, links or pipes into it, which it leaves alone."
                yield replace(finding, severity="note", means=means, heals="Remove it, if nobody needs them.")
            else:
                yield self._judged(finding, _signs(files or {}, uploads))

    def _has_others(self, place: str) -> bool:
        """Whether anything is in an attempt's folder without files, so that a sweep cannot remove it."""
        with suppress(OSError):
            return isinstance(self.look.root.store, PosixStore) and bool(os.listdir(self.look.root.location(place)))
        return False

    def _judged(self, finding: Finding, signs: Iterable[float], also: str = "") -> Finding:
        """A warning once no sign of life is younger than the grace period, and a note until then."""
        newest = max(signs, default=0.0)
        age = self.look.now - newest
        sign = f"the last sign of life is {aged(age)} old" if age >= 0 else "its last sign of life is in the future"
        found = f"{finding.found}; {sign}" if newest else finding.found
        if self._is_old(newest):
            means, heals = f"It was interrupted. {finding.means}", f"sweep removes it.{also}"
            return replace(finding, found=found, means=means, heals=heals, commands=(self.cures.sweep(),))
        means = f"It is in progress, or was interrupted. {finding.means}"
        heals = f"Nothing, if it is in progress. Else sweep takes it from {at(newest + self.cures.grace_s)} on.{also}"
        return replace(finding, severity="note", found=found, means=means, heals=heals)

    def _holds(self, step: StepFolder) -> Iterator[Finding]:
        holds = step.record.holds if step.record else ()
        stale = [hold for hold in holds if not self._counts(hold)]
        if stale:
            found = f"step {step.step}: {counted(len(stale), 'hold')} for saves that no longer need its files"
            means = "Nothing is lost. Files stay that could go when the step is deleted."
            heals, file = "sweep takes them out.", f"{step.name}/manifest.json"
            yield Finding("warning", "stale-hold", found, means, heals, (self.cures.sweep(),), step=step.step, file=file)

    def _counts(self, hold: Hold) -> bool:
        """Whether the attempt that holds may yet commit, or its manifest refers to the held files."""
        holders = [each for each in self.look.steps.values() if each.step == hold.step]
        return any(_needs(each, hold) or _needs(self.look.again(each), hold) for each in holders)

    def _pins(self, step: StepFolder) -> Iterator[Finding]:
        record = step.record
        if record and record.pins and not record.manifest and not record.claim:
            found = f"step {step.step}: pinned ({', '.join(sorted(record.pins)[:5])[:200]}), and there is no such step"
            means = "Nothing is lost by it: an interrupted copy has left its pins. The next save of that number would be pinned."
            has_remove = self.look.root.store.has_remove
            command = self.cures.sweep() if has_remove else self.cures.sweep("--empty-records")
            heals = "sweep removes the record." + ("" if has_remove else " While nobody is saving: this store has no other way.")
            yield Finding("warning", "pin-of-no-step", found, means, heals, (command,), step=step.step, file=step.name)

    def _loose(self) -> Iterator[Finding]:
        """Unfinished files that are of no attempt, and what is left of trying the store's conditions: old ones, then others."""
        loose = {upload.key: upload.modified for upload in self.look.uploads if self._is_ours(upload)}
        probes = {name: head.modified for name, head in self.look.files.items() if is_probe(name)}
        for kind, what, signs in (
            ("unfinished-write", "unfinished write of a small file (record, hint)", loose),
            ("probe", "file of a process that died while it tried the store", probes),
        ):
            old = {name: sign for name, sign in signs.items() if self._is_old(sign)}
            for group in filter(None, (old, {name: sign for name, sign in signs.items() if name not in old})):
                found = f"{len(group):,} {what}: {shown(sorted(group), 3)}"
                yield self._judged(Finding("warning", kind, found, "Nothing is lost."), group.values())

    def _is_old(self, sign: float) -> bool:
        return self.cures.grace_s == 0 or self.look.now - sign >= self.cures.grace_s

    def _is_ours(self, upload: Unfinished) -> bool:
        """Whether a sweep would end it: in the run's folder itself, or in that of a step, as its record."""
        above = upload.key.rpartition("/")[0]
        return not above or above in self.look.steps

    @cached_property
    def _referred(self) -> set[str]:
        return {
            entry.origin.attempt
            for each in self.look.steps.values()
            for entry in (each.manifest.files if each.manifest else ())
            if entry.origin
        }


def _needs(holder: StepFolder, hold: Hold) -> bool:
    if holder.trouble is not None:
        return True
    record = holder.record or Record()
    if record.claim and record.claim.attempt == hold.by:
        return True
    return bool(record.manifest and record.manifest.attempt == hold.by and record.manifest.refers_to(hold.attempt))


def _signs(files: Mapping[str, Head | None], uploads: Iterable[Unfinished]) -> list[float]:
    return [each.modified for each in (*files.values(), *uploads) if each]


def _held(files: Mapping[str, Head], uploads: Sequence[Unfinished]) -> str:
    text = f"it has {counted(len(files), 'file')} of {sized(sum(head.nbytes for head in files.values()))}"
    sizes = [upload.nbytes for upload in uploads if upload.nbytes is not None]
    unfinished = f" and {counted(len(uploads), 'unfinished write')}" + (f" of {sized(sum(sizes))}" if sizes else "")
    return text + (unfinished if uploads else "")
