"""Small files of Keras that would be much work or memory: one of our errors or plain names, at once."""

import json
import time
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from bounds import cheap
from keras_files import archive, h5, legacy, model, numbered, opened

from ckptmgr.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError

SECONDS = 2.0


def refused(path: Path, problem: str, kind: type[CheckpointError] = CorruptCheckpointError) -> None:
    with cheap(SECONDS), pytest.raises(kind) as caught:
        opened(path)
    assert type(caught.value) is kind
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert getattr(caught.value, "file", None) == path.name


def sharded(folder: Path, weight_map: object, shards: dict[str, list[str]]) -> Path:
    for name, paths in shards.items():
        with h5py.File(folder / name, "w") as file:
            for path in paths:
                file[path] = np.float32(1)
    (folder / "m.weights.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder / "m.weights.json"


def of_layers(folder: Path, layer: str, count: int) -> Path:
    """An archive whose config lists a layer that many times, all of which have variables in the file."""
    text = f'{{"class_name": "Sequential", "config": {{"layers": [{", ".join([layer] * count)}]}}}}'
    return archive(folder / "x.keras", text, lambda file: numbered(file, {f"layers/mine_{index}": 1 for index in range(2000)}))


@pytest.mark.parametrize("of_model", [False, True])
def test_a_layer_that_is_listed_thousands_of_times_is_refused(tmp_path: Path, of_model: bool) -> None:
    def fill(file: h5py.File) -> None:
        group = file.create_group("model_weights") if of_model else file
        legacy(group, {"a": {f"w{index}": 0.0 for index in range(2000)}})
        group.attrs["layer_names"] = [b"a"] * 4000

    refused(h5(tmp_path / "x.h5", fill), "'a': the layer is listed twice")


def test_layers_that_have_the_same_weight_are_refused(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        legacy(file, {"a": {"b/w": 1.0}})
        file["a/b"].attrs["weight_names"] = [b"w"]
        file.attrs["layer_names"] = [b"a", b"a/b"]

    refused(h5(tmp_path / "x.h5", fill), "'/a/b/w': a weight is listed twice")


def test_a_list_of_the_optimizer_that_repeats_itself_is_refused(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        legacy(file.create_group("model_weights"), {"a": {"a/w": 1.0}})
        file["optimizer_weights/m"] = np.float32(0)
        for index in range(10):
            file["optimizer_weights"].attrs[f"weight_names{index}"] = np.array([b"m"] * 30_000)

    refused(h5(tmp_path / "x.h5", fill), "'/optimizer_weights/m': a weight is listed twice")


@pytest.mark.parametrize(
    ("layer", "weight", "kind", "problem"),
    [
        (b"n" * 9000, b"w", CorruptCheckpointError, "n': the layer is listed, and has no group"),
        (b"../" * 3000, b"w", UnsafeCheckpointError, "../': the name leads elsewhere"),
        (b"a", b"n" * 9000, CorruptCheckpointError, "n': the weight is listed, and has no dataset"),
        (b"a", b"/" * 9000, UnsafeCheckpointError, "/': the name leads elsewhere"),
    ],
)
def test_names_in_messages_are_cut(
    tmp_path: Path, layer: bytes, weight: bytes, kind: type[CheckpointError], problem: str
) -> None:
    def fill(file: h5py.File) -> None:
        legacy(file, {"a": {"a/w": 1.0}})
        file.attrs["layer_names"] = [layer]
        file["a"].attrs["weight_names"] = [weight]

    path = h5(tmp_path / "x.h5", fill)
    with pytest.raises(kind) as caught:
        opened(path)
    assert problem.rpartition("': ")[2] in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 350


def test_names_of_datasets_that_are_left_out_are_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fill(file: h5py.File) -> None:
        legacy(file, {"a": {"a/w": 1.0}})
        file["n" * 9000] = np.zeros(1)

    opened(h5(tmp_path / "x.h5", fill))

    assert "'/" + "n" * 199 + "'" in caplog.text


def test_an_index_that_spells_one_group_in_many_ways_is_refused(tmp_path: Path) -> None:
    weight_map = {"/" * index + "layers/d/vars": "a.weights.h5" for index in range(1, 800)}
    index = sharded(tmp_path, weight_map, {"a.weights.h5": [f"layers/d/vars/{number}" for number in range(2000)]})

    refused(index, "'//layers/d/vars': it is no path of a group")


@pytest.mark.parametrize("path", ["layers/d/vars", "/layers/d/vars/", "/layers//d/vars", "/", "", "//"])
def test_a_key_of_an_index_is_a_plain_absolute_path(tmp_path: Path, path: str) -> None:
    index = sharded(tmp_path, {path: "a.weights.h5"}, {"a.weights.h5": ["layers/d/vars/0"]})

    refused(index, f"{path!r}: it is no path of a group, such as '/layers/dense/vars'")


@pytest.mark.parametrize("is_inner_first", [False, True])
def test_a_dataset_that_an_index_has_in_two_files_by_different_groups_is_refused(tmp_path: Path, is_inner_first: bool) -> None:
    weight_map = {"/layers/d": "b.weights.h5", "/layers/d/vars": "a.weights.h5"}
    if is_inner_first:
        weight_map = dict(reversed(weight_map.items()))
    shards = {"a.weights.h5": ["layers/d/vars/0"], "b.weights.h5": ["layers/d/vars/0"]}

    refused(sharded(tmp_path, weight_map, shards), "'/layers/d/vars/0': it is in two files")


def test_an_index_that_goes_through_one_tree_from_each_of_its_groups_is_refused(tmp_path: Path) -> None:
    weight_map = {"/a" * depth: "a.weights.h5" for depth in range(1, 150)}
    index = sharded(tmp_path, weight_map, {})
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        deepest = file.create_group("/a" * 150)
        for number in range(2000):
            deepest.create_group(str(number))

    refused(index, "'/a/a': it is inside of '/a', which should be in 'a.weights.h5' as well")


def test_groups_inside_of_each_other_are_read_from_their_own_files(tmp_path: Path) -> None:
    weight_map = {"/vars": "a.weights.h5", "/vars/vars": "b.weights.h5"}
    index = sharded(tmp_path, weight_map, {"a.weights.h5": ["vars/0"], "b.weights.h5": ["vars/vars/0"]})

    assert [*opened(index).tensors] == ["vars/0", "vars/vars/0"]


def test_an_index_over_four_megabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.weights.json").write_text('{"weight_map": {' + " " * (60 << 20) + "}}")

    refused(tmp_path / "m.weights.json", "62914578 bytes are over the limit of 4194304")


@pytest.mark.parametrize("name", ["config.json", "metadata.json"])
def test_a_compressed_text_over_four_megabytes_is_refused(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "x.keras", model(), lambda file: numbered(file, {"layers/dense": 1}))
    _deflate(path, name, [b'"' + np.random.default_rng(1).integers(97, 99, 1 << 20, np.uint8).tobytes()] * 62)

    refused(path, f"{name!r}: it is compressed and has 65011774 bytes, of which at most 4194304 are decompressed: save the model")


def test_compressed_weights_over_sixteen_megabytes_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.keras", model(), lambda file: numbered(file, {"layers/dense": 1}))
    _deflate(path, "model.weights.h5", [np.random.default_rng(1).integers(0, 2, 1 << 20, np.uint8).tobytes()] * 17)

    refused(path, "'model.weights.h5': it is compressed and has 17825792 bytes, of which at most 16777216 are decompressed")


def noise(nbytes: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).integers(97, 99, nbytes, np.uint8)


def test_a_compressed_text_within_the_limit_takes_little_memory(tmp_path: Path) -> None:
    text = '{"words": "\U0001f600' + noise(4_100_000).tobytes().decode() + '"}'
    path = archive(tmp_path / "x.keras", text, lambda file: numbered(file, {"layers/dense": 1}), method=zipfile.ZIP_DEFLATED)

    with cheap(SECONDS):
        found = opened(path)
    assert found.metadata["config"] == text


def test_compressed_weights_within_the_limit_take_little_memory(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file["layers/dense/vars/0"] = noise(15 << 20)

    path = archive(tmp_path / "x.keras", model(), fill, method=zipfile.ZIP_DEFLATED)

    with cheap(SECONDS):
        assert [*opened(path).tensors] == ["layers/dense/vars/0"]


def _deflate(path: Path, replaced: str, pieces: list[bytes]) -> None:
    """The archive with a member of those bytes, all of it compressed."""
    with zipfile.ZipFile(path) as source:
        kept = {name: source.read(name) for name in source.namelist() if name != replaced}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for name, data in kept.items():
            target.writestr(name, data)
        with target.open(replaced, "w") as member:
            for piece in pieces:
                member.write(piece)


@pytest.mark.parametrize(
    ("layer", "count"),
    [
        ('{"class_name": "Mine"}', 60_000),
        ('{"class_name": "LSTM"}', 60_000),
        ('{"class_name": "Bidirectional", "config": {"layer": {"class_name": "MultiHeadAttention"}}}', 30_000),
        ("1", 300_000),
    ],
    ids=["unknown", "lstm", "doubled", "numbers"],
)
def test_a_model_of_more_than_ten_thousand_layers_keeps_its_stored_names(tmp_path: Path, layer: str, count: int) -> None:
    path = of_layers(tmp_path, layer, count)

    started = time.process_time()
    names = [*opened(path).tensors]
    assert time.process_time() - started < SECONDS  # without tracing, which takes several times as long
    with cheap():
        assert [*opened(path).tensors] == names
    assert len(names) == 2000
    assert "layers/mine_7/vars/0" in names


def test_layers_inside_of_layers_count_as_well(tmp_path: Path) -> None:
    inner: dict[str, Any] = {"class_name": "Sequential", "config": [{"class_name": "Dense", "config": {"name": "d"}}] * 200}

    assert "layers/sequential/layers/d/kernel" in opened(_nested(tmp_path, inner, 49)).tensors
    assert "layers/sequential/layers/dense/vars/0" in opened(_nested(tmp_path, inner, 50)).tensors


def _nested(folder: Path, inner: object, count: int) -> Path:
    config = {"class_name": "Sequential", "config": {"layers": [inner] * count}}
    inner_path = "layers/sequential/layers/dense"
    return archive(folder / "x.keras", config, lambda file: numbered(file, {inner_path: 2}))
