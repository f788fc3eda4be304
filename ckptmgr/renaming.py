"""Names of what a checkpoint holds: changed by rules, chosen by globs, and the ones nearest to a name that is not there."""

import bisect
import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from ckptmgr.errors import shown
from ckptmgr.skeleton import Fields, Path
from ckptmgr.tree import join

Rule: TypeAlias = tuple[str | re.Pattern[str], str] | Callable[[str], str]
"""Changes a name: ``(prefix, new prefix)``, ``(pattern, replacement)`` as in `re.sub`, or a function."""

Renaming: TypeAlias = Rule | str | Mapping[str, str] | Sequence[Rule | str | Mapping[str, str]]
"""One rule or several: of those above, the names of `NAMED` ones, and exact names with their new ones."""

NAMED: Mapping[str, Rule] = {
    "strip-module": (re.compile(r"(^|/)module\."), r"\1"),
    "strip-compiled": (re.compile(r"(^|[/.])_orig_mod\."), r"\1"),
    "tf-attributes": (re.compile(r"/\.ATTRIBUTES/VARIABLE_VALUE$"), ""),
}

_NEIGHBOURS = 32  # names on each side that may be near
_MOST = 32  # names that near ones are looked for
_CONTAINERS = frozenset({dict, Fields, list, tuple})  # of a decoded skeleton; leaves may be tuples of other types


def renamed(name: str, rules: Sequence[Rule]) -> str:
    """The name after all rules, each applied to what the one before gave.

    Raises:
        TypeError: a rule of another form, or one that gave no str.
    """
    for rule in rules:
        if callable(rule):
            name = rule(name)
        elif isinstance(rule[0], re.Pattern):
            name = rule[0].sub(rule[1], name)
        elif name.startswith(rule[0]):
            name = rule[1] + name[len(rule[0]) :]
        if not isinstance(name, str):
            raise TypeError(f"the rename rule {rule!r} gave {name!r}, which is no name")
    return name


def rules_of(given: Renaming | None) -> list[Rule]:
    """The rules that a restore is given, one or several in any of their forms, as `renamed` takes them.

    Raises:
        ValueError: a name that is none of `NAMED`.
        TypeError: a rule of another form.
    """
    if given is None:
        return []
    several: Sequence[Any] = [given]
    if isinstance(given, Sequence) and not isinstance(given, str) and not is_pair(given):
        several = given
    return [_rule(each) for each in several]


def is_pair(given: Any) -> bool:
    """Whether that is one rule of two texts, or of a pattern and a text, and not two named rules."""
    is_two = isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str | re.Pattern) and isinstance(given[1], str)
    return is_two and not all(each in NAMED for each in given)


def _rule(given: Any) -> Rule:
    if isinstance(given, Mapping):
        names = dict(given)
        return lambda name: names.get(name, name)
    if isinstance(given, str):
        if given not in NAMED:
            raise ValueError(
                f"{given!r} is none of the named rules of a restore ({shown([*NAMED])}); others are (prefix, new prefix)"
            )
        return NAMED[given]
    pair = tuple(given) if isinstance(given, list) else given
    if not callable(given) and not is_pair(pair):
        raise TypeError(
            f"{given!r} is no rename rule of a restore: (prefix, new), (pattern, replacement), a dict, a name or a function; "
            "for other frameworks' layers and files of rules, convert first"
        )
    rule: Rule = pair
    return rule


def rename_tree(tree: Any, rules: Sequence[Rule], *, is_flat: bool = False) -> Any:
    """A decoded skeleton with every leaf moved to where its new name says.

    Keys that a rule leaves alone at the end of a name stay what they were (an int key, an index), and so do the containers
    around them. In a flat tree a name is one key, whatever is in it.

    Raises:
        ValueError: two leaves get the same name, or one gets the name of a container of others.
    """
    moved: dict[Path, Any] = {}
    kinds: dict[Path, type] = {}
    for path, leaf in walk(tree, has_empty=True):
        new = _moved(path, rules, is_flat)
        if new in moved:
            raise ValueError(f"the rename rules give two values the name {join(new)!r}")
        moved[new] = leaf
        for depth in range(len(_kept(path, new)) + 1):
            kinds.setdefault(new[: len(new) - depth], type(_at(tree, path[: len(path) - depth])))
    inner = {path[:depth] for path in moved for depth in range(len(path))}
    if clash := [join(path) for path in moved if path in inner]:
        raise ValueError(f"the rename rules give values the names of groups: {shown(clash)}")
    return _grown(moved, kinds)


def walk(tree: Any, path: Path = (), *, has_empty: bool = False) -> list[tuple[Path, Any]]:
    """Every leaf of a decoded skeleton with its path, in order; and every container of nothing, with ``has_empty``."""
    found: list[tuple[Path, Any]] = []

    def visit(tree: Any, path: Path) -> None:
        inner = children(tree)
        if inner is None or (has_empty and not inner):
            found.append((path, tree))
            return
        for key, value in inner:
            if type(value) in _CONTAINERS:
                visit(value, (*path, key))
            else:  # a call for each of maybe 20,000 leaves costs more than all else here
                found.append(((*path, key), value))

    visit(tree, path)
    return found


def children(tree: Any) -> list[tuple[str | int, Any]] | None:
    """Keys and values of a container in a decoded skeleton; None for a leaf."""
    if type(tree) not in _CONTAINERS:
        return None
    return list(tree.items() if isinstance(tree, dict) else enumerate(tree))


class Selection:
    """Which names are asked for: those that any of the globs matches, where ``*`` also matches ``/``; all without globs."""

    def __init__(self, globs: Sequence[str] | str | None) -> None:
        self._globs = [globs] if isinstance(globs, str) else None if globs is None else list(globs)
        self._patterns = [re.compile(fnmatch.translate(glob)) for glob in self._globs or ()]

    def __contains__(self, name: str) -> bool:
        return self._globs is None or any(pattern.match(name) for pattern in self._patterns)

    def has(self, path: Path) -> bool:
        """Whether the name of that path is asked for."""
        return self._globs is None or join(path) in self

    def check(self, names: Iterable[str]) -> None:
        """Makes sure that no glob is a slip.

        Raises:
            ValueError: a glob that matches none of the names.
        """
        if self._globs is None:
            return
        names = list(names)
        for glob, pattern in zip(self._globs, self._patterns, strict=True):
            if not any(map(pattern.match, names)):
                near = difflib.get_close_matches(glob, names[:1000], n=3)
                raise ValueError(f"select={glob!r} matches no name" + (f" (near: {shown(near)})" if near else ""))


def near_names(names: Sequence[str], candidates: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """For the first few of ``names``, the candidates nearest to them, nearest first.

    Only candidates that begin or end alike are compared, so that 20,000 of them cost little.
    """
    forward = sorted(candidates)
    backward = sorted((name[::-1], name) for name in forward)
    near: dict[str, tuple[str, ...]] = {}
    for name in names[:_MOST]:
        at, back = bisect.bisect(forward, name), bisect.bisect(backward, (name[::-1], ""))
        close = forward[max(at - _NEIGHBOURS, 0) : at + _NEIGHBOURS]
        close += [other for _, other in backward[max(back - _NEIGHBOURS, 0) : back + _NEIGHBOURS]]
        if found := difflib.get_close_matches(name, sorted(set(close)), n=3):
            near[name] = tuple(found)
    return near


def _moved(path: Path, rules: Sequence[Rule], is_flat: bool) -> Path:
    old = join(path)
    new = renamed(old, rules)
    if new == old:
        return path
    if is_flat:
        return (new,)
    for start in range(len(path)):
        tail = join(path[start:])
        if new == tail:
            return path[start:]
        if new.endswith("/" + tail):
            return (*new[: -len(tail) - 1].split("/"), *path[start:])
    return tuple(new.split("/"))


def _kept(path: Path, new: Path) -> Path:
    """The keys at the end that both paths share."""
    count = 0
    while count < min(len(path), len(new)) and path[-1 - count] == new[-1 - count]:
        count += 1
    return path[len(path) - count :]


def _at(tree: Any, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _grown(moved: Mapping[Path, Any], kinds: Mapping[Path, type]) -> Any:
    """The tree of these leaves; a list or tuple that does not have all its items any more becomes a dict."""
    if () in moved:
        return moved[()]
    root: dict[Any, Any] = {}
    for path, leaf in moved.items():
        inner = root
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = leaf

    def shaped(tree: Any, path: Path) -> Any:
        if path in moved:
            return tree
        made = {key: shaped(value, (*path, key)) for key, value in tree.items()}
        kind = kinds.get(path, dict)
        if kind in (list, tuple):
            return kind(made[index] for index in range(len(made))) if set(made) == set(range(len(made))) else made
        return kind(made)

    return shaped(root, ())
