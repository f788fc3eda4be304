"""What a tensor is without its bytes: the name of its dtype, and its shape.

A dtype's name is numpy's or ml_dtypes' (``"float32"``, ``"bfloat16"``, ``"float8_e4m3fn"``), without byte order:
stored bytes are always little-endian. Two kinds have no numpy dtype of their own: ``"string"`` (an object array of
`bytes`), and the ``"packed_*"`` names for formats that store elements of 4 or 6 bits without padding.
"""

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

from ckptmgr.errors import UnsupportedTensorError

STRING = "string"
MAX_RANK = 64  # numpy's
_MOST_NBYTES = 1 << 63  # fewer
PACKED_BITS = {"packed_float4_e2m1fn": 4, "packed_float6_e2m3fn": 6, "packed_float6_e3m2fn": 6}
USED_BITS = {  # of dtypes whose elements take a whole byte each; the other bits mean nothing, and are stored as 0
    **dict.fromkeys(("int4", "uint4", "float4_e2m1fn"), 0x0F),
    **dict.fromkeys(("int2", "uint2"), 0x03),
    **dict.fromkeys(("float6_e2m3fn", "float6_e3m2fn"), 0x3F),
}

_SCALARS = [value for value in vars(ml_dtypes).values() if isinstance(value, type) and issubclass(value, np.generic)]
_ML_DTYPES = {dtype.name: dtype for dtype in map(np.dtype, _SCALARS)}
_CANONICAL = re.compile(r"bool|(u?int|float|complex)[0-9]{1,3}|(datetime|timedelta)64(\[([1-9][0-9]*)?[A-Za-z]+\])?")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's dtype name and shape, in elements.

    ``nbytes`` is the size of its raw bytes; 0 for ``"string"``, whose size depends on the values. ``numpy`` is the numpy dtype
    of an array that holds this tensor; ``uint8`` for packed ones.
    In `restore(into=...)` a spec as a leaf describes what is wanted and comes back as a new numpy array.

    Raises:
        UnsupportedTensorError: the dtype name is not known here.
        ValueError: a negative dimension, or packed elements that do not fill whole bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int = field(init=False, compare=False, repr=False)
    numpy: np.dtype = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.shape and min(self.shape) < 0:
            raise ValueError(f"a dimension of {self.shape} is negative")
        bits = math.prod(self.shape) * _bits(self.dtype)
        if bits % 8:
            raise ValueError(f"{self.dtype} of shape {self.shape} does not fill whole bytes")
        object.__setattr__(self, "nbytes", bits // 8)
        object.__setattr__(self, "numpy", numpy_dtype(self.dtype))

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_string(self) -> bool:
        """Whether elements are byte strings, which have no raw layout."""
        return self.dtype == STRING

    @property
    def is_packed(self) -> bool:
        """Whether elements share bytes; the array is then a flat `PackedArray`."""
        return self.dtype in PACKED_BITS


class PackedArray(np.ndarray):
    """A flat ``uint8`` array of the raw bytes of a tensor whose elements are packed (4 or 6 bits each).

    ``spec`` gives the logical dtype and shape. Saved again, the bytes are written back as they are.
    """

    spec: TensorSpec

    def __array_finalize__(self, obj: object) -> None:
        # A copy is the same tensor; a piece of it is plain bytes.
        spec = getattr(obj, "spec", None)
        if spec is not None and spec.nbytes == self.nbytes:
            self.spec = spec

    @classmethod
    def wrap(cls, raw: np.ndarray, spec: TensorSpec) -> "PackedArray":
        """``raw`` (any array of ``spec.nbytes`` bytes) as a packed array, without a copy.

        Raises:
            ValueError: the number of bytes is not the spec's.
        """
        if not spec.is_packed or raw.nbytes != spec.nbytes:
            raise ValueError(f"{raw.nbytes} bytes cannot be {spec.dtype} of shape {spec.shape}")
        packed = raw.reshape(-1).view(np.uint8).view(cls)
        packed.spec = spec
        return packed


@functools.lru_cache(maxsize=4096)
def tensor_spec(dtype: np.dtype, shape: tuple[int, ...]) -> TensorSpec:
    """The interned spec of arrays of that numpy dtype and shape (one object per kind: there may be many tensors)."""
    return TensorSpec(dtype_name(dtype), shape)


@functools.cache
def dtype_name(dtype: np.dtype) -> str:
    """The canonical name of a numpy or ml_dtypes dtype, without its byte order.

    Raises:
        UnsupportedTensorError: structured and plain void dtypes, Python objects that are not strings included.
    """
    if dtype.kind in "SUOT":
        return STRING
    if dtype.name not in _ML_DTYPES and (dtype.kind == "V" or dtype.hasobject):
        raise UnsupportedTensorError(f"has dtype {dtype}, which cannot be stored: store its fields as arrays of their own")
    return dtype.name


def is_possible(shape: Sequence[int], itemsize: int) -> bool:
    """Whether numpy can make an array of that shape: its zeros do not count, so that an empty one can be too large as well."""
    return len(shape) <= MAX_RANK and math.prod(filter(None, shape)) * itemsize < _MOST_NBYTES


@functools.cache
def numpy_dtype(name: str) -> np.dtype:
    """The numpy dtype (native byte order) of that name.

    Raises:
        UnsupportedTensorError: no such dtype.
    """
    if name == STRING:
        return np.dtype(object)
    if name in PACKED_BITS:
        return np.dtype(np.uint8)
    if name in _ML_DTYPES:
        return _ML_DTYPES[name]
    # Only the canonical spelling, so that one dtype has one name: "f4", ">f4" and "S3" are refused. And nothing else gets
    # into numpy's parser, which is a small language with errors and warnings of its own.
    try:
        dtype = np.dtype(name) if _CANONICAL.fullmatch(name) else None
    except TypeError:
        dtype = None
    if dtype is None or dtype.name != name:
        raise UnsupportedTensorError(f"dtype {name!r} is not known")
    return dtype


def _bits(name: str) -> int:
    if name == STRING:
        return 0
    return PACKED_BITS.get(name) or numpy_dtype(name).itemsize * 8
