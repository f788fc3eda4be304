"""What ``_METADATA`` says: how the arrays of an item nest, and what stands among them.

Source: Orbax's ``tree_metadata`` (`orbax.checkpoint`, `metadata/tree.py` and `value.py`): for each leaf its keys, with a type
(1: an index of a list or tuple, 2: a key of a dict), and the type of its value. Tuples cannot be told from lists.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ckptmgr.backend import JSON, Folder, Path, skeleton
from ckptmgr_orbax.origin import Origin

METADATA, STRINGS = "_METADATA", "_strings.json"
MAX_NBYTES = 64 << 20  # of either
_INDEX, _KEY = 1, 2
_EMPTY: Mapping[str, JSON] = {"None": None, "Dict": {}, "List": [], "Tuple": {"$tuple": []}}


@dataclass(frozen=True, slots=True)
class Array:
    """An array, or a scalar, that is stored under ``name``."""

    name: str
    path: Path
    is_scalar: bool


@dataclass(frozen=True, slots=True)
class Item:
    """What an item holds. ``plain`` are the values that are no arrays, as JSON of a skeleton, by their paths in ``order``."""

    arrays: dict[Path, Array]
    plain: dict[Path, JSON]
    order: list[Path]
    lists: frozenset[Path]
    is_ocdbt: bool
    is_zarr3: bool
    may_lack_chunks: bool


def read_item(folder: Folder) -> Item:
    """The item in that folder. Raises CorruptCheckpointError."""
    origin = Origin(METADATA, folder.location(METADATA))
    found = read_json(folder, METADATA)
    try:
        return _item(found, folder, origin)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        if hasattr(error, "file"):  # ours
            raise
        raise origin.corrupt(f"it is not as Orbax writes it ({type(error).__name__}: {error})") from error


def _item(found: Any, folder: Folder, origin: Origin) -> Item:
    arrays: dict[Path, Array] = {}
    plain: dict[Path, JSON] = {}
    order: list[Path] = []
    lists: set[Path] = set()
    strings: Any = None
    for entry in found["tree_metadata"].values():
        path = _path(entry["key_metadata"], lists, origin)
        name = ".".join(map(str, path))
        value = entry["value_metadata"]
        kind = value["value_type"]
        if path in arrays or path in plain:
            raise origin.corrupt("it is there twice", name)
        order.append(path)
        if value.get("skip_deserialize"):
            if kind not in _EMPTY:
                raise origin.corrupt(f"it has no array, and is of the unknown kind {kind!r:.80}", name)
            plain[path] = _EMPTY[kind]
        elif kind == "string":
            strings = read_json(folder, STRINGS) if strings is None else strings
            plain[path] = skeleton.scalar(str(strings[name]))
        else:
            arrays[path] = Array(name, path, kind == "scalar")
    is_full = bool(found.get("store_array_data_equal_to_fill_value", False))
    flags = bool(found.get("use_ocdbt", True)), bool(found.get("use_zarr3", False))
    return Item(arrays, plain, order, frozenset(lists), *flags, not is_full)


def _path(keys: Any, lists: set[Path], origin: Origin) -> Path:
    if len(keys) > skeleton.MAX_DEPTH:
        raise origin.corrupt(f"a value is nested deeper than {skeleton.MAX_DEPTH} levels")
    path: list[str | int] = []
    for each in keys:
        key, kind = str(each["key"]), each["key_type"]
        if kind == _INDEX:
            lists.add(tuple(path))
            path.append(int(key))
        elif kind == _KEY:
            path.append(key)
        else:
            raise origin.corrupt(f"the key {key!r:.80} is of the unknown kind {kind!r:.80}")
    return tuple(path)


def read_json(folder: Folder, name: str) -> Any:
    """What a file there says, if it is not too large. Raises CorruptCheckpointError."""
    origin = Origin(name, folder.location(name))
    head = folder.head(name)
    if head is None:
        raise origin.corrupt("it is missing")
    if head.nbytes > MAX_NBYTES:
        raise origin.corrupt(f"it has {head.nbytes} bytes, and at most {MAX_NBYTES} are read")
    try:
        return json.loads(folder.read_range(name, 0, head.nbytes))
    except (ValueError, RecursionError, EOFError) as error:
        raise origin.corrupt("it is no JSON, or was cut off") from error


class _Leaf:
    """A leaf's JSON, which may be a dict as nodes are."""

    def __init__(self, json: JSON) -> None:
        self.json = json


def tree(leaves: Mapping[Path, JSON], lists: Collection[Path], origin: Origin) -> JSON:
    """The skeleton that has these leaves at these paths. Raises CorruptCheckpointError if it cannot have."""
    root: dict[str | int, Any] = {}
    for path, leaf in leaves.items():
        place = root
        for key in path[:-1]:
            place = place.setdefault(key, {})
            if isinstance(place, _Leaf):
                break
        if isinstance(place, _Leaf) or not path or path[-1] in place:
            raise origin.corrupt("a value is also a group of others", ".".join(map(str, path)))
        place[path[-1]] = _Leaf(leaf)
    return _json(root, (), lists, origin)


def _json(node: Any, path: Path, lists: Collection[Path], origin: Origin) -> JSON:
    if isinstance(node, _Leaf):
        return node.json
    items = {key: _json(value, (*path, key), lists, origin) for key, value in node.items()}
    if path not in lists:
        return skeleton.mapping(items.items())
    if sorted(items, key=str) != sorted(range(len(items)), key=str):
        raise origin.corrupt("the items of a list are not counted from 0", ".".join(map(str, path)))
    return [items[index] for index in range(len(items))]
