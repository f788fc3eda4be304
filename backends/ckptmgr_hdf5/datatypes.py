"""How elements lie in an HDF5 file: numpy dtypes and strings as datatype messages.

What h5py itself writes for a dtype is what we write: bool is an enumeration on int8, complex a compound of "r" and "i",
raw bytes are opaque. Every HDF5 tool thus sees what h5py would show it.

Source: HDF5 File Format Specification 3.0, section IV.A.2.d "The Datatype Message".
"""

import struct
from functools import lru_cache
from typing import NamedTuple

import numpy as np

_ENUM, _COMPOUND, _OPAQUE, _STRING, _VLEN, _FLOAT, _INTEGER = 0x18, 0x16, 0x15, 0x13, 0x19, 0x11, 0x10  # class | version 1 << 4
# Of each float size: exponent's position and bits, mantissa's bits, exponent's bias. The sign is the highest bit.
_FLOATS = {2: (10, 5, 10, 15), 4: (23, 8, 23, 127), 8: (52, 11, 52, 1023)}


class FileType(NamedTuple):
    """The type of elements in a file: bytes each one takes, and the body of the datatype message, not padded."""

    itemsize: int
    message: bytes

    @property
    def is_vlen(self) -> bool:
        """Elements are strings of any length, which lie in the global heap."""
        return self.message[0] == _VLEN


@lru_cache(maxsize=256)
def file_type(dtype: np.dtype) -> FileType:
    """What h5py writes for a numpy dtype, byte order included: int, float16/32/64, complex64/128, bool, ``S<n>``, ``V<n>``.

    Raises:
        ValueError: HDF5 has nothing for this dtype, or h5py would write something that does not read back as it was.
    """
    kind, size = dtype.kind, dtype.itemsize
    is_big = dtype.str[0] == ">"
    if kind in "iu":
        return FileType(size, _integer(size, is_signed=kind == "i", is_big=is_big))
    if kind == "f" and size in _FLOATS:
        return FileType(size, _float(size, is_big=is_big))
    if kind == "c" and size // 2 in _FLOATS:
        return FileType(size, _complex(size, is_big=is_big))
    if kind == "b":
        return FileType(1, _BOOL)
    if kind == "S" and size:
        return fixed_string(size)
    if dtype.type is np.void and size and dtype.names is None and dtype.subdtype is None:
        # Without a tag: h5py, and so Keras, reads no opaque elements that have one.
        return FileType(size, struct.pack("<B3BI", _OPAQUE, 0, 0, 0, size))
    raise ValueError(f"HDF5 has no plain type for dtype {dtype}")


def fixed_string(nbytes: int, *, is_utf8: bool = False) -> FileType:
    """Strings of ``nbytes`` bytes, padded with NUL as numpy's ``S<n>``; ``is_utf8`` tags them as UTF-8, else ASCII.

    Raises:
        ValueError: HDF5 has no strings of 0 bytes.
    """
    if nbytes < 1:
        raise ValueError(f"HDF5 has no strings of {nbytes} bytes")
    return FileType(nbytes, struct.pack("<B3BI", _STRING, 0x01 | is_utf8 << 4, 0, 0, nbytes))


@lru_cache(maxsize=2)
def vlen_string(*, is_utf8: bool = True) -> FileType:
    """Strings of any length without NUL, tagged as UTF-8 or ASCII. What lies in their place is 16 bytes of reference."""
    return FileType(16, struct.pack("<B3BI", _VLEN, 0x01, is_utf8, 0, 16) + _integer(1, is_signed=False, is_big=False))


def _integer(size: int, *, is_signed: bool, is_big: bool) -> bytes:
    return struct.pack("<B3BIHH", _INTEGER, is_big | is_signed << 3, 0, 0, size, 0, size * 8)


def _float(size: int, *, is_big: bool) -> bytes:
    exponent, exponent_bits, mantissa_bits, bias = _FLOATS[size]
    head = struct.pack("<B3BI", _FLOAT, 0x20 | is_big, size * 8 - 1, 0, size)
    return head + struct.pack("<HHBBBBI", 0, size * 8, exponent, exponent_bits, 0, mantissa_bits, bias)


def _complex(size: int, *, is_big: bool) -> bytes:
    part = _float(size // 2, is_big=is_big)
    members = [struct.pack("<8sI28x", name, offset) + part for name, offset in ((b"r", 0), (b"i", size // 2))]
    return struct.pack("<B3BI", _COMPOUND, len(members), 0, 0, size) + b"".join(members)


_BOOL = (
    struct.pack("<B3BI", _ENUM, 2, 0, 0, 1)
    + _integer(1, is_signed=True, is_big=False)
    + struct.pack("<8s8s2B", b"FALSE", b"TRUE", 0, 1)
)
