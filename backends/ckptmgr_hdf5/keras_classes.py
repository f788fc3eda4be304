"""What Keras's own layers and optimizers call their variables, in the order in which files number them.

A class that is not here, or that has another number of variables than its config tells, keeps its numbers.

Source: Keras 3.15 and tf_keras 2.21, each layer built and its variables listed.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ckptmgr_hdf5.keras_config import Config, is_of_keras

# Of each class its variables; `name?flag` is there if the config says so. Those after `|` are not trained.
_RECURRENT = "kernel recurrent_kernel bias?use_bias"
_CONVOLUTION = "kernel bias?use_bias"
_SCALED = "gamma?scale beta?center"
_LEAVES = {
    "Dense": "kernel bias?use_bias",
    "EinsumDense": "kernel bias?bias_axes",
    "Embedding": "embeddings",
    "BatchNormalization": f"{_SCALED} | moving_mean moving_variance",
    "LayerNormalization": _SCALED,
    "GroupNormalization": _SCALED,
    "RMSNormalization": "scale",
    "Normalization": "| mean variance count",
    "PReLU": "alpha",
    "Attention": "scale?use_scale concat_score_weight?_concat",
    "AdditiveAttention": "scale?use_scale",
    **{f"Conv{n}D{kind}": _CONVOLUTION for n in (1, 2, 3) for kind in ("", "Transpose")},
    **{f"DepthwiseConv{n}D": _CONVOLUTION for n in (1, 2)},
    **{f"SeparableConv{n}D": "depthwise_kernel pointwise_kernel bias?use_bias" for n in (1, 2)},
    **{f"LocallyConnected{n}D": _CONVOLUTION for n in (1, 2)},
    **dict.fromkeys(("LSTMCell", "GRUCell", "SimpleRNNCell"), _RECURRENT),
    "_Cell": _RECURRENT,
}
_WITH_CELL = ("LSTM", "GRU", "SimpleRNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
_ATTENTION = ("MultiHeadAttention", "GroupedQueryAttention", "GroupQueryAttention")
_OLD_NAMES = {"m": "momentum", "v": "velocity", "vhat": "velocity_hat", "u": "norm"}
_SLOTS = {
    "momentum",
    "velocity",
    "velocity_hat",
    "average_gradient",
    "accumulator",
    "accumulated_grad",
    "accumulated_delta_var",
    "norm",
    "linear",
    "average",
    "gradient_accumulator",
}


class Unit(NamedTuple):
    """A layer, or a part of one, that has variables of its own: where in a weights file, and under which name.

    ``leaves`` are its variables, trained ones first, of which there are ``trained``. If they are None nothing is known of
    the layer or of what is in it; ``trained`` is then 0 if it was frozen, else None.
    """

    stored: tuple[str, ...]
    path: tuple[str, ...]
    leaves: tuple[str, ...] | None
    trained: int | None


def units(config: object) -> Iterator[Unit]:
    """What has variables in a model or layer, by its serialized form, in the order in which Keras lists its variables.

    For a model: every layer stands under ``layers``, in a file under its class's name (see `snake_case`), counted, and
    for people under its own.
    """
    return _units(config, (), (), is_trained=True, is_doubled=False)


def _units(
    config: object, stored: tuple[str, ...], path: tuple[str, ...], *, is_trained: bool, is_doubled: bool
) -> Iterator[Unit]:
    """The units of one object; ``is_doubled`` inside of a Bidirectional: in a second one they would double with each level."""
    kind, inner = class_of(config), _inner(config)
    is_trained = is_trained and inner.get("trainable") is not False
    layers = layers_of(config)
    if layers is not None:
        yield Unit(stored, path, (), 0)
        for segment, own, layer in _segments(layers):
            way = (*stored, "layers", segment), (*path, "layers", own)
            yield from _units(layer, *way, is_trained=is_trained, is_doubled=is_doubled)
        return
    is_both = kind == "Bidirectional"
    parts = None if is_both and is_doubled else _parts(kind, inner)
    if parts is None:
        leaves, trained = _leaves(kind, inner)
        yield Unit(stored, path, leaves, trained if is_trained else 0)
        return
    yield Unit(stored, path, (), 0)
    for names, part in parts:
        way = (*stored, *names), (*path, *(name.lstrip("_") for name in names))
        yield from _units(part, *way, is_trained=is_trained, is_doubled=is_doubled or is_both)


def class_of(config: object) -> str:
    """The name of Keras's own class that a serialized object is of; "" for any other class, or if it is no such object.

    Keras 2 gives no module for what is inside of a nested model, not even for a registered class.
    """
    if not isinstance(config, dict):
        return ""
    name, module = config.get("class_name"), config.get("module", "keras")
    return name if isinstance(name, str) and isinstance(module, str) and is_of_keras(module) else ""


def own_name(config: object) -> str:
    """The name that a layer or model was given; "" if there is none."""
    name = _inner(config).get("name") or (config.get("name") if isinstance(config, dict) else None)
    return name if isinstance(name, str) else ""


def layers_of(config: object) -> list[Any] | None:
    """The serialized layers of a Sequential or Functional model, in order; None for anything else."""
    if class_of(config) not in ("Sequential", "Functional", "Model"):
        return None
    inner = config.get("config") if isinstance(config, dict) else None
    if isinstance(inner, list):
        return inner  # Sequential, by Keras 1 and early Keras 2
    layers = inner.get("layers") if isinstance(inner, dict) else None
    return layers if isinstance(layers, list) else None


def snake_case(name: str) -> str:
    """What Keras makes of a class's name in the paths of a weights file.

    Source: keras.src.utils.naming.to_snake_case.
    """
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def slot(name: str) -> str | None:
    """The name of an optimizer's slot as Keras 3 has it, also for what Keras 2 calls ``m`` or ``v``; None if it is none."""
    name = _OLD_NAMES.get(name, name)
    return name if name in _SLOTS else None


def optimizer_class(optimizer: object) -> str:
    """The class of an optimizer of Keras's own, by its serialized form or name, in small letters; "" for any other."""
    name = optimizer if isinstance(optimizer, str) else class_of(optimizer)
    if not name and isinstance(optimizer, dict):
        name = str(optimizer.get("class_name"))
        name = name if name.startswith("Custom>") else ""
    return name.removeprefix("Custom>").lower()  # Keras 2 registers its own like that


def slots(optimizer: object) -> Sequence[Sequence[str]] | None:
    """The slots of an optimizer, by its serialized form or name: those of one group go together, variable by variable.

    None for a class that is not known here.
    """
    inner = _inner(optimizer)
    table: dict[str, list[Sequence[str]]] = {
        **{name: [("momentum", "velocity")] for name in ("adam", "adamw", "lamb")},
        "sgd": [("momentum",)] if inner.get("momentum") else [],
        "rmsprop": [("velocity",), *([("momentum",)] if _positive(inner.get("momentum")) else [])],
        "adagrad": [("accumulator",)],
        "adadelta": [("accumulated_grad", "accumulated_delta_var")],
        "adamax": [("momentum", "norm")],
        "lion": [("momentum",)],
        "ftrl": [("accumulator", "linear")],
    }
    found = table.get(optimizer_class(optimizer))
    if found is None:
        return None
    first: list[Sequence[str]] = [("average",)] if inner.get("use_ema") else []
    if inner.get("gradient_accumulation_steps"):
        first.append(("gradient_accumulator",))
    last: list[Sequence[str]] = [("velocity_hat",)] if inner.get("amsgrad") else []
    if inner.get("centered"):
        last.append(("average_gradient",))
    return [*first, *found, *last]


def _inner(config: object) -> Config:
    inner = config.get("config") if isinstance(config, dict) else None
    return inner if isinstance(inner, dict) else {}


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and value > 0


def _segments(layers: Sequence[object]) -> Iterator[tuple[str, str, object]]:
    """Each layer with its name in a weights file, and its own."""
    counts: dict[str, int] = {}
    for layer in layers:
        name = layer.get("class_name") if isinstance(layer, dict) else None
        base = snake_case(name.rpartition(">")[2]) if isinstance(name, str) else ""
        count = counts.get(base, 0)
        counts[base] = count + 1
        segment = f"{base}_{count}" if count else base
        yield segment, own_name(layer) or segment, layer


def _parts(kind: str, inner: Config) -> list[tuple[tuple[str, ...], object]] | None:
    """The layers inside of a layer that has no variables of its own, with the attributes that lead to them, in order."""
    layer = inner.get("layer")
    if kind == "Bidirectional":
        return [(("forward_layer",), layer), (("backward_layer",), inner.get("backward_layer") or layer)]
    if kind == "TimeDistributed":
        return [(("layer",), layer)]
    if kind in _WITH_CELL:
        return [(("cell",), {"class_name": "_Cell", "config": inner})]
    if kind == "RNN":
        return [(("cell",), inner.get("cell"))]
    if kind in _ATTENTION:
        dense = {"class_name": "EinsumDense", "config": {"bias_axes": inner.get("use_bias", True)}}
        mark = "_" if kind != "MultiHeadAttention" or _is_old(inner) else ""
        return [((f"{mark}{role}_dense",), dense) for role in ("query", "key", "value", "output")]
    cells = inner.get("cells")
    if kind == "StackedRNNCells" and isinstance(cells, list):
        return [(("cells", segment), cell) for segment, _, cell in _segments(cells)]
    return None


def _leaves(kind: str, inner: Config) -> tuple[tuple[str, ...] | None, int | None]:
    text = _LEAVES.get(kind)
    if text is None:
        return None, None
    trained, _, others = text.partition("|")
    if kind == "LayerNormalization" and inner.get("rms_scaling"):
        trained = "gamma"
    names = [leaf.partition("?")[0] for leaf in trained.split() if _has(leaf.partition("?")[2], inner)]
    return (*names, *others.split()), len(names)


def _has(flag: str, inner: Config) -> bool:
    if not flag:
        return True
    if flag == "_concat":
        return inner.get("score_mode") == "concat"
    return bool(inner.get(flag, flag != "bias_axes"))


def _is_old(inner: Config) -> bool:
    """Whether Keras 2 wrote this config, whose dtypes are plain names."""
    return isinstance(inner.get("dtype"), str)
