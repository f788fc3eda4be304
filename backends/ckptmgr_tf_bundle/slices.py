"""Partitioned tensors: under which key a slice is, and whether slices make up their tensor.

Source: TensorFlow's tensor_slice.proto, saved_tensor_slice_util.cc (EncodeTensorNameSlice) and ordered_code.cc.
"""

import math
import secrets
from collections.abc import Callable, Sequence

from ckptmgr.backend import Box
from ckptmgr_tf_bundle.entry import Entry, Extents
from ckptmgr_tf_bundle.origin import Origin

_PRIME = 2**61 - 1
_WHOLE = -1  # the length in a key of a dimension that is given without one


def slice_key(name: bytes, extents: Extents) -> bytes:
    """The key of a tensor's slice, from its extents exactly as the tensor's entry gives them.

    A dimension that is covered whole has one key without a length and another with it, so extents must not be normalised.
    """
    escaped = b"\xff\x00".join(piece.replace(b"\x00", b"\x00\xff") for piece in name.split(b"\xff"))
    numbers = [number for start, length in extents for number in (start, _WHOLE if length is None else length)]
    return b"\x00" + escaped + b"\x00\x01" + _unsigned(len(extents)) + b"".join(map(_signed, numbers))


def boxes(entry: Entry, key: str, origin: Origin) -> list[Box]:
    """The box of each slice of a partitioned tensor, in order. Together they cover it exactly once.

    Raises:
        CorruptCheckpointError: a slice is empty or not inside the tensor, or they leave out or share elements.
    """
    try:
        found = [_box(extents, entry.shape) for extents in entry.slices]
    except ValueError as error:
        raise origin.corrupt(str(error), key) from error
    size, covered = math.prod(entry.shape), sum(math.prod(box.shape) for box in found)
    if covered != size:
        raise origin.corrupt(f"its {len(found)} slices have {covered} elements, its shape {entry.shape} has {size}", key)
    if not _is_cover(found, entry.shape):
        raise origin.corrupt(f"its {len(found)} slices overlap", key)
    return found


def _box(extents: Extents, shape: tuple[int, ...]) -> Box:
    if len(extents) != len(shape):
        raise ValueError(f"a slice has {len(extents)} dimensions, its shape {shape}")
    if any(first != 0 for first, length in extents if length is None):
        raise ValueError(f"its slice {extents} takes a whole dimension, but not from 0 on")
    start = tuple([first for first, _ in extents])
    stop = tuple([size if length is None else first + length for (first, length), size in zip(extents, shape, strict=True)])
    if not all(0 <= a < b <= size for a, b, size in zip(start, stop, shape, strict=True)):
        raise ValueError(f"its slice from {start} to {stop} is empty or outside its shape {shape}")
    return Box(start, stop)


def _is_cover(found: Sequence[Box], shape: tuple[int, ...]) -> bool:
    """Whether boxes inside a tensor cover each of its elements exactly once, in linear time.

    With a number x(axis, coordinate) for every bound, let a box be worth the product of x(stop) - x(start) over its axes.
    As polynomials in x, the worths of the boxes add up to that of the whole tensor exactly if they cover it once: the
    monomials are corners, and those of a cover cancel out. Two different polynomials of degree 64 or less agree at a random
    point modulo a prime p with a chance of at most 64/p, which is 2^-55 here (Schwartz and Zippel).
    """
    values = [_RandomNumbers() for _ in shape]
    worth = _worth(values)
    return sum(map(worth, found)) % _PRIME == worth(Box.whole(shape))


class _RandomNumbers(dict[int, int]):
    def __missing__(self, coordinate: int) -> int:
        value = self[coordinate] = secrets.randbelow(_PRIME)
        return value


def _worth(values: Sequence[dict[int, int]]) -> Callable[[Box], int]:
    def worth(box: Box) -> int:
        product = 1
        for at, start, stop in zip(values, box.start, box.stop, strict=True):
            product = product * (at[stop] - at[start]) % _PRIME
        return product

    return worth


def _unsigned(number: int) -> bytes:
    """A number from 0 on, so that byte order is numeric order: how many bytes, and those."""
    nbytes = (number.bit_length() + 7) // 8
    return bytes([nbytes]) + number.to_bytes(nbytes, "big")


def _signed(number: int) -> bytes:
    """Any 64-bit number, likewise: two's complement with as many leading ones as it has bytes, xored in."""
    magnitude = number if number >= 0 else ~number
    nbytes: int = max((magnitude.bit_length() + 7) // 7, 1)
    marks = ((1 << nbytes) - 1) << (7 * nbytes)
    return ((number ^ marks) & ((1 << 8 * nbytes) - 1)).to_bytes(nbytes, "big")
