from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from histories import INF, NAN, kept, reasons, saved, scored

from ckptmgr.retention import (
    KeepAll,
    KeepAny,
    KeepBest,
    KeepBytes,
    KeepEvery,
    KeepEveryInterval,
    KeepLast,
    KeepWithin,
    Retention,
    plan,
)
from ckptmgr.step import StepInfo


def test_keep_last_counts_saves_and_not_step_numbers():
    rewound = [saved(300, 1), saved(100, 2), saved(200, 3)]

    assert kept(KeepLast(2), rewound) == [100, 200]


def test_keep_all_drops_nothing():
    assert kept(KeepAll(), [saved(1), saved(2)]) == [1, 2]


def test_keep_every_keeps_multiples():
    steps = [saved(step) for step in range(0, 3500, 500)]

    assert kept(KeepEvery(1000), steps) == [0, 1000, 2000, 3000]


def test_keep_every_keeps_the_first_step_after_a_multiple_that_was_never_saved():
    by_epochs = [saved(step) for step in (937, 1874, 2811, 3748, 4685)]

    verdicts = reasons(KeepEvery(2000), by_epochs)

    assert kept(KeepEvery(2000), by_epochs) == [2811, 4685]
    assert verdicts[2811] == ("every 2000 steps (first from 2000 on)",)
    assert verdicts[4685] == ("newest", "every 2000 steps (first from 4000 on)")


def test_keep_every_prefers_the_multiple_itself_when_it_is_saved_after_a_rewind():
    assert kept(KeepEvery(1000), [saved(1500, 1), saved(1000, 2), saved(1700, 3)]) == [1000, 1700]


def test_keep_every_interval_keeps_the_first_save_of_each_hour():
    minutes = {1: 40, 2: 50, 3: 65, 4: 110, 5: 120, 6: 130}  # 12:40, 12:50, 13:05, 13:50, 14:00, 14:10

    steps = [saved(step, after=timedelta(minutes=minute)) for step, minute in minutes.items()]

    assert kept(KeepEveryInterval(timedelta(hours=1)), steps) == [1, 3, 5, 6]


def test_keep_every_interval_starts_anew_when_the_clock_jumps_back():
    hour = timedelta(hours=1)
    clock = [0, 1, 2, -9, -8, -7]

    steps = [saved(step, after=hour * time) for step, time in enumerate(clock)]

    assert kept(KeepEveryInterval(hour), steps) == [0, 1, 2, 3, 4, 5]


def test_keep_every_interval_keeps_one_step_while_the_clock_stands_still():
    assert kept(KeepEveryInterval(timedelta(hours=1)), [saved(step) for step in range(5)]) == [0, 4]


def test_keep_every_interval_reaches_before_1970():
    early = [replace(saved(step), created=datetime(1969, 12, 31, 22 + step, tzinfo=UTC)) for step in range(2)]

    assert kept(KeepEveryInterval(timedelta(hours=1)), early) == [0, 1]


def test_keep_within_measures_from_the_newest_step_and_includes_its_limit():
    steps = [saved(step, after=timedelta(hours=step)) for step in range(5)]

    assert kept(KeepWithin(timedelta(hours=2)), steps) == [2, 3, 4]


def test_keep_within_keeps_a_step_that_is_dated_after_the_newest():
    steps = [saved(1), saved(2, after=timedelta(days=9000)), saved(3)]

    assert kept(KeepWithin(timedelta(hours=1)), steps) == [1, 2, 3]


def test_keep_best_takes_the_lowest_by_default_and_the_highest_on_demand():
    steps = scored(s1=0.5, s2=0.1, s3=0.9, s4=0.4)

    assert kept(KeepBest("loss"), steps) == [2, 4]
    assert kept(KeepBest("loss", mode="max"), steps) == [3, 4]
    assert kept(KeepBest("loss", n=2), steps) == [2, 4]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_keep_best_prefers_newer_step_on_tie(mode: str):
    steps = scored(s1=0.5, s2=0.5, s3=0.5, s4=NAN)

    assert kept(KeepBest("loss", n=2, mode=mode), steps) == [2, 3, 4]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_keep_best_never_takes_nan_or_a_step_without_the_metric(mode: str):
    steps = [*scored(s1=NAN, s2=0.5), saved(3), saved(4, metrics={"score": 1.0})]

    assert kept(KeepBest("loss", n=4, mode=mode), steps) == [2, 4]


def test_keep_best_ranks_infinities_as_values():
    steps = scored(s1=INF, s2=0.5, s3=-INF, s4=NAN)

    assert kept(KeepBest("loss"), steps) == [3, 4]
    assert kept(KeepBest("loss", mode="max"), steps) == [1, 4]


def test_keep_bytes_stops_at_the_first_step_that_does_not_fit():
    steps = [saved(1, nbytes=1), saved(2, nbytes=50), saved(3, nbytes=30), saved(4, nbytes=20)]

    assert kept(KeepBytes(50), steps) == [3, 4]
    assert kept(KeepBytes(100), steps) == [2, 3, 4]


def test_keep_bytes_still_keeps_a_newest_step_that_is_too_big():
    assert kept(KeepBytes(10), [saved(1, nbytes=1), saved(2, nbytes=50)]) == [2]


def test_a_plan_reads_as_a_line_for_each_step():
    steps = [*scored(s1000=0.5, s1500=0.31, s2500=NAN), saved(3000, pins=frozenset({"paper", "demo", "a", "z"})), saved(3500)]

    text = str(plan(KeepLast(2) | KeepEvery(1000) | KeepBest("loss"), steps))

    assert text.splitlines() == [
        "keep 1000: every 1000 steps",
        "keep 1500: best 1 of loss (0.31)",
        "keep 2500: every 1000 steps (first from 2000 on)",
        "keep 3000: pinned: a, demo, paper, z; last 2; every 1000 steps",
        "keep 3500: newest; last 2",
    ]


def test_a_dropped_step_is_told_what_it_is_not_among_and_what_it_lacks():
    steps = [saved(1), *scored(s2=NAN, s3=0.7, s4=0.2), saved(5)]

    verdicts = reasons(KeepLast(1) | KeepBest("loss"), steps)

    assert verdicts[1] == ("not among: last 1 | best 1 of loss", "no metric 'loss'")
    assert verdicts[2] == ("not among: last 1 | best 1 of loss", "loss is NaN")
    assert verdicts[3] == ("not among: last 1 | best 1 of loss",)


def test_the_same_reason_is_given_once():
    assert reasons(KeepLast(1) | KeepLast(1), [saved(1)]) == {1: ("newest", "last 1")}


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (KeepAll(), "all"),
        (KeepLast(3), "last 3"),
        (KeepEvery(10_000), "every 10000 steps"),
        (KeepEveryInterval(timedelta(hours=1)), "first of every 1 hour"),
        (KeepEveryInterval(timedelta(minutes=90)), "first of every 90 minutes"),
        (KeepWithin(timedelta(weeks=1)), "within 7 days of the newest"),
        (KeepBest("val_loss", 2), "best 2 of val_loss"),
        (KeepBytes(5 * 10**9), "newest that fit in 5,000,000,000 bytes"),
        (KeepLast(3) | KeepEvery(100), "last 3 | every 100 steps"),
    ],
)
def test_policies_speak_plainly(policy: Retention, text: str):
    assert str(policy) == text


def test_repr_uses_the_unit_a_user_would():
    assert repr(KeepWithin(timedelta(minutes=90)) | KeepBest("loss", n=2)) == (
        "KeepWithin(timedelta(minutes=90)) | KeepBest('loss', n=2, mode='min')"
    )


def test_joining_is_flat_and_keeps_the_order():
    one, two, three = KeepLast(1), KeepEvery(2), KeepAll()

    assert (one | two) | three == one | (two | three) == KeepAny((one, two, three))


def test_policies_are_frozen_and_hashable():
    with pytest.raises(FrozenInstanceError):
        KeepLast(3).n = 4

    assert len({KeepLast(3), KeepLast(3), KeepLast(4)}) == 2


def test_numpy_integers_are_integers():
    assert KeepLast(np.int64(3)) == KeepLast(3)
    assert type(KeepEvery(np.uint8(3)).steps) is int


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KeepLast(0), r"KeepLast\(n\) is 1 or more, not 0"),
        (lambda: KeepEvery(-5), r"KeepEvery\(steps\) is 1 or more, not -5"),
        (lambda: KeepBytes(0), r"KeepBytes\(nbytes\) is 1 or more, not 0"),
        (lambda: KeepBest("loss", n=0), "n of KeepBest is 1 or more, not 0"),
        (lambda: KeepBest("loss", mode="lowest"), "mode of KeepBest is 'min' or 'max', not 'lowest'"),
        (lambda: KeepWithin(timedelta(0)), "KeepWithin takes a timedelta above zero, not 0:00:00"),
        (lambda: KeepEveryInterval(timedelta(hours=-1)), "KeepEveryInterval takes a timedelta above zero"),
    ],
)
def test_senseless_numbers_are_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KeepLast(True), r"KeepLast\(n\) is an integer, not True"),
        (lambda: KeepEvery(1e4), r"KeepEvery\(steps\) is an integer, not 10000.0"),
        (lambda: KeepBytes("5GB"), r"KeepBytes\(nbytes\) is an integer, not '5GB'"),
        (lambda: KeepWithin(3600), r"KeepWithin takes a timedelta, as timedelta\(hours=1\), not 3600"),
        (lambda: KeepBest(3), "KeepBest takes the name of a metric, not 3"),
        (lambda: KeepLast(3) | 5, "unsupported operand"),
    ],
)
def test_wrong_types_are_refused(make, message: str):
    with pytest.raises(TypeError, match=message):
        make()


def test_a_plan_of_no_steps_is_empty():
    nothing = plan(KeepLast(1) | KeepWithin(timedelta(1)) | KeepBest("loss") | KeepBytes(1), [])

    assert (len(nothing), nothing.kept, nothing.dropped, str(nothing)) == (0, [], [], "")


def test_a_step_that_comes_twice_is_refused():
    with pytest.raises(ValueError, match=r"a step comes twice in \[7, 8, 7\]"):
        plan(KeepAll(), [saved(7, 1), saved(7, 3), saved(8, 2)])


class KeepPowersOfTwo(Retention):
    def keep(self, steps: Sequence[StepInfo]) -> dict[int, str]:
        return {info.step: "a power of two" for info in steps if info.step.bit_count() == 1}

    def __str__(self) -> str:
        return "powers of two"


def test_a_policy_of_the_users_own_joins_the_others():
    steps = [saved(step) for step in range(1, 8)]

    verdicts = reasons(KeepPowersOfTwo() | KeepLast(1), steps)

    assert kept(KeepPowersOfTwo() | KeepLast(1), steps) == [1, 2, 4, 7]
    assert verdicts[4] == ("a power of two",)
    assert verdicts[5] == ("not among: powers of two | last 1",)


def test_a_policy_that_names_steps_by_text_is_refused_before_it_costs_a_step():
    class KeepByText(Retention):
        def keep(self, steps: Sequence[StepInfo]) -> dict[str, str]:
            return {str(info.step): "" for info in steps}

    with pytest.raises(ValueError, match="keeps '1', which is no step among"):
        plan(KeepByText(), [saved(1)])
