"""Every file by real Keras: values, names, order, configs; and what a file is told by."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from keras_files import GOLDEN, archive, h5, legacy, model, numbered, opened, stored, values

from ckptmgr.backend import Folder
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.storage import PosixStore
from ckptmgr_hdf5.keras_archive import open_hdf5
from ckptmgr_hdf5.keras_reading import open_keras, recognizes
from ckptmgr_hdf5.parsing import parse

SHARDS = [file.name for file in GOLDEN.glob("*_0000?.weights.h5")]
FILES = sorted(file.name for file in GOLDEN.iterdir() if file.suffix in (".h5", ".keras") and file.name not in SHARDS)
FILES.append("k3_tutorial_sharded.weights.json")
IN_ORDER = [name for name in FILES if name.endswith(".keras") and "subclassed" not in name]
LEGACY = [name for name in FILES if name.endswith(".h5") and not name.endswith(".weights.h5")]

TUTORIAL = ["layers/dense/kernel", "layers/dense/bias", "layers/dense_1/kernel", "layers/dense_1/bias"]
ADAM = [
    f"optimizer/{weight}/{slot}"
    for weight in ("dense_kernel", "dense_bias", "dense_1_kernel", "dense_1_bias")
    for slot in ("momentum", "velocity")
]
FUNCTIONAL = {  # here: in Keras 3
    "layers/bi/forward_layer/cell/kernel": "bi/forward_lstm/lstm_cell/kernel",
    "layers/bi/forward_layer/cell/recurrent_kernel": "bi/forward_lstm/lstm_cell/recurrent_kernel",
    "layers/bi/forward_layer/cell/bias": "bi/forward_lstm/lstm_cell/bias",
    "layers/bi/backward_layer/cell/kernel": "bi/backward_lstm/lstm_cell/kernel",
    "layers/bi/backward_layer/cell/recurrent_kernel": "bi/backward_lstm/lstm_cell/recurrent_kernel",
    "layers/bi/backward_layer/cell/bias": "bi/backward_lstm/lstm_cell/bias",
    "layers/inner/layers/inner_dense/kernel": "inner_dense/kernel",
    "layers/inner/layers/inner_dense/bias": "inner_dense/bias",
    "layers/inner/layers/inner_bn/gamma": "inner_bn/gamma",
    "layers/inner/layers/inner_bn/beta": "inner_bn/beta",
    "layers/inner/layers/inner_bn/moving_mean": "inner_bn/moving_mean",
    "layers/inner/layers/inner_bn/moving_variance": "inner_bn/moving_variance",
    "layers/lstm/cell/kernel": "lstm/lstm_cell/kernel",
    "layers/lstm/cell/recurrent_kernel": "lstm/lstm_cell/recurrent_kernel",
    "layers/lstm/cell/bias": "lstm/lstm_cell/bias",
    "layers/ss/scale": "ss/scale",
    "layers/ss/shift": "ss/shift",
    "layers/ss/calls": "ss/calls",
    "layers/probs/kernel": "probs/kernel",
    "layers/probs/bias": "probs/bias",
}
CUSTOM = {"layers/ss/vars/0": "layers/ss/scale", "layers/ss/vars/1": "layers/ss/shift", "layers/ss/vars/2": "layers/ss/calls"}


def facts(name: str) -> tuple[dict[str, Any], Any]:
    """What the maker of a file says of the live model: its description, and its arrays."""
    stem = "_".join(name.partition(".")[0].split("_")[: 3 if "legacyopt" in name else 2])
    return json.loads((GOLDEN / f"{stem}.expected.json").read_text()), np.load(GOLDEN / f"{stem}.expected.npz")


def live(name: str, kind: str) -> dict[str, np.ndarray]:
    """The live model's variables by name, in order, as bits; those of random generators are in no file."""
    found, arrays = facts(name)
    return {row["name"]: bits(arrays[row["npz"]]) for row in found[f"{kind}_variables"] if "seed_generator" not in row["name"]}


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def found(name: str, kind: str) -> dict[str, np.ndarray]:
    """Our tensors of the model or of the optimizer, as bits."""
    first = {"optimizer": ("optimizer",), "model": ("layers", "vars", "blocks", "heads")}[kind]
    return {key: bits(array) for key, array in values(GOLDEN / name).items() if key.split("/")[0] in first}


def same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return len(ours) == len(theirs) and all(
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
        for one, other in zip(ours, theirs, strict=True)
    )


def key(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return array.dtype.str, array.shape, array.tobytes()


@pytest.mark.parametrize("name", FILES)
def test_every_file_has_every_variable_of_the_live_model_bit_for_bit(name: str) -> None:
    ours = sorted(map(key, found(name, "model").values()))

    assert ours == sorted(map(key, live(name, "model").values()))


@pytest.mark.parametrize("name", [name for name in FILES if "weightsonly" not in name])
def test_every_file_has_the_optimizers_variables_in_order(name: str) -> None:
    assert same([*found(name, "optimizer").values()], [*live(name, "optimizer").values()])


@pytest.mark.parametrize("name", IN_ORDER)
def test_an_archive_has_the_models_variables_in_order(name: str) -> None:
    assert same([*found(name, "model").values()], [*live(name, "model").values()])


@pytest.mark.parametrize("name", LEGACY)
def test_a_legacy_file_has_the_weights_in_the_order_of_its_lists(name: str) -> None:
    variables, order = live(name, "model"), facts(name)[0]["legacy_order"]

    assert same([*found(name, "model").values()], [variables[weight] for weight in order])


@pytest.mark.parametrize("name", LEGACY)
def test_a_legacy_file_tells_the_layers_in_order(name: str) -> None:
    told = opened(GOLDEN / name).metadata["keras"]

    assert isinstance(told, dict)
    assert told["layer_names"] == facts(name)[0]["layer_names"]


@pytest.mark.parametrize("name", ["k3_tutorial.keras", "k3_tutorial.h5"])
def test_the_tutorials_model_has_the_same_names_in_both_layouts(name: str) -> None:
    assert [*opened(GOLDEN / name).tensors] == [*TUTORIAL, "optimizer/iteration", "optimizer/learning_rate", *ADAM]


@pytest.mark.parametrize("name", ["k2_tutorial.keras", "k2_tutorial.h5"])
def test_keras_2_has_the_same_names_but_for_the_rate(name: str) -> None:
    names = [key for key in opened(GOLDEN / name).tensors if not key.startswith("metrics/")]

    assert names == [*TUTORIAL, "optimizer/iteration", *ADAM]


def test_a_legacy_optimizer_of_keras_2_has_the_same_names() -> None:
    found = stored(GOLDEN / "k2_tutorial_legacyopt.h5")

    assert {*found} == {*TUTORIAL, "optimizer/iteration", *ADAM}
    assert found["optimizer/dense_1_bias/velocity"] == "/optimizer_weights/Adam/dense_1/bias/v:0"


@pytest.mark.parametrize("name", ["k3_functional.keras", "k3_functional.h5", "k2_functional.keras", "k2_functional.h5"])
def test_nested_and_wrapped_layers_have_their_own_names_in_both_layouts(name: str) -> None:
    variables = {weight.removesuffix(":0"): array for weight, array in live(name, "model").items()}

    ours = {CUSTOM.get(weight, weight): array for weight, array in found(name, "model").items()}

    assert {*ours} == {*FUNCTIONAL}
    assert all(same([array], [variables[FUNCTIONAL[weight]]]) for weight, array in ours.items())


def test_the_slots_of_a_wrapped_layer_are_called_after_its_weights() -> None:
    variables = live("k3_functional.keras", "optimizer")

    ours = found("k3_functional.keras", "optimizer")

    theirs = variables["rm_sprop/bi_backward_lstm_lstm_cell_bias_average_gradient"]
    assert same([ours["optimizer/bi_backward_layer_cell_bias/average_gradient"]], [theirs])
    assert same([ours["optimizer/inner_inner_bn_beta/momentum"]], [variables["rm_sprop/inner_bn_beta_momentum"]])


def test_a_subclassed_model_keeps_its_numbers_and_paths() -> None:
    names = [*opened(GOLDEN / "k3_subclassed.keras").tensors]

    assert names[:2] == ["vars/0", "blocks/batch_normalization/vars/0"]
    assert names[13:17] == ["optimizer/iteration", "optimizer/learning_rate", "optimizer/vars/2", "optimizer/vars/3"]


def test_weights_alone_are_called_as_they_are_stored() -> None:
    found = stored(GOLDEN / "k3_functional.weights.h5")

    assert all(path == f"/{name}" for name, path in found.items())


def test_bfloat16_is_told_by_the_attribute_beside_it() -> None:
    place = opened(GOLDEN / "k3_bf16.weights.h5").tensors["layers/dense/vars/0"]

    assert place.dtype is not None
    assert (place.dtype.name, place.dataset.kind) == ("bfloat16", "opaque")


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".keras")])
def test_an_archives_texts_are_carried_verbatim(name: str) -> None:
    with zipfile.ZipFile(GOLDEN / name) as source:
        config, about = source.read("config.json").decode(), source.read("metadata.json").decode()

    metadata = opened(GOLDEN / name).metadata

    assert (metadata["config"], metadata["archive_metadata"]) == (config, about)


@pytest.mark.parametrize("name", [name for name in LEGACY if "weightsonly" not in name])
def test_a_legacy_models_texts_are_carried_verbatim(name: str) -> None:
    with h5py.File(GOLDEN / name) as file:
        theirs = {key: file.attrs[key] for key in ("model_config", "training_config") if key in file.attrs}

    metadata = opened(GOLDEN / name).metadata

    assert {key: metadata[key] for key in metadata if key != "keras"} == theirs


@pytest.mark.parametrize(
    ("name", "kind", "version"),
    [
        ("k2_tutorial.h5", "legacy-model", "2.21.0"),
        ("k2_tutorial_weightsonly.h5", "legacy-weights", "2.21.0"),
        ("k3_tutorial.weights.h5", "weights", None),
        ("k3_tutorial_sharded.weights.json", "sharded-weights", None),
        ("k3_tutorial.keras", "archive", "3.15.1"),
    ],
)
def test_kind_and_version_are_told(name: str, kind: str, version: str | None) -> None:
    told = opened(GOLDEN / name).metadata["keras"]

    assert isinstance(told, dict)
    assert (told["kind"], told.get("keras_version")) == (kind, version)


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "k2_tutorial_weightsonly.h5", tmp_path / "x.weights.h5")

    assert [*opened(tmp_path / "x.weights.h5").tensors] == TUTORIAL


def test_a_file_of_another_tool_is_not_of_keras(tmp_path: Path) -> None:
    h5(tmp_path / "x.h5", lambda file: file.update({"vars/mean": np.zeros(3), "a/b": np.zeros(3)}))
    tree = open_hdf5(Folder(PosixStore(tmp_path)), "x.h5", parse)

    assert open_keras(tree) is None


def test_a_folder_is_read_like_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(GOLDEN / "k3_tutorial.keras") as source:
        source.extractall(tmp_path / "model")
    (tmp_path / "model" / "assets" / "layers").mkdir(parents=True)
    (tmp_path / "model" / "assets" / "layers" / "words.txt").write_bytes(b"one\ntwo\n")

    found = opened(tmp_path / "model")

    assert dict(found.blobs) == {"assets/layers/words.txt": b"one\ntwo\n"}
    assert [*found.tensors] == [*opened(GOLDEN / "k3_tutorial.keras").tensors]
    assert same([*values(tmp_path / "model").values()], [*values(GOLDEN / "k3_tutorial.keras").values()])


def test_a_folder_without_its_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("config.json", "metadata.json"):
        (tmp_path / "model" / name).write_text("{}")

    with pytest.raises(CorruptCheckpointError, match=r"model.weights.h5") as caught:
        opened(tmp_path / "model")
    assert caught.value.file == "model.weights.h5"


def test_assets_and_unknown_members_are_kept_and_read_when_they_are_asked_for(tmp_path: Path) -> None:
    extra = {"assets/layers/lookup/vocabulary.txt": b"a\nb", "notes/unknown.bin": bytes(range(256))}
    path = archive(tmp_path / "x.keras", model(), lambda file: numbered(file, {"": 1}), extra=extra)

    found = opened(path).blobs

    assert (len(found), "config.json" in found, dict(found)) == (2, False, extra)


def test_compressed_weights_are_read_from_memory(tmp_path: Path) -> None:
    config = model(("Dense", "d", {}))
    path = archive(tmp_path / "x.keras", config, lambda file: numbered(file, {"layers/dense": 2}), method=zipfile.ZIP_DEFLATED)

    assert opened(path).tensors["layers/d/bias"].hdf5.file is None
    assert {name: array.tolist() for name, array in values(path).items()} == {
        "layers/d/kernel": [0.0],
        "layers/d/bias": [1.0, 1.0],
    }


def test_stored_weights_are_read_where_they_lie_in_the_archive() -> None:
    place = opened(GOLDEN / "k3_tutorial.keras").tensors["layers/dense/kernel"]
    offset = place.dataset.offset

    assert offset is not None
    raw = (GOLDEN / "k3_tutorial.keras").read_bytes()[offset : offset + place.dataset.nbytes]
    assert same([np.frombuffer(raw, "<f4").reshape(32, 64)], [live("k3_tutorial.keras", "model")["tutorial/dense/kernel"]])


def test_paths_tell_how_names_nest_also_where_a_layers_name_has_a_slash(tmp_path: Path) -> None:
    path = h5(tmp_path / "x.h5", lambda file: legacy(file, {"block1/conv": {"block1/conv/kernel:0": 1.0}}))

    assert opened(path).paths == {"layers/block1/conv/kernel": ("layers", "block1/conv", "kernel")}


@pytest.mark.parametrize(
    ("path", "head", "siblings", "expected"),
    [
        ("m.keras", b"PK\x03\x04", ["m.keras"], True),
        ("renamed", (GOLDEN / "k3_tutorial.keras").read_bytes()[:4096], ["renamed"], True),
        ("x.zip", b"PK\x03\x04" + bytes(22) + b"\x05\x00\x00\x00a.txt", ["x.zip"], False),
        ("m.weights.json", (GOLDEN / "k3_tutorial_sharded.weights.json").read_bytes(), ["m.weights.json"], True),
        ("m.safetensors.index.json", b'{"weight_map": {"a": "m.safetensors"}}', ["m.safetensors.index.json"], False),
        ("model", b"", ["config.json", "metadata.json", "model.weights.h5"], True),
        ("", b"", ["config.json", "model.weights.h5"], True),
        ("", b"", ["config.json", "model.safetensors"], False),
        ("m.h5", b"\x89HDF\r\n\x1a\n", ["m.h5"], False),
    ],
)
def test_what_is_no_hdf5_file_is_recognized_by_content(path: str, head: bytes, siblings: list[str], expected: bool) -> None:
    assert recognizes(path, head, siblings) is expected
