"""The legacy layout: every way in which its names were ever stored, and names that lie."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from keras_files import Fill, h5, legacy, model, opened, stored, values

from ckptmgr.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError


def names_of(attribute: Any) -> Fill:
    """A file with two layers, of which the first has a weight, and that attribute as their names."""

    def fill(file: h5py.File) -> None:
        legacy(file, {"b": {"b/kernel:0": 2.0}, "a": {}})
        del file.attrs["layer_names"]
        file.attrs["layer_names"] = attribute

    return fill


def whole(config: object, layers: dict[str, dict[str, float]], steps: dict[str, float]) -> Fill:
    """A whole model with an optimizer."""

    def fill(file: h5py.File) -> None:
        file.attrs["model_config"] = config if isinstance(config, str) else json.dumps(config)
        legacy(file.create_group("model_weights"), layers)
        legacy(file, {"optimizer_weights": steps})
        del file.attrs["layer_names"]

    return fill


@pytest.mark.parametrize(
    "attribute",
    [
        np.array([b"b", b"a"]),
        np.array([b"b\0\0\0", b"a"], "S9"),
        np.array(["b", "a"], h5py.string_dtype("utf-8")),
        np.array([b"b", b"a"], h5py.string_dtype("ascii")),
        np.array([b"b", b"a"], h5py.string_dtype("utf-8", 5)),
    ],
    ids=["fixed", "padded", "vlen-utf8", "vlen-ascii", "fixed-utf8"],
)
def test_names_are_read_however_they_are_stored(tmp_path: Path, attribute: Any) -> None:
    found = opened(h5(tmp_path / "x.h5", names_of(attribute)))

    assert found.metadata["keras"] == {
        "kind": "legacy-weights",
        "keras_version": "1",
        "layer_names": ["b", "a"],
        "stored": {"layers/b/kernel": "/b/b/kernel:0"},
    }


def test_an_empty_list_is_an_array_of_no_numbers(tmp_path: Path) -> None:
    path = h5(tmp_path / "x.h5", lambda file: legacy(file, {"input": {}, "dense": {"dense/kernel": 1.0}}))

    with h5py.File(path) as file:
        assert file["input"].attrs["weight_names"].dtype == np.float64
    assert [*opened(path).tensors] == ["layers/dense/kernel"]


def test_a_list_that_was_split_is_read_in_order(tmp_path: Path) -> None:
    layers = {f"layer_{index}": {f"layer_{index}/w": float(index)} for index in range(25)}

    def fill(file: h5py.File) -> None:
        legacy(file, layers)
        names = file.attrs["layer_names"]
        del file.attrs["layer_names"]
        for index, chunk in enumerate(np.array_split(names, 12)):
            file.attrs[f"layer_names{index}"] = chunk

    found = values(h5(tmp_path / "x.h5", fill))

    assert [*found] == [f"layers/layer_{index}/w" for index in range(25)]
    assert [array.item() for array in found.values()] == [float(index) for index in range(25)]


def test_the_split_names_of_weights_are_read_in_order(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        legacy(file, {"d": {"d/z": 0.0, "d/y": 1.0, "d/x": 2.0}})
        del file["d"].attrs["weight_names"]
        file["d"].attrs.update({"weight_names0": np.array([b"d/z", b"d/y"]), "weight_names1": np.array([b"d/x"])})

    assert [*opened(h5(tmp_path / "x.h5", fill)).tensors] == ["layers/d/z", "layers/d/y", "layers/d/x"]


def test_where_a_list_is_there_twice_the_whole_one_counts(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        legacy(file, {"d": {"d/w": 0.0}})
        file.attrs["layer_names0"] = np.array([b"other"])

    assert [*opened(h5(tmp_path / "x.h5", fill)).tensors] == ["layers/d/w"]


def test_the_order_is_that_of_the_lists_and_not_of_the_file(tmp_path: Path) -> None:
    path = h5(tmp_path / "x.h5", lambda file: legacy(file, {"z": {"z/b": 0.0, "z/a": 1.0}, "a": {"a/w": 2.0}}))

    assert [*opened(path).tensors] == ["layers/z/b", "layers/z/a", "layers/a/w"]


def test_a_layers_name_may_have_slashes(tmp_path: Path) -> None:
    layers = {"block1/conv": {"block1/conv/kernel:0": 1.0}, "block1/norm": {"block1/norm/gamma:0": 2.0}}

    found = values(h5(tmp_path / "x.h5", lambda file: legacy(file, layers)))

    assert {name: array.item() for name, array in found.items()} == {
        "layers/block1/conv/kernel": 1.0,
        "layers/block1/norm/gamma": 2.0,
    }


def test_the_models_name_before_a_layers_is_left_out(tmp_path: Path) -> None:
    path = h5(tmp_path / "x.h5", lambda file: legacy(file, {"dense": {"tutorial/dense/kernel": 1.0}}))

    assert stored(path) == {"layers/dense/kernel": "/dense/tutorial/dense/kernel"}


def test_weights_of_the_model_itself_stand_at_the_top(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        whole({"class_name": "Blocky", "config": {"name": "blocky"}}, {"d": {"d/w": 1.0}}, {})(file)
        group = file["model_weights"].create_group("top_level_model_weights")
        group.attrs["weight_names"] = np.array([b"blocky/gain"])
        group["blocky/gain"] = np.float32(3)

    found = values(h5(tmp_path / "x.h5", fill))

    assert {name: array.item() for name, array in found.items()} == {"layers/d/w": 1.0, "gain": 3.0}


def test_two_weights_of_one_name_keep_their_paths(tmp_path: Path) -> None:
    path = h5(tmp_path / "x.h5", lambda file: legacy(file, {"d": {"d/w": 1.0, "w": 2.0, "d/v": 3.0}}))

    assert [*opened(path).tensors] == ["d/d/w", "d/w", "layers/d/v"]


def test_a_weight_below_another_is_one_key_in_a_nested_state(tmp_path: Path) -> None:
    path = h5(tmp_path / "x.h5", lambda file: legacy(file, {"a": {"a/w:0": 1.0, "a/w/m": 2.0}}))

    assert [*opened(path).paths.values()] == [("layers", "a", "w"), ("layers/a/w/m",)]


def test_two_bytes_without_meaning_and_without_a_note_are_bfloat16(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        legacy(file, {"d": {"d/w": 1.0}})
        del file["d/d/w"]
        file["d/d/w"] = np.array([0x3F80, 0x4000], np.uint16).view("V2")

    (array,) = values(h5(tmp_path / "x.h5", fill)).values()

    assert (array.dtype.name, array.astype(np.float32).tolist()) == ("bfloat16", [1.0, 2.0])


def test_the_step_is_an_array_without_dimensions_of_the_stored_dtype(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        whole({"class_name": "Sequential", "config": {"layers": []}}, {}, {"Adam/iter:0": 0.0})(file)
        del file["optimizer_weights/Adam/iter:0"]
        file["optimizer_weights/Adam/iter:0"] = np.int64(2**40)

    (array,) = values(h5(tmp_path / "x.h5", fill)).values()

    assert (array.dtype, array.shape, array.item()) == (np.int64, (), 2**40)


@pytest.mark.parametrize(
    ("weight", "slot", "name"),
    [
        ("d/kernel:0", "Adam/m/d/kernel:0", "optimizer/d_kernel/momentum"),
        ("d/kernel:0", "Adam/d/kernel/v:0", "optimizer/d_kernel/velocity"),
        ("m/d/kernel", "adam/m_d_kernel_velocity_hat", "optimizer/d_kernel/velocity_hat"),
        ("d/kernel", "rm_sprop/d_kernel_average_gradient", "optimizer/d_kernel/average_gradient"),
        ("d/kernel", "sgd/iteration", "optimizer/iteration"),
        ("d/kernel", "sgd/learning_rate", "optimizer/learning_rate"),
        ("d/kernel", "iteration:0", "optimizer/iteration"),
        ("d/kernel", "mine/of_something_else", "optimizer/of_something_else"),
        ("d/kernel", "training/Adam/mine:0", "optimizer/training/Adam/mine"),
    ],
)
def test_an_optimizers_variables_are_called_after_weights(tmp_path: Path, weight: str, slot: str, name: str) -> None:
    config = {"class_name": "Blocky", "config": {"name": "m"}}
    path = h5(tmp_path / "x.h5", whole(config, {"d": {weight: 1.0}}, {slot: 2.0}))

    assert [*opened(path).tensors] == ["layers/d/kernel", name]


@pytest.mark.parametrize(
    "weights",
    [{"n/kernel": 1.0}, {"n/beta": 1.0, "n/gamma": 2.0}, {"n/gamma": 1.0, "n/beta": 2.0, "n/extra": 3.0}],
    ids=["another", "another-order", "more"],
)
def test_weights_that_are_not_those_of_the_class_keep_their_names(tmp_path: Path, weights: dict[str, float]) -> None:
    config = model(("LayerNormalization", "n", {}))
    path = h5(tmp_path / "x.h5", whole(config, {"n": weights}, {}))

    assert [*opened(path).tensors] == [f"layers/{weight}" for weight in weights]


def test_what_is_trained_comes_first_and_what_is_not_last(tmp_path: Path) -> None:
    inner = {"layers": model(("BatchNormalization", "n", {}), ("Dense", "d", {}))["config"]["layers"]}
    config = model(("Sequential", "inner", inner))
    order = ["n/gamma", "n/beta", "d/kernel", "d/bias", "n/moving_mean", "n/moving_variance"]
    path = h5(tmp_path / "x.h5", whole(config, {"inner": {f"inner/{name}": 0.0 for name in order}}, {}))

    assert [*opened(path).tensors] == [f"layers/inner/layers/{name}" for name in order]


def test_of_a_frozen_layer_all_weights_come_last(tmp_path: Path) -> None:
    inner = {"layers": model(("Dense", "a", {"trainable": False}), ("Dense", "b", {}))["config"]["layers"]}
    order = ["b/kernel", "b/bias", "a/kernel", "a/bias"]
    path = h5(tmp_path / "x.h5", whole(model(("Sequential", "inner", inner)), {"inner": dict.fromkeys(order, 0.0)}, {}))

    assert [*opened(path).tensors] == [f"layers/inner/layers/{name}" for name in order]


def test_datasets_that_no_list_has_are_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fill(file: h5py.File) -> None:
        legacy(file, {"d": {"d/w": 1.0}})
        file["d/forgotten"] = np.zeros(3)

    with caplog.at_level(logging.WARNING):
        found = opened(h5(tmp_path / "x.h5", fill))

    assert [*found.tensors] == ["layers/d/w"]
    assert "'/d/forgotten'" in caplog.text


def broken(change: Callable[[h5py.File], object]) -> Fill:
    def fill(file: h5py.File) -> None:
        legacy(file, {"d": {"d/w": 1.0, "d/v": 2.0}})
        change(file)

    return fill


def listing(*weights: bytes) -> Callable[[h5py.File], object]:
    return lambda file: file["d"].attrs.create("weight_names", np.array(weights))


@pytest.mark.parametrize(
    ("change", "kind", "problem"),
    [
        (listing(b"/d/d/w"), UnsafeCheckpointError, "'/d: /d/d/w': the name leads elsewhere"),
        (listing(b"../d/d/w"), UnsafeCheckpointError, "the name leads elsewhere"),
        (listing(b"d//w"), UnsafeCheckpointError, "the name leads elsewhere"),
        (listing(b"./d/w"), UnsafeCheckpointError, "the name leads elsewhere"),
        (listing(b"d/none"), CorruptCheckpointError, "'/d/d/none': the weight is listed, and has no dataset"),
        (listing(b"d"), CorruptCheckpointError, "'/d/d': the weight is listed, and has no dataset"),
        (listing(b"d/w/w"), CorruptCheckpointError, "the weight is listed, and has no dataset"),
        (listing(b"d/w", b"d/w"), CorruptCheckpointError, "'/d/d/w': a weight is listed twice"),
        (listing(b"\xff"), CorruptCheckpointError, "'weight_names': the attribute has a name that is no UTF-8"),
        (lambda file: file["d"].attrs.create("weight_names", np.ones(3)), CorruptCheckpointError, "no list of names"),
        (lambda file: file["d"].attrs.create("weight_names", "text"), CorruptCheckpointError, "no list of names"),
        (lambda file: file["d"].attrs.create("weight_names", np.array([[b"d/w"]])), CorruptCheckpointError, "no list of names"),
        (
            lambda file: file.attrs.create("layer_names", np.array([b"none"])),
            CorruptCheckpointError,
            "'none': the layer is listed",
        ),
        (lambda file: file.attrs.create("layer_names", np.array([b"../d"])), UnsafeCheckpointError, "leads elsewhere"),
        (
            lambda file: file.attrs.create("keras_version", 2.0),
            CorruptCheckpointError,
            "'keras_version': the attribute is no text",
        ),
        (
            lambda file: file.attrs.create("backend", np.bytes_(b"\xff")),
            CorruptCheckpointError,
            "'backend': the attribute is no UTF-8",
        ),
        (
            lambda file: file.attrs.create("model_config", '{"a": 1, "a": 2}'),
            CorruptCheckpointError,
            "the key 'a' is there twice",
        ),
        (lambda file: file.attrs.create("training_config", "{"), CorruptCheckpointError, "'training_config': it is no JSON"),
    ],
)
def test_lists_and_texts_that_lie_are_refused(
    tmp_path: Path, change: Callable[[h5py.File], object], kind: type[CheckpointError], problem: str
) -> None:
    path = h5(tmp_path / "x.h5", broken(change))

    with pytest.raises(kind) as caught:
        opened(path)
    assert problem in str(caught.value)
    assert str(path) in str(caught.value)
    assert getattr(caught.value, "file", None) == "x.h5"


def test_many_layers_are_read_at_once(tmp_path: Path) -> None:
    layers = {f"d{index:04d}": {f"d{index:04d}/kernel": 0.0, f"d{index:04d}/bias": 0.0} for index in range(500)}
    config = model(*(("Dense", name, {}) for name in layers))
    steps = {f"adam/{weight.replace('/', '_')}_momentum": 0.0 for weights in layers.values() for weight in weights}

    def fill(file: h5py.File) -> None:
        legacy(file.create_group("model_weights"), layers)
        file.attrs["model_config"] = json.dumps(config)
        group = file.create_group("optimizer_weights")
        for index, chunk in enumerate(np.array_split(np.array([name.encode() for name in steps]), 3)):
            group.attrs[f"weight_names{index}"] = chunk
        for name in steps:
            group[name] = np.float32(0)

    found = opened(h5(tmp_path / "x.h5", fill))

    assert len(found.tensors) == 2000
    assert [*found.tensors][-1] == "optimizer/d0499_bias/momentum"
