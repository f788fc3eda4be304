"""Every operation of a copy is once the last one before death, and once fails: both runs stay whole, and it is gone on with."""

import contextlib

import pytest
from copies import check_aftermath, copied, is_copy
from interleaving import manifests, recorded
from saves import NAMING, begin, save, write
from stores import Death, FaultyStore, LossyStore, MemoryStore

from ckptmgr.errors import CommitUnknownError
from ckptmgr.storage import Folder
from ckptmgr.sweep import sweep

ERROR = OSError(5, "Input/output error")
CASES = ["new", "emptied", "taken over", "overwritten"]
endings = pytest.mark.parametrize("error", [None, ERROR], ids=["dies", "fails"])


def original() -> MemoryStore:
    store = MemoryStore()
    for step in (1, 2):
        save(Folder(store), step, nfiles=3)
    return store


def target(what: str = "new") -> MemoryStore:
    """A run with one step, and at the place of step 2 nothing, an unfinished save, or another step."""
    store = MemoryStore(has_remove=what != "emptied")
    save(Folder(store), 1)
    if what == "taken over":
        write(begin(Folder(store), 2))
    if what == "overwritten":
        save(Folder(store), 2, nfiles=2)
    return store


@pytest.mark.parametrize("what", CASES)
@endings
@pytest.mark.parametrize("is_swept", [False, True], ids=["", "swept"])
def test_a_copy_may_end_at_any_operation_on_the_target(what: str, error: OSError | None, is_swept: bool) -> None:
    counting = FaultyStore(target(what))
    copied(original(), 2, counting, overwrite=True)

    for at in range(len(counting.names)):
        source, store = original(), target(what)
        before = manifests(store)
        with contextlib.suppress(Death, OSError):
            copied(source, 2, FaultyStore(store, at, error), overwrite=True)
        assert is_copy(source, store, 2) or manifests(store) == before

        if is_swept:
            check_aftermath(store)
        copied(source, 2, store, overwrite=True)
        assert is_copy(source, store, 2)
        assert manifests(store)[1] == before[1]
        check_aftermath(store)


@endings
def test_a_copy_may_end_at_any_operation_on_the_source(error: OSError | None) -> None:
    counting = FaultyStore(original())
    copied(counting, 2, target())

    for at in range(len(counting.names)):
        source, store = original(), target()
        before = dict(source.files)
        with contextlib.suppress(Death, OSError):
            copied(FaultyStore(source, at, error), 2, store)

        copied(source, 2, store)
        assert is_copy(source, store, 2)
        assert source.files == before
        check_aftermath(store)


def test_no_file_is_sent_twice_wherever_a_copy_ends() -> None:
    counting = FaultyStore(target())
    copied(original(), 2, counting)

    for at in range(len(counting.names)):
        source, store = original(), target()
        first, second = FaultyStore(store, at), FaultyStore(store)
        with contextlib.suppress(Death):
            copied(source, 2, first)
        copied(source, 2, second)

        assert [*first.names, *second.names].count("put") == 3


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fate", ["applied", "never", "later"])
@pytest.mark.parametrize("before", range(3), ids=["create", "mark", "commit"])
def test_any_answer_may_be_lost(before: int, fate: str) -> None:
    source, store = original(), target()
    lossy = LossyStore(store, [*["ok"] * before, fate])

    with contextlib.suppress(CommitUnknownError):
        copied(source, 2, lossy)
    lossy.deliver()
    copied(source, 2, store)

    assert is_copy(source, store, 2)
    check_aftermath(store)


def test_a_claim_that_comes_late_after_a_sweep_is_not_gone_on_with() -> None:
    source, store = original(), target()
    lossy = LossyStore(store, ["later"])
    first = FaultyStore(lossy)
    copied(source, 2, first)
    last_put = len(first.names) - 1 - first.names[::-1].index("put")
    store = target()
    lossy = LossyStore(store, ["later"])
    with contextlib.suppress(Death):
        copied(source, 2, FaultyStore(lossy, last_put))
    sweep(Folder(store), NAMING, grace_s=0)

    lossy.deliver()  # now the record names the attempt again, and a slow sweep may still be at its files
    late = recorded(store)[2].claim
    copied(source, 2, store)

    assert late is not None
    assert manifests(store)[2].attempt != late.attempt
    assert is_copy(source, store, 2)
