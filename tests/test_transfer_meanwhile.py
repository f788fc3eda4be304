"""What is done in a write while the store makes the last file durable."""

import threading
from collections.abc import Iterable, Mapping, Sequence

import pytest
from transfers import RamStore, lanes, memory

from ckptmgr import transfer
from ckptmgr.layout import Digests, FileLayout, Layout
from ckptmgr.storage import Buffer, Folder, Stored


def test_what_is_to_be_done_meanwhile_is_done_while_the_disk_is_waited_for() -> None:
    done = threading.Event()
    told = []

    class SlowDisk(RamStore):
        def put(self, key: str, windows: Iterable[Sequence[Buffer]], nbytes: int) -> Stored:
            stored = super().put(key, windows, nbytes)
            assert key == "first" or done.wait(60)
            return stored

    def meanwhile(digests: Mapping[str, Digests]) -> None:
        told.append({file: dict(found) for file, found in digests.items()})
        done.set()

    files = tuple(FileLayout(name, (name.encode(), b"x" * 100)) for name in ("first", "last"))
    written = transfer.write(Folder(SlowDisk(16)), Layout(files), memory({}), meanwhile=meanwhile)

    assert told == [written.digests]


def test_it_is_also_done_where_the_last_file_is_there_already_and_where_there_is_none() -> None:
    files = (FileLayout("a", (b"1",)), FileLayout("b", (b"2",)))
    first = transfer.write(Folder(RamStore()), Layout(files), memory({}))
    known = {"b": (first.files["b"], first.digests["b"])}
    told: list[Mapping[str, Digests]] = []

    transfer.write(Folder(RamStore()), Layout(files), memory({}), known=known, meanwhile=told.append)
    transfer.write(Folder(RamStore()), Layout(()), memory({}), meanwhile=told.append)

    assert told == [first.digests, {}]


def test_its_error_is_that_of_the_write() -> None:
    def meanwhile(digests: object) -> None:
        raise ValueError("not so")

    with pytest.raises(ValueError, match="not so"):
        transfer.write(Folder(RamStore()), Layout((FileLayout("a", (b"1",)),)), memory({}), meanwhile=meanwhile)

    assert lanes() == []
