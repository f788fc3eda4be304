"""``ckptmgr report``: a run as one page for a browser."""

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ckptmgr.cli import policy
from ckptmgr.cli.output import AsJSON, counted, emit, emit_json, progress, size
from ckptmgr.cli.storing import Storage
from ckptmgr.cli.target import DEFAULT_NAMING, RunURL, Template, run
from ckptmgr.report.contents import contents
from ckptmgr.report.rendering import render

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
        found = contents(manager, url=url, retention=wanted, read=read, compare=compare, progress=shown)
    page = render(found).encode("utf-8", "replace")
    _write(output, page)
    steps = [step.info.step for step in found.run.steps]
    if as_json:
        emit_json({"run": url, "output": str(output), "nbytes": len(page), "steps": steps, "problems": list(found.problems)})
    else:
        emit(f"{output}: {counted(len(steps), 'step')} of {url}, {size(len(page))}")


def _write(path: Path, data: bytes) -> None:
    """The whole page or the old one, with the permissions that any new file has."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".report-") as folder:
        new = Path(folder) / path.name
        new.write_bytes(data)
        os.replace(new, path)
