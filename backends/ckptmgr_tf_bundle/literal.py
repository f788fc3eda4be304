"""Entries whose bytes are known before any tensor is read: strings, plain values of a state, variants of another checkpoint."""

import struct
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from ckptmgr.backend import crc32c, dtype_name
from ckptmgr.errors import UnsupportedTensorError
from ckptmgr_tf_bundle import messages, stringtensor
from ckptmgr_tf_bundle.dtypes import CODES, STRING, VARIANT
from ckptmgr_tf_bundle.entry import Entry, build_entry
from ckptmgr_tf_bundle.masking import unmask

_INT64 = range(-(2**63), 2**63)
_FLOAT = struct.Struct("<f")
_FLOAT_CODE = CODES["float32"]
_SAFE_FLOAT = 1e38  # below it, a float rounds to a float32 that is finite
_VARIANT_MAGIC = b"TFVARIANT\x00"


class Literal(NamedTuple):
    """What a bundle stores for a tensor. ``crc32c`` is the entry's, which of strings and variants is not that of the bytes."""

    dtype: int
    shape: tuple[int, ...]
    stored: bytes
    crc32c: int


def string(values: list[bytes], shape: tuple[int, ...] = ()) -> Literal:
    """A string tensor of these values in C order."""
    stored, crc = stringtensor.encode(values)
    return Literal(STRING, shape, stored, crc)


def plain(value: Any) -> Literal | None:
    """A plain value as a 0-d tensor; None if TensorFlow has no dtype that holds it.

    Python's integers become int64 as TensorFlow's own counters are, its floats float32 as `tf.Variable` makes them. Numpy's
    scalars keep their dtype.
    """
    if type(value) is float and -_SAFE_FLOAT < value < _SAFE_FLOAT:  # a short way, because there may be many
        stored = _FLOAT.pack(value)
        return Literal(_FLOAT_CODE, (), stored, crc32c(stored))
    if isinstance(value, str | bytes):
        return string([value.encode("utf-8", "surrogatepass") if isinstance(value, str) else bytes(value)])
    if isinstance(value, np.generic):
        return _scalar(value)
    if isinstance(value, bool):
        return _scalar(np.bool_(value))
    if isinstance(value, int):
        return _scalar(np.int64(value)) if value in _INT64 else None
    if isinstance(value, float):
        with np.errstate(over="ignore"):
            return _scalar(np.float32(value))
    return _scalar(np.complex128(value)) if isinstance(value, complex) else None


def variant(entry: Entry, stored: bytes) -> bytes:
    """A variant's stored bytes with its entry before them, as a blob that `from_blob` reads."""
    head = build_entry(VARIANT, entry.shape, 0, 0, entry.nbytes, entry.crc32c)
    return _VARIANT_MAGIC + len(head).to_bytes(4, "little") + head + stored


def from_blob(blob: bytes) -> Literal | None:
    """The variant in a blob that `variant` made; None if it is something else."""
    if not blob.startswith(_VARIANT_MAGIC):
        return None
    start = len(_VARIANT_MAGIC) + 4
    end = start + int.from_bytes(blob[start - 4 : start], "little")
    try:
        entry = messages.BundleEntry.FromString(blob[start:end])
    except DecodeError:
        return None
    return Literal(VARIANT, tuple(dim.size for dim in entry.shape.dim), blob[end:], unmask(entry.crc32c))


def _scalar(value: np.generic) -> Literal | None:
    try:
        code = CODES.get(dtype_name(value.dtype))
    except UnsupportedTensorError:
        return None
    stored = np.asarray(value, value.dtype.newbyteorder("<")).tobytes()
    return None if code is None else Literal(code, (), stored, crc32c(stored))
