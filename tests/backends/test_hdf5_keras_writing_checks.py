"""A state that is not the Keras model's is refused: whether another file of it tells, or its config alone."""

import json
from typing import Any

import numpy as np
import pytest
from keras_forms import GOLDEN, golden, planned, source

from ckptmgr.errors import StateMismatchError

FLOATS = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}, "registered_name": None}
LABELS = ("a_kernel", "a_bias", "b_kernel")


def dense(name: str, inputs: int, **config: Any) -> dict[str, Any]:
    inner = {"name": name, "trainable": True, "dtype": FLOATS, "units": 4, "use_bias": True, **config}
    build = {"input_shape": [None, inputs]}
    return {"module": "keras.layers", "class_name": "Dense", "config": inner, "build_config": build}


def config_of(*layers: dict[str, Any], rate: Any = 0.5) -> dict[str, Any]:
    adam = {"module": "keras.optimizers", "class_name": "Adam", "config": {"learning_rate": rate}}
    model = {"module": "keras", "class_name": "Sequential", "config": {"name": "m", "layers": [*layers]}}
    return {"config": json.dumps({**model, "compile_config": {"optimizer": adam}})}


CONFIG = config_of(dense("a", 3), dense("b", 4, use_bias=False))


def state() -> dict[str, np.ndarray[Any, Any]]:
    """Two layers, of which the second has no bias, and Adam."""
    weights = {"layers/a/kernel": (3, 4), "layers/a/bias": (4,), "layers/b/kernel": (4, 4)}
    tensors = {name: np.zeros(shape, "f4") for name, shape in weights.items()}
    tensors |= {"optimizer/iteration": np.zeros((), "i8"), "optimizer/learning_rate": np.zeros((), "f4")}
    for label, shape in zip(LABELS, weights.values(), strict=True):
        tensors |= {f"optimizer/{label}/{slot}": np.zeros(shape, "f4") for slot in ("momentum", "velocity")}
    return tensors


def without(*names: str) -> dict[str, np.ndarray[Any, Any]]:
    return {name: array for name, array in state().items() if name not in names}


def test_a_whole_state_is_that_of_the_config() -> None:
    assert len(planned(state(), "keras", metadata=CONFIG).files) == 1


@pytest.mark.parametrize("form", ["keras", "keras-weights", "keras-legacy"])
@pytest.mark.parametrize("name", [*state()])
def test_whatever_one_tensor_lacks_is_told(name: str, form: Any) -> None:
    with pytest.raises(StateMismatchError) as found:
        planned(without(name), form, metadata=CONFIG)

    assert found.value.missing == [name]


def test_a_layer_that_lacks_with_the_whole_optimizer_is_told() -> None:
    tensors = {name: array for name, array in state().items() if name.startswith("layers/a/")}

    with pytest.raises(StateMismatchError, match="missing: 'layers/b/kernel'"):
        planned(tensors, "keras-legacy", metadata=CONFIG)


def test_a_name_that_is_wrong_is_both_missing_and_unexpected() -> None:
    tensors = without("layers/a/bias") | {"layers/a/bais": np.zeros(4, "f4")}

    with pytest.raises(StateMismatchError, match="missing: 'layers/a/bias'; unexpected: 'layers/a/bais'"):
        planned(tensors, "keras", metadata=CONFIG)


def test_with_a_schedule_there_is_no_learning_rate() -> None:
    schedule = {"module": "keras.optimizers.schedules", "class_name": "ExponentialDecay", "config": {}}
    config = config_of(dense("a", 3), dense("b", 4, use_bias=False), rate=schedule)

    assert planned(without("optimizer/learning_rate"), "keras", metadata=config).files
    with pytest.raises(ValueError, match="'optimizer/learning_rate'"):
        planned(state(), "keras", metadata=config)


def test_a_frozen_layer_needs_no_slots() -> None:
    config = config_of(dense("a", 3), dense("b", 4, use_bias=False, trainable=False))
    slots = [f"optimizer/b_kernel/{slot}" for slot in ("momentum", "velocity")]

    assert planned(without(*slots), "keras", metadata=config).files
    with pytest.raises(StateMismatchError, match="missing: 'optimizer/b_kernel/velocity'"):
        planned(without(slots[1]), "keras", metadata=config)


def test_an_sgd_of_keras_2_has_a_slot_without_a_name_for_each_weight() -> None:
    sgd = {"class_name": "Custom>SGD", "config": {"learning_rate": 0.1, "momentum": 0.0, "jit_compile": True}}
    config = json.loads(CONFIG["config"]) | {"compile_config": {"optimizer": sgd}}
    shapes = {1: (3, 4), 2: (4,), 3: (4, 4)}
    weights = {name: array for name, array in state().items() if name.startswith("layers/")}
    slots = {f"optimizer/vars/{index}": np.zeros(shape, "f4") for index, shape in shapes.items()}
    tensors = {**weights, "optimizer/iteration": np.zeros((), "i8"), **slots}

    assert planned(tensors, "keras", metadata={"config": json.dumps(config)}).files
    del tensors["optimizer/vars/3"]
    with pytest.raises(StateMismatchError, match="missing: 'optimizer/vars/3'"):
        planned(tensors, "keras", metadata={"config": json.dumps(config)})


@pytest.mark.parametrize("optimizer", [None, {"class_name": "Nadam", "config": {"learning_rate": 0.1}}])
def test_an_optimizer_whose_variables_nobody_knows_asks_for_a_template(optimizer: Any) -> None:
    config = json.loads(CONFIG["config"]) | {"compile_config": {"optimizer": optimizer}}

    with pytest.raises(ValueError, match=r"which variables the optimizer has: pass a \.keras"):
        planned(state(), "keras", metadata={"config": json.dumps(config)})


def test_numbered_variables_of_the_optimizer_ask_for_a_template() -> None:
    tensors = without("optimizer/b_kernel/velocity") | {"optimizer/vars/7": np.zeros((4, 4), "f4")}

    with pytest.raises(ValueError, match="whose these variables of the optimizer are: 'optimizer/vars/7': pass"):
        planned(tensors, "keras", metadata=CONFIG)


def test_two_weights_of_one_label_ask_for_a_template_if_there_is_an_optimizer() -> None:
    inner = {"class_name": "Sequential", "config": {"name": "a", "layers": [dense("b", 4, use_bias=False)]}}
    config = config_of(inner, dense("a_b", 4, use_bias=False))
    tensors = {name: np.zeros((4, 4), "f4") for name in ("layers/a/layers/b/kernel", "layers/a_b/kernel")}

    assert planned(tensors, "keras", metadata=config).files
    with pytest.raises(ValueError, match="two weights have one name there: pass"):
        planned({**tensors, "optimizer/iteration": np.zeros((), "i8")}, "keras", metadata=config)


@pytest.mark.parametrize("mean", [None, 3.0])
def test_a_normalization_has_variables_unless_its_config_has_the_mean(mean: float | None) -> None:
    norm = {"module": "keras.layers", "class_name": "Normalization", "config": {"name": "n", "mean": mean}}
    config = config_of(norm, dense("a", 3))
    tensors = {name: array for name, array in state().items() if name.startswith("layers/a/")}
    variables = {f"layers/n/{leaf}": np.zeros(3, "f4") for leaf in ("mean", "variance")}
    every = {**variables, "layers/n/count": np.zeros((), "i4"), **tensors}

    assert planned(tensors if mean is not None else every, "keras", metadata=config).files
    if mean is None:
        with pytest.raises(StateMismatchError, match="missing: 'layers/n/mean', 'layers/n/variance', 'layers/n/count'"):
            planned(tensors, "keras", metadata=config)


def shared(layer: dict[str, Any], form: Any) -> Any:
    """The plan of a file of a model that has one layer twice, from an archive that has its weights once."""
    inner = {"class_name": "Functional", "config": {"name": "in", "layers": [layer]}}
    group = f"layers/functional/layers/{layer['class_name'].lower()}/vars"
    stored = {f"layers/in/layers/d/vars/{index}": f"{group}/{index}" for index in (0, 1)}
    metadata = {**config_of(inner, layer), "keras": {"kind": "archive", "stored": stored}}
    return planned({name: np.zeros(4, "f4") for name in stored}, form, metadata=metadata)


@pytest.mark.parametrize("layer", [dense("d", 4), {"module": None, "class_name": "Mine", "config": {"name": "d"}}])
def test_a_layer_in_two_models_is_left_to_a_template_in_the_legacy_layout(layer: dict[str, Any]) -> None:
    assert shared(layer, "keras").files
    with pytest.raises(ValueError, match=r"'layers/(dense|mine)/vars' are, of which there are none: pass a \.h5"):
        shared(layer, "keras-legacy")


def test_layers_of_one_name_that_have_no_variables_are_no_obstacle() -> None:
    layer = {"module": "keras.layers", "class_name": "Dropout", "config": {"name": "d", "rate": 0.5}}
    inner = {"class_name": "Functional", "config": {"name": "in", "layers": [layer]}}

    assert planned({}, "keras-legacy", metadata=config_of(inner, layer)).files


CARRIED = {**CONFIG, "keras": {"kind": "archive", "stored": {name: name for name in state()}}}


@pytest.mark.parametrize("metadata", [CONFIG, CARRIED], ids=["config", "carried"])
@pytest.mark.parametrize(
    ("name", "array", "problem"),
    [
        ("layers/b/kernel", np.zeros((5, 4), "f4"), r"'layers/b/kernel' has shape \(5, 4\) instead of \(4, 4\)"),
        ("layers/a/bias", np.zeros(3, "f4"), r"'layers/a/bias' has shape \(3,\) instead of \(4,\)"),
        ("optimizer/a_bias/velocity", np.zeros(3, "f4"), r"has shape \(3,\), and its weight \(4,\)"),
        ("optimizer/iteration", np.zeros(1, "i8"), r"'optimizer/iteration' has shape \(1,\) instead of \(\)"),
        ("layers/b/kernel", np.zeros((4, 4), "i4"), "'layers/b/kernel' is int32 in a layer of floats: cast it"),
        ("optimizer/a_bias/velocity", np.zeros(4, "i4"), "is int32 instead of floats: cast it"),
        ("optimizer/iteration", np.zeros((), "f4"), "is float32 instead of integers: cast it"),
        ("optimizer/learning_rate", np.zeros((), "i4"), "is int32 instead of floats: cast it"),
    ],
)
def test_what_the_config_tells_of_shapes_and_dtypes_is_compared(metadata: Any, name: str, array: Any, problem: str) -> None:
    with pytest.raises(StateMismatchError, match=problem):
        planned({**state(), name: array}, "keras", metadata=metadata)


def test_a_shape_is_compared_with_the_units_alone_if_nobody_says_what_goes_in() -> None:
    layer = dense("a", 3)
    del layer["build_config"]
    tensors = {name: array for name, array in state().items() if name.startswith("layers/a/")}

    assert planned(tensors, "keras", metadata=config_of(layer)).files
    with pytest.raises(StateMismatchError, match=r"has shape \(3, 5\) instead of \(3, 4\)"):
        planned({**tensors, "layers/a/kernel": np.zeros((3, 5), "f4")}, "keras", metadata=config_of(layer))


def test_half_precision_is_floating_too() -> None:
    tensors = {name: array.astype("f2") for name, array in state().items() if name.startswith("layers/")}

    assert planned(tensors, "keras", metadata=CONFIG).files


def test_a_layer_of_integers_may_have_them() -> None:
    tensors = {name: array.astype("i4") for name, array in state().items() if name.startswith("layers/a/")}

    assert planned(tensors, "keras", metadata=config_of(dense("a", 3, dtype="int32"))).files


@pytest.mark.parametrize("dtype", ["int32", "float16", "float64"])
def test_every_dtype_other_than_the_template_s_is_told(dtype: str) -> None:
    held = golden("k3_tutorial.keras").tensors
    tensors = {name: array.astype(dtype) if name.startswith("layers/dense/") else array for name, array in held.items()}

    with source(GOLDEN / "k3_tutorial.keras") as template, pytest.raises(StateMismatchError) as found:
        planned(tensors, "keras", template=template)

    for leaf in ("kernel", "bias"):
        assert f"'layers/dense/{leaf}' is {dtype} instead of float32: cast it" in str(found.value)
