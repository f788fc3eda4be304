"""JSON of our own files: parsed strictly, and taken apart field by field with a check on each.

A file may hold anything. What is wrong with it is told by a `ValueError` whose message goes on a sentence that began
with the name of the file ("... has no field 'step'"); the caller knows the name and the right error.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

import numpy as np

from ckptmgr.step import JSON

MAX_DEPTH = 64  # of anything parsed here
MAX_INT = 2**63 - 1

_CRC32C = re.compile(r"[0-9a-f]{8}")
_T = TypeVar("_T")


def parse(data: bytes) -> JSON:
    """The value of a JSON text in UTF-8 with no key twice, no NaN or infinity, and no deep nesting.

    Raises:
        ValueError: it is anything else.
    """
    try:
        value = _decoder.decode(data.decode())
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:  # of the codec and of the parser too
        raise ValueError(f"is not JSON: {error}") from error
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH:  # otherwise it cannot be that deep
        _check_depth(value)
    return value


class Fields:
    """The fields of one JSON object. Each is taken once; ``rest`` is what nobody has taken.

    Every method takes a field by its key and raises `ValueError` if it is absent or not what the method gives.
    """

    def __init__(self, value: JSON, what: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"holds {_shown(value)} as {what}, not an object")
        self.what = what
        self.rest = dict(value)

    def text(self, key: str) -> str:
        """A string."""
        return self._take(key, str)

    def object(self, key: str) -> dict[str, JSON]:
        """An object."""
        return self._take(key, dict)

    def array(self, key: str) -> list[JSON]:
        """An array."""
        return self._take(key, list)

    def texts(self, key: str) -> list[str]:
        """An array of strings."""
        values = self._take(key, list)
        for value in values:
            if type(value) is not str:
                self.refuse(key, values)
        return values

    def count(self, key: str, most: int | None = MAX_INT) -> int:
        """An integer from 0 to ``most``."""
        value = self._take(key, int)
        if value < 0 or (most is not None and value > most):
            self.refuse(key, value)
        return value

    def crc32c(self, key: str) -> int:
        """A checksum, written as eight hexadecimal digits."""
        return int(self.matching(key, _CRC32C), 16)

    def matching(self, key: str, pattern: re.Pattern[str]) -> str:
        """A string that the pattern matches as a whole."""
        value = self._take(key, str)
        if not pattern.fullmatch(value):
            self.refuse(key, value)
        return value

    def optional(self, key: str) -> JSON:
        """Any value; None if it is null or absent."""
        return self.rest.pop(key, None)

    def refuse(self, key: str, value: JSON) -> NoReturn:
        """Raises the `ValueError` of a field that must not have this value."""
        raise ValueError(f"has {_shown(value)} as {key!r} of {self.what}")

    def _take(self, key: str, kind: type[_T]) -> _T:
        try:
            value = self.rest.pop(key)
        except KeyError:
            raise ValueError(f"has no {key!r} in {self.what}") from None
        if type(value) is not kind:  # exactly: true is no integer
            self.refuse(key, value)
        return value


def plain_json(value: Any, what: str) -> JSON:
    """A deep copy of ``value`` as JSON that reads back equal: tuples become lists, numpy scalars Python's.

    ``what`` is the name of the value for messages.

    Raises:
        TypeError: something in it is not JSON, a key is not a string; the message says where.
        ValueError: a float in it is not finite, an integer is huge, or it is nested too deeply.
    """
    return _plain(value, what, MAX_DEPTH // 2)


def _plain(value: Any, path: str, depth: int) -> JSON:
    if depth == 0:
        raise ValueError(f"{path} is nested more than {MAX_DEPTH // 2} levels deep")
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"{path} has the key {wrong[0]!r}, and JSON takes only strings as keys")
        return {str(key): _plain(each, f"{path}/{key}", depth - 1) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, f"{path}/{index}", depth - 1) for index, each in enumerate(value)]
    return _plain_scalar(value.item() if isinstance(value, np.generic) else value, path)


def _plain_scalar(value: Any, path: str) -> JSON:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # of a subclass (an enum) the text alone
    if isinstance(value, int):
        if value.bit_length() > 4096:
            raise ValueError(f"{path} is an integer of {value.bit_length()} bits; at most 4096 are kept")
        return int(value)
    if not isinstance(value, float):
        raise TypeError(f"{path} is {_shown(value)} ({type(value).__name__}), which is not JSON")
    if not math.isfinite(value):
        raise ValueError(f"{path} is {value}, which JSON cannot hold; keep it as a metric, or as a string")
    return float(value)


def _unique(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError(f"the key {Counter(key for key, _ in pairs).most_common(1)[0][0]!r} is there twice")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)


def _check_depth(value: JSON) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[JSON] = []
        for each in level:
            if isinstance(each, dict):
                inner.extend(each.values())
            elif isinstance(each, list):
                inner.extend(each)
        if not inner:
            return
        level = inner
    raise ValueError(f"is nested more than {MAX_DEPTH} levels deep")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
