"""From a source of tensors to a state: what every restore does once a checkpoint is open.

First everything is compared, and every difference told, before a byte is read or a leaf touched. Then tensors are read,
straight into the template's own memory where that is possible; then objects get their states; random generators are set
last, so that nothing that comes before disturbs them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from ckptmgr import arrays, garbage, rng, transfer, whole
from ckptmgr.casting import Cast, cast_array, to_scalar
from ckptmgr.matching import ABSENT, Match, Stored, Wanted, match
from ckptmgr.renaming import Renaming, Selection, rules_of
from ckptmgr.restorereport import RestoreReport
from ckptmgr.rng import RngState
from ckptmgr.skeleton import Path, TensorNode
from ckptmgr.source import TensorSource
from ckptmgr.spec import PackedArray, TensorSpec
from ckptmgr.step import JSON
from ckptmgr.template import Building, Template, survey
from ckptmgr.transfer import Memory, Progress, Stats, Verify
from ckptmgr.tree import finish, join

STAGED_NBYTES = 1 << 28  # of tensors that pass through memory of ours on their way to a device or another dtype


def restore(
    source: TensorSource,
    skeleton: JSON | None,
    *,
    into: Any = None,
    select: Sequence[str] | str | None = None,
    rename: Renaming | None = None,
    cast: Cast = "no",
    strict: bool = True,
    verify: Verify = "full",
    progress: Progress | None = None,
    mmap: bool = False,
    copy: bool = False,
) -> tuple[Any, RestoreReport]:
    """The state of a source, in the form of ``into``, and a report of what was done.

    ``into`` gives containers, types, shapes, dtypes and devices. Mutable arrays in it are filled in place and are in the
    new state themselves; read-only ones and those of frameworks without mutable arrays are replaced. Containers are made
    anew. None in it, or no ``into``, takes whatever the checkpoint has there, as dicts, lists, tuples, plain values and
    numpy arrays. ``skeleton`` None is a foreign file: a flat dict, matched by names joined by ``/`` or ``.``.

    With ``strict`` every difference is an error; without it, what fits is restored, the rest stays as it is in ``into`` and is
    listed in the report. ``select`` restricts both sides to names that a glob matches. ``rename`` are rules that change the
    checkpoint's names, each applied to what the one before gave. ``cast`` says which dtypes may be converted.

    ``mmap`` gives arrays that are the files themselves, copied on write: nothing is read or verified now. ``copy`` gives each new
    array memory of its own. Both say nothing of leaves of ``into`` that are filled in place; ``mmap`` goes without ``into``.

    If `CorruptCheckpointError` or `OSError` is raised while tensors are read, arrays filled in place have undefined contents,
    and nothing else has been changed.

    Raises:
        StateMismatchError: ``into`` and the checkpoint differ; lists every difference, and nothing was changed.
        UnsupportedLeafError: a leaf of ``into`` cannot be filled; names its path.
        CorruptCheckpointError: bytes are not what was written; names file and tensor.
        ValueError: an unknown ``cast``, a glob that matches nothing, rules that give two values one name, files that are to be
            mapped and are on no local disk.
    """
    if cast not in get_args(Cast):
        raise ValueError(f"cast must be one of {get_args(Cast)}, not {cast!r}")
    if mmap and (copy or into is not None):
        raise ValueError(
            f"mmap=True gives new arrays that are the files themselves: leave out {'copy=True' if copy else 'into='}"
        )
    memory: Memory = "mapped" if mmap else "own" if copy else "shared"
    stored = Stored(source, skeleton, rules_of(rename))
    if into is None and select is None:
        return whole.load(source, stored, verify, progress, memory)
    template = survey(into, is_foreign=stored.is_foreign)
    selection = Selection(select)
    selection.check(map(join, [*stored.leaves, *template.leaves, *template.anything]))
    matched = match(stored, template.wanted, free=template.free, select=selection, cast=cast)
    report = _with_anything(matched.report, template, stored, selection)
    if strict:
        report.check(is_selected=select is not None)
    reading = _Reading(source, stored, template, verify, progress, memory)
    reading.plan(matched, selection)
    stats = reading.run()
    building = Building(template, stored, selection, reading.values, matched, reading.found)
    state = building.state()
    building.load()
    reading.fill_generators()
    return state, dataclasses.replace(report, kept=tuple(building.kept), stats=stats)


class _Reading:
    """Reads what a match asks for: into the memory of leaves where that is possible, else in batches that are given on."""

    def __init__(
        self,
        source: TensorSource,
        stored: Stored,
        template: Template,
        verify: Verify,
        progress: Progress | None,
        memory: Memory,
    ) -> None:
        self.source = source
        self.stored = stored
        self.template = template
        self.verify: Verify = verify
        self.progress = progress
        self.memory: Memory = memory
        self.users: dict[str, list[Wanted]] = {}  # by tensor: the leaves that want it; it is read once for all of them
        self.found_names: dict[str, None] = {}  # tensors that are wanted as they are
        self.values: dict[Path, Any] = {}
        self.places: dict[Path, np.ndarray[Any, Any]] = {}  # memory of leaves that is read into
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}  # those of `found_names`
        self.made: tuple[dict[str, Any], dict[str, Any]] = {}, {}  # what those became; in the states of objects
        self.ties: dict[int, tuple[Any, Any]] = {}  # the first leaf of tied ones, and what it became
        self.has_ties = False
        self.tied: tuple[Wanted, ...] = ()
        self.generators: list[tuple[Any, Any]] = []  # with their new states

    @garbage.later()
    def plan(self, matched: Match, select: Selection) -> None:
        """Takes over everything that needs no reading, and notes what does."""
        self.tied, self.has_ties = matched.tied, matched.has_ties
        leaves, tensor = self.stored.leaves, self.stored.tensor
        for wanted, path, value in matched.pairs:
            found = leaves[path]
            if type(found) is TensorNode:
                self.users.setdefault(tensor(found), []).append(wanted)
            elif isinstance(found, RngState):
                self.values[wanted.path] = self.template.leaves[wanted.path]
                self.generators.append((self.values[wanted.path], found))
            elif isinstance(wanted.what, TensorSpec):
                self._set(wanted, arrays.fill(self._leaf(wanted), cast_array(np.array(value), wanted.what.numpy)))
            else:
                self.values[wanted.path] = value
        for start in self.template.free:
            for path, leaf in self.stored.below(start):
                if type(leaf) is TensorNode and path not in matched.used and select.has(path):
                    self.found_names[self.stored.tensor(leaf)] = None

    def run(self) -> Stats:
        """Reads all there is to read. Leaves get their values; generators not yet."""
        total = sum(spec.nbytes for spec in map(self.stored.specs.__getitem__, {**self.users, **self.found_names}))
        stats = Stats(0, 0.0, {})
        for batch in self._batches():
            arrays_read, more = self._read(batch, self._shifted(stats.nbytes, total))
            stats = _sum(stats, more)
            for (name, direct), array in zip(batch, arrays_read, strict=True):
                if direct is None or self.has_ties or len(self.users[name]) > 1 or name in self.found_names:
                    self._give(name, array, direct)
                else:  # as most are
                    self.values[direct.path] = self.template.leaves[direct.path]
        for user in self.tied:
            first, value = self.ties[user.tie]
            self.values[user.path] = self._leaf(user) if value is first else value
        return stats

    def _read(
        self, batch: Sequence[tuple[str, Wanted | None]], progress: Progress | None
    ) -> tuple[list[np.ndarray[Any, Any]], Stats]:
        names = [name for name, _ in batch]
        outs = [None if direct is None else self.places[direct.path] for _, direct in batch]
        return transfer.read_new(self.source, names, outs=outs, verify=self.verify, progress=progress, memory=self.memory)

    def found(self, leaf: Any, is_inside: bool) -> Any:
        """What stands for a leaf of the checkpoint without a template; in the state of an object, of the kind that it was."""
        if type(leaf) is not TensorNode:
            return rng.rebuild(leaf) if isinstance(leaf, RngState) else leaf
        name = self.stored.tensor(leaf)
        made, others = self.made[is_inside], self.made[not is_inside]
        if name not in made:
            array = _copy(self.arrays[name]) if name in others else self.arrays[name]
            made[name] = arrays.make(leaf.kind, array) if is_inside else finish(leaf, array)
        return made[name]

    def fill_generators(self) -> None:
        """Sets the random generators of the template, which nothing may disturb afterwards."""
        for leaf, state in self.generators:
            if isinstance(state, RngState):
                rng.fill(leaf, state)
            else:
                arrays.fill(leaf, state)

    def _leaf(self, wanted: Wanted) -> Any:
        return self.template.leaves[wanted.path]

    @garbage.later()
    def _batches(self) -> list[list[tuple[str, Wanted | None]]]:
        """Names with the leaf whose memory is read into, if any. What stays in our memory for a while comes in small batches."""
        direct: list[tuple[str, Wanted | None]] = [(name, None) for name in self.found_names if name not in self.users]
        staged: list[tuple[str, Wanted | None]] = []
        specs = self.stored.specs
        first = {name: self._direct(users, specs[name]) for name, users in self.users.items()}
        shared = _sharing(self.places)
        for name, into in first.items():
            if into is not None and into.path in shared:
                into = None
            (staged if into is None and name not in self.found_names else direct).append((name, into))
        batches = [direct] if direct else []
        batch: list[tuple[str, Wanted | None]] = []
        size = 0
        for name, _ in staged:
            batch.append((name, None))
            size += self.stored.specs[name].nbytes
            if size >= STAGED_NBYTES:
                batches.append(batch)
                batch, size = [], 0
        return [*batches, batch] if batch else batches

    def _direct(self, users: Sequence[Wanted], spec: TensorSpec) -> Wanted | None:
        """The first of these leaves that has memory that can be read into."""
        for user in users:
            if self._has_place(user, spec):
                return user
        return None

    def _has_place(self, user: Wanted, spec: TensorSpec) -> bool:
        """Whether the leaf has memory that can be read into; it is then noted."""
        place = arrays.destination(self.template.leaves[user.path]) if user.what is spec or user.what == spec else None
        if place is not None:
            self.places[user.path] = place
        return place is not None

    def _give(self, name: str, array: np.ndarray[Any, Any], direct: Wanted | None) -> None:
        """Fills the leaves that want this array. Its memory is given away at most once."""
        is_ours = direct is None
        if direct is not None:
            self._set(direct, self._leaf(direct))
        if name in self.found_names:
            self.arrays[name] = array if is_ours else _copy(array)
            is_ours = False
        for user in self.users.get(name, ()):
            leaf = self._leaf(user)
            if user is direct:
                continue
            if user.tie in self.ties:
                first, value = self.ties[user.tie]
                self._set(user, leaf if value is first else value)
            elif not isinstance(user.what, TensorSpec):
                self._set(user, to_scalar(array, user.what))
            elif self._has_place(user, self.stored.specs[name]):
                np.copyto(self.places[user.path], array)
                self._set(user, leaf)
            else:
                new = cast_array(array, user.what.numpy)
                if new is array and not is_ours:
                    new = _copy(array)
                is_ours = is_ours and new is not array
                self._fill(user, leaf, new)

    def _fill(self, user: Wanted, leaf: Any, array: np.ndarray[Any, Any]) -> None:
        if user.kind.startswith("torch.generator/"):
            self.generators.append((leaf, array))
            self._set(user, leaf)
        else:
            self._set(user, arrays.fill(leaf, array))

    def _set(self, user: Wanted, value: Any) -> None:
        self.values[user.path] = value
        if user.tie >= 0 and user.tie not in self.ties:
            self.ties[user.tie] = self._leaf(user), value

    def _shifted(self, before: int, total: int) -> Progress | None:
        if self.progress is None or self.memory == "mapped":  # then there is one batch, of which little is read
            return self.progress
        progress = self.progress
        return lambda done, _: progress(before + done, total)


@garbage.later()
def _with_anything(report: RestoreReport, template: Template, stored: Stored, select: Selection) -> RestoreReport:
    """The report with what None in the template gets, or does not."""
    missing, filled = [], []
    for start in template.anything:
        if stored.find(start) is ABSENT:
            missing += [join(start)] if select.has(start) else []
        else:
            filled += [join(path) for path, _ in stored.below(start) if select.has(path)]
    return dataclasses.replace(report, missing=(*report.missing, *missing), filled=(*report.filled, *filled))


def _copy(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return PackedArray.wrap(array.copy(), array.spec) if isinstance(array, PackedArray) else array.copy()


def _sharing(places: Mapping[Path, np.ndarray[Any, Any]]) -> set[Path]:
    """Of these places in memory those that share bytes with another: they are filled one after another, never at once."""
    if all(place.flags.owndata for place in places.values()) and len(set(map(id, places.values()))) == len(places):
        return set()  # each has memory of its own; asking for all the addresses would take longer than reading a small state
    ranges = [(place.__array_interface__["data"][0], place.nbytes, path) for path, place in places.items() if place.nbytes]
    shared: set[Path] = set()
    end = 0
    last: Path = ()
    for start, nbytes, path in sorted(ranges, key=lambda found: found[:2]):
        if start < end:
            shared |= {last, path}
        if start + nbytes > end:
            end, last = start + nbytes, path
    return shared


def _sum(first: Stats, second: Stats) -> Stats:
    phases = {key: first.phases.get(key, 0) + second.phases.get(key, 0) for key in {**first.phases, **second.phases}}
    return Stats(first.nbytes + second.nbytes, first.seconds + second.seconds, phases)
