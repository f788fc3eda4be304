"""``ckptmgr cp``: copies steps from one run into another, on any storage."""

import shlex
from collections.abc import Sequence
from typing import Annotated, Any, cast

import typer

from ckptmgr import copying
from ckptmgr.cli import completing
from ckptmgr.cli.output import AsJSON, complain, counted, emit, emit_json, progress, size, step_json
from ckptmgr.cli.storing import Storage, TargetStorage, options_of_both
from ckptmgr.cli.target import DEFAULT_NAMING, RunURL, Template, folder, run, step_naming
from ckptmgr.copying import Copied, NotCopied, Readback, Wanted
from ckptmgr.errors import shown
from ckptmgr.finding import Run
from ckptmgr.foreign import Foreign
from ckptmgr.step import JSON

TargetRun = Annotated[str, typer.Argument(metavar="TARGET", help="Folder of the run that gets them.", show_default=False)]
Steps = Annotated[
    list[int] | None,
    typer.Option(
        "--step",
        min=0,
        help="A step to copy; repeatable.",
        show_default=False,
        autocompletion=completing.steps,
    ),
]
Latest = Annotated[bool, typer.Option("--latest", help="Copy the step that was saved last.")]
All = Annotated[bool, typer.Option("--all", help="Copy all steps, which is done if nothing else is said.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace other steps of the same numbers.")]
Repair = Annotated[
    bool, typer.Option("--repair", help="Compare also what is there with its checksums, and replace damaged copies.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what would be copied. Nothing is written.")]
Fast = Annotated[bool, typer.Option("--fast", help="Do not read back what is written; compare sizes only.")]


def copy(
    url: RunURL,
    target_url: TargetRun,
    steps: Steps = None,
    latest: Latest = False,
    all_steps: All = False,
    overwrite: Overwrite = False,
    repair: Repair = False,
    fast: Fast = False,
    dry_run: DryRun = False,
    template: Template = DEFAULT_NAMING,
    storage: Storage = None,
    target_storage: TargetStorage = None,
    as_json: AsJSON = False,
) -> None:
    """Copy steps into another run, on any storage.

    They stay the same steps, each whole or absent. Steps that are there already are passed over, and what an interrupted copy
    has written is not written again: run the same command again. Exits with 1 if a step could not be copied; the others are.
    """
    if bool(steps) + latest + all_steps > 1:
        raise typer.BadParameter("give one of --step, --latest and --all")
    source_options, target_options = options_of_both(url, target_url, storage, target_storage)
    target = Run(folder(target_url, target_options), step_naming(template))
    with progress("copy") as tell, run(url, template, storage=source_options) as manager:
        source = Run(manager.folder, manager.naming)
        wanted = cast(Wanted, steps or ("latest" if latest else "all"))
        chosen, failed, others = copying.choose(source, wanted)
        ends: list[Copied | NotCopied] = [*failed]
        verify: Readback = "fast" if fast else "full"
        if dry_run:
            found = copying.plan_steps(source, chosen, target, overwrite=overwrite, repair=repair, verify=verify)
        else:
            options: dict[str, Any] = {"overwrite": overwrite, "repair": repair, "verify": verify, "progress": tell}
            found = copying.copy_steps(source, chosen, target, **options)
        for end in found:
            ends.append(end)
            if not as_json:
                _emit(end)
    if as_json:
        told = [_json(end, dry_run=dry_run) for end in ends]
        left_out = [known.info.step for known in others]
        emit_json({"source": url, "target": target_url, "dry_run": dry_run, "steps": told, "left_out": left_out})
    else:
        if dry_run:
            new = [end for end in ends if isinstance(end, Copied) and not end.was_there]
            emit(f"{counted(len(new), 'step')} would be copied, {size(sum(end.nbytes for end in new))}")
        if others:
            emit(_left_out(others, url, target_url))
    _complain([end for end in ends if isinstance(end, NotCopied)], dry_run=dry_run)


def _complain(failed: Sequence[NotCopied], *, dry_run: bool) -> None:
    for end in failed:
        complain(f"step {end.step} {'cannot be' if dry_run else 'was not'} copied: {end.error}")
    if failed:
        raise typer.Exit(1)


def _left_out(others: Sequence[Foreign], url: str, target_url: str) -> str:
    migrate = f"'{shlex.join(['ckptmgr', 'migrate', url, target_url])}' brings them along"
    adopt = f"'{shlex.join(['ckptmgr', 'adopt', url])}' makes them steps of this run, or "
    ways = migrate if any(known.inside for known in others) else adopt + migrate
    return f"left out, of other tools: {counted(len(others), 'step')} ({shown([known.info.step for known in others])}); {ways}"


def _emit(end: Copied | NotCopied) -> None:
    if isinstance(end, NotCopied):
        return  # it is told at the end
    if end.was_there:
        emit(f"step {end.info.step}: there already")
    else:
        kept = f", {counted(len(end.found), 'file')} of an interrupted copy kept" if end.found else ""
        emit(f"step {end.info.step}: {size(end.nbytes)} in {counted(len(end.sent), 'file')}{kept}")


def _json(end: Copied | NotCopied, *, dry_run: bool) -> JSON:
    if isinstance(end, NotCopied):
        return {"step": end.step, "status": "failed", "message": str(end.error)}
    done = {"status": "there" if end.was_there else "plan" if dry_run else "copied", "sent_nbytes": end.nbytes}
    return {**step_json(end.info), **done, "sent": list(end.sent), "found": list(end.found)}
