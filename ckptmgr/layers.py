"""The layers of Keras and of torch as values: which kind one is, what its variables are called on each side, how they change.

Source: the layers of Keras 3 (``kernel`` HWIO, gates i, f, c, o and z, r, h) and `torch.nn` (``weight`` OIHW, gates i, f, g, o
and r, z, n; a GRU with ``reset_after`` is what torch has).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ckptmgr.errors import UnsupportedTensorError
from ckptmgr.spec import TensorSpec
from ckptmgr.transforms import Folded, How, Permuted, Piece, Recipe, Regated, Row, Step, Unfolded, plain

KINDS = ("dense", "conv", "depthwise", "norm", "embedding", "lstm", "gru", "rnn")
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
VARIABLES = {
    "dense": {"kernel", "bias"},
    "conv": {"kernel", "bias"},
    "depthwise": {"kernel", "depthwise_kernel", "bias"},
    "norm": {*_NORM},
    "embedding": {"embeddings"},
    **{kind: {"kernel", "recurrent_kernel", "bias"} for kind in GATES},
}
OTHERS = ("keep", "drop")  # what else may become of a layer's variables
_GRU = Regated((1, 0, 2))
TRACKED = "num_batches_tracked"


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer on both sides: ``keras`` and ``torch`` are what its names begin with, ``slot`` what those of a torch RNN end in.

    ``variables`` leads from Keras' own names of its variables to what follows ``keras/`` in the checkpoint. ``multiplier`` is
    that of a depthwise convolution.
    """

    keras: str
    torch: str
    kind: str
    variables: Mapping[str, str]
    slot: str = "l0"
    multiplier: int = 1


class Made(NamedTuple):
    """A tensor on the other side, by its name, and what it is made of."""

    name: str
    recipe: Recipe


def to_torch(layer: Layer, specs: Mapping[str, TensorSpec]) -> list[Made]:
    """The tensors of a torch module, from those of a Keras layer.

    Raises:
        UnsupportedTensorError: torch has no such layer, or a tensor of it is not what one of that kind has; names it.
    """
    if layer.kind in GATES:
        return _rnn_to_torch(layer, specs)
    made = []
    for variable, end in layer.variables.items():
        name = f"{layer.keras}/{end}"
        steps = _steps(layer, variable, specs[name], name)
        made.append(Made(f"{layer.torch}.{_torch_name(layer.kind, variable)}", _moved(specs, name, steps)))
    if layer.kind == "norm" and "moving_mean" in layer.variables:
        made.append(Made(f"{layer.torch}.{TRACKED}", Recipe(TensorSpec("int64", ()), (), "zeros", "new: zero")))
    return made


def to_keras(layer: Layer, specs: Mapping[str, TensorSpec]) -> list[Made]:
    """The tensors of a Keras layer, from those of a torch module. ``num_batches_tracked`` has no place there.

    Raises:
        UnsupportedTensorError: as `to_torch`.
    """
    if layer.kind in GATES:
        return _rnn_to_keras(layer, specs)
    made = []
    for variable, end in layer.variables.items():
        name = f"{layer.torch}.{_torch_name(layer.kind, variable)}"
        steps = _undone(_steps_back(layer, variable, specs[name], name))
        made.append(Made(f"{layer.keras}/{end}", _moved(specs, name, steps)))
    return made


def torch_names(layer: Layer) -> list[str]:
    """The tensors of the torch module that `to_keras` needs, and those that it leaves."""
    if layer.kind in GATES:
        ends = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if "bias" in layer.variables else [])]
        return [f"{layer.torch}.{end}_{layer.slot}" for end in ends]
    names = [f"{layer.torch}.{_torch_name(layer.kind, variable)}" for variable in layer.variables]
    return names + ([f"{layer.torch}.{TRACKED}"] if "moving_mean" in layer.variables else [])


def _torch_name(kind: str, variable: str) -> str:
    return _NORM[variable] if kind == "norm" else "bias" if variable == "bias" else "weight"


def _steps(layer: Layer, variable: str, spec: TensorSpec, name: str) -> tuple[Step, ...]:
    rank = len(spec.shape)
    if layer.kind in ("norm", "embedding") or variable == "bias":
        return ()
    _check(layer, name, rank == 2 if layer.kind == "dense" else rank >= 3, spec)
    if layer.kind == "dense":
        return (Permuted((1, 0)),)
    if layer.kind == "conv":
        return (Permuted((rank - 1, rank - 2, *range(rank - 2))),)
    return (Permuted((rank - 2, rank - 1, *range(rank - 2))), Folded(spec.shape[-1]))


def _steps_back(layer: Layer, variable: str, spec: TensorSpec, name: str) -> tuple[Step, ...]:
    """The steps to torch that a tensor of torch's is the end of."""
    rank = len(spec.shape)
    if layer.kind != "depthwise" or variable == "bias":
        return _steps(layer, variable, spec, name)
    fits = rank >= 3 and spec.shape[1] == 1 and layer.multiplier > 0 and spec.shape[0] % layer.multiplier == 0
    _check(layer, name, fits, spec)
    return (Permuted((rank - 2, rank - 1, *range(rank - 2))), Folded(layer.multiplier))


def _undone(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    return tuple(step.inverse() for step in reversed(steps) if not isinstance(step, Row))


def _rnn_to_torch(layer: Layer, specs: Mapping[str, TensorSpec]) -> list[Made]:
    names = {variable: f"{layer.keras}/{end}" for variable, end in layer.variables.items()}
    gates = (_GRU,) if layer.kind == "gru" else ()
    units = specs[names["recurrent_kernel"]].shape[0] if specs[names["recurrent_kernel"]].shape else 0
    rows = GATES[layer.kind] * units
    made = []
    for variable, end in (("kernel", "weight_ih"), ("recurrent_kernel", "weight_hh")):
        spec = specs[names[variable]]
        _check(layer, names[variable], len(spec.shape) == 2 and spec.shape[1] == rows, spec)
        made.append(Made(_slotted(layer, end), _moved(specs, names[variable], (Permuted((1, 0)), *gates))))
    if "bias" in names:
        made += _biases(layer, specs, names["bias"], rows)
    return made


def _biases(layer: Layer, specs: Mapping[str, TensorSpec], bias: str, rows: int) -> list[Made]:
    spec = specs[bias]
    if layer.kind == "gru":
        if spec.shape == (rows,):
            text = f"{bias!r} is of a GRU with reset_after=False, which torch has not: it computes something else"
            raise UnsupportedTensorError(text, tensor=bias)
        _check(layer, bias, spec.shape == (2, rows), spec)
        ends = ("bias_ih", "bias_hh")
        return [Made(_slotted(layer, end), _moved(specs, bias, (Row(index), _GRU))) for index, end in enumerate(ends)]
    _check(layer, bias, spec.shape == (rows,), spec)
    zeros = Recipe(spec, (), "zeros", "new: zeros, for the other bias has all")
    return [Made(_slotted(layer, "bias_ih"), plain(bias, spec)), Made(_slotted(layer, "bias_hh"), zeros)]


def _rnn_to_keras(layer: Layer, specs: Mapping[str, TensorSpec]) -> list[Made]:
    gates = (_GRU,) if layer.kind == "gru" else ()
    made = []
    for variable, end in (("kernel", "weight_ih"), ("recurrent_kernel", "weight_hh")):
        name = _slotted(layer, end)
        _check(layer, name, len(specs[name].shape) == 2, specs[name])
        recipe = _moved(specs, name, (*gates, Permuted((1, 0))))
        made.append(Made(f"{layer.keras}/{layer.variables[variable]}", recipe))
    if "bias" in layer.variables:
        pieces = tuple(Piece(_slotted(layer, end), gates) for end in ("bias_ih", "bias_hh"))
        one, other = (specs[piece.name] for piece in pieces)
        _check(layer, pieces[1].name, one == other and len(one.shape) == 1, other)
        is_gru = layer.kind == "gru"
        how: How = "stack" if is_gru else "add"
        spec = TensorSpec(one.dtype, (2, *one.shape) if is_gru else one.shape)
        note = "two biases of torch's, one on the other" if is_gru else "the sum of two biases, of which one is zero: exact"
        _check_movable(pieces[0].name, one)
        made.append(Made(f"{layer.keras}/{layer.variables['bias']}", Recipe(spec, pieces, how, note)))
    return made


def _slotted(layer: Layer, end: str) -> str:
    return f"{layer.torch}.{end}_{layer.slot}"


def _moved(specs: Mapping[str, TensorSpec], name: str, steps: tuple[Step, ...]) -> Recipe:
    spec = specs[name]
    if not steps:
        return plain(name, spec)
    _check_movable(name, spec)
    piece = Piece(name, steps)
    return Recipe(TensorSpec(spec.dtype, piece.shape(spec.shape)), (piece,), "one", _told(steps))


def _told(steps: tuple[Step, ...]) -> str:
    words = {Permuted: "axes permuted", Regated: "gates reordered", Row: "one row of two", Folded: "folded", Unfolded: "unfolded"}
    return ", ".join(words[type(step)] for step in steps)


def _check_movable(name: str, spec: TensorSpec) -> None:
    if spec.is_string or spec.is_packed:
        raise UnsupportedTensorError(f"tensor {name!r} of {spec.dtype} has no elements to move: cast it first", tensor=name)


def _check(layer: Layer, name: str, fits: bool, spec: TensorSpec) -> None:
    if not fits:
        text = f"tensor {name!r} of shape {list(spec.shape)} is not what a layer of kind {layer.kind!r} has"
        raise UnsupportedTensorError(f"{text}: say kinds={{{layer.keras or layer.torch!r}: ...}}", tensor=name)
