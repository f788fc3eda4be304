"""What the page says of tensors: those of the newest step by size, and, if it is asked for, what they hold over the steps.

A page has room for so many; what is left out is told as a count and never silently.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from ckptmgr import Checkpoint, CheckpointError, CheckpointManager
from ckptmgr.report.facts import RunFacts, even
from ckptmgr.report.reading import Difference, Summary, difference, has_values, summary
from ckptmgr.transfer import Progress

MOST_LISTED = 500  # tensors in a table
MOST_READ = 100  # tensors whose values are read


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """A tensor of the newest step."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """The tensors of one step, the largest first; of those beyond `MOST_LISTED` only their number and bytes."""

    step: int
    tensors: tuple[TensorFacts, ...]
    others: int
    others_nbytes: int
    by_dtype: tuple[tuple[str, int, int], ...]  # dtype, tensors, bytes

    @property
    def count(self) -> int:
        """All tensors."""
        return len(self.tensors) + self.others

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors) + self.others_nbytes


@dataclass(frozen=True, slots=True)
class Values:
    """What tensors held at some steps. A step where a tensor was not, or could not be read, is missing among its summaries."""

    steps: tuple[int, ...]
    tensors: tuple[tuple[str, tuple[tuple[int, Summary], ...]], ...]
    others: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs from step ``first`` to step ``second``: the most changed tensors first, then those that cannot be compared."""

    first: int
    second: int
    differences: tuple[Difference, ...]
    others: int
    same: int


class _Count:
    """Tells the progress of reads whose total is known."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def add(self, nbytes: int) -> None:
        self.done = min(self.done + nbytes, self.total)
        if self.progress is not None:
            self.progress(self.done, self.total)


def inventory(checkpoint: Checkpoint) -> Inventory:
    """The tensors of an opened step. Reads none."""
    specs = checkpoint.specs
    names = sorted(specs, key=lambda name: (-specs[name].nbytes, name))
    listed, rest = names[:MOST_LISTED], names[MOST_LISTED:]
    dtypes: dict[str, tuple[int, int]] = {}
    for name in names:
        count, nbytes = dtypes.get(specs[name].dtype, (0, 0))
        dtypes[specs[name].dtype] = count + 1, nbytes + specs[name].nbytes
    return Inventory(
        checkpoint.info.step if checkpoint.info else 0,
        tuple(TensorFacts(name, specs[name].dtype, specs[name].shape, specs[name].nbytes) for name in listed),
        len(rest),
        sum(specs[name].nbytes for name in rest),
        tuple((dtype, *found) for dtype, found in sorted(dtypes.items(), key=lambda item: -item[1][1])),
    )


def values(manager: CheckpointManager, run: RunFacts, most_steps: int, progress: Progress | None = None) -> Values:
    """Reads the largest tensors of the newest step, in it and in others that are evenly spaced over the run.

    A step or tensor that is damaged is told in ``problems``, and the others are read all the same.
    """
    steps = [run.steps[index].info.step for index in even(len(run.steps), most_steps)]
    found: dict[str, list[tuple[int, Summary]]] = {}
    problems: list[str] = []
    others = 0
    with manager.open(steps[-1]) as newest:
        numbers = [name for name in newest.specs if has_values(newest.specs[name])]
        chosen = sorted(numbers, key=lambda name: (-newest.specs[name].nbytes, name))[:MOST_READ]
        others = len(newest.specs) - len(chosen)
        count = _Count(progress, len(steps) * sum(newest.specs[name].nbytes for name in chosen))
    for step in steps:
        with _told(problems, step), manager.open(step) as opened:
            for name in chosen:
                if name in opened.specs and has_values(opened.specs[name]):
                    with _told(problems, step):
                        found.setdefault(name, []).append((step, summary(opened, name, count.add)))
    return Values(tuple(steps), tuple((name, tuple(found[name])) for name in chosen if name in found), others, tuple(problems))


def comparison(manager: CheckpointManager, first: int, second: int, progress: Progress | None = None) -> Comparison:
    """Compares every tensor of two steps.

    Raises:
        StepNotFoundError: there is no such step.
        CorruptCheckpointError: one is damaged.
    """
    with manager.open(first) as old, manager.open(second) as new:
        names = list(dict.fromkeys([*old.specs, *new.specs]))
        count = _Count(progress, old.nbytes + new.nbytes)
        compare: Callable[[str], Difference] = partial(difference, old, new, note=count.add)
        found = [each for name in names if (each := compare(name)).changed or each.problem]
    ranked = sorted(found, key=_rank)
    return Comparison(first, second, tuple(ranked[:MOST_LISTED]), len(ranked[MOST_LISTED:]), len(names) - len(found))


def _rank(each: Difference) -> tuple[bool, float, float, str]:
    return bool(each.problem), -(each.relative or 0.0), -(each.max_abs or 0.0), each.name


@contextmanager
def _told(problems: list[str], step: int) -> Iterator[None]:
    """Adds what is damaged to the problems, and goes on."""
    try:
        yield
    except CheckpointError as error:
        problems.append(f"step {step}: {error}")
