"""Which copies are due: decided over values, without a store."""

from datetime import UTC, datetime, timedelta

from ckptmgr import KeepAll, KeepBest, KeepEvery, KeepLast, StepInfo
from ckptmgr.due import due

START = datetime(2026, 1, 1, tzinfo=UTC)


def info(step: int, *, sequence: int | None = None, minute: int | None = None, pins: str = "", loss: float = 0.0) -> StepInfo:
    created = START + timedelta(minutes=step if minute is None else minute)
    number = step if sequence is None else sequence
    return StepInfo(step, f"{step:016x}", number, "run", created, "raw", 1, {"loss": loss}, pins=frozenset(pins.split()))


def numbers(steps: list[StepInfo]) -> list[int]:
    return [each.step for each in steps]


def test_all_that_is_missing_is_due_newest_first() -> None:
    assert numbers(due([info(1), info(2), info(3)], [info(2)], KeepAll())) == [3, 1]


def test_nothing_is_due_that_remote_retention_would_not_keep() -> None:
    local = [info(step) for step in (1, 2, 3, 4)]

    assert numbers(due(local, [], KeepLast(2))) == [4, 3]
    assert numbers(due(local, [info(9)], KeepLast(2))) == [4]  # the newest there is newer than all here
    assert numbers(due(local, [], KeepEvery(2))) == [4, 2]
    assert numbers(due([info(1, loss=1), info(2, loss=3), info(3, loss=2)], [], KeepBest("loss"))) == [3, 1]


def test_a_policy_or_a_function_chooses_what_is_copied() -> None:
    local = [info(1), info(2, pins="paper"), info(3), info(4)]

    assert numbers(due(local, [], KeepAll(), KeepEvery(3))) == [3, 2]
    assert numbers(due(local, [], KeepAll(), lambda each: each.step < 2)) == [2, 1]
    assert numbers(due(local, [], KeepAll(), lambda each: False)) == [2]  # pinned
    assert due([info(1)], [], KeepAll(), lambda each: False) == []


def test_pinned_steps_are_due() -> None:
    assert numbers(due([info(1, pins="paper"), info(2), info(3)], [], KeepLast(1))) == [3, 1]


def test_what_was_saved_again_is_due_where_it_is_the_newer() -> None:
    again = info(2, sequence=5, minute=9)

    assert due([again], [info(2)], KeepAll()) == [again]
    assert due([info(2)], [again], KeepAll()) == []
    assert numbers(due([info(2, minute=9)], [info(2)], KeepAll())) == [
        2
    ]  # of the same age: a copy that will be refused, and told
