"""String tensors: object arrays of `bytes` in sources and files, and numpy's several kinds of string array in a state.

A tag tells which kind it was: ``"bytes"`` and ``"str"`` (object arrays), ``"S5"``, ``"U5"``, ``"T"`` (numpy's own).
Text is stored as UTF-8, with lone surrogates let through.
"""

import re
from typing import Any

import numpy as np

from ckptmgr.errors import CorruptCheckpointError, UnsupportedLeafError

_TAG = re.compile(r"bytes|str|T|[SU][0-9]{1,9}")
_PADDED_NBYTES = 1 << 26  # of a fixed-width array; more than that must be warranted by the values


def string_tag(array: np.ndarray[Any, Any]) -> str:
    """Which kind of string array this is."""
    if array.dtype.kind == "O":
        return "str" if array.size and isinstance(array.flat[0], str) else "bytes"
    return "T" if array.dtype.kind == "T" else str(array.dtype.str[1:])


def string_values(array: np.ndarray[Any, Any]) -> list[bytes]:
    """The values in C order, as they are stored.

    Raises:
        UnsupportedLeafError: elements that are not all `bytes` or all `str`.
    """
    kind = str if string_tag(array)[0] in "sUT" else bytes
    try:
        values = array.reshape(-1).tolist()
    except ValueError as error:
        raise UnsupportedLeafError(f"is a string array with invalid text: {error}") from error
    odd = next((value for value in values if type(value) is not kind), None)
    if odd is not None:
        raise UnsupportedLeafError(
            f"is an object array that holds {type(odd).__name__} beside {kind.__name__}: store one kind only"
        )
    return [value.encode("utf-8", "surrogatepass") for value in values] if kind is str else values


def from_strings(array: np.ndarray[Any, Any], tag: str = "bytes") -> np.ndarray[Any, Any]:
    """An object array of `bytes` as the kind of string array the tag tells; itself for ``"bytes"``.

    Raises:
        CorruptCheckpointError: an unknown tag, text that is not UTF-8, or a width that the values do not warrant.
    """
    if not _TAG.fullmatch(tag):
        raise CorruptCheckpointError(f"string tensors of kind {tag!r} are not known")
    if tag == "bytes":
        return array
    values: list[Any] = array.reshape(-1).tolist()
    width = int(tag[1:]) if tag[0] in "SU" else 0
    if array.size * width * 4 > max(_PADDED_NBYTES, 1000 * (sum(map(len, values)) + array.size)):
        raise CorruptCheckpointError(f"a string tensor of {array.size} elements {width} wide holds far less than that")
    if tag[0] != "S":
        try:
            values = [value.decode("utf-8", "surrogatepass") for value in values]
        except UnicodeDecodeError as error:
            raise CorruptCheckpointError(f"a text tensor is not UTF-8: {error}") from error
    if width and max(map(len, values), default=0) > width:
        raise CorruptCheckpointError(f"a string tensor has values longer than its width, {width}")
    made = np.empty(len(values), dtype=object if tag == "str" or not _has_numpy(tag) else _numpy_tag(tag))
    made[:] = values
    return made.reshape(array.shape)


def to_strings(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Any string array as an object array of `bytes`, as sources hand them out."""
    made = np.empty(array.size, dtype=object)
    made[:] = string_values(array)
    return made.reshape(array.shape)


def fill_strings(target: np.ndarray[Any, Any], array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """``target`` with the values of an object array of `bytes`; a new array if it is read-only or too narrow for them."""
    new = from_strings(array, "str" if string_tag(target)[0] in "sUT" else "bytes")
    kind = target.dtype.kind
    width = max(map(len, new.reshape(-1).tolist()), default=0) * (4 if kind == "U" else 1)
    if target.flags.writeable and (kind in "OT" or width <= target.itemsize):
        target[...] = new
        return target
    return new.astype(kind if kind in "SU" else target.dtype, copy=False)


def _has_numpy(tag: str) -> bool:
    return tag != "T" or hasattr(np.dtypes, "StringDType")


def _numpy_tag(tag: str) -> Any:
    return np.dtypes.StringDType() if tag == "T" else np.dtype(tag)
