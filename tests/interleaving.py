"""Real code in one interleaving of its store operations after another, and what must hold after each of them.

Every actor runs in a thread of its own, but only one at a time: it stops before each operation on the store until its turn
comes. Not getting another turn is suspension, and never again is a crash. An answer of a conditional call may be lost:
the change was made, will be made at any later moment, or never. The laws are those of `commit_search`, in the same words.
"""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from saves import NAMING, places, save
from stores import CONDITIONAL, Death, MemoryStore, WrappedStore

from ckptmgr.errors import CommitUnknownError, SaveError, StepExistsError
from ckptmgr.manifest import MANIFEST, Manifest, parse_attempt
from ckptmgr.record import Record, decode
from ckptmgr.storage import Answer, Folder, Store
from ckptmgr.sweep import sweep

Program = Callable[["Actor"], None]


class Violation(AssertionError):
    """A law is broken."""


@lru_cache(maxsize=10_000)
def decoded(data: bytes) -> Record:
    return decode(data, where="x")


def recorded(store: MemoryStore) -> dict[int, Record]:
    """Every record by its step."""
    found = {key: data for key, (data, _) in store.files.items() if key.endswith(MANIFEST)}
    return {NAMING.parse(key.partition("/")[0]) or 0: decoded(data) for key, data in found.items()}


def manifests(store: MemoryStore) -> dict[int, Manifest]:
    return {step: record.manifest for step, record in recorded(store).items() if record.manifest}


def order(manifest: Manifest) -> tuple[int, int, str]:
    return manifest.sequence, manifest.step, manifest.attempt


@dataclass(eq=False)
class Actor(WrappedStore):
    """Somebody who runs ``program`` on the store, one operation a turn. ``why`` is what its changes are for."""

    name: str
    why: str
    program: Program
    stage: "Stage"
    attempt: str | None = None
    began: frozenset[str] = frozenset()
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    is_done: bool = False

    def __post_init__(self) -> None:
        self.inner = self.stage.store
        self.thread = threading.Thread(target=self.run, daemon=True)

    @property
    def root(self) -> Folder:
        store: Store = self  # type: ignore[assignment]
        return Folder(store)

    def run(self) -> None:
        try:
            self.wait()
            self.began = self.stage.acknowledged()
            self.program(self)
        except Death:
            pass
        except BaseException as error:  # noqa: BLE001  whatever it is, the stage raises it
            self.stage.trouble = self.stage.trouble or error
        self.is_done = True
        self.stage.back.release()

    def wait(self) -> None:
        self.turn.acquire()
        if self.stage.is_over:
            raise Death

    def operate(self, name: str, call: Callable[[], Any]) -> Any:
        self.stage.back.release()
        self.wait()
        return self.stage.operate(self, name, call)


class Stage:
    """A store, actors on it, and the laws."""

    def __init__(self, store: MemoryStore, lost: int, chance: random.Random) -> None:
        self.store, self.lost, self.chance = store, lost, chance
        self.loss = chance.choice([0.3, 0.9])
        self.actors: list[Actor] = []
        self.late: list[tuple[Actor, Callable[[], Any]]] = []
        self.trace: list[str] = []
        self.back = threading.Semaphore(0)
        self.is_over = False
        self.trouble: BaseException | None = None
        self.current: Actor | None = None
        self.committed = {manifest.attempt for manifest in manifests(store).values()}
        self.told: list[tuple[str | None, str, int, frozenset[str]]] = [(each, "ok", 0, frozenset()) for each in self.committed]
        self.removed: list[tuple[int, int, str]] = []
        store.on_change = self.check_change

    def enter(self, name: str, why: str, program: Program) -> None:
        self.actors.append(Actor(name, why, program, self))

    def acknowledged(self) -> frozenset[str]:
        return frozenset(attempt for attempt, what, *_ in self.told if what == "ok" and attempt)

    def run(self, turns: int) -> None:
        """Gives at most so many turns in an order by chance; then everybody dies."""
        for actor in self.actors:
            actor.thread.start()
        rank = {actor.name: self.chance.random() for actor in self.actors}
        is_fair, lateness = self.chance.random() < 0.5, self.chance.choice([0.02, 0.2])
        try:
            for _ in range(turns):
                ready = [actor for actor in self.actors if not actor.is_done]
                if self.late and (not ready or self.chance.random() < lateness):
                    self.deliver(self.late.pop(self.chance.randrange(len(self.late))))
                elif not ready:
                    break
                elif is_fair:
                    self.give_turn(self.chance.choice(ready))
                else:  # one goes on and on, and now and then it sleeps until the others are done
                    first = max(ready, key=lambda actor: rank[actor.name])
                    self.give_turn(first)
                    rank[first.name] -= self.chance.random() < 0.15
        finally:
            self.end()
        check_aftermath(self.store)

    def give_turn(self, actor: Actor) -> None:
        actor.turn.release()
        self.back.acquire()
        if self.trouble:
            raise self.trouble
        check_files(self.store)

    def end(self) -> None:
        self.is_over = True
        for actor in self.actors:
            actor.turn.release()
            actor.thread.join()

    def operate(self, actor: Actor, name: str, call: Callable[[], Any]) -> Any:
        self.current = actor
        fate = "ok"
        if self.lost and name in CONDITIONAL and self.chance.random() < self.loss:
            self.lost -= 1
            fate = self.chance.choice(["applied", "later", "never"])
        if fate == "later":
            self.late.append((actor, call))
        answer = call() if fate in ("ok", "applied") else None
        self.trace.append(f"{actor.name}: {name} -> {fate if fate != 'ok' else answer if name in CONDITIONAL else ''}")
        return answer if fate == "ok" else Answer.LOST

    def deliver(self, late: tuple[Actor, Callable[[], Any]]) -> None:
        self.current, call = late
        self.trace.append(f"late, of {self.current.name} -> {call()}")
        if self.trouble:
            raise self.trouble
        check_files(self.store)

    def tell(self, actor: Actor, what: str, step: int) -> None:
        """What a caller learns. I2: it is true."""
        self.trace.append(f"{actor.name} is told {what!r}")
        did = actor.attempt in self.committed
        if (what == "ok" and not did) or (what in ("exists", "taken") and did):
            raise Violation(f"I2: {actor.name} was told {what!r} and {'did' if did else 'never'} commit")
        here = manifests(self.store).get(step)
        self.told.append((actor.attempt, what, step, frozenset({here.attempt} if what == "pinned" and here else ())))

    def check_change(self, key: str, data: bytes | None, new_data: bytes | None) -> None:
        """I2, I3, I4, I8: what one change of a record may do."""
        actor = self.current
        if actor is None or not key.endswith(MANIFEST):
            return
        old = decoded(data).manifest if data else None
        new = decoded(new_data).manifest if new_data else None
        if old == new:
            return
        step = NAMING.parse(key.partition("/")[0]) or 0
        if old and actor.why not in ("delete", "retention", "overwrite"):
            raise Violation(f"I3: {actor.why} took committed step {step} ({old.attempt}) away")
        if old and new and actor.why != "overwrite":
            raise Violation(f"I2: {new.attempt} replaced {old.attempt} without overwrite")
        if new:
            self.check_new(actor, new)
        if old and actor.why == "delete":
            self.removed.append(order(old))
        if old and actor.why == "retention":
            self.check_retention(step, old)

    def check_new(self, actor: Actor, new: Manifest) -> None:
        if new.attempt in self.committed:
            raise Violation(f"I3: {new.attempt} came back after it had been removed")
        if any(attempt == new.attempt and what in ("exists", "taken") for attempt, what, *_ in self.told):
            raise Violation(f"I2: {new.attempt} was told that it lost and is committed now")
        before = [manifest for manifest in manifests(self.store).values() if manifest.attempt in actor.began - {new.attempt}]
        if any(manifest.sequence >= new.sequence for manifest in before):
            raise Violation(f"I8: {new.attempt} began after an acknowledged save and does not sort behind it")
        self.committed.add(new.attempt)

    def check_retention(self, step: int, old: Manifest) -> None:
        rest = [order(manifest) for manifest in manifests(self.store).values()]
        if max([*rest, *self.removed], default=(0, 0, "")) < order(old):
            raise Violation(f"I4: retention removed the newest step {step} ({old.attempt})")
        if any(what == "pinned" and at == step and old.attempt in about for _, what, at, about in self.told):
            raise Violation(f"I3: retention removed pinned step {step}")


def check_files(store: MemoryStore) -> None:
    """I1: what manifests name is there."""
    for step, manifest in manifests(store).items():
        for key, _, expected in places(NAMING.format(step), manifest):
            found = store.files.get(key)
            if found is None or found[0] != expected:
                raise Violation(f"I1: step {step} of attempt {manifest.attempt}: {key} holds {found}")


def check_aftermath(store: MemoryStore) -> None:
    """I6 and I7: everybody has crashed. A fresh save works, and sweep leaves the committed steps and nothing else."""
    steps = {NAMING.parse(key.partition("/")[0]) or 0 for key in store.files}
    for step in steps:
        save(Folder(store.copy()), step, overwrite=True)
    left = store.copy()
    for _ in range(len(steps) + 1):  # a hold falls one round after its holder
        sweep(Folder(left), NAMING, grace_s=0, empty_records=False)
    if manifests(left) != manifests(store):
        raise Violation("I6: sweep changed a manifest")
    check_files(left)
    wanted = {key for step, each in manifests(left).items() for key, *_ in places(NAMING.format(step), each)}
    for key in left.files:
        if parse_attempt(key.split("/")[1]) and key not in wanted:
            raise Violation(f"I6: sweep left {key}")
    for step, record in recorded(left).items():
        if record.claim or (left.has_remove and record.is_empty):
            raise Violation(f"I6: sweep left the record of step {step}: {record}")


def outcome(actor: Actor, step: int, program: Callable[[], object]) -> None:
    """Runs a save and notes what its caller is told."""
    try:
        program()
    except CommitUnknownError:
        actor.stage.tell(actor, "unknown", step)
    except StepExistsError:
        actor.stage.tell(actor, "exists", step)
    except SaveError:
        actor.stage.tell(actor, "taken", step)
    else:
        actor.stage.tell(actor, "ok", step)
