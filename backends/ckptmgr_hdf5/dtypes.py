"""Which HDF5 numbers hold the bits of a dtype, and the attribute that says so where they are of another one.

HDF5 and numpy agree on bool, integers, IEEE floats and complex numbers of them. Everything else lies as unsigned integers
(times as int64) with the attribute ``ckptmgr_dtype``; elements that share bytes as uint8 with ``ckptmgr_shape`` besides.
"""

import functools

import numpy as np

from ckptmgr.backend import TensorSpec, numpy_dtype
from ckptmgr_hdf5.datatypes import FileType, file_type
from ckptmgr_hdf5.encoding import Attribute

DTYPE, SHAPE = "ckptmgr_dtype", "ckptmgr_shape"
_INTEGERS = (f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_PLAIN = frozenset(("bool", "float16", "float32", "float64", "complex64", "complex128", *_INTEGERS))


@functools.cache
def stored_dtype(name: str) -> np.dtype | None:
    """The numpy dtype of the numbers in a file that hold a tensor of the dtype of that name; None if none can.

    Raises:
        UnsupportedTensorError: there is no such dtype.
    """
    dtype = numpy_dtype(name)
    if name in _PLAIN:
        return dtype.newbyteorder("<")
    if dtype.kind in "mM":
        return np.dtype("<i8")
    if dtype.hasobject or issubclass(dtype.type, (np.longdouble, np.clongdouble)):
        return None
    return np.dtype(f"<u{dtype.itemsize}")


def is_plain(name: str) -> bool:
    """Whether HDF5 itself has this dtype."""
    return name in _PLAIN


@functools.lru_cache(maxsize=4096)
def stored_type(spec: TensorSpec) -> tuple[FileType, tuple[int, ...], tuple[Attribute, ...]]:
    """Type, shape and attributes of the dataset that holds such a tensor, whose dtype `stored_dtype` has."""
    dtype = stored_dtype(spec.dtype)
    assert dtype is not None
    if is_plain(spec.dtype):
        return file_type(dtype), spec.shape, ()
    marks = (Attribute(DTYPE, np.bytes_(spec.dtype)),)
    if spec.is_packed:
        return file_type(dtype), (spec.nbytes,), (*marks, Attribute(SHAPE, np.array(spec.shape, np.int64)))
    return file_type(dtype), spec.shape, marks
