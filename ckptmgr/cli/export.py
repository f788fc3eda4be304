"""``ckptmgr export``: a step as the files that one tool expects by name."""

from typing import Annotated

import typer

from ckptmgr import export
from ckptmgr.cli.convert import Cast, Rename, RuleSets, emit_report, pair
from ckptmgr.cli.output import AsJSON, emit_json, progress, usage
from ckptmgr.cli.storing import Storage, TargetStorage, options_of_both
from ckptmgr.cli.target import DEFAULT_NAMING, StepNumber, TargetURL, Template, checkpoint, folder
from ckptmgr.exportforms import TOOLS, Tool

Destination = Annotated[str, typer.Argument(metavar="DST", help="A folder, or the name of one file.", show_default=False)]
To = Annotated[str, typer.Option("--to", metavar="TOOL", help=f"Who is to open it: {', '.join(TOOLS)}.", show_default=False)]
Select = Annotated[
    list[str] | None,
    typer.Option(
        "--select", metavar="GLOB", help="Which part of the state; by default the model, for tf all.", show_default=False
    ),
]
KeepPrefix = Annotated[bool, typer.Option("--keep-prefix", help="Leave 'model/' in the names that --select 'model/*' gives.")]
Shard = Annotated[
    str | None,
    typer.Option("--max-shard-size", metavar="SIZE", help="Most in one file; for hf and torch 5GB.", show_default=False),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files of the same names in DST.")]


def export_step(
    src: TargetURL,
    dst: Destination,
    to: To,
    step: StepNumber = None,
    select: Select = None,
    keep_prefix: KeepPrefix = False,
    rename: Rename = None,
    rules: RuleSets = None,
    cast: Cast = None,
    shard: Shard = None,
    overwrite: Overwrite = False,
    template: Template = DEFAULT_NAMING,
    storage: Storage = None,
    target_storage: TargetStorage = None,
    as_json: AsJSON = False,
) -> None:
    """Write a step as the files that a tool expects by name.

    The tools are Keras, TensorFlow (tf), Hugging Face (hf) and PyTorch (torch). What is written has been compared with the
    checksums of the step before it appears. Options of lists may be given several times; --rules come before --rename, and both
    work on names without the prefix of --select.
    """
    pairs = [pair("--rename", rule) for rule in rename or ()]
    dtypes = dict(pair("--cast", each) for each in cast or ())
    source_options, options = options_of_both(src, dst, storage, target_storage)
    folder(dst, options)
    with checkpoint(src, step, template, source_options) as opened, progress("export") as shown, usage("export"):
        report = export(
            opened,
            dst,
            to=_tool(to),
            select=select or None,
            strip=not keep_prefix,
            rename=[*(rules or ()), *pairs],
            cast=dtypes or None,
            max_shard_size=shard,
            overwrite=overwrite,
            dst_options=options or None,
            progress=shown,
        )
    if as_json:
        emit_json(report.to_json())
    else:
        emit_report(report)


def _tool(text: str) -> Tool:
    found: Tool | None = next((tool for tool in TOOLS if tool == text), None)
    if found is None:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(TOOLS)}", param_hint="--to")
    return found
