"""What a template (`into`) asks for, and the state that is built from it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from ckptmgr import arrays, containers, garbage, rng, skeleton
from ckptmgr.errors import UnsupportedLeafError, UnsupportedTensorError
from ckptmgr.frameworks import is_loaded, is_torch_module
from ckptmgr.matching import ABSENT, Match, Stored, Wanted
from ckptmgr.renaming import Selection, children
from ckptmgr.skeleton import MAX_DEPTH, Path
from ckptmgr.tree import is_stateful, join, state_of, unsupported

_MAKE: Callable[..., Wanted] = tuple.__new__


@dataclass(frozen=True, slots=True)
class Part:
    """An object of the template that takes its state by `load_state_dict`, and the state it had.

    ``is_open``: it judges by itself what it is given, so that keys it does not have yet are no surprise. A torch module
    is not: its state has exactly its own keys.
    """

    value: Any
    state: Any
    is_open: bool


@dataclass(frozen=True, slots=True)
class Template:
    """A template taken apart: its leaves that are to be filled, by path, and the objects in it.

    ``anything`` are the paths where it has None: whatever the checkpoint has there is wanted.
    """

    root: Any
    wanted: list[Wanted] = field(default_factory=list)
    leaves: dict[Path, Any] = field(default_factory=dict)
    parts: dict[Path, Part] = field(default_factory=dict)
    anything: list[Path] = field(default_factory=list)

    @property
    def free(self) -> list[Path]:
        """Paths below which the checkpoint may hold whatever it likes."""
        return [*self.anything, *(path for path, part in self.parts.items() if part.is_open)]


@garbage.later()
def survey(into: Any, *, is_foreign: bool = False) -> Template:
    """The template taken apart. Asks objects in it for their state; changes nothing.

    A foreign file cannot tell keys from parts of names: nothing is open to what it has.

    Raises:
        UnsupportedLeafError: a leaf that cannot be filled; names its path.
    """
    template = Template(into)
    _Survey(template, is_foreign).value(into, (), is_inside=False)
    return template


class _Survey:
    def __init__(self, template: Template, is_foreign: bool) -> None:
        self.template = template
        self.is_foreign = is_foreign
        self.ties: dict[Any, int] = {}

    def value(self, value: Any, path: Path, *, is_inside: bool) -> None:
        adapter = arrays.adapter(value)
        if adapter is not None:
            try:
                spec = adapter.describe(value)
            except (UnsupportedLeafError, UnsupportedTensorError) as error:
                raise unsupported(path, error) from error
            count = len(self.template.wanted)
            shared = -1 if 0 in spec.shape or adapter.is_description else self.ties.setdefault(adapter.identity(value), count)
            self.want(value, Wanted(path, spec, adapter.kind(value), shared))
        elif skeleton.is_scalar(value):
            if value is None and not is_inside:
                self.template.anything.append(path)
            elif not is_inside:
                self.want(value, Wanted(path, value))
        elif is_stateful(value) and path not in self.template.parts:
            part = Part(value, state_of(value, path), not self.is_foreign and not is_torch_module(value))
            self.template.parts[path] = part
            self.value(part.state, path, is_inside=part.is_open)
        else:
            self.container(value, path, is_inside)

    def container(self, value: Any, path: Path, is_inside: bool) -> None:
        if len(path) >= MAX_DEPTH:
            raise unsupported(path, f"is nested deeper than {MAX_DEPTH} levels (does the state contain itself?)")
        try:
            inner = containers.columns(value)
            state = rng.capture(value) if inner is None else None
        except UnsupportedLeafError as error:
            raise unsupported(path, error) from error
        if state is not None:
            self.want(value, Wanted(path, state))
        elif inner is None:
            raise unsupported(path, f"is a {type(value).__qualname__}, which cannot be restored")
        elif not self.arrays(*inner, path):
            for key, item in zip(*inner, strict=True):
                self.value(item, (*path, key), is_inside=is_inside)

    def arrays(self, keys: list[str | int], leaves: list[Any], path: Path) -> bool:
        """Whether these are all `arrays.alike`, each once: then they are wanted, in less time than one by one."""
        alike = arrays.alike(leaves)
        if alike is None:
            return False
        adapter, specs = alike
        first = len(self.template.wanted)
        fresh: dict[Any, int] = dict(zip(map(id, leaves), range(first, first + len(leaves)), strict=True))
        if len(fresh) < len(leaves) or not self.ties.keys().isdisjoint(fresh):
            return False
        self.ties |= fresh
        paths = [(*path, key) for key in keys]
        # By `tuple`, because a call of a NamedTuple's own `__new__` takes three times as long.
        fields = zip(paths, specs, repeat(adapter.kind(leaves[0])), fresh.values())
        self.template.wanted.extend(map(_MAKE, repeat(Wanted), fields))
        self.template.leaves.update(zip(paths, leaves, strict=True))
        return True

    def want(self, value: Any, wanted: Wanted) -> None:
        self.template.wanted.append(wanted)
        self.template.leaves[wanted.path] = value


@dataclass(frozen=True, slots=True)
class Building:
    """Puts a new state together, in the types of the template, from the values its leaves got.

    ``values`` are the new leaves, by their paths in the template; leaves without one stay as they are. ``found`` gives what
    stands for a leaf of the checkpoint that has no template; its flag says that it is in the state of an object.
    """

    template: Template
    stored: Stored
    select: Selection
    values: Mapping[Path, Any]
    matched: Match
    found: Callable[[Any, bool], Any]
    loads: list[tuple[Path, Part, Any]] = field(default_factory=list)  # objects and their new states, inner ones first
    kept: list[str] = field(default_factory=list)

    @garbage.later()
    def state(self) -> Any:
        """The new state. Its objects still have to be given theirs: `load`."""
        return self._value(self.template.root, ())

    def load(self) -> None:
        """Gives every object its new state; an error of its own passes, with a note that tells the path."""
        for path, part, state in self.loads:
            if isinstance(state, Mapping) and is_torch_module(part.value) and is_loaded(part.value, state):
                continue
            try:
                part.value.load_state_dict(state)
            except Exception as error:
                error.add_note(f"raised by load_state_dict() of {join(path)!r}")
                raise

    def _value(self, value: Any, path: Path) -> Any:
        part = self.template.parts.get(path)
        return self._inner(value, path) if part is None else self._part(part, path)

    def _part(self, part: Part, path: Path) -> Any:
        new = self._merged(part.state, self.stored.find(path), path) if part.is_open else self._inner(part.state, path)
        self.loads.append((path, part, new))
        return part.value

    def _inner(self, value: Any, path: Path) -> Any:
        """What becomes of a value that is no object with a state of its own."""
        if path in self.values:
            return self.values[path]
        if value is None and path in self.template.anything:
            found = self._found(self.stored.find(path), path, False)
            return None if found is ABSENT else found
        own = self._items(value, path)
        return value if own is None else containers.rebuild(value, [(key, self._value(item, (*path, key))) for key, item in own])

    def _items(self, value: Any, path: Path) -> list[tuple[str | int, Any]] | None:
        is_leaf = value is ABSENT or path in self.template.leaves or skeleton.is_scalar(value)
        return None if is_leaf else containers.items(value)

    def _merged(self, value: Any, found: Any, path: Path) -> Any:
        """In the state of an open object: what the checkpoint has, with the template's own arrays filled."""
        if found is ABSENT or path in self.values or path in self.matched.left:
            return self._kept(value, path)
        theirs = children(found)
        if theirs is None:
            new = ABSENT if path in self.matched.used else self._found(found, path, True)
            return value if new is ABSENT else new
        own = self._items(value, path)
        own_items = dict(own or ())
        new = [(key, self._merged_item(own_items.get(key, ABSENT), item, (*path, key))) for key, item in theirs]
        if isinstance(found, dict):
            new += [(key, self._merged_item(item, ABSENT, (*path, key))) for key, item in own_items.items() if key not in found]
        new = [(key, item) for key, item in new if item is not ABSENT]
        has_keys = not isinstance(value, list | tuple) or hasattr(value, "_fields")
        return containers.rebuild(value, new) if own is not None and isinstance(found, dict) == has_keys else _plain(found, new)

    def _merged_item(self, value: Any, found: Any, path: Path) -> Any:
        part = self.template.parts.get(path)
        return self._merged(value, found, path) if part is None else self._part(part, path)

    def _kept(self, value: Any, path: Path) -> Any:
        if value is not ABSENT and skeleton.is_scalar(value) and path not in self.values:
            self.kept.append(join(path))
        return ABSENT if value is ABSENT else self._inner(value, path)

    def _found(self, found: Any, path: Path, is_inside: bool) -> Any:
        """What the checkpoint has at a path, as far as it is selected; `ABSENT` if nothing of it is."""
        theirs = None if found is ABSENT else children(found)
        if theirs is None:
            return self.found(found, is_inside) if found is not ABSENT and self.select.has(path) else ABSENT
        new = [(key, self._found(item, (*path, key), is_inside)) for key, item in theirs]
        chosen = [(key, item) for key, item in new if item is not ABSENT]
        if theirs and not chosen and path:
            return ABSENT
        is_list = isinstance(found, list | tuple)
        return _plain(found, [(key, None if item is ABSENT else item) for key, item in new] if is_list else chosen)


def _plain(found: Any, new: list[tuple[str | int, Any]]) -> Any:
    """A container of the checkpoint with these items, of a plain type."""
    if isinstance(found, skeleton.Fields):
        return tuple(item for _, item in new)
    return dict(new) if isinstance(found, dict) else type(found)(item for _, item in new)
