"""What a run's records say, as values: which steps there are, what keeps them, what they take, and how many are gone.

Nothing here is guessed. A step that was removed has left no record; what is known of it is its place in the order of saves.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ckptmgr import KeepBest, Retention, StepInfo
from ckptmgr.finding import Committed, Steps
from ckptmgr.incremental import HASH
from ckptmgr.manifest import FileEntry
from ckptmgr.retention import plan


@dataclass(frozen=True, slots=True)
class StepFacts:
    """One step. ``marks`` are of ``"newest"``, ``"pinned"``, ``"best"``, ``"foreign"``, ``"dropped"``; one without is kept.

    ``own_nbytes`` are those of its files that no earlier listed step has as well. ``gone_before`` counts the saves between it
    and the listed step before it that are no steps any more; ``interval_s`` is the time since the save before it, or None
    where that save is gone.
    """

    info: StepInfo
    marks: tuple[str, ...]
    reasons: tuple[str, ...]
    own_nbytes: int
    gone_before: int
    interval_s: float | None

    @property
    def mark(self) -> str:
        """The one that tells the most."""
        order = ("foreign", "dropped", "best", "pinned", "newest")
        return next((mark for mark in order if mark in self.marks), "kept")


@dataclass(frozen=True, slots=True)
class MetricFacts:
    """One metric: of which steps it is known, and the steps where it is lowest and highest. Steps come in order of saves.

    ``lowest`` and ``highest`` are None if no value is finite; of equal values, the newer step.
    """

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    lowest: int | None
    highest: int | None

    @property
    def latest(self) -> float:
        """The value saved last."""
        return self.values[-1]

    def value(self, step: int) -> float:
        """The value at a step."""
        return self.values[self.steps.index(step)]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """All that the page says without opening a step. ``damaged`` are messages of records that cannot be read."""

    url: str
    policy: str | None
    steps: tuple[StepFacts, ...]
    metrics: tuple[MetricFacts, ...]
    damaged: tuple[str, ...]

    @property
    def kept(self) -> list[StepFacts]:
        """Those that the policy keeps, and those of other tools."""
        return [step for step in self.steps if "dropped" not in step.marks]

    @property
    def dropped(self) -> list[StepFacts]:
        """Those that the policy would drop."""
        return [step for step in self.steps if "dropped" in step.marks]

    @property
    def gone(self) -> int:
        """How many saves are no steps any more: collected, deleted or saved again."""
        return sum(step.gone_before for step in self.steps)

    @property
    def stored_nbytes(self) -> int:
        """Bytes of all steps, what they share counted once."""
        return sum(step.own_nbytes for step in self.steps)

    @property
    def whole_nbytes(self) -> int:
        """Bytes of all steps, as if each were alone."""
        return sum(step.info.nbytes for step in self.steps)

    @property
    def gone_nbytes(self) -> int:
        """What the saves that are gone would take, were each as large as what a step that is left adds on average."""
        saved = [step for step in self.steps if not step.info.is_foreign]
        return self.gone * (sum(step.own_nbytes for step in saved) // len(saved)) if saved else 0


def facts(found: Steps, *, url: str, retention: Retention | None) -> RunFacts:
    """What is known of a run. Without ``retention`` no step is called dropped, for what its manager keeps is not recorded."""
    own = _own_nbytes(found.committed)
    steps = [
        StepFacts(known.info, ("foreign",), ("another tool's: left alone",), known.info.nbytes, 0, None)
        for known in found.foreign
    ]
    verdicts = _verdicts(retention, [known.info for known in found.committed])
    before: StepInfo | None = None
    for known, (marks, reasons) in zip(found.committed, verdicts, strict=True):
        gone = _gone(before, known.info)
        interval = (known.info.created - before.created).total_seconds() if before and not gone else None
        steps.append(StepFacts(known.info, marks, reasons, own[known.info.step], gone, interval))
        before = known.info
    policy = None if retention is None else str(retention)
    damaged = tuple(str(entry.error) for entry in found.unreadable)
    return RunFacts(url, policy, tuple(steps), tuple(_metrics([step.info for step in steps])), damaged)


def even(count: int, most: int) -> list[int]:
    """At most ``most`` of the indexes below ``count``, evenly spaced, the last one always among them."""
    if count <= most:
        return list(range(count))
    return sorted({count - 1 - round(i * (count - 1) / max(most - 1, 1)) for i in range(most)})


def _verdicts(retention: Retention | None, infos: Sequence[StepInfo]) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    if retention is None:
        for info in infos:
            pinned = (f"pinned: {', '.join(sorted(info.pins))}",) if info.pins else ()
            newest = ("newest",) if info is infos[-1] else ()
            yield (*newest, *(("pinned",) if pinned else ())), newest + pinned
        return
    winners = {step for policy in retention.policies if isinstance(policy, KeepBest) for step in policy.keep(infos)}
    for verdict in plan(retention, infos):
        info = verdict.info
        is_marked = {
            "newest": info is infos[-1],
            "pinned": bool(info.pins),
            "best": info.step in winners,
            "dropped": not verdict.keep,
        }
        yield tuple(mark for mark, holds in is_marked.items() if holds), verdict.reasons


def _gone(before: StepInfo | None, info: StepInfo) -> int:
    """Saves are numbered from 1 on, one after the other; adopted steps have no such number."""
    last = max(before.sequence, 0) if before else 0
    return max(info.sequence - last - 1, 0)


def _own_nbytes(committed: Sequence[Committed]) -> dict[int, int]:
    seen: set[tuple[object, ...]] = set()
    own: dict[int, int] = {}
    for known in committed:
        keys = {_key(known, entry): entry.nbytes for entry in known.manifest.files}
        own[known.info.step] = sum(nbytes for key, nbytes in keys.items() if key not in seen)
        seen |= keys.keys()
    return own


def _key(known: Committed, entry: FileEntry) -> tuple[object, ...]:
    """What two entries have in common that are one file: steps share files that have the same content, by link or reference."""
    if content := entry.extra.get(HASH):
        return (str(content), entry.nbytes, entry.crc32c)
    return (entry.origin.path,) if entry.origin else (known.info.step, entry.name)


def _metrics(infos: Sequence[StepInfo]) -> Iterator[MetricFacts]:
    found: dict[str, list[tuple[int, float]]] = {}
    for info in infos:
        for name, value in info.metrics.items():
            found.setdefault(name, []).append((info.step, value))
    for name, pairs in found.items():
        finite = [(value, index) for index, (_, value) in enumerate(pairs) if math.isfinite(value)]
        lowest = max(finite, key=lambda pair: (-pair[0], pair[1]), default=None)
        highest = max(finite, default=None)
        yield MetricFacts(
            name,
            tuple(step for step, _ in pairs),
            tuple(value for _, value in pairs),
            pairs[lowest[1]][0] if lowest else None,
            pairs[highest[1]][0] if highest else None,
        )
