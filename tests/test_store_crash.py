"""On every real store: an operation is the last one before death, fails before or after it was done, or its answer is lost.

`test_commit_crash` does all of these to all operations of a store in memory, and `test_crash` to all system calls. Here each
operation meets one of them, of those of remote stores every third; set CKPTMGR_ALL_FAULTS=1 for all.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from debris import debris
from every_store import LOCAL, REMOTE, WEAK, empty_store
from saves import NAMING, begin, is_whole, save, write
from stores import CONDITIONAL, Death, FaultyStore

from ckptmgr import CheckpointError, commit, ledger
from ckptmgr.storage import Answer, Folder, Store
from ckptmgr.sweep import sweep

pytestmark = pytest.mark.filterwarnings("ignore:.* does not honour conditional writes")
ERROR = OSError(5, "Input/output error")
FAULTS = ["dies", "fails", "fails when done", "lost", "never made"]
IS_ALL = "CKPTMGR_ALL_FAULTS" in os.environ
NEAR = ["posix", "fsspec-local", "fsspec-memory"]
FAR = [pytest.param(name, marks=pytest.mark.cloud) for name in [*REMOTE, *WEAK]]
OLD = (1, 2)
NEXT = 9

# What is done, and the step that it may change.
OPERATIONS: dict[str, tuple[Callable[[Folder], Any], int]] = {
    "save": (lambda root: save(root, 5, nfiles=2), 5),
    "overwrite": (lambda root: save(root, 2, overwrite=True, nfiles=2), 2),
    "delete": (lambda root: commit.delete(root, NAMING.format(1), 1), 1),
    "collect": (lambda root: commit.collect(root, ledger.records(root, NAMING)[0][:1]), 1),
    "sweep": (lambda root: sweep(root, NAMING, grace_s=0), 0),
}


class _Faulty(FaultyStore):
    """A `FaultyStore` that may also lose the answer of its operation, which was made or was not."""

    def __init__(self, inner: Store, at: int, fault: str) -> None:
        super().__init__(inner, at, None if fault == "dies" else ERROR, is_done=fault == "fails when done")
        self.fault = fault

    def operate(self, name: str, call: Callable[[], Any]) -> Any:
        if self.fault not in ("lost", "never made"):
            return super().operate(name, call)
        self.names.append(name)
        if len(self.names) - 1 != self.at or name not in CONDITIONAL:
            return call()
        if self.fault == "lost":
            call()
        return Answer.LOST


@pytest.fixture
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(ledger, "FIRST_PAUSE_S", 0.0)
    store = empty_store(request.param, request, tmp_path)
    for step in (*OLD, NEXT):
        save(Folder(store), step, nfiles=2)
    return Folder(store)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("root", [*NEAR, *FAR], indirect=True)
def test_any_operation_of_a_store_may_go_wrong(root: Folder, name: str, request: pytest.FixtureRequest) -> None:
    operation, changed = OPERATIONS[name]
    place = [*LOCAL, *REMOTE, *WEAK].index(request.node.callspec.params["root"])
    is_near = root.store.url.startswith(("/", "file", "memory"))
    prepare(root)
    counting = FaultyStore(root.store)
    operation(Folder(counting))
    if changed == 5:
        commit.delete(root, NAMING.format(5), 5)

    for at in range(len(counting.names)) if is_near or IS_ALL else range(place % 3, len(counting.names), 3):
        for fault in FAULTS if IS_ALL else [FAULTS[(at + place) % len(FAULTS)]]:
            prepare(root)
            told = outcome(operation, Folder(_Faulty(root.store, at, fault)))
            check(root, name, changed, told)


def prepare(root: Folder) -> None:
    """The old steps are there, and what an interrupted save has left."""
    for step in OLD:
        if not is_whole(root, step):
            save(root, step, nfiles=2)
    write(begin(root, 4))


def outcome(operation: Callable[[Folder], Any], root: Folder) -> BaseException | None:
    try:
        operation(root)
    except (Death, OSError, CheckpointError) as error:
        return error
    return None


def check(root: Folder, name: str, changed: int, told: BaseException | None) -> None:
    """No older step is harmed, what was told is true, the next save works, and a sweep leaves nothing but whole steps."""
    assert all(is_whole(root, step) for step in OLD if step != changed)
    if told is None and name in ("save", "overwrite", "delete"):
        assert is_whole(root, changed) is (name != "delete")

    save(root, NEXT, overwrite=True)
    sweep(root, NAMING, grace_s=0)

    found = {each.step for each in ledger.records(root, NAMING)[0] if each.record.manifest}
    assert found - {changed} == {*OLD, NEXT} - {changed}
    assert all(is_whole(root, step) for step in found)
    assert debris(root) == set()
    if changed not in OLD and changed in found:
        commit.delete(root, NAMING.format(changed), changed)
