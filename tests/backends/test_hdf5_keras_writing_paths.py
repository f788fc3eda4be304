"""Where variables go by a model's config alone, and what it does not tell."""

import json
from typing import Any

import pytest

from ckptmgr_hdf5 import keras_converting, keras_paths
from ckptmgr_hdf5.keras_paths import Layer
from ckptmgr_hdf5.keras_translating import Underivable, archive_texts, legacy_texts
from ckptmgr_hdf5.keras_trees import Legacy


def layer(kind: str, name: str, **config: Any) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": name, "trainable": True, **config}, "module": "keras.layers"}


def custom(name: str) -> dict[str, Any]:
    return {"class_name": "Mine", "config": {"name": name, "trainable": True}, "module": None, "registered_name": "pkg>Mine"}


def model(*layers: dict[str, Any], name: str = "m", kind: str = "Functional", **more: Any) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": name, "layers": [*layers]}, **more}


def only(config: dict[str, Any]) -> Layer:
    return keras_paths.layers(config)[0]


def test_layers_are_counted_by_class_and_not_called_by_their_own_names() -> None:
    config = model(layer("Dense", "first"), layer("Conv2D", "conv"), layer("Dense", "second"), custom("x"), custom("y"))

    found = [(each.name, [keras_paths.group_of(unit) for unit in each.units]) for each in keras_paths.layers(config)]

    assert found == [
        ("first", ["layers/dense/vars"]),
        ("conv", ["layers/conv2d/vars"]),
        ("second", ["layers/dense_1/vars"]),
        ("x", ["layers/mine/vars"]),
        ("y", ["layers/mine_1/vars"]),
    ]


@pytest.mark.parametrize(("kind", "names"), [("Sequential", ["d"]), ("Functional", ["in", "d"])])
def test_the_input_of_a_sequential_model_is_none_of_its_layers(kind: str, names: list[str]) -> None:
    config = model(layer("InputLayer", "in"), layer("Dense", "d"), kind=kind)

    assert [each.name for each in keras_paths.layers(config)] == names


def test_a_subclassed_model_has_no_layers_that_a_config_tells() -> None:
    with pytest.raises(Underivable, match="'Blocky', which is neither Sequential nor Functional"):
        keras_paths.layers({"class_name": "Blocky", "config": {}})


def test_legacy_order_has_all_that_is_trained_in_a_nested_model_first() -> None:
    nested = only(model(model(layer("Dense", "d"), layer("BatchNormalization", "bn"), layer("Dense", "e"), name="inner")))
    inner = "layers/functional/layers"
    counts = {f"{inner}/dense/vars": 2, f"{inner}/batch_normalization/vars": 4, f"{inner}/dense_1/vars": 2}

    found = [path.removeprefix(f"{inner}/") for path in keras_paths.legacy_order(nested, counts)]

    assert found == [
        *("dense/vars/0", "dense/vars/1", "batch_normalization/vars/0", "batch_normalization/vars/1"),
        *("dense_1/vars/0", "dense_1/vars/1", "batch_normalization/vars/2", "batch_normalization/vars/3"),
    ]


def test_legacy_order_has_a_frozen_layer_of_a_nested_model_last() -> None:
    frozen = layer("Dense", "d", trainable=False, use_bias=False)
    nested = only(model(model(frozen, layer("Dense", "e", use_bias=False), name="inner")))
    inner = "layers/functional/layers"

    found = keras_paths.legacy_order(nested, {f"{inner}/dense/vars": 1, f"{inner}/dense_1/vars": 1})

    assert found == [f"{inner}/dense_1/vars/0", f"{inner}/dense/vars/0"]


def test_names_find_the_layer_of_a_nested_model_though_a_frozen_one_comes_last() -> None:
    nested = only(model(model(layer("Dense", "d", trainable=False), layer("Dense", "e"), name="inner")))

    found = keras_paths.grouped(nested, ["e/kernel:0", "e/bias:0", "d/kernel:0", "d/bias:0"])

    inner = "layers/functional/layers"
    assert found == [f"{inner}/dense_1/vars/0", f"{inner}/dense_1/vars/1", f"{inner}/dense/vars/0", f"{inner}/dense/vars/1"]


def test_a_bidirectional_layer_has_its_sides_by_name() -> None:
    both = only(model(layer("Bidirectional", "bi", layer=layer("LSTM", "lstm", use_bias=False))))
    names = [f"bi/{side}_lstm/lstm_cell/{leaf}:0" for side in ("backward", "forward") for leaf in ("kernel", "recurrent_kernel")]

    found = keras_paths.grouped(both, names)

    assert found == [
        f"layers/bidirectional/{side}_layer/cell/vars/{index}" for side in ("backward", "forward") for index in (0, 1)
    ]


def test_a_layer_of_an_unknown_class_may_have_others_in_it_and_is_left_to_a_template() -> None:
    with pytest.raises(Underivable, match="what is in layer 'x', whose weights are 'x/dense/kernel'"):
        keras_paths.grouped(only(model(custom("x"))), ["x/dense/kernel"])


@pytest.mark.parametrize("names", [["x/inside/kernel"], ["y/kernel"], ["d/kernel"], ["d/kernel", "d/bias", "m/d/kernel"]])
def test_names_in_a_nested_model_that_are_no_layer_s_own_are_left_to_a_template(names: list[str]) -> None:
    nested = only(model(model(layer("Dense", "d"), custom("x"), name="inner")))

    with pytest.raises(Underivable, match="'inner' has"):
        keras_paths.grouped(nested, names)


def test_own_variables_of_an_unknown_class_are_numbered() -> None:
    assert keras_paths.grouped(only(model(custom("x"))), ["m/x/scale", "m/x/shift"]) == [
        "layers/mine/vars/0",
        "layers/mine/vars/1",
    ]


def test_what_an_unknown_class_in_a_nested_model_trains_is_left_to_a_template() -> None:
    nested = only(model(model(layer("Dense", "d"), custom("x"), name="inner")))
    inner = "layers/functional/layers"

    with pytest.raises(Underivable, match="which of the variables in 'layers/functional/layers/mine/vars' are trained"):
        keras_paths.legacy_order(nested, {f"{inner}/dense/vars": 2, f"{inner}/mine/vars": 2})


def test_a_class_with_other_variables_than_keras_gives_it_is_left_to_a_template() -> None:
    dense = only(model(layer("Dense", "d")))

    with pytest.raises(Underivable, match="'layers/dense/vars'"):
        keras_paths.legacy_order(dense, {"layers/dense/vars": 3})
    with pytest.raises(Underivable, match="'d/kernel', 'd/bias', 'd/scale' instead of 'kernel', 'bias'"):
        keras_paths.grouped(dense, ["d/kernel", "d/bias", "d/scale"])


def test_groups_within_a_layer_that_its_class_does_not_tell_are_left_to_a_template() -> None:
    stored = {"layers/x/a": "layers/mine/vars/0", "layers/x/b": "layers/mine/dense/vars/0"}

    with pytest.raises(Underivable, match="which layer has 'layers/mine/dense/vars/0'"):
        keras_converting.to_legacy(stored, keras_paths.layers(model(custom("x"))), "adam", is_old=False)


def test_a_gap_between_variables_is_told() -> None:
    with pytest.raises(Underivable, match="'optimizer/vars/1', which is missing"):
        keras_converting.to_legacy({"a": "optimizer/vars/0", "b": "optimizer/vars/2"}, [], "adam", is_old=False)


@pytest.mark.parametrize(
    ("is_old", "names"),
    [
        (True, ["iteration:0", "Adam/d_kernel/momentum:0"]),
        (False, ["Adam/iteration", "Adam/d_kernel_momentum"]),
    ],
)
def test_slots_are_called_as_keras_2_or_keras_3_does(is_old: bool, names: list[str]) -> None:
    stored = {"optimizer/iteration": "optimizer/vars/0", "optimizer/d_kernel/momentum": "optimizer/vars/1"}

    assert [*keras_converting.to_legacy(stored, [], "Adam", is_old=is_old).optimizer] == names


def test_metrics_and_an_inner_optimizer_s_copy_have_no_place_in_the_legacy_layout() -> None:
    stored = {"m": "metrics/mean/vars/0", "i": "optimizer/inner_optimizer/vars/0", "o": "optimizer/vars/0"}

    assert keras_converting.to_legacy(stored, [], "adam", is_old=False) == Legacy({}, {}, {"adam/o": "o"})


@pytest.mark.parametrize(("slots", "kind"), [({"Adam/iter:0": "o"}, "Adam"), ({"a/iteration": "o"}, "LossScaleOptimizer")])
def test_optimizers_that_keras_3_stores_otherwise_are_left_to_a_template(slots: dict[str, str], kind: str) -> None:
    with pytest.raises(Underivable, match="where the optimizer's state goes"):
        keras_converting.to_groups(Legacy({}, {}, slots), [], kind)


def test_weights_of_the_model_itself_come_along() -> None:
    legacy = keras_converting.to_legacy({"gain": "vars/0"}, [], "adam", is_old=False)

    assert (legacy.top, keras_converting.to_groups(legacy, [], "")) == ({"gain": "gain"}, {"vars/0": "gain"})


def test_a_registered_optimizer_and_a_nested_loss_keep_their_names_in_an_archive() -> None:
    training = {
        "loss": {"a": {"class_name": "MeanSquaredError", "config": {}}, "b": "mae"},
        "metrics": [["accuracy", {"class_name": "AUC", "config": {"name": "auc"}}]],
        "optimizer_config": {"class_name": "pkg>Mine", "config": {"rate": float("inf")}},
    }

    made = json.loads(archive_texts(json.dumps(model()), json.dumps(training), "2.9.0")["config.json"])["compile_config"]

    loss = {"module": "keras.losses", "class_name": "MeanSquaredError", "config": {}, "registered_name": None}
    assert made["loss"] == {"a": loss, "b": "mae"}
    assert made["metrics"][0][1]["module"] == "keras.metrics"
    assert made["optimizer"] == {
        "module": None, "class_name": "Mine", "config": {"rate": float("inf")}, "registered_name": "pkg>Mine",
    }  # fmt: skip


def test_an_optimizer_given_by_name_becomes_an_object_in_a_legacy_file() -> None:
    config = model(compile_config={"optimizer": "adam", "loss": "mse"})

    made = json.loads(legacy_texts(json.dumps(config))["training_config"])

    assert made["optimizer_config"] == {"class_name": "adam", "config": {}}
    assert (made["loss"], made["metrics"]) == ("mse", None)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the config of the model is no JSON"):
        legacy_texts(text)
