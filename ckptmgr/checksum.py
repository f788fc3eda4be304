"""crc32c and crc32 of buffers, and the crc32c of two runs of bytes joined without reading either again.

The law: ``combine(crc32c(a), crc32c(b), len(b)) == crc32c(a + b)``. It lets several threads checksum the windows of
one tensor in any order, and gives a file's value from those of its tensors.

Source: a crc is a polynomial over GF(2) modulo a fixed one, so to append n bytes is to multiply by x^(8n) and to add
(`crc32_combine` of zlib 1.2.12). Neither the crc32c package nor Python's zlib has that. Where that package is not
installed, numpy computes the same values (`folding`).
"""

import collections
import functools
import zlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any, Final, Protocol, TypeAlias, cast

import numpy as np

from ckptmgr import folding

package: ModuleType  # what has the crc32c function
try:
    import crc32c as package
except ImportError:
    package = folding

Buffer: TypeAlias = bytes | bytearray | memoryview | np.ndarray[Any, Any]  # C-contiguous; ml_dtypes arrays included

# The bit-reversed polynomials: bit 31 is x^0.
_CASTAGNOLI: Final = 0x82F63B78
_ZIP: Final = 0xEDB88320
_ONE: Final = 1 << 31
_MANY: Final = 16  # parts of one size: from here on, tables for it are made in less time than they save


class Checksum(Protocol):
    """A checksum of a buffer's bytes, going on from ``value``, that of the bytes before them."""

    def __call__(self, buffer: Buffer, value: int = 0, /) -> int: ...


# Not wrapped: for one of many small tensors, a call of Python's own takes as long as the checksum.
crc32c: Checksum = package.crc32c
"""The crc32c (Castagnoli): hardware speed with the crc32c package, 2 to 6 GB/s a core without it.

The GIL is released for large buffers.
"""

crc32: Checksum = cast(Checksum, zlib.crc32)
"""The crc32 of zip and gzip, likewise."""


def combine(first: int, second: int, second_nbytes: int) -> int:
    """The crc32c of two runs of bytes, one after the other, from the values of each."""
    return _multiply(_shift(second_nbytes, _CASTAGNOLI), first, _CASTAGNOLI) ^ second


def combine_crc32(first: int, second: int, second_nbytes: int) -> int:
    """The same of their crc32."""
    return _multiply(_shift(second_nbytes, _ZIP), first, _ZIP) ^ second


def joined(parts: Iterable[tuple[int, int]]) -> int:
    """The crc32c of any number of runs of bytes, one after another, from the value and the size of each."""
    known = list(parts)
    sizes = collections.Counter([nbytes for _, nbytes in known[1:]])
    value = 0
    for part, nbytes in known:
        if sizes[nbytes] < _MANY or not value:
            value = combine(value, part, nbytes) if value else part
            continue
        one, two, three, four = _tables(nbytes)
        value = one[value & 0xFF] ^ two[value >> 8 & 0xFF] ^ three[value >> 16 & 0xFF] ^ four[value >> 24] ^ part
    return value


def joined_crc32(parts: Iterable[tuple[int, int]]) -> int:
    """The same of their crc32."""
    return functools.reduce(lambda value, part: combine_crc32(value, *part), parts, 0)


def _multiply(a: int, b: int, polynomial: int) -> int:
    """a(x) * b(x) modulo the polynomial."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (polynomial if b & 1 else 0)
    return product


@functools.lru_cache(maxsize=64)
def _tables(nbytes: int) -> list[list[int]]:
    """For each byte of a crc32c, the lowest first, and each value of it: what ``nbytes`` more bytes make of that."""
    images: list[int] = []  # of each bit, the highest first, which is x^0
    image = _shift(nbytes, _CASTAGNOLI)
    for _ in range(32):
        images.append(image)
        image = image >> 1 ^ (_CASTAGNOLI if image & 1 else 0)
    tables = [[0] for _ in range(4)]
    for bit, image in enumerate(reversed(images)):
        table = tables[bit // 8]
        table += [value ^ image for value in table]
    return tables


@functools.lru_cache(maxsize=4096)
def _shift(nbytes: int, polynomial: int) -> int:
    """x^(8 * nbytes) modulo the polynomial."""
    value = _ONE
    for power in range(nbytes.bit_length()):
        if nbytes >> power & 1:
            value = _multiply(value, _doubled(power, polynomial), polynomial)
    return value


@functools.cache
def _doubled(power: int, polynomial: int) -> int:
    """x^(8 * 2^power) modulo the polynomial: these few are shared by all sizes."""
    if power == 0:
        return _ONE >> 8
    half = _doubled(power - 1, polynomial)
    return _multiply(half, half, polynomial)
