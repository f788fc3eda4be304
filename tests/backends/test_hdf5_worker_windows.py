"""How a slice is cut, so that no chunk is decoded again and again."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ckptmgr.backend import Box
from ckptmgr_hdf5.worker import windows


def test_without_chunks_windows_follow_the_elements() -> None:
    cut = list(windows(Box.whole((4, 6)), None, 12))

    assert cut == [Box((0, 0), (2, 6)), Box((2, 0), (4, 6))]


def test_chunks_side_by_side_share_a_window() -> None:
    cut = list(windows(Box.whole((4, 6)), (2, 3), 12))

    assert cut == [Box((0, 0), (2, 6)), Box((2, 0), (4, 6))]


def test_a_row_of_chunks_over_the_limit_is_cut_between_chunks() -> None:
    cut = list(windows(Box.whole((4, 6)), (4, 2), 10))

    assert cut == [Box((0, 0), (4, 2)), Box((0, 2), (4, 4)), Box((0, 4), (4, 6))]


def test_windows_of_a_slice_end_where_chunks_do() -> None:
    cut = list(windows(Box((1, 1), (4, 5)), (2, 3), 6))

    assert cut == [Box((1, 1), (2, 3)), Box((1, 3), (2, 5)), Box((2, 1), (4, 3)), Box((2, 3), (4, 5))]


def test_a_chunk_over_the_limit_is_cut_before_the_next_one() -> None:
    cut = list(windows(Box.whole((2, 4)), (2, 2), 2))

    assert cut == [Box((0, 0), (1, 2)), Box((1, 0), (2, 2)), Box((0, 2), (1, 4)), Box((1, 2), (2, 4))]


def test_an_element_without_dimensions_is_one_window() -> None:
    assert list(windows(Box((), ()), None, 5)) == [Box((), ())]


def test_nothing_is_no_window() -> None:
    assert list(windows(Box((0, 2), (0, 5)), (1, 2), 5)) == []


@st.composite
def cuts(draw: st.DrawFn) -> tuple[Box, tuple[int, ...], int]:
    rank = draw(st.integers(1, 4))
    shape = draw(st.tuples(*[st.integers(0, 9)] * rank))
    start = tuple(draw(st.integers(0, size)) for size in shape)
    stop = tuple(draw(st.integers(at, size)) for at, size in zip(start, shape, strict=True))
    return Box(start, stop), draw(st.tuples(*[st.integers(1, 12)] * rank)), draw(st.integers(1, 50))


@given(cuts())
def test_windows_cover_the_slice_once_and_keep_the_limit(cut: tuple[Box, tuple[int, ...], int]) -> None:
    box, chunk, most = cut
    seen = np.zeros(box.stop, int)

    for window in windows(box, chunk, most):
        seen[window.slices] += 1
        assert 0 < window.size <= most

    assert (seen[box.slices] == 1).all()
    assert seen.sum() == box.size


@given(cuts())
def test_a_chunk_within_the_limit_is_in_one_window(cut: tuple[Box, tuple[int, ...], int]) -> None:
    box, chunk, most = cut
    found = [chunks_of(window, chunk) for window in windows(box, chunk, most)]

    together = [name for names in found for name in names]

    assert math.prod(chunk) > most or len(together) == len(set(together))


def chunks_of(window: Box, chunk: tuple[int, ...]) -> set[tuple[int, ...]]:
    return {tuple(i // n for i, n in zip(at, chunk, strict=True)) for at in np.argwhere(np.ones(window.shape)) + window.start}
