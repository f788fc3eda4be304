"""What is different between two checkpoints, tensor by tensor and value by value."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ckptmgr.rng import RngState
from ckptmgr.skeleton import decode
from ckptmgr.spec import TensorSpec
from ckptmgr.step import JSON
from ckptmgr.transfer import Stats

_SHOWN = 20  # lines of a sort
_WIDTH = 60  # characters shown of a value

Change = Literal["only in A", "only in B", "shape", "dtype", "values", "checksum"]
Kind = Literal["value", "metric", "metadata", "asset", "blob"]


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A tensor that differs. ``a`` and ``b`` are its specs, None where it is not; ``origin`` its name in A before the rules.

    ``changed`` counts elements: of two NaNs neither has changed, and -0.0 is 0.0. ``max_abs`` is the largest difference of two
    finite elements, an int for integers of one dtype. ``relative`` is the L2 norm of the difference over that of A; None where
    A is all zeros, or a norm is beyond float64. ``nonfinite`` counts NaN and infinities in A and in B. Where values were not
    compared (another shape, strings, or by checksum alone) all of these are None, but ``changed`` of strings.
    """

    name: str
    change: Change
    a: TensorSpec | None = None
    b: TensorSpec | None = None
    origin: str = ""
    changed: int | None = None
    max_abs: float | int | None = None
    relative: float | None = None
    nonfinite: tuple[int, int] | None = None

    @property
    def specs(self) -> str:
        """Dtype and shape for people, in both if they differ."""
        told = [(spec.dtype, "x".join(map(str, spec.shape)) or "scalar") for spec in (self.a, self.b) if spec is not None]
        return " ".join(" -> ".join(dict.fromkeys(column)) for column in zip(*told, strict=True))

    @property
    def counted(self) -> str:
        """How many elements have changed, for people."""
        size = (self.a or self.b or TensorSpec("bool", ())).size
        return "" if self.changed is None else f"{self.changed} of {size}"

    @property
    def note(self) -> str:
        """What else a person should know."""
        notes = [f"{self.origin} in A"] if self.origin else []
        if self.nonfinite and any(self.nonfinite):
            notes.append(f"not finite: {self.nonfinite[0]} in A, {self.nonfinite[1]} in B")
        return "; ".join(notes)

    def __str__(self) -> str:
        numbers = (number("max abs", self.max_abs), number("relative", self.relative))
        about = ", ".join(filter(None, (self.change, self.specs, self.counted, *numbers, self.note)))
        return f"{self.name}: {about}"

    def to_json(self) -> dict[str, JSON]:
        """All of it as plain JSON."""
        return {
            "name": self.name,
            "change": self.change,
            **{side: None if spec is None else _spec_json(spec) for side, spec in (("a", self.a), ("b", self.b))},
            "origin": self.origin or self.name,
            "changed": self.changed,
            "max_abs": self.max_abs,
            "relative": self.relative,
            "nonfinite": None if self.nonfinite is None else list(self.nonfinite),
        }


@dataclass(frozen=True, slots=True)
class ValueChange:
    """A plain value of the state, or something beside it, that differs. ``a`` and ``b`` are in the JSON form of a skeleton.

    ``where`` tells whether it is in both. Of assets and blobs size and crc32c stand for the bytes.
    """

    kind: Kind
    name: str
    where: Literal["both", "only in A", "only in B"]
    a: JSON = None
    b: JSON = None

    @property
    def told(self) -> str:
        """Both values for people."""
        if self.where != "both":
            return f"{self.where}: {self._cut(self.a if self.where == 'only in A' else self.b)}"
        old, new = self._cut(self.a), self._cut(self.b)
        return f"{old} -> {new}" if old != new else f"{old}, and another {old}"

    def _cut(self, value: JSON) -> str:
        if self.kind in ("asset", "blob"):
            return f"{value['nbytes']} bytes with crc32c {value['crc32c']}"
        made = decode(value, lambda _, leaf: leaf) if self.kind == "value" else value
        text = f"{made.algorithm} in a state" if isinstance(made, RngState) else repr(made)
        return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}..."

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.told}"

    def to_json(self) -> dict[str, JSON]:
        """All of it as plain JSON; a side that has no such value has no key."""
        sides = {"both": ("a", "b"), "only in A": ("a",), "only in B": ("b",)}[self.where]
        return {"kind": self.kind, "name": self.name, "where": self.where, **{side: getattr(self, side) for side in sides}}


@dataclass(frozen=True, slots=True)
class DiffReport:
    """How checkpoint ``b`` differs from ``a``, given by where they lie and which steps they are.

    ``tensors`` are those that differ: first what is in one alone or has another shape or dtype, then the most changed, those
    with new NaN or infinities before all others. ``values`` are plain values of the state, and what is beside it. ``same``
    counts tensors that are equal; of these ``within`` are equal only by the tolerance, ``other_bytes`` equal in value and not in
    bytes (-0.0 and 0.0, kinds of NaN). ``unknown`` could not be compared: without reading them, as ``quick`` asks, or
    at all, as no array holds them.
    """

    a: str
    b: str
    steps: tuple[int | None, int | None]
    tensors: tuple[TensorChange, ...]
    values: tuple[ValueChange, ...]
    same: int
    within: tuple[str, ...]
    other_bytes: tuple[str, ...]
    unknown: tuple[str, ...]
    stats: Stats = field(compare=False)

    @property
    def is_same(self) -> bool:
        """Whether nothing differs, and everything was compared."""
        return not (self.tensors or self.values or self.unknown)

    @property
    def summary(self) -> str:
        """One line for people."""
        if self.is_same:
            return f"the same: {_many(self.same, 'tensor')}{self._remarks}"
        changes = [change.change for change in self.tensors]
        sorts = [f"{changes.count(change)} {words}" for change, words in _SORTS.items() if change in changes]
        told = f"{_many(len(self.tensors), 'tensor')} differ{'s' if len(self.tensors) == 1 else ''}"
        parts = [f"{told} ({', '.join(sorts)})" if sorts else "no tensor differs", f"{self.same} equal"]
        parts += [f"{len(self.unknown)} not compared"] if self.unknown else []
        kinds = [value.kind for value in self.values]
        beside = [f"{kinds.count(kind)} of {words}" for kind, words in _KINDS.items() if kind in kinds]
        return ", ".join(parts) + (f"; other values: {', '.join(beside)}" if beside else "") + self._remarks

    @property
    def _remarks(self) -> str:
        within = f"; {len(self.within)} within the tolerance" if self.within else ""
        return within + (f"; {len(self.other_bytes)} equal in value, not in bytes" if self.other_bytes else "")

    def __str__(self) -> str:
        lines = [f"A: {self.a!r}", f"B: {self.b!r}", *_first(self.tensors), *_first(self.values), self.summary]
        return "\n".join(lines)

    def to_json(self) -> dict[str, JSON]:
        """All of it as plain JSON."""
        return {
            "same": self.is_same,
            "a": {"location": self.a, "step": self.steps[0]},
            "b": {"location": self.b, "step": self.steps[1]},
            "tensors": [change.to_json() for change in self.tensors],
            "values": [change.to_json() for change in self.values],
            "equal": self.same,
            "within": list(self.within),
            "other_bytes": list(self.other_bytes),
            "unknown": list(self.unknown),
            "nbytes": self.stats.nbytes,
            "seconds": self.stats.seconds,
        }


_SORTS: Mapping[Change, str] = {
    "only in A": "only in A",
    "only in B": "only in B",
    "shape": "of another shape",
    "dtype": "of another dtype",
    "values": "in values",
    "checksum": "by checksum",
}
_KINDS: Mapping[Kind, str] = {
    "value": "the state",
    "metric": "the metrics",
    "metadata": "the metadata",
    "asset": "the assets",
    "blob": "what the format carries",
}


def rank(change: TensorChange) -> tuple[int, bool, float, float, str]:
    """The order in which a person looks for what went wrong."""
    nonfinite = change.nonfinite or (0, 0)
    relative = math.inf if change.relative is None else change.relative
    place = min([*_SORTS].index(change.change), _VALUES)
    return place, nonfinite[1] <= nonfinite[0], -relative, -(change.max_abs or 0), change.name


_VALUES = [*_SORTS].index("values")


def number(title: str, value: float | int | None) -> str:
    """A titled number for people; ``""`` for None."""
    return "" if value is None else f"{title} {figure(value)}"


def figure(value: float | int | None) -> str:
    """A number for people: integers in full, others to four digits."""
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"


def _spec_json(spec: TensorSpec) -> JSON:
    return {"dtype": spec.dtype, "shape": list(spec.shape)}


def _first(changes: Sequence[object]) -> list[str]:
    more = len(changes) - _SHOWN
    return [*map(str, changes[:_SHOWN]), *([f"and {more} more"] if more > 0 else [])]


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
