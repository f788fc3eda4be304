"""What only TensorFlow decodes or makes: positions of datasets, lookup tables, SavedModels of modules."""

from pathlib import Path
from typing import Any

import numpy as np
from frameworks import tf

import ckptmgr
from ckptmgr import transfer
from ckptmgr.backend import Contents, Folder, Part
from ckptmgr.source import paths_of
from ckptmgr.storage import PosixStore
from ckptmgr_tf_bundle import TFBundleBackend


def copied(folder: Path, prefix: str) -> str:
    """The checkpoint written again by ckptmgr, with all that it carries, under another prefix in that folder."""
    backend, place = TFBundleBackend(), Folder(PosixStore(folder))
    with backend.open(place, Path(prefix).name) as source:
        tensors = tuple(Part(name, spec) for name, spec in source.specs.items())
        strings = {name: source.read(name).ravel().tolist() for name, spec in source.specs.items() if spec.is_string}
        more = {"aliases": source.aliases, "blobs": source.blobs, "paths": paths_of(source), "strings": strings}
        transfer.write(place, backend.layout(Contents((tensors,), **more), stem="copy", align=1), source)
    return str(folder / "copy")


def table(**entries: int) -> Any:
    made = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    if entries:
        made.insert(tf.constant([*entries]), tf.constant([*entries.values()], tf.int64))
    return made


def test_position_of_a_dataset_is_listed_as_no_tensor_and_the_rest_is_read(tmp_path: Path) -> None:
    prefix = tf.train.Checkpoint(it=iter(tf.data.Dataset.range(5)), v=tf.Variable([3, 4])).save(str(tmp_path / "ck"))

    with ckptmgr.open_checkpoint(prefix) as checkpoint:
        names, blobs, v = list(checkpoint.specs), list(checkpoint.blobs), checkpoint.read("v")

    assert names == ["save_counter", "v"]
    assert "it/.ATTRIBUTES/ITERATOR_STATE" in blobs
    assert v.tolist() == [3, 4]


def test_position_of_a_dataset_is_carried_into_a_copy(tmp_path: Path) -> None:
    given, fresh, v = iter(tf.data.Dataset.range(5)), iter(tf.data.Dataset.range(5)), tf.Variable([0, 0])
    next(given)
    next(given)
    prefix = tf.train.Checkpoint(it=given, v=tf.Variable([3, 4])).save(str(tmp_path / "ck"))

    tf.train.Checkpoint(it=fresh, v=v).restore(copied(tmp_path, prefix)).assert_consumed()

    assert next(fresh).numpy() == 2
    assert v.numpy().tolist() == [3, 4]


def test_entries_of_a_lookup_table_are_tensors(tmp_path: Path) -> None:
    prefix = tf.train.Checkpoint(vocab=table(b=2)).write(str(tmp_path / "ck"))

    state = ckptmgr.load(prefix)

    assert state["vocab"][".ATTRIBUTES/table-keys"].tolist() == [b"b"]
    assert state["vocab"][".ATTRIBUTES/table-values"].tolist() == [2]


def test_lookup_table_is_carried_into_a_copy(tmp_path: Path) -> None:
    prefix = tf.train.Checkpoint(vocab=table(b=2, c=3)).save(str(tmp_path / "ck"))
    fresh = table()

    tf.train.Checkpoint(vocab=fresh).restore(copied(tmp_path, prefix)).assert_consumed()

    assert fresh.lookup(tf.constant(["c", "b", "a"])).numpy().tolist() == [3, 2, -1]


def test_lookup_table_is_loaded_saved_and_restored(tmp_path: Path) -> None:
    prefix = tf.train.Checkpoint(vocab=table(b=2, c=3)).save(str(tmp_path / "ck"))
    fresh, ours = table(), str(tmp_path / "ours")

    ckptmgr.save(ours, ckptmgr.load(prefix), backend="tf_bundle")
    tf.train.Checkpoint(vocab=fresh).restore(ours).assert_consumed()

    assert fresh.lookup(tf.constant(["c", "b", "a"])).numpy().tolist() == [3, 2, -1]


def test_variables_of_a_saved_module_are_read_from_its_folder(tmp_path: Path) -> None:
    module = tf.Module()
    module.parts = [tf.Variable([1.0, 2.0]), {"k": tf.Variable("text")}]
    tf.saved_model.save(module, str(tmp_path / "module"))

    state = ckptmgr.load(tmp_path / "module")

    assert state["parts"]["0"].tolist() == [1, 2]
    assert state["parts"]["1"]["k"].tolist() == b"text"


def test_weights_that_were_changed_in_numpy_are_restored_as_they_were_changed(tmp_path: Path) -> None:
    prefix = tf.train.Checkpoint(net={"w": tf.Variable([1.0, 2.0])}).save(str(tmp_path / "ck"))
    variable = tf.Variable([0.0, 0.0])

    state = ckptmgr.load(prefix)
    state["net"]["w"] *= np.float32(10)
    ckptmgr.save(prefix, state, backend="tf_bundle")
    tf.train.Checkpoint(net={"w": variable}).restore(prefix).assert_consumed()

    assert variable.numpy().tolist() == [10, 20]
