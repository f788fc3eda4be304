"""crc32c and crc32 of buffers, and the crc32c of two runs of bytes joined without reading either again.

The law: ``combine(crc32c(a), crc32c(b), len(b)) == crc32c(a + b)``. It lets several threads checksum the windows of
one tensor in any order, and gives a file's value from those of its tensors.

Source: a crc is a polynomial over GF(2) modulo a fixed one, so to append n bytes is to multiply by x^(8n) and to add
(`crc32_combine` of zlib 1.2.12). Neither the fastcrc package nor Python's zlib has that. Where that package is not
installed, or gives other values, numpy and zlib compute them (`folding`).
"""

import collections
import functools
import logging
import zlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any, Final, Protocol, TypeAlias, cast

import numpy as np

from ckptmgr import folding

package: ModuleType | None
try:
    from fastcrc import crc32 as package
except ImportError:
    package = None

logger = logging.getLogger(__name__)

Buffer: TypeAlias = bytes | bytearray | memoryview | np.ndarray[Any, Any]  # C-contiguous; ml_dtypes arrays included

# The bit-reversed polynomials: bit 31 is x^0.
_CASTAGNOLI: Final = 0x82F63B78
_ZIP: Final = 0xEDB88320
_ONE: Final = 1 << 31
_MANY: Final = 16  # parts of one size: from here on, tables for it are made in less time than they save


class Checksum(Protocol):
    """A checksum of a buffer's bytes, going on from ``value``, that of the bytes before them."""

    def __call__(self, buffer: Buffer, value: int = 0, /) -> int: ...


def _both() -> tuple[Checksum, Checksum]:
    """The crc32c and the crc32 that are computed here.

    The package has code of its own for each kind of processor, and nobody has them all to try it on: a checkpoint whose
    checksums are wrong would be damaged everywhere else. So it is tried here, for some 3 microseconds.
    """
    plain = folding.crc32c, cast(Checksum, zlib.crc32)
    if package is None:
        return plain
    for computed, expected in ((package.iscsi, _CRC32C_OF_TRIED), (package.iso_hdlc, _CRC32_OF_TRIED)):
        if (computed(_TRIED), computed(_TRIED[_CUT:], computed(_TRIED[:_CUT]))) != (expected, expected):
            logger.warning("the fastcrc package gives wrong checksums on this machine and is not used: saves are slower")
            return plain
    return package.iscsi, package.iso_hdlc


_TRIED: Final = bytes(range(251)) * 20  # long enough for each width of registers, and no two stretches are alike
_CUT: Final = 701
_CRC32C_OF_TRIED: Final = 0xBF9EE4BE
_CRC32_OF_TRIED: Final = 0xA6A65ECD

# Not wrapped: for one of many small tensors, a call of Python's own takes as long as the checksum.
crc32c: Checksum
"""The crc32c (Castagnoli): hardware speed with the fastcrc package, 2 to 6 GB/s a core without it.

The GIL is released for large buffers.
"""

crc32: Checksum
"""The crc32 of zip and gzip, likewise; zlib's without the package."""

crc32c, crc32 = _both()


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
