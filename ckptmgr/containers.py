"""The containers of a state tree: what is in them, and new ones like them.

Dicts (any mapping with str and int keys), lists, tuples, namedtuples and dataclasses. Fields of a dataclass that its
framework declares to be no state (``pytree_node=False`` of Flax, ``static=True`` of Equinox) are neither stored nor changed.
"""

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ckptmgr.errors import UnsupportedLeafError
from ckptmgr.skeleton import mapping
from ckptmgr.step import JSON

_LARGEST_KEY = 1 << 63


def columns(value: Any) -> tuple[list[str | int], list[Any]] | None:
    """Keys and values of a container, in order; None for anything else. Keys are exactly str or int.

    Two lists, because there may be many: a pair for each would be as much memory again.

    Raises:
        UnsupportedLeafError: a key that no name can be made of; the message goes on from the container's path.
    """
    if type(value) is dict and {str}.issuperset(map(type, value)) and "".join(value).isascii():
        return list(value), list(value.values())
    if isinstance(value, Mapping):
        pairs = list(value.items())
        return [_key(key) for key, _ in pairs], [item for _, item in pairs]
    if isinstance(value, list | tuple):
        fields = getattr(value, "_fields", None) if isinstance(value, tuple) else None
        return list(range(len(value)) if fields is None else fields), list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = _fields(value)
        return [*names], [getattr(value, name) for name in names]
    return None


def items(value: Any) -> list[tuple[str | int, Any]] | None:
    """The same as pairs."""
    found = columns(value)
    return None if found is None else list(zip(*found, strict=True))


def encode(value: Any, nodes: Iterable[tuple[str | int, JSON]]) -> JSON:
    """The skeleton of a container, from the skeletons of what is in it."""
    if type(value) is dict or isinstance(value, Mapping):
        return mapping(nodes)
    if isinstance(value, list):
        return [node for _, node in nodes]
    name = type(value).__qualname__
    if not isinstance(value, tuple):
        return {"$dataclass": name, "fields": dict(nodes)}
    return {"$namedtuple": name, "fields": dict(nodes)} if hasattr(value, "_fields") else {"$tuple": [node for _, node in nodes]}


def rebuild(template: Any, new: Sequence[tuple[str | int, Any]]) -> Any:
    """A container of the template's own type with these items instead of its own; the template is not touched.

    Fields of namedtuples and dataclasses that ``new`` lacks keep their values; those it has beside them are ignored.
    """
    if isinstance(template, Mapping) and not isinstance(template, dict):
        return type(template)(_with_own_keys(template, new))  # type: ignore[call-arg]
    if isinstance(template, tuple) and not hasattr(template, "_fields"):
        return type(template)(value for _, value in new)
    if isinstance(template, tuple):
        values = dict(new)
        return type(template)(*(values.get(name, old) for name, old in items(template) or ()))
    made = copy.copy(template)  # with the default factory, or whatever else a subclass carries
    if isinstance(template, dict):
        made.clear()
        made.update(_with_own_keys(template, new))
    elif isinstance(template, list):
        made[:] = [value for _, value in new]
    else:
        names = _fields(template)
        for name, value in new:
            if name in names:
                object.__setattr__(made, str(name), value)  # frozen ones too
    return made


def _fields(value: Any) -> list[str]:
    return [
        field.name
        for field in dataclasses.fields(value)
        if field.metadata.get("pytree_node", True) and not field.metadata.get("static", False)
    ]


def _key(key: Any) -> str | int:
    if type(key) is str and key.isascii():
        return key
    if isinstance(key, str):
        try:
            key.encode()
        except UnicodeEncodeError as error:
            raise UnsupportedLeafError(f"has the key {key!r}, which is no valid text") from error
        return str.__str__(key)
    if isinstance(key, int) and not isinstance(key, bool) and -_LARGEST_KEY <= key < _LARGEST_KEY:
        return int(key)
    raise UnsupportedLeafError(f"has a key of type {type(key).__qualname__}; keys are str, or int of at most 64 bits")


def _with_own_keys(template: Mapping[Any, Any], new: Sequence[tuple[str | int, Any]]) -> dict[Any, Any]:
    """The items with the template's own key objects, where it has them (members of an enum, say)."""
    if all(type(key) in (str, int) for key in template):
        return dict(new)
    own = {key: key for key in template}
    return {own.get(key, key): value for key, value in new}
