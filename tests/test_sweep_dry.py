"""A sweep that only looks: it tells what the sweep then does, and asks the store for no change."""

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
from saves import NAMING, begin, write
from stores import Death, FaultyStore, WrappedStore
from test_commit_crash import OPERATIONS, Make, count, each_kind, prepared

from ckptmgr import sweep as sweeping
from ckptmgr.storage import Folder
from ckptmgr.sweep import Swept, sweep

CHANGES = {"put", "create", "replace", "remove", "change", "delete", "abort", "now"}


class Asked(WrappedStore):
    """Notes what it is asked."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.names: list[str] = []

    def operate(self, name: str, call: Any) -> Any:
        self.names.append(name)
        return call()


@each_kind
@pytest.mark.parametrize("name", OPERATIONS)
def test_it_tells_what_a_sweep_does_after_any_interruption(name: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    operation, _ = OPERATIONS[name]
    for at in range(count(operation, make)):
        store = prepared(make)
        with contextlib.suppress(Death):
            operation(Folder(FaultyStore(store, at)))
        monkeypatch.setattr(sweeping, "time", SimpleNamespace(time=store.now))
        asked, before = Asked(store), (dict(store.files), dict(store.unfinished))

        told = sweep(Folder(asked), NAMING, grace_s=0, is_dry=True)

        assert (store.files, store.unfinished) == before
        assert not CHANGES.intersection(asked.names)
        assert told == sweep(Folder(store), NAMING, grace_s=0)


@each_kind
def test_it_keeps_to_the_grace_period(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make()
    write(begin(Folder(store), 1), nfiles=2)
    monkeypatch.setattr(sweeping, "time", SimpleNamespace(time=lambda: store.time + 3600))

    assert sweep(Folder(store), NAMING, grace_s=3601, is_dry=True) == Swept()
    assert sweep(Folder(store), NAMING, grace_s=3600, is_dry=True).files == 2
    assert sweep(Folder(store), NAMING, grace_s=3600) == Swept()  # by the store's own clock
