"""Deleting, collecting, pinning and holding: what callers are told, and what is in the store afterwards."""

import logging

import pytest
from saves import NAMING, ONE, RECORD, begin, finish, hold, is_whole, manifest, record, referred, save, write
from stores import LossyStore, MemoryStore

from ckptmgr import commit
from ckptmgr.errors import StepNotFoundError
from ckptmgr.ledger import records
from ckptmgr.record import Hold
from ckptmgr.storage import Answer, Folder

pytestmark = pytest.mark.usefixtures("impatient")


def test_deleted_step_is_gone_with_its_files(root: Folder, store: MemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    save(root, 1, nfiles=2)

    with caplog.at_level(logging.INFO):
        assert commit.delete(root, ONE, 1)

    assert store.files == {}
    assert "deleted step 1 (sequence 1)" in caplog.text
    assert not commit.delete(root, ONE, 1)


def test_delete_removes_the_manifest_before_any_file(store: MemoryStore) -> None:
    save(Folder(store), 1, nfiles=3)
    changes: list[str] = []
    store.on_change = lambda key, before, after: changes.append(key)

    commit.delete(Folder(store), ONE, 1)

    assert changes[0] == RECORD
    assert len(changes) == 4


def test_delete_leaves_an_empty_record_where_removing_cannot_be_conditional() -> None:
    store = MemoryStore(has_remove=False)
    save(Folder(store), 1)

    assert commit.delete(Folder(store), ONE, 1)
    assert list(store.files) == [RECORD]
    assert records(Folder(store), NAMING)[0][0].record.is_empty
    assert save(Folder(store), 1).sequence == 1


def test_delete_leaves_files_that_are_held(root: Folder) -> None:
    old = save(root, 1)
    hold(root, 1, begin(root, 2))

    assert commit.delete(root, ONE, 1)
    assert root.head(f"{ONE}/a-{old.attempt}/file-0") is not None
    assert record(root, 1).manifest is None


def test_delete_without_a_definite_answer_leaves_the_files_to_sweep(store: MemoryStore) -> None:
    info = save(Folder(store), 1)

    assert commit.delete(Folder(LossyStore(store, ["applied"])), ONE, 1)
    assert list(store.files) == [f"{ONE}/a-{info.attempt}/file-0"]


def test_delete_whose_answer_was_lost_for_good_is_tried_again(store: MemoryStore) -> None:
    save(Folder(store), 1)

    assert commit.delete(Folder(LossyStore(store, ["never"])), ONE, 1)
    assert store.files == {}


def test_collect_deletes_what_it_saw(root: Folder, store: MemoryStore) -> None:
    save(root, 1)
    save(root, 2)
    found, _ = records(root, NAMING)

    assert commit.collect(root, found[:1]) == found[:1]
    assert not any(key.startswith(ONE) for key in store.files)


def test_collect_leaves_what_has_changed_since_it_was_decided(root: Folder) -> None:
    for step in (1, 2, 3):
        save(root, step)
    found, _ = records(root, NAMING)
    commit.pin(root, ONE, 1, "paper")
    save(root, 2, overwrite=True)

    removed = commit.collect(root, found)

    assert [each.step for each in removed] == [3]
    assert is_whole(root, 1)
    assert is_whole(root, 2)


def test_collect_leaves_what_got_no_answer_until_the_next_time(store: MemoryStore) -> None:
    save(Folder(store), 1)
    found, _ = records(Folder(store), NAMING)

    assert commit.collect(Folder(LossyStore(store, ["never"])), found) == []
    assert is_whole(Folder(store), 1)


def test_pins_are_added_and_taken_out(root: Folder) -> None:
    save(root, 1)
    commit.pin(root, ONE, 1, "paper")
    commit.pin(root, ONE, 1, "best")
    commit.pin(root, ONE, 1, "best")
    assert record(root, 1).pins == {"paper", "best"}

    commit.unpin(root, ONE, 1, "paper")
    commit.unpin(root, ONE, 1, "never there")
    assert record(root, 1).pins == {"best"}


@pytest.mark.parametrize("fate", ["applied", "never", "later"])
def test_lost_answer_to_a_pin_is_settled_by_reading(store: MemoryStore, fate: str) -> None:
    save(Folder(store), 1)

    commit.pin(Folder(LossyStore(store, [fate])), ONE, 1, "paper")

    assert record(Folder(store), 1).pins == {"paper"}


def test_only_committed_steps_can_be_pinned(root: Folder) -> None:
    begin(root, 1)

    for step in (1, 2):
        with pytest.raises(StepNotFoundError, match=f"step {step} is not in"):
            commit.pin(root, NAMING.format(step), step, "paper")


@pytest.mark.parametrize("name", ["", "a\n", "x" * 256, "\ud800"])
def test_pin_needs_a_name_that_can_be_shown(root: Folder, name: str) -> None:
    with pytest.raises(ValueError, match="a pin needs a name"):
        commit.pin(root, ONE, 1, name)


def test_files_of_a_committed_attempt_can_be_held(root: Folder) -> None:
    old = save(root, 1)
    attempt = begin(root, 2)

    assert commit.hold(root, ONE, 1, old.attempt, attempt)
    assert commit.hold(root, ONE, 1, old.attempt, attempt)
    assert record(root, 1).holds == {Hold(old.attempt, 2, attempt.attempt)}


def test_files_that_are_held_can_be_held_again_after_their_step_is_gone(root: Folder) -> None:
    old, first, second = save(root, 1), begin(root, 2), begin(root, 3)
    commit.hold(root, ONE, 1, old.attempt, first)
    commit.delete(root, ONE, 1)

    assert commit.hold(root, ONE, 1, old.attempt, second)
    assert record(root, 1).holds == {Hold(old.attempt, 2, first.attempt), Hold(old.attempt, 3, second.attempt)}


def test_files_of_an_attempt_that_is_not_named_or_only_claimed_cannot_be_held(root: Folder) -> None:
    old, claimed, attempt = save(root, 1), begin(root, 4), begin(root, 2)
    save(root, 1, overwrite=True)

    assert not commit.hold(root, ONE, 1, old.attempt, attempt)
    assert not commit.hold(root, claimed.name, 4, claimed.attempt, attempt)
    assert not commit.hold(root, "step-00000009", 9, old.attempt, attempt)


def test_the_last_holder_takes_the_files_with_it(store: MemoryStore) -> None:
    root = Folder(store)
    save(root, 1)
    for step in (2, 3):
        holder = begin(root, step)
        hold(root, 1, holder)
        finish(holder, nfiles=0, reused=tuple(referred(1, manifest(root, 1))))
    commit.delete(root, ONE, 1)

    commit.delete(root, NAMING.format(2), 2)
    assert is_whole(root, 3)
    commit.delete(root, NAMING.format(3), 3)
    assert store.files == {}


def test_an_overwrite_takes_the_holds_of_what_it_replaces_with_it(store: MemoryStore) -> None:
    root = Folder(store)
    save(root, 1)
    holder = begin(root, 2)
    hold(root, 1, holder)
    finish(holder, nfiles=0, reused=tuple(referred(1, manifest(root, 1))))

    save(root, 2, overwrite=True)

    assert record(root, 1).holds == frozenset()
    assert is_whole(root, 1)


def test_abandoned_attempt_leaves_nothing() -> None:
    store = MemoryStore()
    attempt = begin(Folder(store), 1)
    write(attempt)

    attempt.abandon()

    assert store.files == {}


def test_abandoned_attempt_leaves_the_claim_of_another_alone() -> None:
    root = Folder(MemoryStore())
    mine = begin(root, 1)
    write(mine)
    theirs = begin(root, 1)
    write(theirs)

    mine.abandon()

    assert root.folder("step-00000001").list().folders == (theirs.folder.prefix.split("/")[-2],)
    finish(theirs)
    assert is_whole(root, 1)


def test_abandoned_attempt_that_is_committed_stays() -> None:
    root = Folder(MemoryStore())
    attempt = begin(root, 1)
    write(attempt)
    finish(attempt)

    attempt.abandon()

    assert is_whole(root, 1)


@pytest.mark.parametrize("call", ["read", "remove"])
def test_files_stay_while_an_abandoned_claim_may_stand(call: str) -> None:
    class Refusing(MemoryStore):
        def remove(self, key: str, version: object) -> Answer:
            return Answer.LOST if call == "remove" else super().remove(key, version)

    store = Refusing()
    attempt = begin(Folder(store), 1)
    write(attempt)
    if call == "read":
        Folder(store).write(RECORD, b"{}")
    before = dict(store.files)

    attempt.abandon()

    assert store.files == before


def test_abandoning_raises_no_error_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(MemoryStore):
        def remove(self, key: str, version: object) -> Answer:
            raise OSError(5, "disk")

    attempt = begin(Folder(Failing()), 1)

    attempt.abandon()

    assert "left to sweep" in caplog.text
    assert "disk" in caplog.text
