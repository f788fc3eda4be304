"""``ckptmgr doctor``: explains a sick run and what would heal it, changing nothing."""

from typing import Annotated

import typer

from ckptmgr import diagnose
from ckptmgr.cli import policy
from ckptmgr.cli.output import AsJSON, emit, emit_json, progress, usage
from ckptmgr.cli.storing import Storage, TargetStorage, options_of_both
from ckptmgr.cli.target import DEFAULT_NAMING, RunURL, Template, folder, step_naming

Deep = Annotated[bool, typer.Option("--deep", help="Read every byte of every step and compare it with its checksum.")]
Grace = Annotated[str, typer.Option("--grace", metavar="TIME", help="What showed signs of life in this time may be alive.")]
Remote = Annotated[
    str | None,
    typer.Option("--remote", metavar="URL", help="The remote tier of the run: tell what it lacks.", show_default=False),
]


def doctor(
    url: RunURL,
    deep: Deep = False,
    remote: Remote = None,
    grace: Grace = "1h",
    template: Template = DEFAULT_NAMING,
    storage: Storage = None,
    remote_storage: TargetStorage = None,
    as_json: AsJSON = False,
) -> None:
    """Explain what is wrong with a run and what heals it.

    It tells what is lost, and the command that heals it. Nothing is changed. Exits with 1 if anything is to be healed; notes are
    no reason. It may run beside saves.
    """
    with usage("--grace"):
        grace_s = policy.duration(grace).total_seconds()
    naming, (options, remote_options) = step_naming(template), options_of_both(url, remote or url, storage, remote_storage)
    folder(url, options)
    with progress("read") as shown, usage("RUN"):
        found = diagnose(
            url,
            naming=naming,
            deep=deep,
            grace_s=grace_s,
            remote=remote,
            storage_options=options or None,
            remote_options=remote_options or None,
            progress=shown,
        )
    if as_json:
        emit_json(found.to_json())
    else:
        for line in (found.summary, *(line for finding in found.findings for line in finding.lines)):
            emit(line)
    if not found.ok:
        raise typer.Exit(1)
