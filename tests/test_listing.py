"""A listing again, in the same process: it sees what others have done since, and costs little where they did nothing."""

import random
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from saves import NAMING, begin, save
from stores import MarkedStore, MemoryStore
from syscalls import counting, in_child

from ckptmgr import CheckpointManager, CorruptCheckpointError, KeepAll, KeepLast, Retention, commit, ledger, record, sighting
from ckptmgr.ledger import records, snapshot
from ckptmgr.storage import Folder, PosixStore, rereading

STEPS = range(1, 6)


@pytest.fixture(params=[MemoryStore, MarkedStore, PosixStore])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    root = Folder(request.param(*[tmp_path][: request.param is PosixStore]))
    for step in STEPS:
        save(root, step)
    return root


def listed(root: Folder) -> dict[int, str]:
    """Each step with what tells this state of it from any other."""
    return {each.step: each.record.stamp for each in snapshot(root, NAMING).found}


def anew(root: Folder) -> dict[int, str]:
    """The same as a new process sees it."""
    store = root.store
    return listed(Folder(PosixStore(store.location("")) if isinstance(store, PosixStore) else store.copy()))  # type: ignore[attr-defined]


def test_nothing_is_decoded_twice(root: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = records(root, NAMING)[0]
    monkeypatch.setattr(ledger, "decode", None)

    after = records(root, NAMING)[0]

    assert len(after) == len(STEPS)
    assert all(one is other for one, other in zip(before, after, strict=True))


def test_only_what_changed_is_decoded_again(root: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    records(root, NAMING)
    commit.pin(root, NAMING.format(3), 3, "paper")
    decoded: list[str] = []
    monkeypatch.setattr(ledger, "decode", lambda data, step, **_: decoded.append(step) or record.decode(data, where=""))

    found, _ = records(root, NAMING)

    assert decoded == [3]
    assert [each.step for each in found if each.record.pins] == [3]


def test_every_change_is_in_the_next_listing(root: Folder) -> None:
    chance = random.Random(2)
    for _ in range(60):
        step = chance.choice([*STEPS, 9])
        name = NAMING.format(step)
        action = chance.choice(["save", "delete", "claim", "damage"])
        if action == "save":
            save(root, step, overwrite=True)
        elif action == "claim":
            begin(root, step, overwrite=True)
        elif action == "damage":
            root.folder(name).write("manifest.json", b"damaged")
        elif action == "delete":
            commit.delete(root, name, step, corrupt_ok=True)

        assert listed(root) == anew(root)


def test_what_other_processes_do_is_seen_at_once(tmp_path: Path) -> None:
    root = Folder(PosixStore(tmp_path))
    for step in STEPS:
        save(root, step)
    actions: list[Any] = [
        lambda: save(root, 2, overwrite=True),
        lambda: commit.pin(root, NAMING.format(3), 3, "paper"),
        lambda: commit.delete(root, NAMING.format(4), 4),
        lambda: begin(root, 5, overwrite=True),
        lambda: save(root, 6),
    ]
    for action in actions:
        before = listed(root)

        assert in_child(action) == 0

        after = listed(root)
        assert after == anew(root) != before


def test_folder_that_became_a_link_to_itself_is_no_step(tmp_path: Path) -> None:
    root = Folder(PosixStore(tmp_path))
    save(root, 2)
    save(root, 3)
    assert [*listed(root)] == [2, 3]

    (tmp_path / NAMING.format(2)).rename(tmp_path / "moved")
    (tmp_path / NAMING.format(2)).symlink_to("moved")

    assert [*listed(root)] == [3]


def test_a_manifest_that_was_sealed_with_a_wrong_checksum_is_listed_and_not_opened(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    manager.save(1, {"a": 1})
    manager.save(2, {"a": 2})
    file = tmp_path / NAMING.format(2) / "manifest.json"
    body, _, _ = file.read_bytes().rpartition(b'  "crc32c"')
    file.write_bytes(record.seal(body.replace(b'"sequence": 2', b'"sequence": 3')))

    for fresh in (manager, CheckpointManager(tmp_path)):
        assert [info.step for info in fresh.steps()] == [1, 2]
        for use in (fresh.open, fresh.restore, lambda step, of=fresh: of.pin(step, "paper")):
            with pytest.raises(CorruptCheckpointError, match="crc32c is not that of its fields"):
                use(2)
        assert [problem.file for _, problem in fresh.verify().problems] == ["manifest.json"]
        with pytest.warns(RuntimeWarning, match="step 2 is skipped"):
            assert fresh.restore().state == {"a": 1}


def test_swapped_folders_are_two_damaged_steps(tmp_path: Path) -> None:
    root = Folder(PosixStore(tmp_path))
    for step in STEPS:
        save(root, step)
    records(root, NAMING)

    (tmp_path / NAMING.format(1)).rename(tmp_path / "aside")
    (tmp_path / NAMING.format(2)).rename(tmp_path / NAMING.format(1))
    (tmp_path / "aside").rename(tmp_path / NAMING.format(2))

    found, unreadable = records(root, NAMING)
    assert [each.step for each in found] == [3, 4, 5]
    assert [each.step for each in unreadable] == [1, 2]


def test_step_whose_folder_became_a_link_is_gone(tmp_path: Path) -> None:
    root = Folder(PosixStore(tmp_path / "run"))
    for step in STEPS:
        save(root, step)
    records(root, NAMING)

    shutil.move(tmp_path / "run" / NAMING.format(1), tmp_path / "real")
    (tmp_path / "run" / NAMING.format(1)).symlink_to(tmp_path / "real")

    assert [*listed(root)] == [2, 3, 4, 5]


def test_damaged_record_is_a_new_error_each_time(root: Folder) -> None:
    root.folder(NAMING.format(1)).write("manifest.json", b"damaged")

    first, second = (records(root, NAMING)[1][0] for _ in range(2))

    assert isinstance(first.error, CorruptCheckpointError)
    assert first.error is not second.error
    assert str(first.error) == str(second.error)


def test_huge_record_does_not_hide_the_others(tmp_path: Path) -> None:
    root = Folder(PosixStore(tmp_path))
    save(root, 1)
    (tmp_path / NAMING.format(2)).mkdir()
    with (tmp_path / NAMING.format(2) / "manifest.json").open("wb") as file:
        file.truncate(1 << 40)

    for _ in range(2):
        found, unreadable = records(root, NAMING)
        assert ([each.step for each in found], [each.step for each in unreadable]) == ([1], [2])
        assert "far larger than any record" in str(unreadable[0].error)


def test_steps_of_a_manager_follow_their_records(tmp_path: Path) -> None:
    manager, other = CheckpointManager(tmp_path), CheckpointManager(tmp_path)
    for step in STEPS:
        manager.save(step, {"x": step})
    first = manager.steps()

    assert all(one is again for one, again in zip(first, manager.steps(), strict=True))
    other.pin(2, "paper")
    other.save(3, {"x": 33}, overwrite=True)
    other.delete(5)
    assert manager.steps() == CheckpointManager(tmp_path).steps()
    assert [(info.step, *info.pins) for info in manager.steps()] == [(1,), (2, "paper"), (4,), (3,)]


def test_lists_that_were_given_out_are_the_callers_own(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    manager.save(1, {})
    manager.steps().clear()

    assert [info.step for info in manager.steps()] == [1]


@pytest.mark.parametrize(("ago_ns", "listings"), [(10**12, 1), (0, 2)])
def test_a_long_run_in_which_no_step_came_or_went_is_listed_once(
    ago_ns: int, listings: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = CheckpointManager(tmp_path)
    for step in STEPS:
        manager.save(step, {"x": step})
    monkeypatch.setattr(sighting, "PAGE", -1)  # a long one
    changed = tmp_path.stat()
    monkeypatch.setattr(rereading, "_moment", lambda _: rereading._Moment(changed.st_dev, changed.st_ctime_ns + ago_ns))
    list_, calls = PosixStore.list, []
    monkeypatch.setattr(PosixStore, "list", lambda *args: calls.append(args) or list_(*args))

    assert [info.step for info in manager.steps()] == [*STEPS]

    assert len(calls) == listings


def test_threads_that_list_see_each_save_that_was_acknowledged(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    acknowledged = [0]
    wrong: list[Any] = []

    def look() -> None:
        while acknowledged[0] < 40 and not wrong:
            least = acknowledged[0]
            steps = [info.step for info in manager.steps()]
            if steps != sorted(steps) or len(steps) < least:
                wrong.append((least, steps))

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for step in range(40):
        manager.save(step, {"x": step})
        acknowledged[0] = step + 1
    for thread in threads:
        thread.join()

    assert wrong == []


@pytest.mark.parametrize(("retention", "listings"), [(KeepAll(), 1), (KeepLast(9), 2)])
def test_save_reads_all_records_for_its_sequence_and_for_what_retention_may_remove(
    retention: Retention, listings: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = CheckpointManager(tmp_path, retention=retention)
    reread, calls = PosixStore.reread, []
    monkeypatch.setattr(PosixStore, "reread", lambda *args: calls.append(args) or reread(*args))

    manager.save(1, {})

    assert len(calls) == listings


def test_folder_that_was_just_made_is_not_made_durable_twice(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)

    with counting() as calls:
        store.create("step/record", b"x")

    synced = [call.path for call in calls if call.name == "fsync" and not call.path.endswith(".tmp")]
    assert synced == [str(tmp_path), str(tmp_path / "step")]  # the name of the folder, and that of the file
