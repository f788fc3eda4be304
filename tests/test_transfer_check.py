"""Comparing whole files with what was written, and naming what is damaged."""

import errno
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transfers import RamStore, lanes, stored

from ckptmgr import transfer
from ckptmgr.checksum import crc32c
from ckptmgr.storage import Buffer, Folder, PosixStore
from ckptmgr.testing import sample
from ckptmgr.transfer import Place, Problem, slabs

Entry = tuple[str, int, int]


def checkpoint(window_nbytes: int = 100) -> tuple[RamStore, list[Entry], dict[str, list[Place]]]:
    """A file of three tensors after a header of 10 bytes, and a file of text."""
    store = RamStore(window_nbytes)
    tensors = {name: sample("float32", (size,)) for name, size in (("a", 10), ("b", 300), ("empty", 0), ("c", 1))}
    source = stored(store, tensors, header=b"0123456789")
    store.files["text"] = b"some text"
    entries = [(name, len(data), crc32c(data)) for name, data in store.files.items()]
    extents = {name: source.extents(name)[0] for name in tensors}
    places = [Place(name, extent.offset, tensors[name].nbytes, extent.crc32c) for name, extent in extents.items()]
    return store, entries, {"data": places}


@given(st.sampled_from([1, 7, 100, 1 << 20]))
def test_files_as_they_were_written_have_no_problems(window_nbytes: int) -> None:
    store, entries, places = checkpoint(window_nbytes)

    assert transfer.check(Folder(store), entries, places=places) == []


@given(st.data())
def test_any_flipped_byte_is_found_and_its_tensor_named(data: st.DataObject) -> None:
    store, entries, places = checkpoint(data.draw(st.sampled_from([1, 7, 100, 1 << 20])))
    at = data.draw(st.integers(0, len(store.files["data"]) - 1))
    store.damage("data", at)

    problems = transfer.check(Folder(store), entries, places=places)

    hit = [place.tensor for place in places["data"] if place.offset <= at < place.offset + place.nbytes]
    assert [(problem.file, problem.tensor) for problem in problems] == [("data", None), *(("data", name) for name in hit)]
    assert all("ram:/data" in problem.message and "has crc32c" in problem.message for problem in problems)


def test_damage_outside_known_tensors_is_the_files() -> None:
    store, entries, _ = checkpoint()
    store.damage("text", 3)

    (problem,) = transfer.check(Folder(store), entries)

    assert (problem.file, problem.tensor) == ("text", None)


def test_a_missing_file_is_a_problem() -> None:
    store, entries, _ = checkpoint()
    del store.files["text"]

    assert transfer.check(Folder(store), entries) == [Problem("text", None, "'ram:/text' is missing")]


def test_a_truncated_file_names_the_tensors_that_are_cut() -> None:
    store, entries, places = checkpoint()
    store.files["data"] = store.files["data"][:700]

    problems = transfer.check(Folder(store), entries, places=places)

    assert [problem.tensor for problem in problems] == [None, "b", "c"]
    assert problems[0].message == "'ram:/data' has 700 bytes instead of 1254"
    assert problems[1].message == "tensor 'b' in 'ram:/data' cannot be read whole"


def test_a_grown_file_is_a_problem_of_the_file_alone() -> None:
    store, entries, places = checkpoint()
    store.files["data"] += b"x"

    assert [problem.tensor for problem in transfer.check(Folder(store), entries, places=places)] == [None]


def test_swapped_files_are_both_wrong() -> None:
    store, entries, _ = checkpoint()
    store.files["data"], store.files["text"] = store.files["text"], store.files["data"]

    assert [problem.file for problem in transfer.check(Folder(store), entries)] == ["data", "text"]


def test_only_sizes_are_compared_if_it_is_not_to_be_full() -> None:
    store, entries, places = checkpoint()
    store.damage("data", 500)
    store.files["text"] = b"short"

    problems = transfer.check(Folder(store), entries, places=places, full=False)

    assert [problem.message for problem in problems] == ["'ram:/text' has 5 bytes instead of 9"]
    assert store.reads == []


def test_tensors_without_a_checksum_are_passed_over() -> None:
    store, entries, _ = checkpoint()
    store.damage("data", 12)

    problems = transfer.check(Folder(store), entries, places={"data": [Place("a", 10, 40, None)]})

    assert [problem.tensor for problem in problems] == [None]


def test_errors_of_the_store_come_out_as_they_are() -> None:
    class Broken(RamStore):
        def read_into(self, key: str, offset: int, buffers: Sequence[Buffer]) -> None:
            raise OSError(errno.EIO, "bad sector")

    store = Broken()
    store.files["data"] = b"12"

    with pytest.raises(OSError, match="bad sector"):
        transfer.check(Folder(store), [("data", 2, 0)])

    assert lanes() == []


def test_progress_ends_at_the_total() -> None:
    told: list[tuple[int, int]] = []
    store, entries, _ = checkpoint()

    transfer.check(Folder(store), entries, progress=lambda *done: told.append(done))

    assert told == sorted(told)
    assert told[-1] == (1263, 1263)


def test_a_large_file_takes_a_window_of_memory_for_each_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    take = slabs.raw
    monkeypatch.setattr(slabs, "raw", lambda nbytes: (taken.append(nbytes), take(nbytes))[1])
    content = np.zeros(32 << 20, np.uint8)
    (tmp_path / "data").write_bytes(content)
    store = PosixStore(tmp_path)

    assert transfer.check(Folder(store), [("data", len(content), crc32c(content))]) == []

    assert sum(taken) <= store.workers * store.window_nbytes
