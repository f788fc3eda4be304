"""What is in the Keras files that ckptmgr writes, as h5py and zipfile see it."""

import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from keras_forms import GOLDEN, Saved, golden, planned, rewrite, saved, source, write

from ckptmgr import transfer
from ckptmgr.backend import Box, Contents, Part, TensorSpec, tensor_spec
from ckptmgr.errors import UnsupportedTensorError
from ckptmgr.memory import MemorySource
from ckptmgr.storage import Folder
from ckptmgr.testing.pipe import ForwardStore
from ckptmgr_hdf5 import keras_filesets, keras_trees, keras_writing
from ckptmgr_hdf5.encoding import GroupNode, encode
from ckptmgr_hdf5.keras_trees import Legacy, Release


def opened(node: GroupNode, path: Path) -> h5py.File:
    path.write_bytes(b"".join(piece for piece in encode(node, align=8).pieces if isinstance(piece, bytes)))
    return h5py.File(path)


def test_an_archive_has_the_members_in_keras_order_and_byte_for_byte(tmp_path: Path) -> None:
    held = golden("k3_tutorial.keras")
    assets = {"assets/layers/string_lookup/vocabulary.txt": b"a\nb\n", "readme": b"\0\xff"}

    path = rewrite(tmp_path, Saved(held.tensors, held.metadata, assets), "keras")

    with zipfile.ZipFile(path) as ours, zipfile.ZipFile(GOLDEN / "k3_tutorial.keras") as theirs:
        assert ours.namelist() == ["metadata.json", "config.json", "model.weights.h5", *assets]
        assert all(ours.read(name) == data for name, data in assets.items())
        assert all(ours.read(name) == theirs.read(name) for name in ("metadata.json", "config.json"))
        assert {info.compress_type for info in ours.infolist()} == {zipfile.ZIP_STORED}


def test_a_copied_file_has_every_object_and_attribute_of_its_template(tmp_path: Path) -> None:
    for name, form in (("k3_functional.h5", "keras-legacy"), ("k2_functional.weights.h5", "keras-weights")):
        held = golden(name)
        with source(GOLDEN / name) as template:
            path = write(tmp_path / form, held.tensors, planned(held.tensors, form, template=template))

        with h5py.File(path) as ours, h5py.File(GOLDEN / name) as theirs:
            assert contents(ours) == contents(theirs)


def test_a_legacy_file_has_all_objects_and_attributes_without_a_template_too(tmp_path: Path) -> None:
    for name in ("k2_functional.h5", "k3_functional.h5"):
        path = rewrite(tmp_path / name, golden(name), "keras-legacy")

        with h5py.File(path) as ours, h5py.File(GOLDEN / name) as theirs:
            assert contents(ours) == contents(theirs)


@pytest.mark.parametrize("form", ["keras", "keras-weights"])
def test_a_model_saved_as_a_folder_is_a_template_as_well(tmp_path: Path, form: keras_writing.Form) -> None:
    held = golden("k3_subclassed.keras")
    with zipfile.ZipFile(GOLDEN / "k3_subclassed.keras") as archive:
        archive.extractall(tmp_path / "model")

    with source(tmp_path / "model") as template:
        path = write(tmp_path / "out", held.tensors, planned(held.tensors, form, template=template))

    again = saved(path)
    stored, before = again.metadata["keras"]["stored"], held.metadata["keras"]["stored"]
    assert {stored[name]: array.tobytes() for name, array in again.tensors.items()} == {
        before[name]: array.tobytes() for name, array in held.tensors.items()
    }


def test_weights_of_keras_2_12_stay_in_the_group_that_it_called_otherwise(tmp_path: Path) -> None:
    stored = {"layers/dense/vars/0": "/_layer_checkpoint_dependencies/dense/vars/0"}
    held = Saved({"layers/dense/vars/0": np.ones(3, "f4")}, {"keras": {"kind": "weights", "stored": stored}}, {})

    with h5py.File(rewrite(tmp_path, held, "keras-weights")) as file:
        assert file["_layer_checkpoint_dependencies/dense/vars/0"][()].tolist() == [1, 1, 1]
        assert list(file["vars"]) == []


def contents(file: h5py.File) -> dict[str, Any]:
    """Objects by path with their attributes and, for datasets, their bytes."""
    found = {"/": attributes(file)}
    file.visititems(lambda path, node: found.update({path: (attributes(node), dataset_bytes(node))}))
    return found


def attributes(node: Any) -> dict[str, Any]:
    return {name: np.asarray(value).astype("S").tolist() for name, value in node.attrs.items()}


def dataset_bytes(node: Any) -> Any:
    return (node.dtype.str, node.shape, node[()].tobytes()) if isinstance(node, h5py.Dataset) else None


def test_what_is_no_tensor_of_the_model_is_copied_with_a_template(tmp_path: Path) -> None:
    held = golden("k3_tutorial.h5")
    (tmp_path / "t.h5").write_bytes((GOLDEN / "k3_tutorial.h5").read_bytes())
    with h5py.File(tmp_path / "t.h5", "r+") as file:
        file["notes"] = ["who", "trained", "it"]
        file["labels"] = np.array([b"cat", b"dog"])
        file["model_weights"].attrs["rate"] = np.float32(0.5)
        file["model_weights"].attrs["tags"] = ["x", "yy"]

    with source(tmp_path / "t.h5") as template:
        path = write(tmp_path / "out", held.tensors, planned(held.tensors, "keras-legacy", template=template))

    with h5py.File(path) as file:
        assert file["notes"].asstr()[()].tolist() == ["who", "trained", "it"]
        assert file["labels"][()].tolist() == [b"cat", b"dog"]
        assert file["model_weights"].attrs["rate"] == np.float32(0.5)
        assert file["model_weights"].attrs["tags"].tolist() == [b"x", b"yy"]


def test_empty_lists_of_names_are_empty_arrays_of_floats_as_keras_has_them(tmp_path: Path) -> None:
    held = golden("k3_tutorial.h5")

    with h5py.File(rewrite(tmp_path, held, "keras-legacy")) as file:
        names = file["model_weights/dropout"].attrs["weight_names"]

    assert (names.dtype, names.shape) == (np.dtype("f8"), (0,))


def test_long_lists_of_names_are_split_as_keras_splits_them(tmp_path: Path) -> None:
    layers: dict[str, dict[str, str]] = {f"layer_with_a_name_{index:05d}": {} for index in range(5000)}
    group = keras_trees.legacy_weights(Legacy(layers, {}, {}), Release("3.0.0", "jax"), {})

    with opened(group, tmp_path / "f.h5") as file:
        lists = [file.attrs[f"layer_names{index}"] for index in range(2)]
        assert "layer_names" not in file.attrs
        assert "layer_names2" not in file.attrs

    assert [len(names) for names in lists] == [2500, 2500]
    assert [name.decode() for names in lists for name in names] == [*layers]


def test_4090_short_names_fit_since_they_are_of_fixed_length(tmp_path: Path) -> None:
    layers: dict[str, dict[str, str]] = {f"l{index:04d}": {} for index in range(5000)}
    group = keras_trees.legacy_weights(Legacy(layers, {}, {}), Release("3.0.0", "jax"), {})

    with opened(group, tmp_path / "f.h5") as file:
        assert file.attrs["layer_names"].dtype == np.dtype("S5")


def test_a_name_over_the_limit_of_keras_is_refused() -> None:
    with pytest.raises(ValueError, match="64513 bytes, and Keras reads at most 64512"):
        keras_trees.names_attribute("layer_names", ["x" * 64513])


def test_a_layer_name_with_a_slash_leads_to_nested_groups(tmp_path: Path) -> None:
    specs = {"w": TensorSpec("float32", (0,))}
    group = keras_trees.legacy_weights(
        Legacy({"block1/conv": {"block1/conv/kernel:0": "w"}}, {}, {}), Release("2.3.0", "tf"), specs
    )

    with opened(group, tmp_path / "f.h5") as file:
        assert file["block1/conv/block1/conv/kernel:0"].shape == (0,)
        assert file["block1/conv"].attrs["weight_names"].tolist() == [b"block1/conv/kernel:0"]


def test_a_config_over_64_kib_fits_in(tmp_path: Path) -> None:
    held = golden("k3_tutorial.h5")
    config = json.loads(held.metadata["model_config"])
    config["config"]["note"] = "ä" * 100_000
    text = json.dumps(config, ensure_ascii=False)

    path = rewrite(tmp_path, Saved(held.tensors, {**held.metadata, "model_config": text}, {}), "keras-legacy")

    with h5py.File(path) as file:
        assert file.attrs["model_config"] == text


def test_bfloat16_is_opaque_with_keras_note(tmp_path: Path) -> None:
    with h5py.File(rewrite(tmp_path, golden("k3_bf16.weights.h5"), "keras-weights")) as file:
        kernel = file["layers/dense/vars/0"]
        assert (kernel.dtype.str, kernel.attrs["dtype"]) == ("|V2", "bfloat16")


def test_a_size_limit_makes_shards_and_an_index_like_keras_own(tmp_path: Path) -> None:
    held = golden("k3_tutorial.weights.h5")

    path = rewrite(tmp_path, held, "keras-weights", most=9000)

    index = json.loads(path.read_text())
    assert path.name == "model.weights.json"
    assert index["metadata"] == {"total_size": 33_156.0}
    assert index["weight_map"]["/layers/dense/vars"] == ["model_00000.weights.h5"]
    assert len(index["weight_map"]["/optimizer/vars"]) > 1
    again = saved(path)
    assert {name: array.tobytes() for name, array in again.tensors.items()} == {n: a.tobytes() for n, a in held.tensors.items()}


@pytest.mark.parametrize("form", ["keras", "keras-legacy"])
def test_only_weights_may_have_several_files(form: keras_writing.Form) -> None:
    held = golden("k3_tutorial.keras")

    with pytest.raises(ValueError, match="do without max_file_nbytes"):
        planned(held.tensors, form, metadata=held.metadata, most=100)


@pytest.mark.parametrize("form", ["keras", "keras-weights"])
def test_the_same_state_gives_the_same_bytes_also_into_a_pipe(tmp_path: Path, form: keras_writing.Form) -> None:
    held = golden("k3_functional.keras")
    path = rewrite(tmp_path, held, form)
    pipe = ForwardStore()
    specs = {name: tensor_spec(array.dtype, array.shape) for name, array in held.tensors.items()}

    transfer.write(Folder(pipe), planned(held.tensors, form, metadata=held.metadata), MemorySource(held.tensors, specs))

    assert pipe.files[path.name] == path.read_bytes()


def test_big_tensors_in_an_archive_lie_at_page_boundaries(tmp_path: Path) -> None:
    tensors = {"layers/dense/vars/0": np.arange(1 << 16, dtype="f4"), "layers/dense/vars/1": np.ones(3, "f4")}
    config = {"class_name": "Mine", "config": {}, "module": "mine"}
    stored = {name: name for name in tensors}
    metadata = {"config": json.dumps(config), "keras": {"kind": "archive", "stored": stored}}

    path = rewrite(tmp_path, Saved(tensors, metadata, {}), "keras")

    with source(path) as again:
        assert [extent.offset % 4096 for extent in again.extents("layers/dense/vars/0")] == [0]


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        (Part("w", TensorSpec("float32", (4,)), Box((0,), (2,))), "no slices"),
        (Part("w", TensorSpec("string", (4,))), "no text"),
    ],
)
def test_what_is_no_whole_array_is_refused(part: Part, problem: str) -> None:
    with pytest.raises(UnsupportedTensorError, match=problem):
        keras_writing.layout(Contents(files=((part,),)), form="keras", stem="m", align=8)


@pytest.mark.parametrize(
    ("contents", "problem"),
    [
        (Contents(files=((),), aliases={"b": "a"}), "no tied tensors"),
        (Contents(files=((),), scalars={("epoch",): 3}), "'epoch' is a plain value"),
    ],
)
def test_what_keras_has_no_place_for_is_refused(contents: Contents, problem: str) -> None:
    with pytest.raises(UnsupportedTensorError, match=problem):
        keras_writing.layout(contents, form="keras", stem="m", align=8)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int4", "datetime64[s]"])
def test_a_dtype_that_keras_files_have_not_is_refused(dtype: str) -> None:
    with pytest.raises(UnsupportedTensorError, match="'w'"):
        keras_trees.dataset("w", TensorSpec(dtype, (2,)))


def test_names_of_files_are_grouped_by_stem_with_the_one_to_open_last() -> None:
    names = [
        "a.keras",
        "b.weights.h5",
        "c_00000.weights.h5",
        "c_00001.weights.h5",
        "c.weights.json",
        "d_00010.weights.h5",
        "e.h5",
    ]

    assert keras_filesets.file_sets(names, ".keras") == {"a": ["a.keras"]}
    assert keras_filesets.file_sets(names, ".weights.h5") == {
        "b": ["b.weights.h5"],
        "c": ["c_00000.weights.h5", "c_00001.weights.h5", "c.weights.json"],
        "d_00010": ["d_00010.weights.h5"],
    }
