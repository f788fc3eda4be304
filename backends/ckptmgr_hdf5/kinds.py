"""What a datatype message means to numpy.

Source: HDF5 File Format Specification 3.0, section IV.A.2.d; how h5py stores bool (an enum) and complex (a compound).
"""

import functools
import struct
from typing import Any, NamedTuple

import numpy as np

from ckptmgr_hdf5.faults import Damaged

_MAX_ITEM = 1 << 31  # numpy's limit for strings and void
_FIXED, _FLOAT, _STRING, _OPAQUE, _COMPOUND, _ENUM, _VLEN = 0, 1, 3, 5, 6, 8, 9
_CLASSES = 11
_LONGEST = 128  # of the descriptions that numpy has a word for: a complex number in version 1
_FLOATS = {  # size: bit offset, precision, exponent at and bits, mantissa at and bits, bias; the sign is the last bit
    2: (0, 16, 10, 5, 0, 10, 15),
    4: (0, 32, 23, 8, 0, 23, 127),
    8: (0, 64, 52, 11, 0, 52, 1023),
}


class Kind(NamedTuple):
    """``name``: "raw" (little-endian numbers), "bool", "opaque", "string", "vlen_string" or "other".

    ``dtype`` is what numpy calls the stored bytes, None if it has no word for them; ``nbytes`` of one element.
    """

    name: str
    dtype: np.dtype[Any] | None
    nbytes: int


def parse_kind(raw: bytes) -> Kind:
    """The kind that a datatype message describes.

    Raises:
        Damaged: no datatype is described so.
    """
    return _parse(raw[:_LONGEST])


@functools.lru_cache(1024)
def _parse(raw: bytes) -> Kind:
    head, nbytes = struct.unpack_from("<II", raw)
    kind, version, bits = head & 15, head >> 4 & 15, head >> 8
    if kind >= _CLASSES or not 1 <= version <= 5 or not nbytes:
        raise Damaged(f"there is no datatype of class {kind}, version {version}, {nbytes} bytes")
    if kind == _VLEN:
        return _vlen(bits, nbytes)
    parse = _PARSERS.get(kind)
    dtype = None if parse is None else parse(raw, bits, nbytes, version)
    if dtype is None:
        return Kind("other", None, nbytes)
    name = {_STRING: "string", _OPAQUE: "opaque", _ENUM: "bool"}.get(kind, "raw")
    return Kind(name if dtype.byteorder != ">" else "other", dtype, nbytes)


def _integer(raw: bytes, bits: int, nbytes: int, version: int) -> np.dtype[Any] | None:
    if struct.unpack_from("<HH", raw, 8) != (0, 8 * nbytes) or nbytes not in (1, 2, 4, 8):
        return None
    return np.dtype(f"{'>' if bits & 1 else '<'}{'i' if bits & 8 else 'u'}{nbytes}")


def _float(raw: bytes, bits: int, nbytes: int, version: int) -> np.dtype[Any] | None:
    is_ieee = _FLOATS.get(nbytes) == struct.unpack_from("<HHBBBBI", raw, 8)
    # Byte order, an implied first bit, and the sign's place; padding is outside of such numbers.
    if not is_ieee or bits & 0x40 or bits >> 4 & 3 != 2 or bits >> 8 != 8 * nbytes - 1:
        return None
    return np.dtype(f"{'>' if bits & 1 else '<'}f{nbytes}")


def _string(raw: bytes, bits: int, nbytes: int, version: int) -> np.dtype[Any] | None:
    if bits & 15 > 2 or bits >> 4 > 1:
        raise Damaged(f"there is no string type with flags {bits:#x}")
    return np.dtype(f"S{nbytes}") if nbytes < _MAX_ITEM else None


def _opaque(raw: bytes, bits: int, nbytes: int, version: int) -> np.dtype[Any] | None:
    return np.dtype(f"V{nbytes}") if nbytes < _MAX_ITEM else None


def _complex(raw: bytes, bits: int, nbytes: int, version: int) -> np.dtype[Any] | None:
    if bits & 0xFFFF != 2 or nbytes not in (8, 16):
        return None
    parts, at = [], 8
    for name, offset in ((b"r", 0), (b"i", nbytes // 2)):
        expected = _member(name, offset, version)
        if raw[at : at + len(expected)] != expected:
            return None
        at += len(expected)
        parts.append(raw[at : at + 20])
        at += 20
    if parts[0] != parts[1] or parts[0][0] & 15 != _FLOAT or len(parts[0]) < 20:
        return None
    part = parse_kind(parts[0]).dtype
    return None if part is None or 2 * part.itemsize != nbytes else np.dtype(f"{part.str[0]}c{nbytes}")


def _member(name: bytes, offset: int, version: int) -> bytes:
    """What stands before the type of a compound's member."""
    if version >= 3:
        return name + b"\0" + bytes([offset])
    return name.ljust(8, b"\0") + struct.pack("<I", offset) + (bytes(28) if version == 1 else b"")


def _enum(raw: bytes, bits: int, nbytes: int, version: int) -> np.dtype[Any] | None:
    base = parse_kind(raw[8:20]) if raw[8] & 15 == _FIXED else None
    if base is None or base.nbytes != nbytes:
        raise Damaged("an enumeration of something else than integers of its size")
    names = b"FALSE\0TRUE\0" if version >= 3 else b"FALSE\0\0\0TRUE\0\0\0\0"
    if bits & 0xFFFF == 2 and base.dtype == np.int8 and raw[20 : 22 + len(names)] == names + b"\0\1":
        return np.dtype(np.bool_)
    return None


def _vlen(bits: int, nbytes: int) -> Kind:
    """Text in the global heap, or a sequence. The kinds that only a damaged file has crash HDF5."""
    if bits & 15 > 1 or nbytes != 16:
        raise Damaged(f"there is no type of variable length of kind {bits & 15} and {nbytes} bytes")
    if bits & 15 == 0:
        return Kind("other", None, nbytes)
    if bits >> 4 & 15 > 2 or bits >> 8 & 15 > 1:
        raise Damaged(f"there is no string type with flags {bits:#x}")
    return Kind("vlen_string", np.dtype(object), nbytes)


_PARSERS = {_FIXED: _integer, _FLOAT: _float, _STRING: _string, _OPAQUE: _opaque, _COMPOUND: _complex, _ENUM: _enum}
