"""How the values of one tensor become those of another: axes permuted, gates in another order, two biases made one.

The law: every step but the sum moves elements and changes none, has an inverse, and reads of its input only what the asked box
needs (a sum and a stack read theirs whole: they are biases).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from ckptmgr.box import Box
from ckptmgr.spec import TensorSpec

_Array: TypeAlias = np.ndarray[Any, Any]
Read: TypeAlias = Callable[[Box], _Array]


class Permuted(NamedTuple):
    """The axes in another order, as in `numpy.transpose`."""

    axes: tuple[int, ...]

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that this makes of another."""
        return tuple(shape[axis] for axis in self.axes)

    def inverse(self) -> "Permuted":
        """What undoes it."""
        return Permuted(tuple(int(axis) for axis in np.argsort(self.axes)))

    def read(self, read: Read, shape: Sequence[int], box: Box) -> _Array:
        """A box of what this makes, from boxes of its input, which has that shape."""
        back = self.inverse().axes
        inner = Box(tuple(box.start[axis] for axis in back), tuple(box.stop[axis] for axis in back))
        return read(inner).transpose(self.axes)


class Regated(NamedTuple):
    """Equal blocks along the first axis in another order: block ``order[i]`` of the input becomes block ``i``."""

    order: tuple[int, ...]

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """See `Permuted.shape`."""
        return tuple(shape)

    def inverse(self) -> "Regated":
        """See `Permuted.inverse`."""
        return Regated(tuple(int(block) for block in np.argsort(self.order)))

    def read(self, read: Read, shape: Sequence[int], box: Box) -> _Array:
        """See `Permuted.read`."""
        size = shape[0] // len(self.order)
        parts = []
        for place, block in enumerate(self.order):
            start, stop = max(box.start[0], place * size), min(box.stop[0], (place + 1) * size)
            if start < stop:
                moved = (block - place) * size
                parts.append(read(Box((start + moved, *box.start[1:]), (stop + moved, *box.stop[1:]))))
        return np.concatenate(parts) if parts else read(Box(box.start, (box.start[0], *box.stop[1:])))


class Row(NamedTuple):
    """One row of a matrix. What undoes several is `Recipe.how` ``"stack"``."""

    row: int

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """See `Permuted.shape`."""
        return tuple(shape[1:])

    def read(self, read: Read, shape: Sequence[int], box: Box) -> _Array:
        """See `Permuted.read`."""
        return read(Box((self.row, *box.start), (self.row + 1, *box.stop))).reshape(box.shape)


class Folded(NamedTuple):
    """The first two axes as one, and an axis of 1 after it: ``(c, multiplier, ...)`` to ``(c * multiplier, 1, ...)``."""

    multiplier: int

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """See `Permuted.shape`."""
        return (shape[0] * shape[1], 1, *shape[2:])

    def inverse(self) -> "Unfolded":
        """See `Permuted.inverse`."""
        return Unfolded(self.multiplier)

    def read(self, read: Read, shape: Sequence[int], box: Box) -> _Array:
        """See `Permuted.read`."""
        first, last = box.start[0] // self.multiplier, -(-box.stop[0] // self.multiplier)
        found = read(Box((first, 0, *box.start[2:]), (last, self.multiplier, *box.stop[2:])))
        rows = found.reshape((last - first) * self.multiplier, 1, *found.shape[2:])
        skipped = first * self.multiplier
        return rows[box.start[0] - skipped : box.stop[0] - skipped, box.start[1] : box.stop[1]]


class Unfolded(NamedTuple):
    """What undoes `Folded`."""

    multiplier: int

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """See `Permuted.shape`."""
        return (shape[0] // self.multiplier, self.multiplier, *shape[2:])

    def inverse(self) -> Folded:
        """See `Permuted.inverse`."""
        return Folded(self.multiplier)

    def read(self, read: Read, shape: Sequence[int], box: Box) -> _Array:
        """See `Permuted.read`."""
        first, last = box.start[0] * self.multiplier, box.stop[0] * self.multiplier
        found = read(Box((first, 0, *box.start[2:]), (last, 1, *box.stop[2:])))
        whole = found.reshape(box.shape[0], self.multiplier, *found.shape[2:])
        return whole[:, box.start[1] : box.stop[1]]


Step: TypeAlias = Permuted | Regated | Row | Folded | Unfolded


class Piece(NamedTuple):
    """A tensor of the source, by its name, and the steps that it goes through."""

    name: str
    steps: tuple[Step, ...] = ()

    def read(self, read: Read, shape: Sequence[int], box: Box) -> _Array:
        """A box of what the steps make of the tensor; ``read`` gives boxes of it, and ``shape`` is its shape."""
        shapes = [tuple(shape)]
        for step in self.steps:
            shapes.append(step.shape(shapes[-1]))
        return self._read(read, shapes, len(self.steps), box)

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of what the steps make of a tensor of that shape."""
        for step in self.steps:
            shape = step.shape(shape)
        return tuple(shape)

    def _read(self, read: Read, shapes: Sequence[tuple[int, ...]], count: int, box: Box) -> _Array:
        if count == 0:
            return read(box)
        return self.steps[count - 1].read(lambda inner: self._read(read, shapes, count - 1, inner), shapes[count - 1], box)


How: TypeAlias = Literal["one", "stack", "add", "zeros"]


class Recipe(NamedTuple):
    """How a tensor is made: of ``one`` piece, of several one on another, as the sum of two, or of no source at all."""

    spec: TensorSpec
    pieces: tuple[Piece, ...] = ()
    how: How = "one"
    note: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether it is a tensor of the source as it is."""
        return self.how == "one" and not self.pieces[0].steps


def plain(name: str, spec: TensorSpec) -> Recipe:
    """The tensor as it is."""
    return Recipe(spec, (Piece(name),))


def added(one: _Array, other: _Array) -> _Array:
    """The sum of two biases: to the bit that one of them which is not all zeros, where the other is."""
    for left, right in ((one, other), (other, one)):
        if not right.any():
            return left
    with np.errstate(all="ignore"):
        return np.asarray(one + other, one.dtype)
