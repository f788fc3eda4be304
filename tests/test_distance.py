"""How far apart two tensors are: the same as Python's own numbers say, of every dtype, however it is cut."""

import cmath
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ckptmgr import TensorSpec
from ckptmgr.distance import Distance, elements, is_comparable

INTS = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "int4", "uint4", "int2", "uint2"]
SMALL = ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn"]
FLOATS = ["float16", "float32", "float64", "bfloat16", *SMALL]
DTYPES = [*INTS, *FLOATS, "complex64", "complex128"]


def numpy(dtype: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, dtype, dtype))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of a dtype: any bytes, of which the second has some others."""
    dtype = numpy(draw(st.sampled_from(DTYPES)))
    count = draw(st.integers(0, 20))
    old = np.frombuffer(draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize)), np.uint8).copy()
    if dtype == np.bool_ or any(mark in dtype.name for mark in ("int4", "int2", "float6", "float4")):
        old &= {"bool": 1, "int2": 3, "uint2": 3, "int4": 15, "uint4": 15, "float4_e2m1fn": 15}.get(dtype.name, 63)
    new = old.copy().view(dtype)
    for index in draw(st.lists(st.integers(0, max(count - 1, 0)), max_size=5 if count else 0)):
        new[index] = draw(st.sampled_from([0, 1, *({math.nan, -0.0, math.inf} if is_wide_float(dtype) else {1})]))
    return old.view(dtype), new


def is_wide_float(dtype: np.dtype[Any]) -> bool:
    return dtype.name in ("float16", "float32", "float64", "bfloat16", "complex64", "complex128")


def value(element: Any) -> Any:
    name = element.dtype.name
    return int(element) if "int" in name or name == "bool" else complex(element) if "complex" in name else float(element)


def is_equal(one: Any, other: Any) -> bool:
    return one == other or (cmath.isnan(one) and cmath.isnan(other))


def measured(old: np.ndarray, new: np.ndarray, most: int = 1 << 16, **tolerance: float) -> Distance:
    distance = Distance(**tolerance)
    for at in range(0, old.size, most):
        one, other = old[at : at + most], new[at : at + most]
        distance.add(one, other, has_same_bytes=one.tobytes() == other.tobytes())
    return distance


@given(pairs(), st.integers(1, 7))
def test_counts_and_distances_are_those_of_pythons_numbers(pair: tuple[np.ndarray, np.ndarray], most: int) -> None:
    old, new = ([value(element) for element in array] for array in pair)
    finite = [(a, b) for a, b in zip(old, new, strict=True) if cmath.isfinite(a) and cmath.isfinite(b)]

    found = measured(*pair, most)

    unequal = sum(not is_equal(a, b) for a, b in zip(old, new, strict=True))
    assert (found.unequal, found.changed) == (unequal, unequal)
    assert found.max_abs == pytest.approx(max((abs(b - a) for a, b in finite), default=0), rel=1e-12)
    assert found.nonfinite in ((0, 0), tuple(sum(not cmath.isfinite(each) for each in side) for side in (old, new)))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), st.integers(-(2**63), 2**63 - 1), st.booleans())
def test_huge_integers_are_apart_to_the_last_digit(old: list[int], other: int, is_unsigned: bool) -> None:
    shift, dtype = (2**63, np.uint64) if is_unsigned else (0, np.int64)
    first, second = np.array([each + shift for each in old], dtype), np.full(len(old), other + shift, dtype)

    assert measured(first, second).max_abs == max(abs(each - other) for each in old)


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1), st.integers(1, 9))
def test_the_relative_distance_is_that_of_norms(pairs: list[tuple[float, float]], most: int) -> None:
    old, new = np.array(pairs).T
    norm = np.linalg.norm(old)
    assume(norm > 1e-100)

    found = measured(old, new, most).relative

    assert found == pytest.approx(np.linalg.norm(new - old) / norm, rel=1e-9, abs=1e-100)


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10))), st.floats(0, 2), st.floats(0, 1))
def test_a_tolerance_is_that_of_numpy_with_the_first_as_the_reference(
    pairs: list[tuple[float, float]], atol: float, rtol: float
) -> None:
    old, new = np.array(pairs).reshape(-1, 2).T

    found = measured(old, new, atol=atol, rtol=rtol)

    assert found.changed == np.count_nonzero(~np.isclose(new, old, atol=atol, rtol=rtol))
    assert found.unequal == np.count_nonzero(old != new)


def test_no_tolerance_reaches_from_an_infinity_or_nan_to_a_number() -> None:
    old, new = np.array([np.inf, np.nan, np.inf, 1.0]), np.array([1.0, 1.0, np.inf, 1.1])

    found = measured(old, new, atol=1.0, rtol=1.0)

    assert (found.changed, found.unequal, found.nonfinite) == (2, 3, (3, 1))


def test_a_distance_beyond_float64_is_infinite_and_raises_nothing() -> None:
    found = measured(np.array([1.7e308, 1.0]), np.array([-1.7e308, 1.0]))

    assert (found.max_abs, found.relative, found.changed) == (math.inf, None, 1)


def test_bytes_that_differ_in_equal_values_are_noted() -> None:
    found = measured(np.array([0.0, 1.0]), np.array([-0.0, 1.0]))

    assert (found.unequal, found.has_other_bytes) == (0, True)
    assert not measured(np.array([0.0]), np.array([0.0])).has_other_bytes


def test_a_time_that_is_none_is_no_number() -> None:
    old = np.array(["2020-01-01", "NaT", "NaT"], "datetime64[D]")

    found = measured(old, np.array(["2020-01-04", "NaT", "2020-01-01"], "datetime64[D]"))

    assert (found.changed, found.max_abs, found.nonfinite) == (2, 3, (2, 1))


@pytest.mark.parametrize(("old", "new"), [("int64", "float32"), ("float64", "bfloat16"), ("bool", "uint8"), ("int8", "int64")])
def test_tensors_of_two_dtypes_are_compared_as_numbers(old: str, new: str) -> None:
    found = measured(np.array([0, 1, 1]).astype(numpy(old)), np.array([0, 1, 0]).astype(numpy(new)))

    assert (found.changed, found.max_abs) == (1, 1)


@pytest.mark.parametrize("bits", [4, 6])
def test_packed_elements_are_taken_apart_the_lowest_bits_first(bits: int) -> None:
    dtype = {4: ml_dtypes.float4_e2m1fn, 6: ml_dtypes.float6_e2m3fn}[bits]
    codes = np.arange(16, dtype=np.uint8)
    whole = sum(int(code) << (bits * index) for index, code in enumerate(codes))
    raw = np.frombuffer(whole.to_bytes(2 * bits, "little"), np.uint8)

    found = elements(raw, TensorSpec(f"packed_{np.dtype(dtype).name}", (16,)))

    assert found.tobytes() == codes.view(dtype).tobytes()


def test_what_has_no_numbers_or_another_shape_is_not_comparable() -> None:
    spec = TensorSpec
    pairs = [
        (spec("float32", (2,)), spec("int8", (2,))),
        (spec("float32", (2,)), spec("float32", (1, 2))),
        (spec("string", (2,)), spec("string", (2,))),
        (spec("datetime64[s]", (2,)), spec("datetime64[D]", (2,))),
        (spec("datetime64[s]", (2,)), spec("datetime64[s]", (2,))),
    ]

    assert [is_comparable(old, new) for old, new in pairs] == [True, False, False, False, True]
