"""Rules for names and for layers, one after another, on the way of a checkpoint into another.

The law: every tensor of the source is in the result, or in ``left_out``; two never get one name.
"""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckptmgr import layerfinding, rules, rulesets
from ckptmgr.deriving import Derived, Staged, note
from ckptmgr.errors import UnsupportedTensorError, shown
from ckptmgr.layerfinding import Found, Wishes
from ckptmgr.layers import Made, to_keras, to_torch, torch_names
from ckptmgr.layout import Path
from ckptmgr.matching import Stored
from ckptmgr.renaming import Rule, renamed
from ckptmgr.rules import AnyRule, Layers
from ckptmgr.skeleton import TensorNode
from ckptmgr.source import TensorSource
from ckptmgr.spec import TensorSpec
from ckptmgr.step import JSON
from ckptmgr.structure import Structure, encoded, structure
from ckptmgr.transforms import Recipe, plain
from ckptmgr.tree import join


@dataclass(frozen=True, slots=True)
class Stages:
    """What is to be written: ``shape`` names tensors of ``source``. ``origins`` has what each of these is called in the
    first. ``left_out`` are names in the first source. ``record`` is
    what `rulesets.Rules.inverted_from` reads; None without rules.
    """

    source: TensorSource
    shape: Structure
    origins: Mapping[str, str] = field(default_factory=dict)
    left_out: Sequence[str] = ()
    record: JSON = None

    def origin(self, name: str) -> str:
        """What a tensor is called in the first source; several that it is made of, with ``+`` between."""
        own = self.shape.names[name]
        return self.origins.get(own, own)

    def note(self, name: str) -> str:
        """What became of a tensor's values, once it has been read; ``""`` if nothing."""
        return note(self.source, self.shape.names[name])


def staged(
    source: TensorSource, skeleton: JSON, given: Sequence[AnyRule] = (), select: Sequence[str] | str | None = None
) -> Stages:
    """The source after all rules, with what the globs match of the new names.

    Raises:
        ValueError: a rule or a glob that matches nothing, rules that give two values one name, layers of no known kind.
        UnsupportedTensorError: a layer that the other framework has not.
        CorruptCheckpointError: the skeleton is damaged.
    """
    run = _Run(source, skeleton)
    last: list[Rule] = []
    for rule in given:
        if not isinstance(rule, Layers):
            last.append(rule)
            continue
        if last:
            run.rename(last)
        run.change(rule)
        last = []
    names = run.check(last)
    shape = structure(run.source, run.skeleton, last, select)
    run.note_names(last, names)
    left_out = [run.origins.get(name, name) for name in shape.left_out] + run.dropped
    return Stages(
        run.source,
        shape,
        run.origins,
        left_out,
        rulesets.record(run.stages) if given else None,
    )


@dataclass
class _Run:
    source: TensorSource
    skeleton: JSON
    origins: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    stages: list[JSON] = field(default_factory=list)

    def check(self, batch: Sequence[Rule]) -> list[str]:
        """The names that there are, if the rules have something to do."""
        if not batch:
            return []
        names = [join(path) for path in Stored(self.source, self.skeleton).leaves]
        rules.check(batch, names)
        return names

    def rename(self, batch: Sequence[Rule]) -> None:
        names = self.check(batch)
        shape = structure(self.source, self.skeleton, batch)
        self.note_names(batch, names)
        self.origins = {name: self.origins.get(own, own) for name, own in shape.names.items()}
        self.source, self.skeleton = Staged(self.source, shape.names, shape.aliases, shape.paths), shape.skeleton

    def note_names(self, batch: Sequence[Rule], names: Sequence[str]) -> None:
        if batch:
            new = {name: renamed(name, batch) for name in names}
            changed = {name: other for name, other in new.items() if other != name}
            self.stages.append(rulesets.names_record(changed, [*new.values()]))

    def change(self, rule: Layers) -> None:
        stored = Stored(self.source, self.skeleton)
        own = {join(path): stored.tensor(leaf) for path, leaf in stored.leaves.items() if isinstance(leaf, TensorNode)}
        rest = {path: leaf for path, leaf in stored.leaves.items() if not isinstance(leaf, TensorNode)}
        specs = {name: self.source.specs[tensor] for name, tensor in own.items()}
        found, recipes = _changed(rule, specs)
        self.stages.append(rulesets.layers_record(rule, found.layers))
        self.dropped += [self._origin([own[name]]) for name in found.dropped]
        recipes = {
            name: recipe._replace(pieces=tuple(piece._replace(name=own[piece.name]) for piece in recipe.pieces))
            for name, recipe in recipes.items()
        }
        tensors, aliases = _tied(recipes)
        origins = {name: self._origin(piece.name for piece in recipe.pieces) for name, recipe in tensors.items()}
        paths = {name: path for name in recipes if len(path := _path(name)) > 1}
        self.source, self.origins = Derived(self.source, tensors, aliases, paths), origins
        self.skeleton = _skeleton({_path(name): name for name in recipes}, rest) if rest else None

    def _origin(self, names: Iterable[str]) -> str:
        return " + ".join(self.origins.get(name, name) for name in names)


def _changed(rule: Layers, specs: Mapping[str, TensorSpec]) -> tuple[Found, dict[str, Recipe]]:
    """The layers among the tensors, and what is made of them and of all others, by new names."""
    under = {name[len(rule.under) :]: spec for name, spec in specs.items() if name.startswith(rule.under)}
    if not under:
        raise ValueError(f"no tensor's name begins with {rule.under!r}: {shown([*specs])}")
    found = _by_table(rule, under) if rule.table is not None else _by_name(rule, under)
    change = to_torch if rule.direction == "keras-to-torch" else to_keras
    try:
        made = [each for layer in found.layers for each in change(layer, under)]
    except KeyError as error:
        raise UnsupportedTensorError(f"a layer lacks its tensor {error.args[0]!r}", tensor=error.args[0]) from error
    made += [Made(name, plain(name, under[name])) for name in found.kept]
    used = {piece.name for each in made for piece in each.recipe.pieces} | {*found.dropped}
    if forgotten := [name for name in under if name not in used]:
        raise ValueError(f"the rule {rule.direction!r} has no place for {shown(forgotten)}: say kinds={{name: 'keep'}} or 'drop'")
    recipes = {name: plain(name, spec) for name, spec in specs.items() if not name.startswith(rule.under)}
    for name, recipe in made:
        pieces = tuple(piece._replace(name=rule.under + piece.name) for piece in recipe.pieces)
        if (new := rule.under + name) in recipes:
            both = [piece.name for piece in (*recipes[new].pieces, *pieces)]
            raise ValueError(f"the rule {rule.direction!r} gives two values the name {new!r}: {shown(both)}; say layers=")
        recipes[new] = recipe._replace(pieces=pieces)
    return found._replace(dropped=[rule.under + name for name in found.dropped]), recipes


def _by_name(rule: Layers, specs: Mapping[str, TensorSpec]) -> Found:
    marks = {glob: kind for glob, kind in rule.kinds.items() if kind in ("keep", "drop")}
    marked = {name: kind for glob, kind in marks.items() for name in specs if fnmatch.fnmatchcase(name, glob)}
    idle = {glob for glob in marks if any(fnmatch.fnmatchcase(name, glob) for name in marked)}
    kinds = {glob: kind for glob, kind in rule.kinds.items() if glob not in idle}
    find = layerfinding.in_keras if rule.direction == "keras-to-torch" else layerfinding.in_torch
    found = find({name: spec for name, spec in specs.items() if name not in marked}, Wishes(rule.layers, kinds))
    kept = found.kept + [name for name, kind in marked.items() if kind == "keep"]
    return Found(found.layers, kept, found.dropped + [name for name, kind in marked.items() if kind == "drop"])


def _by_table(rule: Layers, specs: Mapping[str, TensorSpec]) -> Found:
    """The layers of an earlier conversion that are still there."""
    layers, known = [], set()
    for layer in rule.table or ():
        if rule.direction == "keras-to-torch":
            names = [f"{layer.keras}/{end}" for end in layer.variables.values()]
        else:
            names = torch_names(layer)
        if any(name in specs for name in names):
            layers.append(layer)
            known |= {*names}
    dropped = [name for name in known if name in specs and name.endswith(".num_batches_tracked")]
    return Found(layers, [name for name in specs if name not in known], dropped)


def _tied(recipes: Mapping[str, Recipe]) -> tuple[dict[str, Recipe], dict[str, str]]:
    """Each recipe once, and the further names of tensors that are made alike from the same."""
    firsts: dict[Recipe, str] = {}
    aliases: dict[str, str] = {}
    for name, recipe in recipes.items():
        if recipe.pieces and firsts.setdefault(recipe, name) != name:
            aliases[name] = firsts[recipe]
    return {name: recipe for name, recipe in recipes.items() if name not in aliases}, aliases


def _path(name: str) -> Path:
    """Where a tensor goes in the tree: a torch state dict is flat, below what the rule is for."""
    return tuple(name.split("/"))


def _skeleton(tensors: Mapping[Path, str], rest: Mapping[Path, Any]) -> JSON:
    """The tree of tensors by their new names, and of what else there was at its old place."""
    root: dict[Any, Any] = {}
    for path, leaf in [*((path, TensorNode(name)) for path, name in tensors.items()), *rest.items()]:
        inner = root
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                raise ValueError(f"the rules give a value the name of a group: {join(path)!r}")
        if path[-1] in inner:
            raise ValueError(f"the rules give two values the name {join(path)!r}")
        inner[path[-1]] = leaf
    return encoded(root, (), tensors)
