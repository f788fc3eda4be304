import array
import mmap
from typing import Any

import numpy as np
import pytest
import states
from hypothesis import given
from hypothesis import strategies as st

from ckptmgr import arrays
from ckptmgr.box import Box
from ckptmgr.errors import UnsupportedLeafError, UnsupportedTensorError
from ckptmgr.spec import PackedArray, TensorSpec


def pointer(leaf: np.ndarray) -> int:
    return leaf.__array_interface__["data"][0]


@given(states.arrays)
def test_numpy_arrays_are_their_own_host_arrays(leaf: np.ndarray) -> None:
    assert arrays.host_array(leaf) is leaf
    assert arrays.describe(leaf) == TensorSpec(leaf.dtype.name, leaf.shape)
    assert arrays.kind(leaf) == "numpy"


@given(states.arrays, st.data())
def test_slices_of_numpy_arrays_are_views(leaf: np.ndarray, data: st.DataObject) -> None:
    start = tuple(data.draw(st.integers(0, size)) for size in leaf.shape)
    stop = tuple(data.draw(st.integers(low, size)) for low, size in zip(start, leaf.shape, strict=True))

    part = arrays.host_array(leaf, Box(start, stop))

    assert np.shares_memory(part, leaf) or part.size == 0
    assert states.same(leaf[(*Box(start, stop).slices, ...)], part)


@given(states.arrays, st.integers(0, 1 << 32))
def test_filled_arrays_hold_the_new_bits_in_their_own_memory_if_it_is_writable(leaf: np.ndarray, seed: int) -> None:
    new = states.bits(leaf.dtype.name, leaf.shape, seed)

    filled = arrays.fill(leaf, new.copy())

    assert (filled is leaf) == leaf.flags.writeable
    assert filled.dtype == leaf.dtype
    assert states.same(new, filled)


@given(states.arrays)
def test_destination_is_the_memory_itself_or_none(leaf: np.ndarray) -> None:
    view = arrays.destination(leaf)

    is_direct = leaf.flags.c_contiguous and leaf.flags.writeable and leaf.dtype.isnative
    assert (view is not None) == is_direct
    assert view is None or (pointer(view) == pointer(leaf) and view.shape == leaf.shape)


def test_broadcast_array_is_replaced_not_filled() -> None:
    leaf = np.lib.stride_tricks.as_strided(np.zeros(3), (2, 3), (0, 8), writeable=True)
    new = np.arange(6.0).reshape(2, 3)

    filled = arrays.fill(leaf, new)

    assert states.same(new, filled)
    assert leaf.sum() == 0


def test_memory_mapped_arrays_are_filled_in_their_file(tmp_path: Any) -> None:
    leaf = np.memmap(tmp_path / "x", np.float32, "w+", shape=(3,))

    arrays.destination(leaf)[...] = [1, 2, 3]
    leaf.flush()

    assert np.fromfile(tmp_path / "x", np.float32).tolist() == [1, 2, 3]


@pytest.mark.parametrize("leaf", [bytearray(b"abcd"), array.array("h", [1, 2]), memoryview(bytearray(4)), mmap.mmap(-1, 4)])
def test_buffers_are_filled_in_place(leaf: Any) -> None:
    array_of_it = arrays.host_array(leaf)
    new = np.ones_like(array_of_it)

    assert arrays.destination(leaf) is not None
    assert arrays.fill(leaf, new) is leaf
    assert array_of_it.tolist() == new.tolist()


def test_read_only_buffer_is_replaced_by_an_array() -> None:
    leaf = memoryview(b"abc")

    filled = arrays.fill(leaf, np.frombuffer(b"xyz", np.uint8))

    assert arrays.destination(leaf) is None
    assert bytes(filled) == b"xyz"
    assert bytes(leaf) == b"abc"


def test_objects_with_the_dlpack_protocol_are_read() -> None:
    class Foreign:
        held = np.arange(4, dtype=np.int32)

        def __dlpack__(self, **keywords: Any) -> Any:
            return self.held.__dlpack__(**keywords)

        def __dlpack_device__(self) -> Any:
            return self.held.__dlpack_device__()

    assert pointer(arrays.host_array(Foreign())) == pointer(Foreign.held)


def test_object_whose_array_cannot_be_had_is_refused_with_its_reason() -> None:
    class Symbolic:
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            raise RuntimeError("no values yet")

    with pytest.raises(UnsupportedLeafError, match="no values yet"):
        arrays.describe(Symbolic())


@pytest.mark.parametrize(
    "leaf", [None, True, 1, 1.5, 1j, "a", b"a", np.float32(1), np.dtype("f4"), np.ndarray, [1], {"a": 1}, object()]
)
def test_what_is_no_array_is_none(leaf: Any) -> None:
    assert arrays.describe(leaf) is None
    assert arrays.destination(leaf) is None
    with pytest.raises(TypeError, match="is no array"):
        arrays.host_array(leaf)


def test_masked_and_structured_arrays_are_refused() -> None:
    with pytest.raises(UnsupportedLeafError, match="masked"):
        arrays.describe(np.ma.masked_array([1], [True]))
    with pytest.raises(UnsupportedTensorError, match="fields"):
        arrays.describe(np.zeros(1, "i4,f4"))


def test_packed_arrays_keep_their_spec() -> None:
    spec = TensorSpec("packed_float4_e2m1fn", (2, 4))
    leaf = PackedArray.wrap(np.arange(4, dtype=np.uint8), spec)

    assert arrays.describe(leaf) is spec
    assert arrays.destination(leaf).tolist() == [0, 1, 2, 3]
    assert arrays.describe(leaf[1:]) == TensorSpec("uint8", (3,))


def test_identity_is_that_of_the_memory_and_how_it_is_seen() -> None:
    slab = np.zeros((4, 4))
    one = arrays.identity(slab)

    assert arrays.identity(slab[:]) == one
    assert arrays.identity(slab[:][...]) == one
    assert arrays.identity(np.asarray(memoryview(slab))) == arrays.identity(np.asarray(memoryview(slab)))
    assert arrays.identity(slab[1:3]) == arrays.identity(slab[1:3])
    assert len({one, *map(arrays.identity, [slab.T, slab[:2], slab[2:], slab.view(np.int64), slab.copy()])}) == 6
    assert arrays.identity(slab[:0]) is None


@pytest.mark.parametrize(
    ("leaf", "values", "is_same"),
    [
        (np.array([b"abc", b"d"]), [b"xy", b"\0z"], True),
        (np.array([b"abc", b"d"]), [b"longer", b""], False),
        (np.array(["\u20ac", ""]), ["\xe4".encode(), b""], True),
        (np.array(["\u20ac", ""]), [b"longer", b""], False),
        (np.array(["a", "b"], object), [b"longer", b""], True),
        (np.array([b"a", b"b"], object), [b"longer", b""], True),
        (np.array(["a", "b"], np.dtypes.StringDType()), [b"longer", b""], True),
    ],
)
def test_string_arrays_are_filled_in_place_if_nothing_is_cut(leaf: np.ndarray, values: list[bytes], is_same: bool) -> None:
    filled = arrays.fill(leaf, np.array(values, object))

    assert (filled is leaf) == is_same
    assert filled.dtype.kind == leaf.dtype.kind
    assert arrays.host_array(filled).tolist() == values


def test_arrays_of_frameworks_that_are_not_loaded_stay_numpy_arrays() -> None:
    leaf = np.zeros(2)

    assert arrays.make("mlx", leaf) is leaf
    assert arrays.make("cupy", leaf) is leaf
    assert arrays.make("of-the-future/x", leaf) is leaf


def test_types_made_at_run_time_do_not_pile_up() -> None:
    for index in range(10_050):
        arrays.adapter(type(f"T{index}", (), {})())

    assert len(arrays._by_type) < 10_020
    assert arrays.describe(np.zeros(1)) == TensorSpec("float64", (1,))
