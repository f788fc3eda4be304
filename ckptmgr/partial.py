"""Tensors of kinds that no array holds: refused by name, unless they are left out.

The law: nothing that a file has is missing from what is made of it without a word.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ckptmgr.errors import UnsupportedTensorError, shown
from ckptmgr.renaming import Rule, Selection, renamed
from ckptmgr.restorereport import RestoreReport
from ckptmgr.source import TensorSource

_TOLD = 3  # with what they are


def asked_for(unreadable: Mapping[str, str], select: Sequence[str] | str | None, rules: Sequence[Rule] = ()) -> dict[str, str]:
    """Those of them whose names, after the rules, the globs match; all without globs."""
    if not unreadable:
        return {}
    selection = Selection(select)
    return {name: what for name, what in unreadable.items() if renamed(name, rules) in selection}


def refuse(found: Mapping[str, str], source: TensorSource, location: str) -> None:
    """Raises UnsupportedTensorError if there are any: what they are, and which names can be selected instead."""
    if not found:
        return
    told = ", ".join(f"{name!r} ({what})" for name, what in [*found.items()][:_TOLD])
    more = f", and {len(found) - _TOLD} more" if len(found) > _TOLD else ""
    names = shown([*source.specs]) or "none"
    raise UnsupportedTensorError(
        f"{location!r} has what ckptmgr does not read: {told}{more}. "
        f"To leave it out, say select=, globs on the names that are wanted; those that can be read are {names}",
        tensor=next(iter(found)),
    )


def told(report: RestoreReport, found: Mapping[str, str]) -> RestoreReport:
    """The report of a restore that went without them."""
    return replace(report, unexpected=(*report.unexpected, *found)) if found else report
