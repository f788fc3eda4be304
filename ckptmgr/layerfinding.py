"""Which layers a checkpoint has, from the names and shapes of its tensors alone.

The law: what cannot be told is an error that lists it, and never a guess: a matrix transposed by mistake often fits.
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ckptmgr.errors import shown
from ckptmgr.layers import GATES, KINDS, OTHERS, TRACKED, VARIABLES, Layer
from ckptmgr.renaming import near_names
from ckptmgr.spec import TensorSpec

Direction = Literal["keras-to-torch", "torch-to-keras"]
_CELLS = frozenset({"cell", "lstm_cell", "gru_cell", "simple_rnn_cell"})
_DROPPED = re.compile(r"(^|/)(optimizer|seed_generator|metrics|_metrics)/|(^|/)seed_generator_state$")
_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
_FROM_TORCH = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_DIRECTIONS = {"/forward_layer": "l0", "/backward_layer": "l0_reverse"}  # of a Bidirectional: what its two layers are in torch
_SLOTTED = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh)_(l\d+(?:_reverse)?)")
# A file of weights has numbers for variables: what a layer is, only the name of its class tells.
_CLASSES = {"dense": "dense", "conv": "conv", "depthwise": "depthwise", "norm": "norm", "embedding": "embedding"}
_ATTENTION = frozenset({"query", "key", "value", "attention_output", "query_dense", "key_dense", "value_dense", "output_dense"})


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a user says of layers, by the names that they have before: what they are called after, and of which kind they are."""

    layers: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)

    def kind(self, layer: str, short: str) -> str | None:
        """The kind that is said for a layer, by its name or by a glob."""
        return next(
            (kind for glob, kind in self.kinds.items() if any(fnmatch.fnmatchcase(n, glob) for n in (layer, short))), None
        )

    def check(self, layers: Iterable[tuple[str, str]]) -> None:
        """Raises ValueError for a wish that is of no layer, with the nearest names, and for an unknown kind."""
        pairs = list(layers)
        for what, wishes in (("layers", self.layers), ("kinds", self.kinds)):
            for wish in wishes:
                if not any(fnmatch.fnmatchcase(name, wish) or name == wish for pair in pairs for name in pair):
                    near = near_names([wish], [short for _, short in pairs]).get(wish, ())
                    raise ValueError(f"{what}: {wish!r} is no layer here" + (f" (near: {shown(near)})" if near else ""))
        for layer, kind in self.kinds.items():
            if kind.partition(":")[0] not in (*KINDS, *OTHERS):
                raise ValueError(f"kinds: {kind!r} of {layer!r} is none of {shown((*KINDS, *OTHERS), 10)}")


class Found(NamedTuple):
    """The layers, the names of tensors that stay what they are, and of those that have no place on the other side."""

    layers: list[Layer]
    kept: list[str]
    dropped: list[str]


def in_keras(specs: Mapping[str, TensorSpec], wishes: Wishes) -> Found:
    """The layers of a Keras model: names such as ``layers/conv2d/kernel``, ``conv2d/bias`` or ``layers/lstm/cell/vars/1``.

    Raises:
        ValueError: layers whose kind nothing tells, or wishes for layers that are not there.
    """
    groups: dict[str, dict[str, str]] = {}
    for name in specs:
        layer, end = _split_keras(name)
        groups.setdefault(layer, {})[end] = name
    both = dict.fromkeys(_wrapper(layer)[0] for layer in groups)
    wishes.check((layer, short_name(layer)) for layer in (*groups, *both))
    found, unknown = Found([], [], []), []
    for layer, ends in groups.items():
        wish = wishes.kind(layer, short_name(layer))
        if wish == "keep":
            found.kept.extend(ends.values())
            continue
        dropped_names = list(ends.values()) if wish == "drop" else [name for name in ends.values() if _DROPPED.search(name)]
        found.dropped.extend(dropped_names)
        left = {end: name for end, name in ends.items() if name not in dropped_names}
        if not left:
            continue
        known = _keras_variables(layer, {end: specs[name] for end, name in left.items()})
        kind = (
            wish.partition(":")[0]
            if wish
            else known
            and _keras_kind(
                layer,
                {v: specs[left[e]] for v, e in known.items()},
                is_numbered=all(e.rpartition("/")[2].isdecimal() for e in left),
            )
        )
        if not kind or not known or not _fitted(kind, known).keys() <= VARIABLES[kind]:
            unknown.append(layer or next(iter(left)))
            continue
        torch, slot = _target(_wished(layer, wishes.layers) or _torch_default(layer))
        kernel = known.get("depthwise_kernel") or known.get("kernel") or next(iter(known.values()))
        multiplier = specs[left[kernel]].shape[-1] if kind == "depthwise" and specs[left[kernel]].shape else 1
        found.layers.append(Layer(layer, torch, kind, _fitted(kind, known), slot, multiplier))
    _check_known(unknown)
    return found


def in_torch(specs: Mapping[str, TensorSpec], wishes: Wishes) -> Found:
    """The modules of a torch state dict: names such as ``features.0.weight`` or ``rnn.weight_ih_l0_reverse``.

    Raises:
        ValueError: as `in_keras`.
    """
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for name in specs:
        module, _, end = name.rpartition(".")
        slotted = _SLOTTED.fullmatch(end)
        groups.setdefault((module, slotted[2] if slotted else ""), {})[slotted[1] if slotted else end] = name
    wishes.check((module, f"{module}:{slot}" if slot else module) for module, slot in groups)
    found, unknown = Found([], [], []), []
    for (module, slot), ends in groups.items():
        wish = wishes.kind(module, f"{module}:{slot}")
        if wish in ("keep", "drop"):
            (found.kept if wish == "keep" else found.dropped).extend(ends.values())
            continue
        kind, variables = _torch_kind(module, {end: specs[name] for end, name in ends.items()}, slot, wish)
        if kind is None:
            unknown.append(module or next(iter(ends)))
            continue
        found.dropped.extend(name for end, name in ends.items() if end == TRACKED)
        is_both = (module, "l0_reverse") in groups and slot in ("l0", "l0_reverse")
        named = wishes.layers.get(f"{module}:{slot}")
        keras = named or wishes.layers.get(module, _keras_default(module))
        keras = keras if "/" in keras else f"layers/{keras}"
        if is_both and not named:
            keras += next(end for end, each in _DIRECTIONS.items() if each == slot)
        multiplier = wish.partition(":")[2] if wish else ""
        found.layers.append(Layer(keras, module, kind, variables, slot or "l0", int(multiplier) if multiplier.isdecimal() else 1))
    _check_known(unknown)
    return found


def short_name(layer: str) -> str:
    """A layer of Keras as people call it: ``conv2d`` for ``layers/conv2d``."""
    return layer.removeprefix("layers/").replace("/layers/", "/")


def _check_known(unknown: Sequence[str]) -> None:
    if unknown:
        raise ValueError(
            f"names and shapes do not tell which kind of layer these are: {shown(unknown)}. Say kinds={{name: kind}}, "
            f"with one of {', '.join((*KINDS, *OTHERS))}"
        )


def _split_keras(name: str) -> tuple[str, str]:
    """The layer of a variable, and what follows its name."""
    keys = name.split("/")
    count = 2 if len(keys) > 2 and keys[-2] == "vars" else 1
    if len(keys) > count + 1 and keys[-count - 1] in _CELLS:
        count += 1
    return "/".join(keys[:-count]), "/".join(keys[-count:])


def _keras_variables(layer: str, ends: Mapping[str, TensorSpec]) -> dict[str, str] | None:
    """What Keras calls each variable of a layer -> its name within the layer; None if that is not known."""
    names = {end: end.rpartition("/")[2].removesuffix(":0") for end in ends}
    if not all(name.isdecimal() for name in names.values()):
        return {name: end for end, name in names.items()}
    order = _order(layer, [ends[end] for end in sorted(ends, key=lambda end: int(names[end]))])
    return dict(zip(order, sorted(ends, key=lambda end: int(names[end])), strict=True)) if order else None


def _order(layer: str, specs: Sequence[TensorSpec]) -> Sequence[str] | None:
    """What the variables are called that have numbers alone."""
    ranks = tuple(len(spec.shape) for spec in specs)
    if ranks == (1, 1, 1, 1):
        return _NORM
    if ranks == (1, 1):
        return None if "batch_norm" in layer else _NORM[:2]
    if ranks in ((2, 2, 1), (2, 2, 2), (2, 2)):
        return ("kernel", "recurrent_kernel", "bias")[: len(ranks)]
    if ranks == (2,) and "embedding" in layer.rpartition("/")[2]:
        return ("embeddings",)
    if ranks[0] > 1 and ranks[1:] in ((), (1,)):
        return ("kernel", "bias")[: len(ranks)]
    return None


def _keras_kind(layer: str, variables: Mapping[str, TensorSpec], *, is_numbered: bool) -> str | None:
    kind = _by_variables(layer.rpartition("/")[2], variables)
    if not is_numbered or kind is None or kind in GATES:  # an RNN has a cell of its own
        return kind
    return kind if _CLASSES[kind] in layer.rpartition("/")[2] else None


def _by_variables(last: str, variables: Mapping[str, TensorSpec]) -> str | None:
    names = frozenset(variables)
    if names == {"embeddings"}:
        return "embedding"
    if names <= {*_NORM} and names & {"gamma", "beta", "moving_mean"}:
        return "norm"
    if "recurrent_kernel" in names and names <= {"kernel", "recurrent_kernel", "bias"}:
        return _gates(variables["recurrent_kernel"].shape[::-1])
    if names <= {"depthwise_kernel", "bias"} and "depthwise_kernel" in names:
        return "depthwise"
    if "kernel" not in names or not names <= {"kernel", "bias"} or last in _ATTENTION or "einsum" in last:
        return None
    return _by_kernel(last, variables["kernel"].shape, variables.get("bias"))


def _by_kernel(last: str, shape: Sequence[int], bias: TensorSpec | None) -> str | None:
    if len(shape) == 2:
        return "dense" if bias is None or bias.shape == shape[1:] else None
    if len(shape) not in (3, 4, 5):
        return None
    if "depthwise" in last:
        return "depthwise"
    return "conv" if bias is None or bias.shape in (shape[-1:], shape[-2:-1]) else None


def _torch_kind(module: str, ends: Mapping[str, TensorSpec], slot: str, wish: str | None) -> tuple[str | None, dict[str, str]]:
    """The kind of a module, and Keras' names of its variables; None if it is not known."""
    names = frozenset(ends)
    wished = wish.partition(":")[0] if wish else None
    if slot:
        is_known = names in ({"weight_ih", "weight_hh"}, {"weight_ih", "weight_hh", "bias_ih", "bias_hh"})
        kind = (wished or _gates(ends["weight_hh"].shape)) if is_known else None
        variables = ("kernel", "recurrent_kernel", *(("bias",) if "bias_ih" in names else ()))
        return kind, {variable: f"cell/{variable}" for variable in variables}
    if wished == "norm" or (wished is None and len(ends["weight"].shape if "weight" in ends else ()) == 1):
        is_known = names <= {*_FROM_TORCH, TRACKED} and bool(module)
        return ("norm" if is_known else None), {new: new for old, new in _FROM_TORCH.items() if old in names}
    if "running_mean" in names and names <= {*_FROM_TORCH, TRACKED}:
        return "norm", {new: new for old, new in _FROM_TORCH.items() if old in names}
    if "weight" not in names or not names <= {"weight", "bias"} or not module:
        return None, {}
    kind = wished or _by_rank(module, len(ends["weight"].shape), has_bias="bias" in names)
    first = {"embedding": "embeddings"}.get(kind or "", "kernel")
    return kind, {first: first, **({"bias": "bias"} if "bias" in names else {})}


def _by_rank(module: str, rank: int, *, has_bias: bool) -> str | None:
    last = module.rpartition(".")[2].lower()
    if rank == 2 and not has_bias:  # of nn.Linear(bias=False), which is transposed, or of nn.Embedding, which is not
        return "embedding" if "emb" in last else None
    return {2: "dense", 3: "conv", 4: "conv", 5: "conv"}.get(rank)


def _gates(shape: Sequence[int]) -> str | None:
    """The kind of an RNN, from the shape of torch's ``weight_hh``."""
    if len(shape) != 2:
        return None
    return next((kind for kind, gates in GATES.items() if shape[0] == gates * shape[1]), None)


def _fitted(kind: str, variables: Mapping[str, str]) -> dict[str, str]:
    """With the name of the kind's own first variable, where a wish says the kind of numbered ones."""
    if kind == "embedding" and "kernel" in variables:
        return {"embeddings": variables["kernel"]}
    return dict(variables)


def _target(text: str) -> tuple[str, str]:
    """A torch module, and the slot of an RNN after a colon: ``rnn:l1_reverse``."""
    module, _, slot = text.partition(":")
    return module, slot or "l0"


def _wrapper(layer: str) -> tuple[str, str]:
    """The Bidirectional that a layer is one direction of, and what its name ends in; else the layer itself, and ``""``."""
    end = next((end for end in _DIRECTIONS if layer.endswith(end)), "")
    return layer.removesuffix(end), end


def _wished(layer: str, layers: Mapping[str, str]) -> str | None:
    """What a layer of Keras is to be called in torch, by its own name or that of the Bidirectional that it is one of."""
    if own := layers.get(layer, layers.get(short_name(layer))):
        return own
    both, end = _wrapper(layer)
    wish = layers.get(both, layers.get(short_name(both))) if end else None
    return f"{wish}:{_DIRECTIONS[end]}" if wish else None


def _torch_default(layer: str) -> str:
    short, end = _wrapper(short_name(layer))
    return short.replace("/", ".") + (f":{_DIRECTIONS[end]}" if end else "")


def _keras_default(module: str) -> str:
    return "/".join(f"layers/{key}" for key in module.split("."))
