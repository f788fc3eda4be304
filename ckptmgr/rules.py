"""Rules for names beyond a prefix and a pattern: globs, exact names, layers. And what a rule that does nothing is told.

A rule for names is also a function of a name, so that it goes wherever `renaming.Rule` goes.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ckptmgr.errors import shown
from ckptmgr.layerfinding import Direction, Wishes
from ckptmgr.layers import Layer
from ckptmgr.renaming import Rule, near_names, renamed


@dataclass(frozen=True, slots=True)
class Exact:
    """Names, each with its new one."""

    names: Mapping[str, str]

    def __call__(self, name: str) -> str:
        return self.names.get(name, name)


@dataclass(frozen=True, slots=True)
class Prefixes:
    """What names begin with, each with what they then should: the longest that a name has counts, and only one."""

    pairs: Mapping[str, str]

    def __call__(self, name: str) -> str:
        old = max((old for old in self.pairs if name.startswith(old)), key=len, default=None)
        return name if old is None else self.pairs[old] + name[len(old) :]


@dataclass(frozen=True, slots=True)
class Glob:
    """Names that a pattern matches as a whole; a ``*`` is any text, also with ``/``, and the next ``*`` of ``new`` is that text.

    Raises:
        ValueError: ``new`` has more of them than ``old``.
    """

    old: str
    new: str

    def __post_init__(self) -> None:
        if self.new.count("*") > self.old.count("*"):
            raise ValueError(f"glob {self.old!r} has fewer '*' than {self.new!r}, which it should give")

    def __call__(self, name: str) -> str:
        texts = self.match(name)
        if texts is None:
            return name
        first, *others = self.new.split("*")
        return first + "".join(text + other for text, other in zip(texts, others, strict=False))

    def match(self, name: str) -> list[str] | None:
        """What each ``*`` stands for, as little as it can; None if the pattern does not match. In linear time."""
        first, *others = self.old.split("*")
        if not others:
            return [] if name == first else None
        *inner, last = others
        if not name.startswith(first) or not name.endswith(last):
            return None
        texts, at, stop = [], len(first), len(name) - len(last)
        for text in inner:
            found = name.find(text, at, max(stop, 0))
            if found < 0:
                return None
            texts.append(name[at:found])
            at = found + len(text)
        return [*texts, name[at:stop]] if at <= stop else None


@dataclass(frozen=True, slots=True)
class Layers:
    """Layers of one framework become those of another, names and values; see `layers`.

    ``layers`` gives layers their new names, ``kinds`` (globs on layers or tensors) what they are where names and shapes do not
    tell: a kind, ``"keep"`` or ``"drop"``. Only names that begin with ``under`` are looked at. ``table`` has the layers of an
    earlier conversion, on whose other side they are now.
    """

    direction: Direction
    layers: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    under: str = ""
    table: Sequence[Layer] | None = None

    @property
    def wishes(self) -> Wishes:
        """What is said of layers."""
        return Wishes(self.layers, self.kinds)


AnyRule: TypeAlias = Rule | Layers


def check(rules: Sequence[Rule], names: Iterable[str]) -> None:
    """Makes sure that each rule has something to do, where that can be told: of functions it cannot.

    Raises:
        ValueError: a rule that matches no name; tells the nearest ones.
        TypeError: a rule of another form.
    """
    found = list(names)
    for rule in rules:
        idle = _idle(rule, found)
        if idle is not None:
            near = near_names([idle], found).get(idle) or tuple(found[:3])
            raise ValueError(f"the rename rule {_told(rule)} matches no name" + (f": {idle!r} (near: {shown(near)})"))
        found = [renamed(name, [rule]) for name in found]


def _idle(rule: Rule, names: Sequence[str]) -> str | None:
    """What a rule looks for and does not find."""
    if isinstance(rule, Exact):
        known = set(names)
        return next((name for name in rule.names if name not in known), None)
    if isinstance(rule, Glob):
        return None if any(rule.match(name) is not None for name in names) else rule.old
    if callable(rule):
        return None
    if not isinstance(rule, tuple) or len(rule) != 2 or not isinstance(rule[0], str | re.Pattern):
        raise TypeError(f"{rule!r} is no rename rule: (prefix, new), (pattern, replacement), a dict, a name or a function")
    old = rule[0]
    matches: Callable[[str], object] = old.search if isinstance(old, re.Pattern) else lambda name: name.startswith(old)
    return None if any(map(matches, names)) else old.pattern if isinstance(old, re.Pattern) else old


def _told(rule: Rule) -> str:
    if isinstance(rule, tuple):
        return f"{getattr(rule[0], 'pattern', rule[0])!r} to {rule[1]!r}"
    return type(rule).__name__.lower()
