"""``ckptmgr delete``: takes steps out of a run that somebody names."""

from collections.abc import Iterable, Sequence
from typing import Annotated, NamedTuple

import typer

from ckptmgr.cli import completing
from ckptmgr.cli.asking import Yes, confirm
from ckptmgr.cli.output import AsJSON, counted, emit, emit_json, emit_table, size, step_json, when
from ckptmgr.cli.storing import Storage
from ckptmgr.cli.target import DEFAULT_NAMING, RunURL, Template, run
from ckptmgr.errors import CheckpointError, FormatVersionError
from ckptmgr.finding import Run
from ckptmgr.ledger import Unreadable
from ckptmgr.step import JSON, StepInfo

Steps = Annotated[
    list[int],
    typer.Argument(metavar="STEP...", min=0, help="Steps of the run.", show_default=False, autocompletion=completing.steps),
]
Pinned = Annotated[bool, typer.Option("--pinned", help="Delete pinned steps too; else they are refused.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the steps and delete nothing.")]


class Victim(NamedTuple):
    """A step that is to be deleted: what is known of it, or why its record cannot be read."""

    step: int
    info: StepInfo | None
    trouble: CheckpointError | None = None


def delete_steps(
    url: RunURL,
    steps: Steps,
    pinned: Pinned = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    template: Template = DEFAULT_NAMING,
    storage: Storage = None,
    as_json: AsJSON = False,
) -> None:
    """Delete steps, whatever retention says.

    Shows them first, and asks. If one of them is not there, or is pinned, none is deleted. Also takes out a step whose record is
    damaged; its files are left to sweep.
    """
    with run(url, template, storage=storage) as manager:
        known = Run(manager.folder, manager.naming)
        victims = _victims(known, steps, pinned=pinned)
        if not as_json:
            emit_table(("step", "saved", "size", "pins"), map(_row, victims), numbers=("step", "size"))
        if not dry_run:
            confirm(f"Delete {counted(len(victims), 'step')}?", yes)
            _check_unchanged(victims, _victims(known, steps, pinned=pinned))  # while somebody read the question
            for number, victim in enumerate(victims):
                try:
                    manager.delete(victim.step, seen=victim.info)
                except CheckpointError as error:
                    gone = ", ".join(str(each.step) for each in victims[:number]) or "none"
                    raise CheckpointError(f"{error} (deleted before: {gone})") from error
    if as_json:
        emit_json({"run": url, "executed": not dry_run, "steps": list(map(_json, victims))})
    elif not dry_run:
        _emit(victims)


def _victims(steps: Run, numbers: Iterable[int], *, pinned: bool) -> list[Victim]:
    """All of them, or the error of one that cannot be deleted."""
    victims = [_victim(steps, number) for number in dict.fromkeys(numbers)]
    for victim in victims:
        if victim.info and victim.info.pins and not pinned:
            names = ", ".join(map(repr, sorted(victim.info.pins)))
            raise CheckpointError(f"step {victim.step} is pinned ({names}): unpin it, or pass --pinned; nothing was deleted")
    return victims


def _check_unchanged(before: Sequence[Victim], now: Sequence[Victim]) -> None:
    if [victim.info for victim in before] != [victim.info for victim in now]:
        raise CheckpointError("these steps were changed meanwhile: nothing was deleted; look at them again")


def _victim(steps: Run, step: int) -> Victim:
    damaged = [each for each in steps.look(step) if isinstance(each, Unreadable)]
    for each in damaged:
        if isinstance(each.error, FormatVersionError):
            raise each.error
    return Victim(step, None, damaged[0].error) if damaged else Victim(step, steps.find_own(step).info)


def _row(victim: Victim) -> tuple[str, ...]:
    if victim.info is None:
        return str(victim.step), "-", "-", "its record is damaged"
    return str(victim.step), when(victim.info.created), size(victim.info.nbytes), " ".join(sorted(victim.info.pins))


def _json(victim: Victim) -> dict[str, JSON]:
    return {**step_json(victim.info), "damaged": None} if victim.info else {"step": victim.step, "damaged": str(victim.trouble)}


def _emit(victims: Sequence[Victim]) -> None:
    nbytes = sum(victim.info.nbytes for victim in victims if victim.info)
    left = "; files of damaged ones are left to sweep" if any(victim.trouble for victim in victims) else ""
    emit(f"deleted {counted(len(victims), 'step')}, {size(nbytes)}{left}")
