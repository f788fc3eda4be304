"""Histories of saves for tests of retention: single steps, replays, and random ones with everything that goes wrong."""

import operator
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import reduce

from hypothesis import strategies as st

from ckptmgr.retention import (
    KeepAll,
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

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
NAN, INF = float("nan"), float("inf")


def saved(step: int, sequence: int | None = None, *, after: timedelta = timedelta(0), **facts) -> StepInfo:
    """A committed step; saved in the order of step numbers unless ``sequence`` says otherwise."""
    order = {"sequence": step if sequence is None else sequence, "attempt": f"{step:016x}", "run": "first"}
    return StepInfo(**{"step": step, "created": NOON + after, "backend": "safetensors", "nbytes": 100, **order, **facts})


def scored(**values: float) -> list[StepInfo]:
    """``s100=0.9`` is step 100 with a loss of 0.9."""
    return [saved(int(name[1:]), metrics={"loss": value}) for name, value in values.items()]


def kept(retention: Retention, steps: Iterable[StepInfo]) -> list[int]:
    return [info.step for info in plan(retention, steps).kept]


def reasons(retention: Retention, steps: Iterable[StepInfo]) -> dict[int, tuple[str, ...]]:
    return {verdict.info.step: verdict.reasons for verdict in plan(retention, steps)}


def collected_after_every_save(retention: Retention, saves: Iterable[StepInfo]) -> list[int]:
    """What is left of a run that deletes what is dropped each time it has saved; an overwritten step is saved anew."""
    left: list[StepInfo] = []
    for info in saves:
        left = plan(retention, [*(other for other in left if other.step != info.step), info]).kept
    return [info.step for info in left]


metrics = st.dictionaries(st.sampled_from(["loss", "score"]), st.sampled_from([NAN, INF, -INF, -0.0, 0.0, 0.5, 1.0]))
pins = st.sampled_from([frozenset(), frozenset(), frozenset(), frozenset({"paper"}), frozenset({"paper", "best"})])
periods = st.sampled_from([timedelta(minutes=1), timedelta(minutes=7), timedelta(hours=1), timedelta(days=400), timedelta.max])
counts = st.integers(1, 6)

policies = st.one_of(
    st.builds(KeepLast, counts),
    st.builds(KeepEvery, st.integers(1, 40)),
    st.builds(KeepEveryInterval, periods),
    st.builds(KeepWithin, periods),
    st.builds(KeepBest, st.sampled_from(["loss", "score", "typo"]), counts, st.sampled_from(["min", "max"])),
    st.builds(KeepBytes, st.integers(1, 3000)),
)
retentions = st.one_of(
    policies,
    st.builds(KeepAll),
    st.lists(policies, min_size=2, max_size=4).map(lambda several: reduce(operator.or_, several)),
)


@st.composite
def histories(draw, *, forward_clock: bool = False) -> list[StepInfo]:
    """Saves of two runs in one folder: rewound and restarted at will, their clocks wrong unless ``forward_clock``."""
    numbers = draw(st.lists(st.integers(0, 120), unique=True, max_size=14))
    minutes = draw(st.lists(st.integers(-300, 300), min_size=len(numbers), max_size=len(numbers)))
    sequence = 0
    saves = []
    for step, minute in zip(numbers, sorted(minutes) if forward_clock else minutes, strict=True):
        sequence += draw(st.integers(1, 3))
        facts = {"run": draw(st.sampled_from(["first", "second"])), "metrics": draw(metrics), "pins": draw(pins)}
        saves.append(saved(step, sequence, after=timedelta(minutes=minute), nbytes=draw(st.integers(0, 1000)), **facts))
    return saves
