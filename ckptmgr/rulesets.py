"""Several rules as one value: built-in ones by name, those of a file, and the inverse of what a conversion did.

The law: what a conversion kept of its rules is names alone, found again by the names that they gave; nothing is executed.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias

from ckptmgr import carrying, rulefile
from ckptmgr.checkpoint import Checkpoint
from ckptmgr.errors import CorruptCheckpointError, shown
from ckptmgr.fields import Fields
from ckptmgr.files import open_checkpoint
from ckptmgr.layers import KINDS, Layer
from ckptmgr.renaming import NAMED, is_pair, near_names
from ckptmgr.rules import AnyRule, Exact, Layers, Prefixes
from ckptmgr.step import JSON

RECORD = "ckptmgr.renamed"  # the metadata key of what the rules of a conversion did
_VERSION = 1

BUILT_IN: Mapping[str, AnyRule] = {
    "keras-to-torch": Layers("keras-to-torch"),
    "torch-to-keras": Layers("torch-to-keras"),
    **NAMED,
}

Given: TypeAlias = "str | os.PathLike[str] | Rules | Mapping[str, str] | AnyRule"
"""Whatever `Rules.of` takes, alone or in a sequence."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Ordered rules for names and layers, and with them what to select and to cast, where nothing else is said."""

    rules: tuple[AnyRule, ...] = ()
    select: tuple[str, ...] | None = None
    cast: Mapping[str, str] | None = None

    @classmethod
    def of(cls, given: "Given | Sequence[Given]") -> Self:
        """Rules of any form: the name of a built-in set, a file's path, exact names, one rule, or a sequence of all these.

        Raises:
            ValueError: an unknown name, a file that is no rule file, or two of them that select or cast.
            MissingDependencyError: YAML, without the package for it.
            OSError: from the file.
        """
        if isinstance(given, str | os.PathLike):
            return cls._named(os.fspath(given))
        if isinstance(given, Mapping):
            return cls((Exact(dict(given)),))
        if isinstance(given, Rules):
            return cls(given.rules, given.select, given.cast)
        if isinstance(given, Layers) or callable(given) or is_pair(given):
            return cls((given,))  # type: ignore[arg-type]
        made = cls()
        each: Any
        for each in given:
            made = made.joined(cls((each,)) if isinstance(each, tuple) else cls.of(each))
        return made

    @classmethod
    def inverted_from(cls, checkpoint: Checkpoint | str | os.PathLike[str], **options: Any) -> Self:
        """The rules that undo those of the last conversion with rules, of which ``checkpoint`` is the result.

        ``checkpoint`` is open, or what `open_checkpoint` opens with ``options``. What was left out there, and
        ``num_batches_tracked``, does not come back.

        Raises:
            ValueError: it was not made with rules, or its format has no place for them.
            CorruptCheckpointError: what is kept of the rules is damaged, or of a newer ckptmgr.
        """
        if not isinstance(checkpoint, Checkpoint):
            with open_checkpoint(checkpoint, **options) as opened:
                return cls.inverted_from(opened)
        kept = carrying.baggage(checkpoint)[0].metadata.get(RECORD)
        if kept is None:
            raise ValueError(f"{checkpoint.location!r} keeps no rules ({RECORD!r} in its metadata): no rules made it")
        try:
            fields = Fields(kept, "the rules")
            if fields.count("version") != _VERSION:
                raise ValueError("is of another version")
            return cls(tuple(_inverse(stage) for stage in reversed(fields.array("stages"))))
        except ValueError as error:
            raise CorruptCheckpointError(f"{RECORD!r} in the metadata of {checkpoint.location!r} {error}") from error

    @classmethod
    def _named(cls, name: str) -> Self:
        if name in BUILT_IN:
            return cls((BUILT_IN[name],))
        if not name.lower().endswith(rulefile.ENDINGS):
            near = near_names([name], BUILT_IN).get(name) or (*BUILT_IN,)
            text = f"{name!r} is neither a file of rules ({', '.join(rulefile.ENDINGS)}) nor one of the sets"
            raise ValueError(f"{text} (near: {shown(near)})")
        found = rulefile.read(name)
        try:
            rules = [_used(each) if isinstance(each, rulefile.Use) else each for each in found.rules]
        except ValueError as error:
            raise ValueError(f"{name!r} is no file of rules: {error}") from error
        return cls(tuple(rules), found.select, found.cast)

    def joined(self, other: "Rules") -> Self:
        """These rules and then others. Raises ValueError if both select or both cast."""
        for what, mine, others in (("select", self.select, other.select), ("cast", self.cast, other.cast)):
            if mine is not None and others is not None:
                raise ValueError(f"both the rules and something beside them say {what}")
        select = other.select if self.select is None else self.select
        return replace(self, rules=self.rules + other.rules, select=select, cast=other.cast if self.cast is None else self.cast)


def record(stages: Sequence[JSON]) -> JSON:
    """What is kept of the rules of a conversion."""
    return {"version": _VERSION, "stages": list(stages)}


def names_record(changed: Mapping[str, str], names: Sequence[str]) -> JSON:
    """One stage: the names that rules changed, old -> new, among all new ``names``; by what they begin with, if that tells."""
    prefixes: dict[str, str] = {}
    for old, new in changed.items():
        before, after = _prefixes(old, new)
        prefixes.setdefault(after, before)
    back = Prefixes(prefixes)
    inverse = {new: old for old, new in changed.items()}
    if len(prefixes) * 4 <= len(changed) + 3 and all(back(name) == inverse.get(name, name) for name in names):
        return {"prefixes": [[old, new] for new, old in prefixes.items()]}
    return {"names": [[old, new] for old, new in changed.items()]}


def layers_record(rule: Layers, layers: Sequence[Layer]) -> JSON:
    """One stage: the layers that became those of another framework."""
    table: list[JSON] = [
        {
            "keras": layer.keras,
            "torch": layer.torch,
            "kind": layer.kind,
            "variables": dict(layer.variables),
            **({"slot": layer.slot} if layer.slot != "l0" else {}),
            **({"multiplier": layer.multiplier} if layer.multiplier != 1 else {}),
        }
        for layer in layers
    ]
    return {"layers": rule.direction, "under": rule.under, "table": table}


def _prefixes(old: str, new: str) -> tuple[str, str]:
    """What the names begin with before the text that both end in."""
    count = 0
    while count < min(len(old), len(new)) and old[-count - 1] == new[-count - 1]:
        count += 1
    while count and any(count < len(name) and name[-count - 1] not in "/." for name in (old, new)):
        count -= 1
    return old[: len(old) - count], new[: len(new) - count]


def _used(use: rulefile.Use) -> AnyRule:
    rule = BUILT_IN.get(use.name)
    if rule is None or (use.options and not isinstance(rule, Layers)):
        options = f" that takes {shown([*use.options])}" if use.options else ""
        raise ValueError(f"use = {use.name!r} is no built-in set{options}: there are {shown([*BUILT_IN])}")
    return replace(rule, **use.options) if isinstance(rule, Layers) else rule


def _inverse(stage: JSON) -> AnyRule:
    fields = Fields(stage, "a stage of the rules")
    for kind in ("prefixes", "names"):
        if kind in fields.rest:
            pairs = {new: old for old, new in map(_pair, fields.array(kind))}
            return Prefixes(pairs) if kind == "prefixes" else _lenient(pairs)
    direction = fields.text("layers")
    if direction not in ("keras-to-torch", "torch-to-keras"):
        fields.refuse("layers", direction)
    table = [_layer(entry) for entry in fields.array("table")]
    return Layers(
        "torch-to-keras" if direction == "keras-to-torch" else "keras-to-torch", under=fields.text("under"), table=table
    )


def _lenient(names: Mapping[str, str]) -> AnyRule:
    """Exact names, of which some may have been left out since."""
    return lambda name: names.get(name, name)


def _pair(value: JSON) -> tuple[str, str]:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(each, str) for each in value):
        raise ValueError("holds a pair that is none")
    return str(value[0]), str(value[1])


def _layer(entry: JSON) -> Layer:
    fields = Fields(entry, "a layer")
    keras, torch, kind = fields.text("keras"), fields.text("torch"), fields.text("kind")
    variables = fields.object("variables")
    slot = fields.text("slot") if "slot" in fields.rest else "l0"
    multiplier = fields.count("multiplier") if "multiplier" in fields.rest else 1
    if kind not in KINDS or not all(isinstance(end, str) for end in variables.values()):
        fields.refuse("kind", kind)
    return Layer(keras, torch, kind, {name: str(end) for name, end in variables.items()}, slot, multiplier)
