"""The engine on a bad day: many writes and reads at a time, on disks and stores that fail, do half or come to nothing.

The law: what is told to be written is there with these checksums, what failed is whole or absent, what is read is right or an
error, and no thread, descriptor or unfinished file is left. Set CKPTMGR_ALL_FAULTS=1 for many more days.
"""

import errno
import os
import random
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interrupts import descriptors
from runs import state
from syscalls import exit_code, start_child
from transfers import AWKWARD, RAW_DTYPES, Array, FileSource, RamStore, awkward, lanes, spec_of
from transfers import raw as bytes_of

from ckptmgr import CheckpointManager, KeepLast, transfer
from ckptmgr.box import Box
from ckptmgr.checksum import crc32c
from ckptmgr.layout import Extent, FileLayout, Late, Layout, Part, Piece
from ckptmgr.memory import MemorySource
from ckptmgr.storage import Buffer, Folder, PosixStore, Store, Stored, vectored
from ckptmgr.testing import sample
from ckptmgr.transfer import Want

DAYS = range(2000 if "CKPTMGR_ALL_FAULTS" in os.environ else 16)
WORKERS, JOBS = 4, 8
ERRORS = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.ENOMEM]


class Trouble(Exception):
    """What a source, a progress or a check raises."""


class Disk:
    """`os` as `vectored` sees it: calls move less than they were asked to, are interrupted, or fail."""

    def __init__(self, rng: random.Random, rate: float) -> None:
        self.rng, self.rate = rng, rate

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int, flags: int = 0) -> int:
        return os.pwritev(fd, self.some(buffers), offset, flags)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.preadv(fd, self.some(buffers), offset)

    def some(self, buffers: Sequence[Buffer]) -> list[Any]:
        """The first of the bytes, at least one of them."""
        if self.rng.random() < self.rate:
            code = self.rng.choice(ERRORS)
            raise OSError(code, os.strerror(code))
        if self.rng.random() < 0.5:
            return list(buffers)
        last = self.rng.randrange(len(buffers))
        found = [*buffers[:last], bytes_of(buffers[last])]
        return [*found[:-1], found[-1][: self.rng.randint(1, max(found[-1].size, 1))]]

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


class Cloud(RamStore):
    """Takes several files at once, holds on to as little as a window, and fails now and then."""

    files_at_once = 3

    def __init__(self, rng: random.Random, rate: float, window: int) -> None:
        super().__init__(window)
        self.rng, self.rate = rng, rate
        self.url = "ram://"

    def put(self, key: str, windows: Iterable[Sequence[Buffer]], nbytes: int) -> Stored:
        return super().put(key, self.failing(windows), nbytes)

    def failing(self, windows: Iterable[Sequence[Buffer]]) -> Iterator[Sequence[Buffer]]:
        for window in windows:
            if self.rng.random() < self.rate:
                raise OSError(errno.ECONNRESET, "the line is dead")
            yield window


class Source(MemorySource):
    """Tensors in memory, one of which cannot be had now and then."""

    def __init__(self, tensors: dict[str, Array], rng: random.Random, rate: float) -> None:
        super().__init__(tensors, {name: spec_of(array) for name, array in tensors.items()})
        self.rng, self.rate = rng, rate

    def read(self, name: str, box: Box | None = None, out: Array | None = None) -> Array:
        if self.rng.random() < self.rate / 4:
            raise Trouble(name)
        return super().read(name, box, out)


class Day:
    """Some threads that write and read in one store."""

    def __init__(self, seed: int, store: Store, rate: float) -> None:
        self.seed, self.store, self.rate = seed, store, rate
        self.errors: list[BaseException] = []
        self.counts = {"written": 0, "failed": 0, "read": 0, "unread": 0}

    def run(self) -> None:
        threads = [threading.Thread(target=self.work, args=(number,)) for number in range(WORKERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads), "hangs"
        if self.errors:
            raise self.errors[0]

    def work(self, number: int) -> None:
        rng = random.Random(f"{self.seed}-{number}")
        try:
            for job in range(JOBS):
                self.write_and_read(rng, Folder(self.store, f"{number}-{job}/"))
        except BaseException as error:  # noqa: BLE001 - told by the thread that waits
            self.errors.append(error)

    def write_and_read(self, rng: random.Random, folder: Folder) -> None:
        tensors, layout, expected = contents(rng)
        told: list[Any] = []

        def hook(*args: Any) -> None:
            told.append(args)
            if rng.random() < self.rate / 8:
                raise Trouble("hook")

        hooks = {name: hook for name in ("progress", "meanwhile", "check") if rng.random() < 0.5}
        try:
            written = transfer.write(folder, layout, Source(tensors, rng, self.rate), **hooks)
        except (OSError, Trouble):
            self.counts["failed"] += 1
            assert all(found in (None, expected[name]) for name in expected for found in [self.bytes(folder, name)])
            return
        self.counts["written"] += 1
        assert {name: self.bytes(folder, name) for name in expected} == expected
        assert {name: file.crc32c for name, file in written.files.items()} == {n: crc32c(data) for n, data in expected.items()}
        self.read(rng, places(folder, layout, tensors, written), tensors)

    def read(self, rng: random.Random, source: FileSource, tensors: dict[str, Array]) -> None:
        wants = [wanted(rng, name, array) for name, array in tensors.items()]
        try:
            found, _ = transfer.read(source, wants)
        except OSError:
            self.counts["unread"] += 1
            return
        self.counts["read"] += 1
        for want, array in zip(wants, found, strict=True):
            box = tensors[want.name][want.box.slices] if want.box else tensors[want.name]
            assert array.tobytes() == np.ascontiguousarray(box).astype(array.dtype).tobytes()

    def bytes(self, folder: Folder, name: str) -> bytes | None:
        if isinstance(self.store, RamStore):
            return self.store.files.get(folder.key(name))
        path = Path(self.store.location(folder.key(name)))
        return path.read_bytes() if path.exists() else None


def contents(rng: random.Random) -> tuple[dict[str, Array], Layout, dict[str, bytes]]:
    """Tensors of any dtype and memory, files that hold them, and what these must be."""
    tensors: dict[str, Array] = {}
    files, expected = [], {}
    for number in range(rng.randint(1, 5)):
        pieces: list[Piece] = [b"head" * rng.randint(0, 300)]
        data = [pieces[0]]
        for index in range(rng.choice([1, 3, 40])):
            shape = (rng.choice([0, 1, 7, 60]), rng.choice([1, 5, 11])) if rng.random() < 0.9 else (700, 9)
            base = sample(rng.choice(RAW_DTYPES), shape, seed=index)
            tensors[f"{number}-{index}"] = awkward(base, rng.choice(AWKWARD))
            pieces.append(Part(f"{number}-{index}", spec_of(base)))
            data.append(base.tobytes())
            if rng.random() < 0.05:
                pieces.append(Late(4, lambda known, file=f"f{number}": known[file]["crc32c"][-1].to_bytes(4, "little")))
                data.append(crc32c(data[-1]).to_bytes(4, "little"))
        files.append(FileLayout(f"f{number}", tuple(pieces)))
        expected[f"f{number}"] = b"".join(data)  # type: ignore[arg-type]
    return tensors, Layout(tuple(files)), expected


def places(folder: Folder, layout: Layout, tensors: dict[str, Array], written: transfer.Written) -> FileSource:
    """The tensors as they lie in the files that were written."""
    extents = {}
    for file in layout.files:
        at = 0
        for piece, size, value in zip(file.pieces, file.sizes, written.digests[file.name]["crc32c"], strict=True):
            if isinstance(piece, Part):
                extents[piece.name] = [Extent(folder, file.name, at, None, value)]
            at += size or 0
    return FileSource({name: spec_of(array) for name, array in tensors.items()}, extents)


def wanted(rng: random.Random, name: str, array: Array) -> Want:
    """All of a tensor, or a part of it, for a new array or a given one."""
    if rng.random() < 0.5:
        return Want(name, None, np.zeros(array.shape, spec_of(array).numpy) if rng.random() < 0.5 else None)
    bounds = [sorted((rng.randint(0, n), rng.randint(0, n))) for n in array.shape]
    return Want(name, Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds)))


@pytest.mark.parametrize("seed", DAYS)
def test_many_writes_and_reads_at_once_on_a_sick_disk(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    store = PosixStore(tmp_path / "store")
    store.window_nbytes = rng.choice([100, 1000, 5000, 2 << 20])
    before, rate = descriptors(), rng.choice([0, 0.001, 0.02])
    monkeypatch.setattr(vectored, "os", Disk(rng, rate))

    day = Day(seed, store, rate)
    day.run()

    assert day.counts["written"] + day.counts["failed"] == WORKERS * JOBS
    assert rate or not day.counts["failed"] + day.counts["unread"]
    assert descriptors() == before
    assert lanes() == []
    assert not [path for path in (tmp_path / "store").rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize("seed", DAYS)
def test_many_writes_and_reads_at_once_on_a_sick_line(seed: int) -> None:
    rng = random.Random(seed)
    rate = rng.choice([0, 0.001, 0.02])
    store: Any = Cloud(rng, rate, rng.choice([100, 1000, 5000, 1 << 20]))

    day = Day(seed, store, rate)
    day.run()

    assert day.counts["written"] + day.counts["failed"] == WORKERS * JOBS
    assert rate or not day.counts["failed"] + day.counts["unread"]
    assert lanes() == []
    assert all(sum(sizes) <= store.window_nbytes for windows in store.windows.values() for sizes in windows if len(sizes) > 1)


def test_processes_forked_from_one_that_saves_can_save_and_restore_and_harm_nothing(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "run", retention=KeepLast(3))
    manager.save(1, state(1))
    is_over = threading.Event()
    saved = [1]

    def save() -> None:
        while not is_over.is_set():
            manager.save(saved[-1] + 1, state(saved[-1] + 1))
            saved.append(saved[-1] + 1)

    def child(number: int) -> None:
        threading.Timer(60, os._exit, [9]).start()  # hangs
        own = CheckpointManager(tmp_path / f"run-{number}")
        own.save(1, state(number))
        assert own.restore().state["epoch"] == number
        assert manager.restore().step in range(1, 10**6)
        os._exit(0)

    thread = threading.Thread(target=save)
    thread.start()
    codes = [exit_code(start_child(lambda number=number: child(number))) for number in range(12)]
    is_over.set()
    thread.join(60)

    assert codes == [0] * 12
    assert not thread.is_alive()
    assert manager.latest().step == saved[-1]  # type: ignore[union-attr]
    assert manager.verify().ok
