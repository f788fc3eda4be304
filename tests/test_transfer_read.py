"""Reading tensors from where they lie: the bytes, the requests, the memory, and what is damaged or missing."""

import itertools
import subprocess
import sys
import tracemalloc
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transfers import Array, FileSource, RamStore, arrays, awkward, boxes, layout, memory, stored

from ckptmgr import transfer
from ckptmgr.box import Box
from ckptmgr.checksum import crc32c
from ckptmgr.layout import Extent
from ckptmgr.memory import MemorySource
from ckptmgr.spec import PackedArray, TensorSpec
from ckptmgr.storage import Folder, PosixStore
from ckptmgr.testing import sample
from ckptmgr.testing.samples import spec_of
from ckptmgr.transfer import Want, planning, slabs

windows = st.sampled_from([1, 3, 8, 16, 100, 1 << 20])


def identical(found: Array, expected: Array) -> bool:
    return (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


@given(st.lists(arrays(), max_size=5), st.binary(max_size=9), st.integers(0, 5), windows)
def test_every_dtype_and_shape_comes_back_from_any_offset(
    pairs: list[tuple[Array, Array]], header: bytes, gap: int, window: int
) -> None:
    tensors = {f"t{index}": base for index, (base, _) in enumerate(pairs)}
    source = stored(RamStore(window), tensors, header=header, gap=gap)

    found, stats = transfer.read(source, map(Want, tensors))

    assert all(identical(array, tensor) for array, tensor in zip(found, tensors.values(), strict=True))
    assert stats.nbytes == sum(tensor.nbytes for tensor in tensors.values())


@given(st.data(), windows, st.sampled_from([0, 1, 9, 1 << 16]))
def test_any_slice_comes_back(data: st.DataObject, window: int, gap: int) -> None:
    base, _ = data.draw(arrays())
    box = data.draw(boxes(base.shape))
    source = stored(RamStore(window), {"before": np.arange(3, dtype=np.int8), "t": base})

    with mock.patch.object(planning, "GAP_NBYTES", gap):
        found, _ = transfer.read(source, [Want("t", box)])

    assert identical(found[0], np.array(base[(*box.slices, ...)], order="C"))


@given(arrays(), windows)
def test_out_of_any_memory_is_filled_and_given_back(pair: tuple[Array, Array], window: int) -> None:
    base, other = pair
    source = stored(RamStore(window), {"t": base})
    out = other.copy(order="K") if other.flags.writeable else np.array(other)
    out[...] = np.zeros_like(base)

    found, _ = transfer.read(source, [Want("t", None, out)])

    assert found[0] is out
    assert np.array(out).astype(base.dtype, order="C").tobytes() == base.tobytes()


@given(st.data(), windows, st.sampled_from([0, 9, 1 << 16]))
def test_several_slices_in_several_files_make_one_tensor(data: st.DataObject, window: int, gap: int) -> None:
    base, _ = data.draw(arrays())
    cuts = [sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=2))}) for size in base.shape]
    pieces = (
        [Box(*zip(*ends, strict=True)) for ends in itertools.product(*map(itertools.pairwise, cuts))] if cuts else [Box((), ())]
    )
    store = RamStore(window)
    extents = []
    for number, piece in enumerate(data.draw(st.permutations(pieces))):
        content = base[(*piece.slices, ...)].tobytes()
        store.files[f"file{number % 3}"] = store.files.get(f"file{number % 3}", b"odd") + content
        offset = len(store.files[f"file{number % 3}"]) - len(content)
        extents.append(Extent(Folder(store), f"file{number % 3}", offset, piece, crc32c(content)))
    box = data.draw(st.none() | boxes(base.shape))

    with mock.patch.object(planning, "GAP_NBYTES", gap):
        found, _ = transfer.read(FileSource({"t": spec_of(base)}, {"t": extents}), [Want("t", box)])

    expected = base if box is None else np.array(base[(*box.slices, ...)], order="C")
    assert identical(found[0], expected)


def test_packed_tensors_come_back_with_their_spec() -> None:
    tensor = sample("packed_float4_e2m1fn", (2, 1000))
    source = stored(RamStore(100), {"t": tensor})

    (found,), _ = transfer.read(source, [Want("t")])

    assert isinstance(found, PackedArray)
    assert (found.spec, found.tobytes()) == (TensorSpec("packed_float4_e2m1fn", (2, 1000)), tensor.tobytes())


def test_one_tensor_may_be_wanted_several_times() -> None:
    tensor = np.arange(10, dtype=np.int16)
    source = stored(RamStore(), {"t": tensor})

    found, _ = transfer.read(source, [Want("t", Box((0,), (7,))), Want("t"), Want("t", Box((5,), (10,)))])

    assert [array.tolist() for array in found] == [[0, 1, 2, 3, 4, 5, 6], list(range(10)), [5, 6, 7, 8, 9]]


def test_new_arrays_are_aligned_writable_and_keep_little_else_alive() -> None:
    tensors = {f"t{size}": sample("float32", (size,)) for size in (1, 3, 1000, 5 << 20, 5 << 20)}
    tensors |= {f"u{size}": sample("float32", (size,)) for size in (7, 13 << 20)}

    found, _ = transfer.read(stored(RamStore(), tensors), map(Want, tensors))

    assert all(array.ctypes.data % 64 == 0 and array.flags.c_contiguous and array.flags.writeable for array in found)
    assert max(array.base.nbytes for array in found if array.base is not None) <= 64 << 20


@given(st.lists(st.integers(1, 70), min_size=1, max_size=5))
def test_small_new_arrays_are_aligned_too(sizes: list[int]) -> None:
    tensors = {f"t{index}": np.ones(size, np.int8) for index, size in enumerate(sizes)}

    found, _ = transfer.read(stored(RamStore(), tensors), map(Want, tensors))

    assert all(array.ctypes.data % 64 == 0 for array in found)


def test_new_memory_is_not_shared_with_forked_children() -> None:
    script = """if True:
        import os
        from ckptmgr.transfer import slabs
        (array,) = slabs.fresh([((1 << 21,), "uint8", 1 << 21)])
        array[:] = 1
        if os.fork() == 0:
            array[:] = 2
            os._exit(0)
        os.wait()
        raise SystemExit(int(array.max() - 1))
    """
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("nbytes", [1, 1 << 20, (2 << 20) + 1, (20 << 20) + 1, 64 << 20])
def test_new_memory_has_the_size_that_was_asked_for(nbytes: int) -> None:
    memory = slabs.raw(nbytes)

    memory[[0, -1]] = 1

    assert memory.nbytes == nbytes
    assert memory.ctypes.data % slabs.ALIGN == 0
    assert memory.flags.writeable


def test_neighbours_are_read_by_one_request_through_small_gaps() -> None:
    store = RamStore(1 << 20)
    tensors = {f"t{index}": np.full(10, index, np.int8) for index in range(4)}
    source = stored(store, tensors, gap=100)

    transfer.read(source, [Want("t3"), Want("t0"), Want("t1")])

    assert store.reads == [("data", 0, [10, 100, 10, 210, 10])]


def test_large_gaps_are_not_read() -> None:
    store = RamStore(1 << 20)
    tensors = {f"t{index}": np.full(10, index, np.int8) for index in range(3)}
    source = stored(store, tensors, gap=70_000)

    transfer.read(source, map(Want, tensors))

    assert sorted(store.reads) == [("data", offset, [10]) for offset in (0, 70_010, 140_020)]


def test_rows_of_a_tensor_are_read_without_the_others() -> None:
    store = RamStore(1 << 20)
    source = stored(store, {"t": np.arange(100_000, dtype=np.int32).reshape(100, 1000)})

    (found,), _ = transfer.read(source, [Want("t", Box((10, 0), (12, 1000)))])

    assert found[0, 0] == 10_000
    assert store.reads == [("data", 40_000, [8000])]


def test_columns_of_a_tensor_with_long_rows_are_read_without_the_others() -> None:
    store = RamStore(1 << 20)
    source = stored(store, {"t": np.arange(80_000, dtype=np.int32).reshape(4, 20_000)})

    (found,), _ = transfer.read(source, [Want("t", Box((1, 5), (3, 7)))])

    assert found.tolist() == [[20_005, 20_006], [40_005, 40_006]]
    assert sorted(store.reads) == [("data", 80_020, [8]), ("data", 160_020, [8])]


def test_many_small_tensors_take_few_requests() -> None:
    store = RamStore(1 << 20)
    tensors = {f"t{index}": np.full(200, index, np.float32) for index in range(5000)}

    found, _ = transfer.read(stored(store, tensors), map(Want, tensors))

    assert all(array[0] == index for index, array in enumerate(found))
    assert len(store.reads) <= 4_000_000 / (1 << 20) + 2


@pytest.mark.parametrize("gap", [0, 1])
def test_a_request_has_no_more_buffers_than_one_system_call_takes(gap: int) -> None:
    store = RamStore(1 << 20)
    tensors = {f"t{index}": np.int8([index % 100]) for index in range(3000)}

    found, _ = transfer.read(stored(store, tensors, gap=gap), map(Want, tensors))

    assert [array[0] for array in found] == [index % 100 for index in range(3000)]
    assert max(len(sizes) for _, _, sizes in store.reads) in (1023, 1024)


def test_reading_into_arrays_takes_a_few_windows_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    take = slabs.raw
    monkeypatch.setattr(slabs, "raw", lambda nbytes: (taken.append(nbytes), take(nbytes))[1])
    store = PosixStore(tmp_path)
    store.window_nbytes = 1 << 20
    tensor = np.zeros((1 << 14, 1 << 10), np.float32)
    written = transfer.write(Folder(store), layout({"t": tensor}), memory({"t": tensor}))
    checksum = written.digests["data"]["crc32c"][1]
    columns = [Want("t", Box((0, at), (1 << 14, at + 256)), np.ones((1 << 14, 256), np.float32)) for at in range(0, 1024, 256)]
    source = FileSource({"t": spec_of(tensor)}, {"t": [Extent(Folder(store), "data", 0, None, checksum)]})

    tracemalloc.start()
    transfer.read(source, [Want("t", None, tensor), *columns])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak + sum(taken) < 8 << 20
    assert not any(want.out.any() for want in columns if want.out is not None)


def test_what_has_no_extents_is_read_by_the_source_into_memory_of_its_own() -> None:
    held = {
        "decoded": sample("float32", (3, 4)),
        "text": sample("string", (2,)),
        "big": awkward(sample("int32", (5,)), "big-endian"),
    }
    source = FileSource({name: spec_of(array) for name, array in held.items()}, {}, held)

    found, stats = transfer.read(source, [Want("decoded"), Want("text"), Want("big"), Want("decoded", Box((1, 1), (2, 3)))])

    assert identical(found[0], held["decoded"])
    assert not np.shares_memory(found[0], held["decoded"])
    assert found[1].tolist() == held["text"].tolist()
    assert found[2].tolist() == held["big"].tolist()
    assert identical(found[3], held["decoded"][1:2, 1:3].copy())
    assert stats.nbytes == 48 + 20 + 8


def test_empty_tensors_need_no_file() -> None:
    spec = TensorSpec("float32", (3, 0))
    source = FileSource({"t": spec}, {"t": [Extent(Folder(RamStore()), "absent", 10)]})

    (found,), _ = transfer.read(source, [Want("t")])

    assert identical(found, np.zeros((3, 0), np.float32))


def test_thousands_of_slices_are_not_compared_pair_by_pair() -> None:
    whole = np.zeros((4000, 2), np.int16)
    rows = [Extent(Folder(RamStore()), "f", 4 * i, Box((i, 0), (i + 1, 2)), None) for i in range(4000)]

    with mock.patch.object(Box, "overlap", autospec=True, side_effect=Box.overlap) as compared:
        needed = planning.Goal(memory({"w": whole}), Want("w")).needed(rows)

    assert len(needed) == 4000
    assert compared.call_count < 10_000


@given(st.lists(boxes((4, 5)), min_size=2, max_size=5))
def test_slices_overlap_if_any_two_share_an_element(slices: list[Box]) -> None:
    held = [box for box in slices if box.size]

    assert planning._overlap(held) == any(one.overlap(other) for one, other in itertools.combinations(held, 2))


def test_a_slice_of_a_string_tensor_is_read_by_the_source() -> None:
    values = np.array([b"a", b"bc", b""], object)
    source = MemorySource({"s": values}, {"s": TensorSpec("string", (3,))})

    read, stats = transfer.read(source, [Want("s", Box((1,), (3,)))])

    assert read[0].tolist() == [b"bc", b""]
    assert stats.nbytes == 0


def test_a_file_is_opened_once_for_all_its_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PosixStore(tmp_path)
    store.window_nbytes, store.workers = 1 << 16, 1
    tensor = np.arange(1 << 18, dtype=np.float32)
    transfer.write(Folder(store), layout({"t": tensor}), memory({"t": tensor}))
    source = FileSource({"t": spec_of(tensor)}, {"t": [Extent(Folder(store), "data", 0, None, None)]})
    opened: list[str] = []
    open_ = PosixStore._open
    monkeypatch.setattr(PosixStore, "_open", lambda self, key: (opened.append(key), open_(self, key))[1])

    (found,), _ = transfer.read(source, [Want("t")])

    assert found.tobytes() == tensor.tobytes()
    assert opened == ["data"]


@pytest.mark.parametrize("size", [1, 4095, 4097, (1 << 20) - 1, 1 << 20, (5 << 19) + 3])
@pytest.mark.parametrize("shift", [0, 16])
def test_given_memory_of_any_size_and_place_is_filled(size: int, shift: int) -> None:
    content = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    out = slabs.raw(size + shift)[shift:]
    source = stored(RamStore(1 << 20), {"t": content}, header=b"odd")

    transfer.read(source, [Want("t", None, out)])

    assert out.tobytes() == content.tobytes()
