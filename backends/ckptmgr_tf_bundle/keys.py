"""Keys of object-based checkpoints: a place in the object graph, written as one string, and ckptmgr's name for it.

``ESC(name)/ESC(name)/.ATTRIBUTES/ESC(attribute)``, from the root down. Escaped names hold no ``/`` and no single ``.``,
so the markers cannot be mistaken and different places never share a key.

Source: TensorFlow's trackable_utils.py, functions escape_local_name and checkpoint_key, and its slot variable keys.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"  # of the object graph itself, which is no place in it
ATTRIBUTES = ".ATTRIBUTES"
OPTIMIZER_SLOT = ".OPTIMIZER_SLOT"
VARIABLE_VALUE = "VARIABLE_VALUE"

Parts: TypeAlias = tuple[str, ...]  # raw local names that lead from the root to an object

_SPELLED = re.compile(r"(?:[^./]|\.\.|\.S)*")
_ESCAPES = re.compile(r"\.[.S]")


class Place(NamedTuple):
    """What a key stands for: an attribute of an object, or of the slot variable that an optimizer keeps for it.

    ``slot`` is the optimizer's own parts and the slot's name. All names are raw.
    """

    parts: Parts
    slot: tuple[Parts, str] | None = None
    attribute: str = VARIABLE_VALUE

    @property
    def key(self) -> str:
        """The key of this place in a bundle."""
        name = self.escaped
        return name if self.attribute != VARIABLE_VALUE else f"{name}/{ATTRIBUTES}/{VARIABLE_VALUE}"

    @property
    def name(self) -> str:
        """Raw names joined by ``/``; not always unique, since a name may hold a ``/`` itself."""
        return "/".join(("/".join(self.parts), *self._marked(str)))

    @property
    def escaped(self) -> str:
        """Like `name`, of escaped names: different for different places."""
        return "/".join(("/".join(map(escape, self.parts)), *self._marked(escape)))

    @property
    def path(self) -> Parts:
        """The keys under which a state would hold it: markers and what follows them are one key."""
        marked = self._marked(str)
        return (*self.parts, "/".join(marked)) if marked else self.parts or ("",)

    def _marked(self, spell: Callable[[str], str]) -> list[str]:
        marked = []
        if self.slot is not None:
            optimizer, slot = self.slot
            marked += [OPTIMIZER_SLOT, "/".join(map(spell, optimizer)), spell(slot)]
        if self.attribute != VARIABLE_VALUE:
            marked += [ATTRIBUTES, spell(self.attribute)]
        return marked


def escape(name: str) -> str:
    """A local name as one segment of a key."""
    return name.replace(".", "..").replace("/", ".S")


def unescape(segment: str) -> str:
    """The local name that `escape` made this segment of.

    Raises:
        ValueError: it makes no such segment.
    """
    if "." not in segment and "/" not in segment:
        return segment
    if not _SPELLED.fullmatch(segment):
        raise ValueError(f"{segment!r} is no escaped name")
    return _ESCAPES.sub(lambda found: "." if found[0] == ".." else "/", segment)


def key_of(name_parts: Sequence[str], attribute: str = VARIABLE_VALUE) -> str:
    """The key of an object's attribute, for the raw local names that lead to it."""
    return f"{'/'.join(map(escape, name_parts))}/{ATTRIBUTES}/{escape(attribute)}"


def parse(key: str) -> Place | None:
    """The place that has this key, or None if no place has: the key of a name-based checkpoint, or nobody's."""
    *segments, marker, attribute = key.split("/") if "/" in key else ("", "", "")
    if marker != ATTRIBUTES:
        return None
    at = segments.index(OPTIMIZER_SLOT) if OPTIMIZER_SLOT in segments else len(segments)
    owner, optimizer = segments[:at], segments[at + 1 : -1]
    try:
        slot = (_parts(optimizer), unescape(segments[-1])) if at < len(segments) - 1 else None
        place = Place(_parts(owner), slot, unescape(attribute))
    except ValueError:
        return None
    return place if place.key == key else None


def _parts(segments: Sequence[str]) -> Parts:
    return () if list(segments) == [""] else tuple(map(unescape, segments))
