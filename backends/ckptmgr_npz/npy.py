"""The header of one array in a ``.npz``: dtype, order and shape as the text of a Python dict of literals.

dtypes that numpy has no code for (bfloat16, float8, int4, packed ones) are unsigned integers of their size here; what they are
called stands in `carriage`. Strings are ``S`` arrays.

Source: numpy.lib.format, versions 1.0 to 3.0.
"""

import ast
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ckptmgr.backend import TensorSpec, dtype_name, is_possible, numpy_dtype
from ckptmgr_npz.origin import Origin

MAGIC = b"\x93NUMPY"
ALIGN = 64  # of what follows a header, as numpy has it
MOST_NBYTES = 10_000  # of a header's text, as numpy has it
FIRST_NBYTES = 192  # of an array: holds most headers
MAX_RANK = 64
_MOST = 1 << 63  # of a shape's sizes, and of the bytes of an array if those of 0 were 1, as numpy has it
_DESCR = re.compile(r"[<>|=]?([biufcSUV]\d{1,9}|[mM]8(\[(\d{1,9})?[A-Za-z]{1,2}\])?|\?)")


class Header(NamedTuple):
    """What an array's header says: ``nbytes`` is its own size. ``dtype`` is numpy's, in the file's byte order."""

    dtype: np.dtype
    is_fortran: bool
    shape: tuple[int, ...]
    nbytes: int

    @property
    def data_nbytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_raw(self) -> bool:
        """Whether the elements are little-endian numbers in C order."""
        is_ordered = not self.is_fortran or sum(size != 1 for size in self.shape) < 2
        return is_ordered and self.dtype.kind not in "SUV" and self.dtype.newbyteorder("<") == self.dtype


def stored_dtype(name: str) -> np.dtype:
    """The numbers that a dtype's elements are in a file."""
    dtype = numpy_dtype(name)
    is_plain = dtype.kind in "biufcmM" and dtype.isbuiltin != 2
    return dtype.newbyteorder("<") if is_plain else np.dtype(f"<u{dtype.itemsize}")


def is_plain(name: str) -> bool:
    """Whether numpy tells this dtype itself."""
    return dtype_name(stored_dtype(name)) == name


def build(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The header of an array of these elements in C order."""
    text = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    start = len(MAGIC) + 4
    padded = text + " " * (-(start + len(text) + 1) % ALIGN) + "\n"
    return MAGIC + b"\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode()


def length(head: bytes, origin: Origin, name: str) -> int:
    """The size of the header that begins so. Raises CorruptCheckpointError."""
    if not head.startswith(MAGIC) or len(head) < 12 or head[6] not in (1, 2, 3):
        raise origin.corrupt("it does not begin as an array of numpy's", name)
    width = 2 if head[6] == 1 else 4
    text = int.from_bytes(head[8 : 8 + width], "little")
    if text > MOST_NBYTES:
        raise origin.corrupt(f"a header of {text} bytes is over the limit of {MOST_NBYTES}", name)
    return 8 + width + text


def parse(raw: bytes, origin: Origin, name: str) -> Header | None:
    """What the header in these bytes says, which are its own; None for elements that no array of ours can hold.

    Raises:
        CorruptCheckpointError: it is no header.
        UnsafeCheckpointError: the elements are pickled Python objects.
    """
    start = 10 if raw[6] == 1 else 12
    try:
        found = ast.literal_eval(raw[start:].decode("utf-8" if raw[6] == 3 else "latin-1").strip())
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise origin.corrupt("its header is no dict of literals", name) from error
    if not isinstance(found, dict) or found.keys() != {"descr", "fortran_order", "shape"}:
        raise origin.corrupt("its header has not the three fields of one", name)
    descr, is_fortran, shape = found["descr"], found["fortran_order"], found["shape"]
    if not isinstance(shape, tuple) or not are_sizes(shape) or not isinstance(is_fortran, bool):
        raise origin.corrupt("its header has no shape and order", name)
    if isinstance(descr, str) and descr.lstrip("<>|=").startswith("O"):
        raise origin.unsafe("its elements are pickled Python objects, which can run code when they are loaded", name)
    if not isinstance(descr, str) or not _DESCR.fullmatch(descr):
        return None  # records of several fields
    try:
        dtype = np.dtype(descr)
    except TypeError as error:
        raise origin.corrupt(f"its dtype {descr!r} is none of numpy's", name) from error
    if not is_possible(shape, dtype.itemsize):
        raise origin.corrupt(f"no array of {dtype} can have the shape {shape}", name)
    return Header(dtype, is_fortran, shape, len(raw)) if dtype.itemsize else None


def are_sizes(shape: Sequence[object]) -> bool:
    """Whether numpy can make an array of that shape, as far as memory does not matter: one without elements is small, too."""
    sizes = [size for size in shape if type(size) is int and 0 <= size < _MOST]
    return len(sizes) == len(shape) <= MAX_RANK and math.prod(max(size, 1) for size in sizes) < _MOST


def spec_of(header: Header, dtype: str | None, shape: tuple[int, ...] | None, origin: Origin, name: str) -> TensorSpec | None:
    """The tensor's spec: with ``dtype`` and ``shape`` as they were carried; None for elements that mean nothing to us.

    Raises:
        CorruptCheckpointError: what was carried is not what the array can be.
    """
    if header.dtype.kind in "SU":
        return TensorSpec("string", header.shape)
    if dtype is None:
        return None if header.dtype.kind == "V" else TensorSpec(dtype_name(header.dtype), header.shape)
    try:
        spec = TensorSpec(dtype, header.shape if shape is None else shape)
        is_same = spec.nbytes == header.data_nbytes and (spec.is_packed or stored_dtype(dtype) == header.dtype)
    except (TypeError, ValueError) as error:
        raise origin.corrupt(f"it is said to be {dtype!r}: {error}", name) from error
    if not is_same or spec.is_string:
        raise origin.corrupt(f"it is said to be {dtype!r}, and holds {header.dtype} of shape {header.shape}", name)
    return spec
