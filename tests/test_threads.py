"""What threads do is done without them where the system refuses them."""

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ckptmgr import BackgroundSaver, CheckpointManager, TieredManager
from ckptmgr.storage import fsspecs
from ckptmgr.storage.budget import Budget
from ckptmgr.storage.pieces import feed
from ckptmgr.threads import Pool, alive, started

Limit = Callable[[int], None]


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    """Lets so many threads be started, and refuses all others."""
    start = threading.Thread.start

    def allow(count: int) -> None:
        left = [None] * count

        def start_or_refuse(thread: threading.Thread) -> None:
            if not left:
                raise RuntimeError("can't start new thread")
            left.pop()
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", start_or_refuse)

    return allow


@pytest.mark.parametrize("count", [0, 1, 2, 8])
def test_a_pool_makes_every_call_once_with_as_few_threads_as_there_are(count: int, limit: Limit) -> None:
    made: list[int] = []
    limit(count)

    with Pool(4) as pool:
        squares = list(pool.map(lambda number: made.append(number) or number * number, range(200)))

    assert squares == [number * number for number in range(200)]
    assert sorted(made) == list(range(200))


def test_a_call_that_waits_for_the_only_thread_there_is_is_made_by_who_submits_it(limit: Limit) -> None:
    limit(1)
    held = threading.Event()

    with Pool(2) as pool:
        first = pool.submit(held.wait, 60)
        second = pool.submit(threading.get_ident)

        assert second.result() == threading.get_ident()
        assert not first.done()
        held.set()


@pytest.mark.parametrize("count", [0, 1])
def test_an_error_of_a_pool_keeps_nothing_that_the_call_had(count: int, limit: Limit) -> None:
    class Large:
        pass

    def fail() -> None:
        large = Large()
        seen.append(weakref.ref(large))
        raise ValueError("no")

    seen: list[weakref.ref[Large]] = []
    limit(count)
    gc.disable()
    try:
        with Pool(1) as pool, pytest.raises(ValueError, match="no") as caught:
            pool.submit(fail).result()
        del caught

        assert seen[0]() is None
    finally:
        gc.enable()


def test_a_pool_that_was_shut_takes_no_call(limit: Limit) -> None:
    limit(0)
    with Pool(1) as pool:
        pass

    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(int)


def test_what_waits_in_a_pool_is_cancelled_with_it() -> None:
    held, begun = threading.Event(), threading.Event()
    pool = Pool(1)
    pool.submit(lambda: begun.set() or held.wait(60))
    waiting = pool.submit(int)
    assert begun.wait(60)

    pool.shutdown(wait=False, cancel_futures=True)
    held.set()

    assert waiting.cancelled()


def test_a_thread_that_runs_is_not_taken_for_a_refused_one() -> None:
    thread = threading.Thread(target=time.sleep, args=(0,))

    assert started(thread)
    with pytest.raises(RuntimeError, match="once"):
        started(thread)
    thread.join()


def test_a_thread_is_kept_while_it_is_alive(limit: Limit) -> None:
    held = threading.Event()
    first = alive(None, "held", held.wait, 60)
    assert first is not None

    assert alive(first, "held", held.wait, 60) is first
    held.set()
    first.join()
    limit(0)
    assert alive(first, "held", held.wait, 60) is None


def test_an_upload_gets_its_pieces_and_the_budget_without_a_thread(limit: Limit) -> None:
    budget, sizes = Budget(20), list[int]()
    limit(0)

    feed(lambda taken: sizes.extend(map(len, taken)), (memoryview(bytes(20)) for _ in range(3)), [20, 20, 20], budget)

    assert sizes == [20, 20, 20]
    budget.take(20).end()


def test_a_background_save_is_done_before_the_call_returns(tmp_path: Path, limit: Limit) -> None:
    manager = CheckpointManager(tmp_path)
    saver = BackgroundSaver(manager)
    limit(0)

    pending = saver.save(1, {"w": np.arange(5)})

    assert pending.done()
    assert pending.result().step == 1
    saver.save(2, {"w": np.arange(5)})
    saver.close()
    assert [info.step for info in manager.steps()] == [1, 2]


def test_a_background_save_that_is_done_at_once_cannot_save_in_turn(tmp_path: Path, limit: Limit) -> None:
    def save_again(done: int, total: int) -> None:
        saver.save(2, {"w": np.arange(5)})

    saver = BackgroundSaver(CheckpointManager(tmp_path, progress=save_again))
    limit(0)

    pending = saver.save(1, {"w": np.arange(5)})

    with pytest.raises(RuntimeError, match="this is the thread that writes"):
        pending.result()


def test_copies_are_done_before_the_save_returns(tmp_path: Path, limit: Limit) -> None:
    tiers = TieredManager(CheckpointManager(tmp_path / "near"), CheckpointManager(tmp_path / "far"))
    limit(0)

    tiers.save(1, {"w": np.arange(5)})

    assert [info.step for info in CheckpointManager(tmp_path / "far").steps()] == [1]
    tiers.save(2, {"w": np.arange(5)})
    tiers.delete(1)
    tiers.close()
    assert [info.step for info in CheckpointManager(tmp_path / "far").steps()] == [2]


def test_clients_of_fsspec_are_refused_where_their_thread_is(limit: Limit, monkeypatch: pytest.MonkeyPatch) -> None:
    asyn = pytest.importorskip("fsspec.asyn")
    monkeypatch.setattr(asyn, "loop", [None])
    monkeypatch.setattr(asyn, "iothread", [None])
    limit(0)

    for _ in range(2):  # and not waited for the second time
        with pytest.raises(BlockingIOError, match="can't start new thread"):
            fsspecs.start()
