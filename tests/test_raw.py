"""Slices of tensors that lie in a file as raw bytes."""

import numpy as np
import pytest
from transfers import RamStore

from ckptmgr.box import Box
from ckptmgr.raw import read_raw
from ckptmgr.storage import Folder


def stored(array: np.ndarray, offset: int, window_nbytes: int = 1 << 20) -> Folder:
    store = RamStore(window_nbytes)
    store.files["f"] = b"?" * offset + array.tobytes()
    return Folder(store)


@pytest.mark.parametrize("window_nbytes", [1, 64, 1 << 20])
def test_a_slice_is_what_the_whole_tensor_has_there(window_nbytes: int) -> None:
    whole = np.arange(5 * 7 * 3, dtype=np.int32).reshape(5, 7, 3)
    box = Box((1, 2, 0), (4, 5, 2))
    out = np.zeros(box.shape, np.int32)

    read_raw(stored(whole, 5, window_nbytes), "f", 5, whole.shape, box, out)

    assert out.tolist() == whole[1:4, 2:5, :2].tolist()


def test_a_slice_of_the_highest_rank_is_read() -> None:
    whole = np.arange(2.0).reshape((1,) * 63 + (2,))
    box = Box((0,) * 64, (*[1] * 63, 1))
    out = np.ones(box.shape)

    read_raw(stored(whole, 0), "f", 0, whole.shape, box, out)

    assert out.reshape(-1).tolist() == [0.0]


def test_the_target_may_have_any_byte_order_and_memory() -> None:
    whole = np.arange(12, dtype=np.int16).reshape(3, 4)
    out = np.zeros((4, 3), ">i2").T

    read_raw(stored(whole, 1), "f", 1, whole.shape, Box.whole(whole.shape), out)

    assert out.tolist() == whole.tolist()


def test_a_file_that_ends_inside_the_tensor_is_an_error() -> None:
    whole = np.arange(12.0)

    with pytest.raises(EOFError):
        read_raw(stored(whole, 0), "f", 8, whole.shape, Box.whole(whole.shape), np.empty(12))
