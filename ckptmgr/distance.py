"""How far apart two tensors are, told piece by piece, so that memory does not grow with them.

The law: what is counted does not depend on how the tensors are cut. Floats are compared as float64, in which every smaller one
is exact, and integers of one dtype as integers: nothing wraps around.
"""

import math
from typing import Any, TypeAlias

import numpy as np

from ckptmgr.spec import PACKED_BITS, TensorSpec, numpy_dtype

_Array: TypeAlias = np.ndarray[Any, Any]


def is_comparable(old: TensorSpec, new: TensorSpec) -> bool:
    """Whether elements of the two can be compared one by one; strings are no numbers."""
    if old.shape != new.shape or old.is_string or new.is_string:
        return False
    return old.dtype == new.dtype or not {old.numpy.kind, new.numpy.kind} & {"M", "m"}


def elements(raw: _Array, spec: TensorSpec) -> _Array:
    """The elements in little-endian C-order bytes; packed ones (4 or 6 bits, the lowest first) each in a byte of its own."""
    bits = PACKED_BITS.get(spec.dtype)
    if bits is None:
        return raw.view(spec.numpy.newbyteorder("<"))
    codes = np.packbits(np.unpackbits(raw, bitorder="little").reshape(-1, bits), axis=1, bitorder="little").reshape(-1)
    return codes.view(numpy_dtype(spec.dtype.removeprefix("packed_")))


class Distance:
    """What adds up over the pieces of two tensors, in the order in which they are added.

    ``unequal`` counts elements of different value: NaN is equal to NaN, -0.0 to 0.0. ``changed`` counts those that are further
    apart than ``atol + rtol * abs(old)``, and those of which not both are finite. ``max_abs`` is the largest distance of two
    finite elements: an int where both are integers of one dtype. ``nonfinite`` counts NaN and infinities in each.
    ``has_other_bytes`` tells of bytes that differ, in whatever.
    """

    def __init__(self, *, atol: float = 0.0, rtol: float = 0.0) -> None:
        self.unequal = self.changed = 0
        self.max_abs: float | int = 0
        self.nonfinite = (0, 0)
        self.has_other_bytes = False
        self._square = self._norm = 0.0
        self._is_whole = True
        self._atol, self._rtol = atol, rtol

    @property
    def relative(self) -> float | None:
        """The L2 norm of the difference over that of the old one, of finite elements; None if that is 0, or either overflows."""
        if not self._square:
            return 0.0
        is_known = self._is_whole and 0 < self._norm < math.inf and self._square < math.inf
        return math.sqrt(self._square) / math.sqrt(self._norm) if is_known else None

    def skip(self) -> None:
        """Passes over pieces of equal bytes, which saves time; if any others follow, no relative distance is known."""
        self._is_whole = False

    def add(self, old: _Array, new: _Array, *, has_same_bytes: bool = False) -> None:
        """Two pieces with as many elements each. ``has_same_bytes`` says that they are the same."""
        self.has_other_bytes |= not has_same_bytes
        before = _numbers(old)
        if has_same_bytes and self._add_same(before):
            return
        after = _numbers(new)
        if before.dtype.kind in "iu" and before.dtype == after.dtype:
            self._add_ints(before, after, missing=old.dtype.kind in "Mm")
            return
        if before.dtype != after.dtype:
            common = np.result_type(before, after, np.float64)
            before, after = before.astype(common), after.astype(common)
        self._add_floats(before, after)

    def _add_same(self, values: _Array) -> bool:
        """Adds what equal values add to the norm, if they are finite."""
        with np.errstate(all="ignore"):
            norm = _squared(values.astype(np.float64) if values.dtype.kind in "iu" else values)
        is_finite = math.isfinite(norm)
        self._norm += norm if is_finite else 0.0
        return is_finite

    def _add_ints(self, before: _Array, after: _Array, *, missing: bool) -> None:
        if missing:  # NaT, the least of them, is as far from any time as NaN is from a number
            gone = before == np.iinfo(np.int64).min, after == np.iinfo(np.int64).min
            self._note_nonfinite(*gone)
            one = gone[0] != gone[1]
            self.unequal += int(np.count_nonzero(one))
            self.changed += int(np.count_nonzero(one))
            both = ~(gone[0] | gone[1])
            before, after = before[both], after[both]
        unequal = before != after
        count = int(np.count_nonzero(unequal))
        values = before.astype(np.float64)
        self._norm += _squared(values)
        if not count:
            return
        low, high = np.minimum(before, after), np.maximum(before, after)
        apart = high.astype(np.uint64) - low.astype(np.uint64)  # modulo 2**64, and so exact
        self.max_abs = max(self.max_abs, int(apart.max()))
        distance = apart.astype(np.float64)
        self._square += _squared(distance)
        self.unequal += count
        self.changed += self._beyond(distance, values) if self._atol or self._rtol else count

    def _add_floats(self, before: _Array, after: _Array) -> None:
        self.max_abs = float(self.max_abs)
        with np.errstate(all="ignore"):
            norm, difference = _squared(before), after - before
            if not (math.isfinite(norm) and np.isfinite(difference).all()):
                before, after = self._finite(before, after)
                norm, difference = _squared(before), after - before
            self._norm += norm
            count = int(np.count_nonzero(before != after))
            if not count:
                return
            distance = np.abs(difference)
            self.max_abs = max(self.max_abs, float(distance.max()))
            self._square += _squared(difference)
            self.unequal += count
            self.changed += self._beyond(distance, np.abs(before)) if self._atol or self._rtol else count

    def _finite(self, before: _Array, after: _Array) -> tuple[_Array, _Array]:
        """The pairs of finite elements; the others are counted."""
        gone = ~np.isfinite(before), ~np.isfinite(after)
        self._note_nonfinite(*gone)
        either = gone[0] | gone[1]
        old, new = before[either], after[either]
        count = int(np.count_nonzero((old != new) & ~(np.isnan(old) & np.isnan(new))))
        self.unequal += count
        self.changed += count
        return before[~either], after[~either]

    def _note_nonfinite(self, before: _Array, after: _Array) -> None:
        self.nonfinite = self.nonfinite[0] + int(np.count_nonzero(before)), self.nonfinite[1] + int(np.count_nonzero(after))

    def _beyond(self, distance: _Array, before: _Array) -> int:
        within = distance <= self._atol + self._rtol * np.abs(before)
        return int(np.count_nonzero(~within & (distance != 0)))


def _numbers(array: _Array) -> _Array:
    """The values in a dtype of numpy's own that holds them exactly."""
    dtype = array.dtype
    if dtype.kind in "Mm":
        array = array.view(f"{dtype.str[0]}i8")
        return array.astype(np.int64, copy=False)
    if dtype.kind in "biu" or (dtype.kind not in "fc" and "int" in dtype.name):
        return array.astype(np.uint64 if dtype.kind == "u" and dtype.itemsize == 8 else np.int64, copy=False)
    wide: np.dtype[Any] = np.dtype(np.complex128 if dtype.kind == "c" else np.float64)
    chosen = dtype.newbyteorder("=") if dtype.itemsize > wide.itemsize else wide
    return array.astype(chosen, copy=False)


def _squared(array: _Array) -> float:
    """The sum of squares, on this core alone: the threads of a BLAS would cost more than they save."""
    values = np.ascontiguousarray(array).view(array.real.dtype)
    return float(np.einsum("i,i->", values, values))
