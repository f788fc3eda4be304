"""The commands put together, each with an example or two of its use."""

from importlib.metadata import version
from typing import Annotated

import typer

from ckptmgr.cli import (
    adopt,
    completion,
    convert,
    copying,
    deleting,
    demo,
    diff,
    doctor,
    export,
    listing,
    migration,
    report,
    retain,
    show,
    verify,
)
from ckptmgr.cli.frame import Commands, examples
from ckptmgr.cli.output import emit

app = typer.Typer(
    name="ckptmgr",
    cls=Commands,
    help="Looks at runs and checkpoints, checks, copies, converts and migrates them, tidies up.\n\n"
    "A run is a folder of steps, a path or a URL such as s3://bucket/run. With --json a command prints one JSON document. "
    "Exit codes: 0 done, 1 a problem or a failure, 2 wrong usage, 130 interrupted; of diff 0 same, 1 different, 2 a failure.",
    epilog=examples("ckptmgr ls run-1", "ckptmgr show run-1 --step 500", "ckptmgr demo"),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("ls", epilog=examples("ckptmgr ls run-1", "ckptmgr ls s3://bucket/run-1 --json"))(listing.list_steps)
app.command("show", epilog=examples("ckptmgr show run-1 --step 500", "ckptmgr show model.safetensors"))(show.show)
app.command("verify", epilog=examples("ckptmgr verify run-1", "ckptmgr verify s3://bucket/run-1 --step 500"))(verify.verify)
app.command("doctor", epilog=examples("ckptmgr doctor run-1", "ckptmgr doctor s3://bucket/run-1 --deep"))(doctor.doctor)
app.command("cp", epilog=examples("ckptmgr cp run-1 s3://bucket/run-1", "ckptmgr cp run-1 /backup/run-1 --latest"))(copying.copy)
app.command(
    "convert", epilog=examples("ckptmgr convert run-1 model.h5", "ckptmgr convert model.pt model.safetensors --cast '*=bfloat16'")
)(convert.convert_checkpoint)
app.command("diff", epilog=examples("ckptmgr diff run-1 --steps 100 200", "ckptmgr diff model.h5 model.safetensors"))(
    diff.show_differences
)
app.command("export", epilog=examples("ckptmgr export run-1 model --to hf", "ckptmgr export run-1 net.pt --to torch --step 500"))(
    export.export_step
)
app.command("adopt", epilog=examples("ckptmgr adopt run-1 --dry-run", "ckptmgr adopt run-1 --step 500"))(adopt.adopt_steps)
app.command("migrate", epilog=examples("ckptmgr migrate old new", "ckptmgr migrate old new --to hdf5 --steps 100,300"))(
    migration.migrate_run
)
app.command("report", epilog=examples("ckptmgr report run-1", "ckptmgr report run-1 --compare 300 500"))(report.report)
app.command("gc", epilog=examples("ckptmgr gc run-1 --keep-last 3 --dry-run", "ckptmgr gc run-1 --keep-best val_loss:min"))(
    retain.collect
)
app.command("delete", epilog=examples("ckptmgr delete run-1 500 600", "ckptmgr delete run-1 7 --dry-run"))(deleting.delete_steps)
app.command("pin", epilog=examples("ckptmgr pin run-1 500 paper"))(retain.pin)
app.command("unpin", epilog=examples("ckptmgr unpin run-1 500 paper"))(retain.unpin)
app.command("sweep", epilog=examples("ckptmgr sweep run-1", "ckptmgr sweep run-1 --grace 10m"))(retain.sweep)
app.command("demo", epilog=examples("ckptmgr demo", "ckptmgr demo --kills 3 --keep runs"))(demo.demo)
app.command("completion", epilog=examples('eval "$(ckptmgr completion bash)"', "ckptmgr completion fish"))(completion.completion)


def _print_version(wanted: bool) -> None:
    if wanted:
        emit(f"ckptmgr {version('ckptmgr')}")
        raise typer.Exit


@app.callback()
def _options(
    is_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
