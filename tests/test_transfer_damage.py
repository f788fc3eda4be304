"""Reading what is damaged, missing or impossible, and errors in the middle of a read."""

import errno
import itertools
import re
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transfers import FileSource, RamStore, lanes, memory, stored

from ckptmgr import transfer
from ckptmgr.box import Box
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.layout import Extent
from ckptmgr.spec import TensorSpec
from ckptmgr.storage import Buffer, Folder
from ckptmgr.testing import sample
from ckptmgr.transfer import Want

windows = st.sampled_from([1, 3, 8, 16, 100, 1 << 20])


@given(st.data())
def test_a_flipped_byte_anywhere_is_found_and_named(data: st.DataObject) -> None:
    tensors = {f"t{index}": sample("float32", (index * 7 + 1,)) for index in range(4)}
    store = RamStore(data.draw(windows))
    source = stored(store, tensors, header=b"head")
    name = data.draw(st.sampled_from(list(tensors)))
    store.damage("data", source.places[name][0].offset + data.draw(st.integers(0, tensors[name].nbytes - 1)))

    with pytest.raises(CorruptCheckpointError, match=f"bytes of '{name}' are not what was written.*ram:/data") as caught:
        transfer.read(source, map(Want, tensors))

    assert (caught.value.file, caught.value.tensor) == ("data", name)


def test_all_damaged_tensors_are_named_at_once() -> None:
    tensors = {f"t{index}": sample("float32", (300,)) for index in range(4)}
    store = RamStore(1000)
    source = stored(store, tensors)
    store.damage("data", 10)
    store.damage("data", 2500)

    with pytest.raises(CorruptCheckpointError, match="'t0', 't2'"):
        transfer.read(source, map(Want, tensors))


@pytest.mark.parametrize("verify", ["fast", "off"])
def test_bytes_are_not_compared_unless_all_are_to_be(verify: transfer.Verify) -> None:
    store = RamStore()
    source = stored(store, {"t": np.zeros(4, np.int8)})
    store.damage("data", 0)

    (found,), _ = transfer.read(source, [Want("t")], verify=verify)

    assert found.tolist() == [16, 0, 0, 0]


def test_a_slice_cannot_be_compared() -> None:
    store = RamStore()
    source = stored(store, {"t": np.zeros(4, np.int8)})
    store.damage("data", 3)

    (found,), _ = transfer.read(source, [Want("t", Box((0,), (3,)))])

    assert found.tolist() == [0, 0, 0]


def test_verify_must_be_one_of_its_values() -> None:
    with pytest.raises(ValueError, match="verify must be one of"):
        transfer.read(memory({}), [], verify="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("verify", ["full", "fast", "off"])
def test_a_missing_file_is_named_with_a_tensor_in_it(verify: transfer.Verify) -> None:
    store = RamStore()
    source = stored(store, {"t": np.zeros(4, np.int8)})
    del store.files["data"]

    with pytest.raises(CorruptCheckpointError, match="'ram:/data' is missing; tensor 't'") as caught:
        transfer.read(source, [Want("t")], verify=verify)

    assert (caught.value.file, caught.value.tensor) == ("data", "t")


def test_a_short_file_is_refused_before_memory_is_taken() -> None:
    huge = TensorSpec("float64", (1 << 50,))
    store = RamStore()
    store.files["data"] = bytes(100)
    source = FileSource({"t": huge}, {"t": [Extent(Folder(store), "data", 8)]})

    with pytest.raises(CorruptCheckpointError, match="'ram:/data' ends at byte 100, but tensor 't'") as caught:
        transfer.read(source, [Want("t")])

    assert (caught.value.file, caught.value.tensor) == ("data", "t")


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), EOFError("cut")])
def test_a_file_that_is_harmed_during_the_read_is_corrupt(error: Exception) -> None:
    store = RamStore()
    source = stored(store, {"t": np.zeros(4, np.int8)})
    store.read_into = raising(error)  # type: ignore[method-assign]

    with pytest.raises(CorruptCheckpointError, match="'ram:/data'") as caught:
        transfer.read(source, [Want("t")])

    assert caught.value.__cause__ is error


def raising(error: BaseException, skip: int = 0):
    calls = itertools.count()

    def read_into(key: str, offset: int, buffers: Sequence[Buffer]) -> None:
        if next(calls) >= skip:
            raise error

    return read_into


@pytest.mark.parametrize("error", [OSError(errno.EIO, "bad sector"), PermissionError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("skip", [0, 1, 7])
def test_other_errors_come_out_as_they_are_and_leave_no_thread(error: BaseException, skip: int) -> None:
    store = RamStore(64, workers=4)
    source = stored(store, {"t": np.zeros(1000, np.int8)})
    store.read_into = raising(error, skip)  # type: ignore[method-assign]

    with pytest.raises(type(error)) as caught:
        transfer.read(source, [Want("t")])

    assert caught.value is error
    assert lanes() == []


def test_an_error_of_the_progress_callback_stops_the_read() -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    source = stored(RamStore(64, workers=4), {"t": np.zeros(1000, np.int8)})

    with pytest.raises(KeyboardInterrupt):
        transfer.read(source, [Want("t")], progress=stop)

    assert lanes() == []


def test_progress_ends_at_the_total_and_is_told_in_the_callers_thread() -> None:
    told: list[tuple[int, int]] = []
    threads: set[int] = set()

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        threads.add(threading.get_ident())

    source = stored(RamStore(64, workers=3), {"t": np.zeros(1000, np.int8)})

    _, stats = transfer.read(source, [Want("t", Box((0,), (900,)))], progress=progress)

    assert told == sorted(told)
    assert told[-1] == (900, 900)
    assert threads == {threading.get_ident()}
    assert set(stats.phases) == {"plan", "read", "checksum"}


def test_all_workers_of_a_store_read() -> None:
    meeting = threading.Barrier(3, timeout=60)

    class Slow(RamStore):
        def read_into(self, key: str, offset: int, buffers: Sequence[Buffer]) -> None:
            meeting.wait()
            super().read_into(key, offset, buffers)

    source = stored(Slow(100, workers=3), {"t": np.arange(300, dtype=np.uint16).astype(np.uint8)})

    (found,), _ = transfer.read(source, [Want("t")])

    assert found.tolist() == [index % 256 for index in range(300)]


@pytest.mark.parametrize(
    ("places", "problem"),
    [
        ([(0, Box((0,), (3,)))], "do not cover it exactly once"),
        ([(0, Box((0,), (3,))), (0, Box((2,), (4,)))], "do not cover it exactly once"),
        ([(0, Box((0,), (2,))), (0, Box((0,), (2,)))], "do not cover it exactly once"),
        ([(0, None), (0, Box((0,), (2,)))], "do not cover it exactly once"),
        ([(0, Box((0,), (5,)))], "is no slice of it"),
        ([(0, Box((0, 0), (4, 1)))], "is no slice of it"),
        ([(-1, None)], "begins before its file"),
    ],
)
def test_extents_that_make_no_tensor_are_refused(places: list[tuple[int, Box | None]], problem: str) -> None:
    store = RamStore()
    store.files["data"] = bytes(100)
    extents = [Extent(Folder(store), "data", offset, box) for offset, box in places]

    with pytest.raises(CorruptCheckpointError, match=re.escape("tensor 't' in 'ram:/data'") + ".*" + problem):
        transfer.read(FileSource({"t": TensorSpec("int8", (4,))}, {"t": extents}), [Want("t")])


def test_only_the_extents_that_are_needed_must_be_there() -> None:
    store = RamStore()
    store.files["one"] = b"\x01\x02"
    extents = [Extent(Folder(store), "one", 0, Box((0,), (2,))), Extent(Folder(store), "absent", 0, Box((2,), (4,)))]
    source = FileSource({"t": TensorSpec("int8", (4,))}, {"t": extents})

    (found,), _ = transfer.read(source, [Want("t", Box((0,), (2,)))])

    assert found.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("want", "problem"),
    [
        (Want("t", Box((0,), (5,))), "is no slice of tensor 't'"),
        (Want("t", Box((0, 0), (1, 1))), "is no slice of tensor 't'"),
        (Want("t", None, np.zeros(5, np.int8)), "out is int8 of shape"),
        (Want("t", None, np.zeros(4, np.uint8)), "out is uint8"),
        (Want("t", None, np.frombuffer(b"1234", np.int8)), "out for tensor 't' is read-only"),
    ],
)
def test_impossible_wants_are_refused(want: Want, problem: str) -> None:
    source = stored(RamStore(), {"t": np.zeros(4, np.int8)})

    with pytest.raises(ValueError, match=problem):
        transfer.read(source, [want])


def test_an_unknown_tensor_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="absent"):
        transfer.read(memory({}), [Want("absent")])
