"""What really happened in a race: every change of every record, put in order by the versions it was made on, and the laws.

Each change of a record names the version that it replaces, and every version is written once. So the log of those who
took part, in whatever order it was written, is a chain of changes for every life of a record.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from interleaving import Violation, decoded, order
from stores import WrappedStore

from ckptmgr.manifest import MANIFEST, Manifest
from ckptmgr.record import Record
from ckptmgr.storage import Answer


@dataclass
class Event:
    """A change of a record (``old`` and ``new`` are its texts), or what a caller was told about an attempt."""

    why: str
    began: float
    ended: float = 0.0
    key: str = ""
    old: str | None = None
    new: str | None = None
    answer: str = ""
    attempt: str | None = None

    @property
    def before(self) -> Record:
        return decoded(self.old.encode()) if self.old else Record()

    @property
    def after(self) -> Record:
        return decoded(self.new.encode()) if self.new else Record()


@dataclass
class Log:
    events: list[Event] = field(default_factory=list)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps([asdict(event) for event in self.events]))

    def load(self, path: Path) -> None:
        self.events += [Event(**fields) for fields in json.loads(path.read_text())]


class LoggingStore(WrappedStore):
    """Notes every conditional call on a record. ``why`` is what the caller is doing."""

    def __init__(self, inner: Any, log: Log) -> None:
        super().__init__(inner)
        self.log, self.why = log, ""

    def create(self, key: str, data: bytes) -> Answer:
        return self.note(key, None, data, lambda: self.inner.create(key, data))

    def replace(self, key: str, data: bytes, version: bytes) -> Answer:
        return self.note(key, version, data, lambda: self.inner.replace(key, data, version))

    def remove(self, key: str, version: bytes) -> Answer:
        return self.note(key, version, None, lambda: self.inner.remove(key, version))

    def note(self, key: str, old: bytes | None, new: bytes | None, call: Callable[[], Answer]) -> Answer:
        event = Event(self.why, time.monotonic(), key=key, old=old and old.decode(), new=new and new.decode())
        answer = call()
        event.ended, event.answer = time.monotonic(), answer.value
        self.log.events.append(event)
        return answer


@dataclass(frozen=True)
class Life:
    """A manifest from its commit to its end, as events; no end if it is there at last."""

    manifest: Manifest
    commit: Event
    end: Event | None

    def may_overlap(self, event: Event) -> bool:
        return self.commit.began < event.ended and (self.end is None or self.end.ended > event.began)


def check_history(log: Log, final: dict[str, bytes]) -> int:
    """Raises `Violation` if the log shows that a law was broken; gives the number of commits. ``final``: records at last."""
    changes = made(log, final)
    for change in changes:
        check_change(change)
    lives = lived(changes)
    attempts = [life.manifest.attempt for life in lives]
    if len(set(attempts)) < len(attempts):
        raise Violation("I3: a manifest came back")
    check_told(log, set(attempts))
    began = {event.attempt: event.began for event in log.events if event.attempt}
    for life in lives:
        check_order(life, began[life.manifest.attempt], lives)
        check_end(life, lives)
    return len(lives)


def made(log: Log, final: dict[str, bytes]) -> list[Event]:
    """The changes that were made. Each has replaced a version of its own, and every version but the last was replaced."""
    changes = [event for event in log.events if event.key and event.answer != "no"]
    replaced = {(change.key, change.old) for change in changes if change.answer == "ok"}
    last = {(key, data.decode()) for key, data in final.items()}
    # What a lost answer was about was made if somebody has seen it.
    done = [each for each in changes if each.answer == "ok" or (each.key, each.new) in replaced | last]
    from_here = [(change.key, change.old) for change in done if change.old]
    if len(set(from_here)) < len(from_here):
        raise Violation("two changes were made on one version of a record")
    written = {(change.key, change.new) for change in done if change.new}
    if written != set(from_here) | last:
        raise Violation("a record was changed in a way that nobody has noted")
    return done


def check_change(change: Event) -> None:
    old, new = change.before.manifest, change.after.manifest
    if new and new != old:
        if old and change.why != "overwrite":
            raise Violation(f"I2: {change.why} replaced {old.attempt}")
        if (change.after.pins, change.after.holds) != (change.before.pins, change.before.holds):
            raise Violation("I3: a commit changed pins")
        if change.before.claim is None or change.before.claim.attempt != new.attempt:
            raise Violation("a manifest was committed without its claim")
    if old and not new and change.why not in ("delete", "retention"):
        raise Violation(f"I3: {change.why} took {old.attempt} away")
    if old and not new and change.why == "retention" and change.before.pins:
        raise Violation("I3: retention removed a pinned step")


def lived(changes: list[Event]) -> list[Life]:
    commits: dict[tuple[str, str], Event] = {}
    ends: dict[tuple[str, str], Event] = {}
    again: dict[tuple[str, str], int] = defaultdict(int)
    for change in changes:
        old, new = change.before.manifest, change.after.manifest
        if new and new != old:
            commits[change.key, new.attempt] = change
            again[change.key, new.attempt] += 1
        if old and old != new:
            ends[change.key, old.attempt] = change
    if any(count > 1 for count in again.values()):
        raise Violation("I3: a manifest came back")
    found = [(key, event.after.manifest, event) for key, event in commits.items()]
    return [Life(manifest, event, ends.get(key)) for key, manifest, event in found if manifest]


def check_told(log: Log, committed: set[str]) -> None:
    for event in log.events:
        if event.attempt and not event.key:
            did = event.attempt in committed
            if (event.answer == "ok" and not did) or (event.answer in ("exists", "taken", "error") and did):
                raise Violation(f"I2: {event.attempt} was told {event.answer!r} and {'did' if did else 'never'} commit")


def check_order(life: Life, began: float, lives: list[Life]) -> None:
    """I8: what was committed before a save began, and is still there, sorts before it."""
    for other in lives:
        is_before = other.commit.ended < began and (other.end is None or other.end.began > life.commit.ended)
        if is_before and other.manifest.sequence >= life.manifest.sequence:
            raise Violation(f"I8: {life.manifest.attempt} does not sort behind {other.manifest.attempt}")


def check_end(life: Life, lives: list[Life]) -> None:
    """I4: when retention removes a step a newer one is there, or is going by an explicit delete."""
    if life.end is None or life.end.why != "retention":
        return
    newer = [other for other in lives if order(other.manifest) > order(life.manifest)]
    if not any(other.may_overlap(life.end) or _was_deleted(other) for other in newer):
        raise Violation(f"I4: retention removed the newest step {life.manifest.step}")


def _was_deleted(life: Life) -> bool:
    return life.end is not None and life.end.why == "delete"


def records_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.glob(f"*/{MANIFEST}")}
