"""What two checkpoints differ in: tensors, plain values and what is beside them, between any formats and places."""

import itertools
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conversions import FILES, FORMATS, saved
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ckptmgr
from ckptmgr import CheckpointManager, DiffReport, TensorSpec, convert, diff
from ckptmgr.diffreport import ValueChange
from ckptmgr.spec import PackedArray


def differ(tmp_path: Path, old: Any, new: Any, *, backend: str = "hdf5", **options: Any) -> DiffReport:
    """The difference of two states, each in a file."""
    for side, tree in (("a", old), ("b", new)):
        ckptmgr.save(tmp_path / side / FILES[backend], tree, backend=backend)
    return diff(tmp_path / "a" / FILES[backend], tmp_path / "b" / FILES[backend], **options)


def changes(report: DiffReport) -> list[tuple[str, str]]:
    return [(each.name, each.change) for each in report.tensors]


# ---- tensors


def test_a_change_tells_how_many_elements_and_how_far(tmp_path: Path) -> None:
    report = differ(tmp_path, {"w": np.array([3.0, 4.0, 0.0])}, {"w": np.array([3.0, 4.5, 0.0])})

    [found] = report.tensors
    assert (found.name, found.change, found.changed, found.max_abs, found.relative) == ("w", "values", 1, 0.5, 0.1)
    assert not report.is_same


def test_what_is_in_one_alone_or_of_another_shape_or_dtype_comes_first(tmp_path: Path) -> None:
    old = {"a": np.ones(2), "shape": np.ones((2, 3)), "dtype": np.ones(2, np.float32), "w": np.ones(2), "same": np.ones(2)}
    new = {"b": np.ones(2), "shape": np.ones((3, 2)), "dtype": np.ones(2, np.float64), "w": np.zeros(2), "same": np.ones(2)}

    report = differ(tmp_path, old, new)

    assert changes(report) == [
        ("a", "only in A"),
        ("b", "only in B"),
        ("shape", "shape"),
        ("dtype", "dtype"),
        ("w", "values"),
    ]
    assert (report.tensors[3].changed, report.same) == (0, 1)
    assert [each.specs for each in report.tensors[2:4]] == ["float64 2x3 -> 3x2", "float32 -> float64 2"]


def test_new_nans_come_first_and_then_the_largest_relative_change(tmp_path: Path) -> None:
    old = {name: np.ones(4) for name in "abcd"} | {"zero": np.zeros(4)}
    factors = {"a": 1.001, "b": 2.0, "c": 1.5, "d": np.array([1, 1, np.nan, 1])}
    new = {name: old[name] * factors[name] for name in "abcd"} | {"zero": np.array([0, 0, 0, 1e-9])}

    report = differ(tmp_path, old, new)

    assert [each.name for each in report.tensors] == ["d", "zero", "b", "c", "a"]
    assert report.tensors[0].nonfinite == (0, 1)
    assert report.tensors[1].relative is None


def test_equal_values_of_other_bytes_are_the_same_and_told(tmp_path: Path) -> None:
    nans = np.array([0x7FF8000000000001, 0x7FF8000000000002], np.uint64).view(np.float64)

    report = differ(tmp_path, {"z": np.zeros(2), "n": nans[:1]}, {"z": -np.zeros(2), "n": nans[1:]})

    assert (report.is_same, report.same, report.other_bytes) == (True, 2, ("z", "n"))


def test_a_tolerance_makes_close_tensors_equal_and_tells_which(tmp_path: Path) -> None:
    old, new = (
        {"w": np.array([1.0, 2.0]), "v": np.ones(2), "rate": 0.1},
        {"w": np.array([1.0, 2.01]), "v": np.ones(2), "rate": 0.10001},
    )

    report = differ(tmp_path, old, new, atol=0.1)

    assert (report.is_same, report.within, report.same) == (True, ("w",), 2)
    assert differ(tmp_path, old, new, rtol=1e-5).tensors[0].changed == 1


def test_tied_tensors_are_compared_once_and_under_names_that_are_tied_no_more(tmp_path: Path) -> None:
    w = np.ones(3)

    assert differ(tmp_path, {"a": w, "b": w}, {"a": w, "b": w}).same == 1
    assert changes(differ(tmp_path, {"a": w, "b": w}, {"a": w, "b": w * 2})) == [("b", "values")]


def test_empty_and_scalar_tensors_are_compared(tmp_path: Path) -> None:
    old = {"none": np.zeros((0, 3)), "one": np.array(1), "two": np.array(2)}

    report = differ(tmp_path, old, {**old, "two": np.array(3)}, backend="safetensors")

    assert (changes(report), report.same) == ([("two", "values")], 2)


def test_strings_are_compared_value_by_value(tmp_path: Path) -> None:
    report = differ(tmp_path, {"s": np.array(["a", "bc", "d"])}, {"s": np.array(["a", "b", "d"])})

    assert [(each.changed, each.max_abs) for each in report.tensors] == [(1, None)]


def test_packed_elements_are_compared_one_by_one(tmp_path: Path) -> None:
    spec = TensorSpec("packed_float4_e2m1fn", (4,))
    old, new = (PackedArray.wrap(np.array(raw, np.uint8), spec) for raw in ([0x21, 0x43], [0x21, 0x53]))

    [found] = differ(tmp_path, {"w": old}, {"w": new}, backend="safetensors").tensors

    assert (found.changed, found.max_abs) == (1, 1.0)  # the codes 4 and 5 are 2 and 3


@st.composite
def two_states(draw: st.DrawFn) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Tensors of many dtypes with any bytes, of which some are changed in the second."""
    dtypes = ["int8", "uint64", "int64", "float16", "float32", "float64", "bfloat16", "complex64", "bool", "float8_e5m2", "uint8"]
    old, new = {}, {}
    for index in range(draw(st.integers(1, 4))):
        dtype = np.dtype(getattr(ml_dtypes, name := draw(st.sampled_from(dtypes)), name))
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        nbytes = dtype.itemsize * int(np.prod(shape))
        raw = [draw(st.binary(min_size=nbytes, max_size=nbytes)) for _ in range(2)]
        arrays = [np.frombuffer(bytes(byte & (1 if name == "bool" else 255) for byte in each), dtype) for each in raw]
        mask = np.array(draw(st.lists(st.booleans(), min_size=arrays[0].size, max_size=arrays[0].size)), bool)
        old[f"t{index}"] = arrays[0].reshape(shape)
        new[f"t{index}"] = np.where(mask, arrays[1], arrays[0]).astype(dtype).reshape(shape)
    return old, new


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(two_states(), st.sampled_from([("npz", "safetensors"), ("safetensors", "tf_bundle"), ("hdf5", "npz")]))
def test_what_changes_between_any_two_formats_is_what_numpy_says(
    tmp_path: Path, states: tuple[dict[str, np.ndarray], dict[str, np.ndarray]], formats: tuple[str, str]
) -> None:
    places = [tmp_path / side / FILES[backend] for side, backend in zip("ab", formats, strict=True)]
    for place, backend, tensors in zip(places, formats, states, strict=True):
        ckptmgr.save(place, tensors, backend=backend)

    found = {each.name: each.changed for each in diff(*places).tensors}

    expected = {}
    for name, one in states[0].items():
        other = states[1][name]
        unequal = (one != other) & ~((one != one) & (other != other))
        if unequal.any():
            expected[name] = int(np.count_nonzero(unequal))
    assert found == expected


# ---- values


def test_plain_values_are_compared_by_name_and_type(tmp_path: Path) -> None:
    old = {"epoch": 3, "rate": 0.1, "nan": float("nan"), "name": "a", "gone": 1, "rng": np.random.default_rng(1), "kind": 1}
    new = {"epoch": 4, "rate": 0.1, "nan": float("nan"), "name": "b", "new": None, "rng": np.random.default_rng(2), "kind": 1.0}

    report = differ(tmp_path, old, new)

    assert [str(each) for each in report.values] == [
        "value epoch: 3 -> 4",
        "value name: 'a' -> 'b'",
        "value gone: only in A: 1",
        "value rng: numpy.Generator/PCG64 in a state, and another numpy.Generator/PCG64 in a state",
        "value kind: 1 -> 1.0",
        "value new: only in B: None",
    ]


def test_states_that_are_one_plain_value_are_compared(tmp_path: Path) -> None:
    found = [
        list(map(str, differ(tmp_path / str(i), *both).values))
        for i, both in enumerate([(5, 6), (None, 5), (None, {}), ({}, {})])
    ]

    assert found == [["value tensor: 5 -> 6"], ["value tensor: None -> 5"], ["value tensor: only in A: None"], []]


def test_a_tolerance_for_values_reaches_no_infinity_nor_trips_over_huge_integers(tmp_path: Path) -> None:
    for side, number in (("a", 10**400), ("b", 10**400 + 1)):
        metadata = {"huge": number, "near": 1.0 if side == "a" else 1.05, "far": math.inf if side == "a" else 1.0}
        with CheckpointManager(tmp_path / side) as manager:
            manager.save(1, {"w": np.ones(1), **metadata})

    report = diff(tmp_path / "a" / "step-00000001", tmp_path / "b" / "step-00000001", atol=0.1)

    assert [each.name for each in report.values] == ["huge", "far"]


def test_metrics_metadata_and_assets_of_steps_are_compared_unless_they_are_not_asked_for(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, {"w": np.ones(2)}, metrics={"loss": 0.5}, metadata={"note": [1]}, assets={"c": b"x", "d": b"y"})
        manager.save(2, {"w": np.ones(2)}, metrics={"loss": 0.25}, metadata={"note": [2]}, assets={"c": b"z", "d": b"y"})

        with manager.open(1) as old, manager.open(2) as new:
            report, without = diff(old, new), diff(old, new, state_only=True)

    assert [(each.kind, each.name) for each in report.values] == [("metric", "loss"), ("metadata", "note"), ("asset", "c")]
    assert report.steps == (1, 2)
    assert (report.is_same, without.is_same) == (False, True)


def test_a_value_that_is_in_one_alone_has_no_other_side_in_json() -> None:
    assert ValueChange("value", "x", "only in B", b=None).to_json() == {
        "kind": "value",
        "name": "x",
        "where": "only in B",
        "b": None,
    }


# ---- formats, rules, selections


@pytest.mark.parametrize(("one", "other"), [*itertools.product(FORMATS, FORMATS)])
def test_a_checkpoint_and_its_conversion_are_the_same(tmp_path: Path, one: str, other: str) -> None:
    source = saved(tmp_path, one)
    convert(source, tmp_path / "to" / FILES[other], to=other)

    report = diff(source, tmp_path / "to" / FILES[other])

    assert report.is_same, str(report)
    assert report.same == 5  # of the six names two are tied


@pytest.mark.parametrize("backend", FORMATS)
def test_a_file_and_the_step_that_was_made_of_it_are_the_same(tmp_path: Path, backend: str) -> None:
    source = saved(tmp_path, backend)
    convert(source, tmp_path / "run", step=5)

    report = diff(source, tmp_path / "run" / "step-00000005")

    assert report.is_same, str(report)


def test_rules_give_the_names_of_the_other(tmp_path: Path) -> None:
    source = saved(tmp_path, "npz")
    rules = [("model/", "net/"), {"epoch": "progress"}]
    convert(source, tmp_path / "b.safetensors", rename=rules, cast={"net/w": "float16"})

    report = diff(source, tmp_path / "b.safetensors", rename=rules)

    assert [(each.name, each.origin, each.change) for each in report.tensors] == [("net/w", "model/w", "dtype")]
    assert report.values == ()


def test_globs_choose_what_is_compared_by_names_that_either_has(tmp_path: Path) -> None:
    old = {"model": {"w": np.ones(2), "n": 1}, "opt": {"m": np.ones(2)}}
    new = {"model": {"w": np.ones(2), "n": 2, "extra": np.ones(1)}, "opt": {"m": np.zeros(2)}}

    assert changes(differ(tmp_path, old, new, select="model/*")) == [("model/extra", "only in B")]
    assert [each.name for each in differ(tmp_path, old, new, select=["*/n"]).values] == ["model/n"]
    with pytest.raises(ValueError, match="matches no name"):
        differ(tmp_path, old, new, select="modle/*")


def test_either_side_may_be_a_url(tmp_path: Path) -> None:
    there = f"memory://{tmp_path.name}/x.npz"
    ckptmgr.save(there, {"w": np.arange(700_000.0)}, backend="npz")
    ckptmgr.save(tmp_path / "x.safetensors", {"w": np.arange(700_000.0) + (np.arange(700_000) == 9)})

    assert diff(there, there).is_same
    assert [each.changed for each in diff(there, tmp_path / "x.safetensors").tensors] == [1]


@pytest.mark.parametrize("options", [{"atol": -1.0}, {"rtol": float("nan")}, {"rename": [("typo/", "x/")]}])
def test_options_that_mean_nothing_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"tolerance|matches no name"):
        differ(tmp_path, {"w": np.ones(1)}, {"w": np.ones(1)}, **options)
