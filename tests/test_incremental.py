"""Incremental saves: what is taken over, how, and that every step is whole whatever becomes of the others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from incrementals import file_of, manager_of, same, state
from safetensors.numpy import load_file
from stores import MemoryStore, WrappedStore

from ckptmgr import CheckpointManager, KeepLast, commit, contenthash, open_checkpoint
from ckptmgr.errors import StepExistsError, StepNotFoundError
from ckptmgr.storage import Folder, PosixStore

MIB = 1 << 20


@pytest.fixture(params=["links", "references"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CheckpointManager:
    if request.param == "references":
        monkeypatch.setattr(PosixStore, "link", lambda self, source, key: False)
    return CheckpointManager(tmp_path / "run", incremental=True)


def stored(manager: CheckpointManager) -> int:
    """Bytes of the run's disk blocks, those of linked files once."""
    found = {(each.stat().st_dev, each.stat().st_ino): each.stat() for each in Path(manager.folder.location()).rglob("*")}
    return sum(status.st_blocks * 512 for status in found.values())


def test_an_unchanged_file_is_not_stored_again(manager: CheckpointManager) -> None:
    manager.save(1, state(1))
    first = stored(manager)

    for step in (2, 3, 4):
        manager.save(step, state(step))

    assert stored(manager) - first < 3 * (MIB + 100_000)
    assert file_of(manager, 4, "base/w").samefile(file_of(manager, 1, "base/w"))
    assert all(same(manager.restore(step).state, step) for step in (1, 2, 3, 4))
    assert manager.verify().ok


def test_what_is_stored_once_can_be_mapped_and_only_the_array_is_changed(manager: CheckpointManager) -> None:
    manager.save(1, state(1))
    manager.save(2, state(2))

    found = manager.restore(2, mmap=True).state
    assert same(found, 2)
    found["base"]["w"][...] = 0

    assert all(same(manager.restore(step).state, step) for step in (1, 2))


def test_a_changed_file_is_written_and_then_taken_over_again(manager: CheckpointManager) -> None:
    manager.save(1, state(1))
    manager.save(2, state(2, base=7))
    manager.save(3, state(3, base=7))

    assert not file_of(manager, 2, "base/w").samefile(file_of(manager, 1, "base/w"))
    assert file_of(manager, 3, "base/w").samefile(file_of(manager, 2, "base/w"))
    assert same(manager.restore(1).state, 1)
    assert same(manager.restore(3).state, 3, base=7)


def test_one_changed_bit_at_the_end_is_a_change(manager: CheckpointManager) -> None:
    manager.save(1, state(1))
    changed = state(2)
    changed["base"]["w"].view(np.uint8).reshape(-1)[-1] ^= 1

    manager.save(2, changed)

    assert manager.restore(2).state["base"]["w"].tobytes() == changed["base"]["w"].tobytes()
    assert same(manager.restore(1).state, 1)


def test_retention_keeps_the_bytes_that_newer_steps_share(manager: CheckpointManager) -> None:
    manager.retention = KeepLast(2)
    for step in range(1, 8):
        manager.save(step, state(step))

    assert [info.step for info in manager.steps()] == [6, 7]
    assert stored(manager) < 8 * MIB  # the base once, and at most three adapters
    assert all(same(manager.restore(step).state, step) for step in (6, 7))
    assert manager.verify().ok

    manager.delete(6)
    manager.delete(7)

    assert list(manager.folder.list().folders) == []


def test_mapped_arrays_are_the_shared_file_and_never_change_it(manager: CheckpointManager) -> None:
    for step in (1, 2):
        manager.save(step, state(step))

    mapped = manager.restore(2, mmap=True).state

    assert same(mapped, 2)
    mapped["base"]["w"][...] = 0
    assert all(same(manager.restore(step).state, step) for step in (1, 2))
    assert manager.verify().ok


def test_a_new_process_goes_on_where_the_last_one_was(manager: CheckpointManager) -> None:
    manager.save(1, state(1))
    again = CheckpointManager(manager.folder.location(), incremental=True)

    again.save(2, state(2))

    assert file_of(again, 2, "base/w").samefile(file_of(manager, 1, "base/w"))


def test_an_overwrite_takes_files_of_the_step_that_it_replaces(manager: CheckpointManager) -> None:
    manager.save(1, state(1))
    inode = file_of(manager, 1, "base/w").stat().st_ino

    manager.save(1, {**state(2), "step": 2}, overwrite=True)
    manager.save(1, {**state(3), "step": 3}, overwrite=True)

    assert file_of(manager, 1, "base/w").stat().st_ino == inode
    assert same(manager.restore(1).state, 3)
    assert manager.sweep(grace=0).files == 0
    manager.delete(1)
    assert list(manager.folder.list().folders) == []


def test_a_deleted_source_is_written_anew(manager: CheckpointManager) -> None:
    manager.save(1, state(1))
    manager.delete(1)

    manager.save(2, state(2))

    assert same(manager.restore(2).state, 2)


def test_files_may_get_other_names(manager: CheckpointManager) -> None:
    manager.save(1, state(1))

    manager.save(2, {"ahead": {"x": np.ones(MIB)}, **state(2)})

    names = [file_of(manager, step, "base/w").name for step in (1, 2)]
    assert file_of(manager, 2, "base/w").samefile(file_of(manager, 1, "base/w"))
    assert names[0] == "model-00001-of-00002.safetensors"
    assert same(manager.restore(2).state, 2)


@pytest.mark.parametrize("backend", ["tf_bundle", "hdf5"])
def test_every_format_can_share_files(manager: CheckpointManager, backend: str) -> None:
    manager = CheckpointManager(manager.folder.location(), backend=backend, incremental=True)
    for step in (1, 2):
        manager.save(step, {**state(step), "names": np.array([f"run {step}"])} if backend == "tf_bundle" else state(step))

    assert file_of(manager, 2, "base/w").samefile(file_of(manager, 1, "base/w"))
    assert all(same(manager.restore(step).state, step) for step in (1, 2))
    assert manager.verify().ok


def test_each_local_step_opens_in_the_formats_own_tools(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "run", incremental=True)
    for step in (1, 2):
        manager.save(step, state(step))
    manager.delete(1)

    found: dict = {}
    for file in Path(manager.path(2)).glob("*.safetensors"):
        found |= load_file(file)

    assert found["base.w"].tobytes() == state(2)["base"]["w"].tobytes()
    assert not any(entry.origin for entry in manager.open(2).files)


def test_materialized_step_has_all_files_itself(manager: CheckpointManager) -> None:
    for step in (1, 2, 3):
        info = manager.save(step, state(step), metrics={"loss": 1.0}, assets={"note": b"n"})
    manager.pin(3, "paper")

    made = manager.materialize(3)

    assert (made.sequence, made.created, made.metrics, made.pins) == (info.sequence, info.created, info.metrics, {"paper"})
    with manager.open(3) as checkpoint:
        assert not any(entry.origin for entry in checkpoint.files)
        assert checkpoint.asset("note") == b"n"
    manager.delete(1)
    manager.delete(2)
    assert same(manager.restore(3).state, 3)
    assert {file.name for file in Path(made.path).iterdir()} == {entry.name for entry in manager.open(3).files}
    assert manager.materialize(3) == made
    assert manager.sweep(grace=0).files == 0


def test_step_folder_with_references_opens_by_its_path(manager: CheckpointManager) -> None:
    for step in (1, 2):
        manager.save(step, state(step))

    for place in (manager.path(2), str(Path(manager.path(2)).parent)):
        with open_checkpoint(place) as checkpoint:
            assert same(checkpoint.load(), 2)


def test_other_hashes_are_not_compared(manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    manager.save(1, state(1))
    monkeypatch.setattr(contenthash, "ALGORITHM", "blake2b")
    monkeypatch.setattr(contenthash, "_new", contenthash._blake2b)

    manager.save(2, state(2))
    manager.save(3, state(3))

    assert not file_of(manager, 2, "base/w").samefile(file_of(manager, 1, "base/w"))
    assert file_of(manager, 3, "base/w").samefile(file_of(manager, 2, "base/w"))


def test_equal_hash_of_other_bytes_is_told_by_the_crc(manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenthash.ContentHash, "label", f"{contenthash.ALGORITHM}:{'0' * 32}")
    manager.save(1, state(1))

    manager.save(2, state(2, base=5))

    assert same(manager.restore(2).state, 2, base=5)


def test_patterns_group_tensors(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "run", incremental=["*/frozen/*"])
    tree = {"model": {"frozen": {"w": np.ones(10)}, "head": {"w": np.ones(10)}}, "opt": {"m": np.ones(10)}}

    manager.save(1, tree)
    tree["model"]["head"]["w"] += 1
    manager.save(2, tree)

    assert file_of(manager, 1, "opt/m") == file_of(manager, 1, "model/head/w")
    assert file_of(manager, 2, "model/frozen/w").samefile(file_of(manager, 1, "model/frozen/w"))


@pytest.mark.parametrize("wrong", [None, 3, [1]])
def test_what_is_no_pattern_is_refused(tmp_path: Path, wrong: object) -> None:
    with pytest.raises(TypeError):
        CheckpointManager(tmp_path, incremental=wrong)


def test_a_pattern_without_tensors_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "run", incremental=["bsae/*"])

    with pytest.raises(ValueError, match=r"'bsae/\*' matches no tensor"):
        manager.save(1, state(1))
    assert not (tmp_path / "run").exists()


def test_small_keys_and_bare_tensors_share_one_file(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "run", incremental=True)

    manager.save(1, {"a": np.ones(3), "b": {"x": np.ones(3)}, "c": {"y": np.ones(3)}, **state(1)})

    assert len({file_of(manager, 1, name) for name in ("a", "b/x", "c/y")}) == 1
    assert len(list(Path(manager.path(1)).glob("*.safetensors"))) == 3


def test_references_work_in_a_store_without_links_or_conditional_remove() -> None:
    store = MemoryStore(has_remove=False)
    manager = manager_of(store, retention=KeepLast(1))
    for step in range(1, 5):
        manager.save(step, state(step))

    assert sum(len(data) for data, _ in store.files.values()) < 6 * MIB
    assert same(manager.restore().state, 4)
    with pytest.raises(StepNotFoundError):
        manager.restore(3)


def test_many_references_to_one_step_end_before_its_record_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "_HOLDS", 3)
    manager = manager_of(MemoryStore())
    for step in range(1, 9):
        manager.save(step, state(step))

    origins = [entry.origin.step for step in range(1, 9) for entry in manager.open(step).files if entry.origin]
    assert origins == [1, 1, 1, 5, 5, 5]
    assert manager.verify().ok


class Meanwhile(WrappedStore):
    """Lets somebody do something just before the n-th put."""

    def __init__(self, inner: MemoryStore, n: int, what: Callable[[], object]) -> None:
        super().__init__(inner)
        self.left, self.what = n, what

    def operate(self, name: str, call: Callable[[], Any]) -> Any:
        self.left -= name == "put"
        if name == "put" and self.left == 0:
            self.what()
        return call()


def referring() -> MemoryStore:
    store = MemoryStore()
    for step in (1, 2):
        manager_of(store).save(step, state(step))
    return store


@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_step_that_is_deleted_while_it_is_materialized_stays_deleted(n: int) -> None:
    store = referring()
    manager = manager_of(Meanwhile(store, n, lambda: manager_of(store).delete(2)))

    with pytest.raises(StepNotFoundError):
        manager.materialize(2)

    assert [info.step for info in manager_of(store).steps()] == [1]
    manager_of(store).delete(1)
    assert store.files == {}


@pytest.mark.parametrize("n", [1, 4])
def test_an_overwrite_is_not_undone_by_materialize(n: int) -> None:
    store = referring()
    manager = manager_of(Meanwhile(store, n, lambda: manager_of(store).save(2, state(2, base=9), overwrite=True)))

    with pytest.raises((StepExistsError, StepNotFoundError)):
        manager.materialize(2)

    assert same(manager_of(store).restore(2).state, 2, base=9)
    assert manager_of(store).verify().ok


def test_a_plain_manager_is_as_before() -> None:
    store = MemoryStore()
    with mock.patch("ckptmgr.manager.open_folder", return_value=Folder(store)):
        manager = CheckpointManager("run")

    manager.save(1, state(1))

    assert len([key for key in store.files if key.endswith(".safetensors")]) == 1
    assert b'"hash"' not in store.files["step-00000001/manifest.json"][0]
