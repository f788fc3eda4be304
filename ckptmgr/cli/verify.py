"""``ckptmgr verify``: reads every byte and says what is damaged."""

from typing import Annotated, NamedTuple

import typer

from ckptmgr.cli.output import AsJSON, emit, emit_json, progress
from ckptmgr.cli.storing import Given, Storage
from ckptmgr.cli.target import DEFAULT_NAMING, StepNumber, TargetURL, Template, by_itself, is_run, run
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.transfer import Problem

Fast = Annotated[bool, typer.Option("--fast", help="Compare sizes only; read no tensor.")]


class Checked(NamedTuple):
    """What was found in one checkpoint; ``step`` is None for what is no step of a run."""

    step: int | None
    problems: list[Problem]
    is_read: bool = True


def verify(
    url: TargetURL,
    step: StepNumber = None,
    fast: Fast = False,
    template: Template = DEFAULT_NAMING,
    storage: Storage = None,
    as_json: AsJSON = False,
) -> None:
    """Compare every byte of a checkpoint with its checksums.

    Of a run, all steps; one that cannot be read does not keep it from the others. Exits with 1 if anything is damaged or was
    not read, and names step, file and tensor.
    """
    checked = _steps(url, step, template, storage, full=not fast) if step is not None or is_run(url, template, storage) else []
    if step is None and not checked:
        checked = [_checkpoint(url, storage, full=not fast)]
    if as_json:
        emit_json({"ok": _all_good(checked), "checked": [_json(one) for one in checked]})
    else:
        _emit(url, checked)
    if not _all_good(checked):
        raise typer.Exit(1)


def _steps(url: str, step: int | None, template: str, storage: Given, *, full: bool) -> list[Checked]:
    with progress("verify") as shown, run(url, template, progress=shown, storage=storage) as manager:
        report = manager.verify(step, full=full)
    problems = {number: [problem for of, problem in report.problems if of == number] for number in report.steps}
    return [Checked(number, found, number not in report.unread) for number, found in problems.items()]


def _checkpoint(url: str, storage: Given, *, full: bool) -> Checked:
    try:
        with progress("verify") as shown, by_itself(url, storage) as opened:
            return Checked(opened.info.step if opened.info else None, opened.verify(full=full, progress=shown))
    except CorruptCheckpointError as error:  # so damaged that it does not even open
        return Checked(error.step, [Problem(error.file or url, error.tensor, str(error))])


def _all_good(checked: list[Checked]) -> bool:
    return not any(one.problems for one in checked)


def _json(one: Checked) -> dict[str, object]:
    problems = [{"file": problem.file, "tensor": problem.tensor, "message": problem.message} for problem in one.problems]
    return {"step": one.step, "ok": not problems, "read": one.is_read, "problems": problems}


def _emit(url: str, checked: list[Checked]) -> None:
    for one in checked:
        found = "ok" if not one.problems else "damaged" if one.is_read else "not read"
        emit(f"{url if one.step is None else f'step {one.step}'}: {found}")
        for problem in one.problems:
            place = problem.file if problem.tensor is None else f"{problem.file}, tensor {problem.tensor}"
            emit(f"  {place}: {problem.message}")
