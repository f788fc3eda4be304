"""Which values may be converted into which, and the conversion.

``cast="same_kind"`` is numpy's rule (bool to unsigned to signed to float to complex, any size), with the floats of ml_dtypes
as floats; ``"any"`` allows every number to become any other. Strings, dates and packed elements are never converted.
"""

import re
from typing import Any, Literal, TypeAlias

import numpy as np

from ckptmgr.spec import TensorSpec

Cast: TypeAlias = Literal["no", "same_kind", "any"]
REFUSED: Any = object()

_RANKS = {"bool": 0, "uint": 1, "int": 2, "float": 3, "bfloat": 3, "complex": 4, "bcomplex": 4}
_PYTHON_RANKS: dict[type, int] = {bool: 0, int: 2, float: 3, complex: 4}


def can_cast(found: str, wanted: str, cast: Cast) -> bool:
    """Whether elements of one dtype may become those of another, by the dtypes' names."""
    return found == wanted or _allows(_rank(found), _rank(wanted), cast)


def can_become(found: TensorSpec, wanted: Any, cast: Cast, *, is_foreign: bool) -> bool:
    """Whether a tensor may become a plain number like ``wanted``: one of no dimensions, of a fitting kind.

    In a foreign file, which has no plain numbers, an integer tensor may be an int without a cast, a float one a float.
    """
    rank = _scalar_rank(wanted)
    if found.shape or rank is None:
        return False
    if isinstance(wanted, np.generic) and found.dtype == wanted.dtype.name:
        return True
    if is_foreign and not isinstance(wanted, np.generic) and rank == (_rank(found.dtype) or 0) + found.dtype.startswith("uint"):
        return True
    return _allows(_rank(found.dtype), rank, cast)


def can_fill(found: Any, wanted: TensorSpec, cast: Cast) -> bool:
    """Whether a plain number may become a tensor of no dimensions: a numpy scalar of its dtype, or what a cast allows.

    numpy itself makes scalars of arrays without dimensions whenever it computes with them.
    """
    if wanted.shape or _scalar_rank(found) is None or np.asarray(found).dtype.hasobject:  # an int of more than 64 bits
        return False
    if isinstance(found, np.generic) and found.dtype.name == wanted.dtype:
        return True
    return _allows(_scalar_rank(found), _rank(wanted.dtype), cast)


def cast_array(array: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """The array in another dtype: the array itself if it has it. What does not fit is wrapped or infinite, as in numpy."""
    if array.dtype.kind == "c" and not dtype.name.endswith(("complex32", "complex64", "complex128", "complex256")):
        array = array.real
    with np.errstate(all="ignore"):
        return array.astype(dtype, copy=False)


def cast_scalar(found: Any, wanted: Any, cast: Cast) -> Any:
    """The plain value ``found`` as one like ``wanted``; `REFUSED` if it is of another type that may not be converted."""
    if type(found) is type(wanted):
        return found
    if not _allows(_scalar_rank(found), _scalar_rank(wanted), cast):
        return REFUSED
    try:
        return to_scalar(np.asarray(found), wanted)
    except (ValueError, OverflowError):
        return REFUSED  # an int that is too large, NaN as an int


def to_scalar(array: np.ndarray[Any, Any], wanted: Any) -> Any:
    """The one element of an array as a plain number like ``wanted``."""
    if isinstance(wanted, np.generic):
        return cast_array(array, wanted.dtype)[()]
    value = array.item()
    return type(wanted)(value.real if isinstance(value, complex) and type(wanted) is not complex else value)


def _allows(found: int | None, wanted: int | None, cast: Cast) -> bool:
    if found is None or wanted is None or cast == "no":
        return False
    return cast == "any" or found <= wanted


def _rank(dtype: str) -> int | None:
    match = re.match(r"[a-z]+", dtype)
    return _RANKS.get(match[0]) if match else None


def _scalar_rank(value: Any) -> int | None:
    return _rank(value.dtype.name) if isinstance(value, np.generic) else _PYTHON_RANKS.get(type(value))
