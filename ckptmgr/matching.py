"""What a template wants against what a checkpoint holds: which fits which, and every difference. Pure: nothing is read."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from ckptmgr import garbage
from ckptmgr.casting import REFUSED, Cast, can_become, can_cast, can_fill, cast_scalar
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.renaming import Rule, Selection, near_names, rename_tree, walk
from ckptmgr.restorereport import Mismatch, RestoreReport
from ckptmgr.rng import RngState
from ckptmgr.skeleton import Outline, Path, TensorNode, outline, spelled
from ckptmgr.source import TensorSource, paths_of
from ckptmgr.spec import TensorSpec
from ckptmgr.step import JSON
from ckptmgr.tree import join, nest

_MAKE: Callable[..., Any] = tuple.__new__
ABSENT: Any = object()  # in place of a value where any value may stand


class Wanted(NamedTuple):
    """A leaf of the template. ``what`` is its spec, a generator's state, or a plain value; ``kind`` an array's kind.

    ``tie`` is the same for leaves that are the same memory, and -1 for what is not an array.
    """

    path: Path
    what: Any
    kind: str = "numpy"
    tie: int = -1


class Pair(NamedTuple):
    """A wanted leaf and the path of what fills it; ``value`` is a plain value's new one, else `ABSENT`."""

    wanted: Wanted
    path: Path
    value: Any = ABSENT


@dataclass(frozen=True, slots=True)
class Match:
    """What fills what.

    ``used`` are the paths of the checkpoint that met a wanted leaf, fitting or not; ``left`` those of wanted leaves that met
    something that does not fit. ``tied`` were not found, but share the memory of a leaf that was; ``has_ties`` tells whether any
    leaves share memory.
    """

    pairs: list[Pair]
    used: frozenset[Path]
    left: frozenset[Path]
    tied: tuple[Wanted, ...]
    has_ties: bool
    report: RestoreReport


class Stored:
    """What a checkpoint holds: its decoded skeleton, with `TensorNode` and `RngState` as leaves.

    A foreign file has no skeleton: it is a dict of names, nested where its source tells how (`paths_of`).

    Raises:
        CorruptCheckpointError: the skeleton or what stands for it is damaged, or names a tensor that is not there.
    """

    @garbage.later()
    def __init__(self, source: TensorSource, skeleton: JSON | None, rules: Sequence[Rule] = ()) -> None:
        self.specs, self.aliases = source.specs, source.aliases
        self.is_foreign = skeleton is None
        paths = paths_of(source)
        if skeleton is None:
            names = [*self.specs, *self.aliases]
            self.outline = Outline(nest(names, paths, TensorNode), names)
        else:
            self.outline = outline(skeleton)
        if rules:
            tree = rename_tree(spelled(self.outline.tree), rules, is_flat=self.is_foreign and not paths)
            self.outline = self.outline._replace(tree=tree)
        if not all(map(self.specs.__contains__, self.outline.names)):
            for name in self.outline.names:
                self.spec(TensorNode(name))  # of an alias, or an error

    @functools.cached_property
    def tree(self) -> Any:
        """The decoded skeleton, with a `TensorNode` for each tensor."""
        return spelled(self.outline.tree)

    @functools.cached_property
    @garbage.later()
    def leaves(self) -> dict[Path, Any]:
        """Every leaf by its path, in order."""
        return dict(walk(self.tree))

    def tensor(self, node: TensorNode) -> str:
        """The name under which the source has the tensor."""
        return node.name if node.name in self.specs else self.aliases.get(node.name, node.name)

    def spec(self, node: TensorNode) -> TensorSpec:
        """The tensor's spec."""
        try:
            return self.specs[self.tensor(node)]
        except KeyError as error:
            message = f"the state tree names a tensor {node.name!r} that the checkpoint does not hold"
            raise CorruptCheckpointError(message, tensor=node.name) from error

    def find(self, path: Path) -> Any:
        """What is at that path: a leaf or a container; `ABSENT` if there is nothing."""
        found = self.tree
        for key in map(str, path) if self.is_foreign else path:
            found = child(found, key)
        return self._find_by_name(path) if found is ABSENT and self.is_foreign else found

    def below(self, path: Path) -> Iterable[tuple[Path, Any]]:
        """The leaves at that path and below it, with their paths."""
        if not path:
            return self.leaves.items()
        found = self.find(path)
        return () if found is ABSENT else walk(found, path)

    def _find_by_name(self, path: Path) -> Any:
        names = spellings(path)
        if name := next((name for name in names if name in self._named), None):
            return self._named[name]
        starts = names[0] + "/", names[1] + "."
        inner = {name[len(start) :]: leaf for name, leaf in self._named.items() for start in starts if name.startswith(start)}
        return inner or ABSENT

    @functools.cached_property
    def _named(self) -> dict[str, Any]:
        return {join(path): leaf for path, leaf in self.leaves.items()}


def spellings(path: Path) -> tuple[str, str]:
    """The names by which files of other tools may have a path."""
    return "/".join(map(str, path)), ".".join(map(str, path))


def child(found: Any, key: str | int) -> Any:
    """What a container of a decoded skeleton has under that key, or `ABSENT`."""
    if isinstance(found, dict):
        return found.get(key, ABSENT)
    is_list = isinstance(found, list | tuple) and not isinstance(found, TensorNode | RngState)
    return found[key] if is_list and isinstance(key, int) and 0 <= key < len(found) else ABSENT


@garbage.later()
def match(stored: Stored, wanted: Sequence[Wanted], *, free: Iterable[Path], select: Selection, cast: Cast) -> Match:
    """Finds for each wanted leaf what fills it: what has its path, else what has its name.

    Below the paths in ``free`` the checkpoint may hold whatever it likes.
    """
    wanted = [want for want in wanted if select.has(want.path)]
    places = _places(stored, wanted)
    pairs: list[Pair] = []
    different: list[Mismatch] = []
    recast: list[Mismatch] = []
    leaves, specs = stored.leaves, stored.specs
    for want in wanted:
        path = places.get(want.path)
        if path is None:
            continue
        found = leaves[path]
        spec = specs.get(found.name) if type(found) is TensorNode and found.kind == want.kind else None
        if spec is not None and (spec is want.what or spec == want.what):
            pairs.append(_MAKE(Pair, (want, path, ABSENT)))  # as most are, and there may be many
            continue
        pair, is_same = _fit(stored, want, path, cast)
        if pair is not None:
            pairs.append(pair)
        if not is_same:
            text = stored.spec(found) if isinstance(found, TensorNode) else found
            difference = Mismatch(join(want.path), shown_spec(want.what, want.kind), shown_spec(text, getattr(found, "kind", "")))
            (different if pair is None else recast).append(difference)
    pairs, untied = _untied(stored, pairs)
    ties = set(_ties(pairs))
    absent = [want for want in wanted if want.path not in places]
    missing = [join(want.path) for want in absent if want.tie not in ties]
    tied = tuple(want for want in absent if want.tie in ties)
    used = frozenset(places.values())
    unexpected = [join(path) for path in _beside(stored, used, free, select)]
    report = RestoreReport(
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        mismatched=(*different, *untied),
        recast=tuple(recast),
        near=_near(missing, unexpected, wanted, stored),
        filled=tuple(map(join, [want.path for want in chain([pair.wanted for pair in pairs], tied)])),
    )
    left = frozenset(places) - {pair.wanted.path for pair in pairs} if len(pairs) < len(places) else frozenset()
    return Match(pairs, used, left, tied, bool(tied) or len(ties) < len(_ties(pairs)), report)


def shown_spec(what: Any, kind: str = "") -> str:
    """What a leaf is, for people: of a spec, of a generator's state, or of a plain value."""
    if isinstance(what, TensorSpec):
        return f"{what.dtype}{list(what.shape)}" + (f" of {kind}" if "/" in kind else "")
    if isinstance(what, RngState):
        return what.algorithm
    return f"numpy {what.dtype}" if isinstance(what, np.generic) else type(what).__name__


def _places(stored: Stored, wanted: Sequence[Wanted]) -> dict[Path, Path]:
    """For each wanted path the one in the checkpoint: the same, or else one of the same name that nobody else has."""
    places = {want.path: want.path for want in wanted if want.path in stored.leaves}
    if len(places) == len(wanted):
        return places
    by_name: dict[str, list[Path]] = {}
    for path in stored.leaves:
        if path not in places:
            for name in dict.fromkeys(spellings(path)) if stored.is_foreign else [join(path)]:
                by_name.setdefault(name, []).append(path)
    for want in wanted:
        if want.path in places:
            continue
        names = spellings(want.path) if stored.is_foreign else (join(want.path),)
        paths = next((by_name[name] for name in names if name in by_name), [])
        if len(paths) == 1:
            places[want.path] = paths[0]
    return places


def _fit(stored: Stored, want: Wanted, path: Path, cast: Cast) -> tuple[Pair | None, bool]:
    """The pair, if the one can fill the other, and whether they are the same kind of thing."""
    leaf = stored.leaves[path]
    pair = Pair(want, path)
    if isinstance(want.what, RngState):
        fits = isinstance(leaf, RngState) and leaf.algorithm == want.what.algorithm
        return (pair if fits else None), fits
    if isinstance(leaf, RngState):
        return None, False
    if isinstance(leaf, TensorNode):
        found = stored.spec(leaf)
        if not isinstance(want.what, TensorSpec):
            return (pair, True) if can_become(found, want.what, cast, is_foreign=stored.is_foreign) else (None, False)
        is_other_key = leaf.kind != want.kind and leaf.kind.startswith("jax.key/") and want.kind.startswith("jax.key/")
        if is_other_key or found.shape != want.what.shape or not can_cast(found.dtype, want.what.dtype, cast):
            return None, False
        return pair, found.dtype == want.what.dtype
    if isinstance(want.what, TensorSpec):
        is_same = isinstance(leaf, np.generic) and leaf.dtype.name == want.what.dtype
        return (pair._replace(value=leaf), is_same) if can_fill(leaf, want.what, cast) else (None, False)
    value = cast_scalar(leaf, want.what, cast)
    return (None, False) if value is REFUSED else (pair._replace(value=value), type(value) is type(leaf))


def _ties(pairs: Iterable[Pair]) -> list[int]:
    return [pair.wanted.tie for pair in pairs if pair.wanted.tie >= 0]


def _untied(stored: Stored, pairs: list[Pair]) -> tuple[list[Pair], list[Mismatch]]:
    """Without pairs whose leaf would be filled a second time, with another tensor: the later one stays."""
    ties = _ties(pairs)
    if len(set(ties)) == len(ties):
        return pairs, []
    last: dict[int, tuple[int, str]] = {}
    dropped: set[int] = set()
    different: list[Mismatch] = []
    for index, pair in enumerate(pairs):
        leaf = stored.leaves[pair.path]
        if pair.wanted.tie < 0 or not isinstance(leaf, TensorNode):
            continue
        before = last.get(pair.wanted.tie)
        if before is not None and before[1] != stored.tensor(leaf):
            first = join(pairs[before[0]].wanted.path)
            different.append(Mismatch(join(pair.wanted.path), f"tied to {first!r}", f"a tensor other than {first!r}"))
            dropped.update(at for at in range(index) if pairs[at].wanted.tie == pair.wanted.tie)
        last[pair.wanted.tie] = index, stored.tensor(leaf)
    return [pair for index, pair in enumerate(pairs) if index not in dropped], different


def _beside(stored: Stored, used: frozenset[Path], free: Iterable[Path], select: Selection) -> list[Path]:
    """Paths of the checkpoint that are asked for, that nothing wanted and that are not below a free one."""
    free = frozenset(free)
    if () in free:
        return []
    rest = [path for path in stored.leaves if path not in used and select.has(path)]
    if not stored.is_foreign:
        return [path for path in rest if not any(path[:depth] in free for depth in range(1, len(path) + 1))]
    starts = tuple(name + separator for path in free for name, separator in zip(spellings(path), "/.", strict=True))
    rest = [path for path in rest if not any(f"{join(path)}{separator}".startswith(starts) for separator in "/.")]
    return _once(stored, rest, used)


def _once(stored: Stored, paths: Iterable[Path], used: Iterable[Path]) -> list[Path]:
    """Of these paths one for each tensor that no other path led to: a file of another tool may give it many names."""
    seen = {stored.tensor(stored.leaves[path]) for path in used}
    first: dict[str, Path] = {}
    for path in paths:
        leaf = stored.leaves[path]
        name = stored.tensor(leaf)
        if name not in seen and (name not in first or leaf.name == name):
            first[name] = path
    return list(first.values())


def _near(
    missing: Sequence[str], unexpected: Sequence[str], wanted: Sequence[Wanted], stored: Stored
) -> dict[str, tuple[str, ...]]:
    if not (missing or unexpected):
        return {}
    near = near_names(unexpected, missing or [join(want.path) for want in wanted])
    return {**near, **near_names(missing, unexpected or [join(path) for path in stored.leaves])}
