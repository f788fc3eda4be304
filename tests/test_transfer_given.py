"""Many whole tensors read into given arrays: the same bytes and errors as one by one, in few requests and little memory."""

import tracemalloc
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_transfer_bulk import BulkSource, small, windows
from transfers import FileSource, RamStore, arrays, awkward, spec_of, stored

from ckptmgr import transfer
from ckptmgr.checksum import crc32c
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.layout import Extent
from ckptmgr.storage import Folder, PosixStore, vectored
from ckptmgr.testing import sample
from ckptmgr.transfer import Want, bulk, reading, slabs


@given(st.data(), st.binary(max_size=9), st.integers(0, 5), windows, st.booleans(), st.sampled_from(["shared", "own"]))
def test_given_arrays_are_filled_and_the_others_made(
    data: st.DataObject, header: bytes, gap: int, window: int, totals: bool, memory: transfer.Memory
) -> None:
    tensors = {f"t{index}": base for index, (base, _) in enumerate(data.draw(st.lists(arrays(), min_size=1, max_size=6)))}
    store = RamStore(window)
    source = BulkSource(stored(store, tensors, header=header, gap=gap), store, totals=totals)
    kinds = [data.draw(st.sampled_from(["new", "plain", "fortran", "strided"])) for _ in tensors]
    outs = [
        None if kind == "new" else awkward(np.zeros_like(base), kind) for kind, base in zip(kinds, tensors.values(), strict=True)
    ]

    with mock.patch.object(bulk, "SMALL_NBYTES", data.draw(st.sampled_from([1, 50, 1 << 16]))):
        found, stats = transfer.read_new(source, list(tensors), outs=outs, memory=memory)

    for out, array, expected in zip(outs, found, tensors.values(), strict=True):
        assert out is None or array is out
        assert (array.dtype, array.shape, array.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())
    assert stats.nbytes == sum(base.nbytes for base in tensors.values())


@given(st.data(), windows, st.booleans())
def test_a_flipped_byte_anywhere_is_found_and_named(data: st.DataObject, window: int, totals: bool) -> None:
    tensors = small(4, 5)
    store = RamStore(window)
    source = BulkSource(stored(store, tensors, header=b"header"), store, totals=totals)
    at = data.draw(st.integers(6, 6 + 4 * 20 - 1))
    store.damage("data", at)

    with pytest.raises(CorruptCheckpointError, match=f"'t{(at - 6) // 20}'"):
        transfer.read_new(source, list(tensors), outs=[np.zeros_like(base) for base in tensors.values()])


def test_twenty_thousand_small_ones_are_read_in_windows_of_the_store_and_no_memory() -> None:
    tensors = {f"t{index}": np.full(256, index, np.float32) for index in range(20_000)}
    store = RamStore(1 << 20, workers=1)
    source = BulkSource(stored(store, tensors, header=b"h" * 100), store, totals=True)
    outs = [np.empty(256, np.float32) for _ in tensors]
    tracemalloc.start()

    with mock.patch.object(reading, "Goal", side_effect=AssertionError("one by one")):
        transfer.read_new(source, list(tensors), outs=outs)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all((out == index).all() for index, out in enumerate(outs))
    assert len(store.reads) < 25
    assert max(sum(sizes) for _, _, sizes in store.reads) <= 1 << 20
    assert peak < 16 << 20  # of Python's objects for each tensor, and two windows; the arrays have 20 MiB


def test_an_array_of_another_shape_is_refused_and_none_is_touched() -> None:
    tensors = small()
    store = RamStore()
    source = BulkSource(stored(store, tensors), store, totals=True)
    outs = [np.zeros_like(base) for base in tensors.values()]

    with pytest.raises(ValueError, match=r"'t2' is wanted as float32 of shape \(300,\)"):
        transfer.read_new(source, list(tensors), outs=[*outs[:2], np.zeros(299, np.float32), outs[3]])

    assert not any(out.any() for out in outs)


@pytest.mark.parametrize("at", [16, 64])
def test_the_bytes_of_large_tensors_go_straight_into_given_memory_aligned_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    content = sample("bfloat16", (5 << 19,), seed=1)
    (tmp_path / "data").write_bytes(content.tobytes())
    places = {"t": [Extent(Folder(PosixStore(tmp_path)), "data", 0, None, crc32c(content))]}
    out = slabs.raw(content.nbytes + 64)[at:][: content.nbytes].view(content.dtype)
    buffers: list[Any] = []
    read = vectored.read
    monkeypatch.setattr(vectored, "read", lambda fd, given, offset: (buffers.extend(given), read(fd, given, offset))[1])

    transfer.read(FileSource({"t": spec_of(content)}, places), [Want("t", None, out)])

    assert out.tobytes() == content.tobytes()
    assert all(np.shares_memory(buffer, out) for buffer in buffers)
