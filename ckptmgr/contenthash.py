"""A 128-bit hash of a file's bytes, by which a file is taken for equal to an older one without reading that.

The law: equal labels mean equal bytes, as far as 128 bits can tell. It guards against chance, not against somebody who makes
files that collide: whoever can do that can as well write what he likes into the run. With the package ``xxhash`` it is XXH3,
faster than memory can be read by one core; without it BLAKE2b, some 1 GB/s. Labels of one never equal those of the other.
"""

import hashlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ckptmgr.checksum import Buffer

_NBYTES = 16


class _Hash(Protocol):
    def update(self, data: Any, /) -> object: ...
    def hexdigest(self) -> str: ...


def _blake2b() -> _Hash:
    return hashlib.blake2b(digest_size=_NBYTES)


_new: Callable[[], _Hash]
try:
    import xxhash
except ImportError:
    ALGORITHM, _new = "blake2b", _blake2b
else:
    ALGORITHM, _new = "xxh3_128", xxhash.xxh3_128


class ContentHash:
    """The hash of bytes that are added in order; the GIL is released while a large buffer is."""

    def __init__(self) -> None:
        self._hash = _new()

    def add(self, buffer: Buffer) -> None:
        """Goes on with these bytes."""
        # Arrays of ml_dtypes are no buffers for Python, but their bytes are.
        self._hash.update(buffer.reshape(-1).view(np.uint8) if isinstance(buffer, np.ndarray) else buffer)

    @property
    def label(self) -> str:
        """The algorithm and the hash of all bytes so far, in 32 hexadecimal digits."""
        return f"{ALGORITHM}:{self._hash.hexdigest()}"


def is_comparable(label: object) -> bool:
    """Whether that may equal a label made here."""
    return isinstance(label, str) and label.startswith(f"{ALGORITHM}:")
