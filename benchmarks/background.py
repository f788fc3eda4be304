"""How long a save in the background blocks training: several saves in one process, each waited for before the next.

The time shown is that of a save once things are going; the first one, in which memory is touched for the first time, is shown
aside. The limit is a copy of each tensor into memory that was touched. Memory is the peak of all saves together. Each
save is waited for before the next, so that none blocks because the one before is still being written.
"""

import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ckptmgr
from benchmarks import limits
from benchmarks.measure import Case, Facts, Way, emptied, settle, timed
from benchmarks.peers import DCP, Orbax, Ours
from benchmarks.running import main
from benchmarks.states import MIB, State, blank, nbytes_of, transformer

SAVES = 5
Save = Callable[[Any, Path], Callable[[], object]]  # starts a save, and gives what waits for it


def cases(folder: Path, peers: Sequence[str] | None = None, *, quick: bool = False, nbytes: int = 0) -> list[Case]:
    """Blocked time with mutable arrays, and with immutable ones of jax."""
    state = transformer(nbytes or (64 if quick else 256) * MIB)
    total = nbytes_of(state)

    def way(who: str, task: Callable[[], Facts], ready: Callable[[], object]) -> Way:
        return Way(who, task, ready)

    ours, dcp, orbax = Ours(), DCP(), Orbax()
    copying = way(limits.COPY, lambda: copies(state, total), ours.ready)
    mutable = [copying, way("ckptmgr BackgroundSaver", lambda: saves(folder, state, total, by_ours), ours.ready)]
    immutable = [way("ckptmgr BackgroundSaver", lambda: saves(folder, on_jax(state), total, by_ours), ready_jax)]
    if peers is None or dcp.name in peers:
        mutable.append(way("torch DCP async_save", lambda: saves(folder, dcp.own(state), total, by_dcp), dcp.ready))
        mutable.append(way("torch DCP, kept stager", lambda: saves(folder, dcp.own(state), total, by_dcp_kept), dcp.ready))
    if peers is None or orbax.name in peers:
        mutable.append(way("Orbax AsyncCheckpointer", lambda: saves(folder, state, total, by_orbax), orbax.ready))
        immutable.append(way("Orbax AsyncCheckpointer", lambda: saves(folder, on_jax(state), total, by_orbax), orbax.ready))
    made = [Case("blocked by a save", mutable, total, limits.COPY, "ckptmgr BackgroundSaver", "the first save")]
    made.append(Case("blocked by a save of jax arrays", immutable, 0, "", "ckptmgr BackgroundSaver", "the first save"))
    return made


def ready_jax() -> None:
    """What our saves of jax arrays need."""
    import jax.numpy  # noqa: F401


def copies(state: State, nbytes: int) -> Facts:
    """The limit: every tensor into its place in memory that was touched."""
    into = blank(state)
    settle(nbytes)
    seconds = [timed(lambda: limits.copy(state, into))["seconds"] for _ in range(SAVES)]
    return {"seconds": statistics.median(seconds[1:]), "aside": seconds[0], "extra_nbytes": 0}


def saves(folder: Path, state: Any, nbytes: int, start: Callable[[Path], tuple[Save, Callable[[], object]]]) -> Facts:
    """Seconds for which saves block: the median of all but the first, and the first."""
    new = emptied(folder / "background")
    save, close = start(new)
    blocked: list[float] = []
    settle(2 * nbytes)

    def run() -> None:
        for step in range(SAVES):
            begun = time.perf_counter()
            wait = save(state, new / str(step))
            blocked.append(time.perf_counter() - begun)
            wait()
            shutil.rmtree(new / str(step), ignore_errors=True)

    extra = timed(run)["extra_nbytes"]
    close()
    emptied(new)
    return {"seconds": statistics.median(blocked[1:]), "aside": blocked[0], "extra_nbytes": extra}


def by_ours(folder: Path) -> tuple[Save, Callable[[], object]]:
    """`ckptmgr.BackgroundSaver`, which keeps one step."""
    manager = ckptmgr.CheckpointManager(folder / "run", retention=ckptmgr.KeepLast(1))
    saver = ckptmgr.BackgroundSaver(manager)
    return lambda state, path: saver.save(int(path.name), state).result, saver.close


def by_dcp(folder: Path) -> tuple[Save, Callable[[], object]]:
    """`torch.distributed.checkpoint.async_save` as it is by default."""
    import torch.distributed.checkpoint as dcp

    return lambda state, path: dcp.async_save(state, checkpoint_id=path, no_dist=True).result, lambda: None


def by_dcp_kept(folder: Path) -> tuple[Save, Callable[[], object]]:
    """The same with a stager that is kept between saves, and so its memory."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    stager = DefaultStager(StagingOptions(False, False, False, False))
    return lambda state, path: dcp.async_save(state, checkpoint_id=path, no_dist=True, async_stager=stager).result, stager.close


def by_orbax(folder: Path) -> tuple[Save, Callable[[], object]]:
    """`orbax.checkpoint.AsyncCheckpointer`."""
    import orbax.checkpoint as ocp

    saver = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())

    def save(state: Any, path: Path) -> Callable[[], object]:
        saver.save(path, state)
        return saver.wait_until_finished

    return save, saver.close


def on_jax(state: State) -> dict[str, Any]:
    """The state as jax arrays, which nobody can change."""
    import jax
    import jax.numpy as jnp

    return jax.block_until_ready({name: jnp.array(array) for name, array in state.items()})


if __name__ == "__main__":
    main(["background"])
