"""The records of a run in their store: read, and changed on condition that they are as they were read.

The law: nothing is ever decided about a step but by `change`, with the version of the record that the decision was made on.
"""

import errno
import itertools
import logging
import random
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ckptmgr.errors import CorruptCheckpointError, FormatVersionError
from ckptmgr.manifest import MANIFEST
from ckptmgr.naming import StepNaming
from ckptmgr.record import Record, decode, encode
from ckptmgr.storage import Answer, Folder, Head, Version

PATIENCE_S = 60.0  # how long an operation tries again before it gives up
FIRST_PAUSE_S = 0.002
LONGEST_PAUSE_S = 1.0

logger = logging.getLogger(__name__)
chance = random.SystemRandom()  # not the shared generator, whose state is the user's


class Found(NamedTuple):
    """The record of a step as it was read. A change on its ``version`` is a decision about exactly this."""

    name: str
    step: int
    record: Record
    version: Version


class Unreadable(NamedTuple):
    """What stands in the place of a step's record and cannot be decoded. Nothing but an explicit wish changes it."""

    name: str
    step: int
    error: CorruptCheckpointError | FormatVersionError
    version: Version


class Snapshot(NamedTuple):
    """All records of a run as they were together at one moment, and the files beside its steps' folders."""

    found: list[Found]
    unreadable: list[Unreadable]
    files: Mapping[str, Head]


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

    Each is as it was at some moment, and not all at the same: see `snapshot`.
    """
    return _sorted_out(_seen(root, naming)[0])


def snapshot(root: Folder, naming: StepNaming) -> Snapshot:
    """All records, as `records` gives them, as they were together at one moment.

    Otherwise, while a save and its retention run, one could miss the newer step, which was not there when the run was
    listed, and the older one too, which has gone when its record is read.
    """
    seen, files = _seen(root, naming)
    for _ in tries():
        if all(isinstance(each, Unreadable) or (each and each.record.manifest) for each in seen.values()):
            break  # all that was listed was there still, so this is the run when it was listed
        before, (seen, files) = seen, _seen(root, naming)
        if _versions(before) == _versions(seen):
            break
    return Snapshot(*_sorted_out(seen), files)


def _seen(root: Folder, naming: StepNaming) -> tuple[dict[str, Found | Unreadable | None], Mapping[str, Head]]:
    files, folders = root.list()
    steps = {name: step for name in folders if (step := naming.parse(name)) is not None}
    return {name: look(root, name, step) for name, step in sorted(steps.items())}, files


def _versions(seen: Mapping[str, Found | Unreadable | None]) -> dict[str, Version | None]:
    return {name: each and each.version for name, each in seen.items()}


def _sorted_out(seen: Mapping[str, Found | Unreadable | None]) -> tuple[list[Found], list[Unreadable]]:
    found = [each for each in seen.values() if isinstance(each, Found)]
    return found, [each for each in seen.values() if isinstance(each, Unreadable)]


def look(root: Folder, name: str, step: int) -> Found | Unreadable | None:
    """What stands in the place of the step's record."""
    folder = root.folder(name)
    try:
        read = folder.read(MANIFEST)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        # Whatever that is, it is no record, and must not keep the run's other steps from being found.
        text = f"the record {folder.location(MANIFEST)!r} is far larger than any record: damaged, or not written by ckptmgr"
        return Unreadable(name, step, CorruptCheckpointError(text, step=step, file=MANIFEST), None)
    if read is None:
        return None
    data, version = read
    try:
        return Found(name, step, decode(data, where=folder.location(MANIFEST), step=step), version)
    except (CorruptCheckpointError, FormatVersionError) as error:
        return Unreadable(name, step, error, version)


def change(folder: Folder, found: Found | Unreadable | None, new: Record) -> Answer:
    """Puts ``new`` in the place of what was found, if that is still there. An empty record is removed, where that can be."""
    if found is None:
        return folder.create(MANIFEST, encode(new))
    if new.is_empty and folder.store.has_remove:
        return folder.remove(MANIFEST, found.version)
    return folder.replace(MANIFEST, encode(new), found.version)


def largest_sequence(root: Folder, naming: StepNaming) -> int:
    """The largest sequence of any manifest as it is now, and at least 0: only adopted steps have less."""
    found, unreadable = records(root, naming)
    for each in unreadable:
        logger.warning("the sequence of the next save leaves out step %d, because %s", each.step, each.error)
    return max([0, *(each.record.manifest.sequence for each in found if each.record.manifest)])


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
