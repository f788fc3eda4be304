"""An opened checkpoint, step or file: what it reads, what it says of damage, and what it lets go of."""

from pathlib import Path

import numpy as np
import pytest
from runs import state
from stores import MemoryStore

import ckptmgr
from ckptmgr import CorruptCheckpointError, StepNotFoundError
from ckptmgr.box import Box
from ckptmgr.checkpoint import Checkpoint, TreeSource, read_checked
from ckptmgr.checksum import crc32c
from ckptmgr.manifest import FileEntry
from ckptmgr.spec import TensorSpec
from ckptmgr.storage import Folder
from ckptmgr.treefile import Row, TreeFile
from ckptmgr_safetensors import SafetensorsBackend

ENTRY = FileEntry("a", 4, crc32c(b"data"))


def test_a_tensor_is_read_under_each_of_its_names(manager):
    shared = np.arange(3)
    manager.save(1, {"a": shared, "b": shared})

    with manager.open(1) as checkpoint:
        assert checkpoint.aliases == {"b": "a"}
        assert checkpoint.read("b").tolist() == [0, 1, 2]
        assert checkpoint.extents("b") == checkpoint.extents("a")


def test_a_read_fills_the_array_it_is_given(manager):
    manager.save(1, {"a": np.arange(3)})
    mine = np.zeros(3, int)

    assert manager.open(1).read("a", out=mine) is mine
    assert mine.tolist() == [0, 1, 2]


def test_a_tensor_that_lies_in_two_slices_is_read_as_one():
    raw = np.arange(6.0).tobytes()
    store, spec = MemoryStore({"f": raw}), TensorSpec("float64", (6,))
    rows = [Row("w", spec, "f", 24 * half, crc32c(raw[24 * half :][:24]), Box((3 * half,), (3 * half + 3,))) for half in (0, 1)]
    source = TreeSource(Folder(store), TreeFile({"w": {"$tensor": "w"}}, rows), lambda file: pytest.fail("no reader is needed"))

    with Checkpoint(source, backend="any", location="here") as checkpoint:
        assert checkpoint.load()["w"].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_step_without_a_skeleton_nests_as_its_paths_say():
    raw, spec = np.arange(3.0).tobytes(), TensorSpec("float64", (3,))
    rows = [Row("a/b", spec, "f", 0, crc32c(raw))]
    tree = TreeFile(None, rows, aliases={"tied": "a/b"}, paths={"a/b": ("a", "b"), "tied": ("c", "d")})
    source = TreeSource(Folder(MemoryStore({"f": raw})), tree, lambda file: pytest.fail("no reader is needed"))

    state = Checkpoint(source, backend="any", location="here").load()

    assert state["a"]["b"].tolist() == [0, 1, 2]
    assert state["c"]["d"] is state["a"]["b"]


def test_only_assets_are_given_as_assets(manager):
    manager.save(1, state(1), assets={"config.json": b"{}"})

    with manager.open(1) as checkpoint, pytest.raises(KeyError, match=r"no asset 'tree\.json' .*found: config\.json"):
        checkpoint.asset("tree.json")


def test_a_damaged_asset_names_its_file_and_step(manager):
    info = manager.save(1, state(1), assets={"config.json": b"{}"})
    (Path(info.path) / "config.json").write_bytes(b"[]")

    with manager.open(1) as checkpoint, pytest.raises(CorruptCheckpointError, match="crc32c") as caught:
        checkpoint.asset("config.json")

    assert (caught.value.step, caught.value.file) == (1, "config.json")


@pytest.mark.parametrize(
    "use", [Checkpoint.load, Checkpoint.verify, lambda it: it.read("model/w"), lambda it: it.asset("config.json")]
)
def test_whatever_is_asked_of_a_deleted_step_the_answer_is_that_it_is_gone(manager, use):
    manager.save(1, state(1), assets={"config.json": b"{}"})
    checkpoint = manager.open(1)
    manager.delete(1)

    with pytest.raises(StepNotFoundError, match="deleted or overwritten") as caught:
        use(checkpoint)

    assert caught.value.step == 1


@pytest.mark.parametrize("file", ["tree.json", "model.safetensors"])
def test_the_error_of_a_damaged_step_says_which_step_it_is(manager, file):
    info = manager.save(7, state(7))
    (Path(info.path) / file).write_bytes(b"")

    with pytest.raises(CorruptCheckpointError) as caught:
        manager.restore(7)

    assert (caught.value.step, caught.value.file) == (7, file)


@pytest.mark.parametrize("found", [{}, {"a": b"dat"}, {"a": b"data+"}, {"a": b"date"}], ids=["none", "short", "long", "other"])
def test_a_small_file_that_is_not_as_it_was_written_is_damage(found):
    with pytest.raises(CorruptCheckpointError) as caught:
        read_checked(Folder(MemoryStore(found)), ENTRY)

    assert caught.value.file == "a"


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), EOFError("cut off")])
def test_a_small_file_that_goes_while_it_is_read_is_damage(error):
    class Going(MemoryStore):
        def read_into(self, *_):
            raise error

    with pytest.raises(CorruptCheckpointError, match="while it was read"):
        read_checked(Folder(Going({"a": b"data"})), ENTRY)


def test_a_foreign_file_that_cannot_be_read_through_is_reported(tmp_path):
    path = tmp_path / "m.safetensors"
    ckptmgr.save(path, {"w": np.zeros(300)})

    with ckptmgr.open_checkpoint(path) as checkpoint:
        path.write_bytes(path.read_bytes()[:-8])
        problems = checkpoint.verify()

    assert [(Path(problem.file).name, problem.tensor) for problem in problems] == [("m.safetensors", "w")]


def test_the_first_tensor_may_be_larger_than_a_batch(tmp_path, monkeypatch):
    monkeypatch.setattr("ckptmgr.checkpoint.BATCH_NBYTES", 8)
    ckptmgr.save(tmp_path / "m.safetensors", {"big": np.zeros(9)})
    seen: list[tuple[int, int]] = []

    with ckptmgr.open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        checkpoint.verify(progress=lambda *counts: seen.append(counts))

    assert seen == [(72, 72)]


def test_closing_a_checkpoint_closes_its_source(manager):
    manager.save(1, state(1))
    closed = []

    with manager.open(1) as checkpoint:
        checkpoint._source.close = lambda: closed.append(1)

    assert closed == [1]


class Summed(SafetensorsBackend):
    """Safetensors, as if it had checksums, and wrong ones; counts what is closed."""

    closed = 0

    def open(self, folder, path):
        inner, backend = super().open(folder, path), self

        class Source(type(inner)):
            def extents(self, name):
                return [extent._replace(crc32c=0) for extent in inner.extents(name)]

            def extents_of(self, names):
                return inner.extents_of(names)._replace(checksums=[0] * len(names))

            def close(self):
                backend.closed += 1

        return Source(inner.folder, inner.places, inner.aliases, inner.metadata, inner.blobs)


def test_a_file_is_checked_as_the_caller_says_and_closed_after_a_load(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    ckptmgr.save(path, {"w": np.ones(3)})
    summed = Summed()
    monkeypatch.setattr("ckptmgr.backend.detect", lambda folder, name: summed)

    assert ckptmgr.open_checkpoint(path, verify="off").load()["w"].tolist() == [1, 1, 1]
    assert summed.closed == 0
    with pytest.raises(CorruptCheckpointError, match="crc32c"):
        ckptmgr.load(path)
    assert summed.closed == 1
