"""What the tensors of a step hold: norms and histograms, and how two steps differ. Read block by block, so memory is bounded.

A tensor that fits in one block is read whole and checked against its checksum; a larger one is read in slices.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptmgr import Box, Checkpoint, TensorSpec
from ckptmgr.distance import Distance

BLOCK_SIZE = 1 << 22  # elements
BINS = 40

Array = np.ndarray[Any, Any]
Note = Callable[[int], None]  # bytes that were read


@dataclass(frozen=True, slots=True)
class Summary:
    """The values of one tensor, magnitudes if they are complex. All but the counts are of finite values, None without any.

    ``counts`` has how many values lie in each of `BINS` equal ranges from ``lowest`` to ``highest``; it is empty where these are
    too far apart for a range.
    """

    size: int
    nonfinite: int
    lowest: float | None = None
    highest: float | None = None
    mean: float | None = None
    norm: float | None = None
    counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """How a tensor of one step differs from that of another. ``problem`` says why it cannot be compared; then the rest is empty.

    ``changed`` counts elements; of two NaNs neither has changed. ``max_abs`` is over pairs of finite values. ``relative``
    is the L2 norm of the difference over that of the first; None if that is 0.
    """

    name: str
    size: int = 0
    changed: int = 0
    max_abs: float | None = None
    relative: float | None = None
    problem: str = ""


def has_values(spec: TensorSpec) -> bool:
    """Whether the tensor is of numbers."""
    return not (spec.is_string or spec.is_packed or spec.numpy.kind in "SUOMm")


def blocks(shape: tuple[int, ...], most: int) -> Iterator[Box]:
    """Boxes of at most ``most`` elements that together cover a tensor of that shape once."""
    if math.prod(shape) <= most:
        yield Box.whole(shape)
        return
    row = math.prod(shape[1:])
    if row <= most:
        rows = most // row
        for start in range(0, shape[0], rows):
            yield Box((start, *(0 for _ in shape[1:])), (min(start + rows, shape[0]), *shape[1:]))
        return
    for index in range(shape[0]):
        for inner in blocks(shape[1:], most):
            yield Box((index, *inner.start), (index + 1, *inner.stop))


def summary(checkpoint: Checkpoint, name: str, note: Note = lambda nbytes: None, *, most: int = BLOCK_SIZE) -> Summary:
    """Reads a tensor of numbers, twice if it is larger than a block: once for the range, once for the histogram.

    Raises:
        CorruptCheckpointError: its bytes are not what was written.
    """
    spec = checkpoint.specs[name]
    whole: Array | None = None
    count, total, square, low, high = 0, 0.0, 0.0, math.inf, -math.inf
    for box in blocks(spec.shape, most):
        finite, nbytes = _finite(checkpoint, name, box)
        note(nbytes)
        whole = finite if box.size == spec.size else None
        if not finite.size:
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            count += finite.size
            total += float(finite.sum())
            square += float(np.square(finite).sum())
        low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if not count:
        return Summary(spec.size, spec.size)
    counts: Array = np.zeros(BINS, np.int64)
    if math.isfinite(high - low):
        for box in blocks(spec.shape, most):
            finite = _finite(checkpoint, name, box)[0] if whole is None else whole
            counts += np.histogram(finite, bins=BINS, range=(low, high))[0]
    mean, norm = (value if math.isfinite(value) else None for value in (total / count, math.sqrt(square)))
    return Summary(spec.size, spec.size - count, low, high, mean, norm, tuple(counts.tolist()) if counts.any() else ())


def difference(
    first: Checkpoint, second: Checkpoint, name: str, note: Note = lambda nbytes: None, *, most: int = BLOCK_SIZE
) -> Difference:
    """Compares a tensor of two steps, value by value.

    Raises:
        CorruptCheckpointError: the bytes of one are not what was written.
    """
    if problem := _mismatch(first.specs.get(name), second.specs.get(name)):
        return Difference(name, problem=problem)
    spec = first.specs[name]
    distance = Distance()
    for box in blocks(spec.shape, most):
        old, new = _part(first, name, box), _part(second, name, box)
        note(old.nbytes + new.nbytes)
        distance.add(old.reshape(-1), new.reshape(-1))
    return Difference(name, spec.size, distance.changed, float(distance.max_abs), distance.relative)


def _mismatch(old: TensorSpec | None, new: TensorSpec | None) -> str:
    if old is None or new is None:
        return "only in the second" if old is None else "only in the first"
    if old.shape != new.shape:
        return f"shape {_shape(old)} became {_shape(new)}"
    return "" if has_values(old) and has_values(new) else "its values are no numbers"


def _shape(spec: TensorSpec) -> str:
    return "x".join(map(str, spec.shape)) or "scalar"


def _part(checkpoint: Checkpoint, name: str, box: Box) -> Array:
    """A whole tensor where the box is all of it, as that is checked."""
    spec = checkpoint.specs[name]
    return checkpoint.read(name, None if box.size == spec.size else box)


def _finite(checkpoint: Checkpoint, name: str, box: Box) -> tuple[Array, int]:
    array = _part(checkpoint, name, box)
    values = _real(array).ravel()
    return values[np.isfinite(values)], array.nbytes


def _real(array: Array) -> Array:
    """The values as float64, in which every smaller dtype is exact; magnitudes of complex ones."""
    return (np.abs(array) if array.dtype.kind == "c" else array).astype(np.float64)
