"""The commit protocol as an exhaustive model: `python tests/commit_model.py` explores every interleaving.

An actor is a generator that yields one request to the store and is sent the answer. Any answer may be lost, within a budget: the
request was applied, or is applied at any later moment, or never. Sweep may call any claim stale at any time. Not being scheduled
is suspension, never again is a crash; after every state "all crash now" is checked: a fresh save works, a last sweep leaves no
debris. `--mutate NAME` breaks the protocol in one way and prints the trace, `--mutations` expects every one to be caught.
"""

# ruff: noqa: T201

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from commit_protocol import BROKEN, STORE, Actor, Manifest, Record, collect, copy, delete, pin, read, save, sweep
from commit_search import explore


class Program:
    def __init__(self, make: Callable[..., Actor], me: str, *args: Any, **kwargs: Any) -> None:
        self.make, self.me, self.args, self.kwargs, self.__name__ = make, me, args, kwargs, make.__name__

    def __call__(self) -> Actor:
        return self.make(self.me, *self.args, **self.kwargs)


def stored(step: int, attempt: str, sequence: int, nfiles: int = 1) -> dict:
    files = tuple(((step, attempt, n), attempt) for n in range(nfiles))
    return {step: Record((attempt,), Manifest(attempt, sequence, files)), **{name: attempt for name, _ in files}}


P = Program
ONE, TWO = stored(1, "m", 1), {**stored(1, "m", 1), **stored(2, "n", 2)}
HELD = {1: Record(("m",), holds=frozenset({("m", 2, "n")})), (1, "m", 0): "m"}  # step 1 is deleted, and 2 refers to its file
CHAIN = {**HELD, 2: Record(("n",), Manifest("n", 2, (((1, "m", 0), "m"), ((2, "n", 0), "n")))), (2, "n", 0): "n"}
SHARED = {
    1: Record(("m",), holds=frozenset({("m", 2, "n"), ("m", 3, "o")})),
    2: Record(("n",), Manifest("n", 2, (((1, "m", 0), "m"),))),
    3: Record(("o",), Manifest("o", 3, (((1, "m", 0), "m"),))),
    (1, "m", 0): "m",
}
DEBRIS = {1: Record(("z",), None, ("z", 1)), (1, "z", 0): "z"}
CONFIGS: dict[str, tuple] = {  # name: programs, store at the start, answers lost, steps, keyword options
    "two writers": ([P(save, "a", 1, 2), P(save, "b", 1, 2)], {}, 2, (1,), ""),
    "two writers, sweep": ([P(save, "a", 1, 2), P(save, "b", 1), P(sweep, "s", 1)], {}, 1, (1,), ""),
    "two writers, two sweeps": ([P(save, "a", 1), P(save, "b", 1), P(sweep, "s", 1), P(sweep, "t", 1)], {}, 0, (1,), ""),
    "two writers, sweep over debris": ([P(save, "a", 1), P(save, "b", 1), P(sweep, "s", 1)], DEBRIS, 1, (1,), ""),
    "writer, sweep, delete, writer": ([P(save, "a", 1), P(sweep, "s", 1), P(delete, "d", 1), P(save, "b", 1)], {}, 0, (1,), ""),
    "writer, sweep, delete, lossy": ([P(save, "a", 1), P(sweep, "s", 1), P(delete, "d", 1)], {}, 2, (1,), ""),
    "overwrite, reader, sweep": ([P(save, "a", 1, 1, True), P(read, "r", 1), P(sweep, "s", 1)], ONE, 1, (1,), ""),
    "two overwrites, sweep": ([P(save, "a", 1, 1, True), P(save, "b", 1, 1, True), P(sweep, "s", 1)], ONE, 1, (1,), ""),
    "overwrite, delete, writer": ([P(save, "a", 1, 1, True), P(delete, "d", 1), P(save, "b", 1)], ONE, 1, (1,), ""),
    "overwrite, delete, reader": ([P(save, "a", 1, 1, True), P(delete, "d", 1), P(read, "r", 1)], ONE, 1, (1,), ""),
    "overwrite, collect, sweep": (
        [P(save, "a", 1, 1, True, (1, 2)), P(collect, "k", (1, 2)), P(sweep, "s", 1)],
        TWO,
        0,
        (1, 2),
        "",
    ),
    "overwrite, collect": ([P(save, "a", 1, 1, True, (1, 2)), P(collect, "k", (1, 2))], TWO, 2, (1, 2), ""),
    "collect, pin": ([P(collect, "k", (1, 2)), P(pin, "p", 1), P(sweep, "s", 1)], TWO, 2, (1, 2), ""),
    "collect, pin, overwrite": ([P(collect, "k", (1, 2)), P(pin, "p", 1), P(save, "a", 1, 1, True, (1, 2))], TWO, 1, (1, 2), ""),
    "two steps, two collects": (
        [
            P(save, "a", 2, 1, False, (1, 2, 3)),
            P(save, "b", 3, 1, False, (1, 2, 3)),
            P(collect, "k", (1, 2, 3)),
            P(collect, "l", (1, 2, 3)),
        ],
        ONE,
        0,
        (1, 2, 3),
        "",
    ),
    "save below the newest, collect": (
        [P(save, "a", 1, 1, False, (1, 2)), P(collect, "k", (1, 2))],
        stored(2, "n", 2),
        1,
        (1, 2),
        "",
    ),
    "collect, delete of the newest": (
        [P(collect, "k", (1, 2)), P(delete, "d", 2), P(save, "a", 2, 1, False, (1, 2))],
        TWO,
        1,
        (1, 2),
        "",
    ),
    "incremental, delete, sweep": (
        [P(save, "a", 2, steps=(1,), base=1), P(delete, "d", 1), P(sweep, "s", 1)],
        ONE,
        1,
        (1, 2),
        "",
    ),
    "incremental, overwrite, sweep": (
        [P(save, "a", 2, steps=(1,), base=1), P(save, "b", 1, 1, True, (2,)), P(sweep, "s", 1)],
        ONE,
        0,
        (1, 2),
        "",
    ),
    "two incremental, delete, sweep": (
        [P(save, "a", 2, steps=(1,), base=1), P(save, "b", 2, steps=(1,), base=1), P(delete, "d", 1), P(sweep, "s", 1)],
        ONE,
        0,
        (1, 2),
        "",
    ),
    "incremental on a held step, delete, sweep": (
        [P(save, "a", 3, steps=(1, 2), base=2), P(delete, "d", 2), P(sweep, "s", 1)],
        CHAIN,
        1,
        (1, 2, 3),
        "",
    ),
    "incremental on a held step, overwrite": (
        [P(save, "a", 3, steps=(1, 2), base=2), P(save, "b", 2, 1, True, (1, 3), base=2), P(sweep, "s", 1)],
        CHAIN,
        0,
        (1, 2, 3),
        "",
    ),
    "overwrite that keeps files of what it replaces": (
        [P(save, "a", 2, 1, True, (1,), base=2), P(delete, "d", 2), P(sweep, "s", 2)],
        CHAIN,
        0,
        (1, 2),
        "",
    ),
    "two holders, two deletes, sweep": ([P(delete, "d", 2), P(delete, "e", 3), P(sweep, "s", 1)], SHARED, 1, (1, 2, 3), ""),
    "two holders, collect, writer": (
        [P(collect, "k", (2, 3)), P(save, "a", 4, steps=(1, 2, 3), base=3), P(save, "b", 1, steps=(2, 3, 4))],
        SHARED,
        0,
        (1, 2, 3, 4),
        "",
    ),
    "two copies, sweep": ([P(copy, "a", 1), P(copy, "b", 1), P(sweep, "s", 1)], {}, 1, (1,), ""),
    "two copies, two sweeps": ([P(copy, "a", 1), P(copy, "b", 1), P(sweep, "s", 1), P(sweep, "t", 1)], {}, 0, (1,), ""),
    "two copies, one of damage, sweep": ([P(copy, "a", 1, damaged=True), P(copy, "b", 1), P(sweep, "s", 1)], {}, 0, (1,), ""),
    "three copies": ([P(copy, "a", 1), P(copy, "b", 1), P(copy, "c", 1)], {}, 0, (1,), ""),
    "copy, writer, sweep": ([P(copy, "a", 1), P(save, "b", 1), P(sweep, "s", 1)], {}, 1, (1,), ""),
    "copy, delete, copy": ([P(copy, "a", 1), P(delete, "d", 1), P(copy, "b", 1)], {}, 1, (1,), ""),
    "copy, delete, copy, no conditional remove": (
        [P(copy, "a", 1), P(delete, "d", 1), P(copy, "b", 1), P(sweep, "s", 1)],
        {},
        0,
        (1,),
        "remove_if",
    ),
    "two copies over a step": ([P(copy, "a", 1, overwrite=True), P(copy, "b", 1, overwrite=True)], ONE, 1, (1,), ""),
    "copy over a step, sweep": ([P(copy, "a", 1, overwrite=True), P(read, "r", 1), P(sweep, "s", 1)], ONE, 1, (1,), ""),
    "three writers": ([P(save, "a", 1), P(save, "b", 1), P(save, "c", 1)], {}, 1, (1,), ""),
    "no conditional remove": ([P(save, "a", 1), P(delete, "d", 1), P(save, "b", 1), P(sweep, "s", 1)], {}, 0, (1,), "remove_if"),
    "no conditions, one after another": (
        [P(save, "a", 1), P(sweep, "s", 1), P(save, "b", 1, 1, True), P(delete, "d", 1), P(save, "c", 1)],
        {},
        2,
        (1,),
        "conditions",
    ),
}
MUTATIONS = {
    "plain-names": "an attempt that finds an empty folder writes under plain file names",
    "commit-by-create": "no claim: commit is a create-only put",
    "overwrite-unclaimed": "an overwrite does not claim; it replaces the manifest it read at its start",
    "plain-remove": "records are removed without the condition",
    "check-then-put": "replace-if-unchanged is a read and then a plain put (POSIX without the lock)",
    "sweep-reads-first": "sweep reads the record before it lists the files",
    "claim-by-attempt": "a writer accepts any claim with its attempt id, also one of an older try",
    "claim-again": "an attempt that lost its claim claims anew and commits the files it already wrote",
    "lost-is-loss": "after a doubtful commit, finding something else counts as having lost",
    "files-first": "delete removes the files before the manifest",
    "pins-beside": "a pin is an object of its own",
    "no-hold": "an incremental save refers to files without a hold",
    "hold-of-the-dead": "a hold is put into a record that does not name the attempt any more",
    "release-first": "delete takes out the step's holds before its manifest",
    "release-all": "delete takes out the holds of other steps too",
    "mark-at-once": "a copy's claim has its mark from the first put on, and a late one may bring it back",
    "sequence-from-memory": "the sequence is not taken from the records as they are",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=CONFIGS, help="one configuration only")
    parser.add_argument("--mutate", choices=MUTATIONS, help="break the protocol in this way and show the trace")
    parser.add_argument("--mutations", action="store_true", help="check that every mutation is caught")
    parser.add_argument("--limit", type=int, default=1_000_000, help="give up after this many states")
    args = parser.parse_args()
    bad = total = 0
    for mutation in MUTATIONS if args.mutations else [args.mutate]:
        violation, label = "", f"{mutation}: " if mutation else ""
        for name in [args.config] if args.config else CONFIGS:
            begun = time.perf_counter()
            programs, store, lost, steps, lacks = CONFIGS[name]
            BROKEN[:] = [mutation] if mutation else []
            STORE.update(remove_if="remove_if" not in lacks, conditions="conditions" not in lacks)
            states, violation, trace = explore(programs, store, lost, steps, args.limit)
            total += states
            if violation[:3] not in ("", "NOT") or not args.mutations:
                print(
                    f"{label}{name:36} {states:9,} states {time.perf_counter() - begun:6.1f} s  {violation or 'ok'}", flush=True
                )
            if violation and not args.mutations:
                print("\n".join(f"    {line}" for line in trace))
            bad += bool(violation and not args.mutations)
            if mutation and violation[:3] not in ("", "NOT"):
                break
        if args.mutations and violation[:3] in ("", "NOT"):
            print(f"{mutation}: NOT CAUGHT")
            bad += 1
    print(f"{total:,} states, " + ("mutations not caught: " if args.mutations else "violations: ") + str(bad))
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
