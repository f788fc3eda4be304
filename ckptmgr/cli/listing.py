"""``ckptmgr ls``: the steps of a run."""

from typing import Annotated

import typer

from ckptmgr.cli.output import (
    AsJSON,
    complain,
    duration,
    emit_json,
    emit_table,
    metrics,
    origin,
    rate,
    size,
    step_json,
    when,
)
from ckptmgr.cli.storing import Storage
from ckptmgr.cli.target import DEFAULT_NAMING, RunURL, Template, run
from ckptmgr.step import StepInfo
from ckptmgr.timing import SaveStats

Long = Annotated[
    bool, typer.Option("--long", "-l", help="Also how long each save took, blocked training, and how fast it wrote.")
]
HOW = ("blocked", "took", "speed")


def list_steps(
    url: RunURL, template: Template = DEFAULT_NAMING, is_long: Long = False, storage: Storage = None, as_json: AsJSON = False
) -> None:
    """List the steps of a run, in the order of their saves.

    The last one is the latest. Those of other tools are marked foreign.
    """
    with run(url, template, storage=storage) as manager:
        steps = manager.steps()
    if as_json:
        emit_json({"run": url, "steps": [step_json(info) for info in steps]})
    elif not steps:
        complain(f"no committed step in {url!r} with a name like {template!r}: 'ckptmgr doctor' tells why")
    else:
        titles = ("step", "saved", "size", *(HOW if is_long else ()), "backend", "metrics", "pins")
        emit_table(titles, [_row(info, is_long=is_long) for info in steps], numbers=("step", "size", *HOW))


def _row(info: StepInfo, *, is_long: bool) -> tuple[str, ...]:
    stats, pins = info.stats or SaveStats(), " ".join(sorted(info.pins))
    how = (duration(stats.blocking), duration(stats.written), rate(info)) if is_long else ()
    return (str(info.step), when(info.created), size(info.nbytes), *how, origin(info), metrics(info.metrics), pins)
