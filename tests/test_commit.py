"""Saving, deleting, pinning: what callers are told, what is in the store afterwards, and what others do meanwhile."""

import logging
import socket
from typing import Any

import pytest
from saves import CREATED, NAMING, ONE, RECORD, begin, content, finish, hold, is_whole, manifest, record, save, write
from stores import FaultyStore, MemoryStore

from ckptmgr import commit
from ckptmgr.errors import (
    CorruptCheckpointError,
    FormatVersionError,
    SaveError,
    StepExistsError,
)
from ckptmgr.manifest import Manifest, folder_name
from ckptmgr.record import Claim, seal
from ckptmgr.storage import Folder

pytestmark = pytest.mark.usefixtures("impatient")


def test_saved_step_is_whole_and_told_of(root: Folder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        info = save(root, 1, nfiles=3)

    assert is_whole(root, 1)
    assert (info.step, info.sequence, info.name, info.pins) == (1, 1, ONE, frozenset())
    assert info.path == f"memory:/{ONE}/a-{info.attempt}"
    assert "committed step 1 (sequence 1)" in caplog.text


def test_step_does_not_exist_before_its_commit(root: Folder) -> None:
    attempt = begin(root, 1)
    write(attempt)

    assert manifest(root, 1) is None
    assert record(root, 1).claim == attempt.claim


def test_sequence_follows_the_order_of_saves_and_not_the_numbers_of_steps(root: Folder) -> None:
    infos = [save(root, step) for step in (5, 10**18, 3)]

    assert [info.sequence for info in infos] == [1, 2, 3]


def test_sequence_is_taken_when_the_files_are_written(root: Folder) -> None:
    attempt = begin(root, 1)
    save(root, 2)

    assert finish(attempt, nfiles=0).sequence == 2


def test_overwriting_step_counts_its_own_sequence(root: Folder) -> None:
    save(root, 1)

    assert save(root, 1, overwrite=True).sequence == 2


def test_committed_step_is_refused_before_anything_is_written(root: Folder, store: MemoryStore) -> None:
    save(root, 1)
    before = dict(store.files)

    with pytest.raises(StepExistsError, match=rf"step 1 .*{socket.gethostname()}.*overwrite=True") as caught:
        save(root, 1)
    assert caught.value.step == 1
    assert store.files == before


def test_overwrite_replaces_the_step_and_then_deletes_the_files_it_replaced(root: Folder, store: MemoryStore) -> None:
    old = save(root, 1, nfiles=2)
    attempt = begin(root, 1, overwrite=True)
    write(attempt)
    assert is_whole(root, 1)  # still the old one

    new = finish(attempt)

    assert is_whole(root, 1)
    assert manifest(root, 1).attempt == new.attempt != old.attempt
    assert sorted(store.files) == [f"{ONE}/a-{new.attempt}/file-0", RECORD]


def test_overwrite_keeps_pins(root: Folder) -> None:
    save(root, 1)
    attempt = begin(root, 1, overwrite=True)
    commit.pin(root, ONE, 1, "paper")

    assert finish(attempt, nfiles=0).pins == {"paper"}
    assert record(root, 1).pins == {"paper"}


def test_overwrite_leaves_files_that_another_step_refers_to(root: Folder) -> None:
    old = save(root, 1)
    hold(root, 1, begin(root, 2))

    save(root, 1, overwrite=True)

    assert root.head(f"{ONE}/a-{old.attempt}/file-0") is not None


def test_files_that_cannot_be_deleted_are_no_failure_of_the_save(store: MemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(MemoryStore):
        def delete(self, keys: Any) -> None:
            raise PermissionError(13, "Permission denied")

    root = Folder(Stuck())
    save(root, 1)

    save(root, 1, overwrite=True)

    assert is_whole(root, 1)
    assert "left to sweep" in caplog.text


def test_newest_claimant_wins_and_the_other_is_told_who_it_was(root: Folder, store: MemoryStore) -> None:
    zombie = begin(root, 1)
    write(zombie)
    restarted = commit.begin(root, ONE, 1, overwrite=False, writer={"host": "node-7", "pid": 42, "ckptmgr": "9.9"})
    before = dict(store.files)

    with pytest.raises(SaveError, match=r"step 1 .* taken over by process 42 on node-7 \(ckptmgr 9.9\)") as caught:
        finish(zombie)

    assert caught.value.step == 1
    assert store.files == before
    write(restarted)
    finish(restarted)
    assert is_whole(root, 1)


def test_slower_of_two_saves_is_told_that_the_step_exists(root: Folder) -> None:
    slow = begin(root, 1)
    fast = save(root, 1)

    with pytest.raises(StepExistsError, match="committed by process"):
        finish(slow)
    assert manifest(root, 1).attempt == fast.attempt


def test_save_after_its_claim_was_swept_fails_and_says_so(root: Folder, store: MemoryStore) -> None:
    attempt = begin(root, 1)
    store.delete([RECORD])

    with pytest.raises(SaveError, match=r"claim of step 1 .* is gone"):
        finish(attempt)
    assert RECORD not in store.files


def test_delete_during_an_overwrite_comes_before_it(root: Folder) -> None:
    save(root, 1)
    attempt = begin(root, 1, overwrite=True)
    write(attempt)

    assert commit.delete(root, ONE, 1)
    assert manifest(root, 1) is None
    finish(attempt)

    assert is_whole(root, 1)


def test_manifest_of_another_attempt_is_a_mistake(root: Folder) -> None:
    first, second = begin(root, 1), begin(root, 2)
    foreign = Manifest(2, second.attempt, 1, "run", CREATED, "raw", 0, ())

    with pytest.raises(ValueError, match="not this attempt's"):
        first.commit(NAMING, lambda sequence: foreign)


def test_record_that_grows_too_large_is_refused_and_nothing_appears(root: Folder) -> None:
    attempt = begin(root, 1)

    def huge(sequence: int) -> Manifest:
        return Manifest(1, attempt.attempt, sequence, "run", CREATED, "raw", 0, (), metadata={"x": "a" * (5 << 20)})

    with pytest.raises(ValueError, match="at most 4194304"):
        attempt.commit(NAMING, huge)
    assert manifest(root, 1) is None


def test_error_of_the_storage_while_writing_leaves_older_steps_and_the_claim(store: MemoryStore) -> None:
    root = Folder(store)
    save(root, 1)
    attempt = begin(root, 2)
    faulty = FaultyStore(store, at=0, error=OSError(5, "Input/output error"))

    with pytest.raises(OSError, match="Input/output"):
        Folder(faulty, attempt.folder.prefix).write("file-0", content(attempt.attempt, "file-0"))

    assert is_whole(root, 1)
    assert record(root, 2).claim == attempt.claim


CORRUPT = b'{"format_version": 1}'
NEWER = seal(b'{\n  "format_version": 9,\n')


def test_damaged_record_is_neither_saved_over_nor_deleted_without_being_told(store: MemoryStore) -> None:
    store.put(RECORD, [[CORRUPT]], len(CORRUPT))

    for call in (lambda: save(Folder(store), 1), lambda: commit.delete(Folder(store), ONE, 1)):
        with pytest.raises(CorruptCheckpointError, match=r"delete the step or save it with overwrite=True"):
            call()
    assert store.read(RECORD) == (CORRUPT, CORRUPT)


def test_damaged_record_is_overwritten_on_demand(store: MemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    store.put(RECORD, [[CORRUPT]], len(CORRUPT))

    save(Folder(store), 1, overwrite=True)

    assert is_whole(Folder(store), 1)
    assert "is overwritten" in caplog.text


def test_damaged_record_is_deleted_on_demand_and_its_files_are_left(store: MemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    info = save(Folder(store), 1)
    store.put(RECORD, [[CORRUPT]], len(CORRUPT))

    assert commit.delete(Folder(store), ONE, 1, corrupt_ok=True)
    assert list(store.files) == [f"{ONE}/a-{info.attempt}/file-0"]
    assert "left to sweep" in caplog.text


def test_record_of_a_newer_version_is_never_overwritten_or_deleted(store: MemoryStore) -> None:
    store.put(RECORD, [[NEWER]], len(NEWER))
    root = Folder(store)

    for call in (lambda: save(root, 1, overwrite=True), lambda: commit.delete(root, ONE, 1, corrupt_ok=True)):
        with pytest.raises(FormatVersionError):
            call()
    assert store.read(RECORD) == (NEWER, NEWER)


def test_attempt_writes_into_a_folder_of_its_own(root: Folder) -> None:
    attempt = commit.Attempt(root, ONE, 1, Claim("a" * 16, 1), overwrite=False)

    assert attempt.folder == root.folder(ONE).folder(folder_name("a" * 16))
