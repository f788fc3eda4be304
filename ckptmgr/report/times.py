"""How the saves of a run went, as the steps that are left tell it: what blocked training, and how fast they were written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from ckptmgr.report.facts import RunFacts, StepFacts


@dataclass(frozen=True, slots=True)
class SaveFacts:
    """One save, in seconds from its call on: three parts, one after another.

    ``blocked``: training waited, at least so long. ``waited``: in the background, for the end of the copy or of earlier saves.
    ``written``: in the background, until the files were durable. A save in the foreground has only the first. ``took`` is the
    sum; ``rate`` bytes a second while it was written, None if it cannot be told.
    """

    step: StepFacts
    blocked: float
    waited: float
    written: float
    rate: float | None

    @property
    def took(self) -> float:
        """Seconds until the files were durable, or, if that was later, until the call returned."""
        return self.blocked + self.waited + self.written


@dataclass(frozen=True, slots=True)
class TimeFacts:
    """All saves that tell how they went, in their order; there is at least one. ``untold`` counts the steps that do not tell.

    ``share`` is the part of the time between saves that training was blocked, where that time is known; else None.
    """

    saves: tuple[SaveFacts, ...]
    untold: int
    share: float | None
    _by_order: dict[tuple[int, int, str], SaveFacts] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._by_order.update({save.step.info.order: save for save in self.saves})

    @property
    def blocked(self) -> float:
        """Seconds that training was blocked by all of them."""
        return sum(save.blocked for save in self.saves)

    @property
    def usual_blocked(self) -> float:
        """The median."""
        return median(save.blocked for save in self.saves)

    @property
    def usual_took(self) -> float:
        """The median."""
        return median(save.took for save in self.saves)

    @property
    def usual_rate(self) -> float | None:
        """The median of those that are known."""
        rates = [save.rate for save in self.saves if save.rate is not None]
        return median(rates) if rates else None

    @property
    def worst(self) -> SaveFacts:
        """The save that blocked training longest; of equal ones the last."""
        return max(reversed(self.saves), key=lambda save: save.blocked)

    @property
    def slowest(self) -> SaveFacts:
        """The save that took longest; of equal ones the last."""
        return max(reversed(self.saves), key=lambda save: save.took)

    @property
    def reused_nbytes(self) -> int:
        """Bytes that incremental saves had not to write."""
        return sum(save.step.info.stats.reused for save in self.saves if save.step.info.stats)

    def of(self, step: StepFacts) -> SaveFacts | None:
        """The save that made a step."""
        return self._by_order.get(step.info.order)

    @property
    def is_background(self) -> bool:
        """Whether any of them went on in the background."""
        return any(save.waited or save.written for save in self.saves)


def times(run: RunFacts) -> TimeFacts | None:
    """How the saves of the run went; None if no step tells."""
    saves = tuple(_told(run.steps))
    if not saves:
        return None
    spaced = [(save.blocked, save.step.interval_s) for save in saves if save.step.interval_s is not None]
    between = sum(seconds for _, seconds in spaced if seconds > 0)
    share = sum(blocked for blocked, seconds in spaced if seconds > 0) / between if between > 0 else None
    return TimeFacts(saves, len(run.steps) - len(saves), None if share is None else min(share, 1.0))


def _told(steps: Sequence[StepFacts]) -> Iterator[SaveFacts]:
    for step in steps:
        stats = step.info.stats
        if stats is None or stats.written is None:
            continue
        rate = stats.throughput(step.info.nbytes)
        if stats.blocked is None:
            yield SaveFacts(step, stats.written, 0.0, 0.0, rate)
        else:
            begun = max(stats.begun or 0.0, stats.blocked)
            yield SaveFacts(step, stats.blocked, begun - stats.blocked, max(stats.written - begun, 0.0), rate)
