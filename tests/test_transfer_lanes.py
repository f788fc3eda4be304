"""Threads of a transfer: order, bounds, errors, and that none is left."""

import itertools
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from interrupts import interrupted_at, wait_for
from transfers import lanes

from ckptmgr.transfer.lanes import Lane, share


def test_a_lane_makes_calls_in_order_on_one_other_thread() -> None:
    made: list[tuple[int, int]] = []

    with Lane(2) as lane:
        for number in range(50):
            lane.submit(lambda number=number: made.append((number, threading.get_ident())))
        lane.wait()

    assert [number for number, _ in made] == list(range(50))
    assert len({thread for _, thread in made} - {threading.get_ident()}) == 1
    assert lanes() == []


def test_no_more_calls_wait_than_the_lane_is_deep() -> None:
    made: list[int] = []

    with Lane(3) as lane:
        for number in range(1, 100):
            lane.submit(lambda number=number: made.append(number))
            assert number - len(made) <= 3


def test_short_calls_need_no_thread_until_there_is_one() -> None:
    made: list[tuple[int, bool]] = []

    def call(number: int) -> None:
        made.append((number, threading.current_thread() is threading.main_thread()))

    with Lane(2) as lane:
        for number in range(5):
            lane.submit(lambda number=number: call(number), is_short=number != 2)
        lane.wait()

    assert made == [(0, True), (1, True), (2, False), (3, False), (4, False)]
    assert lanes() == []


def test_an_error_of_a_short_call_is_raised_at_once() -> None:
    with pytest.raises(ZeroDivisionError), Lane(2) as lane:
        lane.submit(lambda: 1 // 0, is_short=True)


def test_a_lane_that_is_not_used_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", None)

    with Lane(2) as lane:
        lane.wait()


def test_an_error_on_the_lane_is_raised_to_the_caller_and_ends_it() -> None:
    later: list[int] = []
    submitted = threading.Event()

    def fail() -> None:
        submitted.wait(60)
        raise ZeroDivisionError

    def run() -> None:
        with Lane(2) as lane:
            lane.submit(fail)
            lane.submit(lambda: later.append(1))
            submitted.set()
            lane.wait()

    with pytest.raises(ZeroDivisionError):
        run()

    assert later == []
    assert lanes() == []


@given(st.integers(0, 30), st.integers(1, 5))
def test_each_task_is_taken_once(tasks: int, workers: int) -> None:
    taken: list[int] = []

    share(range(tasks), taken.extend, workers)

    assert sorted(taken) == list(range(tasks))
    assert lanes() == []


def test_an_error_in_another_thread_is_raised_to_the_caller_and_stops_all() -> None:
    caller = threading.get_ident()
    begun = threading.Event()
    taken: list[int] = []

    def work(line: Iterator[int]) -> None:
        for task in line:
            if threading.get_ident() != caller:
                begun.set()
                raise RuntimeError("disk lost")
            begun.wait(60)
            taken.append(task)

    with pytest.raises(RuntimeError, match="disk lost"):
        share(range(1000_000), work, 2)

    assert len(taken) < 1000_000
    assert lanes() == []


def test_an_error_in_the_callers_thread_stops_the_others() -> None:
    caller = threading.get_ident()
    begun = threading.Event()

    def work(line: Iterator[int]) -> None:
        for _ in line:
            if threading.get_ident() == caller:
                begun.wait(60)
                raise KeyboardInterrupt
            begun.set()

    with pytest.raises(KeyboardInterrupt):
        share(itertools.count(), work, 2)

    assert lanes() == []


def test_an_error_of_the_tasks_themselves_is_raised() -> None:
    def tasks() -> Iterator[int]:
        yield 1
        raise RuntimeError("no plan")

    with pytest.raises(RuntimeError, match="no plan"):
        share(tasks(), list, 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_place_ends_all_threads() -> None:
    def use() -> None:
        with Lane(2) as lane:
            for _ in range(3):
                lane.submit(lambda: None)
            lane.wait()
        share(range(5), list, 2)

    for place in range(interrupted_at(None, use)):
        interrupted_at(place, use)
        wait_for(lambda: lanes() == [])
