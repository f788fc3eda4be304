"""Partitioned tensors: the keys of slices, and slices that do or do not make up their tensor."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tf_bundles import GOLDEN, ORIGIN

from ckptmgr.backend import Box
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr_tf_bundle import table
from ckptmgr_tf_bundle.entry import Entry, Extents, Header, parse_entry
from ckptmgr_tf_bundle.slices import boxes, slice_key

NUMBERS = {
    0: "80",
    2: "82",
    -1: "7f",
    63: "bf",
    64: "c040",
    100: "c064",
    200: "c0c8",
    8129: "dfc1",
    8191: "dfff",
    8192: "e02000",
    2**62 - 1: "ffbfffffffffffffff",
    2**62: "ff c0 40 00 00 00 00 00 00 00",
    2**63 - 1: "ff c0 7f ff ff ff ff ff ff ff",
    -64: "40",
    -65: "3fbf",
    -(2**63): "00 3f 80 00 00 00 00 00 00 00",
}


def entry(shape: tuple[int, ...], *slices: Extents) -> Entry:
    return Entry(1, shape, 0, 0, 0, 0, slices)


@pytest.mark.parametrize(("number", "code"), NUMBERS.items())
def test_a_number_in_a_key_sorts_as_bytes_do(number: int, code: str) -> None:
    key = slice_key(b"a", ((number, 0),))

    assert key == b"\x00a\x00\x01" + b"\x01\x01" + bytes.fromhex(code) + b"\x80"


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2))
def test_keys_are_in_the_order_of_their_numbers(pair: list[int]) -> None:
    low, high = sorted(pair)

    assert (slice_key(b"a", ((low, 1),)) < slice_key(b"a", ((high, 1),))) == (low < high)


def test_a_whole_slice_key_is_tensorflows() -> None:
    key = slice_key(b"cube", ((100, 200), (0, None), (0, 2)))

    assert key == bytes.fromhex("00 63756265 0001 0103 c064 c0c8 80 7f 80 82")


def test_a_dimension_with_its_whole_length_has_another_key_than_one_without() -> None:
    assert slice_key(b"a", ((0, 3),)) == bytes.fromhex("00 61 0001 0101 80 83")
    assert slice_key(b"a", ((0, None),)) == bytes.fromhex("00 61 0001 0101 80 7f")


def test_a_slice_of_rank_0_has_no_bytes_for_it() -> None:
    assert slice_key(b"a", ()) == bytes.fromhex("00 61 0001 00")


def test_nul_and_ff_in_a_name_are_escaped() -> None:
    assert slice_key(b"a\x00b\xff\x00\xffc", ()) == b"\x00a\x00\xffb\xff\x00\x00\xff\xff\x00c\x00\x01\x00"


@pytest.mark.parametrize("prefix", ["sliced/one_shard", "sliced/three_shards", "v1_saver/model.ckpt-100"])
def test_every_slice_that_tensorflow_wrote_is_found_by_its_key(prefix: str) -> None:
    items = dict(table.decode((GOLDEN / f"{prefix}.index").read_bytes(), ORIGIN))
    hidden = {key for key in items if key[:1] == b"\x00"}

    whole = {key: parse_entry(items[key], key.decode(), Header(3, False), ORIGIN) for key in items if key and key not in hidden}
    keys = {slice_key(key, extents) for key, found in whole.items() for extents in found.slices}

    assert keys == hidden
    assert len(keys) > 1


def test_a_slice_is_a_box() -> None:
    found = boxes(entry((5, 6, 2), ((0, 3), (0, None), (0, 2)), ((3, 2), (0, 6), (0, None))), "a", ORIGIN)

    assert found == [Box((0, 0, 0), (3, 6, 2)), Box((3, 0, 0), (5, 6, 2))]


def test_slices_may_come_in_any_order() -> None:
    found = boxes(entry((6,), ((4, 2),), ((0, 1),), ((1, 3),)), "a", ORIGIN)

    assert [box.start for box in found] == [(4,), (0,), (1,)]


def test_the_one_slice_of_a_scalar_is_the_scalar() -> None:
    assert boxes(entry((), ()), "a", ORIGIN) == [Box((), ())]


def test_slices_need_no_common_cut() -> None:
    pinwheel = [((0, 2), (0, 1)), ((2, 1), (0, 2)), ((1, 2), (2, 1)), ((0, 1), (1, 2)), ((1, 1), (1, 1))]

    assert len(boxes(entry((3, 3), *pinwheel), "a", ORIGIN)) == 5


WRONG = {
    "an empty slice": (entry((4,), ((0, 4),), ((4, 0),)), "from (4,) to (4,) is empty or outside its shape (4,)"),
    "an empty dimension": (entry((0, 4), ((0, None), (0, 4))), "from (0, 0) to (0, 4) is empty or outside"),
    "a negative length": (entry((4,), ((4, -1),)), "from (4,) to (3,) is empty or outside"),
    "a negative start": (entry((4,), ((-1, 4),)), "from (-1,) to (3,) is empty or outside"),
    "past the end": (entry((4,), ((1, 4),)), "from (1,) to (5,) is empty or outside"),
    "a start beside no length": (entry((4,), ((0, 2),), ((2, None),)), "takes a whole dimension, but not from 0 on"),
    "a wrapped end": (entry((4,), ((2**63 - 1, 2**63 - 1),)), "is empty or outside"),
    "too few dimensions": (entry((4, 4), ((0, 4),)), "a slice has 1 dimensions, its shape (4, 4)"),
    "too many dimensions": (entry((4,), ((0, 4), (0, 1))), "a slice has 2 dimensions, its shape (4,)"),
    "a gap": (entry((4,), ((0, 2),), ((3, 1),)), "its 2 slices have 3 elements, its shape (4,) has 4"),
    "the same slice twice": (entry((4,), ((0, 4),), ((0, 4),)), "its 2 slices have 8 elements, its shape (4,) has 4"),
    "two scalars": (entry((), (), ()), "its 2 slices have 2 elements, its shape () has 1"),
    "an overlap and a gap of one size": (entry((4,), ((0, 2),), ((1, 2),)), "its 2 slices overlap"),
    "an overlap in two dimensions": (entry((2, 2), ((0, 1), (0, 2)), ((0, 2), (0, 1))), "its 2 slices overlap"),
}


@pytest.mark.parametrize(("broken", "problem"), WRONG.values(), ids=WRONG)
def test_slices_that_do_not_make_up_their_tensor_are_refused(broken: Entry, problem: str) -> None:
    with pytest.raises(CorruptCheckpointError) as caught:
        boxes(broken, "a", ORIGIN)

    assert problem in str(caught.value)
    assert (caught.value.file, caught.value.tensor) == ("x.index", "a")


@given(st.data())
def test_boxes_are_accepted_exactly_if_they_cover_once(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    every = [
        ((a, b - a), (c, d - c))
        for a, b in itertools.combinations(range(shape[0] + 1), 2)
        for c, d in itertools.combinations(range(shape[1] + 1), 2)
    ]
    chosen = data.draw(st.lists(st.sampled_from(every), min_size=1, max_size=5))
    counts = np.zeros(shape, int)
    for (a, n), (c, m) in chosen:
        counts[a : a + n, c : c + m] += 1

    if (counts == 1).all():
        assert len(boxes(entry(shape, *chosen), "a", ORIGIN)) == len(chosen)
    else:
        with pytest.raises(CorruptCheckpointError):
            boxes(entry(shape, *chosen), "a", ORIGIN)


def test_thousands_of_slices_in_three_dimensions_are_checked_at_once() -> None:
    extents = [((i, 1), (j, 1), (k, 1)) for i in range(20) for j in range(20) for k in range(20)]
    extents[-1] = extents[0]

    started = time.process_time()
    with pytest.raises(CorruptCheckpointError, match="8000 slices overlap"):
        boxes(entry((20, 20, 20), *extents), "a", ORIGIN)

    assert time.process_time() - started < 1
