"""The commit protocol as generators that yield requests to a store, for `commit_model` to explore.

Written in the words of the protocol's description, side by side with `ckptmgr.commit`: change the three together.
"""

from collections.abc import Generator
from typing import Any, NamedTuple

Actor = Generator[tuple, Any, None]


class Manifest(NamedTuple):
    attempt: str
    sequence: int
    files: tuple  # ((step, attempt folder, number), expected bytes): the model's bytes are the writer's attempt, or the original

    def own(self) -> tuple:
        return tuple(name for name, _ in self.files if name[1] in (self.attempt, "plain"))


class Record(NamedTuple):
    """The one object of a step. Every put has its own stamp, so equal entity tags mean the same put."""

    stamp: tuple
    manifest: Manifest | None = None
    claim: tuple | None = None  # (attempt, number of the try), and of a copy that may be gone on with its original
    pins: frozenset = frozenset()
    holds: frozenset = frozenset()  # (attempt whose files are held, step and attempt that hold them)

    def __str__(self) -> str:
        shown = {"manifest": self.manifest and self.manifest[:2], **dict(zip(self._fields[2:], self[2:], strict=True))}
        return "<" + ", ".join(f"{key} {value}" for key, value in shown.items() if value) + ">"

    def names(self) -> set[str]:
        own = {self.manifest.attempt} if self.manifest else set()
        return own | ({self.claim[0]} if self.claim else set()) | {hold[0] for hold in self.holds}


BROKEN: list[str] = []  # the mutation under test
STORE = {"remove_if": True, "conditions": True}  # what the store offers: remove on condition; conditions at all


def broken(name: str) -> bool:
    return name in BROKEN


def order(step: int, manifest: Manifest) -> tuple:
    return manifest.sequence, step, manifest.attempt


def change(step: int, old: Record | None, new: Record, why: str) -> Actor:
    """Create-only put, replace-if-unchanged or remove-if-unchanged of a record. Answers "ok", "no" or "lost"."""
    empty = STORE["remove_if"] and not (new.manifest or new.claim or new.holds)
    if (broken("check-then-put") or not STORE["conditions"]) and (yield "read", step) != old:
        return "no"
    plain = broken("check-then-put") or (empty and broken("plain-remove"))
    return (yield "set" if plain else "swap", step, old, None if empty else new, why)


def save(me: str, step: int, nfiles: int = 1, overwrite: bool = False, steps: tuple = (), base: int | None = None) -> Actor:
    # Claim: from here on the record names this attempt, and only the attempt that it names may commit.
    held, folder, tries = None, me, 0
    known = (yield "read", step) if overwrite else None  # to create it is to have read that there is none
    while not (known and known.claim and known.claim[0] == me):
        committed = bool(known and known.manifest)
        if committed and not overwrite:
            yield "told", me, "exists", step
            return
        if (broken("commit-by-create") and not committed) or (broken("overwrite-unclaimed") and committed):
            break
        tries += 1
        new = (known or Record(()))._replace(stamp=(me, "claim", tries), claim=(me, tries))
        if (yield from change(step, known, new, "claim")) == "ok":
            if broken("plain-names") and known is None and not (yield "list", step):
                folder = "plain"
            known = new
        else:
            known = yield "read", step
    else:
        held = known.claim
    # Hold what an incremental save takes over from another step, then write.
    files: tuple = ()
    theirs = (yield "read", base) if base is not None else None
    reusable = theirs.manifest.files if theirs and theirs.manifest else ()
    for origin in sorted({name[:2] for name, _ in reusable}):
        if (yield from hold(me, step, *origin)):
            files += tuple(file for file in reusable if file[0][:2] == origin)
    for number in range(nfiles):
        while (yield "put", (step, folder, number), me) == "lost":
            pass
        files += (((step, folder, number), me),)
    sequence = known.manifest.sequence if known and known.manifest else 0
    for other in steps if not broken("sequence-from-memory") else ():
        seen = yield "read", other
        sequence = max(sequence, seen.manifest.sequence if seen and seen.manifest else 0)
    lost = yield from commit(me, step, known, held, Manifest(me, sequence + 1, files), overwrite, tries)
    if lost:
        yield "told", me, lost, step


def commit(
    me: str, step: int, known: Record | None, held: tuple | None, manifest: Manifest, overwrite: bool, tries: int = 0
) -> Actor:
    """Replace the record, on condition that it still names this claim. Answers what the caller is to be told of a loss."""
    doubtful = False
    while True:
        tries += 1
        new = (known or Record(()))._replace(stamp=(me, "commit", tries), manifest=manifest, claim=None)
        answer = yield from change(step, known, new, "overwrite" if overwrite else "commit")
        doubtful |= answer == "lost"
        before, known = known, new if answer == "ok" else (yield "read", step)
        if known and known.manifest and known.manifest.attempt == manifest.attempt:
            break
        claim = known.claim if known else None
        mine = known == before if held is None else claim == held or (broken("claim-by-attempt") and claim and claim[0] == me)
        if not mine and broken("claim-again") and not (known and known.manifest) and tries < 6:
            new = (known or Record(()))._replace(stamp=(me, "again", tries), claim=(me, -tries))
            if (yield from change(step, known, new, "claim")) == "ok":
                mine, held, known = True, new.claim, new
        if not mine:
            lost = "exists" if known and known.manifest else "taken"
            return "unknown" if doubtful and not broken("lost-is-loss") else lost
    yield "told", manifest.attempt, "ok", step
    if before and before.manifest and before.manifest.attempt not in known.names():
        for name in before.manifest.own():
            yield "delete", name
    if before and before.manifest:
        yield from release(before.manifest, step)
    return None


def copy(me: str, step: int, original: str = "o", nfiles: int = 1, overwrite: bool = False, damaged: bool = False) -> Actor:
    """Copy a step of another run. The claim tells of what, once it is there: whoever copies that too goes on with the attempt."""
    attempt, tries = me, 0
    known = yield "read", step
    while True:
        if known and known.manifest and not overwrite:
            return
        claim = known.claim if known else None
        if not (claim and (claim[0] == attempt or claim[2:] == (original,))):  # as any save
            tries += 1
            mark = (original,) if broken("mark-at-once") else ()
            new = (known or Record(()))._replace(stamp=(me, "claim", tries), claim=(attempt, tries, *mark))
            if (yield from change(step, known, new, "claim")) != "ok":
                known = yield "read", step
                continue
            known, claim = new, new.claim
        is_resumed = claim[0] != attempt
        tries += 1
        held = (claim[0], claim[1] + 1, original)
        new = known._replace(stamp=(me, "mark", tries), claim=held)
        if (yield from change(step, known, new, "claim")) == "ok":
            known = new
            break
        if attempt != me:
            return  # patience is over
        known = yield "read", step
        attempt += "'"  # what is mine and has no mark is not gone on with
    files = tuple(((step, held[0], number), original) for number in range(nfiles))
    for name, data in files:
        if not (is_resumed and (yield "get", name) == data):
            while (yield "put", name, data) == "lost":
                pass
    if damaged:  # as the original turns out to be
        bare = known._replace(stamp=(me, "abandon", 1), claim=None)
        done = yield from change(step, known, bare, "abandon")
        left = bare if done == "ok" else (yield "read", step)
        for name, _ in files if not left or held[0] not in left.names() else ():
            yield "delete", name
        return
    yield from commit(me, step, known, held, Manifest(held[0], 1, files), overwrite)


def hold(me: str, step: int, base: int, attempt: str) -> Actor:
    """Keep the files of an attempt that a manifest or a hold names. Answers whether they may be referred to."""
    tries = 0
    while True:
        record, tries = (yield "read", base), tries + 1
        if not (record and (attempt in record._replace(claim=None).names() or broken("hold-of-the-dead"))):
            return False
        new = record._replace(stamp=(me, "hold", tries), holds=record.holds | {(attempt, step, me)})
        if broken("no-hold") or new.holds == record.holds or (yield from change(base, record, new, "hold")) == "ok":
            return True


def release(manifest: Manifest, step: int) -> Actor:
    """Take out the holds of a manifest that is gone for certain. Whoever takes the last one deletes the files."""
    for base, attempt in sorted({name[:2] for name, _ in manifest.files if name not in manifest.own()}):
        mine = (attempt, step, manifest.attempt)
        for tries in (1, 2):
            record = yield "read", base
            if not record or mine not in record.holds:
                break
            left = frozenset(each for each in record.holds if each != mine and not broken("release-all"))
            new = record._replace(stamp=(manifest.attempt, "release", tries), holds=left)
            if (yield from change(base, record, new, "release")) == "ok":
                files = (yield "list", base) if attempt not in new.names() else ()
                for name in files:
                    if name[1] == attempt:
                        yield "delete", name
                break


def drop(step: int, record: Record, stamp: tuple, why: str, later: bool = False) -> Actor:
    """Take the manifest out of the record first, then delete its files. Answers what the store said to the first.

    ``later``: they are deleted at any time after this, by the caller.
    """
    new = record._replace(stamp=stamp, manifest=None, pins=frozenset())
    files = () if record.manifest.attempt in new.names() else record.manifest.own()
    if broken("files-first"):
        for name in files:
            yield "delete", name
    if broken("release-first"):
        yield from release(record.manifest, step)
    answer = yield from change(step, record, new, why)
    if answer == "ok":
        for name in files if not later else ():
            yield "delete", name
        yield from release(record.manifest, step)
    return answer


def delete(me: str, step: int) -> Actor:
    tries = 0
    while True:
        record = yield "read", step
        if not record or not record.manifest:
            return
        tries += 1
        if (yield from drop(step, record, (me, "delete", tries), "delete")) == "ok":
            return


def collect(me: str, steps: tuple, keep: int = 1) -> Actor:
    seen: tuple = ()
    for step in steps:
        record = yield "read", step
        if record and record.manifest:
            pinned = bool(record.pins or (broken("pins-beside") and (yield "read", ("pin", step))))
            seen += ((order(step, record.manifest), step, record, pinned),)
    dead: tuple = ()  # deleted by one request where the store has such, hence after all
    for _, step, record, pinned in sorted(seen)[:-keep]:
        if not pinned and (yield from drop(step, record, (me, "collect", step), "retention", later=True)) == "ok":
            dead += record.manifest.own() if record.manifest.attempt not in record._replace(manifest=None).names() else ()
    for name in dead:
        yield "delete", name


def pin(me: str, step: int) -> Actor:
    tries = 0
    while True:
        record = yield "read", step
        if not record or not record.manifest:
            return
        if me in record.pins:
            break
        tries += 1
        if broken("pins-beside") and (yield "swap", ("pin", step), None, "pin", "pin"):
            break
        new = record._replace(stamp=(me, "pin", tries), pins=record.pins | {me})
        if (yield from change(step, record, new, "pin")) == "ok":
            break
    yield "told", me, "pinned", step


def sweep(me: str, step: int, always: bool = False) -> Actor:
    """Delete the files of attempts that the record does not name. They can never be named again, so no fence is needed."""
    first, second = ("read", "list") if broken("sweep-reads-first") else ("list", "read")
    files = yield first, step
    record = yield second, step
    if first == "read":
        files, record = record, files
    if record and record.claim and (always or (yield "choose", step)):
        bare = record._replace(stamp=(me, "stale", 1), claim=None)
        if (yield from change(step, record, bare, "sweep")) != "ok":
            return
        record = bare
    for hold in sorted(record.holds) if record else ():
        if not holds((yield "read", hold[1]), *hold):
            loose = record._replace(stamp=(me, "loose", hold[2]), holds=record.holds - {hold})
            if (yield from change(step, record, loose, "sweep")) != "ok":
                return
            record = loose
    for name in files:
        spared = record and ((record.claim and name[1] == "plain") or (record.manifest and name in dict(record.manifest.files)))
        if not spared and name[1] not in (record.names() if record else ()):
            yield "delete", name


def holds(holder: Record | None, attempt: str, _: int, by: str) -> bool:
    """Whether a hold still counts: its attempt may yet commit, or its manifest refers to the held files."""
    claim, manifest = (holder.claim, holder.manifest) if holder else (None, None)
    refers = manifest and manifest.attempt == by and any(name[1] == attempt for name, _ in manifest.files)
    return bool((claim and claim[0] == by) or refers)


def read(me: str, step: int) -> Actor:
    record = yield "read", step
    if record and record.manifest:
        for name, expected in record.manifest.files:
            found = yield "get", name
            if found is None:
                return  # a clear error: the file is gone
            yield "compare", found, expected
