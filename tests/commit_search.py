"""An exhaustive search over every interleaving of `commit_protocol`'s actors, lost answers and crashes, and what must hold."""

from collections import deque
from collections.abc import Callable, Generator
from functools import cache
from typing import Any, NamedTuple

from commit_protocol import STORE, Actor, Manifest, Record, order, save, sweep


class Violation(Exception): ...


class State(NamedTuple):
    """Every field is a number from `Table`, so that states are small and compare fast."""

    store: int  # frozenset of (key, value): step -> Record, (step, folder, number) -> writer
    flying: int  # requests whose sender no longer waits
    places: tuple  # where each actor stands
    lost: int  # answers that may still be lost
    ghost: int  # (attempts ever committed, what callers were told, manifests deleted on request)


class Table:
    """Numbers for values, and what follows from them, computed once."""

    def __init__(self, programs: list[Callable[[], Actor]], steps: tuple) -> None:
        self.programs, self.steps = programs, steps
        self.numbers: dict[Any, int] = {}
        self.values: list[Any] = []
        self.stands: dict[int, tuple] = {}
        self.send, self.do, self.check = cache(self.send), cache(self.do), cache(self.check)

    def number(self, value: Any) -> int:
        if value not in self.numbers:
            self.numbers[value] = len(self.values)
            self.values.append(value)
        return self.numbers[value]

    def place(self, index: int, history: tuple) -> int:
        """Where an actor stands, by replaying the answers it was sent; equal positions get one number."""
        actor = self.programs[index]()
        try:
            for answer in (None, *history):
                request = actor.send(answer)
        except StopIteration:
            return self.number((index, None))
        frames, inner = [], actor
        while inner is not None:
            frames.append((inner.gi_frame.f_lasti, *inner.gi_frame.f_locals.items()))
            inner = inner.gi_yieldfrom
        found = self.number((index, tuple(frames)))
        self.stands.setdefault(found, (history, self.number(request)))
        return found

    def at(self, place: int) -> tuple[tuple, int | None]:  # the answers so far and the next request
        return self.stands.get(place, ((None,), None))

    def send(self, index: int, place: int, answer: int) -> int:
        return self.place(index, (*self.at(place)[0], self.values[answer]))

    def do(self, store: int, request: int) -> tuple[int, int]:
        after = dict(self.values[store])
        answer = answer_to(after, self.values[request])
        return self.number(answer), self.number(frozenset(after.items()))

    def check(self, store: int) -> None:
        return check_store(dict(self.values[store])) or check_aftermath(dict(self.values[store]), self.steps)


def answer_to(store: dict, request: tuple) -> Any:
    """What the store answers; it is changed as asked."""
    kind, key = request[0], request[1]
    if kind in ("read", "get"):
        return store.get(key)
    if kind == "list":
        return tuple(sorted(k for k in store if isinstance(k, tuple) and k[0] == key))
    if kind == "put":
        store[key] = request[2]
    elif kind == "delete":
        store.pop(key, None)
    elif kind == "swap" and STORE["conditions"] and store.get(key) != request[2]:
        return "no"
    else:
        store.update({key: request[3]}) if request[3] else store.pop(key, None)
    return "ok"


def manifests(store: dict) -> dict[int, Manifest]:
    return {step: r.manifest for step, r in store.items() if isinstance(r, Record) and r.manifest}


def check_change(before: dict, after: dict, request: tuple, ghost: tuple) -> tuple:  # noqa: C901
    """I2, I3, I4, I8: what one applied request may do to a record; returns the new ghost state."""
    kind, step, why = request[0], request[1], request[-1]
    old, new = manifests(before).get(step), manifests(after).get(step)
    if kind not in ("swap", "set") or old == new:
        return ghost
    committed, told, removed = ghost
    if old and why not in ("delete", "retention", "overwrite"):
        raise Violation(f"I3: {why} took committed step {step} ({old.attempt}) away")
    if old and new and why != "overwrite":
        raise Violation(f"I2: {new.attempt} replaced {old.attempt} without overwrite")
    if new:
        if new.attempt in committed:
            raise Violation(f"I3: {new.attempt} came back after it had been removed")
        for who, what, _, earlier in told:
            if who == new.attempt and what in ("exists", "taken"):
                raise Violation(f"I2: {new.attempt} was told that it lost and is committed now")
            older = (m for m in manifests(before).values() if m.attempt in earlier)
            if who == new.attempt and what == "began" and any(m.sequence >= new.sequence for m in older):
                raise Violation(f"I8: {new.attempt} began after an acknowledged save and does not sort behind it")
        committed |= {new.attempt}
    if why == "delete":
        removed |= {order(step, old)}
    if why == "retention":
        rest = [order(s, m) for s, m in manifests(after).items()]
        if max([*rest, *removed, (0,)]) < order(step, old):
            raise Violation(f"I4: retention removed the newest step {step} ({old.attempt})")
        if any(what == "pinned" and at == step and old.attempt in about for _, what, at, about in told):
            raise Violation(f"I3: retention removed pinned step {step}")
    return committed, told, removed


def check_store(store: dict) -> None:
    for step, manifest in manifests(store).items():
        for name, expected in manifest.files:
            if store.get(name) != expected:
                raise Violation(f"I1: step {step} of attempt {manifest.attempt}: {name} holds {store.get(name)}")


def run_alone(actor: Actor, store: dict) -> str:
    told, answer = "", None
    try:
        for _ in range(200):
            request = actor.send(answer)
            told = request[2] if request[0] == "told" else told
            answer = answer_to(store, request) if request[0] != "told" else None
        raise Violation("I7: an actor alone does not finish")
    except StopIteration:
        return told


def check_aftermath(store: dict, steps: tuple) -> None:
    """I6 and I7: everybody crashes now. A fresh save works, and sweep leaves the committed steps and nothing else."""
    for step in steps:
        if run_alone(save("fresh", step, overwrite=True), dict(store)) != "ok":
            raise Violation(f"I7: leftovers keep a fresh save of step {step} from succeeding")
    left = dict(store)
    for step in steps * len(steps):  # a hold falls one round after its holder
        run_alone(sweep("last", step, always=True), left)
    wanted = {name for manifest in manifests(left).values() for name, _ in manifest.files}
    for key, value in left.items():
        idle = isinstance(value, Record) and (value.claim or (STORE["remove_if"] and not (value.manifest or value.holds)))
        if idle or (isinstance(key, tuple) and isinstance(key[0], int) and key not in wanted):
            raise Violation(f"I6: sweep left {key}")
    if manifests(left) != manifests(store):
        raise Violation("I6: sweep changed a manifest")
    check_store(left)


def tell(table: Table, state: State) -> State:
    """Runs what actors do without a request: tell a caller the outcome, compare bytes."""
    for index, place in enumerate(state.places):
        request = table.at(place)[1]
        while request is not None and table.values[request][0] in ("told", "compare"):
            kind, who, what, *rest = table.values[request]
            committed, told, removed = table.values[state.ghost]
            if kind == "compare" and who != what:
                raise Violation(f"I5: a reader expected {what} and got {who}")
            if (what == "ok" and who not in committed) or (what in ("exists", "taken") and who in committed):
                raise Violation(f"I2: {who} was told {what!r} and {'did' if who in committed else 'never'} commit")
            if kind == "told":
                here = manifests(dict(table.values[state.store])).get(rest[0])
                about = frozenset({here.attempt}) if what == "pinned" and here else frozenset()
                state = state._replace(ghost=table.number((committed, told | {(who, what, rest[0], about)}, removed)))
            place = table.send(index, place, table.number(None))
            state = state._replace(places=(*state.places[:index], place, *state.places[index + 1 :]))
            request = table.at(place)[1]
    return state


def moves(table: Table, state: State) -> Generator[tuple[str, State], None, None]:
    values, number, serial = table.values, table.number, not STORE["conditions"]

    def applied(request: int) -> tuple[int, State]:
        answer, store = table.do(state.store, request)
        if store == state.store:
            return answer, state
        ghost = check_change(dict(values[state.store]), dict(values[store]), values[request], values[state.ghost])
        return answer, state._replace(store=store, ghost=number(ghost))

    for request in values[state.flying]:
        after = applied(request)[1]
        yield f"late: {' '.join(map(str, values[request]))}", after._replace(flying=number(values[state.flying] - {request}))
    started = [index for index, place in enumerate(state.places) if table.at(place)[0]]
    for index, place in enumerate(state.places):
        history, request = table.at(place)
        if request is None or (serial and index < max(started, default=0)):
            continue

        def sent(answer: int, after: State, index: int = index, place: int = place) -> State:
            where = table.send(index, place, answer)
            return tell(table, after._replace(places=(*state.places[:index], where, *state.places[index + 1 :])))

        kind, text = values[request][0], f"{table.programs[index].me}: {' '.join(map(str, values[request]))}"
        if kind == "choose":
            yield from ((f"{text} {answer}", sent(number(answer), state)) for answer in (True, False))
            continue
        answer, after = applied(request)
        if not history and table.programs[index].make is save:  # which acknowledged attempts it must sort behind
            committed, told, removed = values[after.ghost]
            began = (table.programs[index].me, "began", 0, frozenset(who for who, what, *_ in told if what == "ok"))
            after = after._replace(ghost=number((committed, told | {began}, removed)))
        yield f"{text} -> {values[answer]}", sent(answer, after)
        if state.lost and kind in ("put", "delete", "swap", "set"):
            yield f"{text} -> {values[answer]}, answer lost", sent(number("lost"), after._replace(lost=state.lost - 1))
            flying = state.flying if serial else number(values[state.flying] | {request})
            yield f"{text} -> under way, no answer", sent(number("lost"), state._replace(flying=flying, lost=state.lost - 1))


def explore(programs: list, store: dict, lost: int, steps: tuple, limit: int) -> tuple[int, str, list[str]]:
    """Breadth-first over all reachable states: their number, and the first violation with its trace."""
    table = Table(programs, steps)
    committed = frozenset(manifest.attempt for manifest in manifests(store).values())
    told = frozenset((attempt, "ok", 0, frozenset()) for attempt in committed)
    places = tuple(table.place(index, ()) for index in range(len(programs)))
    start = State(
        table.number(frozenset(store.items())),
        table.number(frozenset()),
        places,
        lost,
        table.number((committed, told, frozenset())),
    )
    parents: dict[State, tuple] = {start: (None, "")}
    queue, text = deque([start]), ""
    while queue:
        state = queue.popleft()
        try:
            for text, after in moves(table, state):
                if after not in parents:
                    parents[after] = (state, text)
                    table.check(after.store)
                    queue.append(after)
        except Violation as violation:
            trace = ["then it fails: " + str(violation)] if text != parents.get(after, ("", ""))[1] else []
            if parents.get(after, (None,))[0] == state:
                state = after
            while state is not None:
                state, text = parents[state]
                trace.append(text)
            return len(parents), str(violation), trace[::-1][1:]
        if len(parents) > limit:
            return len(parents), f"NOT FINISHED after {limit:,} states", []
    return len(parents), "", []
