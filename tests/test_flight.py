"""What object stores have on their way: bounded for all files together, many at once below that, and told while it moves."""

import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from services import Sparse

from ckptmgr import CheckpointManager
from ckptmgr.storage import ObjectStore, open_folder

pytestmark = pytest.mark.cloud
MIB = 1 << 20
WINDOW, FILES = 4 * MIB, 6


@pytest.fixture(scope="module")
def sparse() -> Iterator[Sparse]:
    with Sparse() as server:
        yield server


def peak_of_many(sparse: Sparse, in_flight_nbytes: int) -> int:
    """Bytes of memory that it takes to send six files of 48 MiB at once, each window in new memory."""
    store = open_folder("s3://test-bucket/many", {**sparse.options(), "in_flight_nbytes": in_flight_nbytes}).store

    def send(number: int) -> None:
        store.put(f"file-{number}", ([np.full(WINDOW, number, np.uint8)] for _ in range(12)), 12 * WINDOW)

    tracemalloc.start()
    with ThreadPoolExecutor(FILES) as pool:
        list(pool.map(send, range(FILES)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_many_files_at_once_take_the_budget_and_little_more(sparse: Sparse) -> None:
    assert peak_of_many(sparse, 32 * MIB) <= 32 * MIB + 2 * FILES * WINDOW
    assert peak_of_many(sparse, 1 << 40) > 32 * MIB + 2 * FILES * WINDOW


@pytest.mark.parametrize("in_flight_nbytes", [1, 5 * MIB, 40 * MIB])
def test_any_budget_is_enough(sparse: Sparse, in_flight_nbytes: int) -> None:
    store = open_folder("s3://test-bucket/any", {**sparse.options(), "in_flight_nbytes": in_flight_nbytes}).store
    data = np.random.default_rng(0).integers(0, 255, 37 * MIB, np.uint8)
    back = np.empty_like(data)

    store.put("file", ([data[at : at + 3 * MIB]] for at in range(0, data.nbytes, 3 * MIB)), data.nbytes)
    store.read_into("file", 0, [back])

    assert (back == data).all()


@pytest.mark.parametrize(
    ("cores", "in_flight_nbytes", "ranges"),
    [(None, 64 * MIB, 8), (2, 64 * MIB, 8), (2, 1, 8), (2, 128 * MIB, 16), (6, 64 * MIB, 12), (64, 64 * MIB, 16)],
)
def test_few_cores_read_few_ranges(
    cores: int | None, in_flight_nbytes: int, ranges: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)

    assert ObjectStore("s3://bucket", in_flight_nbytes=in_flight_nbytes).workers == ranges


def test_no_budget_is_an_error() -> None:
    with pytest.raises(ValueError, match="in_flight_nbytes must be at least 1, not 0"):
        ObjectStore("s3://bucket", in_flight_nbytes=0)


def test_progress_is_told_while_bytes_move(sparse: Sparse) -> None:
    told: list[tuple[int, int]] = []
    manager = CheckpointManager(
        "s3://test-bucket/told", storage_options=sparse.options(), progress=lambda done, total: told.append((done, total))
    )
    state = {"a": np.ones(80 * MIB, np.uint8), "b": np.ones(80 * MIB, np.uint8)}

    manager.save(1, state)
    saved = [done for done, _ in told]
    told.clear()
    manager.restore(into={name: np.zeros_like(array) for name, array in state.items()})

    assert len({done for done in saved if 0 < done < 160 * MIB}) >= 4
    for seen in (saved, [done for done, _ in told]):
        assert seen == sorted(seen)
        assert seen[-1] >= 160 * MIB


def test_a_save_makes_its_checksums_where_it_makes_the_parts(sparse: Sparse) -> None:
    names: set[str] = set()

    def look(done: int, total: int) -> None:
        names.update(thread.name for thread in threading.enumerate() if done < total)

    manager = CheckpointManager("s3://test-bucket/threads", storage_options=sparse.options(), progress=look)
    manager.save(1, {"a": np.ones(80 * MIB, np.uint8)})

    assert "ckptmgr-upload" in names
    assert "ckptmgr-lane" not in names  # it would be woken for each window, and what it reads be out of cache when it is sent


def test_many_files_of_one_save_are_on_their_way_at_once(sparse: Sparse, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = CheckpointManager("s3://test-bucket/abreast", storage_options=sparse.options(), max_file_nbytes=MIB)
    state = {f"t{number}": np.full(MIB, number, np.uint8) for number in range(9)}
    inside, most = set[str](), [0]
    put = ObjectStore.put

    def counted(store: ObjectStore, key: str, *args: object) -> object:
        inside.add(key)
        most[0] = max(most[0], len(inside))
        try:
            return put(store, key, *args)
        finally:
            inside.discard(key)

    monkeypatch.setattr(ObjectStore, "put", counted)
    manager.save(1, state)

    assert 1 < most[0] <= ObjectStore.files_at_once
    found = manager.restore().state
    assert all((found[name] == array).all() for name, array in state.items())
    assert manager.verify(1).problems == ()


def test_a_file_that_fails_among_many_ends_the_save(sparse: Sparse, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = CheckpointManager("s3://test-bucket/failing", storage_options=sparse.options(), max_file_nbytes=MIB)
    put = ObjectStore.put

    def failing(store: ObjectStore, key: str, *args: object) -> object:
        if "00003-of" in key:
            raise OSError("no more")
        return put(store, key, *args)

    monkeypatch.setattr(ObjectStore, "put", failing)
    with pytest.raises(OSError, match="no more"):
        manager.save(1, {f"t{number}": np.full(MIB, number, np.uint8) for number in range(9)})

    assert manager.steps() == []
