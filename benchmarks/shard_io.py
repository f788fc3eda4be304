"""Throughput by number of files, their size, readers at a time, format and storage; from files in memory and not.

``storage`` is a folder: a path, or any URL that ckptmgr can keep checkpoints in (`--storage`). The number of readers is the
store's `workers`. Only local files can be dropped from memory.
"""

import uuid
from collections.abc import Sequence
from pathlib import Path

import ckptmgr
from benchmarks.limits import READ, WRITE, Raw
from benchmarks.measure import Case, Facts, Way, drop, emptied, read_in, settle, sync, timed
from benchmarks.running import main
from benchmarks.states import MIB, State, nbytes_of, read_through, repeated

FILES = (1, 4, 16, 64)
SHARDS = (1, 8, 64)  # MiB in a file
WORKERS = (1, 2, 4)
BACKENDS = ("safetensors", "tf_bundle", "hdf5")


def cases(
    folder: Path, peers: Sequence[str] | None = None, *, quick: bool = False, nbytes: int = 0, storage: str = ""
) -> list[Case]:
    """Each setting apart from the others: the rest is as it is by default."""
    nbytes = nbytes or (64 if quick else 256) * MIB
    state = repeated(nbytes, tensor_nbytes=max(nbytes // 64, 4096))
    shards = Shards(state, folder, storage)
    by_count = {f"{count} file{'s' * (count > 1)}": {"file_nbytes": max(nbytes // count, 1)} for count in FILES}
    by_size = {f"files of {size} MiB": {"file_nbytes": size * MIB} for size in SHARDS if size * MIB <= nbytes}
    by_workers = {f"{count} at a time": {"workers": count} for count in WORKERS}
    made = [shards.saved("by number of files", by_count), shards.saved("by size of files", by_size)]
    made += [shards.saved("by format", {name: {"backend": name} for name in BACKENDS})]
    for cold in (False, True) if shards.is_local else (False,):
        made.append(shards.restored("by number of files", by_count, cold=cold))
        made.append(shards.restored("by readers", by_workers, cold=cold))
    return made


class Shards:
    """One state in many shapes, beside the same bytes in one file by plain system calls."""

    def __init__(self, state: State, folder: Path, storage: str) -> None:
        self.state = state
        self.nbytes = nbytes_of(state)
        self.folder = folder
        self.is_local = "://" not in storage
        self.storage = storage.rstrip("/") or str(folder / "shards")

    def saved(self, name: str, settings: dict[str, dict]) -> Case:
        """A durable save by each setting."""

        def raw() -> Facts:
            new = emptied(self.folder / "raw")
            settle(2 * self.nbytes)
            return timed(lambda: Raw(WRITE).save(self.state, new), then=lambda _: sync(new))

        def ours(setting: dict) -> Facts:
            manager = self.manager(**setting)
            settle(2 * self.nbytes)
            facts = timed(lambda: manager.save(0, self.state))
            manager.delete(0)
            return facts

        return self.case(f"durable save {name}", WRITE, raw, settings, ours)

    def restored(self, name: str, settings: dict[str, dict], *, cold: bool) -> Case:
        """A restore by each setting, of files that the process has just saved."""

        def at_hand(folder: Path) -> None:
            settle(2 * self.nbytes)
            (drop if cold else read_in)(folder)

        def raw() -> Facts:
            peer, new = Raw(READ, self.state), emptied(self.folder / "raw")
            peer.save(self.state, new)
            at_hand(new)
            return timed(lambda: peer.load(new), then=read_through)

        def ours(setting: dict) -> Facts:
            manager = self.manager(**setting)
            manager.save(0, self.state)
            if self.is_local:
                at_hand(Path(manager.path(0)))
            facts = timed(lambda: manager.restore(0), then=lambda restored: read_through(restored.state))
            manager.delete(0)
            return facts

        return self.case(f"restore {name}" + ", not in memory" * cold, READ, raw, settings, ours)

    def case(self, name: str, limit: str, raw, settings: dict[str, dict], ours) -> Case:
        """The limit, and ours by each setting."""
        ways = [Way(label, lambda setting=setting: ours(setting)) for label, setting in settings.items()]
        return Case(name, [Way(limit, raw), *ways] if self.is_local else ways, self.nbytes, limit * self.is_local)

    def manager(
        self, *, backend: str = "safetensors", file_nbytes: int | None = None, workers: int | None = None
    ) -> ckptmgr.CheckpointManager:
        """A new run in the storage."""
        manager = ckptmgr.CheckpointManager(
            f"{self.storage}/{uuid.uuid4().hex}", backend=backend, max_file_nbytes=file_nbytes
        )  # fmt: skip
        if workers:
            manager.folder.store.workers = workers
        return manager


if __name__ == "__main__":
    main(["shard_io"])
