"""Names for the variables of a Keras model that do not depend on how many models were made before.

Keras numbers its own names through the whole process. These follow the walk of ``.weights.h5`` files instead: ``layers``, then
the class in snake case, numbered within its own list, or the attribute that holds a layer: ``layers/dense_1/kernel``,
``layers/bidirectional/forward_layer/cell/kernel``. Models are told by what they have; no framework is imported.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

Named: TypeAlias = dict[tuple[str, ...], Any]
"""Variables by their paths, in the order of the walk."""

# What frameworks themselves keep in a layer.
_LISTS = re.compile(
    "_(non_)?trainable_(variables|weights)|layers|_layers|_operations|_functional|_self_.*|_modules|_parameters|torch_params"
)


def snake(name: str) -> str:
    """A class's name as Keras writes it in paths: ``LayerNormalization`` is ``layer_normalization``, ``Conv2D`` is ``conv2d``."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


class Walk:
    """Every layer of a model once, at the first path that leads to it, and the variables that are its own.

    ``weights`` are those of ``model.weights``; ``random`` the states of the layers' random generators; ``layers`` the layers.
    A weight that no layer owns is called by its index in ``model.weights``: ``other/7``.
    """

    def __init__(self, model: Any) -> None:
        self.weights: Named = {}
        self.random: Named = {}
        self.layers: dict[tuple[str, ...], Any] = {}
        self._seen: set[int] = set()
        self._visit(model, ())
        for index, variable in enumerate(model.weights):
            if id(variable) not in self._seen:
                self.weights["other", str(index)] = variable

    def _visit(self, layer: Any, path: tuple[str, ...]) -> None:
        self._seen.add(id(layer))
        self.layers[path] = layer
        own = _own_variables(layer)
        for name, variable in own.items():
            if id(variable) not in self._seen:
                self._seen.add(id(variable))
                self.weights[(*path, name) if path else ("vars", name)] = variable
        for name, variable in _generators(layer).items():
            self.random[*path, name] = variable
        for (first, *rest), child in _children(layer):
            if id(child) not in self._seen:
                self._visit(child, (*path, f"{first}_layer" if path and first in own else first, *rest))


def _own_variables(layer: Any) -> dict[str, Any]:
    """The variables of the layer itself, not of those in it: trainable ones first, in the order they were created."""
    kinds = ("_trainable_variables", "_non_trainable_variables"), ("_trainable_weights", "_non_trainable_weights")
    lists = next(names for names in (*kinds, ()) if all(name in vars(layer) for name in names))
    variables = [variable for name in lists for variable in vars(layer)[name]]
    holders = _holders(layer, variables)
    return dict(zip(unique(_name(variable, holders) for variable in variables), variables, strict=True))


def _name(variable: Any, holders: Mapping[int, str]) -> str:
    """The name a variable was given; that of the attribute it is, where Keras made one up."""
    name = str(variable.name).rpartition("/")[2].partition(":")[0]
    return holders.get(id(variable), "variable") if re.fullmatch(r"(?i)variable(_\d+)?", name) else name


def _holders(layer: Any, variables: Iterable[Any]) -> dict[int, str]:
    wanted = {id(variable) for variable in variables}
    found: dict[int, str] = {}
    for name, value in _attributes(layer):
        for item in _items(value):
            if id(item) in wanted:
                found.setdefault(id(item), name)
    return found


def _generators(layer: Any) -> dict[str, Any]:
    """The variables that hold the layer's place in its stream of random numbers, which `fit` moves on."""
    seeds = [generator.state for generator in vars(layer).get("_seed_generators", ())]
    stateful = getattr(vars(layer).get("_random_generator"), "_generator", None)
    state = getattr(stateful, "state", None)
    named = dict(zip(unique("seed_generator" for _ in seeds), seeds, strict=True))
    return named if state is None else {**named, "random_generator": state}


def _children(layer: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The layers right in this one with the ends of their paths, as ``("layers", "dense")`` or ``("cell",)``."""
    tracked = {id(child): child for child in layer._flatten_layers(include_self=False, recursive=False)}
    listed = getattr(layer, "layers", ())
    listed = [child for child in listed if id(child) in tracked] if isinstance(listed, list | tuple) else []
    yield from _listed("layers", listed)
    for name, value in _attributes(layer):
        if id(value) in tracked:
            yield (name,), value
        else:
            yield from _listed(name, [item for item in _items(value) if id(item) in tracked])
    yield from _listed("layers", list(tracked.values()))


def _listed(name: str, children: list[Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for own, child in zip(unique(snake(type(child).__name__) for child in children), children, strict=True):
        yield (name, own), child


def _attributes(layer: Any) -> list[tuple[str, Any]]:
    """Public attributes first, then those with an underscore, which is dropped; Keras' own lists are not among them."""
    own = {**vars(layer), **vars(layer).get("_modules", {})}  # with torch, layers in a layer stand there alone
    names = sorted((name for name in own if not _LISTS.fullmatch(name)), key=lambda name: (name.startswith("_"), name))
    return [(name.strip("_") or name, own[name]) for name in names]


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list | tuple) else (value,)


def unique(names: Iterable[str]) -> list[str]:
    """The names, the second of its kind with ``_1``, as Keras does; none stands twice."""
    counts: Counter[str] = Counter()
    used: set[str] = set()
    found = []
    for name in names:
        new = name
        while new in used:
            counts[name] += 1
            new = f"{name}_{counts[name]}"
        used.add(new)
        found.append(new)
    return found


def optimizer_variables(optimizer: Any, weights: Mapping[tuple[str, ...], Any], trainable: Iterable[Any]) -> Named:
    """The optimizer's variables: its own (``iteration``), and those for a weight (``dense_kernel/momentum``).

    Keras puts names that count models into theirs. They are told apart by the weights that they were named after; of several
    with one name, the first is taken to be the first weight's.
    """
    variables = _variables_of(optimizer)
    paths = {id(variable): _flat(path) for path, variable in weights.items()}
    references: dict[str, list[str]] = {}
    for variable in trainable:
        references.setdefault(_reference(variable), []).append(paths[id(variable)])
    seen: Counter[tuple[str, str]] = Counter()
    named = []
    for name, _ in variables:
        found = _slot(name, references)
        if found is None:
            named.append(re.sub(r"(?i)^(variable)_\d+$", r"\1", name.replace("/", "_")))  # as Nadam's: Keras made it up
            continue
        reference, slot = found
        owners = references[reference]
        named.append(f"{owners[min(seen[found], len(owners) - 1)]}/{slot}")
        seen[found] += 1
    return {tuple(name.split("/")): variable for name, (_, variable) in zip(unique(named), variables, strict=True)}


def _variables_of(optimizer: Any) -> list[tuple[str, Any]]:
    """All that an optimizer remembers, with Keras' names; Keras 2 lists neither the learning rate nor the loss scale."""
    has_weights = callable(optimizer.variables) and hasattr(optimizer, "weights")
    listed = optimizer.weights if has_weights else optimizer.variables
    found = [(str(variable.name).partition(":")[0], variable) for variable in listed]
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    rate = getattr(inner, "_learning_rate", None)
    if hasattr(rate, "assign") and all(variable is not rate for _, variable in found):
        found.append(("learning_rate", rate))
    found += [(name, value) for name, value in getattr(inner, "_hyper", {}).items() if hasattr(value, "assign")]
    scale = getattr(getattr(optimizer, "_loss_scale", None), "_weights", {})
    return found + [(f"loss_scale_{name}", variable) for (name, _), variable in scale.items()]


def _reference(variable: Any) -> str:
    """What Keras makes the names of a weight's slots of, with ``_`` for every ``/``."""
    return str(getattr(variable, "path", variable.name)).partition(":")[0].replace("/", "_")


def _slot(name: str, references: Mapping[str, Any]) -> tuple[str, str] | None:
    """The weight and the slot of a variable called ``dense_kernel_momentum``, ``m/dense/kernel`` or ``dense/kernel/m``."""
    if "/" not in name:
        cuts = [at for at, letter in enumerate(name) if letter == "_" and name[:at] in references]
        return (name[: cuts[-1]], name[cuts[-1] + 1 :]) if cuts else None
    parts = name.split("/")  # in `fit`, with the optimizer's name before all else
    for start in range(len(parts)):
        for end in range(len(parts), start, -1):
            reference = "_".join(parts[start:end])
            if reference in references and end - start < len(parts):
                return reference, "_".join(parts[end:]) or parts[start - 1]
    return None


def _flat(path: tuple[str, ...]) -> str:
    return "_".join(part for part in path if part not in ("layers", "vars"))
