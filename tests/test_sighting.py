"""What is known of a run's records is not read again, and what is not is: on stores whose listings mark files."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from saves import NAMING, begin, save
from stores import MarkedStore, WrappedStore

from ckptmgr import commit, ledger, sighting
from ckptmgr.ledger import largest_sequence, snapshot
from ckptmgr.record import LIMIT_NBYTES
from ckptmgr.storage import FilesystemStore, Folder, Marked


class Watched(WrappedStore):
    """Remembers what was asked; ``meanwhile`` is called before the operation of its name, once."""

    def __init__(self, inner: MarkedStore) -> None:
        super().__init__(inner)
        self.asked: list[str] = []
        self.meanwhile: dict[str, Callable[[], Any]] = {}

    def operate(self, name: str, call: Callable[[], Any]) -> Any:
        if (act := self.meanwhile.pop(name, None)) is not None:
            act()
        self.asked.append(name)
        return call()

    @contextlib.contextmanager
    def asking(self) -> Iterator[list[str]]:
        """What is asked inside, in the order of names."""
        self.asked.clear()
        asked: list[str] = []
        yield asked
        asked += sorted(self.asked)


@pytest.fixture(params=[True, False], ids=["removing", "keeping"])
def store(request: pytest.FixtureRequest) -> Watched:
    return Watched(MarkedStore(has_remove=request.param))


@pytest.fixture
def root(store: Watched) -> Folder:
    return Folder(store)  # type: ignore[arg-type]


def other(root: Folder) -> Folder:
    """The same run, as another process has it."""
    return Folder(root.store.inner)  # type: ignore[attr-defined]


def steps(root: Folder) -> list[int]:
    return [each.step for each in snapshot(root, NAMING).found if each.record.manifest]


def test_first_look_reads_every_record_and_the_next_none(store: Watched, root: Folder) -> None:
    for step in (1, 2, 3):
        save(other(root), step)

    with store.asking() as first:
        assert steps(root) == [1, 2, 3]
    with store.asking() as second:
        assert steps(root) == [1, 2, 3]

    assert first == ["list" if store.has_remove else "below", "read", "read", "read"] or first == ["below", *["read"] * 3]
    assert second == ["below"]


def test_what_this_process_has_put_is_not_read(store: Watched, root: Folder) -> None:
    save(root, 1)

    with store.asking() as asked:
        save(root, 2)

    assert asked == ["below", "create", "put", "replace"]
    assert steps(root) == [1, 2]


def test_only_what_others_have_changed_is_read(store: Watched, root: Folder) -> None:
    for step in (1, 2, 3):
        save(root, step)
    steps(root)
    commit.pin(other(root), NAMING.format(2), 2, "paper")

    with store.asking() as asked:
        found = snapshot(root, NAMING).found

    assert asked == ["below", "read"]
    assert [each.step for each in found if each.record.pins] == [2]


def test_mark_that_two_records_have_proves_nothing(store: Watched, root: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    list_all = store.inner.below

    def marked_alike(prefix: str, most: int) -> dict[str, Marked]:
        return {name: file._replace(mark="0-1") for name, file in list_all(prefix, most=most).items()}

    monkeypatch.setattr(store.inner, "below", marked_alike)
    monkeypatch.setattr(store.inner, "mark", lambda version: "0-1")
    for step in (1, 2):
        save(other(root), step)
    steps(root)
    save(other(root), 1, overwrite=True)

    assert largest_sequence(root, NAMING) == 3


def test_put_that_another_process_has_replaced_is_read(store: Watched, root: Folder) -> None:
    save(root, 1)
    save(other(root), 1, overwrite=True)

    with store.asking() as asked:
        assert largest_sequence(root, NAMING) == 2

    assert asked == ["below", "read"]


def test_emptied_records_are_never_read() -> None:
    store = Watched(MarkedStore(has_remove=False))
    root = Folder(store)  # type: ignore[arg-type]
    for step in range(1, 9):
        save(other(root), step)
    for step in range(1, 8):
        commit.delete(other(root), NAMING.format(step), step)

    with store.asking() as first:
        assert steps(root) == [8]
    with store.asking() as second:
        assert steps(root) == [8]
    save(root, 3)

    assert first == ["below", "below", "read"]  # listed once more, because records without steps say that steps have gone
    assert second == ["below"]
    assert steps(root) == [3, 8]


def test_what_is_larger_than_any_record_is_neither_read_nor_kept(store: Watched, root: Folder) -> None:
    save(other(root), 1)
    other(root).write(f"{NAMING.format(2)}/manifest.json", bytes(LIMIT_NBYTES + 1))
    first = ledger.records(root, NAMING)

    with store.asking() as asked:
        again = ledger.records(root, NAMING)

    assert asked == ["below"]
    for found, unreadable in (first, again):
        assert ([each.step for each in found], [each.step for each in unreadable]) == ([1], [2])
        assert "far larger than any record" in str(unreadable[0].error)
        assert unreadable[0].version is None  # which is the content here


def test_run_with_many_files_in_each_step_is_not_listed_whole(
    store: Watched, root: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.inner, "below", lambda prefix, most: None)
    for step in (1, 2):
        save(root, step)

    assert steps(root) == [1, 2]
    with store.asking() as asked:
        assert steps(root) == [1, 2]

    assert asked == ["list", "read", "read"]


def test_stores_without_marks_are_asked_by_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their clients may be for one: that of FTP has one connection, and two who use it at once wait for ever."""
    root, threads = Folder(FilesystemStore(f"memory:/{tmp_path}")), set()
    for step in range(1, 9):
        save(root, step)
    read = FilesystemStore.read

    def watched(store: FilesystemStore, key: str) -> Any:
        threads.add(threading.current_thread())
        return read(store, key)

    monkeypatch.setattr(FilesystemStore, "read", watched)

    assert len(steps(root)) == 8
    assert threads == {threading.current_thread()}


def test_snapshot_misses_no_step_for_which_another_went_while_pages_came(
    store: Watched, root: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sighting, "PAGE", -1)  # every listing takes more than one
    save(root, 5)
    if store.has_remove:
        steps(root)  # else the first look does not list all files

    def listed_page_by_page(prefix: str, most: int) -> dict[str, Marked]:
        del store.inner.below
        save(other(root), 3)  # the page that would tell it has come
        commit.delete(other(root), NAMING.format(5), 5)  # the page that tells it is still to come
        after = store.inner.below(prefix, most=most)
        return {name: file for name, file in after.items() if name.startswith("step-00000005")}

    store.inner.below = listed_page_by_page

    assert steps(root) == [3]


def test_listing_of_many_pages_is_not_believed_because_it_says_what_was_known(
    store: Watched, root: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sighting, "PAGE", -1)
    save(root, 5)
    steps(root)
    save(other(root), 7)  # unknown here, and there when this look begins

    def listed_page_by_page(prefix: str, most: int) -> dict[str, Marked]:
        del store.inner.below
        save(other(root), 3)
        commit.delete(other(root), NAMING.format(7), 7)
        after = store.inner.below(prefix, most=most)
        return {name: file for name, file in after.items() if not name.startswith("step-00000003")}

    store.inner.below = listed_page_by_page

    assert steps(root) == [3, 5]


def test_claims_of_others_do_not_hide_or_delay_anything(store: Watched, root: Folder) -> None:
    save(other(root), 1)
    begin(other(root), 2)

    assert steps(root) == [1]
    with store.asking() as asked:
        assert steps(root) == [1]

    assert asked == ["below"]


def test_puts_are_forgotten_when_they_were_listed(root: Folder) -> None:
    for step in range(5):
        save(root, step)
    ledger.records(root, NAMING)

    assert sighting._put[root.store] == {}
