"""How a step appears, changes and goes: every decision is a change of the step's record, on condition that it is as it was read.

The law: whatever crashes, sleeps or loses an answer, a committed step keeps its files until its manifest is out of the
record, and a caller is told of success exactly when it committed. Numbers in comments are sections of
docs/commit.md; `tests/commit_model.py` is the same protocol as a model, and explores it exhaustively.

An attempt is *named* when its record's manifest, claim or holds name it. Its files are live exactly then; an attempt that
is no longer named can never be named again, so anybody may delete its files.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from ckptmgr.deleting import delete_committed, delete_files, delete_keys
from ckptmgr.errors import (
    CheckpointError,
    CommitUnknownError,
    CorruptCheckpointError,
    FormatVersionError,
    SaveError,
    StepExistsError,
    StepNotFoundError,
)
from ckptmgr.ledger import Found, Unreadable, change, changed, gave_up, largest_sequence, look, read_record, tries
from ckptmgr.manifest import MANIFEST, Manifest, folder_name, new_attempt, this_writer
from ckptmgr.naming import StepNaming
from ckptmgr.record import Claim, Hold, Record, decode, encode
from ckptmgr.step import JSON, StepInfo
from ckptmgr.storage import Answer, Folder

logger = logging.getLogger(__name__)
_RELEASES = 8  # tries to take out a hold, before it is left to sweep
_HOLDS = 1000  # in one record, which every save that holds reads and writes


def begin(root: Folder, name: str, step: int, *, overwrite: bool, writer: Mapping[str, JSON] | None = None) -> "Attempt":
    """Claims the step in the folder ``name`` for a new attempt. A claim found there is taken over, alive or dead.

    Raises:
        StepExistsError: the step is committed, and not to be overwritten; nothing was written.
        CorruptCheckpointError: its record cannot be decoded, and is not to be overwritten.
        FormatVersionError: its record was written by a newer ckptmgr.
    """
    me, is_free = new_attempt(), not overwrite
    for number in tries():
        # To create it is to have read that there is none; whether there is, the store says for the same request.
        found = None if is_free and number == 1 else look(root, name, step)  # 4.1
        record = claimable(root, found, overwrite=overwrite)
        claim = record.claim  # 4.2
        if claim and claim.attempt == me:  # by a try whose answer was lost
            return Attempt(root, name, step, claim, overwrite, found if isinstance(found, Found) else None)
        mine = Claim(me, number, this_writer() if writer is None else writer)
        claimed = record.renewed(claim=mine)
        answer, sight = changed(root.folder(name), found, claimed)
        if answer is Answer.OK:
            if claim:
                logger.info("took step %d in %r over from %s", step, root.location(name), _told(claim.writer))
            made = Found(name, step, claimed, sight.version, sight.data) if sight else None
            return Attempt(root, name, step, mine, overwrite, made)
    raise gave_up(root, name, "claimed")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try to save a step. It is claimed, and its files may be written into ``folder``."""

    root: Folder
    name: str
    step: int
    claim: Claim
    overwrite: bool
    found: Found | None = field(default=None, repr=False)  # the record with the claim, where the store has told its version

    @property
    def attempt(self) -> str:
        """The id of this attempt, for its manifest."""
        return self.claim.attempt

    @property
    def folder(self) -> Folder:
        """Where this attempt's files go, under plain names. Nobody else ever writes there."""
        return self.root.folder(self.name).folder(folder_name(self.attempt))

    def commit(
        self,
        naming: StepNaming,
        make_manifest: Manifest | Callable[[int], Manifest],
        *,
        before_delete: Callable[[Manifest], object] = lambda replaced: None,
        instead_of: str | None = None,
    ) -> StepInfo:
        """Makes the step appear, or be replaced, in one moment. To be called once, when all files are durable.

        ``make_manifest`` gets the sequence; a manifest itself has its place in the order of saves already. ``before_delete`` is
        called with a manifest that was replaced, before the files of its attempt are deleted; it must not raise, for the step
        is committed then. After this returns every reader sees the step. If it raises anything but `CommitUnknownError`, the
        step is as it was before, this attempt will never appear, and its files are left to sweep. ``instead_of`` is the attempt
        whose manifest this one must replace, and no other's.

        Raises:
            StepExistsError: another save of the step was faster.
            SaveError: the claim was taken over or swept.
            StepNotFoundError: the manifest of ``instead_of`` is not there any more.
            CommitUnknownError: the store gave no definite answer: look again before retrying.
            OSError: of the store; also where its listing does not show this step's folder.
        """
        if isinstance(make_manifest, Manifest):
            manifest = make_manifest
        else:
            manifest = make_manifest(largest_sequence(self.root, naming, name=self.name, claim=self.claim) + 1)  # 4.5
        if (manifest.step, manifest.attempt) != (self.step, self.attempt):
            raise ValueError(f"the manifest of attempt {manifest.attempt} of step {manifest.step} is not this attempt's")
        # What nobody could read back must not become a step: a file name that a backend gave, for example.
        decode(encode(Record(manifest=manifest)), where=self.folder.location(), step=self.step)
        before, after = self._replace_claim(manifest, instead_of)
        logger.info("committed step %d (sequence %d) in %r", self.step, manifest.sequence, self.folder.location())
        replaced = before.manifest
        if replaced and replaced.attempt not in after.named:  # 4.7
            before_delete(replaced)
            delete_committed(self.root.folder(self.name), replaced)
        if replaced:
            release(self.root, replaced)
        return manifest.info(after.pins, name=self.name, path=self.folder.location())

    @contextmanager
    def undone_if_it_fails(self) -> Iterator[None]:
        """Abandons the attempt if what is done inside, its commit included, fails; what is committed stays."""
        try:
            yield
        except (CommitUnknownError, SaveError, StepExistsError):  # others are at work: the files are left to sweep
            raise
        except BaseException:  # Ctrl-C too: what is not committed now is of no use to anybody
            self.abandon()
            raise

    def abandon(self) -> None:
        """Takes the claim back and deletes the files, unless they are committed: for a save that was refused or interrupted.

        It is a sweep of this attempt alone (5.5b and d), by the one who knows that it is dead. What cannot be done now is
        left to sweep; nothing is raised, so that the error that ended the save is the one that is told.
        """
        folder = self.root.folder(self.name)
        try:
            found = read_record(self.root, self.name, self.step)
            record = found.record if found else Record()
            if found and self._is_mine(record.claim):
                unclaimed = record.renewed(claim=None)
                record = unclaimed if change(folder, found, unclaimed) is Answer.OK else record
            if self.attempt not in record.named:
                delete_files(folder, self.attempt)
        except (OSError, CorruptCheckpointError, FormatVersionError) as error:
            logger.warning("the leavings of a failed save in %r are left to sweep: %s", self.folder.location(), error)

    def _replace_claim(self, manifest: Manifest, instead_of: str | None) -> tuple[Record, Record]:
        """4.6: the record with my claim, and the one with my manifest that has replaced it."""
        before, doubtful = Record(), False
        found = self.found or read_record(self.root, self.name, self.step)
        for _ in tries():
            record = found.record if found else Record()
            if record.manifest and record.manifest.attempt == self.attempt:
                return before, record  # a
            if not self._is_mine(record.claim):
                raise self._lost(record, doubtful=doubtful)  # c
            if instead_of and (record.manifest is None or record.manifest.attempt != instead_of):
                text = f"step {self.step} in {self.root.location(self.name)!r} was deleted meanwhile: nothing was committed"
                raise StepNotFoundError(text, step=self.step)
            before, after = record, record.renewed(manifest=manifest, claim=None)  # b, or the first time
            answer = self._try(found, after, doubtful=doubtful)
            if answer is Answer.OK:
                return before, after
            doubtful = doubtful or answer is Answer.LOST
            found = self._read_back()
        if doubtful:
            raise self._unknown()
        raise SaveError(f"{gave_up(self.root, self.name, 'committed')}: nothing was saved", step=self.step)

    def _is_mine(self, claim: Claim | None) -> bool:
        # The number too: a create of an earlier try that arrives late must not revive a claim that was swept.
        return claim is not None and (claim.attempt, claim.number) == (self.claim.attempt, self.claim.number)

    def _try(self, found: Found | None, after: Record, *, doubtful: bool) -> Answer:
        try:
            return change(self.root.folder(self.name), found, after)
        except OSError as error:  # nothing was changed by this call, but an earlier one may yet arrive
            if doubtful:
                raise self._unknown() from error
            raise

    def _read_back(self) -> Found | None:
        trouble: Exception | None = None
        for _ in tries():
            try:
                return read_record(self.root, self.name, self.step)
            except (OSError, CorruptCheckpointError, FormatVersionError) as error:
                trouble = error
        raise self._unknown() from trouble  # d

    def _lost(self, record: Record, *, doubtful: bool) -> Exception:
        """The error of an attempt that can never commit any more."""
        if doubtful:
            return self._unknown()
        where, other = f"step {self.step} in {self.root.location(self.name)!r}", record.claim
        if record.manifest and not other:
            theirs = record.manifest
            text = f"{where} was committed by {_told(theirs.writer)} while this save wrote its files; its own were not committed"
            return StepExistsError(f"{text}: save {'it again' if self.overwrite else 'another step'}", step=self.step)
        if other:
            text = f"{where} was taken over by {_told(other.writer)}; nothing was committed here"
            error = StepExistsError if record.manifest else SaveError
            return error(f"{text}: let only one process save a step", step=self.step)
        text = f"the claim of {where} is gone: swept or deleted by somebody; nothing was committed"
        return SaveError(f"{text}: save again, and sweep with a grace period longer than a save takes", step=self.step)

    def _unknown(self) -> CommitUnknownError:
        text = f"the store gave no definite answer to the commit of step {self.step} in {self.root.location(self.name)!r}"
        return CommitUnknownError(f"{text}: it may or may not be committed; look for it before saving it again", step=self.step)


def delete(
    root: Folder,
    name: str,
    step: int,
    *,
    corrupt_ok: bool = False,
    found: Found | Unreadable | None = None,
    seen: StepInfo | None = None,
) -> bool:
    """Takes the step's manifest out of its record, then deletes its files. False if there was no such step.

    With ``corrupt_ok`` a record that cannot be decoded is removed too, and its files are left to sweep. ``found`` is the
    record as it has just been read, if it has been. With ``seen`` only that attempt goes, with these pins.

    Raises:
        CheckpointError: it is another attempt now, or has other pins; it stays.
        CorruptCheckpointError, FormatVersionError: the record cannot be decoded; nothing was changed.
    """
    existed = False
    for number in tries():  # 5.2
        found = found if found and number == 1 else look(root, name, step)
        if isinstance(found, Unreadable):
            if not corrupt_ok:
                raise _advised(found)
            answer = _remove_unreadable(root, found)
        elif found is None or found.record.manifest is None:
            return existed  # and its files, if it was there, are left to sweep
        elif seen and (found.record.manifest.attempt, found.record.pins) != (seen.attempt, seen.pins):
            raise CheckpointError(f"step {step} in {root.location(name)!r} was changed meanwhile, and stays: look at it again")
        else:
            answer = drop(root, found)
        if answer is Answer.OK:
            return True
        existed = True
    raise gave_up(root, name, "deleted")


def collect(root: Folder, victims: Iterable[Found]) -> list[Found]:
    """Deletes steps that were decided on in exactly these versions of their records; gives those that are gone.

    A record that has changed since, or whose change got no definite answer, is left for the next time.
    """
    dead: list[str] = []
    try:
        return [found for found in victims if drop(root, found, later=dead) is Answer.OK]  # 5.3
    finally:
        delete_keys(root, dead)  # of all at once, where a store has a request for that


def drop(root: Folder, found: Found, *, later: list[str] | None = None) -> Answer:
    """Takes the manifest out of exactly this version of the record, and only after a definite ok deletes its files.

    Those that may go at any time after this are put into ``later``, if that is given.
    """
    folder, manifest = root.folder(found.name), found.record.manifest
    after = found.record.renewed(manifest=None, pins=frozenset())
    answer = change(folder, found, after)
    if manifest and answer is Answer.OK:
        logger.info("deleted step %d (sequence %d) in %r", found.step, manifest.sequence, folder.location())
        if manifest.attempt not in after.named:
            delete_committed(folder, manifest, later=later)
        release(root, manifest)
    return answer


def pin(root: Folder, name: str, step: int, pin: str, *, found: Found | None = None) -> None:
    """Adds a pin. Once this returns, no retention that has not seen it removes the step. ``found`` is as for `delete`.

    Raises:
        StepNotFoundError: no such step.
        ValueError: the name is empty, or has characters that cannot be shown.
    """
    if not pin or not pin.isprintable() or len(pin) > 255:
        raise ValueError(f"a pin needs a name of 1 to 255 characters that can be shown, not {pin!r}")
    _change_pins(root, name, step, lambda pins: pins | {pin}, found)


def unpin(root: Folder, name: str, step: int, pin: str, *, found: Found | None = None) -> None:
    """Takes a pin out; one that is not there is fine. Raises StepNotFoundError."""
    _change_pins(root, name, step, lambda pins: pins - {pin}, found)


def hold(root: Folder, name: str, step: int, attempt: str, by: Attempt) -> bool:
    """Keeps the files of an attempt of another step for the attempt ``by``, which may then refer to them if this is true.

    False if nothing names the attempt any more, or only a claim: it may have no files, and never any again. And if the record
    has so many holds that another would cost more than files that are written now and then.
    """
    for _ in tries():  # 4.3
        found = look(root, name, step)
        if not isinstance(found, Found) or attempt not in _held(found.record) or len(found.record.holds) >= _HOLDS:
            return False
        holds = found.record.holds | {Hold(attempt, by.step, by.attempt)}
        if holds == found.record.holds or change(root.folder(name), found, found.record.renewed(holds=holds)) is Answer.OK:
            return True
    raise gave_up(root, name, "held")


def release(root: Folder, manifest: Manifest) -> None:
    """Takes out the holds of a manifest that is out of its record for certain, and deletes files that nothing else holds.

    It is a sweep of these holds alone (5.5c and d), by the one who knows that they are of no use. What cannot be done now is left
    to sweep; nothing is raised, because the step is gone or replaced all the same.
    """
    origins = [entry.origin for entry in manifest.files if entry.origin]
    for name, step, attempt in sorted({(origin.home, origin.step, origin.attempt) for origin in origins}):
        try:
            _release(root, name, step, Hold(attempt, manifest.step, manifest.attempt))
        except OSError as error:
            logger.warning("files of step %d that are held for step %d are left to sweep: %s", step, manifest.step, error)


def _release(root: Folder, name: str, step: int, hold: Hold) -> None:
    for _ in range(_RELEASES):
        found = look(root, name, step)
        if not isinstance(found, Found) or hold not in found.record.holds:
            return
        after = found.record.renewed(holds=found.record.holds - {hold})
        if change(root.folder(name), found, after) is Answer.OK:
            if hold.attempt not in after.named:
                delete_files(root.folder(name), hold.attempt)
            return


def _held(record: Record) -> set[str]:
    """The attempts whose files are whole and stay as they are while the record is not changed."""
    own = {record.manifest.attempt} if record.manifest else set()
    return own | {hold.attempt for hold in record.holds}


def claimable(root: Folder, found: Found | Unreadable | None, *, overwrite: bool) -> Record:
    """The record that a new claim goes into. Raises if the step must not be saved."""
    if isinstance(found, Unreadable):
        if not overwrite or isinstance(found.error, FormatVersionError):
            raise _advised(found)
        logger.warning("the record of step %d is overwritten, with its pins: %s", found.step, found.error)
        return Record()
    record = found.record if found else Record()
    if found and record.manifest and not overwrite:
        text = f"step {found.step} is committed already in {root.location(found.name)!r} by {_told(record.manifest.writer)}"
        raise StepExistsError(f"{text}: pass overwrite=True, or save another step", step=found.step)
    return record


def _remove_unreadable(root: Folder, found: Unreadable) -> Answer:
    if isinstance(found.error, FormatVersionError):
        raise found.error
    answer = change(root.folder(found.name), found, Record())
    if answer is Answer.OK:
        logger.warning("removed the record of step %d; its files are left to sweep: %s", found.step, found.error)
    return answer


def _change_pins(
    root: Folder, name: str, step: int, edit: Callable[[frozenset[str]], frozenset[str]], known: Found | None
) -> None:
    for number in tries():  # 5.4
        found = known if known and number == 1 else read_record(root, name, step)
        if found is None or found.record.manifest is None:
            raise StepNotFoundError(f"step {step} is not in {root.location(name)!r}: it was never saved, or deleted", step=step)
        pins = edit(found.record.pins)
        if pins == found.record.pins or change(root.folder(name), found, found.record.renewed(pins=pins)) is Answer.OK:
            return
    raise gave_up(root, name, "changed")


def _advised(found: Unreadable) -> Exception:
    if isinstance(found.error, FormatVersionError):
        return found.error
    text = f"{found.error}; to be rid of it, delete the step or save it with overwrite=True"
    return CorruptCheckpointError(text, step=found.step, file=MANIFEST)


def _told(writer: Mapping[str, JSON]) -> str:
    return f"process {writer.get('pid')} on {writer.get('host')} (ckptmgr {writer.get('ckptmgr')})"
