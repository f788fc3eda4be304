"""States that Keras would load as something else are refused, and those of every optimizer are not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import keras, tf_keras
from keras_forms import rewrite, saved
from keras_golden_models import optimizer_variables, variables

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras asks TensorFlow's variables for it
]


@pytest.fixture(autouse=True)
def _cleared() -> Iterator[None]:
    yield
    for lib in (keras, tf_keras):
        lib.backend.clear_session()


def sharing() -> Any:
    """A layer that is in the inner model and in the outer one."""
    dense = keras.layers.Dense(3, name="shared")
    first = keras.Input((3,))
    inner = keras.Model(first, keras.layers.Dense(3, name="own")(dense(first)), name="inner")
    second = keras.Input((3,))
    return keras.Model(second, dense(inner(second)))


def test_a_layer_in_two_models_goes_to_the_legacy_layout_by_a_template_alone(tmp_path: Path) -> None:
    sharing().save(tmp_path / "m.keras")

    with pytest.raises(ValueError, match=r"there are none: pass a \.h5 of the same model"):
        rewrite(tmp_path / "out", saved(tmp_path / "m.keras"), "keras-legacy")


def test_a_layer_in_two_models_is_written_into_weights_as_keras_has_it(tmp_path: Path) -> None:
    model = sharing()
    model.save(tmp_path / "m.keras")

    path = rewrite(tmp_path / "out", saved(tmp_path / "m.keras"), "keras-weights")

    other = sharing()
    other.load_weights(path)
    assert variables(other) == variables(model)


SCHEDULE = 0.1, 10, 0.5
OPTIMIZERS = {
    "sgd": lambda o: o.SGD(0.1),
    "momentum": lambda o: o.SGD(0.1, momentum=0.9),
    "ema": lambda o: o.Adam(use_ema=True, amsgrad=True),
    "schedule": lambda o: o.Adam(o.schedules.ExponentialDecay(*SCHEDULE)),
    "rmsprop": lambda o: o.RMSprop(momentum=0.9, centered=True),
    "ftrl": lambda o: o.Ftrl(),
    "name": lambda o: "adam",
}


def trained(lib: Any, optimizer: Any) -> Any:
    """A model with a layer that is frozen."""
    frozen = lib.layers.Dense(4, name="frozen", trainable=False)
    layers = [lib.Input((3,)), frozen, lib.layers.BatchNormalization(name="norm"), lib.layers.Dense(1, name="last")]
    model = lib.Sequential(layers)
    model.compile(optimizer, "mean_squared_error")
    model.fit(np.ones((4, 3), "f4"), np.ones((4, 1), "f4"), verbose=0)
    return model


@pytest.mark.parametrize("lib", [tf_keras, keras], ids=["k2", "k3"])
@pytest.mark.parametrize("kind", [*OPTIMIZERS])
def test_every_optimizer_is_written_by_the_config_alone(tmp_path: Path, lib: Any, kind: str) -> None:
    model = trained(lib, OPTIMIZERS[kind](lib.optimizers))
    model.save(tmp_path / "m.keras")
    held = saved(tmp_path / "m.keras").without("metrics/")

    path = rewrite(tmp_path / "out", type(held)(held.tensors, {"config": held.metadata["config"]}, {}), "keras")

    ours = lib.models.load_model(path)
    slots = [[np.asarray(each).tolist() for each in optimizer_variables(each)] for each in (ours, model)]
    assert slots[0] == slots[1]
