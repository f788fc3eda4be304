"""Values on their way to other layouts: every step is what numpy does, box by box, and its inverse undoes it to the bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptmgr
from ckptmgr import Box, CorruptCheckpointError, open_checkpoint
from ckptmgr.deriving import INEXACT, Derived
from ckptmgr.spec import TensorSpec
from ckptmgr.transforms import Folded, Permuted, Piece, Recipe, Regated, Row, Unfolded, added

Array = np.ndarray[Any, Any]


def numpy_does(step: Any, array: Array) -> Array:
    """The oracle."""
    if isinstance(step, Permuted):
        return array.transpose(step.axes)
    if isinstance(step, Regated):
        blocks = np.split(array, len(step.order))
        return np.concatenate([blocks[block] for block in step.order])
    if isinstance(step, Row):
        return array[step.row]
    if isinstance(step, Folded):
        return array.reshape(-1, 1, *array.shape[2:])
    return array.reshape(-1, step.multiplier, *array.shape[2:])


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, ...]) -> Box:
    bounds = [sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in shape]
    return Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Array, tuple[Any, ...], Box]:
    kind = draw(st.sampled_from(["permuted", "gates", "depthwise", "row"]))
    sizes = st.integers(1, 4)
    if kind == "permuted":
        shape = tuple(draw(st.lists(sizes, min_size=1, max_size=4)))
        steps: tuple[Any, ...] = (Permuted(tuple(draw(st.permutations(range(len(shape)))))),)
    elif kind == "gates":
        count = draw(st.integers(1, 4))
        shape = draw(sizes), count * draw(sizes)
        steps = Permuted((1, 0)), Regated(tuple(draw(st.permutations(range(count)))))
    elif kind == "depthwise":
        shape = draw(sizes), draw(sizes), draw(sizes), draw(sizes)
        steps = Permuted((2, 3, 0, 1)), Folded(shape[3])
    else:
        shape = 2, 3 * draw(sizes)
        steps = Row(draw(st.integers(0, 1))), Regated((1, 0, 2))
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return array, steps, draw(boxes(Piece("", steps).shape(shape)))


@given(cases())
def test_a_box_of_a_transform_is_what_numpy_makes(case: tuple[Array, tuple[Any, ...], Box]) -> None:
    array, steps, box = case
    whole = array
    for step in steps:
        whole = numpy_does(step, whole)

    found = Piece("", steps).read(lambda inner: array[inner.slices], array.shape, box)

    assert Piece("", steps).shape(array.shape) == whole.shape
    np.testing.assert_array_equal(found, whole[box.slices])


@given(cases())
def test_the_inverse_undoes_every_step(case: tuple[Array, tuple[Any, ...], Box]) -> None:
    array, steps, _ = case
    if isinstance(steps[0], Row):
        return
    made = Piece("", steps).read(lambda inner: array[inner.slices], array.shape, Box.whole(Piece("", steps).shape(array.shape)))

    back = tuple(step.inverse() for step in reversed(steps))
    again = Piece("", back).read(lambda inner: made[inner.slices], made.shape, Box.whole(array.shape))

    np.testing.assert_array_equal(again, array)


def test_unfolding_reads_no_more_rows_than_it_gives() -> None:
    asked = []
    array = np.arange(24).reshape(12, 1, 2)

    def read(box: Box) -> Array:
        asked.append(box)
        return array[box.slices]

    Piece("", (Unfolded(3),)).read(read, array.shape, Box((1, 0, 0), (2, 2, 2)))

    assert asked == [Box((3, 0, 0), (6, 1, 2))]


def test_a_sum_with_zeros_keeps_every_bit() -> None:
    odd = np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)

    assert added(odd, np.zeros(4, np.float32)).tobytes() == odd.tobytes()
    assert added(np.zeros(4, np.float32), odd).tobytes() == odd.tobytes()
    assert added(np.array([1.5], np.float32), np.array([2.0], np.float32)).tolist() == [3.5]


def test_what_a_recipe_leaves_alone_keeps_its_place_and_sums_tell_whether_they_are_exact(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "a.safetensors", {"w": np.ones((2, 3)), "a": np.ones(2), "b": np.ones(2), "zero": np.zeros(2)})
    spec = TensorSpec("float64", (2,))
    recipes = {
        "same": Recipe(spec, (Piece("a"),)),
        "turned": Recipe(TensorSpec("float64", (3, 2)), (Piece("w", (Permuted((1, 0)),)),), note="axes permuted"),
        "exact": Recipe(spec, (Piece("a"), Piece("zero")), "add", "exact"),
        "sum": Recipe(spec, (Piece("a"), Piece("b")), "add", "exact"),
        "stack": Recipe(TensorSpec("float64", (2, 2)), (Piece("a"), Piece("zero")), "stack"),
        "new": Recipe(TensorSpec("int64", ()), (), "zeros", "new"),
    }

    with open_checkpoint(tmp_path / "a.safetensors") as opened, Derived(opened.source, recipes, {}, {}) as view:
        assert [len(view.extents(name)) for name in view.specs] == [1, 0, 0, 0, 0, 0]
        assert view.read("sum", out=np.empty(2)).tolist() == [2.0, 2.0]
        assert view.read("exact", Box((1,), (2,))).tolist() == [1.0]
        assert view.read("stack", Box((0, 1), (2, 2))).tolist() == [[1.0], [0.0]]
        assert (view.read("new").shape, view.read("new").dtype) == ((), np.int64)
        assert [view.note(name) for name in view.specs] == ["", "axes permuted", "exact", INEXACT, "", "new"]


@pytest.mark.parametrize("source", ["cp", "a.npz"])
def test_damage_under_a_transposed_tensor_is_told_although_it_is_read_in_boxes(tmp_path: Path, source: str) -> None:
    state = {"fc": {"kernel": np.zeros((500, 1000)), "bias": np.zeros(1000)}}
    ckptmgr.save(tmp_path / source, state, backend="npz" if source == "a.npz" else "tf_bundle")
    data = max(tmp_path.iterdir(), key=lambda path: path.stat().st_size)
    raw = bytearray(data.read_bytes())
    raw[60_000] ^= 1
    data.write_bytes(raw)

    for budget in (1 << 20, 64 << 20):
        with pytest.raises(CorruptCheckpointError, match="kernel"):
            ckptmgr.convert(tmp_path / source, tmp_path / "b.safetensors", rename="keras-to-torch", budget=budget)

    assert not (tmp_path / "b.safetensors").exists()


def test_a_large_tensor_is_transposed_in_boxes_within_the_budget(tmp_path: Path) -> None:
    kernel = np.random.default_rng(1).normal(size=(700, 1100)).astype(np.float32)
    ckptmgr.save(tmp_path / "cp", {"fc": {"kernel": kernel}}, backend="tf_bundle")

    ckptmgr.convert(tmp_path / "cp", tmp_path / "b.safetensors", rename="keras-to-torch", budget=1 << 19)

    assert ckptmgr.load(tmp_path / "b.safetensors")["fc.weight"].tobytes() == kernel.T.tobytes()
