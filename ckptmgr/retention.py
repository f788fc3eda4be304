"""Which committed steps to keep, and why: a decision over values, without a clock, a disk or a side effect.

A policy says which steps it wants kept. ``|`` joins policies: a step that any of them wants is kept. `plan` adds what no
policy can take away, the newest step and the pinned ones. "Newer" means saved later, as recorded in
`StepInfo.order`; neither step numbers nor names nor times decide it.

The laws: the newest and the pinned are kept; joining a policy never loses a step; a plan does not depend on the order
of its input; and planning again on what was kept drops nothing. For the last one, a policy must want no less once
steps that it did not want are gone.
"""

import itertools
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, SupportsIndex

from ckptmgr.step import StepInfo

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Retention(ABC):
    """What to keep. A policy of your own gives `keep`, and `__str__`: what plans call it."""

    __slots__ = ()

    @abstractmethod
    def keep(self, steps: Sequence[StepInfo]) -> Mapping[int, str]:
        """The step numbers to keep, each with the reason. ``steps`` come oldest save first, each number once."""

    def lacks(self, info: StepInfo) -> str | None:
        """What keeps the policy from ever wanting this step, if the step alone tells that."""
        return None

    @property
    def policies(self) -> "tuple[Retention, ...]":
        """The policies joined here, in the order they were written; itself, if it is a single one."""
        return (self,)

    def __or__(self, other: "Retention") -> "KeepAny":
        return KeepAny((*self.policies, *other.policies)) if isinstance(other, Retention) else NotImplemented


@dataclass(frozen=True, slots=True, repr=False)
class KeepAny(Retention):
    """Every step that at least one of the policies keeps: ``a | b``."""

    policies: tuple[Retention, ...]

    def keep(self, steps: Sequence[StepInfo]) -> Mapping[int, str]:
        """What the policies keep, with all their reasons."""
        kept: dict[int, list[str]] = {}
        for policy in self.policies:
            for step, reason in policy.keep(steps).items():
                kept.setdefault(step, []).append(reason)
        return {step: "; ".join(reasons) for step, reasons in kept.items()}

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.policies))

    def __str__(self) -> str:
        return " | ".join(map(str, self.policies))


@dataclass(frozen=True, slots=True)
class KeepAll(Retention):
    """Every step: nothing is ever dropped."""

    def keep(self, steps: Sequence[StepInfo]) -> Mapping[int, str]:
        """All of them."""
        return {info.step: str(self) for info in steps}

    def __str__(self) -> str:
        return "all"


@dataclass(frozen=True, slots=True, repr=False)
class KeepLast(Retention):
    """The ``n`` steps that were saved last."""

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _positive("KeepLast(n)", self.n))

    def keep(self, steps: Sequence[StepInfo]) -> Mapping[int, str]:
        """The last ``n``."""
        return {info.step: str(self) for info in steps[-self.n :]}

    def __repr__(self) -> str:
        return f"KeepLast({self.n})"

    def __str__(self) -> str:
        return f"last {self.n}"


@dataclass(frozen=True, slots=True, repr=False)
class KeepEvery(Retention):
    """The first step at or after each multiple of ``steps``, by step number: the multiples themselves, where saved.

    Step 0 counts if it was saved; a later step does not stand in for it.
    """

    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", _positive("KeepEvery(steps)", self.steps))

    def keep(self, steps: Sequence[StepInfo]) -> Mapping[int, str]:
        """The lowest step number from each multiple up to the next."""
        first: dict[int, int] = {}
        for step in sorted(info.step for info in steps):
            first.setdefault(step // self.steps, step)
        return {step: self._reason(step) for multiple, step in first.items() if multiple or step == 0}

    def _reason(self, step: int) -> str:
        beyond = step % self.steps
        return f"{self} (first from {step - beyond} on)" if beyond else str(self)

    def __repr__(self) -> str:
        return f"KeepEvery({self.steps})"

    def __str__(self) -> str:
        return f"every {self.steps} steps"


@dataclass(frozen=True, slots=True, repr=False)
class KeepEveryInterval(Retention):
    """The first step saved in each interval of time, counted from 1970 (UTC): of each hour, of each day.

    A new interval begins where a step's time is in another interval than the time of the save before it, so a clock
    that jumps back starts a new one as well.
    """

    interval: timedelta

    def __post_init__(self) -> None:
        _check_period("KeepEveryInterval", self.interval)

    def keep(self, steps: Sequence[StepInfo]) -> Mapping[int, str]:
        """The first of each interval, in the order of saves."""
        groups = itertools.groupby(steps, key=lambda info: (info.created - _EPOCH) // self.interval)
        return {next(group).step: str(self) for _, group in groups}

    def __repr__(self) -> str:
        return f"KeepEveryInterval({_period_code(self.interval)})"

    def __str__(self) -> str:
        return f"first of every {_period_text(self.interval)}"


@dataclass(frozen=True, slots=True, repr=False)
class KeepWithin(Retention):
    """The steps created at most ``period`` before the newest one.

    The newest step's time stands for now: nothing is dropped because a run stands still. A step dated after the newest
    one (a clock was wrong) is kept.
    """

    period: timedelta

    def __post_init__(self) -> None:
        _check_period("KeepWithin", self.period)

    def keep(self, steps: Sequence[StepInfo]) -> Mapping[int, str]:
        """Those not older than ``period``, seen from the newest."""
        return {info.step: str(self) for info in steps if steps[-1].created - info.created <= self.period}

    def __repr__(self) -> str:
        return f"KeepWithin({_period_code(self.period)})"

    def __str__(self) -> str:
        return f"within {_period_text(self.period)} of the newest"


@dataclass(frozen=True, slots=True, repr=False)
class KeepBest(Retention):
    """The ``n`` steps with the lowest (``mode="min"``) or highest (``"max"``) value of a metric; of equal ones, the newer.

    A step without the metric, or with NaN, is never among them. Infinities are values like any other.
    """

    metric: str
    n: int = 1
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str) or not self.metric:
            raise TypeError(f"KeepBest takes the name of a metric, not {self.metric!r}")
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode of KeepBest is 'min' or 'max', not {self.mode!r}")
        object.__setattr__(self, "n", _positive("n of KeepBest", self.n))

    def keep(self, steps: Sequence[StepInfo]) -> Mapping[int, str]:
        """The best ``n``, with their values."""
        ranked = [(info.metrics[self.metric], info.step) for info in reversed(steps) if self.lacks(info) is None]
        # Sorting is stable in both directions: of equal values, the newer stays in front.
        ranked.sort(key=operator.itemgetter(0), reverse=self.mode == "max")
        return {step: f"{self} ({value:g})" for value, step in ranked[: self.n]}

    def lacks(self, info: StepInfo) -> str | None:
        """A number to compare by."""
        if self.metric not in info.metrics:
            return f"no metric {self.metric!r}"
        return f"{self.metric} is NaN" if math.isnan(info.metrics[self.metric]) else None

    def __repr__(self) -> str:
        return f"KeepBest({self.metric!r}, n={self.n}, mode={self.mode!r})"

    def __str__(self) -> str:
        return f"best {self.n} of {self.metric}"


@dataclass(frozen=True, slots=True, repr=False)
class KeepBytes(Retention):
    """The newest steps that together take at most ``nbytes``, up to the first that does not fit.

    This is no limit on what pins and other policies keep beside them.
    """

    nbytes: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "nbytes", _positive("KeepBytes(nbytes)", self.nbytes))

    def keep(self, steps: Sequence[StepInfo]) -> Mapping[int, str]:
        """The newest that fit."""
        newest_first = steps[::-1]
        totals = itertools.accumulate(info.nbytes for info in newest_first)
        fitting = itertools.takewhile(lambda total: total <= self.nbytes, totals)
        return {info.step: str(self) for info, _ in zip(newest_first, fitting, strict=False)}

    def __repr__(self) -> str:
        return f"KeepBytes({self.nbytes})"

    def __str__(self) -> str:
        return f"newest that fit in {self.nbytes:,} bytes"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a plan says of one step, with at least one reason; of a dropped one, what it is not."""

    info: StepInfo
    keep: bool
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{'keep' if self.keep else 'drop'} {self.info.step}: {'; '.join(self.reasons)}"


@dataclass(frozen=True, slots=True)
class Plan:
    """One verdict for each step, oldest save first. Printed, it is a line for each step."""

    verdicts: tuple[Verdict, ...]

    @property
    def kept(self) -> list[StepInfo]:
        """Steps to keep, oldest save first."""
        return [verdict.info for verdict in self.verdicts if verdict.keep]

    @property
    def dropped(self) -> list[StepInfo]:
        """Steps to delete, oldest save first."""
        return [verdict.info for verdict in self.verdicts if not verdict.keep]

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self.verdicts)

    def __len__(self) -> int:
        return len(self.verdicts)

    def __str__(self) -> str:
        return "\n".join(map(str, self.verdicts))


def plan(retention: Retention, steps: Iterable[StepInfo]) -> Plan:
    """Which of ``steps``, given in any order, to keep under ``retention``. The newest and the pinned always are.

    Raises:
        ValueError: a step number comes twice, or a policy names a step that is not there.
    """
    ordered = sorted(steps, key=lambda info: info.order)
    reasons = {info.step: _always(info, newest=info is ordered[-1]) for info in ordered}
    if len(reasons) < len(ordered):
        raise ValueError(f"a step comes twice in {[info.step for info in ordered]}")
    for policy in retention.policies:
        for step, reason in policy.keep(ordered).items():
            if step not in reasons:
                raise ValueError(f"{policy!r} keeps {step!r}, which is no step among {list(reasons)}")
            reasons[step].append(reason)
    return Plan(tuple(_verdict(info, reasons[info.step], retention) for info in ordered))


def best(steps: Sequence[StepInfo], metric: str, mode: Literal["min", "max"]) -> StepInfo | None:
    """The step that `KeepBest` keeps, of these in the order of their saves; None if it keeps none."""
    winners = KeepBest(metric, n=1, mode=mode).keep(steps)
    return next((info for info in steps if info.step in winners), None)


def _always(info: StepInfo, *, newest: bool) -> list[str]:
    pins = [f"pinned: {', '.join(sorted(info.pins))}"] if info.pins else []
    return ["newest", *pins] if newest else pins


def _verdict(info: StepInfo, reasons: Iterable[str], retention: Retention) -> Verdict:
    if kept := tuple(dict.fromkeys(reasons)):
        return Verdict(info, True, kept)
    lacking = [lack for policy in retention.policies if (lack := policy.lacks(info))]
    return Verdict(info, False, (f"not among: {retention}", *dict.fromkeys(lacking)))


def _positive(what: str, value: SupportsIndex) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what} is an integer, not {value!r}")
    number = operator.index(value)
    if number < 1:
        raise ValueError(f"{what} is 1 or more, not {number}")
    return number


def _check_period(what: str, period: timedelta) -> None:
    if not isinstance(period, timedelta):
        raise TypeError(f"{what} takes a timedelta, as timedelta(hours=1), not {period!r}")
    if period <= timedelta(0):
        raise ValueError(f"{what} takes a timedelta above zero, not {period}")


def _period_unit(period: timedelta) -> tuple[int, str]:
    """The period in the largest unit that holds it a whole number of times."""
    units = ("days", "hours", "minutes", "seconds", "milliseconds", "microseconds")
    unit = next(unit for unit in units if not period % timedelta(**{unit: 1}))
    return period // timedelta(**{unit: 1}), unit


def _period_code(period: timedelta) -> str:
    count, unit = _period_unit(period)
    return f"timedelta({unit}={count})"


def _period_text(period: timedelta) -> str:
    count, unit = _period_unit(period)
    return f"{count} {unit if count > 1 else unit.removesuffix('s')}"
