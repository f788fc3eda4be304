"""Many interleavings of the real code, with lost answers and crashes, keep the laws of the commit protocol.

The configurations are those of `commit_model`, which explores its own small version of this code exhaustively.
"""

import random
from collections.abc import Callable

import pytest
from interleaving import Actor, Program, Stage, Violation, outcome
from saves import NAMING, begin, finish, places, referred, save, write
from stores import MarkedStore, MemoryStore

from ckptmgr import commit, ledger, sighting, sweep
from ckptmgr.errors import StepNotFoundError
from ckptmgr.ledger import read_record, records
from ckptmgr.manifest import FileEntry, Manifest
from ckptmgr.storage import Folder

TURNS = 400
Cast = tuple[str, Program]


@pytest.fixture(autouse=True)
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger.time, "sleep", lambda seconds: None)


def saving(step: int, nfiles: int = 1, overwrite: bool = False, base: int | None = None) -> Cast:
    def program(actor: Actor) -> None:
        def run() -> None:
            attempt = begin(actor.root, step, overwrite=overwrite)
            actor.attempt = attempt.attempt
            reused = held(actor.root, base, attempt) if base is not None else ()
            write(attempt, nfiles)
            finish(attempt, nfiles, reused)

        outcome(actor, step, run)

    return "overwrite" if overwrite else "commit", program


def held(root: Folder, base: int, by: commit.Attempt) -> tuple[FileEntry, ...]:
    """What the attempt may refer to of the base's files: each is held in the record of the step that wrote it."""
    theirs = _manifest(root, base)
    entries = referred(base, theirs) if theirs else []
    origins = {entry.origin: entry.origin for entry in entries}
    are_held = {origin: commit.hold(root, origin.home, origin.step, origin.attempt, by) for origin in origins.values() if origin}
    return tuple(entry for entry in entries if entry.origin and are_held[entry.origin])


def deleting(step: int) -> Cast:
    return "delete", lambda actor: _ignored(commit.delete(actor.root, NAMING.format(step), step))


def collecting(keep: int = 1) -> Cast:
    def program(actor: Actor) -> None:
        found, _ = records(actor.root, NAMING)
        committed = [(each.record.manifest.sequence, each.step, each) for each in found if each.record.manifest]
        doomed = [each for *_, each in sorted(committed, key=lambda each: each[:2])[:-keep] if not each.record.pins]
        commit.collect(actor.root, doomed)

    return "retention", program


def pinning(step: int) -> Cast:
    def program(actor: Actor) -> None:
        try:
            commit.pin(actor.root, NAMING.format(step), step, actor.name)
        except StepNotFoundError:
            return
        actor.stage.tell(actor, "pinned", step)

    return "pin", program


def sweeping(step: int = 1) -> Cast:
    return "sweep", lambda actor: _ignored(sweep.sweep(actor.root, NAMING, grace_s=0))


def reading(step: int) -> Cast:
    def program(actor: Actor) -> None:
        missing_of = None
        while (manifest := _manifest(actor.root, step)) and manifest.attempt != missing_of:
            for path, _, expected in places(NAMING.format(step), manifest):
                found = actor.root.read(path)
                if found is None:
                    missing_of = manifest.attempt  # read again: it must be gone, or another's
                    break
                if found[0] != expected:
                    raise Violation(f"I5: a reader expected {expected!r} and got {found[0]!r}")
            else:
                return
        if manifest:
            raise Violation(f"I5: a file of {missing_of} is missing, and its manifest is there")

    return "read", program


def _manifest(root: Folder, step: int) -> Manifest | None:
    found = read_record(root, NAMING.format(step), step)
    return found.record.manifest if found else None


def _ignored(result: object) -> None:
    return None


def one(store: MemoryStore) -> None:
    save(Folder(store), 1)


def two(store: MemoryStore) -> None:
    save(Folder(store), 1)
    save(Folder(store), 2)


def second(store: MemoryStore) -> None:
    save(Folder(store), 2)


def chained(store: MemoryStore) -> None:
    """Step 1 is deleted; step 2 and step 3 refer to its file, and step 3 to one of step 2."""
    root = Folder(store)
    save(root, 1)
    for step, base in ((2, 1), (3, 2)):
        attempt = begin(root, step)
        entries = held(root, base, attempt)
        write(attempt)
        finish(attempt, reused=entries)
    commit.delete(root, NAMING.format(1), 1)


def debris(store: MemoryStore) -> None:
    write(begin(Folder(store), 1))


def nothing(store: MemoryStore) -> None:
    return None


CASES: dict[str, tuple[list[Cast], Callable[[MemoryStore], None], int]] = {  # who, what is there at first, answers lost
    "writer, sweep": ([saving(1), sweeping()], nothing, 1),
    "two writers": ([saving(1, 2), saving(1, 2)], nothing, 2),
    "two writers, sweep": ([saving(1, 2), saving(1), sweeping()], nothing, 2),
    "two writers, two sweeps": ([saving(1), saving(1), sweeping(), sweeping()], nothing, 1),
    "two writers, sweep over debris": ([saving(1), saving(1), sweeping()], debris, 2),
    "writer, sweep, delete, writer": ([saving(1), sweeping(), deleting(1), saving(1)], nothing, 1),
    "writer, sweep, delete, lossy": ([saving(1), sweeping(), deleting(1)], nothing, 3),
    "overwrite, reader, sweep": ([saving(1, 1, True), reading(1), sweeping()], one, 2),
    "two overwrites, sweep": ([saving(1, 1, True), saving(1, 1, True), sweeping()], one, 2),
    "overwrite, delete, writer": ([saving(1, 1, True), deleting(1), saving(1)], one, 2),
    "overwrite, delete, reader": ([saving(1, 1, True), deleting(1), reading(1)], one, 2),
    "overwrite, collect, sweep": ([saving(1, 1, True), collecting(), sweeping()], two, 1),
    "overwrite, collect": ([saving(1, 1, True), collecting()], two, 2),
    "collect, pin": ([collecting(), pinning(1), sweeping()], two, 2),
    "collect, pin, overwrite": ([collecting(), pinning(1), saving(1, 1, True)], two, 2),
    "two steps, two collects": ([saving(2), saving(3), collecting(), collecting()], one, 1),
    "save below the newest, collect": ([saving(1), collecting()], second, 2),
    "collect, delete of the newest": ([collecting(), deleting(2), saving(2)], two, 1),
    "incremental, delete, sweep": ([saving(2, base=1), deleting(1), sweeping()], one, 2),
    "incremental, overwrite, sweep": ([saving(2, base=1), saving(1, 1, True), sweeping()], one, 1),
    "two incremental, delete, sweep": ([saving(2, base=1), saving(2, base=1), deleting(1), sweeping()], one, 1),
    "on a held step, delete, sweep": ([saving(4, base=3), deleting(3), sweeping(), deleting(2)], chained, 1),
    "on a held step, collect": ([saving(4, base=3), collecting(), deleting(2)], chained, 1),
    "on a held step, overwrites": ([saving(4, base=2), saving(2, 1, True, base=2), saving(1), sweeping()], chained, 1),
    "holders go": ([deleting(2), deleting(3), saving(1, 1, True), sweeping()], chained, 2),
    "three writers": ([saving(1), saving(1), saving(1)], nothing, 2),
    "crowd": (
        [saving(1, 1, True), saving(2, base=1), saving(3), collecting(), pinning(1), deleting(2), sweeping(), reading(1)],
        two,
        4,
    ),
}


def explore(name: str, seeds: range, *, has_remove: bool = True, kind: type[MemoryStore] = MemoryStore) -> None:
    cast, setting, lost = CASES[name]
    for seed in seeds:
        chance = random.Random(seed)
        store = kind(has_remove=has_remove)
        setting(store)
        stage = Stage(store, chance.randint(0, lost), chance)
        for number, (why, program) in enumerate(cast):
            stage.enter("abcdefgh"[number], why, program)
        try:
            stage.run(chance.choice([TURNS, chance.randint(0, 60)]))
        except Exception as error:
            error.add_note("\n".join([f"seed {seed}:", *stage.trace]))
            raise


@pytest.mark.parametrize("name", CASES)
def test_interleavings_keep_the_laws(name: str) -> None:
    explore(name, range(25))


@pytest.mark.parametrize("name", CASES)
def test_interleavings_keep_the_laws_without_conditional_remove(name: str) -> None:
    explore(name, range(10), has_remove=False)


@pytest.mark.parametrize("has_remove", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_interleavings_keep_the_laws_where_listings_have_marks(
    name: str, has_remove: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sighting, "READERS", 1)  # an actor makes one request at a time

    explore(name, range(200, 210), has_remove=has_remove, kind=MarkedStore)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_many_more_interleavings_keep_the_laws(name: str) -> None:
    explore(name, range(1000, 1150))
