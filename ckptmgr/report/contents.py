"""Everything that one page shows, gathered before a line of it is written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ckptmgr import CheckpointError, CheckpointManager, Retention
from ckptmgr.finding import Run
from ckptmgr.report import figures, tensors
from ckptmgr.report.facts import MetricFacts, RunFacts, StepFacts, facts
from ckptmgr.report.figures import Figure
from ckptmgr.report.shown import counted, number, seconds, size
from ckptmgr.report.tensors import Comparison, Inventory, Values
from ckptmgr.report.times import TimeFacts, times
from ckptmgr.transfer import Progress

MOST_METRICS = 12
MOST_ROWS = 300
MOST_COLUMNS = 4


@dataclass(frozen=True, slots=True)
class Contents:
    """The facts of a page and its figures, by name. What was not asked for, or is not there, is None."""

    run: RunFacts
    made: datetime
    figures: tuple[Figure, ...]
    times: TimeFacts | None = None
    inventory: Inventory | None = None
    values: Values | None = None
    comparison: Comparison | None = None
    problems: tuple[str, ...] = ()
    _by_name: dict[str, Figure] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._by_name.update({figure.name: figure for figure in self.figures})

    def figure(self, name: str) -> Figure | None:
        """The figure of that name."""
        return self._by_name.get(name)

    @property
    def metrics(self) -> list[tuple[str, MetricFacts, Figure]]:
        """The metrics that are drawn, each with the name of its figure."""
        named = [(f"metric-{index}", found) for index, found in enumerate(self.run.metrics[:MOST_METRICS])]
        return [(name, found, self._by_name[name]) for name, found in named]

    @property
    def other_metrics(self) -> Sequence[MetricFacts]:
        """Those that are only listed."""
        return self.run.metrics[MOST_METRICS:]

    @property
    def key(self) -> list[tuple[str, str, str]]:
        """The marks that steps have: name, title and character."""
        used = {step.mark for step in self.run.steps}
        return [(mark, title, character) for mark, (title, _, character) in figures.MARKS.items() if mark in used]

    @property
    def columns(self) -> list[str]:
        """The metrics in the table of steps."""
        return [found.name for found in self.run.metrics[:MOST_COLUMNS]]

    @property
    def rows(self) -> list[StepFacts]:
        """The steps in the table, latest first: the last `MOST_ROWS`, and older ones that are pinned or best."""
        recent = self.run.steps[-MOST_ROWS:]
        older = [step for step in self.run.steps[:-MOST_ROWS] if {"pinned", "best"} & {*step.marks}]
        return [*older[-MOST_ROWS:], *recent][::-1]


def contents(
    manager: CheckpointManager,
    *,
    url: str | None = None,
    retention: Retention | None = None,
    read: int = 0,
    compare: tuple[int, int] | None = None,
    progress: Progress | None = None,
    made: datetime | None = None,
) -> Contents:
    """Reads the records of a run and the index of its newest step; tensors only for ``read`` and ``compare``."""
    found = Run(manager.folder, manager.naming, manager.backend).steps()
    run = facts(found, url=url or manager.folder.location(), retention=retention)
    inventory, problems = _inventory(manager, run)
    values = tensors.values(manager, run, read, progress) if read and inventory else None
    comparison = tensors.comparison(manager, *compare, progress) if compare else None
    how = times(run)
    made_of = (*drawn(run), *time_figures(how), *_tensor_figures(inventory, values))
    return Contents(run, made or datetime.now(UTC), made_of, how, inventory, values, comparison, problems)


def _inventory(manager: CheckpointManager, run: RunFacts) -> tuple[Inventory | None, tuple[str, ...]]:
    """The tensors of the newest step. A damaged one costs the page that part and no other."""
    if not run.steps:
        return None, ()
    try:
        with manager.open(run.steps[-1].info.step) as opened:
            return tensors.inventory(opened), ()
    except CheckpointError as error:
        return None, (str(error),)


def drawn(run: RunFacts) -> Iterator[Figure]:
    """The figures that need no tensor."""
    for index, found in enumerate(run.metrics[:MOST_METRICS]):
        yield figures.metric(f"metric-{index}", run, found, metric_summary(found))
    if not run.steps:
        return
    largest = max(run.steps, key=lambda step: step.info.nbytes)
    text = f"Size of each step; the largest is step {largest.info.step} with {size(largest.info.nbytes)}."
    yield figures.sizes(run, text)
    gone = f"; with the {counted(run.gone, 'save')} that are gone about {size(run.stored_nbytes + run.gone_nbytes)}"
    yield figures.stored(run, f"Bytes over time, up to {size(run.stored_nbytes)} now{gone if run.gone else ''}.")
    intervals = [step.interval_s for step in run.steps if step.interval_s is not None]
    if intervals:
        text = f"Time between a save and the one before it, {seconds(min(intervals))} to {seconds(max(intervals))}."
        yield figures.intervals(run.steps, text)


def metric_summary(found: MetricFacts) -> str:
    """A metric in one sentence, without its name."""
    text = f"{counted(len(found.steps), 'value')}, the latest {number(found.latest)} at step {found.steps[-1]}"
    if found.lowest is None or found.highest is None:
        return f"{text}; none is finite."
    low = f"lowest {number(found.value(found.lowest))} at step {found.lowest}"
    return f"{text}; {low}, highest {number(found.value(found.highest))} at step {found.highest}."


def time_figures(found: TimeFacts | None) -> Iterator[Figure]:
    """The figures of how saves went."""
    if found is None:
        return
    took, blocked = seconds(found.usual_took), seconds(found.usual_blocked)
    text = f"{counted(len(found.saves), 'save')}: the median took {took} and blocked training for {blocked}"
    text = f"{text}; the longest took {seconds(found.slowest.took)}, at step {found.slowest.step.info.step}."
    yield figures.durations(found, text)
    known = [save for save in found.saves if save.rate is not None]
    if known:
        low, high = (size(round(pick(save.rate or 0 for save in known))) for pick in (min, max))
        text = f"Bytes that were written a second, from the claim of the step until its files were durable: {low}/s to {high}/s."
        yield figures.throughput(known, text)


def _tensor_figures(inventory: Inventory | None, values: Values | None) -> Iterator[Figure]:
    if inventory and inventory.nbytes:
        text = f"{counted(inventory.count, 'tensor')} of step {inventory.step} by size, {size(inventory.nbytes)} in all."
        yield figures.treemap(inventory, text)
    for index, (_, found) in enumerate(values.tensors if values else ()):
        at = f"step {found[-1][0]}"
        yield figures.norms(
            f"norm-{index}", found, f"L2 norm over {counted(len(found), 'step')}, {number(found[-1][1].norm)} at {at}."
        )
        low, high = number(found[-1][1].lowest), number(found[-1][1].highest)
        yield figures.histogram(f"histogram-{index}", found, f"Histogram of the values, {low} to {high} at {at}.")
