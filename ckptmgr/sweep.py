"""Removing what interrupted saves and deletions left in a run.

The law: only files of attempts that their step's record does not name, and no manifest refers to, are deleted. Such an
attempt can never be named again, so it makes no difference who else is at work. The grace period spares what looks dead
and is not: a save that has not been heard of for a while, and a run that somebody is copying into place with its records last.

Letters in comments are those of section 5.5 of docs/commit.md.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ckptmgr.deleting import files_below
from ckptmgr.ledger import Found, Unreadable, change, look, records
from ckptmgr.manifest import MANIFEST, folder_name, parse_attempt
from ckptmgr.naming import StepNaming
from ckptmgr.record import Hold, Record
from ckptmgr.sighting import MOST
from ckptmgr.storage import Answer, Folder, Head, Upload, is_marking
from ckptmgr.storage.weak import is_probe

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep removed, and what it left for a person to look at.

    ``foreign`` has the places of files and folders in steps that are not of our grammar; ``unreadable`` the steps whose
    record cannot be decoded, which are left as they are.
    """

    files: int = 0
    nbytes: int = 0
    claims: int = 0
    uploads: int = 0
    foreign: tuple[str, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()

    def __add__(self, other: "Swept") -> "Swept":
        return Swept(
            self.files + other.files,
            self.nbytes + other.nbytes,
            self.claims + other.claims,
            self.uploads + other.uploads,
            self.foreign + other.foreign,
            self.unreadable + other.unreadable,
        )


def sweep(root: Folder, naming: StepNaming, *, grace_s: float, empty_records: bool = False, is_dry: bool = False) -> Swept:
    """Removes claims, files and unfinished uploads of saves that showed no sign of life for ``grace_s`` seconds.

    Committed steps, foreign files and saves in progress are not touched; but with ``grace_s`` 0 every claim counts as
    dead, and a save in progress fails with `SaveError`. ``empty_records`` also deletes the empty records that a store
    without conditional remove keeps; only when nobody is saving. With ``is_dry`` nothing is changed, and this is what would be
    removed now, by the clock of this machine: some stores touch a file to tell theirs.

    Raises:
        ValueError: a negative or undefined grace period.
    """
    if not grace_s >= 0:
        raise ValueError(f"a grace period is 0 seconds or more, not {grace_s}")
    now = time.time() if is_dry else root.store.now()  # before anything is looked at: what changes from here on is alive
    uploads, looked = root.uploads(), _looked_at(root, naming)
    sweeper = _Sweeper(root, naming, now, grace_s, uploads, empty_records, looked.listed, looked.seen, is_dry)
    done, dead = sweeper.abort(sweeper.uploads_at([])), []
    done += sweeper.sweep_probes(looked.files)
    for name in sorted({*looked.folders, *sweeper.begun}):
        if (step := naming.parse(name)) is not None:
            swept, unnamed = sweeper.sweep_step(name, step)
            done += swept
            dead += unnamed
    done += sweeper.delete(dead)
    for entry in done.unreadable:
        logger.warning("sweep leaves step %d as it is, because %s", entry.step, entry.error)
    return done


class _Dead(NamedTuple):
    """An attempt that its record does not name, and its files."""

    name: str
    attempt: str
    files: Mapping[str, Head]


class _Listed(NamedTuple):
    """The files of each attempt in a step's folder, and the places of what is not of our grammar."""

    files: Mapping[str, Mapping[str, Head]]
    foreign: tuple[str, ...]


class _Looked(NamedTuple):
    """A look at a run: its own files and folders, and where that takes few requests all steps, and their records after that."""

    files: Mapping[str, Head]
    folders: Iterable[str]
    listed: Mapping[str, _Listed] | None = None
    seen: Mapping[str, Found | Unreadable] = {}


@dataclass(frozen=True)
class _Sweeper:
    root: Folder
    naming: StepNaming
    now: float
    grace_s: float
    uploads: Sequence[Upload]
    empty_records: bool
    listed: Mapping[str, _Listed] | None  # all steps, where the store lists them at once,
    seen: Mapping[str, Found | Unreadable]  # and the records as they were after that
    is_dry: bool = False  # whether nothing may be changed

    def sweep_step(self, name: str, step: int) -> tuple[Swept, list[_Dead]]:
        """Settles the record; gives what was done, and the attempts that it does not name."""
        folder = self.root.folder(name)
        # a: the files first, the record second
        listed, foreign = _listed(folder) if self.listed is None else self.listed.get(name, _Listed({}, ()))
        files = {**{attempt: {} for attempt in self.begun.get(name, ())}, **listed}
        found = self._look(name, step, is_needed=bool(files or foreign))
        if isinstance(found, Unreadable):
            return Swept(foreign=foreign, unreadable=(found,)), []
        if found is None and not files and foreign:
            return Swept(foreign=(folder.location(),)), []
        record = found.record if found else Record()
        kept = self._kept(name, record, files)
        if found and not self._settle(folder, found, kept):
            return Swept(foreign=foreign), []
        done = Swept(claims=int(kept.claim != record.claim), foreign=foreign)
        done += self.abort(self.uploads_at([name]))  # of a record
        if kept.is_empty:
            self._remove([f"{name}/"])  # the folder, if nothing is left in it
        return done, [_Dead(name, attempt, files[attempt]) for attempt in sorted(files.keys() - kept.named)]

    def delete(self, attempts: Sequence[_Dead]) -> Swept:
        """Deletes their files, but for those that a step refers to."""
        done, keys = Swept(), list[str]()
        referred = self._referred() if attempts else set()
        for name, attempt, files in attempts:
            if attempt in referred or not self._is_dead(self._signs(name, attempt, files)):  # d
                continue
            place = folder_name(attempt)
            done += self.abort(self.uploads_at([name, place]))  # e
            keys += [*(f"{name}/{place}/{file}" for file in files), f"{name}/{place}/"]
            if not self.is_dry:
                logger.info("swept %d files of attempt %s in %r", len(files), attempt, self.root.location(name))
            done += Swept(len(files), sum(head.nbytes for head in files.values()))
        self._remove(keys)
        return done

    @cached_property
    def begun(self) -> Mapping[str, set[str]]:
        """Attempts with unfinished uploads, by their step's folder: there may be no other sign of them."""
        found: dict[str, set[str]] = {}
        for upload in self.uploads:
            match upload.key.removeprefix(self.root.prefix).split("/"):
                case [name, folder, _] if attempt := parse_attempt(folder):
                    found.setdefault(name, set()).add(attempt)
        return found

    def sweep_probes(self, files: Mapping[str, Head]) -> Swept:
        """What a process that died left of its first question to the store."""
        dead = [name for name, head in files.items() if is_probe(name) and self._is_dead([head.modified])]
        self._remove(dead)
        return Swept(len(dead), sum(files[name].nbytes for name in dead))

    def uploads_at(self, place: Sequence[str]) -> list[Upload]:
        """Unfinished uploads of files directly in that folder below the root."""
        prefix = "".join(f"{name}/" for name in [self.root.prefix.removesuffix("/"), *place] if name)
        return [upload for upload in self.uploads if upload.key.rpartition("/")[0] == prefix.removesuffix("/")]

    def abort(self, uploads: Iterable[Upload]) -> Swept:
        dead = [upload for upload in uploads if self._is_dead([upload.modified])]
        for upload in () if self.is_dry else dead:
            self.root.store.abort(upload)
        return Swept(uploads=len(dead))

    def _remove(self, names: Sequence[str]) -> None:
        if names and not self.is_dry:
            self.root.delete(names)

    def _kept(self, name: str, record: Record, files: Mapping[str, Mapping[str, Head]]) -> Record:
        """The record without a stale claim and without holds that nobody needs; both go in one change."""
        claim = record.claim
        if claim and self._is_dead(self._signs(name, claim.attempt, files.get(claim.attempt, {}), with_record=True)):  # b
            claim = None
        holders: dict[int | None, list[str]] = {}
        for each in self.root.list().folders if record.holds else ():  # anew: a holder may have come after this sweep began
            holders.setdefault(self.naming.parse(each), []).append(each)
        holds = frozenset(hold for hold in record.holds if self._counts(hold, holders.get(hold.step, ())))  # c
        return record if (claim, holds) == (record.claim, record.holds) else record.renewed(claim=claim, holds=holds)

    def _settle(self, folder: Folder, found: Found, kept: Record) -> bool:
        """Whether the record is now ``kept``; if not, the step is left until the next time."""
        is_gone = kept.is_empty and folder.store.has_remove
        if self.is_dry:
            return True
        if (kept is not found.record or is_gone) and change(folder, found, kept) is not Answer.OK:
            return False
        if kept.is_empty and not is_gone and self.empty_records:
            folder.delete([MANIFEST])
        return True

    def _counts(self, hold: Hold, names: Iterable[str]) -> bool:
        """Whether the attempt that holds may yet commit, or its manifest refers to the held files; ``names`` are its step's."""
        for name in names:
            found = look(self.root, name, hold.step)
            if isinstance(found, Unreadable):
                return True
            claim, manifest = (found.record.claim, found.record.manifest) if found else (None, None)
            if claim and claim.attempt == hold.by:
                return True
            if manifest and manifest.attempt == hold.by and manifest.refers_to(hold.attempt):
                return True
        return False

    def _look(self, name: str, step: int, *, is_needed: bool) -> Found | Unreadable | None:
        if self.listed is None or (name not in self.seen and (is_needed or self.empty_records)):
            return look(self.root, name, step)
        return self.seen.get(name)

    def _referred(self) -> set[str]:
        """The attempts whose files steps refer to, also where no hold keeps them: the record that had it was lost, or damaged."""
        found, _ = records(self.root, self.naming)
        manifests = [each.record.manifest for each in found if each.record.manifest]
        return {entry.origin.attempt for manifest in manifests for entry in manifest.files if entry.origin}

    def _signs(self, name: str, attempt: str, files: Mapping[str, Head], *, with_record: bool = False) -> list[float]:
        """When an attempt last showed that it lives, by each of its signs."""
        heads = [*files.values(), *([self.root.folder(name).head(MANIFEST)] if with_record else [])]
        uploads = self.uploads_at([name, folder_name(attempt)])
        return [*(head.modified for head in heads if head), *(upload.modified for upload in uploads)]

    def _is_dead(self, signs: Iterable[float]) -> bool:
        return self.grace_s == 0 or all(self.now - sign >= self.grace_s for sign in signs)


def _listed(folder: Folder) -> _Listed:
    listing = folder.list()
    attempts = {attempt: name for name in listing.folders if (attempt := parse_attempt(name))}
    others = [*(name for name in listing.files if name != MANIFEST), *(set(listing.folders) - set(attempts.values()))]
    files = {attempt: files_below(folder.folder(name)) for attempt, name in attempts.items()}
    return _Listed(files, tuple(folder.location(name) for name in sorted(others)))


def _looked_at(root: Folder, naming: StepNaming) -> _Looked:
    """Looks at the run; at all steps together if the store can."""
    below = root.store.below(root.prefix, most=MOST) if is_marking(root.store) else None
    if below is None:
        return _Looked(*root.list())
    own: dict[str, Head] = {}
    files: dict[str, dict[str, dict[str, Head]]] = {}
    foreign: dict[str, set[str]] = {}
    for path, file in below.items():
        name, slash, rest = path.partition("/")
        if not slash:
            own[name] = Head(file.nbytes, file.modified)
            continue
        first, _, inner = rest.partition("/")
        attempt = parse_attempt(first)
        attempts, others = files.setdefault(name, {}), foreign.setdefault(name, set())
        if attempt and inner:
            attempts.setdefault(attempt, {})[inner] = Head(file.nbytes, file.modified)
        elif first and not attempt and rest != MANIFEST:  # else an object that stands for the folder
            others.add(root.folder(name).location(first))
    found, unreadable = records(root, naming)
    seen: dict[str, Found | Unreadable] = {each.name: each for each in found}
    seen.update((each.name, each) for each in unreadable)
    return _Looked(own, files, {name: _Listed(files[name], tuple(sorted(foreign[name]))) for name in files}, seen)
