"""From 1 MiB to 8 GiB, and from 1 to 10,000 steps in a run.

The large states are tensors over one buffer of little memory. A state of 8 GiB is saved and verified; up to 1 GiB it is also
restored. A listing is by a process that has listed nothing before; once more by the same one, aside. The steps of a long run are
copies of one that was saved, with records of their own.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import ckptmgr
from benchmarks.limits import READ, WRITE, Raw
from benchmarks.measure import Case, Facts, Way, drop, emptied, settle, timed
from benchmarks.peers import Ours, Peer, Safetensors
from benchmarks.running import main
from benchmarks.save_restore import OURS
from benchmarks.states import MIB, State, nbytes_of, repeated
from ckptmgr.record import decode, encode

SIZES = (1, 16, 256, 1024, 8192)  # MiB
LARGE = 2048 * MIB  # from here on once, and without peers and restores
COUNTS = (1, 100, 1_000, 10_000)


def cases(
    folder: Path,
    peers: Sequence[str] | None = None,
    *,
    quick: bool = False,
    sizes: Sequence[int] = (),
    counts: Sequence[int] = (),
) -> list[Case]:
    """Save and restore by size of the state; listing by number of steps."""
    sizes = sizes or (SIZES[:3] if quick else SIZES)
    counts = counts or (COUNTS[:3] if quick else COUNTS)
    made = [case for size in sizes for case in sized(folder / f"size-{size}", size * MIB, peers)]
    for count in counts:
        run = folder / f"steps-{count}"
        made.append(Case(f"making {count}", [Way("ckptmgr", lambda run=run, count=count: make_steps(run, count))], shown=False))
        for name, cold in (("", False), (", not in memory", True)):
            ways = [Way("ckptmgr", lambda run=run, cold=cold: listed(run, cold=cold))]
            made.append(Case(f"listing {count:,} steps{name}", ways, ours="ckptmgr", aside="again"))
    return made


def sized(folder: Path, nbytes: int, peers: Sequence[str] | None) -> list[Case]:
    """One size. Each sample makes its state anew and removes its files, so that no large state is held."""
    label = f"{nbytes // MIB:,} MiB"
    large = nbytes >= LARGE
    others = [Safetensors()] if (peers is None or Safetensors.name in peers) and not large else []

    def state() -> State:
        return repeated(nbytes, tensor_nbytes=min(64 * MIB, max(nbytes // 16, 4096)))

    def save(peer: Peer) -> Facts:
        new = folder / "new"
        own = state()
        peer.warm(folder / "warm")
        emptied(new)
        settle(min(2 * nbytes, LARGE))
        facts = timed(lambda: peer.save(own, new), then=lambda _: peer.finish(new))
        shutil.rmtree(new)
        return facts

    def restore(peer: Peer) -> Facts:
        new = emptied(folder / "new")
        own = state()
        peer.warm(folder / "warm")
        peer.save(own, new)
        peer.finish(new)
        into = {name: np.ones(array.shape, array.dtype) for name, array in own.items()}
        settle(nbytes)
        facts = timed(lambda: peer.fill(into, new))
        shutil.rmtree(new)
        return facts

    def verify() -> Facts:
        new = emptied(folder / "new")
        manager = ckptmgr.CheckpointManager(new)
        manager.save(0, state())
        facts = timed(lambda: manager.verify(0))
        shutil.rmtree(new)
        return facts

    rounds = 1 if large else 3 if nbytes >= 1024 * MIB else 1_000

    def ways(call, peers: Sequence[Peer]) -> list[Way]:
        return [Way(peer.name, lambda peer=peer: call(peer), peer.ready, rounds) for peer in peers]

    total = nbytes_of(state()) if not large else nbytes
    made = [Case(f"durable save, {label}", ways(save, [Raw(WRITE), Ours(), *others]), total, WRITE, OURS, "without fsync")]
    if large:
        return [*made, Case(f"verify, {label}", [Way(OURS, verify, rounds=rounds)], total, ours=OURS)]
    return [*made, Case(f"restore into given arrays, {label}", ways(restore, [Raw(READ), Ours()]), total, READ, OURS)]


def make_steps(run: Path, count: int) -> Facts:
    """A run of that many steps: one that is saved, and copies of it with records of their own."""
    manager = ckptmgr.CheckpointManager(emptied(run))
    saved = Path(manager.save(0, {"w": np.ones(64, np.float32)}, metrics={"loss": 0.5}).path)
    first = saved.parent if (saved.parent / "manifest.json").exists() else saved
    record = decode((first / "manifest.json").read_bytes(), where=str(first))
    files = [path for path in first.rglob("*") if path.is_file() and path.name != "manifest.json"]
    for step in range(1, count):
        attempt = f"{step:016x}"
        manifest = replace(record.manifest, step=step, sequence=record.manifest.sequence + step, attempt=attempt)
        new = run / manager.naming.format(step, {})
        inside = new / f"a-{attempt}"
        inside.mkdir(parents=True)
        for path in files:
            os.link(path, inside / path.name)
        (new / "manifest.json").write_bytes(encode(replace(record, manifest=manifest)))
    if len(manager.steps()) != count:
        raise ValueError(f"a run of {count} steps was made and lists {len(manager.steps())}")
    return {"seconds": 0}


def listed(run: Path, *, cold: bool) -> Facts:
    """Seconds of the first listing of a process, and of the second."""
    manager = ckptmgr.CheckpointManager(run)
    settle(MIB)
    held = {"resident": drop(run)} if cold else {}
    facts = timed(manager.steps)
    return facts | {"aside": timed(manager.steps)["seconds"]} | held


if __name__ == "__main__":
    main(["scaling"])
