"""Sweep removes what nobody needs, and nothing that anybody needs or that is not ours."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from saves import NAMING, ONE, RECORD, begin, finish, hold, is_whole, manifest, record, referred, save, write
from stores import FaultyStore, LossyStore, MemoryStore, WrappedStore

from ckptmgr import commit
from ckptmgr.errors import CorruptCheckpointError, SaveError
from ckptmgr.record import Record, encode
from ckptmgr.storage import Answer, Folder, PosixStore, Upload
from ckptmgr.sweep import Swept, sweep

TWO = "step-00000002"
HOUR_S = 3600.0


def swept(store: Any, grace_s: float = HOUR_S, **options: bool) -> Swept:
    return sweep(Folder(store), NAMING, grace_s=grace_s, **options)


def test_interrupted_save_is_swept_once_it_has_been_silent_for_the_grace_period(store: MemoryStore, root: Folder) -> None:
    save(root, 2)
    write(begin(root, 1), nfiles=2)

    store.time += HOUR_S - 1
    assert swept(store) == Swept()
    store.time += 1
    done = swept(store)

    assert (done.claims, done.files) == (1, 2)
    assert done.nbytes == 2 * len("0123456789abcdef wrote file-0")
    assert not any(key.startswith(ONE) for key in store.files)
    assert is_whole(root, 2)


@pytest.mark.parametrize("sign", ["record", "file", "upload"])
def test_any_sign_of_life_spares_a_claim(store: MemoryStore, root: Folder, sign: str) -> None:
    attempt = begin(root, 1)
    write(attempt)
    store.time += HOUR_S
    if sign == "record":
        store.files[RECORD] = store.files[RECORD][0], store.time
    elif sign == "file":
        attempt.folder.write("another", b"")
    else:
        store.unfinished["1"] = Upload(f"{attempt.folder.prefix}big", "1", store.time)
    store.time += HOUR_S - 1

    assert swept(store) == Swept()
    finish(attempt)


def test_without_grace_every_claim_counts_as_dead(store: MemoryStore, root: Folder) -> None:
    attempt = begin(root, 1)
    store.time -= 10 * HOUR_S  # whatever the clocks say

    assert swept(store, grace_s=0).claims == 1
    with pytest.raises(SaveError):
        finish(attempt)


def test_file_from_the_future_counts_as_alive(store: MemoryStore, root: Folder) -> None:
    begin(root, 1)
    store.time -= 10 * HOUR_S

    assert swept(store) == Swept()


def test_interrupted_overwrite_is_swept_and_the_step_stays(store: MemoryStore, root: Folder) -> None:
    save(root, 1)
    commit.pin(root, ONE, 1, "paper")
    write(begin(root, 1, overwrite=True))

    done = swept(store, grace_s=0)

    assert (done.claims, done.files) == (1, 1)
    assert is_whole(root, 1)
    assert (record(root, 1).claim, record(root, 1).pins) == (None, {"paper"})


def test_files_without_a_record_are_spared_for_the_grace_period(store: MemoryStore, root: Folder) -> None:
    save(root, 1)
    del store.files[RECORD]  # somebody copies the run, and the record comes last

    assert swept(store) == Swept()
    store.time += HOUR_S
    assert swept(store).files == 1
    assert store.files == {}


def test_swept_run_is_left_alone_by_the_next_sweep(store: MemoryStore, root: Folder) -> None:
    save(root, 1)
    write(begin(root, 2))
    swept(store, grace_s=0)
    before = dict(store.files)

    assert swept(store, grace_s=0) == Swept()
    assert store.files == before


def test_foreign_files_are_never_touched(store: MemoryStore, root: Folder) -> None:
    save(root, 1)
    foreign = {
        "notes.txt": b"",
        "logs/a-0123456789abcdef/x": b"",
        "step-00000007/weights.pt": b"",
        "step-00000007/sub/weights.pt": b"",
        f"{ONE}/readme": b"",
        f"{ONE}/a-XYZ/file": b"",
    }
    store.files.update({key: (data, 0.0) for key, data in foreign.items()})

    done = swept(store, grace_s=0)

    assert foreign.keys() <= store.files.keys()
    assert done == Swept(foreign=(f"memory:/{ONE}/a-XYZ", f"memory:/{ONE}/readme", "memory:/step-00000007"))


def test_step_with_an_unreadable_record_is_left_and_reported(
    store: MemoryStore, root: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    save(root, 1)
    write(begin(root, 1, overwrite=True))
    store.files[RECORD] = b"{}", 0.0
    before = dict(store.files)

    with caplog.at_level(logging.WARNING):
        done = swept(store, grace_s=0)

    assert store.files == before
    assert [(entry.step, type(entry.error)) for entry in done.unreadable] == [(1, CorruptCheckpointError)]
    assert "sweep leaves step 1" in caplog.text


def test_files_are_listed_before_the_record_is_read(store: MemoryStore, root: Folder) -> None:
    save(root, 1)
    watched = FaultyStore(store)

    swept(watched, grace_s=0)

    assert watched.names[:3] == ["now", "uploads", "list"]
    assert watched.names[3:6] == ["list", "list", "read"]


def test_attempt_that_begins_after_the_files_were_listed_is_not_harmed(store: MemoryStore, root: Folder) -> None:
    class Late(WrappedStore):
        def operate(self, name: str, call: Callable[[], Any]) -> Any:
            if name == "read":
                save(root, 1)
                self.operate = lambda name, call: call()  # type: ignore[method-assign]
            return call()

    write(begin(root, 1))

    done = swept(Late(store), grace_s=0)

    assert is_whole(root, 1)
    assert done.files == 1


@pytest.mark.parametrize("fate", ["never", "applied"])
def test_step_whose_change_got_no_answer_is_left_until_the_next_time(store: MemoryStore, root: Folder, fate: str) -> None:
    write(begin(root, 1))

    assert swept(LossyStore(store, [fate]), grace_s=0) == Swept()
    assert sum("file-0" in key for key in store.files) == 1
    assert swept(store, grace_s=0).files == 1
    assert store.files == {}


def test_claim_that_is_taken_over_meanwhile_is_left(store: MemoryStore, root: Folder) -> None:
    class Late(WrappedStore):
        def operate(self, name: str, call: Callable[[], Any]) -> Any:
            if name == "remove":
                commits.append(begin(root, 1))
            return call()

    commits: list[commit.Attempt] = []
    begin(root, 1)

    assert swept(Late(store), grace_s=0) == Swept()
    finish(commits[0], nfiles=0)


def test_unfinished_uploads_are_ended_where_nobody_needs_them(store: MemoryStore, root: Folder) -> None:
    live = begin(root, 2)
    keys = ["checkpoint", f"{ONE}/manifest.json", f"{ONE}/a-0123456789abcdef/big", f"{live.folder.prefix}big", "logs/big"]
    store.files[f"{ONE}/a-0123456789abcdef/small"] = b"", store.time
    store.unfinished = {key: Upload(key, key, store.time) for key in keys}
    store.time += HOUR_S
    live.folder.write("sign", b"")

    done = swept(store)

    assert done.uploads == 3
    assert list(store.unfinished) == [f"{live.folder.prefix}big", "logs/big"]


def test_fresh_upload_spares_the_files_beside_it(store: MemoryStore) -> None:
    store.files[f"{ONE}/a-0123456789abcdef/small"] = b"", 0.0
    store.unfinished["1"] = Upload(f"{ONE}/a-0123456789abcdef/big", "1", store.time)

    assert swept(store) == Swept()


def test_runs_below_a_prefix_are_swept_alone(store: MemoryStore) -> None:
    for prefix in ("a/b/", "c/"):
        attempt = begin(Folder(store, prefix), 1)
        write(attempt)
        store.unfinished[prefix] = Upload(f"{attempt.folder.prefix}big", prefix, store.time)

    done = sweep(Folder(store, "a/b/"), NAMING, grace_s=0)

    assert (done.files, done.claims, done.uploads) == (1, 1, 1)
    assert {key[:2] for key in store.files} == {"c/"}
    assert list(store.unfinished) == ["c/"]


def test_hold_of_a_save_in_progress_counts(store: MemoryStore, root: Folder) -> None:
    old, holder = save(root, 1), begin(root, 2)
    hold(root, 1, holder)
    commit.delete(root, ONE, 1)

    assert swept(store) == Swept()
    assert root.head(f"{ONE}/a-{old.attempt}/file-0") is not None


def test_hold_counts_as_long_as_the_manifest_of_its_holder_refers_to_the_files(store: MemoryStore, root: Folder) -> None:
    save(root, 1)
    holder = begin(root, 2)
    hold(root, 1, holder)
    finish(holder, nfiles=0, reused=tuple(referred(1, manifest(root, 1))))
    commit.delete(root, ONE, 1)

    assert swept(store, grace_s=0) == Swept()
    assert is_whole(root, 2)
    commit.delete(root, TWO, 2)
    assert store.files == {}


def test_hold_of_a_holder_that_took_nothing_falls(store: MemoryStore, root: Folder) -> None:
    held, holder = save(root, 1), begin(root, 2)
    hold(root, 1, holder)
    finish(holder, nfiles=0)

    swept(store, grace_s=0)

    assert record(root, 1).holds == frozenset()
    assert root.head(f"{ONE}/a-{held.attempt}/file-0") is not None


def test_hold_of_a_dead_save_falls_one_sweep_after_its_claim(store: MemoryStore, root: Folder) -> None:
    save(root, 1)
    hold(root, 1, begin(root, 2))

    swept(store, grace_s=0)
    assert len(record(root, 1).holds) == 1
    swept(store, grace_s=0)
    assert record(root, 1).holds == frozenset()


def test_hold_counts_if_its_holder_cannot_be_read(store: MemoryStore, root: Folder) -> None:
    save(root, 1)
    hold(root, 1, begin(root, 2))
    store.files[f"{TWO}/manifest.json"] = b"{}", 0.0

    swept(store, grace_s=0)

    assert len(record(root, 1).holds) == 1


def test_holder_that_began_during_the_sweep_is_found(store: MemoryStore, root: Folder) -> None:
    class Late(WrappedStore):
        def operate(self, name: str, call: Callable[[], Any]) -> Any:
            if name == "read":
                self.operate = lambda name, call: call()  # type: ignore[method-assign]
                hold(root, 1, begin(root, 2))
            return call()

    save(root, 1)

    swept(Late(store), grace_s=0)

    assert len(record(root, 1).holds) == 1


def test_claim_is_emptied_where_a_record_cannot_be_removed() -> None:
    store = MemoryStore(has_remove=False)
    write(begin(Folder(store), 1))

    assert swept(store, grace_s=0).files == 1
    assert record(Folder(store), 1).is_empty
    assert swept(store, grace_s=0) == Swept()
    swept(store, grace_s=0, empty_records=True)
    assert store.files == {}


def test_empty_record_is_removed_where_it_can_be(store: MemoryStore) -> None:
    store.files[RECORD] = encode(Record()), 0.0

    swept(store)

    assert store.files == {}


def test_empty_folders_of_a_save_that_died_early_go_too(tmp_path: Path) -> None:
    for name in (f"{ONE}/a-0123456789abcdef", TWO, "logs"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / TWO / ".ckptmgr-0123456789abcdef.tmp").write_bytes(b"half a record")

    assert swept(PosixStore(tmp_path), grace_s=0) == Swept(uploads=1)
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


@pytest.mark.parametrize("grace_s", [-1.0, math.nan])
def test_grace_period_is_no_nonsense(store: MemoryStore, grace_s: float) -> None:
    with pytest.raises(ValueError, match="grace period"):
        swept(store, grace_s)


def test_answer_of_the_store_decides_and_not_the_wish(store: MemoryStore, root: Folder) -> None:
    class Refusing(WrappedStore):
        def operate(self, name: str, call: Callable[[], Any]) -> Any:
            return Answer.NO if name in ("replace", "remove") else call()

    write(begin(root, 1))
    before = dict(store.files)

    assert swept(Refusing(store), grace_s=0) == Swept()
    assert store.files == before
