"""``ckptmgr diff``: what is different between two checkpoints."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Annotated

import typer

from ckptmgr import Checkpoint, DiffReport, diff
from ckptmgr.cli.convert import Rename, RuleSets, Select, pair
from ckptmgr.cli.output import AsJSON, emit, emit_json, emit_table, progress, usage
from ckptmgr.cli.storing import Given, Storage, TargetStorage, options_of_both
from ckptmgr.cli.target import DEFAULT_NAMING, Template, checkpoint, run
from ckptmgr.diffreport import figure

First = Annotated[
    str, typer.Argument(metavar="A", help="A run, a step's folder, or a checkpoint of any tool.", show_default=False)
]
Second = Annotated[
    str | None, typer.Argument(metavar="B", help="Likewise; without it, two steps of the run A.", show_default=False)
]
Steps = Annotated[
    tuple[int, int] | None,
    typer.Option(
        "--steps", metavar="STEP STEP", help="The step of A and the step of B; by default the newest.", show_default=False
    ),
]
Absolute = Annotated[float, typer.Option("--atol", help="Elements that are this close count as equal.")]
Relative = Annotated[float, typer.Option("--rtol", help="Likewise, as a part of the element in A.")]
Quick = Annotated[bool, typer.Option("--quick", help="Compare names, shapes and checksums; read no tensor.")]
StateOnly = Annotated[bool, typer.Option("--state-only", help="Leave aside metrics, metadata and assets.")]
Most = Annotated[int, typer.Option("--most", metavar="N", min=0, help="Tensors to list at most; 0 for all.")]


def show_differences(
    a: First,
    b: Second = None,
    steps: Steps = None,
    select: Select = None,
    rename: Rename = None,
    rules: RuleSets = None,
    atol: Absolute = 0.0,
    rtol: Relative = 0.0,
    quick: Quick = False,
    state_only: StateOnly = False,
    most: Most = 100,
    template: Template = DEFAULT_NAMING,
    storage: Storage = None,
    b_storage: TargetStorage = None,
    as_json: AsJSON = False,
) -> None:
    """Tell what is different between two checkpoints, or steps.

    That is in checkpoint B from A, or between two steps of the run A, by default its last two.
    What only one has comes first, then what changed most. Exits with 0 if they are the same, with 1 if they differ, and with 2
    if that cannot be told, as diff does. --rules and --rename give names in A those in B.
    """
    with ExitStack() as stack:
        first, second = stack.enter_context(_pair(a, b, steps, template, options_of_both(a, b or a, storage, b_storage)))
        shown = stack.enter_context(progress("diff"))
        stack.enter_context(usage("diff"))
        report = diff(
            first,
            second,
            rename=[*(rules or ()), *(pair("--rename", rule) for rule in rename or ())],
            select=select or None,
            atol=atol,
            rtol=rtol,
            quick=quick,
            state_only=state_only,
            progress=shown,
        )
        titles = [_title(opened) for opened in (first, second)]
        unread = {*first.unreadable, *second.unreadable}
    if as_json:
        emit_json(report.to_json())
    else:
        _emit(report, titles, most or len(report.tensors), unread)
    if not report.is_same:
        raise typer.Exit(1 if report.tensors or report.values else 2)


@contextmanager
def _pair(
    a: str, b: str | None, steps: tuple[int, int] | None, template: str, options: tuple[Given, Given]
) -> Iterator[tuple[Checkpoint, Checkpoint]]:
    with ExitStack() as stack:
        if b is not None:
            one, two = steps or (None, None)
            first = stack.enter_context(checkpoint(a, one, template, options[0]))
            yield first, stack.enter_context(checkpoint(b, two, template, options[1]))
            return
        manager = stack.enter_context(run(a, template, storage=options[0]))
        if steps is None:
            known = [info.step for info in manager.steps()]
            if len(known) < 2:
                text = f"{a!r} is no run of two steps or more: say what to compare it with"
                raise typer.BadParameter(text, param_hint="B")
            steps = known[-2], known[-1]
        yield stack.enter_context(manager.open(steps[0])), stack.enter_context(manager.open(steps[1]))


def _title(opened: Checkpoint) -> str:
    name = f"step {opened.info.step}" if opened.info else opened.location.rstrip("/").rpartition("/")[2]
    return f"{name} ({opened.backend})"


def _emit(report: DiffReport, titles: list[str], most: int, unread: Collection[str]) -> None:
    for side, title in zip("AB", titles, strict=True):
        emit(f"{side}: {title}")
    if report.tensors:
        emit()
        rows = [
            (each.name, each.change, each.specs, each.counted, figure(each.max_abs), figure(each.relative), each.note)
            for each in report.tensors[:most]
        ]
        numbers = ("changed", "max abs", "relative")
        _emit_filled(("tensor", "differs in", "dtype and shape", *numbers, ""), rows, numbers)
        if len(report.tensors) > most:
            emit(f"... and {len(report.tensors) - most} more (--most 0 lists all)")
    if report.values:
        emit()
        emit_table(("what", "name", "A -> B"), [(each.kind, each.name, each.told) for each in report.values])
    emit()
    emit(report.summary)
    changes = {each.change for each in report.tensors}
    if changes == {"only in A", "only in B"} and not report.same:
        emit("no name is in both: --rules or --rename give names in A those in B")
    for name in report.unknown[:most]:
        why = "cannot be read" if name in unread else "has no checksum on both sides"
        emit(f"  not compared, as it {why}: {name}")


def _emit_filled(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]], numbers: tuple[str, ...]) -> None:
    """A table without the columns that are empty."""
    used = [index for index in range(len(titles)) if any(row[index] for row in rows)]
    emit_table([titles[index] for index in used], [[row[index] for index in used] for row in rows], numbers)
