"""Snapshots: what they hold does not change, and their memory is one state that is kept."""

import array
import mmap
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import states
from holding import PATIENCE_S

from ckptmgr import PackedArray, TensorSpec, UnsupportedLeafError, snapshot, tree
from ckptmgr.layout import Layout
from ckptmgr.saving import Plan, Prepared
from ckptmgr.snapshot import Staging


def prepared(state: Any) -> Prepared:
    return Prepared(1, Plan(tree.flatten(state), Layout(())), {}, {}, {}, False)


def taken(staging: Staging, state: Any) -> dict[str, np.ndarray]:
    return staging.take(prepared(state)).prepared.plan.flat.tensors


@pytest.fixture(params=["by one thread", "by several threads"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "by several threads":
        for name, value in {"_LARGE_NBYTES": 5, "_PIECE_NBYTES": 5}.items():
            monkeypatch.setattr(snapshot, name, value)
        monkeypatch.setattr(snapshot, "_copiers", lambda: 3)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("how", ["plain", "fortran", "strided", "reversed", "big-endian"])
@pytest.mark.parametrize("name", states.DTYPES)
def test_every_dtype_is_copied_to_the_bit(name: str, how: str) -> None:
    leaf = states.layout(states.bits(name, (3, 4), seed=1), how)
    expected = np.ascontiguousarray(leaf, leaf.dtype.newbyteorder("=")).tobytes()

    copy = taken(Staging(), {"w": leaf})["w"]
    leaf[...] = np.zeros(1, leaf.dtype)

    assert (copy.tobytes(), copy.dtype, copy.flags.c_contiguous) == (expected, leaf.dtype.newbyteorder("="), True)


def view_of(base: np.ndarray) -> tuple[np.ndarray, Callable[[], object]]:
    view = base[1:]
    view.flags.writeable = False
    return view, lambda: base.fill(9)


def buffer_of(make: Callable[[bytes], Any]) -> tuple[Any, Callable[[], object]]:
    leaf = make(b"abcdefgh")
    return leaf, lambda: leaf.__setitem__(slice(0, 8), make(b"xxxxxxxx"))


def mapped() -> tuple[Any, Callable[[], object]]:
    leaf = mmap.mmap(-1, 8)
    leaf[:] = b"abcdefgh"
    return leaf, lambda: leaf.__setitem__(slice(0, 8), b"xxxxxxxx")


def packed() -> tuple[Any, Callable[[], object]]:
    raw = np.arange(6, dtype=np.uint8)
    return PackedArray.wrap(raw, TensorSpec("packed_float4_e2m1fn", (3, 4))), lambda: raw.fill(9)


def broadcast() -> tuple[Any, Callable[[], object]]:
    base = np.arange(4)
    return np.broadcast_to(base, (3, 4)), lambda: base.fill(9)


CHANGING: dict[str, Callable[[], tuple[Any, Callable[[], object]]]] = {
    "read-only view": lambda: view_of(np.arange(5.0)),
    "0-d": lambda: (leaf := np.array(3, np.int8), lambda: leaf.fill(9)),
    "bytearray": lambda: buffer_of(bytearray),
    "memoryview": lambda: (memoryview(raw := bytearray(b"abc")), lambda: raw.__setitem__(0, 0)),
    "array.array": lambda: buffer_of(lambda data: array.array("B", data)),
    "mmap": mapped,
    "packed": packed,
    "broadcast": broadcast,
}


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("kind", CHANGING)
def test_whatever_memory_a_leaf_is_of_it_is_copied(kind: str) -> None:
    leaf, change = CHANGING[kind]()
    expected = np.array(leaf)

    copy = taken(Staging(), [leaf])["0"]
    change()

    assert not np.array_equal(np.asarray(leaf), expected)
    assert np.array_equal(copy, expected)


def test_one_large_tensor_is_shared_by_threads_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[tuple[int, int]] = []
    copy_each = snapshot._copy_each

    def meeting(pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
        for pair in pairs:
            copied.append((threading.get_ident(), len(pair[0])))
            met.wait(PATIENCE_S)  # so neither can take both
            copy_each(iter([pair]))

    met = threading.Barrier(2)
    monkeypatch.setattr(snapshot, "_copy_each", meeting)
    monkeypatch.setattr(snapshot, "_copiers", lambda: 2)
    leaf = np.arange((32 << 20) // 8).reshape(-1, 1 << 12)

    assert np.array_equal(taken(Staging(), {"w": leaf})["w"], leaf)

    assert [rows for _, rows in copied] == [512, 512]
    assert len({thread for thread, _ in copied}) == 2


def test_a_snapshot_refers_to_nothing_of_the_state() -> None:
    state = {"w": np.zeros(3), "text": np.array(["a", "b"]), "raw": bytearray(b"abc")}

    held = Staging().take(prepared(state)).prepared.plan.flat

    assert not any(np.shares_memory(np.asarray(leaf), held.tensors[name]) for name, leaf in state.items() if name != "text")
    assert (set(held.tensors), held.strings) == ({"w", "raw"}, {"text": [b"a", b"b"]})
    state["raw"].extend(b"grows only if nothing looks at its memory")


def test_memory_is_one_state_and_the_same_every_time() -> None:
    staging, state = Staging(), {"a": np.zeros((1 << 20) // 8), "b": np.zeros((3, 1 << 18), ml_dtypes.bfloat16)}

    addresses = [{name: copy.ctypes.data for name, copy in taken(staging, state).items()} for _ in range(3)]

    assert addresses[0] == addresses[1] == addresses[2]
    assert staging.nbytes == sum(leaf.nbytes for leaf in state.values())


def test_a_larger_state_gets_larger_memory_and_a_smaller_one_the_same() -> None:
    staging = Staging()

    sizes = [(taken(staging, {"w": np.ones(size)})["w"].sum(), staging.nbytes) for size in (1 << 10, 1 << 12, 1 << 8)]

    assert sizes == [(1 << 10, 1 << 13), (1 << 12, 1 << 15), (1 << 8, 1 << 15)]


def test_released_memory_is_gone() -> None:
    staging = Staging()
    taken(staging, {"w": np.ones(1000)})

    staging.release()

    assert staging.nbytes == 0
    assert taken(staging, {"w": np.ones(3)})["w"].tolist() == [1, 1, 1]


def test_no_room_for_a_copy_is_told_before_memory_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "free_nbytes", lambda: 7999)

    with pytest.raises(MemoryError, match=r"8000 bytes.* 7999 .*save with the manager itself"):
        taken(Staging(), {"w": np.ones(1000)})


def test_free_memory_is_that_of_the_system_with_swap(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  99 kB\nMemAvailable:   5 kB\nSwapFree:    2 kB\nHugePages_Total:   0\n")
    monkeypatch.setattr(snapshot, "_MEMINFO", tmp_path / "meminfo")
    assert snapshot.free_nbytes() == 7 * 1024

    monkeypatch.setattr(snapshot, "_MEMINFO", tmp_path / "none")
    assert snapshot.free_nbytes() is None


def test_a_failed_copy_leaves_the_memory_usable() -> None:
    class Broken:
        spec_calls = 0

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            Broken.spec_calls += 1
            if Broken.spec_calls > 1:
                raise ValueError("gone")
            return np.zeros(3)

    staging = Staging()
    with pytest.raises(UnsupportedLeafError, match="gone"):
        taken(staging, {"a": np.ones(3), "broken": Broken()})

    assert taken(staging, {"a": np.ones(3)})["a"].tolist() == [1, 1, 1]
