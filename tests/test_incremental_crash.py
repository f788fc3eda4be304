"""Death and failure at every operation of incremental saves, of what deletes their steps, and of `materialize`.

Steps 2 and 3 share the base of step 1, which retention has removed already. Whatever dies, every committed step reads as it was
saved, and what is left goes with the last step.
"""

import contextlib
import errno
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from incrementals import manager_of, no_links, same, small_groups, state
from stores import Death, FaultyStore, MemoryStore
from syscalls import counting, dying_at, failing_at, in_child

from ckptmgr import CheckpointManager, KeepLast
from ckptmgr.storage import PosixStore

SIZE = 64
Action = Callable[[CheckpointManager], object]


def save(manager: CheckpointManager) -> None:
    manager.save(4, state(4, size=SIZE))


def overwrite(manager: CheckpointManager) -> None:
    manager.save(3, state(3, size=SIZE), overwrite=True)


def overwrite_twice(manager: CheckpointManager) -> None:
    overwrite(manager)
    overwrite(manager)


def save_and_collect(manager: CheckpointManager) -> None:
    manager.retention = KeepLast(1)
    manager.save(4, state(4, size=SIZE))


def delete(manager: CheckpointManager) -> None:
    manager.delete(2)


def delete_all(manager: CheckpointManager) -> None:
    manager.delete(2)
    manager.delete(3)


def materialize(manager: CheckpointManager) -> None:
    manager.materialize(3)


def sweep(manager: CheckpointManager) -> None:
    manager.sweep(grace=0)


ACTIONS: list[Action] = [save, overwrite, overwrite_twice, save_and_collect, delete, delete_all, materialize, sweep]
MAY_GO = {delete: {2}, delete_all: {2, 3}, save_and_collect: {2, 3}}
each_action = pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
# On a disk each costs seconds; the others are parts of these.
each_disk_action = pytest.mark.parametrize(
    "action", [save, overwrite, save_and_collect, delete_all, materialize], ids=lambda action: action.__name__
)


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    with small_groups():
        yield


def prepare(manager: CheckpointManager) -> None:
    for step in (1, 2, 3):
        manager.save(step, state(step, size=SIZE))
    manager.delete(1)


def check(manager: CheckpointManager, action: Action) -> None:
    """What must hold after the action died or failed anywhere."""
    found = {info.step: manager.restore(info.step).state for info in manager.steps()}
    assert {2, 3} - MAY_GO.get(action, set()) <= set(found) <= {2, 3, 4}
    assert all(same(each, step) for step, each in found.items())
    assert [info.step for info in manager.steps()] == sorted(found)

    manager.save(10, state(10, size=SIZE))
    manager.sweep(grace=0)

    assert {info.step for info in manager.steps()} == {*found, 10}
    assert manager.verify().ok
    assert same(manager.restore().state, 10)
    for info in manager.steps():
        manager.delete(info.step)
    for _ in range(3):  # a hold falls one round after its holder
        manager.sweep(grace=0)
    folder = manager.folder
    assert [name for name in folder.list().folders if list(folder.folder(name).list().folders)] == [], "debris"


@pytest.fixture(scope="module", params=[True, False], ids=["remove", "no-remove"])
def stored(request: pytest.FixtureRequest) -> MemoryStore:
    store = MemoryStore(has_remove=request.param)
    with small_groups():
        prepare(manager_of(store))
        refers = {step: any(entry.origin for entry in manager_of(store).open(step).files) for step in (2, 3)}
    assert refers == {2: True, 3: True}
    return store


@each_action
def test_every_operation_may_be_the_last_where_there_are_no_links(stored: MemoryStore, action: Action) -> None:
    counted = FaultyStore(stored.copy())
    action(manager_of(counted))
    for at in range(len(counted.names)):
        store = stored.copy()
        with contextlib.suppress(Death):
            action(manager_of(FaultyStore(store, at)))

        check(manager_of(store), action)


@pytest.mark.slow
@each_action
@pytest.mark.parametrize("is_done", [False, True])
def test_every_operation_may_fail_where_there_are_no_links(stored: MemoryStore, action: Action, is_done: bool) -> None:
    counted = FaultyStore(stored.copy())
    action(manager_of(counted))
    for at in range(len(counted.names)):
        store = stored.copy()
        with contextlib.suppress(OSError):
            action(manager_of(FaultyStore(store, at, OSError(errno.EIO, "failed"), is_done=is_done)))

        check(manager_of(store), action)


@pytest.fixture(params=["links", "references"])
def template(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with no_links() if request.param == "references" else contextlib.nullcontext():
        prepare(manager_of(PosixStore(tmp_path / "template")))
        yield tmp_path / "template"


def runs(template: Path, action: Action) -> Iterator[tuple[int, Path]]:
    """A fresh copy of the template for each system call of the action, and the call's number."""
    root = template.parent / "run"
    shutil.copytree(template, root)
    with counting() as calls:
        action(manager_of(PosixStore(root)))
    shutil.rmtree(root)
    for n in range(len(calls)):
        shutil.copytree(template, root)
        yield n, root
        shutil.rmtree(root)


@pytest.mark.slow
@each_disk_action
@pytest.mark.parametrize("when", ["before", "after"])
def test_every_system_call_may_be_the_last_before_death(template: Path, action: Action, when: str) -> None:
    for n, root in runs(template, action):

        def dies(n: int = n, root: Path = root) -> None:
            with dying_at(n, when=when):
                action(manager_of(PosixStore(root)))

        assert in_child(dies) == -signal.SIGKILL
        check(manager_of(PosixStore(root)), action)


@pytest.mark.slow
@each_disk_action
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EPERM], ids=errno.errorcode.get)
def test_every_system_call_may_fail(template: Path, action: Action, code: int) -> None:
    for n, root in runs(template, action):
        with failing_at(n, code), contextlib.suppress(OSError):
            action(manager_of(PosixStore(root)))

        check(manager_of(PosixStore(root)), action)
