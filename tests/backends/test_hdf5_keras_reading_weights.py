"""The layout of Keras 3: numbers in their order, names by class, optimizers, and weights in several files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from keras_files import GOLDEN, Fill, archive, h5, model, numbered, opened, stored, values

from ckptmgr.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError

ADAM = {"module": "keras.optimizers", "class_name": "Adam", "config": {"learning_rate": 0.001}}


def named(tmp_path: Path, config: object, groups: Mapping[str, int]) -> list[str]:
    """The names in an archive of that config, whose weights have these groups."""
    return [*opened(archive(tmp_path / "x.keras", config, lambda file: numbered(file, groups))).tensors]


def shaped(groups: Mapping[str, list[tuple[int, ...]]]) -> Fill:
    """A file with variables of those shapes in groups."""

    def fill(file: h5py.File) -> None:
        for path, shapes in groups.items():
            for index, shape in enumerate(shapes):
                file[f"{path}/vars/{index}"] = np.zeros(shape, np.float32)

    return fill


def sharded(folder: Path, weight_map: object, shards: Mapping[str, Mapping[str, float]]) -> Path:
    """Weights in several files, each with scalars by path."""
    for name, held in shards.items():
        h5(folder / name, lambda file, held=held: file.update({path: np.float32(number) for path, number in held.items()}))
    index = folder / "m.weights.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1.0}, "weight_map": weight_map}))
    return index


def test_numbers_are_in_their_order_and_not_in_that_of_text(tmp_path: Path) -> None:
    path = h5(tmp_path / "x.weights.h5", lambda file: numbered(file, {"layers/big": 12}))

    assert [*opened(path).tensors] == [f"layers/big/vars/{index}" for index in range(12)]
    assert [len(array) for array in values(path).values()] == [*range(1, 13)]


def test_the_models_own_variables_come_first_and_the_optimizer_and_metrics_last(tmp_path: Path) -> None:
    path = h5(tmp_path / "x.weights.h5", lambda file: numbered(file, {"optimizer": 1, "metrics/mean": 1, "stem": 1, "": 1}))

    assert [*opened(path).tensors] == ["vars/0", "stem/vars/0", "optimizer/vars/0", "metrics/mean/vars/0"]


def test_what_keras_2_12_called_the_layers_is_read_as_layers(tmp_path: Path) -> None:
    groups = {"_layer_checkpoint_dependencies/dense": 2, "_layer_checkpoint_dependencies/inner/layers/dense": 1}
    path = h5(tmp_path / "x.weights.h5", lambda file: numbered(file, groups))

    assert stored(path) == {
        "layers/dense/vars/0": "/_layer_checkpoint_dependencies/dense/vars/0",
        "layers/dense/vars/1": "/_layer_checkpoint_dependencies/dense/vars/1",
        "layers/inner/layers/dense/vars/0": "/_layer_checkpoint_dependencies/inner/layers/dense/vars/0",
    }


def test_a_model_with_an_attribute_of_that_name_beside_layers_keeps_both(tmp_path: Path) -> None:
    groups = {"_layer_checkpoint_dependencies/dense": 1, "layers/dense": 1}
    path = h5(tmp_path / "x.weights.h5", lambda file: numbered(file, groups))

    assert {*opened(path).tensors} == {f"{group}/vars/0" for group in groups}


@pytest.mark.parametrize(
    ("note", "dtype"),
    [("bfloat16", "bfloat16"), (np.bytes_(b"bfloat16"), "bfloat16"), (None, "bfloat16"), ("float32", None), ("nonsense", None)],
)
def test_two_bytes_are_what_the_note_says(tmp_path: Path, note: Any, dtype: str | None) -> None:
    def fill(file: h5py.File) -> None:
        file["vars/0"] = np.zeros(3, "V2")
        if note is not None:
            file["vars/0"].attrs["dtype"] = note

    place = opened(h5(tmp_path / "x.weights.h5", fill)).tensors["vars/0"]

    assert (place.dtype and place.dtype.name) == dtype


def test_one_byte_without_a_note_has_no_dtype(tmp_path: Path) -> None:
    path = h5(tmp_path / "x.weights.h5", lambda file: file.create_dataset("vars/0", data=np.zeros(3, "V1")))

    assert opened(path).tensors["vars/0"].dtype is None


def test_a_note_of_one_byte_floats_is_followed(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file["vars/0"] = np.zeros(3, "V1")
        file["vars/0"].attrs["dtype"] = "float8_e4m3fn"

    place = opened(h5(tmp_path / "x.weights.h5", fill)).tensors["vars/0"]

    assert place.dtype is not None
    assert place.dtype.name == "float8_e4m3fn"


def test_layers_are_found_by_their_classes_counted_and_called_by_their_own_names(tmp_path: Path) -> None:
    config = model(("Dense", "first", {}), ("Conv2D", "conv", {}), ("Dense", "second", {"use_bias": False}))

    names = named(tmp_path, config, {"layers/dense": 2, "layers/dense_1": 1, "layers/conv2d": 2})

    assert names == [
        "layers/first/kernel",
        "layers/first/bias",
        "layers/conv/kernel",
        "layers/conv/bias",
        "layers/second/kernel",
    ]


def test_a_class_with_another_number_of_variables_keeps_its_numbers(tmp_path: Path) -> None:
    config = model(("Dense", "int8", {"use_bias": True}))

    assert named(tmp_path, config, {"layers/dense": 3}) == [f"layers/int8/vars/{index}" for index in range(3)]


def test_a_registered_class_keeps_its_numbers_under_the_layers_own_name(tmp_path: Path) -> None:
    config = model()
    layer = {"module": None, "class_name": "Dense", "registered_name": "mine>Dense", "config": {"name": "special"}}
    config["config"]["layers"] = [layer]

    names = named(tmp_path, config, {"layers/dense": 2, "layers/dense/part": 1})

    assert names == ["layers/special/vars/0", "layers/special/vars/1", "layers/special/part/vars/0"]


def test_an_unregistered_class_of_a_known_name_is_not_taken_for_that_of_keras(tmp_path: Path) -> None:
    config = model()
    config["config"]["layers"] = [
        {"module": "__main__", "class_name": "Dense", "registered_name": "Dense", "config": {"name": "d"}}
    ]

    assert named(tmp_path, config, {"layers/dense": 2}) == ["layers/d/vars/0", "layers/d/vars/1"]


def test_inner_models_are_entered_layer_by_layer(tmp_path: Path) -> None:
    inner = {"layers": model(("Embedding", "words", {}), ("Dropout", "drop", {}))["config"]["layers"]}
    config = model(("Sequential", "a", inner), ("Sequential", "b", inner))

    groups = {"layers/sequential/layers/embedding": 1, "layers/sequential_1/layers/embedding": 1}
    assert named(tmp_path, config, groups) == ["layers/a/layers/words/embeddings", "layers/b/layers/words/embeddings"]


def test_a_layer_that_is_stored_elsewhere_hides_no_other(tmp_path: Path) -> None:
    config = model(("Dense", "shared", {}), ("Dense", "own", {}))

    names = named(tmp_path, config, {"layers/dense_1": 2, "elsewhere/dense": 2})

    assert names == ["layers/own/kernel", "layers/own/bias", "elsewhere/dense/vars/0", "elsewhere/dense/vars/1"]


def test_two_layers_of_one_name_keep_their_stored_paths(tmp_path: Path) -> None:
    config = model(("PReLU", "same", {}), ("PReLU", "same", {}))

    names = named(tmp_path, config, {"layers/p_re_lu": 1, "layers/p_re_lu_1": 1})

    assert names == ["layers/p_re_lu/vars/0", "layers/p_re_lu_1/vars/0"]


def test_wrappers_in_wrappers_that_would_double_without_end_are_not_entered(tmp_path: Path) -> None:
    layer: dict[str, Any] = {"class_name": "LSTM", "config": {}}
    for _ in range(60):
        layer = {"class_name": "Bidirectional", "config": {"layer": layer}}
    config = model(("Bidirectional", "b", {"layer": layer}))

    assert named(tmp_path, config, {"layers/bidirectional/forward_layer": 1}) == ["layers/b/forward_layer/vars/0"]


@pytest.mark.parametrize(
    "config", ["[]", "{}", '{"config": {"layers": 3}}', '{"class_name": "Sequential", "config": {"layers": [3, {}]}}']
)
def test_a_config_that_tells_nothing_leaves_the_stored_names(tmp_path: Path, config: str) -> None:
    assert named(tmp_path, config, {"layers/dense": 1}) == ["layers/dense/vars/0"]


@pytest.mark.parametrize(
    ("kind", "rest", "slots"),
    [
        ("SGD", {"momentum": 0.0}, []),
        ("SGD", {"momentum": 0.9}, ["w/momentum", "v/momentum"]),
        ("AdamW", {"amsgrad": False}, ["w/momentum", "w/velocity", "v/momentum", "v/velocity"]),
        ("Lion", {}, ["w/momentum", "v/momentum"]),
        ("Adagrad", {"use_ema": True}, ["w/average", "v/average", "w/accumulator", "v/accumulator"]),
        (
            "RMSprop",
            {"centered": True, "momentum": 0.9},
            ["w/velocity", "v/velocity", "w/momentum", "v/momentum", "w/average_gradient", "v/average_gradient"],
        ),
    ],
)
def test_an_optimizers_slots_are_called_after_the_trained_variables(
    tmp_path: Path, kind: str, rest: dict[str, Any], slots: list[str]
) -> None:
    optimizer = {**ADAM, "class_name": kind, "config": {"learning_rate": 0.1, **rest}}
    config = model(("PReLU", "w", {}), ("PReLU", "frozen", {"trainable": False}), ("PReLU", "v", {}), optimizer=optimizer)
    shape = {"w": (2,), "v": (3,)}
    held = {"optimizer": [(), (), *(shape[slot[0]] for slot in slots)]}
    held |= {"layers/p_re_lu": [(2,)], "layers/p_re_lu_1": [(9,)], "layers/p_re_lu_2": [(3,)]}

    names = [*opened(archive(tmp_path / "x.keras", config, shaped(held))).tensors]

    expected = [f"optimizer/{slot[0]}_alpha/{slot[2:]}" for slot in slots]
    assert names[3:] == ["optimizer/iteration", "optimizer/learning_rate", *expected]


def test_a_schedule_takes_the_rate_out_of_the_optimizers_variables(tmp_path: Path) -> None:
    schedule = {"module": "keras.optimizers.schedules", "class_name": "CosineDecay", "config": {}}
    config = model(("PReLU", "w", {}), optimizer={**ADAM, "config": {"learning_rate": schedule}})

    names = [
        *opened(archive(tmp_path / "x.keras", config, shaped({"layers/p_re_lu": [(2,)], "optimizer": [(), (2,), (2,)]}))).tensors
    ]

    assert names[1:] == ["optimizer/iteration", "optimizer/w_alpha/momentum", "optimizer/w_alpha/velocity"]


@pytest.mark.parametrize(
    "held",
    [[(), (), (2,)], [(), (), (2,), (3,)], [(), (), (2,), (2,), (2,)], [(1,), (), (2,), (2,)]],
    ids=["fewer", "another-shape", "more", "no-scalar"],
)
def test_slots_that_do_not_fit_keep_their_numbers(tmp_path: Path, held: list[tuple[int, ...]]) -> None:
    config = model(("PReLU", "w", {}), optimizer=ADAM)
    path = archive(tmp_path / "x.keras", config, shaped({"layers/p_re_lu": [(2,)], "optimizer": held}))

    names = [*opened(path).tensors]

    assert names[3:] == [f"optimizer/vars/{index}" for index in range(2, len(held))]


@pytest.mark.parametrize(
    "held", [{"layers/mine/a": [(2,)], "layers/mine/b": [(2,)]}, {"layers/mine": [(2,), (2,)], "layers/mine/b": [(2,)]}]
)
def test_an_unknown_class_with_parts_leaves_the_slots_numbered(tmp_path: Path, held: dict[str, list[tuple[int, ...]]]) -> None:
    config = model(("Mine", "m", {}), optimizer={**ADAM, "class_name": "Lion"})
    path = archive(tmp_path / "x.keras", config, shaped({**held, "optimizer": [(), (), (2,), (2,)]}))

    assert [*opened(path).tensors][-2:] == ["optimizer/vars/2", "optimizer/vars/3"]


def test_the_optimizer_of_a_class_that_is_not_known_keeps_its_numbers(tmp_path: Path) -> None:
    mine = {"module": "mine", "class_name": "Adam", "registered_name": "Adam", "config": {"learning_rate": 0.1}}
    config = model(("PReLU", "w", {}), optimizer=mine)
    path = archive(tmp_path / "x.keras", config, shaped({"layers/p_re_lu": [(2,)], "optimizer": [(), (), (2,), (2,)]}))

    assert [*opened(path).tensors][1:] == [f"optimizer/vars/{index}" for index in range(4)]


def test_a_group_may_be_spread_over_several_files(tmp_path: Path) -> None:
    weight_map = {"/vars": "a.weights.h5", "/layers/d/vars": ["a.weights.h5", "b.weights.h5"]}
    shards = {
        "a.weights.h5": {"vars/0": 1.0, "layers/d/vars/10": 2.0},
        "b.weights.h5": {"layers/d/vars/9": 3.0, "layers/unlisted/vars/0": 4.0},
    }
    index = sharded(tmp_path, weight_map, shards)

    found = values(index)

    assert {name: array.item() for name, array in found.items()} == {
        "vars/0": 1.0,
        "layers/d/vars/9": 3.0,
        "layers/d/vars/10": 2.0,
    }
    assert [*found] == ["vars/0", "layers/d/vars/9", "layers/d/vars/10"]


def test_each_tensor_of_several_files_tells_its_file() -> None:
    found = opened(GOLDEN / "k3_tutorial_sharded.weights.json").tensors

    assert found["layers/dense/vars/0"].hdf5.file == "k3_tutorial_sharded_00000.weights.h5"
    assert found["optimizer/vars/9"].hdf5.file == "k3_tutorial_sharded_00004.weights.h5"


@pytest.mark.parametrize(
    ("weight_map", "kind", "problem"),
    [
        ({"/vars": "../a.weights.h5"}, UnsafeCheckpointError, "'/vars': its file is '../a.weights.h5', which is no plain name"),
        ({"/vars": ["/etc/passwd"]}, UnsafeCheckpointError, "no plain name"),
        ({"/vars": ""}, UnsafeCheckpointError, "no plain name"),
        ({"/vars": "C:a"}, UnsafeCheckpointError, "no plain name"),
        ({"/vars": "c.weights.h5"}, CorruptCheckpointError, "the file 'c.weights.h5' that it names is missing"),
        ({"/vars": 3}, CorruptCheckpointError, "its file is 3, not a name"),
        ({"/vars": []}, CorruptCheckpointError, "its files are none"),
        ({"/vars": ["a.weights.h5", "a.weights.h5"]}, CorruptCheckpointError, "or one is there twice"),
        ({"/vars": ["a.weights.h5", "b.weights.h5"]}, CorruptCheckpointError, "'/vars/0': it is in two files"),
        (
            {"/none/vars": "a.weights.h5"},
            CorruptCheckpointError,
            "'/none/vars': it should be in 'a.weights.h5', and is not there",
        ),
        ([], CorruptCheckpointError, "it has no weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, weight_map: object, kind: type[CheckpointError], problem: str) -> None:
    index = sharded(tmp_path, weight_map, {"a.weights.h5": {"vars/0": 1.0}, "b.weights.h5": {"vars/0": 1.0}})

    with pytest.raises(kind) as caught:
        opened(index)
    assert problem in str(caught.value)
    assert getattr(caught.value, "file", None) == "m.weights.json"


def test_a_shard_that_is_a_link_is_missing(tmp_path: Path) -> None:
    index = sharded(tmp_path, {"/vars": "a.weights.h5"}, {"elsewhere/a.weights.h5": {"vars/0": 1.0}})
    (tmp_path / "a.weights.h5").symlink_to(tmp_path / "elsewhere" / "a.weights.h5")

    with pytest.raises(CorruptCheckpointError, match="missing"):
        opened(index)


def test_many_layers_are_named_at_once(tmp_path: Path) -> None:
    config = model(*(("Mine" if index % 2 else "Dense", f"d{index}", {}) for index in range(1000)))
    groups = {f"layers/{kind}_{index}".removesuffix("_0"): 2 for kind in ("dense", "mine") for index in range(500)}

    names = named(tmp_path, config, groups)

    assert names[:4] == ["layers/d0/kernel", "layers/d0/bias", "layers/d1/vars/0", "layers/d1/vars/1"]
    assert (len(names), names[-1]) == (2000, "layers/d999/vars/1")
