"""Plans of a state that was planned before: training saves the same tensors again and again, with other values.

The law: a plan is the one that `saving.plan` would give. A layout is a pure function of what a backend looks at, so the last one
is taken again if all of that is the same. Of the state nothing is kept but names, dtypes and shapes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from ckptmgr import garbage, saving
from ckptmgr.backend import Backend
from ckptmgr.layout import Groups, Late, Layout, Path, Scalar
from ckptmgr.saving import Plan
from ckptmgr.spec import TensorSpec
from ckptmgr.tree import Flat

_MOST_NBYTES = 64 << 20  # of literal bytes in a layout that is kept


class Planner:
    """Makes the plans of one manager. It keeps at most one layout; threads may share it."""

    def __init__(self, stem: str, groups: Groups | None) -> None:
        self._stem, self._groups = stem, groups
        self._last: _Last | None = None

    @garbage.later()
    def plan(self, flat: Flat, backend: Backend, max_file_nbytes: int | None) -> Plan:
        """What `saving.plan` gives; raises what it does."""
        key = _Key(backend, max_file_nbytes, [*flat.paths.values()], [*flat.aliases.items()], [*flat.specs.values()])
        last = self._last
        if last is not None and not flat.strings and not (flat.scalars and last.has_no_scalars) and last.key == key:
            return Plan(flat, last.layout)
        scalars = _Scalars(flat.scalars)
        made = saving.plan(
            replace(flat, scalars=scalars), backend, stem=self._stem, max_file_nbytes=max_file_nbytes, groups=self._groups
        )
        is_kept = not flat.strings and not (flat.scalars and scalars.are_used) and _is_plain(made.layout)
        self._last = _Last(key, scalars.are_used, made.layout) if is_kept else None
        return Plan(flat, made.layout)


class _Key(NamedTuple):
    """All that a layout follows from but plain values. Names follow from the paths."""

    backend: Backend
    max_file_nbytes: int | None
    paths: list[Path]
    aliases: list[tuple[str, str]]
    specs: list[TensorSpec]


class _Last(NamedTuple):
    key: _Key
    has_no_scalars: bool  # the backend looked for plain values, and there were none
    layout: Layout


class _Scalars(Mapping[Path, Scalar]):
    """Plain values of a state that know whether anybody has looked at them: most differ from save to save."""

    def __init__(self, values: Mapping[Path, Scalar]) -> None:
        self._values = values
        self.are_used = False

    def __getitem__(self, path: Path) -> Scalar:
        self.are_used = True
        return self._values[path]

    def __iter__(self) -> Iterator[Path]:
        self.are_used = True
        return iter(self._values)

    def __len__(self) -> int:
        self.are_used = True
        return len(self._values)


def _is_plain(layout: Layout) -> bool:
    """Whether it may be kept: it is no large one, and nothing in it is made later, from what it still holds of the state."""
    pieces = [piece for file in layout.files for piece in file.pieces]
    nbytes = sum([len(piece) for piece in pieces if isinstance(piece, bytes)])
    return nbytes <= _MOST_NBYTES and not any(issubclass(kind, Late) for kind in set(map(type, pieces)))
