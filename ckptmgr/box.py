"""A slice of a tensor as a value: half-open bounds per dimension, in elements."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Box:
    """The elements ``start <= index < stop`` of a tensor, per dimension.

    A box of rank 0 is the one element of a 0-d tensor. A box may be empty.

    Raises:
        ValueError: bounds of different ranks, negative, or a stop before its start.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.start) != len(self.stop):
            raise ValueError(f"box start {self.start} and stop {self.stop} have different ranks")
        if any(not 0 <= a <= b for a, b in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"box bounds must be 0 <= start <= stop, not {self.start} to {self.stop}")

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Self:
        """The box that covers a whole tensor of that shape."""
        return cls((0,) * len(shape), tuple(shape))

    @classmethod
    def from_slices(cls, slices: Sequence[slice], shape: Sequence[int]) -> Self:
        """The box that ``array[slices]`` selects from a tensor of that shape; missing trailing slices select all.

        Raises:
            ValueError: a step other than 1, or more slices than dimensions.
        """
        if len(slices) > len(shape):
            raise ValueError(f"{len(slices)} slices for a tensor of shape {tuple(shape)}")
        full = [*slices, *[slice(None)] * (len(shape) - len(slices))]
        bounds = [part.indices(size) for part, size in zip(full, shape, strict=True)]
        if any(step != 1 for _, _, step in bounds):
            raise ValueError(f"a box has no steps: {tuple(slices)}")
        return cls(tuple(a for a, _, _ in bounds), tuple(max(a, b) for a, b, _ in bounds))

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each dimension."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """For indexing an array of the whole tensor."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the box lies inside a tensor of that shape."""
        return len(shape) == len(self.stop) and all(b <= n for b, n in zip(self.stop, shape, strict=True))

    def overlap(self, other: "Box") -> "Box | None":
        """The part of a tensor both boxes cover, or None if they share no element.

        Both boxes are in the same tensor's coordinates and have the same rank.

        Raises:
            ValueError: the boxes have different ranks.
        """
        if len(self.start) != len(other.start):
            raise ValueError(f"boxes of rank {len(self.start)} and {len(other.start)} cannot overlap")
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(min, self.stop, other.stop))
        return Box(start, stop) if all(a < b for a, b in zip(start, stop, strict=True)) else None

    def relative_to(self, origin: "Box") -> "Box":
        """This box in the coordinates of ``origin``'s first element; it must lie inside ``origin``."""
        return Box(
            tuple(a - o for a, o in zip(self.start, origin.start, strict=True)),
            tuple(b - o for b, o in zip(self.stop, origin.start, strict=True)),
        )

    def runs(self, shape: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Where the box's elements lie in a C-order tensor of that shape: ``(first element, count)``, ascending.

        Neighbouring runs are joined, so a box of whole rows is one run.
        """
        if self.size == 0:
            return
        inner = len(shape)
        while inner > 0 and self.start[inner - 1] == 0 and self.stop[inner - 1] == shape[inner - 1]:
            inner -= 1
        # Dimensions from `inner` on are covered whole; the one before it bounds each run.
        split = max(inner - 1, 0)
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        count = math.prod(self.shape[split:])
        first = sum(a * s for a, s in zip(self.start[split:], strides[split:], strict=True))
        yield from ((offset + first, count) for offset in _offsets(self, strides, split))

    def chunks(self, most: int) -> Iterator["Box"]:
        """The box cut into boxes of at most ``most`` elements, in C order of its own elements.

        Each piece is a run of consecutive elements of this box in C order, so the pieces'
        bytes one after another are the box's bytes. An empty box yields nothing.

        Raises:
            ValueError: ``most`` is not positive.
        """
        if most < 1:
            raise ValueError(f"a box cannot be cut into pieces of {most} elements")
        if self.size <= most or not self.start:
            if self.size:
                yield self
            return
        axis = next(i for i, n in enumerate(self.shape) if n > 1)
        row = self.size // self.shape[axis]
        rows = max(most // row, 1)
        for at in range(self.start[axis], self.stop[axis], rows):
            stop = min(at + rows, self.stop[axis])
            piece = Box(_with(self.start, axis, at), _with(self.stop, axis, stop))
            yield from piece.chunks(most) if piece.size > most else (piece,)


def _with(values: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    return (*values[:axis], value, *values[axis + 1 :])


def _offsets(box: Box, strides: Sequence[int], split: int, axis: int = 0) -> Iterator[int]:
    if axis == split:
        yield 0
        return
    for index in range(box.start[axis], box.stop[axis]):
        for rest in _offsets(box, strides, split, axis + 1):
            yield index * strides[axis] + rest
