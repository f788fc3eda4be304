"""What the variables of Keras models are called in a step, whatever else the process has made."""

from typing import Any

import pytest
from frameworks import keras
from keras_models import custom, nested, subclassed, train, tutorial, with_custom

from ckptmgr.integrations.keras_naming import Walk, optimizer_variables, snake, unique
from ckptmgr.integrations.keras_state import build_optimizer, parts


def names(named: Any) -> list[str]:
    return ["/".join(path) for path in named]


def test_weights_are_called_by_class_and_place(lib: Any) -> None:
    found = names(Walk(tutorial(lib)).weights)

    assert found == ["layers/dense/kernel", "layers/dense/bias", "layers/dense_1/kernel", "layers/dense_1/bias"]


def test_second_model_of_a_process_has_the_names_of_the_first(lib: Any) -> None:
    first, second = nested(lib), nested(lib)
    train(first)
    train(second)

    assert names(parts(first).weights) == names(parts(second).weights)
    assert names(parts(first).optimizer) == names(parts(second).optimizer)


def test_wrapped_and_nested_layers_are_reached_by_attribute(lib: Any) -> None:
    found = names(Walk(nested(lib)).weights)

    assert "layers/sequential/layers/batch_normalization/moving_mean" in found
    assert "layers/bidirectional/forward_layer/cell/recurrent_kernel" in found
    assert len(found) == len(set(found)) == 14


def test_weights_without_a_name_are_called_as_their_attribute(lib: Any) -> None:
    found = names(Walk(with_custom(lib, custom(lib))).weights)

    assert found == [
        "layers/scale/scale",
        "layers/scale/offset",
        "layers/scale/stack/dense/kernel",
        "layers/scale/stack/dense/bias",
        "layers/scale/stack/dense_1/kernel",
        "layers/scale/stack/dense_1/bias",
        "layers/dense/kernel",
        "layers/dense/bias",
    ]


def test_subclassed_model_has_its_own_weights_apart(lib: Any) -> None:
    found = names(Walk(subclassed(lib)).weights)

    assert found[0] == "vars/gain"
    assert found[1:3] == ["layers/dense/kernel", "layers/dense/bias"]
    assert len(found) == 9


def test_shared_layer_is_named_once(lib: Any) -> None:
    shared = lib.layers.Dense(4)
    inputs = lib.layers.Input((4,))
    model = lib.Model(inputs, shared(shared(inputs)))

    assert names(Walk(model).weights) == ["layers/dense/kernel", "layers/dense/bias"]


def test_optimizer_variables_are_called_after_their_weights(lib: Any) -> None:
    model = tutorial(lib)
    train(model)
    first, second = ("momentum", "velocity") if lib is keras else ("m", "v")

    found = names(parts(model).optimizer)

    assert found[0] == "iteration"
    assert "learning_rate" in found
    assert {f"dense_kernel/{first}", f"dense_kernel/{second}", f"dense_1_bias/{second}"} <= set(found)
    assert len(found) == 10


def test_variable_of_an_optimizer_without_a_name_has_that_of_the_first_model(lib: Any) -> None:
    found = []
    for _ in range(2):
        model = tutorial(lib, optimizer=lib.optimizers.Nadam())
        build_optimizer(model)
        found.append(names(parts(model).optimizer))

    assert found[0] == found[1]


def test_random_state_is_apart_from_the_weights() -> None:
    walk = Walk(tutorial(keras))

    assert names(walk.random) == ["layers/dropout/seed_generator"]


def test_weight_that_no_layer_owns_is_called_by_index() -> None:
    class Odd:
        built = True
        weights = (keras.Variable([1.0], name="lost"),)

        def __init__(self) -> None:
            self._trainable_variables: list[Any] = []
            self._non_trainable_variables: list[Any] = []

        def _flatten_layers(self, **options: Any) -> list[Any]:
            return []

    assert names(Walk(Odd()).weights) == ["other/0"]


def test_slots_of_weights_with_one_name_go_by_their_order() -> None:
    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

    first, second = Named("Variable:0"), Named("Variable:0")

    class Optimizer:
        variables = (Named("iteration:0"), *(Named(f"Adam/{slot}/Variable:0") for slot in ("m", "v", "m", "v")))

    found = optimizer_variables(Optimizer(), {("layers", "a", "w"): first, ("layers", "b", "w"): second}, (first, second))

    assert names(found) == ["iteration", "a_w/m", "a_w/v", "b_w/m", "b_w/v"]


@pytest.mark.parametrize(
    ("name", "path"),
    [("BatchNormalization", "batch_normalization"), ("Conv2D", "conv2d"), ("LSTM", "lstm"), ("RMSprop", "rm_sprop")],
)
def test_class_names_are_written_as_keras_does(name: str, path: str) -> None:
    assert snake(name) == path


def test_a_number_is_added_only_to_what_stands_there_twice() -> None:
    assert unique(["dense", "dense", "dense_1", "lstm"]) == ["dense", "dense_1", "dense_1_1", "lstm"]
