"""Whose memory restored arrays have: slabs that neighbours share, memory of their own, or the files themselves."""

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import ckptmgr
from ckptmgr import CheckpointManager, CorruptCheckpointError
from ckptmgr.storage import Folder, PosixStore, mapping, vectored

STATE = {
    "model": {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(3, ml_dtypes.bfloat16), "n": np.array(7)},
    "text": np.array(["a", "bc"]),
    "empty": np.zeros((0, 3)),
    "step": 3,
}


def same(found: dict) -> bool:
    for name, array in STATE["model"].items():
        other = found["model"][name]
        assert (other.dtype, other.shape, other.tobytes()) == (array.dtype, array.shape, array.tobytes())
    return found["step"] == 3 and found["text"].tolist() == ["a", "bc"] and found["empty"].shape == (0, 3)


@pytest.mark.parametrize("backend", ["hdf5", "tf_bundle"])
@pytest.mark.parametrize("how", [{}, {"copy": True}, {"mmap": True}])
def test_a_state_is_the_same_in_any_memory_and_its_arrays_are_writable(tmp_path: Path, backend: str, how: dict) -> None:
    manager = CheckpointManager(tmp_path, backend=backend)
    manager.save(1, STATE)

    found = manager.restore(1, **how).state

    assert same(found)
    for array in found["model"].values():
        assert array.flags.writeable
        assert array.flags.aligned
        array[...] = 0
    assert same(manager.restore(1).state)
    assert manager.verify(1).ok


def test_a_map_reads_nothing_and_keeps_what_it_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    ckptmgr.save(path, {"w": np.arange(1 << 18, dtype=np.float32)})
    read: list[int] = []
    read_all = vectored.read
    monkeypatch.setattr(
        vectored, "read", lambda fd, buffers, at: (read.append(vectored.total(buffers)), read_all(fd, buffers, at))[1]
    )

    found = ckptmgr.load(path, mmap=True)["w"]

    assert sum(read) < 200_000  # the header
    ckptmgr.save(path, {"w": np.zeros(1 << 18, np.float32)})
    assert found.tolist() == list(range(1 << 18))


def test_a_tensor_that_is_not_aligned_in_its_file_is_read_and_not_mapped(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    text = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}'
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\1" + np.array([1, 2], np.float32).tobytes())

    found = ckptmgr.load(path, mmap=True)

    assert found["b"].flags.aligned
    assert (found["a"].tolist(), found["b"].tolist()) == ([1], [1, 2])


def test_a_file_that_was_cut_off_is_not_mapped(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    manager.save(1, {"w": np.ones(1000)})
    os.truncate(Path(manager.path(1)) / "model.safetensors", 5000)

    with pytest.raises(CorruptCheckpointError, match="ends at byte 5000, but tensor 'w'"):
        manager.restore(1, mmap=True)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_a_network_mount_is_not_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    device = os.stat(tmp_path).st_dev
    mounts = tmp_path / "mounts"
    mounts.write_text(f"1 0 {os.major(device)}:{os.minor(device)} / /there rw shared:1 - {kind} server rw\n")
    monkeypatch.setattr(mapping, "_MOUNTS", str(mounts))
    manager = CheckpointManager(tmp_path / "run")
    manager.save(1, {"w": np.ones(10)})

    with pytest.raises(ValueError, match=f"not on a local disk, but on {kind}; leave out mmap=True"):
        manager.restore(1, mmap=True)


@pytest.mark.parametrize("how", [{"copy": True}, {"into": {"w": np.zeros(10)}}])
def test_a_map_goes_with_neither_a_template_nor_a_copy(tmp_path: Path, how: dict) -> None:
    ckptmgr.save(tmp_path / "m.safetensors", {"w": np.ones(10)})

    with pytest.raises(ValueError, match=f"leave out {next(iter(how))}="):
        ckptmgr.load(tmp_path / "m.safetensors", mmap=True, **how)


def test_copies_share_no_memory_and_neighbours_do(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    ckptmgr.save(path, {name: np.ones(100) for name in "abc"})

    own, shared = ckptmgr.load(path, copy=True), ckptmgr.load(path)

    assert len({id(array.base) for array in own.values()}) == 3
    assert all(array.base.nbytes < 1000 for array in own.values())
    assert len({id(array.base) for array in shared.values()}) == 1


def test_copies_beside_arrays_that_are_filled_in_place_share_no_memory_either(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    ckptmgr.save(path, {"filled": np.ones(100), "new": {name: np.ones(100) for name in "abc"}})

    found = ckptmgr.load(path, {"filled": np.zeros(100), "new": None}, copy=True)

    assert found["filled"].tolist() == [1] * 100
    assert len({id(array.base) for array in found["new"].values()}) == 3


@pytest.mark.parametrize("how", [{}, {"copy": True}, {"mmap": True}])
def test_a_selection_may_have_any_memory(tmp_path: Path, how: dict) -> None:
    path = tmp_path / "m.safetensors"
    ckptmgr.save(path, {name: np.full(100, ord(name)) for name in "abc"})

    assert {name: array[0] for name, array in ckptmgr.load(path, select=["a", "c"], **how).items()} == {"a": 97, "c": 99}


@pytest.mark.parametrize("select", [None, "*"])
def test_the_progress_of_a_map_ends_with_what_there_was_to_read(tmp_path: Path, select: str | None) -> None:
    manager = CheckpointManager(tmp_path, backend="tf_bundle")
    manager.save(1, {"odd": np.ones(3, np.int8), "w": np.ones(100), "v": np.arange(2)})
    calls: list[tuple[int, int]] = []

    with manager.open(1) as checkpoint:
        checkpoint.restore(mmap=True, select=select, progress=lambda *call: calls.append(call))

    assert calls[-1][0] == calls[-1][1]
    assert len({total for _, total in calls}) == 1


def test_what_is_in_memory_is_known_to_be(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(100))
    store = PosixStore(tmp_path)

    assert store.is_cached("f", 50)
    with pytest.raises(FileNotFoundError):
        Folder(store).store.is_cached("absent", 0)
