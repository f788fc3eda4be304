"""What stands for the objects in a pickle: inert values, each checked when it is made. None of them runs anything.

The law: a view never leaves its storage, whatever numbers it was given.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ckptmgr.backend import Box, is_possible, numpy_dtype
from ckptmgr_torch.origin import Damaged, Refused

_NUMBERS = 1 << 63  # sizes, and keys of dicts, are smaller
_ARRAY_NBYTES = 512  # of a small one: numpy's object and the one that holds the memory
_NUMPY = re.compile(r"b1|\?|[iu][1248]|f[248]|c(8|16)")
_ORDERS = ("<", ">", "|", "=")


@dataclass(frozen=True, slots=True, eq=False)
class Allowed:
    """A global that a pickle may name. ``call`` makes what calling it gives, ``new`` what its class gives; None refuses.

    Both get a function that counts bytes or items of what is copied, and the arguments.
    """

    name: str
    call: Callable[..., Any] | None = None
    new: Callable[..., Any] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Dtype:
    """A dtype of torch: its own name without ``torch.``, which is numpy's or ml_dtypes' as well."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class StorageKind:
    """The class of a storage; ``dtype`` None is bytes without a type."""

    dtype: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """The bytes of one record: its key, its size in bytes and the dtype of its elements, if it has one."""

    key: str
    nbytes: int
    dtype: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A view of a storage. ``offset`` and ``strides`` are in elements.

    Raises:
        Damaged: it does not lie inside its storage.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.shape, *self.strides)
        if any(type(number) is not int or not 0 <= number < _NUMBERS for number in numbers):
            raise Damaged("a tensor has an offset, a shape or strides that are no natural numbers")
        if len(self.shape) != len(self.strides):
            raise Damaged(f"a tensor has {len(self.shape)} dimensions and {len(self.strides)} strides")
        if not is_possible(self.shape, self.itemsize):
            raise Damaged(f"no array can have the shape {self.shape}")
        if (self.span + self.offset) * self.itemsize > self.storage.nbytes:
            raise Damaged(
                f"a tensor needs {self.span} elements of {self.itemsize} bytes from element {self.offset} on, "
                f"and its storage {self.storage.key!r} has {self.storage.nbytes} bytes"
            )

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return int(numpy_dtype(self.dtype).itemsize)

    @property
    def span(self) -> int:
        """Elements from its first one to its last."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    @property
    def start(self) -> int:
        """Its first byte in the storage."""
        return self.offset * self.itemsize

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements lie in C order without gaps."""
        expected = 1
        for size, stride in reversed([*zip(self.shape, self.strides, strict=True)]):
            if size != 1 and stride != expected:
                return 0 in self.shape
            expected *= size
        return True

    @property
    def identity(self) -> tuple[Any, ...]:
        """The same for views of the same elements."""
        return (self.storage.key, self.dtype, self.offset, self.shape, self.strides)


class Chunk(NamedTuple):
    """The slice of a tensor that is one item of a file: a whole archive of its own."""

    box: Box
    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Sharded:
    """A tensor whose slices are items of several files."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return int(numpy_dtype(self.dtype).itemsize)

    @property
    def identity(self) -> str:
        """No two are one."""
        return self.name


class Dict(dict[Any, Any]):
    """A dict that may have attributes, as an OrderedDict has."""

    __slots__ = ()

    def build(self, state: Any) -> None:
        """Its attributes, e.g. the versions of modules; nobody needs them."""
        if not isinstance(state, dict):
            raise Damaged("the attributes of a dict are no dict")


class Namespace(dict[Any, Any]):
    """An `argparse.Namespace` as the dict of its attributes."""

    __slots__ = ()

    def build(self, state: Any) -> None:
        """Takes the attributes."""
        if not isinstance(state, dict) or self:
            raise Damaged("the attributes of a Namespace are no dict, or are given twice")
        self.update(state)


class Set(list[Any]):
    """A set, as its items in their order: none of them is ever hashed."""

    __slots__ = ()


@dataclass(slots=True, eq=False)
class Record:
    """An instance of a class that only holds fields."""

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)

    def build(self, state: Any) -> None:
        """Takes the fields; a class with its own idea of state has them under ``state``."""
        if self.fields:
            raise Damaged(f"the fields of a {self.kind} are given twice")
        self.fields = state if isinstance(state, dict) else {"state": state}


@dataclass(slots=True, eq=False)
class NumpyDtype:
    """A dtype of numpy: numbers only."""

    code: str
    order: str = "="

    def __post_init__(self) -> None:
        if not isinstance(self.code, str) or not _NUMPY.fullmatch(self.code):
            raise Refused(f"a numpy array of dtype {short(self.code)}, which is not read (only numbers and bools are)")

    def build(self, state: Any) -> None:
        """Takes the byte order."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in _ORDERS:
            raise Damaged("the state of a numpy dtype is not known")
        self.order = state[1]

    @property
    def numpy(self) -> np.dtype[Any]:
        """As numpy has it."""
        return np.dtype(self.code).newbyteorder(">" if self.order == ">" else "<")


@dataclass(slots=True, eq=False)
class NumpyArray:
    """An array of numpy, whose bytes are in the pickle."""

    array: np.ndarray[Any, Any] | None = None

    def __sizeof__(self) -> int:
        """With its array's object, which comes later."""
        return _ARRAY_NBYTES

    def build(self, state: Any) -> None:
        """Takes shape, dtype and bytes: ``(version, shape, dtype, is Fortran order, bytes)``."""
        if not isinstance(state, tuple) or len(state) != 5 or self.array is not None:
            raise Damaged("the state of a numpy array is not known")
        _, shape, dtype, is_fortran, data = state
        self.array = array_of(data, dtype, shape, "F" if is_fortran else "C")


def check_key(key: object) -> None:
    """Raises Refused for a key whose hash a file could choose freely, so that a dict of many takes for ever, or a deep one."""
    is_int = type(key) is int and -_NUMBERS <= key < _NUMBERS
    if not is_int and not isinstance(key, str | bytes | bool | float | None | Record):
        raise Refused(f"a dict with the key {short(key)}, which is not read: use texts or numbers")


def array_of(data: Any, dtype: Any, shape: Any, order: str = "C") -> np.ndarray[Any, Any]:
    """The array with these bytes, not copied. Raises Damaged."""
    if not isinstance(dtype, NumpyDtype) or not isinstance(data, bytes) or order not in ("C", "F"):
        raise Damaged("a numpy array is not made of a dtype and bytes")
    is_shape = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
    if not is_shape or not is_possible(shape, dtype.numpy.itemsize) or math.prod(shape) * dtype.numpy.itemsize != len(data):
        raise Damaged(f"a numpy array has {len(data)} bytes, which its shape and dtype do not fit")
    flat = np.frombuffer(data, dtype.numpy)
    made: np.ndarray[Any, Any] = flat.reshape(shape, order=order)  # type: ignore[call-overload]
    return made


def short(value: object) -> str:
    """A value for a message, of which a file decides: never long, and no number of many digits."""
    if type(value) is int and abs(value) >= 1 << 64:
        return f"a number of {value.bit_length()} bits"
    text = repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return text if len(text) <= 120 else f"{text[:120]}..."
