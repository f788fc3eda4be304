"""Saves of a frozen base with a small adapter of 1 % that changes: incremental beside full, in time and in disk blocks.

One sample saves 20 steps in one process, durably and with checksums, and gives the median of all saves but the first. What the
steps take on the disk is in the column of memory, as a multiple of the state; blocks of linked files count once.
"""

import functools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.measure import Case, Facts, Way, emptied, settle
from benchmarks.running import main
from benchmarks.states import MIB, State, check, nbytes_of, transformer
from ckptmgr import CheckpointManager


def cases(
    folder: Path, peers: Sequence[str] | None = None, *, quick: bool = False, nbytes: int = 0, saves: int = 0
) -> list[Case]:
    """The time of a save, and what all of them store."""
    nbytes, saves = nbytes or (64 if quick else 256) * MIB, saves or (5 if quick else 20)
    state = {"base": transformer(nbytes), "adapter": transformer(nbytes // 100, seed=1)}
    total = sum(map(nbytes_of, state.values()))
    ways = [
        Way(f"ckptmgr {who}", functools.partial(saved, folder / who, state, saves, incremental=who == "incremental"))
        for who in ("incremental", "full")
    ]
    return [Case("save of a frozen base and 1 % that changes, disk blocks", ways, total, ours="ckptmgr incremental")]


def saved(folder: Path, state: dict[str, State], saves: int, *, incremental: bool) -> Facts:
    """Seconds of a save, and bytes of the disk that all of them take."""
    manager = CheckpointManager(emptied(folder) / "run", incremental=incremental)
    settle(sum(map(nbytes_of, state.values())))
    seconds = []
    for step in range(saves):
        train(state["adapter"])
        begun = time.perf_counter()
        manager.save(step, state)
        seconds.append(time.perf_counter() - begun)
    found = manager.restore().state
    for group, arrays in state.items():
        check(arrays, found[group])
    facts = {"seconds": statistics.median(seconds[1:]), "extra_nbytes": stored(folder)}
    emptied(folder)
    return facts


def train(adapter: State) -> None:
    """Changes every tensor."""
    for array in adapter.values():
        array.view(np.uint16)[...] += 1


def stored(folder: Path) -> int:
    """Bytes of all disk blocks below a folder; files of several names count once."""
    return sum({status.st_ino: status.st_blocks * 512 for path in folder.rglob("*") if (status := path.stat())}.values())


if __name__ == "__main__":
    main(["incremental"])
