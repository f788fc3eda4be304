"""JSON from a file that nobody vouches for: one value, no duplicate keys, bounded depth, bounded numbers.

Python's own parser recurses as deep as the text asks, keeps the last of equal keys, and takes ``NaN`` and lone surrogates.
The format's reference library (serde_json) differs in each of these, and so does this module.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from ckptmgr.backend import JSON

DEPTH = 127  # serde_json's recursion limit: what nests deeper is refused by the reference, too
_INT_DIGITS = 4300  # Python's own default, kept even where a program has lifted it: conversion is quadratic

_ALL_BUT_BRACKETS_AND_QUOTES = bytes(set(range(256)) - set(b'[]{}"'))
_PLAIN_DIGITS = 20
_DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_STEP_OF_BRACKET = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def integer(text: str) -> int:
    """The default reading of an integer; digits beyond Python's own default limit are refused."""
    if len(text) > _INT_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def parse(
    data: bytes,
    *,
    depth: int = DEPTH,
    containers: int | None = None,
    surrogates: bool = False,
    parse_int: Callable[[str], Any] = integer,
) -> JSON:
    """The one JSON value in ``data``, which is UTF-8. It has at most ``containers`` lists and objects, if that is given.

    ``surrogates`` allows escaped ones without their other half, which no UTF-8 can hold. ``parse_int`` reads integers;
    it may not be asked for those from 0 to 10^19-1, which are what they are.

    Raises:
        ValueError: anything else, with the reason; duplicate keys at any level and nesting beyond ``depth`` are refused.
    """
    text = data.decode("utf-8")
    _check_brackets(data, depth, containers)
    zeroed = data.translate(_DIGITS_AS_ZEROS)
    plain = b"-0" not in zeroed and b"0" * _PLAIN_DIGITS not in zeroed  # a third faster without the call for each integer
    value = json.loads(
        text,
        object_pairs_hook=_unique,
        parse_int=None if plain else parse_int,
        parse_float=finite,
        parse_constant=_refuse,
    )
    if not surrogates and _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # raises for a surrogate without its other half
    return value


def _check_brackets(data: bytes, depth: int, containers: int | None) -> None:
    """Bounds the depth, and the memory that empty containers would take, before anything is built."""
    if b"\\" in data:
        data = re.sub(rb"\\.", b"", data, flags=re.DOTALL)
    # Joining a closing quote with the next opening one leaves what is inside a string inside of one.
    brackets = data.translate(None, _ALL_BUT_BRACKETS_AND_QUOTES).replace(b'""', b"")
    if b'"' in brackets:
        brackets = re.sub(rb'"[^"]*"?', b"", brackets)
    if containers is not None and len(brackets) > 2 * containers:
        raise ValueError(f"more than {containers} lists and objects")
    steps = np.frombuffer(brackets.translate(_STEP_OF_BRACKET), np.int8)
    deepest = int(steps.cumsum(dtype=np.int32).max(initial=0))
    if deepest > depth:
        raise ValueError(f"values nest {deepest} deep, the limit is {depth}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r} is there twice")
    return value


def finite(text: str) -> float:
    """A float; one that is out of range is refused, not infinite."""
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number that is out of range")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
