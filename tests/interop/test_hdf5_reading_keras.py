"""Models of every usual layer saved by real Keras 3 and tf_keras: both layouts give the same names with the live values."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import keras, tf_keras
from keras_files import opened, stored, values

KERAS = [pytest.param(keras, id="keras3"), pytest.param(tf_keras, id="keras2")]
LAYERS: dict[str, tuple[tuple[int, ...], list[str]]] = {  # made by `_layer`: shape of the input, names of the variables
    "Dense": ((4,), ["kernel", "bias"]),
    "Embedding": ((4,), ["embeddings"]),
    "BatchNormalization": ((4,), ["gamma", "beta", "moving_mean", "moving_variance"]),
    "LayerNormalization": ((4,), ["gamma", "beta"]),
    "Conv1D": ((8, 4), ["kernel", "bias"]),
    "Conv2D": ((8, 8, 4), ["kernel", "bias"]),
    "Conv3D": ((4, 4, 4, 2), ["kernel", "bias"]),
    "Conv2DTranspose": ((8, 8, 4), ["kernel", "bias"]),
    "DepthwiseConv2D": ((8, 8, 4), ["kernel", "bias"]),
    "SeparableConv2D": ((8, 8, 4), ["depthwise_kernel", "pointwise_kernel", "bias"]),
    "PReLU": ((4,), ["alpha"]),
    "EinsumDense": ((4,), ["kernel", "bias"]),
    "GroupNormalization": ((4,), ["gamma", "beta"]),
    "Normalization": ((4,), ["mean", "variance", "count"]),
    "LSTM": ((5, 4), ["cell/kernel", "cell/recurrent_kernel", "cell/bias"]),
    "GRU": ((5, 4), ["cell/kernel", "cell/recurrent_kernel", "cell/bias"]),
    "SimpleRNN": ((5, 4), ["cell/kernel", "cell/recurrent_kernel", "cell/bias"]),
    "ConvLSTM2D": ((5, 8, 8, 3), ["cell/kernel", "cell/recurrent_kernel", "cell/bias"]),
    "TimeDistributed": ((5, 4), ["layer/kernel", "layer/bias"]),
    "RNN": (
        (5, 4),
        [f"cell/cells/{cell}/{leaf}" for cell in ("lstm_cell", "gru_cell") for leaf in ("kernel", "recurrent_kernel", "bias")],
    ),
    "Bidirectional": (
        (5, 4),
        [f"{side}_layer/cell/{leaf}" for side in ("forward", "backward") for leaf in ("kernel", "recurrent_kernel", "bias")],
    ),
    "MultiHeadAttention": (
        (5, 4),
        [f"{role}_dense/{leaf}" for role in ("query", "key", "value", "output") for leaf in ("kernel", "bias")],
    ),
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "Dense": {"units": 3},
    "Embedding": {"input_dim": 5, "output_dim": 3},
    **{name: {"filters": 2, "kernel_size": 2} for name in ("Conv1D", "Conv2D", "Conv3D", "Conv2DTranspose", "SeparableConv2D")},
    "ConvLSTM2D": {"filters": 2, "kernel_size": 2},
    "DepthwiseConv2D": {"kernel_size": 2},
    "EinsumDense": {"equation": "ab,bc->ac", "output_shape": 3, "bias_axes": "c"},
    "GroupNormalization": {"groups": 2},
    **{name: {"units": 3} for name in ("LSTM", "GRU", "SimpleRNN")},
    "MultiHeadAttention": {"num_heads": 2, "key_dim": 3},
}


def _layer(framework: Any, kind: str) -> Any:
    layers = framework.layers
    arguments: dict[str, Any] = dict(ARGUMENTS.get(kind, {}))
    if kind == "TimeDistributed":
        arguments["layer"] = layers.Dense(3)
    elif kind == "RNN":
        arguments["cell"] = [layers.LSTMCell(3), layers.GRUCell(2)]
    elif kind == "Bidirectional":
        arguments["layer"] = layers.GRU(3)
    return getattr(layers, kind)(name="own", **arguments)


def _model(framework: Any, kind: str) -> Any:
    """A model of that layer alone, whose variables are all different."""
    entry = framework.Input(LAYERS[kind][0])
    layer = _layer(framework, kind)
    made = framework.Model(entry, layer(entry, entry) if kind == "MultiHeadAttention" else layer(entry))
    for index, variable in enumerate(made.variables):
        if "seed" not in variable.name:
            variable.assign(np.arange(np.prod(variable.shape)).reshape(variable.shape) + 1000 * index)
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("framework", KERAS)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_variables_have_the_names_of_their_layers_class(tmp_path: Path, framework: Any, kind: str, suffix: str) -> None:
    made = _model(framework, kind)
    made.save(tmp_path / f"x{suffix}")

    found = {name: array for name, array in values(tmp_path / f"x{suffix}").items() if name.startswith("layers/")}

    live = [np.asarray(variable) for variable in made.variables if "seed" not in variable.name]
    assert [*found] == [f"layers/own/{name}" for name in LAYERS[kind][1]]
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found.values(), live, strict=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("framework", KERAS)
@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "Adadelta", "Adamax", "Lion", "Ftrl"])
def test_optimizers_have_the_same_names_in_both_layouts(tmp_path: Path, framework: Any, kind: str) -> None:
    arguments: dict[str, Any] = {"SGD": {"momentum": 0.9}, "RMSprop": {"centered": True}, "Adam": {"amsgrad": True}}.get(kind, {})
    made = framework.Sequential([framework.Input((4,)), framework.layers.Dense(3, name="a"), framework.layers.Dense(2, name="b")])
    made.compile(getattr(framework.optimizers, kind)(**arguments), "mean_squared_error")
    made.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    made.save(tmp_path / "x.keras")
    made.save(tmp_path / "x.h5")

    both = [values(tmp_path / name) for name in ("x.keras", "x.h5")]

    archive, legacy = ({name: array for name, array in found.items() if not name.startswith("metrics/")} for found in both)
    assert {*archive} == {*legacy}
    assert not [name for name in archive if "vars" in name]
    assert all(np.array_equal(archive[name], legacy[name]) for name in archive)
    assert "optimizer/a_kernel/" in "".join(archive)


@pytest.mark.filterwarnings("ignore")
def test_assets_of_a_vocabulary_are_kept(tmp_path: Path) -> None:
    lookup = keras.layers.StringLookup(name="lookup")
    lookup.adapt(["one", "two", "two"])
    keras.Sequential([keras.Input((1,), dtype="string"), lookup]).save(tmp_path / "x.keras")

    assert dict(opened(tmp_path / "x.keras").blobs) == {"assets/layers/string_lookup/vocabulary.txt": b"[UNK]\ntwo\none"}


@pytest.mark.filterwarnings("ignore")
def test_weights_that_share_a_layer_are_read_once(tmp_path: Path) -> None:
    shared = keras.layers.Dense(4, name="shared")
    inner = keras.Sequential([keras.Input((4,)), shared], name="inner")
    entry = keras.Input((4,))
    keras.Model(entry, shared(inner(entry))).save(tmp_path / "x.keras")

    assert [*stored(tmp_path / "x.keras").values()] == [
        "/layers/sequential/layers/dense/vars/0",
        "/layers/sequential/layers/dense/vars/1",
    ]
