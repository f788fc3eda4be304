"""Differences of files that Keras, torch and TensorFlow wrote themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import keras, tf, torch

from ckptmgr import Layers, convert, diff

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def keras_net() -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.Flatten(name="flat"),
            layers.Dense(2, name="head"),
        ]
    )


RULES = {
    "weights.h5": Layers("keras-to-torch", layers={"conv2d": "conv", "batch_normalization": "norm", "dense": "head"}),
    "keras": Layers("keras-to-torch"),
}


@pytest.mark.parametrize("ending", RULES)
@pytest.mark.parametrize("to", ["model.pt", "model.safetensors"])
def test_a_file_of_keras_is_the_same_as_its_conversion_by_the_same_rules(tmp_path: Path, ending: str, to: str) -> None:
    start = tmp_path / f"model.{ending}"
    model = keras_net()
    model.save_weights(start) if ending == "weights.h5" else model.save(start)
    convert(start, tmp_path / to, rename=RULES[ending])

    report = diff(start, tmp_path / to, rename=RULES[ending])

    assert report.is_same, str(report)
    assert report.same == 9  # with the count of batches, which is torch's alone


def test_a_twin_in_torch_differs_where_its_weights_do(tmp_path: Path) -> None:
    model = keras_net()
    model.save_weights(tmp_path / "model.weights.h5")
    convert(tmp_path / "model.weights.h5", tmp_path / "model.pt", rename=RULES["weights.h5"])
    state = torch.serialization.load(tmp_path / "model.pt", weights_only=True)
    state["head.weight"][1, 2] += 0.5
    torch.save(state, tmp_path / "twin.pt")

    report = diff(tmp_path / "model.weights.h5", tmp_path / "twin.pt", rename=RULES["weights.h5"], state_only=True)

    assert [(each.name, each.changed) for each in report.tensors] == [("head.weight", 1)]
    assert report.tensors[0].max_abs == pytest.approx(0.5, rel=1e-6)
    assert report.tensors[0].origin != ""


def test_a_bundle_of_tensorflow_is_the_same_as_its_conversion(tmp_path: Path) -> None:
    kinds = [tf.float32, tf.bfloat16, tf.int64, tf.complex64, tf.bool, tf.uint8]
    values = {f"v{index}": tf.Variable(tf.cast(tf.reshape(tf.range(6), (2, 3)), kind)) for index, kind in enumerate(kinds)}
    prefix = tf.train.Checkpoint(**values, text=tf.Variable(["a", "bc"])).write(str(tmp_path / "model"))
    convert(prefix, tmp_path / "model.h5")

    report = diff(prefix, tmp_path / "model.h5")

    assert report.is_same, str(report)


def test_a_step_of_an_optimizer_is_as_far_as_tensorflow_says(tmp_path: Path) -> None:
    model = keras_net()
    optimizer = tf.keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(model.trainable_variables)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    before = [variable.numpy() for variable in model.trainable_variables]
    first = checkpoint.write(str(tmp_path / "1"))
    optimizer.apply_gradients([(tf.ones_like(variable), variable) for variable in model.trainable_variables])
    second = checkpoint.write(str(tmp_path / "2"))

    report = diff(first, second)

    after = [variable.numpy() for variable in model.trainable_variables]
    expected = sorted(
        float(np.linalg.norm(new.astype(np.float64) - old) / np.linalg.norm(old.astype(np.float64))) if old.any() else -1.0
        for old, new in zip(before, after, strict=True)
    )
    found = [each for each in report.tensors if each.name.startswith("optimizer/_trainable_variables/")]
    assert sorted(-1.0 if each.relative is None else each.relative for each in found) == pytest.approx(expected)
