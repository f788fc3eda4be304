"""The most memory that each operation takes beyond what was there before it, in states.

Read the column of memory; the times are those of one or two rounds. Pages of mapped files count, although the system can take
them back: that is why a loader that maps shows two states. Page cache does not count.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ckptmgr
from benchmarks.measure import Case, Facts, Way, settle, timed
from benchmarks.peers import Ours, chosen
from benchmarks.running import main
from benchmarks.save_restore import OURS, Table
from benchmarks.states import MIB, transformer


def cases(folder: Path, peers: Sequence[str] | None = None, *, quick: bool = False, nbytes: int = 0) -> list[Case]:
    """Save, restores, verify, one tensor."""
    state = transformer(nbytes or (16 if quick else 128) * MIB)
    everybody = chosen(peers)
    table = Table(state, folder)
    few = [replace(case, ways=[replace(way, rounds=2) for way in case.ways]) for case in (
        table.kept(everybody), table.saves(everybody), *table.restores(everybody)[:2]
    )]  # fmt: skip
    kept = table.kept_by(Ours())
    manager = ckptmgr.CheckpointManager(kept)

    def sampled(call: object) -> Facts:
        Ours().warm(folder / "warm")
        settle(2 * table.nbytes)
        return timed(call)

    def one() -> object:
        with manager.open(0) as checkpoint:
            return checkpoint.read("layers.0.attention.q")

    others = {
        "ckptmgr verify": lambda: manager.verify(0),
        "ckptmgr one tensor": one,
    }
    ways = [Way(who, lambda call=call: sampled(call), rounds=2) for who, call in others.items()]
    return [*few, Case("other operations", ways, table.nbytes, ours=OURS)]


if __name__ == "__main__":
    main(["memory"])
