"""Records in a store: read, listed, and changed only as they were read."""

import logging
import random

import pytest
from saves import NAMING, begin, save
from stores import MemoryStore

from ckptmgr import commit, ledger
from ckptmgr.errors import CorruptCheckpointError, FormatVersionError
from ckptmgr.ledger import Found, Unreadable, change, largest_sequence, look, read_record, records, tries
from ckptmgr.record import Record, encode, seal
from ckptmgr.storage import Answer, Folder

NEWER = seal(b'{\n  "format_version": 9,\n')


def test_records_of_a_run_are_those_of_names_that_parse() -> None:
    root = Folder(MemoryStore({"notes/manifest.json": b"x", "checkpoint": b"x", "step-1x/manifest.json": b"x"}), "")
    save(root, 7)
    begin(root, 3)

    found, unreadable = records(root, NAMING)

    assert [(each.name, each.step) for each in found] == [("step-00000003", 3), ("step-00000007", 7)]
    assert unreadable == []


def test_runs_below_a_prefix_do_not_see_each_other() -> None:
    store = MemoryStore()
    save(Folder(store, "a/"), 1)

    assert records(Folder(store, "b/"), NAMING) == ([], [])
    assert records(Folder(store), NAMING) == ([], [])


def test_what_cannot_be_decoded_is_reported_with_its_version() -> None:
    root = Folder(MemoryStore({"step-00000001/manifest.json": b"{}", "step-00000002/manifest.json": NEWER}))
    save(root, 3)

    found, unreadable = records(root, NAMING)

    assert [each.step for each in found] == [3]
    assert [(each.step, type(each.error)) for each in unreadable] == [(1, CorruptCheckpointError), (2, FormatVersionError)]
    assert unreadable[0].version == b"{}"


def test_reading_one_record_raises_what_is_wrong_with_it() -> None:
    root = Folder(MemoryStore({"step-00000001/manifest.json": b"{}"}))

    with pytest.raises(CorruptCheckpointError, match=r"'memory:/step-00000001/manifest\.json'"):
        read_record(root, "step-00000001", 1)
    assert read_record(root, "step-00000002", 2) is None


def test_copied_step_folder_is_no_second_step() -> None:
    store = MemoryStore()
    save(Folder(store), 1)
    store.files.update({key.replace("1/", "2/", 1): value for key, value in store.files.items()})

    found, unreadable = records(Folder(store), NAMING)

    assert [each.step for each in found] == [1]
    assert "of step 1, but lies in the folder of step 2" in str(unreadable[0].error)


def test_sequence_leaves_out_unreadable_records_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    root = Folder(MemoryStore({"step-00000009/manifest.json": b"{}"}))
    save(root, 1)
    save(root, 2)
    caplog.clear()

    with caplog.at_level(logging.WARNING):
        assert largest_sequence(root, NAMING) == 2
    assert "leaves out step 9" in caplog.text


def test_error_of_the_storage_passes_through_a_listing() -> None:
    class Failing(MemoryStore):
        def read(self, key: str) -> tuple[bytes, bytes] | None:
            raise PermissionError(13, "Permission denied", key)

    with pytest.raises(PermissionError):
        records(Folder(Failing({"step-00000001/manifest.json": b""})), NAMING)


def test_change_needs_the_record_as_it_was_read() -> None:
    root = Folder(MemoryStore())
    folder = root.folder("step-00000001")
    claimed = begin(root, 1)
    found = look(root, "step-00000001", 1)
    assert isinstance(found, Found)

    assert change(folder, None, Record()) is Answer.NO
    assert change(folder, found, found.record.renewed(pins=frozenset({"a"}))) is Answer.OK
    assert change(folder, found, found.record.renewed(pins=frozenset({"b"}))) is Answer.NO
    after = read_record(root, "step-00000001", 1)
    assert after is not None
    assert (after.record.pins, after.record.claim) == ({"a"}, claimed.claim)


@pytest.mark.parametrize("has_remove", [True, False])
def test_empty_record_is_removed_only_where_that_can_be_conditional(has_remove: bool) -> None:
    store = MemoryStore({"step-00000001/manifest.json": encode(Record())}, has_remove=has_remove)
    found = read_record(Folder(store), "step-00000001", 1)

    assert change(Folder(store, "step-00000001/"), found, Record()) is Answer.OK
    assert ("step-00000001/manifest.json" in store.files) is not has_remove


def test_unreadable_record_is_changed_by_its_version_too() -> None:
    store = MemoryStore({"step-00000001/manifest.json": b"{}"})
    found = look(Folder(store), "step-00000001", 1)
    assert isinstance(found, Unreadable)

    assert change(Folder(store, "step-00000001/"), found, Record()) is Answer.OK
    assert "step-00000001/manifest.json" not in store.files


def test_tries_end_when_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(ledger.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(ledger.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds + 0.01))

    numbers = list(tries())

    assert numbers == list(range(1, len(numbers) + 1))
    assert 60 < len(numbers) < 6000
    assert 60 <= clock[0] < 62


def test_waiting_leaves_the_random_numbers_of_the_user_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "PATIENCE_S", 0.01)
    random.seed(1)
    expected = random.Random(1).random()

    list(tries())

    assert random.random() == expected


def test_snapshot_looks_again_when_a_listed_step_has_only_a_claim_left() -> None:
    class Meddled(MemoryStore):
        def read(self, key: str) -> tuple[bytes, bytes] | None:
            if key.endswith("1/manifest.json") and once and once.pop():
                save(root, 2)
                commit.delete(root, "step-00000001", 1)
            return super().read(key)

    once: list[int] = []
    root = Folder(Meddled())
    save(root, 1)
    begin(root, 1, overwrite=True)
    once.append(1)

    found = ledger.snapshot(root, NAMING).found

    assert [each.step for each in found if each.record.manifest] == [2]


@pytest.mark.parametrize(("is_listed", "times"), [(False, 1), (True, 2)])
def test_what_a_listing_left_out_is_checked_once(monkeypatch: pytest.MonkeyPatch, is_listed: bool, times: int) -> None:
    root = Folder(MemoryStore())
    save(root, 1)
    decode, calls = ledger.decode, []
    monkeypatch.setattr(ledger, "decode", lambda *args, **options: (calls.append(args), decode(*args, **options))[1])

    found = records(root, NAMING)[0][0] if is_listed else look(root, "step-00000001", 1)
    assert isinstance(found, Found)
    ledger.check(root, found)

    assert len(calls) == times
