"""From a state to files: what is planned before the first byte, and what the index of a step says of tensors."""

import json
from typing import Any

import numpy as np
import pytest
from frameworks import torch
from stores import MemoryStore

from ckptmgr import CheckpointManager, saving, tree
from ckptmgr.backend import Contents, FileLayout, Layout, TensorSpec
from ckptmgr.step import JSON
from ckptmgr.storage import Folder, PosixStore
from ckptmgr.treefile import Row
from ckptmgr_safetensors import SafetensorsBackend


def test_nothing_is_written_by_a_plan(tmp_path):
    planned = saving.plan(tree.flatten({"w": np.zeros(3)}), SafetensorsBackend(), stem="model")

    assert [file.name for file in planned.layout.files] == ["model.safetensors"]
    assert list(tmp_path.iterdir()) == []


def test_tensor_data_starts_at_a_page_and_rows_say_where_each_tensor_lies(tmp_path):
    state = {"a": np.arange(3, dtype=np.int8), "b": np.arange(5, dtype=np.float64)}
    planned = saving.plan(tree.flatten(state), SafetensorsBackend(), stem="model")

    placed: list[Any] = []
    written = saving.write(Folder(PosixStore(tmp_path)), planned, describe=placed.extend)

    raw = (tmp_path / "model.safetensors").read_bytes()
    rows = {row.name: row for row in map(Row._make, placed)}
    assert rows["b"].offset % saving.ALIGN == 0
    assert raw[rows["b"].offset :][:40] == state["b"].tobytes()
    assert raw[rows["a"].offset :][:3] == state["a"].tobytes()
    assert [(entry.name, entry.nbytes) for entry in written.files] == [("model.safetensors", len(raw))]


def test_files_of_an_older_set_are_stale_and_foreign_ones_are_not():
    layout = Layout((FileLayout("m.safetensors", (b"x",)),))
    names = ["m.safetensors", "m-00001-of-00002.safetensors", "m.safetensors.index.json", "mm.safetensors", "m-1.safetensors"]

    stale = saving.stale_files(layout, dict.fromkeys(names), backend=SafetensorsBackend(), stem="m")

    assert stale == ["m.safetensors.index.json", "m-00001-of-00002.safetensors"]


def test_names_that_only_begin_or_look_like_the_stem_are_foreign():
    layout = Layout((FileLayout("a.b.safetensors", (b"x",)),))
    names = ["a.b.safetensors.bak", "aXb.safetensors", "a.b-00001-of-00002.safetensors"]

    stale = saving.stale_files(layout, dict.fromkeys(names), backend=SafetensorsBackend(), stem="a.b")

    assert stale == ["a.b-00001-of-00002.safetensors"]


def test_of_a_set_that_a_single_file_replaces_the_index_goes_first_even_if_it_is_all_that_is_left():
    layout = Layout((FileLayout("m.safetensors", (b"x",)),))

    assert saving.stale_files(layout, ["m.safetensors.index.json"], backend=SafetensorsBackend(), stem="m") == [
        "m.safetensors.index.json"
    ]


def test_a_file_that_is_not_there_is_not_stale():
    layout = Layout((FileLayout("m.safetensors", (b"x",)),))

    stale = saving.stale_files(layout, ["m-00002-of-00002.safetensors"], backend=SafetensorsBackend(), stem="m")

    assert stale == ["m-00002-of-00002.safetensors"]


def test_plain_values_of_the_state_are_among_the_contents(monkeypatch):
    seen = []
    monkeypatch.setattr(SafetensorsBackend, "layout", lambda self, contents, *, stem, align: seen.append(contents))

    saving.plan(tree.flatten({"w": np.zeros(3), "epoch": 3, "none": None}), SafetensorsBackend(), stem="model")

    assert seen[0].scalars == {("epoch",): 3}


def test_string_tensors_are_parts_in_the_order_of_the_state(monkeypatch):
    seen = []
    monkeypatch.setattr(SafetensorsBackend, "layout", lambda self, contents, *, stem, align: seen.append(contents))

    saving.plan(tree.flatten({"b": np.zeros(3), "s": np.array(["x"]), "a": np.ones(1)}), SafetensorsBackend(), stem="model")

    assert [part.name for part in seen[0].files[0]] == ["b", "s", "a"]
    assert seen[0].strings == {"s": [b"x"]}


def test_string_tensors_are_read_through_the_file_that_is_opened(tmp_path):
    flat = tree.flatten({"s": np.array(["x"])})
    layout = Layout((FileLayout("m.data", (b"x",)), FileLayout("m.index", (b"y",))))

    placed: list[Any] = []
    saving.write(Folder(PosixStore(tmp_path)), saving.Plan(flat, layout), describe=placed.extend)

    assert [(row.name, row.file, row.offset) for row in map(Row._make, placed)] == [("s", "m.index", None)]


def test_the_files_of_a_step_are_written_before_its_assets_and_its_tree_last():
    store = MemoryStore()
    planned = saving.plan(tree.flatten({"w": np.zeros(3)}), SafetensorsBackend(), stem="model")

    entries = saving.write_step(Folder(store), planned, {"config.json": b"{}"})

    assert list(store.files) == ["model.safetensors", "config.json", "tree.json"]
    assert [entry.name for entry in entries] == list(store.files)


def test_metrics_may_be_arrays_and_tensors_of_one_element():
    metrics = {"loss": torch.tensor(0.5, requires_grad=True), "accuracy": np.array([0.25]), "tokens": 3}

    assert saving.numbers(metrics) == {"loss": 0.5, "accuracy": 0.25, "tokens": 3.0}


def test_a_tensor_of_several_elements_is_no_metric():
    with pytest.raises(TypeError, match="metric 'loss' must be a number"):
        saving.numbers({"loss": torch.zeros(2)})


def test_assets_are_taken_from_any_bytes_and_copied():
    mine = bytearray(b"mine")

    taken = saving.asset_bytes({"a": mine, "b": memoryview(mine)}, taken=())
    mine[:] = b"else"

    assert taken == {"a": b"mine", "b": b"mine"}


class WithStrings(SafetensorsBackend):
    """Safetensors, and string tensors as JSON in the file's metadata: a format that only its reader can decode."""

    name = "safetensors"

    def layout(self, contents: Contents, *, stem: str, align: int) -> Layout:
        values = {name: [value.decode() for value in strings] for name, strings in contents.strings.items()}
        carried = {**contents.metadata, "strings": json.dumps(values)}
        files = tuple(tuple(part for part in file if part.name not in values) for file in contents.files)
        plain = Contents(files, contents.aliases, {}, contents.blobs, carried, contents.paths)
        return super().layout(plain, stem=stem, align=align)

    def open(self, folder, path):
        return _StringSource(super().open(folder, path))


class _StringSource:
    def __init__(self, inner) -> None:
        self.inner = inner
        self.specs = {"vocab": TensorSpec("string", (2,))}

    def read(self, name, box=None, out=None):
        values = json.loads(self.inner.metadata["strings"])[name]
        return np.array([value.encode() for value in values], object)

    def close(self) -> None:
        closed.append(self)


closed: list[_StringSource] = []


def test_string_tensors_of_a_managed_step_are_read_by_the_formats_reader(tmp_path, monkeypatch):
    monkeypatch.setattr("ckptmgr.backend.find", lambda name: WithStrings())
    state = {"vocab": np.array(["a", "bc"]), "w": np.zeros(2)}
    manager = CheckpointManager(tmp_path, backend=WithStrings())
    manager.save(1, state)

    restored = manager.restore(1).state

    assert restored["vocab"].tolist() == ["a", "bc"]
    assert restored["w"].tolist() == [0, 0]


def test_the_formats_reader_is_closed_with_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("ckptmgr.backend.find", lambda name: WithStrings())
    manager = CheckpointManager(tmp_path, backend=WithStrings())
    manager.save(1, {"vocab": np.array(["a", "bc"])})
    closed.clear()

    with manager.open(1) as checkpoint:
        checkpoint.read("vocab")
        assert closed == []

    assert len(closed) == 1


def test_a_plan_tells_formats_the_skeleton_too() -> None:
    class Looking(SafetensorsBackend):
        def layout(self, contents: Contents, *, stem: str, align: int) -> Layout:
            seen.append(contents.skeleton)
            return super().layout(contents, stem=stem, align=align)

    seen: list[JSON] = []

    saving.plan(tree.flatten({"a": (1, None)}), Looking(), stem="model")

    assert seen == [{"a": {"$tuple": [1, None]}}]
