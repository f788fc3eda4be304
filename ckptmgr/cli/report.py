"""``ckptmgr report``: a run as one page for a browser."""

from pathlib import Path
from typing import Annotated

import typer

from ckptmgr.cli import policy
from ckptmgr.cli.output import AsJSON, counted, emit, emit_json, progress, size
from ckptmgr.cli.storing import Storage
from ckptmgr.cli.target import DEFAULT_NAMING, RunURL, Template, run
from ckptmgr.report import write_report

Out = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page; a file that is there is replaced.")]
Read = Annotated[
    int, typer.Option("--tensors", metavar="N", min=0, help="Read the tensors of N steps: norms, histograms.", show_default=False)
]
Compare = Annotated[
    tuple[int, int] | None,
    typer.Option("--compare", metavar="STEP STEP", help="Read two steps and show what changed.", show_default=False),
]


def report(
    url: RunURL,
    output: Out = Path("report.html"),
    read: Read = 0,
    compare: Compare = None,
    last: policy.Last = None,
    every: policy.Every = None,
    interval: policy.Interval = None,
    within: policy.Within = None,
    best: policy.Best = None,
    most: policy.Bytes = None,
    template: Template = DEFAULT_NAMING,
    storage: Storage = None,
    as_json: AsJSON = False,
) -> None:
    """Write a page about a run, for any browser.

    What is kept and why, metrics, storage and tensors, in one file that needs no network. Reads records and one index, and no
    tensor unless --tensors or --compare asks for it. Changes nothing in the run; with the options of gc it shows what they
    would keep.
    """
    given = (last, every, interval, within, best, most)
    wanted = None if all(value in (None, []) for value in given) else policy.retention(*given)
    with run(url, template, storage=storage) as manager, progress("report") as shown:
        found = write_report(manager, output, retention=wanted, tensors=read, compare=compare, url=url, progress=shown)
    steps, nbytes = [step.info.step for step in found.run.steps], output.stat().st_size
    if as_json:
        emit_json({"run": url, "output": str(output), "nbytes": nbytes, "steps": steps, "problems": list(found.problems)})
    else:
        emit(f"{output}: {counted(len(steps), 'step')} of {url}, {size(nbytes)}")
