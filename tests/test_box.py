import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmgr.box import Box

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


def boxes_in(shape: tuple[int, ...]) -> st.SearchStrategy[Box]:
    bounds = [st.tuples(st.integers(0, size), st.integers(0, size)).map(sorted) for size in shape]
    return st.tuples(*bounds).map(lambda pairs: Box(tuple(a for a, _ in pairs), tuple(b for _, b in pairs)))


placed = shapes.flatmap(lambda shape: st.tuples(st.just(shape), boxes_in(shape)))
pairs = shapes.flatmap(lambda shape: st.tuples(st.just(shape), boxes_in(shape), boxes_in(shape)))


def numbered(shape: tuple[int, ...]) -> np.ndarray:
    """A tensor whose elements tell their C-order position."""
    return np.arange(np.prod(shape, dtype=int)).reshape(shape)


def test_a_box_has_the_shape_and_size_of_what_it_selects():
    box = Box((1, 0), (3, 5))

    assert (box.shape, box.size) == ((2, 5), 10)
    assert box.slices == (slice(1, 3), slice(0, 5))


def test_a_box_of_rank_0_is_the_one_element_of_a_0d_tensor():
    box = Box((), ())

    assert (box.shape, box.size) == ((), 1)
    assert list(box.runs(())) == [(0, 1)]
    assert list(box.chunks(1)) == [box]
    assert box.overlap(box) == box


@pytest.mark.parametrize(("start", "stop"), [((0,), (1, 2)), ((-1,), (2,)), ((3,), (2,))])
def test_senseless_bounds_are_refused(start: tuple[int, ...], stop: tuple[int, ...]):
    with pytest.raises(ValueError, match="box"):
        Box(start, stop)


@given(placed)
def test_slices_select_an_array_of_the_shape_of_the_box(case):
    shape, box = case

    assert numbered(shape)[box.slices].shape == box.shape
    assert box.fits(shape)


def test_the_whole_box_selects_everything():
    assert Box.whole([2, 0, 3]) == Box((0, 0, 0), (2, 0, 3))


def test_a_box_does_not_fit_a_smaller_tensor_or_another_rank():
    box = Box((0, 1), (2, 3))

    assert box.fits((2, 3))
    assert not box.fits((2, 2))
    assert not box.fits((2, 3, 1))


@given(shapes, st.data())
def test_from_slices_selects_what_numpy_does(shape: tuple[int, ...], data):
    ends = st.none() | st.integers(-7, 7)
    slices = [slice(data.draw(ends), data.draw(ends)) for _ in range(data.draw(st.integers(0, len(shape))))]

    box = Box.from_slices(slices, shape)

    assert np.array_equal(numbered(shape)[box.slices], numbered(shape)[tuple(slices)])


def test_from_slices_refuses_steps_and_too_many_slices():
    with pytest.raises(ValueError, match="a box has no steps"):
        Box.from_slices([slice(None, None, 2)], (4,))
    with pytest.raises(ValueError, match="2 slices for a tensor of shape"):
        Box.from_slices([slice(None), slice(None)], (4,))


@given(pairs)
def test_overlap_is_what_both_boxes_cover(case):
    shape, one, other = case
    tensor = numbered(shape)

    common = one.overlap(other)

    shared = set(tensor[one.slices].flat) & set(tensor[other.slices].flat)
    assert (set(tensor[common.slices].flat) if common else set()) == shared
    assert common is None or common.size > 0
    assert common == other.overlap(one)


def test_boxes_of_different_ranks_cannot_overlap():
    with pytest.raises(ValueError, match="rank 1 and 2"):
        Box((0,), (1,)).overlap(Box((0, 0), (1, 1)))


@given(pairs)
def test_relative_boxes_select_the_same_elements_from_the_cut_out_part(case):
    shape, outer, other = case
    tensor = numbered(shape)
    inner = outer.overlap(other)

    if inner is not None:
        assert np.array_equal(tensor[outer.slices][inner.relative_to(outer).slices], tensor[inner.slices])


@given(placed)
def test_runs_are_the_positions_of_the_box_in_order(case):
    shape, box = case
    flat = numbered(shape).reshape(-1)

    runs = list(box.runs(shape))

    covered = [flat[first : first + count] for first, count in runs]
    assert np.array_equal(np.concatenate([flat[:0], *covered]), numbered(shape)[box.slices].reshape(-1))
    assert all(count > 0 for _, count in runs)


@given(placed)
def test_neighbouring_runs_are_joined(case):
    shape, box = case

    runs = list(box.runs(shape))

    assert all(first + count < after for (first, count), (after, _) in itertools.pairwise(runs))


def test_whole_rows_are_one_run():
    assert list(Box((1, 0, 0), (3, 4, 5)).runs((9, 4, 5))) == [(20, 40)]


@given(placed, st.integers(1, 30))
def test_chunks_are_the_elements_of_the_box_in_order_none_too_big(case, most: int):
    shape, box = case
    tensor = numbered(shape)

    chunks = list(box.chunks(most))

    elements = [tensor[chunk.slices].reshape(-1) for chunk in chunks]
    assert np.array_equal(np.concatenate([tensor.reshape(-1)[:0], *elements]), tensor[box.slices].reshape(-1))
    assert all(0 < chunk.size <= most for chunk in chunks)


def test_chunks_are_as_big_as_whole_rows_allow():
    shapes_of_chunks = [chunk.shape for chunk in Box.whole((5, 4)).chunks(9)]

    assert shapes_of_chunks == [(2, 4), (2, 4), (1, 4)]


def test_chunks_of_no_elements_are_refused():
    with pytest.raises(ValueError, match="pieces of 0 elements"):
        list(Box.whole((5,)).chunks(0))
