"""Bytes on their way: never more than the budget, however many want to send, and none lost to who failed."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ckptmgr.storage.budget import Budget
from ckptmgr.storage.pieces import feed

MIB = 1 << 20


def test_what_is_out_never_exceeds_the_budget() -> None:
    budget, lock, out, seen = Budget(100), threading.Lock(), [0], []

    def hold(nbytes: int) -> None:
        with budget.held(nbytes):
            with lock:
                out[0] += nbytes
                seen.append(out[0])
            with lock:
                out[0] -= nbytes

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, [60, 30, 10, 50, 100, 1] * 50))

    assert len(seen) == 300
    assert max(seen) <= 100


def test_who_wants_more_than_all_gets_all() -> None:
    budget = Budget(10)

    with budget.held(1_000):
        pass

    assert budget.take(10).nbytes == 10


def test_a_share_ends_when_its_last_view_is_let_go() -> None:
    budget = Budget(10)
    share = budget.take(10)
    views = [memoryview(bytes(5)), memoryview(bytes(5))]
    share.end_with(views)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(budget.take, 10)
        views.pop()
        assert not waiting.done()
        views.clear()

        assert waiting.result(timeout=10).nbytes == 10


def test_parts_wait_until_the_client_has_let_go_of_others() -> None:
    made: list[int] = []  # of each piece, how many were made when the client got it

    def pieces():
        for _ in range(6):
            made.append(len(made))
            yield memoryview(np.zeros(10, np.uint8))

    seen = []

    def send(taken) -> None:
        held = []
        for piece in taken:
            held.append(piece)
            del piece
            if len(held) == 2:  # a part of two pieces of 10 is sent
                seen.append(len(made))
                held.clear()

    feed(send, pieces(), [20, 20, 20], Budget(20))

    assert seen == [2, 4, 6]


def test_pieces_are_cut_where_parts_end() -> None:
    sizes: list[int] = []

    feed(lambda taken: sizes.extend(map(len, taken)), iter([memoryview(bytes(25)), memoryview(bytes(5))]), [20, 10], Budget(100))

    assert sizes == [20, 5, 5]


def test_a_failed_upload_gives_its_bytes_back_although_its_error_is_kept() -> None:
    budget = Budget(10)

    def send(taken) -> None:
        held = [next(taken)]
        raise OSError(f"sent {len(held)}")

    with pytest.raises(OSError, match="sent 1") as caught:
        feed(send, iter([memoryview(bytes(10))] * 3), [10] * 3, budget)

    budget.take(10).end()
    assert caught.traceback  # which has the frames, and they what they held
    gc.collect()


def test_an_interrupted_upload_gives_its_bytes_back() -> None:
    budget = Budget(20)

    def pieces():
        yield memoryview(bytes(10))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        feed(lambda taken: [len(piece) for piece in taken], pieces(), [10, 10], budget)

    budget.take(20).end()
