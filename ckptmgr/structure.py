"""How the tensors of a checkpoint nest, and what stands among them, on the way into another: renamed, or only a part of it.

The law: without rules and globs the skeleton is the very same. A file of another tool that tells how its names nest gets a
skeleton of dicts; one of plain names gets none.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckptmgr import skeleton as codec
from ckptmgr.errors import shown
from ckptmgr.layout import Path, Scalar
from ckptmgr.matching import Stored
from ckptmgr.renaming import Rule, Selection, children, renamed
from ckptmgr.rng import RngState
from ckptmgr.skeleton import Fields, TensorNode, is_scalar
from ckptmgr.source import TensorSource, paths_of
from ckptmgr.step import JSON
from ckptmgr.tree import join

_DROPPED: Any = object()


@dataclass(frozen=True, slots=True)
class Structure:
    """``names`` has for each tensor, by its new name and in order, the name in the source; ``aliases`` and ``paths`` new ones.

    ``left_out`` are names in the source that nobody asked for.
    """

    skeleton: JSON
    names: Mapping[str, str]
    aliases: Mapping[str, str]
    paths: Mapping[str, Path]
    scalars: Mapping[Path, Scalar]
    left_out: Sequence[str] = ()


def structure(
    source: TensorSource, skeleton: JSON, rules: Sequence[Rule] = (), select: Sequence[str] | str | None = None
) -> Structure:
    """The structure of a source after the rules, with what the globs match of the new names.

    Raises:
        ValueError: a glob that matches nothing, or rules that give two values one name.
        CorruptCheckpointError: the skeleton is damaged.
    """
    stored = Stored(source, skeleton, rules)
    leaves = stored.leaves
    selection = Selection(select)
    selection.check(map(join, leaves))
    tree = stored.tree if select is None else _selected(stored.tree, (), selection)
    found = {path: leaf for path, leaf in leaves.items() if selection.has(path)}
    new = {path: _name(leaf.name, path, rules) for path, leaf in found.items() if isinstance(leaf, TensorNode)}
    if twice := [name for name, count in Counter(new.values()).items() if count > 1]:
        raise ValueError(f"the rename rules give two values the name {shown(twice)}")
    names, aliases = _named(stored, {new[path]: found[path] for path in new})
    known = {stored.tensor(TensorNode(name)) for name in stored.outline.names}
    strangers = {renamed(name, rules): name for name in source.specs if name not in known}  # that the tree does not name
    names |= {name: own for name, own in strangers.items() if name in selection}
    if skeleton is None or rules or select is not None:
        is_plain = skeleton is None and set(new) == {(name,) for name in new.values()}
        skeleton = (
            None if is_plain and len(found) == len(new) else codec.whole(encoded(None if tree is _DROPPED else tree, (), new))
        )
    told = paths_of(source)
    paths = {new[path]: path for path in new} | {name: told[name] for name in source.blobs if name in told}
    scalars = {path: leaf for path, leaf in found.items() if leaf is not None and is_scalar(leaf)}
    taken = set(names.values())
    left_out = [name for name in source.specs if name not in taken]
    return Structure(skeleton, names, aliases, paths, scalars, left_out)


def _name(name: str, path: Path, rules: Sequence[Rule]) -> str:
    return name if not rules or renamed(name, rules) == name else join(path)


def _named(stored: Stored, nodes: Mapping[str, TensorNode]) -> tuple[dict[str, str], dict[str, str]]:
    """By new names: that of each tensor in the source, and the tensor of each further name."""
    firsts: dict[str, str] = {}
    for name, node in nodes.items():
        own = stored.tensor(node)
        if own not in firsts or node.name == own:
            firsts[own] = name
    order = dict.fromkeys(stored.tensor(node) for node in nodes.values())
    names = {firsts[own]: own for own in order}
    return names, {name: firsts[stored.tensor(node)] for name, node in nodes.items() if name not in names}


def _selected(tree: Any, path: Path, selection: Selection) -> Any:
    """What is left of a decoded skeleton; a container of fixed places that lacks one becomes a dict."""
    inner = children(tree)
    if not inner:
        return tree if selection.has(path) else _DROPPED
    kept = {key: made for key, value in inner if (made := _selected(value, (*path, key), selection)) is not _DROPPED}
    if not kept:
        return _DROPPED
    if len(kept) < len(inner) or isinstance(tree, dict):
        return type(tree)(kept) if len(kept) == len(inner) else kept
    return type(tree)(kept.values())


def encoded(tree: Any, path: Path, names: Mapping[Path, str]) -> JSON:
    """The skeleton of a decoded one, with new names for its tensors."""
    inner = children(tree)
    if inner is not None:
        nodes = [(key, encoded(value, (*path, key), names)) for key, value in inner]
        if type(tree) is Fields:
            return {"$namedtuple": "fields", "fields": dict(nodes)}
        if isinstance(tree, dict):
            return codec.mapping(nodes)
        values = [node for _, node in nodes]
        return {"$tuple": values} if isinstance(tree, tuple) else values
    if isinstance(tree, TensorNode):
        marks = {"kind": tree.kind} if tree.kind != "numpy" else {}
        return {"$tensor": names[path], **marks, **({"text": tree.text} if tree.text is not None else {})}
    if isinstance(tree, RngState):
        return {"$rng": tree.kind, "state": codec.plain(tree.state)}
    return codec.scalar(tree)
