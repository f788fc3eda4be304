"""Nothing that a committed record needs can be missing after a power failure: its bytes, and every name on the way to them."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from syscalls import Call, counting, failing_at

from ckptmgr import CheckpointManager
from ckptmgr.storage import Answer, PosixStore

STATE = {"w": np.arange(10, dtype=np.float32), "b": np.ones(3, np.float32)}


def unsynced(calls: list[Call]) -> dict[str, str]:
    """What a power failure after these calls may take: files whose bytes, and names that are not on the disk yet; and why."""
    lost: dict[str, str] = {}
    for call in calls:
        if call.name == "pwritev":
            lost[call.path] = "bytes"
        elif call.name == "fsync":  # of a file its bytes, of a folder the names in it
            lost = {path: why for path, why in lost.items() if (path if why == "bytes" else os.path.dirname(path)) != call.path}
        elif call.name in ("mkdir", "link", "replace"):
            if call.source in lost:
                lost[call.path] = lost[call.source]
            lost.setdefault(call.path, "name")
    return {path: why for path, why in lost.items() if not path.endswith(".tmp")}


def commits(calls: list[Call]) -> list[int]:
    return [n for n, call in enumerate(calls) if call.name == "replace" and call.path.endswith("/manifest.json")]


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_all_that_a_commit_rests_on_is_durable_before_it(tmp_path: Path, incremental: bool, overwrite: bool) -> None:
    manager = CheckpointManager(tmp_path / "runs" / "7", incremental=incremental, max_file_nbytes=20)

    with counting() as calls:
        manager.save(1, STATE, assets={"notes": b"x"})
        manager.save(1 if overwrite else 2, STATE, overwrite=overwrite)

    done = [call for call in calls if call.is_done]
    last = commits(done)[-1]
    assert len(commits(done)) >= 2
    for commit in commits(done):
        assert unsynced(done[:commit]) == {}
    assert unsynced(done[: last + 1]) == {done[last].path: "name"}
    assert unsynced(done) == {}


def test_the_record_of_a_new_step_is_durable_before_its_files_are_written(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)

    with counting() as calls:
        manager.save(1, STATE)

    folder = next(n for n, call in enumerate(calls) if call.name == "mkdir" and "/a-" in call.path)
    assert [call.path for call in calls[:folder] if call.name == "link"] == [str(tmp_path / "step-00000001" / "manifest.json")]
    assert unsynced(calls[:folder]) == {}


def folders_synced_before_the_change(store: PosixStore, old: bytes) -> list[str]:
    with counting() as calls:
        assert store.replace("step/record", b"new", old) is Answer.OK
    change = next(n for n, call in enumerate(calls) if call.name == "replace")
    return [
        os.path.relpath(call.path, store.location(""))
        for call in calls[:change]
        if call.name == "fsync" and ".tmp" not in call.path
    ]


def test_what_the_store_put_last_is_replaced_without_making_its_way_durable_again(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    store.create("step/record", b"old")
    assert folders_synced_before_the_change(store, b"old") == []
    store.create("step/other", b"old")
    assert folders_synced_before_the_change(store, b"new") == [".", "step"]


@pytest.mark.parametrize("of_other", ["another store", "another version", "a lost answer"])
def test_what_the_store_did_not_put_is_made_durable_first(tmp_path: Path, of_other: str) -> None:
    store = PosixStore(tmp_path)
    if of_other == "another store":
        PosixStore(tmp_path).create("step/record", b"old")
    elif of_other == "another version":
        store.create("step/record", b"first")
        PosixStore(tmp_path).replace("step/record", b"old", b"first")
    else:
        (tmp_path / "like").mkdir()
        with counting() as calls:
            PosixStore(tmp_path / "like").create("step/record", b"old")
        last_sync = max(n for n, call in enumerate(calls) if call.name == "fsync")
        with failing_at(last_sync, errno.EIO):
            assert store.create("step/record", b"old") is Answer.LOST

    assert folders_synced_before_the_change(store, b"old") == [".", "step"]
