"""The records of a run in their store: read, and changed on condition that they are as they were read.

The law: nothing is ever decided about a step but by `change`, with the version of the record that the decision was made on.

A listing looks at every record each time. What it remembers of the last one saves work and never an answer: a record is
decoded again only if its bytes are others, and read again unless its store proves that it has not changed: by its status
(`RereadingStore`), or by the mark that it has in a listing made now (`MarkingStore`). Either is as good as a read of that moment.
"""

import errno
import itertools
import logging
import random
import time
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

from ckptmgr import garbage
from ckptmgr.errors import CheckpointError, CorruptCheckpointError, FormatVersionError, UnsafeCheckpointError
from ckptmgr.manifest import MANIFEST, parse_attempt
from ckptmgr.naming import StepNaming
from ckptmgr.record import Claim, Record, decode, encode
from ckptmgr.sighting import Scan, is_emptied, put, scanned, sight_of
from ckptmgr.storage import Answer, Folder, Head, Sight, Store, Version, is_local

PATIENCE_S = 60.0  # how long an operation tries again before it gives up
FIRST_PAUSE_S = 0.002
LONGEST_PAUSE_S = 1.0

logger = logging.getLogger(__name__)
chance = random.SystemRandom()  # not the shared generator, whose state is the user's


class Found(NamedTuple):
    """The record of a step as it was read. A change on its ``version`` is a decision about exactly this.

    ``is_listed``: it was read as those of a listing are, without the checks that `check` makes up for.
    """

    name: str
    step: int
    record: Record
    version: Version
    data: bytes = b""
    is_listed: bool = True


class Unreadable(NamedTuple):
    """What stands in the place of a step's record and cannot be decoded. Nothing but an explicit wish changes it.

    Or what stands in the place of a step and is not followed: a link, which nothing changes.
    """

    name: str
    step: int
    error: CorruptCheckpointError | FormatVersionError | UnsafeCheckpointError
    version: Version

    @property
    def is_unread(self) -> bool:
        """Whether nothing is known of its bytes: the store did not let them be read, or a link is not followed."""
        return isinstance(self.error, UnsafeCheckpointError) or isinstance(self.error.__cause__, OSError)


class Snapshot(NamedTuple):
    """All records of a run as they were together at one moment, and the files and folders beside its steps' folders.

    A folder that only a claim makes a step's is among them: of what was there before, nothing has been replaced yet. ``links``
    are symbolic links in the run's folder, which are as good as absent.
    """

    found: list[Found]
    unreadable: list[Unreadable]
    files: Mapping[str, Head]
    folders: Collection[str] = ()
    links: Sequence[str] = ()


def read_record(root: Folder, name: str, step: int) -> Found | None:
    """The record of the step in the folder ``name``, or None if there is none. It may be without a manifest.

    Raises:
        CorruptCheckpointError, FormatVersionError: what is there cannot be decoded, or is the record of another step.
    """
    found = look(root, name, step)
    if isinstance(found, Unreadable):
        raise found.error
    return found


def records(root: Folder, naming: StepNaming) -> tuple[list[Found], list[Unreadable]]:
    """All records of the run: those that can be decoded, in the order of their names, and what cannot.

    Each is as it was at some moment, and not all at the same: see `snapshot`. The lists are not to be changed.
    """
    reading, _ = _read(root, naming)
    return reading.found, reading.unreadable


def snapshot(root: Folder, naming: StepNaming, *, has_closed: bool = False) -> Snapshot:
    """All records, as `records` gives them, as they were together at one moment.

    With ``has_closed`` a record that the store does not let be read is one of those that cannot be decoded, and no error.

    Otherwise, while a save and its retention run, one could miss the newer step, which was not there when the run was
    listed, and the older one too, which has gone when its record is read.
    """
    reading, scan = _read(root, naming, has_closed=has_closed)
    for _ in tries():
        # All that was listed was there still, or nothing has changed since a look before: so this is the run at one moment.
        # But while pages came, a step that had come since that look may have gone for another, and both be missed.
        if scan.is_moment and (scan.is_unchanged or reading.has_all):
            break
        before, (reading, scan) = reading, _read(root, naming, has_closed=has_closed)
        if _versions(before) == _versions(reading):
            break
    return Snapshot(reading.found, reading.unreadable, scan.files, _beside(reading, scan.folders), scan.links)


def _beside(reading: "_Reading", folders: Collection[str]) -> list[str]:
    """The folders that hold no step of ours, and never did."""
    claimed = {found.name for found in reading.found if found.record.claim and not found.record.manifest}
    # A record that was emptied has a sight, and nothing that could be made of it.
    held = {name for name, sight in zip(reading.names, reading.sights, strict=True) if sight is not None}
    held |= {each.name for each in reading.unreadable}
    return [name for name in folders if name not in held or name in claimed]


class _Reading(NamedTuple):
    """One look at all records of a run: what was seen under each name, in the order of names, and what it says."""

    names: list[str]
    sights: list[Sight | None]
    seen: dict[str, Found | Unreadable | None]
    found: list[Found]
    unreadable: list[Unreadable]
    has_all: bool  # each name has a manifest, or what cannot be decoded


# The last look at each run. They are never changed, and a reading in which nothing is new is the last one itself.
_last: WeakKeyDictionary[Store, dict[tuple[str, StepNaming], _Reading]] = WeakKeyDictionary()


def _read(root: Folder, naming: StepNaming, *, has_closed: bool = False) -> tuple[_Reading, Scan]:
    runs = _last.setdefault(root.store, {})
    earlier = runs.get((root.prefix, naming))
    last = earlier or _Reading([], [], {}, [], [], True)
    known = {name: sight for name, sight in zip(last.names, last.sights, strict=True) if sight}
    scan = scanned(root, lambda name: name in last.seen or naming.parse(name) is not None, known if earlier else None)
    names, sights = scan.names, scan.sights
    # Errors are made anew each time, for those who raise them. Comparing takes no time where all is the very same.
    if not last.unreadable and (names, sights) == (last.names, last.sights):
        return last, scan
    seen: dict[str, Found | Unreadable | None] = {}
    for name, sight in zip(names, sights, strict=True):
        old = last.seen.get(name)
        if isinstance(old, Found) and sight == known.get(name):
            seen[name] = old
        elif has_closed and isinstance(sight, OSError) and sight.errno != errno.EFBIG:
            seen[name] = closed(root, f"{name}/{MANIFEST}", naming.parse(name) or 0, sight)
        else:
            seen[name] = _understood(root, name, naming.parse(name) or 0, sight, is_listed=True)
    found = [each for each in seen.values() if isinstance(each, Found)]
    unreadable = [each for each in seen.values() if isinstance(each, Unreadable)]
    has_all = len(unreadable) + sum(each.record.manifest is not None for each in found) == len(seen)
    kept = [sight if isinstance(sight, Sight) else None for sight in sights]
    runs[root.prefix, naming] = reading = _Reading(names, kept, seen, found, unreadable, has_all)
    return reading, scan


def _versions(reading: _Reading) -> dict[str, Version | None]:
    return {name: each and each.version for name, each in reading.seen.items()}


def check(root: Folder, found: Found) -> None:
    """Checks what a listing leaves out. Raises CorruptCheckpointError."""
    if found.is_listed:
        decode(found.data, where=root.location(f"{found.name}/{MANIFEST}"), step=found.step)


def look(root: Folder, name: str, step: int) -> Found | Unreadable | None:
    """What stands in the place of the step's record."""
    return _understood(root, name, step, sight_of(root, name))


def _understood(
    root: Folder, name: str, step: int, sight: Sight | OSError | None, *, is_listed: bool = False, is_second: bool = False
) -> Found | Unreadable | None:
    """What the bytes of a record say, or the error that came instead of them. Raises any other error than that of its size.

    Bytes that have come damaged from a store that is not local are read once more.
    """
    if sight is None or (isinstance(sight, Sight) and is_emptied(sight)):
        return None
    where = root.location(f"{name}/{MANIFEST}")
    if isinstance(sight, OSError):
        if sight.errno != errno.EFBIG:
            raise sight
        # Whatever that is, it is no record, and must not keep the run's other steps from being found.
        text = f"the record {where!r} is far larger than any record: damaged, or not written by ckptmgr"
        return Unreadable(name, step, CorruptCheckpointError(text, step=step, file=MANIFEST), None)
    try:
        record = decode(sight.data, where=where, step=step, is_listed=is_listed)
        return Found(name, step, record, sight.version, sight.data, is_listed)
    except (CorruptCheckpointError, FormatVersionError) as error:
        if is_second or is_local(root.store):
            return Unreadable(name, step, error, sight.version)
    return _understood(root, name, step, sight_of(root, name), is_listed=is_listed, is_second=True)


def closed(root: Folder, path: str, step: int, error: OSError) -> Unreadable:
    """What stands in the place of a step that the store does not let be read; ``path`` is the folder or file that is closed."""
    text = f"{root.location(path)!r} (step {step}) cannot be read: {error.strerror or error}"
    unread = CorruptCheckpointError(text, step=step, file=path.rpartition("/")[2])
    unread.__cause__ = error
    return Unreadable(path.partition("/")[0], step, unread, None)


def change(folder: Folder, found: Found | Unreadable | None, new: Record) -> Answer:
    """Puts ``new`` in the place of what was found, if that is still there. An empty record is removed, where that can be."""
    return changed(folder, found, new)[0]


def changed(folder: Folder, found: Found | Unreadable | None, new: Record) -> tuple[Answer, Sight | None]:
    """Does what `change` does; gives what lies there since, too, if that was done and the store tells its version."""
    try:
        if found and new.is_empty and folder.store.has_remove:
            return folder.remove(MANIFEST, found.version), None
        return put(folder, encode(new), found and found.version)
    except KeyboardInterrupt as error:
        # If it came between two lines of contextlib, the frames hold a generator, and that the lock, as long as the error lives.
        traceback.clear_frames(error.__traceback__)
        raise


@garbage.later()
def largest_sequence(root: Folder, naming: StepNaming, *, name: str = "", claim: Claim | None = None) -> int:
    """The largest sequence of any manifest as it is now, and at least 0: only adopted steps have less.

    Raises:
        CheckpointError: this is the folder of one step, and no run.
        OSError: the listing does not show the folder ``name``, whose record has that claim: no reader would find that step.
    """
    reading, scan = _read(root, naming)
    check_is_run(root, scan.files, scan.folders)
    if claim and not reading.seen.get(name):
        now = look(root, name, naming.parse(name) or 0)
        if isinstance(now, Found) and now.record.claim == claim:
            text = "its listing does not show what was just put there: it is late, or takes the name for another one"
            raise OSError(errno.EIO, f"{text}; nothing was committed", root.location(name))
    for each in reading.unreadable:
        logger.warning("the sequence of the next save leaves out step %d, because %s", each.step, each.error)
    return max([0, *(each.record.manifest.sequence for each in reading.found if each.record.manifest)])


def check_is_run(root: Folder, files: Collection[str], folders: Collection[str]) -> None:
    """Raises CheckpointError if the folder, which holds these, is that of one step: it would get steps of its own inside."""
    if MANIFEST in files and any(map(parse_attempt, folders)):
        place = root.location()
        raise CheckpointError(f"{place!r} is the folder of one step, and no run: give the folder of the run, which is around it")


def tries() -> Iterator[int]:
    """1, 2, 3, ... with a pause before each but the first, longer each time, until `PATIENCE_S` are over."""
    deadline, pause_s = time.monotonic() + PATIENCE_S, FIRST_PAUSE_S
    for number in itertools.count(1):
        yield number
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return
        time.sleep(min(left_s, pause_s * chance.random()))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def gave_up(root: Folder, name: str, what: str) -> TimeoutError:
    """The error of an operation whose tries are over."""
    text = f"the record of {root.location(name)!r} could not be {what} within {PATIENCE_S:g} s"
    return TimeoutError(f"{text}: others change it all the time, or the store does not answer")
