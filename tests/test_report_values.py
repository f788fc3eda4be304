"""What a report says of tensors: their sizes, what they hold, and how two steps differ; read block by block."""

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import plotly.graph_objects
import pytest

from ckptmgr import Box, Checkpoint, CheckpointManager
from ckptmgr.report import tensors
from ckptmgr.report.contents import contents
from ckptmgr.report.reading import BINS, Difference, Summary, blocks, difference, has_values, summary
from ckptmgr.spec import TensorSpec


def opened(folder: Path, step: int, **arrays: Any) -> Checkpoint:
    with CheckpointManager(folder, backend="tf_bundle") as manager:  # it has the most dtypes
        manager.save(step, arrays)
        return manager.open(step)


@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 4), (2, 3, 5), (5, 1, 1), (1, 0, 9)])
@pytest.mark.parametrize("most", [1, 4, 100])
def test_blocks_cover_a_tensor_once_and_are_small(shape: tuple[int, ...], most: int) -> None:
    seen = np.zeros(shape, int)

    for box in blocks(shape, most):
        assert box.size <= most
        seen[box.slices] += 1

    assert (seen == 1).all()


@pytest.mark.parametrize("most", [1 << 20, 7])
def test_a_summary_is_that_of_numpy_whole_or_in_blocks(tmp_path: Path, most: int) -> None:
    w = np.random.default_rng(0).normal(size=(9, 11)).astype(np.float32)
    with opened(tmp_path, 1, w=w) as checkpoint:
        found = summary(checkpoint, "w", most=most)

    wide = w.astype(np.float64)
    assert (found.size, found.nonfinite, found.lowest, found.highest) == (99, 0, wide.min(), wide.max())
    assert found.norm == pytest.approx(np.linalg.norm(wide))
    assert found.mean == pytest.approx(wide.mean())
    assert found.counts == tuple(np.histogram(wide, bins=BINS)[0])


def test_values_that_are_not_finite_are_counted_and_left_out(tmp_path: Path) -> None:
    with opened(tmp_path, 1, w=np.array([1, np.nan, 3, np.inf]), none=np.full(3, np.nan), empty=np.zeros((0, 2))) as checkpoint:
        assert summary(checkpoint, "w").nonfinite == 2
        assert (summary(checkpoint, "w").lowest, summary(checkpoint, "w").highest) == (1.0, 3.0)
        assert summary(checkpoint, "none") == Summary(3, 3)
        assert summary(checkpoint, "empty") == Summary(0, 0)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "float16", "complex64", "bfloat16", "float8_e4m3fn", "int4"])
def test_every_dtype_of_numbers_has_a_summary(tmp_path: Path, dtype: str) -> None:
    array = np.array([0, 1, 1]).astype(getattr(ml_dtypes, dtype, dtype))
    with opened(tmp_path, 1, w=array) as checkpoint:
        assert summary(checkpoint, "w").norm == pytest.approx(math.sqrt(2))


def test_strings_and_times_are_no_numbers() -> None:
    assert [has_values(TensorSpec(dtype, (2,))) for dtype in ("string", "datetime64[s]", "packed_float4_e2m1fn", "float32")] == [
        False,
        False,
        False,
        True,
    ]


def test_values_too_large_for_a_sum_have_no_norm_and_raise_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, 1, w=np.array([1.7e308, -1.7e308, 1.7e308])) as checkpoint:
        found = summary(checkpoint, "w")

    assert (found.norm, found.counts, found.highest) == (None, (), 1.7e308)


def test_memory_is_bounded_by_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    real = Checkpoint.read

    def watched(self: Checkpoint, name: str, box: Box | None = None, out: Any = None) -> Any:
        nonlocal largest
        array = real(self, name, box, out)
        largest = max(largest, array.size)
        return array

    monkeypatch.setattr(Checkpoint, "read", watched)
    with opened(tmp_path, 1, w=np.arange(10_000.0)) as checkpoint:
        summary(checkpoint, "w", most=64)
        difference(checkpoint, checkpoint, "w", most=64)

    assert largest == 64


# ---- differences


@pytest.mark.parametrize("most", [1 << 20, 2])
def test_a_difference_is_the_largest_and_the_relative_one(tmp_path: Path, most: int) -> None:
    with opened(tmp_path, 1, w=np.array([3.0, 4.0, 0.0])) as old, opened(tmp_path, 2, w=np.array([3.0, 4.5, 0.0])) as new:
        assert difference(old, new, "w", most=most) == Difference("w", 3, 1, 0.5, 0.1)


def test_equal_nans_have_not_changed_and_new_ones_have(tmp_path: Path) -> None:
    with (
        opened(tmp_path, 1, a=np.array([np.nan, 1.0]), b=np.array([1.0, 1.0])) as old,
        opened(tmp_path, 2, a=np.array([np.nan, 1.0]), b=np.array([1.0, np.nan])) as new,
    ):
        assert difference(old, new, "a").changed == 0
        assert difference(old, new, "b").changed == 1


def test_what_cannot_be_compared_says_why(tmp_path: Path) -> None:
    with (
        opened(tmp_path, 1, old=np.zeros(1), w=np.zeros((2, 3)), text=np.array([b"a"], object)) as first,
        opened(tmp_path, 2, new=np.zeros(1), w=np.zeros((3, 2)), text=np.array([b"b"], object)) as second,
    ):
        problems = [difference(first, second, name).problem for name in ("old", "new", "w", "text")]

    assert problems == ["only in the first", "only in the second", "shape 2x3 became 3x2", "its values are no numbers"]


def test_a_comparison_has_the_most_changed_first_and_counts_what_is_the_same(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, {"a": np.ones(2), "b": np.ones(2), "c": np.ones(2), "d": np.ones(1)})
        manager.save(2, {"a": np.ones(2) * 1.1, "b": np.ones(2) * 2, "c": np.ones(2)})

        found = tensors.comparison(manager, 1, 2)

    assert [each.name for each in found.differences] == ["b", "a", "d"]
    assert found.same == 1


# ---- of a run


@pytest.fixture
def run(tmp_path: Path) -> CheckpointManager:
    manager = CheckpointManager(tmp_path / "run")
    for step in range(1, 6):
        manager.save(step, {"model": {"w": np.full(8, step, np.float32), "b": np.zeros(2)}, "n": np.arange(3)})
    return manager


def test_tensors_are_those_of_the_newest_step_by_size(run: CheckpointManager) -> None:
    found = contents(run).inventory

    assert found is not None
    assert [(each.name, each.nbytes) for each in found.tensors] == [("model/w", 32), ("n", 24), ("model/b", 16)]
    assert found.by_dtype == (("float32", 1, 32), ("int64", 1, 24), ("float64", 1, 16))
    assert (found.step, found.count, found.nbytes) == (5, 3, 72)


def test_a_treemap_adds_up(run: CheckpointManager) -> None:
    figure = contents(run).figure("tensors")

    assert figure is not None
    trace = figure.data[0]
    sizes = dict(zip(trace["labels"], trace["values"], strict=True))
    assert sizes == {"all tensors": 72, "model/": 48, "w": 32, "b": 16, "n": 24}


def test_a_treemap_counts_what_it_has_no_room_for(run: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "MOST_LISTED", 1)

    found = contents(run)

    assert found.inventory is not None
    assert (found.inventory.others, found.inventory.others_nbytes, found.inventory.nbytes) == (2, 40, 72)
    assert found.figure("tensors").data[0]["labels"][-1] == "2 smaller ones"  # type: ignore[union-attr]


def test_no_tensor_is_read_unless_it_is_asked_for(run: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "read", None)

    assert contents(run).values is None


def test_norms_of_as_many_steps_as_asked_for(run: CheckpointManager) -> None:
    done: list[tuple[int, int]] = []

    values = contents(run, read=3, progress=lambda *given: done.append(given)).values

    assert values is not None
    assert values.steps == (1, 3, 5)
    name, found = values.tensors[0]
    assert name == "model/w"
    assert [(step, each.norm) for step, each in found] == [(step, pytest.approx(step * math.sqrt(8))) for step in (1, 3, 5)]
    assert done[-1] == (3 * 72, 3 * 72)


def test_a_damaged_step_is_told_and_the_others_are_read(run: CheckpointManager) -> None:
    file = Path(run.path(3)) / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-20:] = bytes(20)
    data[-1] = 7
    file.write_bytes(data)

    values = contents(run, read=5).values

    assert values is not None
    assert len({step for _, found in values.tensors for step, _ in found}) >= 4
    assert all(problem.startswith("step 3: ") for problem in values.problems)
    assert values.problems


def test_a_newest_step_without_its_index_costs_only_that_part(run: CheckpointManager) -> None:
    (Path(run.path(5)) / "tree.json").unlink()

    found = contents(run, read=2)

    assert (found.inventory, found.values) == (None, None)
    assert "tree.json" in found.problems[0]
    assert len(found.run.steps) == 5


def test_figures_of_tensors_are_ones_that_plotly_knows(tmp_path: Path) -> None:
    deep = {"</script>": {"<b>": {"%{x}": {"d": {"e": {"f": {"g": np.zeros(2)}}}}}}}
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, {**deep, "same": np.ones(3), "nan": np.full(2, np.nan), "none": np.zeros(0)})
        figures = contents(manager, read=1).figures

    for figure in figures:
        plotly.graph_objects.Figure(figure.to_json()["data"], figure.to_json()["layout"])
        assert "<b>" not in json.dumps(figure.to_json(), allow_nan=False)
