"""Many small tensors, and tiny checkpoints, where the time is not in moving bytes.

Save and restore are measured as in `save_restore`. DCP, Orbax and `tf.train.Checkpoint` take 10 to 60 seconds for 20,000
tensors and are left out of a run; h5py and savez take seconds, and so part in the first two rounds only. "One tensor" opens
what was saved and reads a tensor from the middle. The second save is by the process, and if it is ours by the manager, that made
the first one. A tiny checkpoint is saved by a process that has saved before.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ckptmgr
from benchmarks.measure import Case, Facts, Way, emptied, read_in, settle, timed
from benchmarks.peers import H5py, Ours, Own, Peer, Safetensors, SafetensorsTorch, Savez, Torch, chosen
from benchmarks.running import main
from benchmarks.save_restore import OURS, Table
from benchmarks.states import State, small

FEW = {"h5py": 2, "numpy.savez": 2}
TIMES = 50  # a tiny save is measured that often in one process


def cases(
    folder: Path, peers: Sequence[str] | None = None, *, quick: bool = False, count: int = 0, times: int = TIMES
) -> list[Case]:
    """20,000 tensors, one out of them, 100,000 scalars, and a checkpoint of 10 KiB."""
    count = count or (4_000 if quick else 20_000)
    state = small(count)
    everybody = chosen(peers, of=(Safetensors, SafetensorsTorch, Torch, H5py, Savez))
    table = Table(state, folder / "many", label=f", {count:,} tensors", slow=FEW)
    tiny = {"w": np.ones(2048, np.float32), "b": np.ones(512, np.float32)}
    return [
        table.kept(everybody),
        table.saves(everybody),
        again(table, everybody, count),
        table.restores(everybody)[0],
        one(table, everybody, f"block.{count // 2}.weight", count),
        scalars(folder / "scalars", everybody, 5 * count),
        commits(folder / "tiny", everybody, tiny, times),
    ]


def one(table: Table, peers: Sequence[Peer], name: str, count: int) -> Case:
    """One tensor from the middle."""

    def ours(folder: Path) -> object:
        with ckptmgr.CheckpointManager(folder).open(0) as checkpoint:
            return np.array(checkpoint.read(name))

    def safetensors_numpy(folder: Path) -> object:
        from safetensors import safe_open

        with safe_open(folder / "model.safetensors", "np") as file:
            return file.get_tensor(name)

    def safetensors_torch(folder: Path) -> object:
        from safetensors import safe_open

        with safe_open(folder / "model.safetensors", "pt") as file:
            return file.get_tensor(name).clone()

    def torch_load(folder: Path) -> object:
        import torch

        return torch.load(folder / "model.pt", weights_only=True, mmap=True)[name].clone()

    def h5py_read(folder: Path) -> object:
        import h5py

        with h5py.File(folder / "model.h5", "r") as file:
            return file[name][()]

    def savez(folder: Path) -> object:
        with np.load(folder / "model.npz") as file:
            return file[name]

    calls: dict[str, Callable[[Path], object]] = {
        "safetensors.numpy": safetensors_numpy,
        "safetensors.torch": safetensors_torch,
        "torch.save": torch_load,
        "h5py": h5py_read,
        "numpy.savez": savez,
    }

    def read(peer: Peer) -> Facts:
        folder = table.kept_by(peer)
        peer.warm(table.folder / "warm")
        read_in(folder)
        settle(1 << 20)
        return timed(lambda: calls.get(peer.name, ours)(folder))

    ways = [table.way(peer, lambda peer=peer: read(peer)) for peer in peers]
    return Case(f"one tensor of {count:,}", ways, ours=OURS)


def scalars(folder: Path, peers: Sequence[Peer], count: int) -> Case:
    """Python's floats, which only some can save as they are."""
    state: dict[str, Any] = {f"scalar.{i}": i + 0.5 for i in range(count)}

    def save(peer: Peer) -> Facts:
        own = state if isinstance(peer, Torch) else peer.own(state)
        peer.warm(folder / "warm")
        emptied(folder / "new")
        settle(1 << 26)
        return timed(lambda: peer.save(own, folder / "new"), then=lambda _: peer.finish(folder / "new"))

    able = [peer for peer in peers if peer.name.startswith("ckptmgr") or type(peer) is Torch]
    ways = [Way(peer.name, lambda peer=peer: save(peer), peer.ready) for peer in able]
    return Case(f"durable save, {count:,} scalars", ways, ours=OURS)


def again(table: Table, peers: Sequence[Peer], count: int) -> Case:
    """The same tensors saved a second time by one process, as training does."""

    def save(peer: Peer) -> Facts:
        peer.warm(table.folder / "warm")
        return in_turn(peer, peer.own(table.state), table.folder / "again", 2, 2 * table.nbytes)[-1]

    ways = [table.way(peer, lambda peer=peer: save(peer)) for peer in peers if peer.name not in FEW]
    return Case(f"second durable save, {count:,} tensors", ways, table.nbytes, ours=OURS)


def commits(folder: Path, peers: Sequence[Peer], state: State, times: int) -> Case:
    """A tiny checkpoint, durable, in a process that has saved before: the median of many."""

    def save(peer: Peer) -> Facts:
        peer.warm(folder / "warm")
        samples = in_turn(peer, peer.own(state), folder / "run", times, 1 << 20)
        return sorted(samples, key=lambda facts: facts["seconds"])[times // 2]

    ways = [Way(peer.name, lambda peer=peer: save(peer), peer.ready) for peer in peers]
    return Case("durable save of 10 KiB in a warm process", ways, ours=OURS)


def in_turn(peer: Peer, own: Own, folder: Path, times: int, settled: int) -> list[Facts]:
    """Durable saves one after another, each into a folder of its own; ours are steps of one run, each deleted before the next."""
    run = emptied(folder)
    manager = ckptmgr.CheckpointManager(run, backend=peer.backend) if isinstance(peer, Ours) else None
    settle(settled)
    samples = []
    for step in range(times):
        if manager:
            samples.append(timed(lambda step=step: manager.save(step, own)))
            manager.delete(step)
        else:
            new = emptied(run / str(step))
            samples.append(timed(lambda new=new: peer.save(own, new), then=lambda _, new=new: peer.finish(new)))
    emptied(folder)
    return samples


if __name__ == "__main__":
    main(["small_tensors"])
