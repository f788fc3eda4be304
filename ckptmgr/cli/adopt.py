"""``ckptmgr adopt``: steps that other tools wrote into the folder of a run become committed ones."""

from collections.abc import Iterable
from typing import Annotated

import typer

from ckptmgr import StepInfo
from ckptmgr.adopting import Adoption, NotAdopted
from ckptmgr.cli.output import AsJSON, complain, counted, emit, emit_json, origin, progress, size, step_json, usage
from ckptmgr.cli.storing import Storage
from ckptmgr.cli.target import DEFAULT_NAMING, RunURL, StepNumber, Template, run
from ckptmgr.finding import Run
from ckptmgr.hints import Hints
from ckptmgr.step import JSON

DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what would be adopted, and why some cannot. Nothing is written.")]


def adopt_steps(
    url: RunURL,
    step: StepNumber = None,
    dry_run: DryRun = False,
    template: Template = DEFAULT_NAMING,
    storage: Storage = None,
    as_json: AsJSON = False,
) -> None:
    """Make committed steps of those that other tools wrote.

    They lie in the run's folder; all of them are adopted, or one with --step. Files are copied byte for byte, checked and
    committed, and then the originals are deleted. No step is lost, changed or moved in the order of steps; if it is
    interrupted, run the same command again. Exits with 1 if a step cannot be adopted.
    """
    ends: list[StepInfo | NotAdopted] = []
    with progress("adopt") as shown, run(url, template, storage=storage) as manager, usage("--step"):
        steps = Run(manager.folder, manager.naming)
        adoption = Adoption(steps, lambda: manager.run, Hints(steps).refresh, shown)
        for end in adoption.plan(step) if dry_run else adoption.each(step):
            ends.append(end)
            if not as_json:
                _emit(end, dry_run=dry_run)
    if as_json:
        emit_json({"run": url, "dry_run": dry_run, "steps": [_json(end, dry_run=dry_run) for end in ends]})
    elif not dry_run:
        emit(f"{counted(len(_done(ends)), 'step')} adopted")
    else:
        emit(f"{counted(len(_done(ends)), 'step')} would be adopted")
    refused = [end for end in ends if isinstance(end, NotAdopted)]
    for end in refused:
        complain(f"step {end.info.step} {'cannot be' if dry_run else 'was not'} adopted: {end.error}")
    if refused:
        raise typer.Exit(1)


def _done(ends: Iterable[StepInfo | NotAdopted]) -> list[StepInfo]:
    return [end for end in ends if isinstance(end, StepInfo)]


def _emit(end: StepInfo | NotAdopted, *, dry_run: bool) -> None:
    if isinstance(end, NotAdopted):
        return  # it is told at the end
    if dry_run and not end.is_foreign:
        emit(f"step {end.step}: adopted before, and what is left of its originals would be deleted")
    elif dry_run:
        emit(f"step {end.step}: {size(end.nbytes)}, {end.path}, {origin(end)}")
    else:
        emit(f"step {end.step}: {size(end.nbytes)}, {end.path}")


def _json(end: StepInfo | NotAdopted, *, dry_run: bool) -> JSON:
    if isinstance(end, NotAdopted):
        return {**step_json(end.info), "status": "refused", "message": str(end.error)}
    status = ("plan" if end.is_foreign else "left over") if dry_run else "adopted"
    return {**step_json(end), "status": status}
