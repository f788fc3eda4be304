"""``ckptmgr convert``: a checkpoint of one format becomes one of another."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from ckptmgr import CheckpointManager, ConvertReport, convert
from ckptmgr.cli.completing import formats, steps
from ckptmgr.cli.output import AsJSON, Report, counted, emit, emit_json, progress, size, usage
from ckptmgr.cli.storing import Storage, TargetStorage, options_of_both
from ckptmgr.cli.target import DEFAULT_NAMING, Template, checkpoint, folder, step_naming

Source = Annotated[
    str, typer.Argument(metavar="SRC", help="A run, a step's folder, or a checkpoint of any tool.", show_default=False)
]
Destination = Annotated[
    str, typer.Argument(metavar="DST", help="A new file, a folder ending in '/', or with --step a run.", show_default=False)
]
To = Annotated[
    str | None,
    typer.Option(
        "--to", metavar="FORMAT", help="The new format; by default what DST ends in.", show_default=False, autocompletion=formats
    ),
]
FromStep = Annotated[
    int | None,
    typer.Option(
        "--from-step", min=0, help="A step of the run SRC; by default the newest.", show_default=False, autocompletion=steps
    ),
]
Step = Annotated[int | None, typer.Option("--step", min=0, help="Commit it as this step of the run DST.", show_default=False)]
Select = Annotated[list[str] | None, typer.Option("--select", metavar="GLOB", help="Take only these names.", show_default=False)]
Rename = Annotated[
    list[str] | None,
    typer.Option("--rename", metavar="OLD=NEW", help="What names begin with, and should begin with.", show_default=False),
]
RuleSets = Annotated[
    list[str] | None,
    typer.Option(
        "--rules", metavar="FILE", help="A file of rules, TOML or YAML, or a set such as keras-to-torch.", show_default=False
    ),
]
Cast = Annotated[
    list[str] | None, typer.Option("--cast", metavar="GLOB=DTYPE", help="New dtypes for these names.", show_default=False)
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at DST.")]


def convert_checkpoint(
    src: Source,
    dst: Destination,
    to: To = None,
    from_step: FromStep = None,
    step: Step = None,
    select: Select = None,
    rename: Rename = None,
    rules: RuleSets = None,
    cast: Cast = None,
    overwrite: Overwrite = False,
    template: Template = DEFAULT_NAMING,
    storage: Storage = None,
    target_storage: TargetStorage = None,
    as_json: AsJSON = False,
) -> None:
    """Write a checkpoint in another format, or as a step of a run.

    Tells what became of everything in it. What is written has been compared with the checksums of SRC before it appears.
    --select, --rename, --rules and --cast may be given several times; --rules come before --rename.
    """
    pairs = [pair("--rename", rule) for rule in rename or ()]
    dtypes = dict(pair("--cast", each) for each in cast or ())
    source_options, options = options_of_both(src, dst, storage, target_storage)
    folder(dst, options)
    with checkpoint(src, from_step, template, source_options) as opened, progress("convert") as shown, usage("convert"):
        where = dst if step is None else _run(dst, to, template, options, shown)
        report = convert(
            opened,
            where,
            to=to if step is None else None,
            step=step,
            rename=[*(rules or ()), *pairs],
            select=select or None,
            cast=dtypes or None,
            overwrite=overwrite,
            dst_options=options if step is None and options else None,
            progress=shown,
        )
    if as_json:
        emit_json(report.to_json())
    else:
        emit_report(report)


def _run(url: str, to: str | None, template: str, options: Mapping[str, Any], shown: Report | None) -> CheckpointManager:
    naming = step_naming(template)
    return CheckpointManager(url, backend=to or "safetensors", naming=naming, progress=shown, storage_options=options or None)


def pair(option: str, text: str) -> tuple[str, str]:
    """The two sides of an option's ``a=b``. Raises BadParameter."""
    old, equals, new = text.partition("=")
    if not equals or not old:
        raise typer.BadParameter(f"{text!r} is no pair with '=' between", param_hint=option)
    return old, new


def emit_report(report: ConvertReport) -> None:
    """What a conversion did, for people."""
    for line in str(report).splitlines():
        emit(line)
    seconds = report.stats.seconds
    speed = f", {size(int(report.nbytes / seconds))}/s" if seconds > 0 else ""
    emit(f"{counted(len(report.files), 'file')}, {size(report.nbytes)} of tensors in {seconds:.1f} s{speed}")
    for file in report.files:
        emit(f"  {file}")
