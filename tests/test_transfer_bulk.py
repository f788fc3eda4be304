"""Many whole tensors read at once: the same arrays and the same errors as one by one, in few requests and little memory."""

import itertools
from collections.abc import Sequence
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transfers import Array, FileSource, RamStore, arrays, stored

from ckptmgr import transfer
from ckptmgr.checksum import crc32c
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.layout import Extent
from ckptmgr.source import Places
from ckptmgr.spec import TensorSpec
from ckptmgr.storage import Folder
from ckptmgr.testing import sample
from ckptmgr.transfer import bulk, slabs

windows = st.sampled_from([1, 3, 8, 16, 100, 1 << 20])


class BulkSource(FileSource):
    """Tensors in files of one store that are told in columns, with the checksums of the files or without."""

    def __init__(self, source: FileSource, store: RamStore, *, totals: bool) -> None:
        super().__init__(source.specs, source.places)
        self.folder = Folder(store)
        self.totals = {file: (len(data), crc32c(data)) for file, data in store.files.items()} if totals else {}

    def extents_of(self, names: Sequence[str]) -> Places:
        extents = [self.places[name][0] for name in names]
        files = sorted({extent.file for extent in extents})
        indexes = np.array([files.index(extent.file) for extent in extents], np.int64)
        offsets = np.array([extent.offset for extent in extents], np.int64)
        return Places(self.folder, files, indexes, offsets, [extent.crc32c for extent in extents], self.totals)


def small(count: int = 4, size: int = 300) -> dict[str, Array]:
    return {f"t{index}": sample("float32", (size,), seed=index) for index in range(count)}


@given(st.data(), st.binary(max_size=9), st.integers(0, 5), windows, st.booleans())
def test_everything_comes_back_as_one_by_one(data: st.DataObject, header: bytes, gap: int, window: int, totals: bool) -> None:
    tensors = {f"t{index}": base for index, (base, _) in enumerate(data.draw(st.lists(arrays(), max_size=6)))}
    store = RamStore(window)
    source = BulkSource(stored(store, tensors, header=header, gap=gap), store, totals=totals)
    names = data.draw(st.permutations(list(tensors)))
    names = names[: data.draw(st.integers(0, len(names)))]

    with mock.patch.object(bulk, "SMALL_NBYTES", data.draw(st.sampled_from([1, 50, 1 << 16]))):
        found, stats = transfer.read_new(source, names)

    for name, array in zip(names, found, strict=True):
        expected = tensors[name]
        assert (array.dtype, array.shape, array.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())
        assert array.flags.writeable
        assert array.flags.aligned
        assert array.flags.c_contiguous
    assert stats.nbytes == sum(tensors[name].nbytes for name in names)
    assert not any(np.shares_memory(one, other) for one, other in itertools.combinations(found, 2))


@given(st.data(), windows, st.booleans())
def test_a_flipped_byte_anywhere_is_found_and_named(data: st.DataObject, window: int, totals: bool) -> None:
    tensors = small(5, size=data.draw(st.integers(1, 40)))
    store = RamStore(window)
    source = BulkSource(stored(store, tensors, header=b"head"), store, totals=totals)
    name = data.draw(st.sampled_from(list(tensors)))
    store.damage("data", source.places[name][0].offset + data.draw(st.integers(0, tensors[name].nbytes - 1)))

    with mock.patch.object(bulk, "SMALL_NBYTES", data.draw(st.sampled_from([1, 1 << 16]))):
        with pytest.raises(CorruptCheckpointError, match=f"bytes of '{name}' are not what was written.*ram:/data") as caught:
            transfer.read_new(source, list(tensors))
        (found, *_), _ = transfer.read_new(source, list(tensors), verify="off")

    assert (caught.value.file, caught.value.tensor) == ("data", name)
    assert found.shape == tensors["t0"].shape


@pytest.mark.parametrize("totals", [True, False])
def test_all_damaged_tensors_are_named_at_once(totals: bool) -> None:
    store = RamStore(1000)
    source = BulkSource(stored(store, small()), store, totals=totals)
    store.damage("data", 10)
    store.damage("data", 2500)

    with pytest.raises(CorruptCheckpointError, match="'t0', 't2'"):
        transfer.read_new(source, list(source.specs))


def test_damage_that_only_the_checksum_of_the_file_tells_is_told() -> None:
    store = RamStore(1000)
    source = BulkSource(stored(store, small(), is_known=False), store, totals=True)
    store.damage("data", 10)

    with pytest.raises(CorruptCheckpointError, match="'t0', 't1'"):
        transfer.read_new(source, list(source.specs))


def test_damage_where_no_tensor_is_harms_none() -> None:
    tensors, store = small(), RamStore(1000)
    source = BulkSource(stored(store, tensors, header=b"head", gap=3), store, totals=True)
    store.damage("data", 2)

    found, _ = transfer.read_new(source, list(tensors))

    assert [array.tobytes() for array in found] == [tensor.tobytes() for tensor in tensors.values()]


@pytest.mark.parametrize("totals", [True, False])
def test_a_short_or_missing_file_is_refused_before_memory_is_taken(totals: bool) -> None:
    huge, store = TensorSpec("float64", (1 << 50,)), RamStore()
    store.files["data"] = bytes(100)
    source = BulkSource(FileSource({"t": huge}, {"t": [Extent(Folder(store), "data", 8)]}), store, totals=totals)

    with pytest.raises(
        CorruptCheckpointError, match=f"'ram:/data' ends at byte 100, but tensor 't' in it at byte {(8 << 50) + 8}"
    ):
        transfer.read_new(source, ["t"])
    del store.files["data"]
    with pytest.raises(CorruptCheckpointError, match="'ram:/data' is missing; tensor 't'") as caught:
        transfer.read_new(source, ["t"])

    assert (caught.value.file, caught.value.tensor) == ("data", "t")


def test_tensors_that_claim_the_same_bytes_share_no_memory() -> None:
    store = RamStore()
    store.files["data"] = bytes(range(64))
    extents = {name: [Extent(Folder(store), "data", offset)] for name, offset in (("a", 0), ("b", 8), ("c", 8))}
    source = BulkSource(FileSource({name: TensorSpec("int8", (16,)) for name in extents}, extents), store, totals=True)

    found, _ = transfer.read_new(source, ["a", "b", "c"])

    assert [array[0] for array in found] == [0, 8, 8]
    assert not any(np.shares_memory(one, other) for one, other in itertools.combinations(found, 2))


@pytest.mark.parametrize("memory", ["shared", "own", "mapped"])
def test_tensors_that_all_lie_in_the_same_bytes_take_no_memory(memory: transfer.Memory) -> None:
    store, names = RamStore(), [f"t{number}" for number in range(100)]
    store.files["data"] = bytes(1 << 20)
    spec, extents = TensorSpec("int8", (1 << 20,)), [Extent(Folder(store), "data", 0)]
    source = BulkSource(FileSource(dict.fromkeys(names, spec), dict.fromkeys(names, extents)), store, totals=True)

    text = "'ram:/data' has 1048576 bytes, and tensors that are said to lie in it 104857600: 't[0-9]+' has bytes of another"
    with mock.patch.object(slabs, "raw", None), pytest.raises(CorruptCheckpointError, match=text) as caught:
        transfer.read_new(source, names, memory=memory)

    assert caught.value.file == "data"


def test_twenty_thousand_neighbours_are_read_in_windows_and_their_header_with_them() -> None:
    tensors, store = small(20_000, size=64), RamStore(1 << 20)
    source = BulkSource(stored(store, tensors, header=bytes(1 << 20)), store, totals=True)

    transfer.read_new(source, list(tensors))

    assert len(store.reads) <= 8
    assert max(len(sizes) for _, _, sizes in store.reads) <= 2


def test_one_of_many_is_read_alone() -> None:
    tensors, store = small(1000, size=64), RamStore(1 << 20)
    source = BulkSource(stored(store, tensors, header=bytes(1000)), store, totals=True)

    transfer.read_new(source, ["t500"])

    assert store.reads == [("data", 1000 + 500 * 256, [256])]


def test_large_items_of_a_state_share_no_slab() -> None:
    shape = (1 << 18,)  # 1 MiB
    tensors = {f"{item}/{part}": np.full(shape, 1, np.float32) for item in ("model", "optimizer") for part in "ab"}
    store = RamStore(1 << 20)
    source = BulkSource(stored(store, tensors), store, totals=True)

    one, two, three, four = (array.base for array in transfer.read_new(source, list(tensors))[0])

    assert one is two
    assert three is four
    assert one is not three


def test_large_tensors_are_aligned_wherever_they_lie() -> None:
    tensors, store = small(3, size=20_000), RamStore(1 << 16)
    source = BulkSource(stored(store, tensors, header=b"odd"), store, totals=True)

    found, _ = transfer.read_new(source, list(tensors))

    assert all(array.ctypes.data % slabs.ALIGN == 0 for array in found)
    assert [array.tobytes() for array in found] == [tensor.tobytes() for tensor in tensors.values()]
