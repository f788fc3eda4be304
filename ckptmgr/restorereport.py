"""What a restore did, and how the checkpoint and what is wanted of it differ, in words."""

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ckptmgr.errors import StateMismatchError, shown
from ckptmgr.transfer import Stats

_SHOWN = 5  # of differences of one sort in a message; the error has them all


class Mismatch(NamedTuple):
    """A value that is wanted in one form and found in another."""

    name: str
    wanted: str
    found: str


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a restore did, by names: those of ``into``, and for what it does not have those of the checkpoint.

    ``near`` gives for missing and unexpected names the nearest of the other side. ``recast`` were converted, as ``cast``
    allowed. ``kept`` are plain values of objects with a `state_dict` that the checkpoint lacks; the objects keep their own.
    ``skipped`` are newer steps that failed their checks, filled in by whoever chose the step.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()
    recast: tuple[Mismatch, ...] = ()
    near: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    filled: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    skipped: tuple[Any, ...] = ()
    stats: Stats | None = None

    @property
    def is_exact(self) -> bool:
        """Whether everything wanted was found, and nothing else."""
        return not (self.missing or self.unexpected or self.mismatched)

    def check(self, *, is_selected: bool = True) -> None:
        """Raises StateMismatchError that lists every difference, if there is one.

        Where nothing was selected (not ``is_selected``), and that is all that is wrong, the message has the globs to be given.
        """
        if self.is_exact:
            return
        globs = () if is_selected else self._globs()
        select = f"select={globs[0] if len(globs) == 1 else [*globs]!r}"
        cure = "Fix `into`, or pass rename=, select=, cast= or strict=False."
        only = f"To restore only what `into` has, pass {select}; or fix `into`, or pass rename= or strict=False."
        raise StateMismatchError(
            f"`into` and the checkpoint differ; nothing was changed. {' '.join(self._differences())} {only if globs else cure}",
            missing=self.missing,
            unexpected=self.unexpected,
            report=self,
        )

    def __str__(self) -> str:
        recast = [f"{name!r} ({found} to {wanted})" for name, wanted, found in self.recast]
        skipped = [f"step {entry.step}" for entry in self.skipped]
        parts = [*self._differences(), _listed("recast", recast), _listed("newer steps skipped as damaged", skipped)]
        return "\n".join([f"{len(self.filled)} restored.", *filter(None, parts)])

    def _globs(self) -> tuple[str, ...]:
        """The globs of what was found of each top-level key, if the checkpoint has other such keys and no other difference."""
        tops = {name.partition("/")[0]: name for name in self.filled}
        beside = {re.split("[/.]", name)[0] for name in self.unexpected}
        if (
            self.missing
            or self.mismatched
            or len(tops) > _SHOWN
            or not beside.isdisjoint(re.split("[/.]", top)[0] for top in tops)
        ):
            return ()
        return tuple(glob.escape(top) + "/*" * (name != top) for top, name in tops.items())

    def _differences(self) -> list[str]:
        named = {near for name in self.missing for near in self.near.get(name, ())}  # a pair is told once
        different = [f"{name!r} (wanted {wanted}, found {found})" for name, wanted, found in self.mismatched]
        parts = [
            _listed("missing from the checkpoint", [self._with_near(name) for name in self.missing]),
            _listed("not wanted by `into`", [repr(name) if name in named else self._with_near(name) for name in self.unexpected]),
            _listed("different", different),
        ]
        return [part for part in parts if part]

    def _with_near(self, name: str) -> str:
        near = self.near.get(name)
        return f"{name!r} (near: {shown(near)})" if near else repr(name)


def _listed(what: str, texts: Sequence[str]) -> str:
    """The first few of many, and how many there are."""
    more = f", and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return f"{len(texts)} {what}: {', '.join(texts[:_SHOWN])}{more}." if texts else ""
