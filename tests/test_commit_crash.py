"""Every operation on the store is once the last one before death, and once fails: nothing older is ever harmed."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import pytest
from interleaving import check_aftermath, check_files, manifests
from saves import NAMING, begin, finish, hold, is_whole, save, write
from stores import Death, FaultyStore, MarkedStore, MemoryStore

from ckptmgr import commit, sighting
from ckptmgr.ledger import records
from ckptmgr.storage import Folder
from ckptmgr.sweep import sweep

ERROR = OSError(5, "Input/output error")
Operation = Callable[[Folder], Any]


def incremental_save(root: Folder) -> None:
    attempt = begin(root, 5)
    hold(root, 2, attempt)
    write(attempt)
    finish(attempt)


# What is done, and the steps that it may change.
OPERATIONS: dict[str, tuple[Operation, set[int]]] = {
    "save": (lambda root: save(root, 5, nfiles=2), {5}),
    "overwrite": (lambda root: save(root, 2, overwrite=True, nfiles=2), {2}),
    "take over": (lambda root: save(root, 4), {4}),
    "incremental save": (incremental_save, {5}),
    "delete": (lambda root: commit.delete(root, NAMING.format(1), 1), {1}),
    "collect": (lambda root: commit.collect(root, records(root, NAMING)[0][:2]), {1, 2}),
    "pin": (lambda root: commit.pin(root, NAMING.format(1), 1, "paper"), set()),
    "sweep": (lambda root: sweep(root, NAMING, grace_s=0), set()),
}


Make = Callable[[], MemoryStore]
each_kind = pytest.mark.parametrize(
    "make",
    [functools.partial(kind, has_remove=has_remove) for kind in (MemoryStore, MarkedStore) for has_remove in (True, False)],
    ids=["removing", "keeping", "removing, marked", "keeping, marked"],
)


@pytest.fixture(autouse=True)
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sighting, "READERS", 1)


def prepared(make: Make) -> MemoryStore:
    """Three committed steps of two files, and what interrupted saves of two more have left."""
    store = make()
    for step in (1, 2, 3):
        save(Folder(store), step, nfiles=2)
    write(begin(Folder(store), 3, overwrite=True))
    write(begin(Folder(store), 4))
    return store


@each_kind
@pytest.mark.parametrize("name", OPERATIONS)
def test_any_operation_may_be_the_last(name: str, make: Make) -> None:
    operation, may_change = OPERATIONS[name]

    for at in range(count(operation, make)):
        store = prepared(make)
        before = manifests(store)
        with contextlib.suppress(Death):
            operation(Folder(FaultyStore(store, at)))

        check_afterwards(store, before, may_change)


@each_kind
@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_any_operation_may_fail(name: str, is_done: bool, make: Make) -> None:
    operation, may_change = OPERATIONS[name]

    for at in range(count(operation, make)):
        store = prepared(make)
        before = manifests(store)
        told = outcome(operation, FaultyStore(store, at, ERROR, is_done=is_done))

        assert told in (None, ERROR)
        if told:  # a caller who was told of an error has changed no step, but for one that was to go
            assert all(before.get(step) == each for step, each in manifests(store).items())
        check_afterwards(store, before, may_change)


def outcome(operation: Operation, store: Any) -> OSError | None:
    try:
        operation(Folder(store))
    except OSError as error:
        return error
    return None


def count(operation: Operation, make: Make) -> int:
    counting = FaultyStore(prepared(make))
    operation(Folder(counting))
    return len(counting.names)


def check_afterwards(store: MemoryStore, before: dict[int, Any], may_change: set[int]) -> None:
    after = manifests(store)
    unchanged = before.keys() - may_change
    assert {step: after[step] for step in unchanged} == {step: before[step] for step in unchanged}
    check_files(store)
    check_aftermath(store)
    root = Folder(store)
    save(root, 9)
    sweep(root, NAMING, grace_s=0)
    assert all(is_whole(root, step) for step in unchanged | {9})
