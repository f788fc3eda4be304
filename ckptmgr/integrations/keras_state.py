"""What a step holds of a Keras model, and how it comes back into a live one.

The state is plain: ``layers/...`` the weights, ``optimizer/...``, ``random/...`` the places of dropout and its like in their
streams of random numbers, and of a running `fit` also ``metrics/...`` and ``history/...``. Restoring assigns to the variables
that the model has; nothing is traced or compiled again.
"""

import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from ckptmgr.checkpoint import Restored
from ckptmgr.errors import CorruptCheckpointError, StepNotFoundError
from ckptmgr.integrations.keras_naming import Named, Walk, optimizer_variables
from ckptmgr.manager import CheckpointManager
from ckptmgr.step import JSON, StepInfo

T = TypeVar("T")
Holds = Literal["weights", "model", "fit"]
"""What a step is good for: `restore_weights` takes any, `load_model` needs an architecture, going on with `fit` a position."""

FRAMEWORKS = ("keras", "tf_keras")
WEIGHTS = ("layers", "vars", "other")  # the groups of the state that hold weights
FACTS = "keras"  # the key of our own facts in a step's metadata
OPTIMIZER = "optimizer"  # among our facts: its variables in Keras' order


class Parts(NamedTuple):
    """The live variables of a model, by the group of the state that they are in."""

    weights: Named
    optimizer: Named
    random: Named
    layers: Mapping[tuple[str, ...], Any]

    def tree(self, *groups: str) -> dict[str, Any]:
        """The state of the weights and of these groups."""
        return {**nest(self.weights), **{group: nest(getattr(self, group)) for group in groups if getattr(self, group)}}


def framework(model: Any) -> str:
    """``"keras"`` or ``"tf_keras"``: whose model it is.

    Raises:
        TypeError: it is no Keras model.
    """
    roots = [cls.__module__.partition(".")[0] for cls in type(model).__mro__]
    found = next((root for root in roots if root in FRAMEWORKS), None)
    if found is None or not hasattr(model, "fit"):
        raise TypeError(f"a model of Keras 3 or tf_keras is needed, not a {type(model).__qualname__}")
    return found


def facts(model: Any, holds: Holds) -> dict[str, JSON]:
    """What the metadata of a step says of the framework that saved it, and the order of the optimizer's variables there.

    The order is told only where it is not that of the state, which has what belongs to one weight together.
    """
    name = framework(model)
    module = sys.modules[name]
    told: dict[str, JSON] = {"framework": name, "version": module.__version__, "backend": _backend(name), "holds": holds}
    own = ["/".join(path) for path in parts(model).optimizer] if model.built else []
    weights = {weight: index for index, weight in enumerate(dict.fromkeys(name.partition("/")[0] for name in own))}
    is_same = own == sorted(own, key=lambda name: weights[name.partition("/")[0]])
    return told if is_same else {**told, OPTIMIZER: [*own]}


def facts_of(info: StepInfo | None) -> Mapping[str, JSON]:
    """Those of a step; empty if it was saved by other means."""
    found = info.metadata.get(FACTS) if info is not None else None
    return found if isinstance(found, dict) else {}


def parts(model: Any) -> Parts:
    """The variables of a built model, and of its optimizer if that is built.

    Raises:
        TypeError: it is no Keras model.
        ValueError: the model is not built: it has no variables yet.
    """
    framework(model)
    sync(model)
    if not model.built:
        raise ValueError("the model is not built yet: call it on a batch of data, or build(input_shape), first")
    walk = Walk(model)
    optimizer = getattr(model, "optimizer", None)
    named = {}
    if optimizer is not None and is_built(optimizer):
        named = optimizer_variables(optimizer, walk.weights, model.trainable_variables)
    return Parts(walk.weights, named, walk.random, walk.layers)


def sync(model: Any) -> None:
    """Brings the variables up to date: with JAX, `fit` keeps their values elsewhere between two batches."""
    if callable(getattr(model, "jax_state_sync", None)):
        model.jax_state_sync()


def is_built(optimizer: Any) -> bool:
    """Whether the optimizer has its variables. Keras 2's older ones have no mark for it."""
    for mark in ("built", "_built"):
        if isinstance(getattr(optimizer, mark, None), bool):
            return bool(getattr(optimizer, mark))
    inner = getattr(optimizer, "inner_optimizer", None)
    return is_built(inner) if inner is not None else len(getattr(optimizer, "weights", ())) > 1


def build_optimizer(model: Any) -> None:
    """Makes the variables of a compiled model's optimizer, as its first training step would."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or is_built(optimizer) or not model.trainable_variables:
        return
    if hasattr(optimizer, "build"):
        optimizer.build(model.trainable_variables)
    elif hasattr(optimizer, "_create_all_weights"):
        optimizer._create_all_weights(model.trainable_variables)


def nest(named: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """A tree of dicts with each variable at its path."""
    tree: dict[str, Any] = {}
    for path, variable in named.items():
        around = tree
        for key in path[:-1]:
            around = around.setdefault(key, {})
        around[path[-1]] = variable
    return tree


def restore_into(manager: CheckpointManager, step: int, model: Any, groups: Collection[str]) -> Restored:
    """Fills the model from a step: its weights, and what the model and the step both have of these groups of variables.

    Of groups that no model has (``history``), the state that is given back has what the step has.

    Raises:
        StateMismatchError: the model and the step differ; lists every difference by name, and nothing was changed.
    """
    with manager.open(step) as checkpoint:
        held = {name.partition("/")[0] for name in (*checkpoint.specs, *checkpoint.aliases)}
        is_same = facts_of(checkpoint.info).get("backend") in (None, _backend(framework(model)))
    if "optimizer" in groups and "optimizer" in held:
        build_optimizer(model)
    live = parts(model)
    mine = {group: nest(getattr(live, group)) if hasattr(live, group) else None for group in groups}
    wanted = [group for group in groups if group in held and mine[group] != {} and (is_same or group != "random")]
    into = {**nest(live.weights), **{group: mine[group] for group in wanted}}
    restored = manager.restore(
        step,
        into=into,
        select=[f"{group}/*" for group in (*WEIGHTS, *wanted) if group in into or group in held],
        cast="no" if is_same else "same_kind",  # backends count in integers of different sizes
    )
    for layer in live.layers.values():
        if hasattr(layer, "adapt_mean"):
            layer.finalize_state()  # Normalization computes with constants that it makes of its variables
    return restored


def newest(manager: CheckpointManager, use: Callable[[StepInfo], T], wanted: Callable[[StepInfo], bool] = lambda info: True) -> T:
    """What ``use`` makes of the newest wanted step that passes its checks; damaged ones are warned about and left in place.

    Raises:
        StepNotFoundError: there is no wanted step.
        CorruptCheckpointError: there are some, but none is good.
    """
    damaged: CorruptCheckpointError | None = None
    for info in reversed([info for info in manager.steps() if wanted(info)]):
        try:
            return use(info)
        except CorruptCheckpointError as error:
            warnings.warn(f"step {info.step} is skipped: {error}", RuntimeWarning, stacklevel=3)
            damaged = error
        except StepNotFoundError:
            continue  # retention of another process was faster
    if damaged is not None:
        raise damaged
    raise StepNotFoundError(f"no step to restore in {manager.folder.location()!r}")


def metric_values(model: Any) -> dict[str, Any]:
    """The variables of the metrics that `fit` is computing, by index."""
    found = [variable for metric in model.metrics for variable in metric.variables]
    return {str(index): variable for index, variable in enumerate(found)}


def generators(model: Any) -> dict[str, Any]:
    """The states of torch's own generators, from which Keras takes what has no seed on that backend; empty on the others."""
    if _backend(framework(model)) != "torch":
        return {}
    torch = sys.modules["torch"]
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), **{f"cuda-{index}": state for index, state in enumerate(devices)}}


def set_generators(model: Any, states: Mapping[str, Any]) -> None:
    """Puts back what `generators` gave, for the devices that are there."""
    live = generators(model)
    for name, state in states.items():
        if name not in live:
            continue
        torch, (device, _, index) = sys.modules["torch"], name.partition("-")
        tensor = torch.tensor(state, dtype=torch.uint8)
        torch.set_rng_state(tensor) if device == "cpu" else torch.cuda.set_rng_state(tensor, int(index))


def _backend(name: str) -> str:
    return str(sys.modules["keras"].backend.backend()) if name == "keras" else "tensorflow"
