"""Models of many layers, saved by Keras in one layout and converted to the other by their config: every weight in its place."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import keras, tf_keras
from keras_forms import rewrite, saved
from keras_golden_models import variables

from ckptmgr_hdf5.keras_writing import Form

BOTH = pytest.mark.parametrize("lib", [tf_keras, keras], ids=["k2", "k3"])
pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras asks TensorFlow's variables for it
]


@pytest.fixture(autouse=True)
def _cleared() -> Iterator[None]:
    yield
    for lib in (keras, tf_keras):
        lib.backend.clear_session()


def recurrent(lib: Any) -> Any:
    """Recurrent layers in all their wrappers."""
    layers = lib.layers
    inputs = lib.Input((6,))
    x = layers.Embedding(11, 4)(inputs)
    x = layers.Bidirectional(layers.GRU(3, return_sequences=True), name="both")(x)
    x = layers.TimeDistributed(layers.Dense(5), name="each")(x)
    x = layers.SimpleRNN(4, use_bias=False, return_sequences=True)(x)
    return lib.Model(inputs, layers.LSTM(3)(x))


def convolutional(lib: Any) -> Any:
    """Convolutions and norms, some without scale, shift or bias."""
    layers = lib.layers
    return lib.Sequential(
        [
            lib.Input((12, 12, 2)),
            layers.Conv2D(3, 2, use_bias=False),
            layers.BatchNormalization(scale=False),
            layers.SeparableConv2D(4, 2),
            layers.DepthwiseConv2D(2),
            layers.Conv2DTranspose(2, 2),
            layers.LayerNormalization(center=False),
            layers.PReLU(),
            layers.Flatten(),
            layers.Dense(2),
        ],
        name="conv",
    )


def nested(lib: Any) -> Any:
    """Models in models, with frozen layers and norms in them."""
    layers = lib.layers
    deepest = lib.Sequential([lib.Input((4,)), layers.Dense(4), layers.BatchNormalization(), layers.Dense(3)], name="deepest")
    inputs = lib.Input((4,))
    hidden = layers.BatchNormalization(name="norm")(layers.Dense(4, name="frozen")(inputs))
    inner = lib.Model(inputs, layers.Dense(2, name="last")(deepest(hidden)), name="inner")
    inner.get_layer("frozen").trainable = False
    deepest.layers[1].trainable = False
    outer = lib.Input((4,))
    return lib.Model(outer, layers.Dense(1)(inner(outer)), name="outer")


def frozen(lib: Any) -> Any:
    """A whole model in the model that is frozen."""
    inner = lib.Sequential([lib.Input((4,)), lib.layers.Dense(3), lib.layers.BatchNormalization(), lib.layers.Dense(2)])
    inner.trainable = False
    return lib.Sequential([lib.Input((4,)), inner, lib.layers.Dense(1)])


def marked(lib: Any, make: Any) -> Any:
    """The model with another number in every weight."""
    model = make(lib)
    for index, weight in enumerate(model.weights):
        if "seed_generator" not in getattr(weight, "path", ""):
            weight.assign(np.full(weight.shape, index + 1, np.asarray(weight).dtype))
    return model


@BOTH
@pytest.mark.parametrize("make", [recurrent, convolutional, nested, frozen])
@pytest.mark.parametrize(("start", "form"), [("m.h5", "keras"), ("m.keras", "keras-legacy")])
def test_every_weight_is_in_its_place(tmp_path: Path, lib: Any, make: Any, start: str, form: Form) -> None:
    model = marked(lib, make)
    model.save(tmp_path / start)

    path = rewrite(tmp_path / "out", saved(tmp_path / start), form)

    assert variables(lib.models.load_model(path, compile=False)) == variables(model)


@pytest.mark.parametrize("make", [recurrent, convolutional, nested, frozen])
def test_a_config_alone_is_enough_for_the_weights_of_keras_3(tmp_path: Path, make: Any) -> None:
    model = marked(keras, make)
    model.save(tmp_path / "m.keras")
    held = saved(tmp_path / "m.keras")
    config = {"config": model.to_json()}

    path = rewrite(tmp_path / "out", type(held)(held.tensors, config, {}), "keras-weights")

    other = make(keras)
    other.load_weights(path)
    assert variables(other) == variables(model)
