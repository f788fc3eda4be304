"""What stays and what goes: ``ckptmgr gc``, ``pin``, ``unpin`` and ``sweep``."""

from typing import Annotated

import typer

from ckptmgr import sweep as sweeping
from ckptmgr.cli import completing, policy
from ckptmgr.cli.asking import Yes, confirm
from ckptmgr.cli.output import AsJSON, complain, counted, emit, emit_json, emit_table, plan_json, plan_rows, size, usage
from ckptmgr.cli.storing import Storage
from ckptmgr.cli.target import DEFAULT_NAMING, RunURL, Template, run
from ckptmgr.finding import Run

Step = Annotated[
    int, typer.Argument(metavar="STEP", min=0, help="A step of the run.", show_default=False, autocompletion=completing.steps)
]
PinName = Annotated[str, typer.Argument(metavar="NAME", help="Why the step stays.", show_default=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and delete nothing.")]
Grace = Annotated[str, typer.Option("--grace", metavar="TIME", help="Leave what showed signs of life in this time.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Print what would be deleted now, and delete nothing.")]
EmptyRecords = Annotated[
    bool,
    typer.Option("--empty-records", help="Also remove empty records where the storage has no safe way; only if nobody saves."),
]


def collect(  # one option a policy
    url: RunURL,
    last: policy.Last = None,
    every: policy.Every = None,
    interval: policy.Interval = None,
    within: policy.Within = None,
    best: policy.Best = None,
    most: policy.Bytes = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    template: Template = DEFAULT_NAMING,
    storage: Storage = None,
    as_json: AsJSON = False,
) -> None:
    """Delete the steps that no option keeps.

    Shows the plan with its reasons first, and asks. The newest step and pinned ones always stay, and so do the steps of other
    tools.
    """
    wanted = policy.retention(last, every, interval, within, best, most)
    with run(url, template, retention=wanted, storage=storage) as manager:
        plan = manager.plan()
        if not as_json:
            emit_table(("", "step", "saved", "size", "why"), plan_rows(plan), numbers=("step", "size"))
            if others := sum(info.is_foreign for info in manager.steps()):
                emit(f"left alone, of other tools: {counted(others, 'step')}")
        if not dry_run and plan.dropped:
            confirm(f"Delete {len(plan.dropped)} of {len(plan)} steps?", yes)
            # The steps are read anew and may have changed while somebody read the question.
            plan = manager.collect()
    if as_json:
        emit_json({"run": url, "executed": not dry_run, "plan": plan_json(plan)})
    elif not dry_run:
        emit(f"deleted {len(plan.dropped)} of {len(plan)} steps, {size(sum(info.nbytes for info in plan.dropped))}")


def pin(
    url: RunURL,
    step: Step,
    name: PinName,
    template: Template = DEFAULT_NAMING,
    storage: Storage = None,
    as_json: AsJSON = False,
) -> None:
    """Keep a step, whatever retention says, until it is unpinned."""
    with run(url, template, storage=storage) as manager, usage("NAME"):
        manager.pin(step, name)
    _emit_change(as_json, step, name, "pinned")


def unpin(
    url: RunURL,
    step: Step,
    name: PinName,
    template: Template = DEFAULT_NAMING,
    storage: Storage = None,
    as_json: AsJSON = False,
) -> None:
    """Take a pin off a step; it stays until the next gc.

    Exits with 1 if the step has no such pin.
    """
    with run(url, template, storage=storage) as manager, usage("NAME"):
        pins = Run(manager.folder, manager.naming).find_own(step).info.pins
        manager.unpin(step, name)
    if name not in pins:
        complain(f"step {step} has no pin {name!r} (it has {', '.join(map(repr, sorted(pins))) or 'none'})")
        raise typer.Exit(1)
    _emit_change(as_json, step, name, "unpinned")


def sweep(
    url: RunURL,
    grace: Grace = "1h",
    empty_records: EmptyRecords = False,
    dry_run: Dry = False,
    template: Template = DEFAULT_NAMING,
    storage: Storage = None,
    as_json: AsJSON = False,
) -> None:
    """Delete what interrupted saves have left behind.

    Committed steps and files of other tools are never touched.
    """
    with usage("--grace"):
        period = policy.duration(grace)
    with run(url, template, storage=storage) as manager:
        if dry_run:
            swept = sweeping.sweep(manager.folder, manager.naming, grace_s=period.total_seconds(), is_dry=True)
        else:
            swept = manager.sweep(grace=period, empty_records=empty_records)
    if as_json:
        removed = {"files": swept.files, "nbytes": swept.nbytes, "claims": swept.claims, "uploads": swept.uploads}
        damaged = [{"name": step.name, "message": str(step.error)} for step in swept.unreadable]
        emit_json({"run": url, "dry_run": dry_run, **removed, "foreign": swept.foreign, "damaged": damaged})
    else:
        what = ", ".join(map(counted, (swept.files, swept.claims, swept.uploads), ("file", "claim", "unfinished write")))
        emit(f"{'would sweep' if dry_run else 'swept'} {size(swept.nbytes)}: {what}")
        for name in swept.foreign:
            emit(f"left alone, not ours: {name}")
        for step in swept.unreadable:
            emit(f"left alone, damaged: {step.error}")


def _emit_change(as_json: bool, step: int, name: str, change: str) -> None:
    if as_json:
        emit_json({"step": step, "pin": name, "change": change})
    else:
        emit(f"step {step} {change}: {name}")
