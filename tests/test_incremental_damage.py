"""Incremental saves and damage: what several steps share is damaged in all, and still no save and no sweep makes it worse."""

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from incrementals import file_of, manager_of, no_links, same, state
from stores import MemoryStore

from ckptmgr import CheckpointManager
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.record import decode, encode
from ckptmgr.storage import PosixStore


@pytest.fixture(params=["links", "references"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CheckpointManager]:
    with no_links() if request.param == "references" else contextlib.nullcontext():
        yield CheckpointManager(tmp_path / "run", incremental=True)


def damage(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(-3, 2)
        stream.write(b"bad")


def test_damage_is_found_in_every_step_that_has_the_file(manager: CheckpointManager) -> None:
    for step in (1, 2):
        manager.save(step, state(step))
    damage(file_of(manager, 1, "base/w"))

    assert {step for step, _ in manager.verify().problems} == {1, 2}
    with pytest.raises(CorruptCheckpointError):
        manager.restore(2)


def test_damage_is_not_taken_over_by_a_new_manager(manager: CheckpointManager) -> None:
    for step in (1, 2):
        manager.save(step, state(step))
    damage(file_of(manager, 2, "base/w"))
    again = CheckpointManager(manager.folder.location(), incremental=True)

    again.save(3, state(3))
    again.save(4, state(4))

    assert same(again.restore(3).state, 3)
    assert again.verify(4).ok
    assert file_of(again, 4, "base/w").samefile(file_of(again, 3, "base/w"))


def test_an_overwrite_repairs_a_damaged_step(manager: CheckpointManager) -> None:
    for step in (1, 2, 3):
        manager.save(step, state(step))
    damage(file_of(manager, 3, "base/w"))

    manager.save(3, state(3), overwrite=True)

    assert manager.verify(3).ok
    assert same(manager.restore(3).state, 3)


def test_what_the_manager_wrote_itself_is_read_for_no_other_save(manager: CheckpointManager) -> None:
    manager.save(1, state(1))

    with mock.patch.object(PosixStore, "read_into", side_effect=AssertionError("read")):
        manager.save(2, state(2), overwrite=True)
        manager.save(3, state(3))

    assert file_of(manager, 3, "base/w").samefile(file_of(manager, 1, "base/w"))


def test_a_file_that_the_disk_cannot_read_is_written_again(manager: CheckpointManager) -> None:
    manager.save(1, state(1))
    again = CheckpointManager(manager.folder.location(), incremental=True)

    with mock.patch.object(PosixStore, "read_into", side_effect=OSError(errno.EIO, "bad sector")):
        again.save(2, state(2))

    assert again.verify(2).ok
    assert not file_of(again, 2, "base/w").samefile(file_of(again, 1, "base/w"))


def test_a_file_of_the_wrong_size_is_not_linked(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "run", incremental=True)
    manager.save(1, state(1))
    with file_of(manager, 1, "base/w").open("ab") as stream:
        stream.write(b"more")

    manager.save(2, state(2))

    assert manager.verify(2).ok


def referring() -> MemoryStore:
    store = MemoryStore()
    for step in (1, 2):
        manager_of(store).save(step, state(step))
    return store


def test_a_damaged_file_is_not_materialized() -> None:
    store = referring()
    key = max(store.files, key=lambda key: len(store.files[key][0]))
    data, time = store.files[key]
    store.files[key] = data[:-1] + bytes([data[-1] ^ 1]), time

    with pytest.raises(CorruptCheckpointError, match="crc32c"):
        manager_of(store).materialize(2)

    assert [info.step for info in manager_of(store).steps()] == [1, 2]
    assert manager_of(store).sweep(grace=0).files == 0


def test_a_forged_size_asks_for_no_space(tmp_path: Path) -> None:
    with no_links():
        manager = CheckpointManager(tmp_path / "run", incremental=True)
        for step in (1, 2):
            manager.save(step, state(step))
    record = tmp_path / "run/step-00000002/manifest.json"
    found = decode(record.read_bytes(), where="")
    files = tuple(replace(entry, nbytes=1 << 60) if entry.origin else entry for entry in found.manifest.files)
    record.write_bytes(encode(replace(found, manifest=replace(found.manifest, files=files))))

    with pytest.raises(CorruptCheckpointError, match="bytes instead of"):
        manager.materialize(2)


@pytest.mark.parametrize("lost", ["deleted", "overwritten", "gone"])
def test_a_damaged_record_takes_no_files_that_other_steps_refer_to(lost: str) -> None:
    store = referring()
    manager, key = manager_of(store), "step-00000001/manifest.json"
    store.files[key] = b"damaged", store.time
    if lost == "deleted":
        manager.delete(1)
    elif lost == "overwritten":
        manager.save(1, state(1, base=3), overwrite=True)
    else:
        del store.files[key]

    manager.sweep(grace=0)

    assert same(manager.restore(2).state, 2)
    manager.save(3, state(3))
    assert same(manager.restore(3).state, 3)
    for info in manager.steps():
        manager.delete(info.step)
    manager.sweep(grace=0)
    assert store.files == {}
