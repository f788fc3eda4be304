import ast
import random
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import states

from ckptmgr import restoring
from ckptmgr.errors import StateMismatchError
from ckptmgr.restorereport import Mismatch


def test_every_difference_is_told_at_once_before_anything_is_changed() -> None:
    state = {"a": {"weight": np.ones(3), "bias": np.ones(2, np.float32)}, "epoch": 3, "old": np.ones(1), "l": [1, 2]}
    into = {"a": {"wieght": np.zeros(3), "bias": np.zeros(3, np.float32)}, "epoch": 0.0, "l": [0]}

    with pytest.raises(StateMismatchError) as info:
        states.restored(state, into)

    assert info.value.missing == ("a/wieght",)
    assert info.value.unexpected == ("a/weight", "old", "l/1")
    assert info.value.report.mismatched == (
        Mismatch("a/bias", "float32[3]", "float32[2]"),
        Mismatch("epoch", "float", "int"),
    )
    assert info.value.report.near["a/wieght"] == ("a/weight",)
    assert "'a/wieght' (near: 'a/weight')" in str(info.value)
    assert "'a/bias' (wanted float32[3], found float32[2])" in str(info.value)
    assert into["a"]["bias"].tolist() == [0, 0, 0]


def test_without_strict_what_fits_is_restored_and_the_rest_stays_and_is_listed() -> None:
    state = {"a": np.ones(2), "b": np.ones(2), "c": np.ones(2), "epoch": 3}
    into = {"a": np.zeros(2), "b": np.zeros(3), "d": np.zeros(2), "epoch": 0}
    source, skeleton = states.saved(state)

    restored, report = restoring.restore(source, skeleton, into=into, strict=False)

    assert restored["a"].tolist() == [1, 1]
    assert restored["b"] is into["b"]
    assert restored["d"].tolist() == [0, 0]
    assert restored["epoch"] == 3
    assert (report.missing, report.unexpected, report.filled) == (("d",), ("c",), ("a", "epoch"))
    assert report.mismatched == (Mismatch("b", "float64[3]", "float64[2]"),)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (1, 1.0),
        (True, 1),
        (1, True),
        ("a", b"a"),
        (None, 1),
        (np.float32(1), 1.0),
        (np.float32(1), np.float64(1)),
        (1.0, np.zeros(())),
        (np.zeros(1), 1.0),
        (np.zeros(()), 1.0),
        ([1], (1, 2)),
        ({"a": 1}, 1),
        (1, {"a": 1}),
        (np.random.default_rng(1), np.random.RandomState(1)),
        (np.random.default_rng(1), np.random.Generator(np.random.MT19937(1))),
        (np.random.default_rng(1), np.zeros(1)),
        (np.zeros(1), random.Random(1)),
        (1, random.Random(1)),
        (random.Random(1), 1),
    ],
)
def test_values_of_another_type_are_different(found: Any, wanted: Any) -> None:
    with pytest.raises(StateMismatchError):
        states.restored({"x": found}, {"x": wanted})


def test_numpy_scalars_and_arrays_of_no_dimensions_are_the_same_thing() -> None:
    into = np.zeros((), np.float32)

    assert states.restored({"x": np.float32(2)}, {"x": into})["x"] is into
    assert into == 2
    assert states.same({"x": np.float32(3)}, states.restored({"x": np.array(3, np.float32)}, {"x": np.float32(0)}))


@pytest.mark.parametrize(
    ("found", "dtype", "cast", "expected"),
    [
        (np.array([1.5, 2.0], np.float32), "float64", "same_kind", [1.5, 2.0]),
        (np.array([1.5, 2.0], np.float32), "bfloat16", "same_kind", [1.5, 2.0]),
        (np.array([1.5, 2.0], ml_dtypes.float8_e5m2), "float32", "same_kind", [1.5, 2.0]),
        (np.array([1, 2], np.int64), "int8", "same_kind", [1, 2]),
        (np.array([1, 2], np.uint8), "int8", "same_kind", [1, 2]),
        (np.array([1, 2], np.int8), "uint8", "same_kind", None),
        (np.array([True, False]), "bfloat16", "same_kind", [1, 0]),
        (np.array([1.5, 2.0]), "int32", "same_kind", None),
        (np.array([1.5, 2.0]), "int32", "any", [1, 2]),
        (np.array([1 + 2j, 3]), "float32", "same_kind", None),
        (np.array([1 + 2j, 3]), "float32", "any", [1, 3]),
        (np.array([1e300, 1]), "float32", "same_kind", [float("inf"), 1]),
        (np.array(["1", "2"]), "int8", "any", None),
        (np.array([1, 2], "M8[s]"), "int64", "any", None),
    ],
)
def test_cast_decides_which_dtypes_are_converted(found: np.ndarray, dtype: str, cast: Any, expected: list[Any] | None) -> None:
    into = {"x": np.zeros(2, states.dtype(dtype))}

    with pytest.raises(StateMismatchError):
        states.restored({"x": found}, into)
    if expected is None:
        with pytest.raises(StateMismatchError):
            states.restored({"x": found}, into, cast=cast)
        return
    report = states.report_of({"x": found}, into, cast=cast)

    assert into["x"].tolist() == expected
    assert report.recast == (Mismatch("x", f"{dtype}[2]", f"{found.dtype.name}[2]"),)


@pytest.mark.parametrize(
    ("found", "wanted", "cast", "expected"),
    [
        (1, 0.0, "same_kind", 1.0),
        (True, 0, "same_kind", 1),
        (1.5, 0, "any", 1),
        (1.5, np.float32(0), "same_kind", np.float32(1.5)),
        (np.float64(1.5), 0.0, "same_kind", 1.5),
        (1j + 2, 0.0, "any", 2.0),
        (1.5, 0, "same_kind", None),
        (float("nan"), 0, "any", None),
        (10**400, 0.0, "any", None),
        ("1", 0, "any", None),
        (None, 0, "any", None),
        (np.array(2.5), 0.0, "same_kind", 2.5),
        (np.array([2.5]), 0.0, "any", None),
        (10**30, np.array(0), "any", None),
    ],
)
def test_cast_decides_which_plain_values_are_converted(found: Any, wanted: Any, cast: Any, expected: Any) -> None:
    if expected is None:
        with pytest.raises(StateMismatchError):
            states.restored({"x": found}, {"x": wanted}, cast=cast)
    else:
        assert states.same(expected, states.restored({"x": found}, {"x": wanted}, cast=cast)["x"])


def test_plain_number_fills_an_array_of_no_dimensions_if_a_cast_allows() -> None:
    into = np.zeros((), np.float32)

    states.restored({"x": 3}, {"x": into}, cast="same_kind")

    assert into == 3


def test_template_that_ties_what_the_checkpoint_does_not_is_told() -> None:
    shared = np.zeros(2)
    state = {"a": np.ones(2), "b": np.full(2, 2.0), "c": np.full(2, 3.0)}

    with pytest.raises(StateMismatchError, match=r"'b' \(wanted tied to 'a', found a tensor other than 'a'\)") as info:
        states.restored(state, {"a": shared, "b": shared, "c": shared})
    states.restored(state, {"a": shared, "b": shared, "c": shared}, strict=False)

    assert [name for name, _, _ in info.value.report.mismatched] == ["b", "c"]
    assert shared.tolist() == [3, 3]


def test_int_and_str_keys_that_look_alike_are_told_apart() -> None:
    state = {1: np.ones(1), "1": np.full(1, 2.0)}

    both = states.restored(state, {"1": np.zeros(1), 1: np.zeros(1)})
    one = states.restored(state, {1: np.zeros(1)}, strict=False)

    assert both[1][0] == 1
    assert both["1"][0] == 2
    assert one[1][0] == 1


def test_keys_that_became_text_on_their_way_are_found_by_their_names() -> None:
    assert states.restored({"0": np.ones(1), "1": {"2": 5}}, {0: np.zeros(1), 1: {2: 0}}) == {0: np.ones(1), 1: {2: 5}}


W = {"w": np.ones(2), "b": np.ones(3)}


@pytest.mark.parametrize(
    ("into", "select"),
    [
        ({"model": W}, "select='model/*'"),
        ({"model": W, "epoch": 0}, "select=['model/*', 'epoch']"),
        ({"model": None}, "select='model/*'"),
        ({"a[1]": 0.5}, "select='a[[]1]'"),
    ],
)
def test_the_error_of_a_part_says_which_globs_restore_it(into: dict[str, Any], select: str) -> None:
    source, skeleton = states.saved({"model": W, "optimizer": {"lr": 0.1}, "epoch": 3, "a[1]": 1.5})

    with pytest.raises(StateMismatchError) as info:
        restoring.restore(source, skeleton, into=into)

    assert f"To restore only what `into` has, pass {select}; or" in str(info.value)
    _, report = restoring.restore(source, skeleton, into=into, select=ast.literal_eval(select.removeprefix("select=")))
    assert report.is_exact


@pytest.mark.parametrize(
    ("into", "options"),
    [
        ({"model": {"w": np.ones(2)}}, {}),  # the model itself has more
        ({"model": {**W, "c": np.ones(1)}}, {}),
        ({"model": {**W, "w": np.ones(1)}}, {}),
        ({"model": W}, {"select": ["model/*", "epoch"]}),
        ({}, {}),
    ],
)
def test_no_globs_are_told_where_they_would_not_do(into: dict[str, Any], options: dict[str, Any]) -> None:
    source, skeleton = states.saved({"model": W, "epoch": 3})

    with pytest.raises(StateMismatchError, match="Fix `into`, or pass rename=, select=, cast= or strict=False"):
        restoring.restore(source, skeleton, into=into, **options)


def test_names_of_another_tool_that_are_joined_by_dots_are_parts_too() -> None:
    source, _ = states.saved({"model.w": np.ones(2), "model.b": np.ones(2), "head.w": np.ones(2)})

    with pytest.raises(StateMismatchError, match="Fix `into`, or pass rename=, select="):
        restoring.restore(source, None, into={"model": {"w": np.ones(2)}})
    with pytest.raises(StateMismatchError, match=r"pass select='model/\*'; or"):
        restoring.restore(source, None, into={"model": {"w": np.ones(2), "b": np.ones(2)}})

    _, report = restoring.restore(source, None, into={"model": {"w": np.ones(2), "b": np.ones(2)}}, select="model/*")
    assert report.is_exact
