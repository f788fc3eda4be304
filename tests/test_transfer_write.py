"""Writing a layout: the bytes, their digests, how the store sees them, and what is left when it goes wrong."""

import errno
import json
import threading
import tracemalloc
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transfers import Array, RamStore, arrays, boxes, lanes, layout, memory, raw

from ckptmgr import transfer
from ckptmgr.box import Box
from ckptmgr.checksum import crc32c
from ckptmgr.errors import SaveError
from ckptmgr.layout import FileLayout, Late, Layout, Part
from ckptmgr.memory import MemorySource
from ckptmgr.spec import TensorSpec, numpy_dtype
from ckptmgr.storage import Buffer, Folder, PosixStore, Stored
from ckptmgr.testing import sample
from ckptmgr.testing.samples import spec_of

windows = st.sampled_from([1, 3, 8, 16, 100, 1 << 20])


@given(st.lists(arrays(), max_size=4), st.binary(max_size=40), windows)
def test_files_hold_every_dtype_and_memory_as_raw_little_endian_bytes(
    pairs: list[tuple[Array, Array]], header: bytes, window: int
) -> None:
    store = RamStore(window)
    tensors = {f"t{index}": given for index, (_, given) in enumerate(pairs)}
    expected = [header, *(base.tobytes() for base, _ in pairs)]

    written = transfer.write(Folder(store), layout(tensors, header=header), memory(tensors))

    assert store.files["data"] == b"".join(expected)
    assert written.files["data"] == (len(b"".join(expected)), crc32c(b"".join(expected)))
    assert written.digests["data"] == {"crc32c": [crc32c(piece) for piece in expected]}


@given(st.data(), windows)
def test_a_part_is_a_slice_of_its_tensor(data: st.DataObject, window: int) -> None:
    base, given = data.draw(arrays())
    cut = data.draw(boxes(base.shape))
    store = RamStore(window)
    plan = Layout((FileLayout("data", (Part("t", spec_of(base), cut),)),))

    transfer.write(Folder(store), plan, memory({"t": given}))

    assert store.files["data"] == base[(*cut.slices, ...)].tobytes()


@given(st.lists(st.binary(max_size=200_000), max_size=3), windows.filter(lambda size: size > 50))
def test_checksums_are_right_on_both_sides_of_combining(contents: list[bytes], window: int) -> None:
    store = RamStore(window)
    tensors = {f"t{index}": np.frombuffer(content, np.uint8) for index, content in enumerate(contents)}

    written = transfer.write(Folder(store), layout(tensors), memory(tensors))

    assert written.files["data"].crc32c == crc32c(b"".join(contents))
    assert written.digests["data"]["crc32c"][1:] == [crc32c(content) for content in contents]


def test_broadcast_tensors_are_written_in_full() -> None:
    store = RamStore(16)
    tensor = np.broadcast_to(np.arange(3, dtype=np.int16), (4, 3))

    transfer.write(Folder(store), layout({"t": tensor}), memory({"t": tensor}))

    assert store.files["data"] == np.arange(3, dtype="<i2").tobytes() * 4


def test_packed_tensors_larger_than_a_window_are_written() -> None:
    store = RamStore(100)
    tensor = sample("packed_float4_e2m1fn", (2, 1000))

    written = transfer.write(Folder(store), layout({"t": tensor}), memory({"t": tensor}))

    assert store.files["data"] == tensor.tobytes()
    assert written.digests["data"]["crc32c"][1] == crc32c(tensor.tobytes())


def test_files_without_bytes_appear() -> None:
    store = RamStore()
    empty = np.zeros((3, 0), np.float32)

    written = transfer.write(Folder(store), layout({"t": empty}), memory({"t": empty}))

    assert store.files == {"data": b""}
    assert written.files == {"data": (0, 0)}
    assert written.digests == {"data": {"crc32c": [0, 0]}}


def test_a_layout_without_files_writes_nothing() -> None:
    written = transfer.write(Folder(RamStore()), Layout(()), memory({}))

    assert (written.files, written.stats.nbytes) == ({}, 0)


class Witness(RamStore):
    """Keeps the buffers themselves."""

    def put(self, key: str, windows: Iterable[Sequence[Buffer]], nbytes: int) -> Stored:
        self.seen = [list(window) for window in windows]
        return Stored(nbytes)


def test_contiguous_tensors_reach_the_store_without_a_copy() -> None:
    store = Witness(4096)
    tensors = {"large": sample("bfloat16", (100, 100)), "small": sample("float32", (3,)), "scalar": sample("float64", ())}

    transfer.write(Folder(store), layout(tensors), memory(tensors))

    buffers = [raw(buffer) for window in store.seen for buffer in window]
    assert sum(map(len, buffers)) == sum(tensor.nbytes for tensor in tensors.values())
    assert all(any(np.shares_memory(buffer, tensor) for tensor in tensors.values()) for buffer in buffers)


def test_no_window_is_larger_than_the_store_likes() -> None:
    store = RamStore(1000)
    tensors = {f"t{size}": np.zeros((size, 7), np.float32) for size in (1, 10, 100, 1000)}

    transfer.write(Folder(store), layout(tensors, header=b"x" * 3333), memory(tensors))

    assert max(map(sum, store.windows["data"])) <= 1000


def test_small_tensors_share_windows() -> None:
    store = RamStore(1 << 20)
    tensors = {f"t{index}": np.full(index % 1000 + 1, index, np.float32) for index in range(5000)}

    transfer.write(Folder(store), layout(tensors), memory(tensors))

    assert len(store.windows["data"]) <= len(store.files["data"]) / (1 << 20) + 2


def test_a_window_has_no_more_buffers_than_one_system_call_takes() -> None:
    store = RamStore(1 << 20)
    tensors = {f"t{index}": np.int8([index % 100]) for index in range(3000)}

    transfer.write(Folder(store), layout(tensors), memory(tensors))

    assert [len(window) for window in store.windows["data"]] == [1024, 1024, 952]


class Asked(MemorySource):
    """Remembers how many bytes each read gave, and copies them, as from a device."""

    sizes: list[int]

    def read(self, name: str, box: Box | None = None, out: Array | None = None) -> Array:
        array = super().read(name, box).copy()
        self.sizes.append(array.nbytes)
        return array


def test_a_source_is_asked_for_at_most_a_window_at_a_time() -> None:
    tensor = np.arange(10_000, dtype=np.int32).reshape(10, 10, 100)
    source = Asked({"t": tensor}, {"t": spec_of(tensor)})
    source.sizes = []
    store = RamStore(1000)

    transfer.write(Folder(store), layout({"t": tensor}), source)

    assert store.files["data"] == tensor.tobytes()
    assert max(source.sizes) <= 1000
    assert len(source.sizes) <= 2 * tensor.nbytes / 1000


def test_tensors_that_must_be_copied_take_a_few_windows_of_memory(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    store.window_nbytes = 1 << 20
    tensor = np.asfortranarray(np.arange(8 << 20, dtype=np.float64).reshape(2048, 4096))
    plan, source = layout({"t": tensor}), memory({"t": tensor})

    tracemalloc.start()
    transfer.write(Folder(store), plan, source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 8 << 20


def zip_like(digests: Any) -> bytes:
    return b"".join(crc.to_bytes(4, "little") for crc in digests["archive"]["crc32"])


def test_a_late_directory_gets_the_second_digest_of_the_pieces_before_it() -> None:
    store = RamStore(64)
    one, two = sample("float32", (50,)), sample("int8", (3, 5))
    pieces = (b"header", Part("one", spec_of(one)), b"more", Part("two", spec_of(two)), Late(16, zip_like), b"end")
    plan = Layout((FileLayout("archive", pieces),), frozenset({"crc32c", "crc32"}))

    written = transfer.write(Folder(store), plan, memory({"one": one, "two": two}))

    directory = b"".join(zlib.crc32(data).to_bytes(4, "little") for data in (b"header", one.tobytes(), b"more", two.tobytes()))
    whole = b"header" + one.tobytes() + b"more" + two.tobytes() + directory + b"end"
    assert store.files["archive"] == whole
    assert written.files["archive"].crc32c == crc32c(whole)
    assert written.digests["archive"]["crc32c"][4] == crc32c(directory)
    assert written.digests["archive"]["crc32"][4] == zlib.crc32(directory)


def test_a_late_index_gets_the_digests_of_all_files_before_it_and_tells_its_size_itself() -> None:
    tensors = {"one": sample("float32", (50,)), "two": sample("int8", (3, 5))}
    shards = [FileLayout(f"shard-{name}", (Part(name, spec_of(array)),)) for name, array in tensors.items()]
    index = FileLayout("index", (Late(None, lambda digests: json.dumps(digests).encode()),))
    store = RamStore(64)
    told: list[tuple[int, int]] = []

    written = transfer.write(Folder(store), Layout((*shards, index)), memory(tensors), progress=lambda *done: told.append(done))

    found = json.loads(store.files["index"])
    assert found["shard-one"] == {"crc32c": [crc32c(tensors["one"].tobytes())]}
    assert found["shard-two"] == {"crc32c": [crc32c(tensors["two"].tobytes())]}
    assert written.files["index"] == (len(store.files["index"]), crc32c(store.files["index"]))
    assert told[-1] == (sum(map(len, store.files.values())),) * 2


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Layout((FileLayout("f", (Late(3, lambda digests: b"four"),)),)), "announced with 3 bytes and has 4"),
        (
            Layout(
                (
                    FileLayout(
                        "f",
                        (b"x", Late(None, lambda digests: b"")),
                    ),
                )
            ),
            "late piece of unknown size among others",
        ),
        (Layout((FileLayout("f", (Part("t", TensorSpec("string", (2,))),)),)), "string tensor 't' has no raw bytes"),
        (Layout((), frozenset({"crc32c", "md5"})), "md5"),
    ],
)
def test_a_layout_that_is_wrong_in_itself_is_refused(plan: Layout, message: str) -> None:
    store = RamStore()

    with pytest.raises(ValueError, match=message):
        transfer.write(Folder(store), plan, memory({}))

    assert store.files == {}
    assert lanes() == []


@pytest.mark.parametrize("found", [np.zeros(5, np.float32), np.zeros(4, np.float64), np.zeros((2, 2), np.float32)])
@pytest.mark.parametrize("window", [4, 1000])
def test_a_tensor_that_is_not_as_announced_is_named_and_nothing_appears(found: Array, window: int) -> None:
    class Liar(MemorySource):
        def read(self, name: str, box: Box | None = None, out: Array | None = None) -> Array:
            return found

    store = RamStore(window)
    good = np.zeros(4, np.float32)

    with pytest.raises(SaveError, match=r"tensor 'w' was announced as float32 of shape \(4,\)"):
        transfer.write(Folder(store), layout({"w": good}), Liar({}, {"w": spec_of(good)}))

    assert store.files == {}


def tensors_of_ten_windows() -> dict[str, Array]:
    return {f"t{index}": sample("float32", (1024,), seed=index) for index in range(10)}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), RuntimeError("device lost")])
def test_an_error_of_the_source_leaves_no_file_and_no_thread(tmp_path: Path, error: BaseException) -> None:
    class Failing(MemorySource):
        def read(self, name: str, box: Box | None = None, out: Array | None = None) -> Array:
            if name == "t6":
                raise error
            return super().read(name, box, out)

    tensors = tensors_of_ten_windows()
    store = PosixStore(tmp_path)
    store.window_nbytes = 4096

    with pytest.raises(type(error)) as caught:
        transfer.write(Folder(store), layout(tensors), Failing(tensors, memory(tensors).specs))

    assert caught.value is error
    assert list(store.list("").files) == []
    assert list(store.uploads("")) == []
    assert lanes() == []


@pytest.mark.parametrize(("window_nbytes", "threads"), [(40_960, 0), (40_959, 1)])
def test_what_fits_into_one_window_needs_no_thread(window_nbytes: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(thread) or start(thread))
    tensors = tensors_of_ten_windows()

    transfer.write(Folder(RamStore(window_nbytes)), layout(tensors), memory(tensors))

    assert len(started) == threads


@pytest.mark.parametrize("error", [OSError(errno.EIO, "bad"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [0, 1, 5, 9])
def test_an_error_of_the_store_comes_out_as_it_is(error: BaseException, at: int) -> None:
    class Failing(RamStore):
        def put(self, key: str, windows: Iterable[Sequence[Buffer]], nbytes: int) -> Stored:
            for number, _ in enumerate(windows):
                if number == at:
                    raise error
            raise AssertionError("the store was to fail")

    tensors = tensors_of_ten_windows()

    with pytest.raises(type(error)) as caught:
        transfer.write(Folder(Failing(4096)), layout(tensors), memory(tensors))

    assert caught.value is error
    assert lanes() == []


def test_an_error_of_the_progress_callback_stops_the_write() -> None:
    def stop(done: int, total: int) -> None:
        raise InterruptedError("enough")

    tensors = tensors_of_ten_windows()
    store = RamStore(4096)

    with pytest.raises(InterruptedError):
        transfer.write(Folder(store), layout(tensors), memory(tensors), progress=stop)

    assert store.files == {}
    assert lanes() == []


def test_progress_goes_up_to_the_total_in_the_callers_thread() -> None:
    told: list[tuple[int, int]] = []
    threads: set[int] = set()

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        threads.add(threading.get_ident())

    tensors = tensors_of_ten_windows()

    written = transfer.write(Folder(RamStore(4096)), layout(tensors), memory(tensors), progress=progress)

    assert told == sorted(told)
    assert len(told) >= 10
    assert told[-1] == (40960, 40960)
    assert threads == {threading.get_ident()}
    assert written.stats.nbytes == 40960
    assert set(written.stats.phases) == {"stage", "write", "checksum"}


def test_a_real_file_is_written_and_known_by_its_checksum(tmp_path: Path) -> None:
    folder = Folder(PosixStore(tmp_path), "a/")
    tensors = {"large": sample("float32", (1 << 21,)), "small": sample("bfloat16", (3, 3))}

    written = transfer.write(folder, layout(tensors, header=b"head"), memory(tensors))

    content = (tmp_path / "a" / "data").read_bytes()
    assert content == b"head" + tensors["large"].tobytes() + tensors["small"].tobytes()
    assert written.files["data"] == (len(content), crc32c(content))


@pytest.mark.parametrize(("dtype", "dirty", "clean"), [("bool", [2, 0, 255], [1, 0, 1]), ("int4", [0xF9, 0x07], [0x09, 0x07])])
def test_bits_that_mean_nothing_are_stored_as_zero(dtype: str, dirty: list[int], clean: list[int]) -> None:
    array = np.array(dirty, np.uint8).view(numpy_dtype(dtype))
    store = RamStore()
    spec = TensorSpec(dtype, array.shape)

    transfer.write(Folder(store), Layout((FileLayout("f", (Part("w", spec),)),)), MemorySource({"w": array}, {"w": spec}))

    assert [*store.files["f"]] == clean
