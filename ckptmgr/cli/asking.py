"""A question before anything is deleted, and the options that answer it."""

import sys
from typing import Annotated

import typer

from ckptmgr.cli.output import complain

Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def confirm(question: str, yes: bool) -> None:
    """Goes on if ``yes`` is set or a person says so.

    Raises:
        BadParameter: nobody is there to be asked.
        Exit: the answer was no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody is there to ask: pass --yes to delete, or --dry-run to look", param_hint="--yes")
    print(f"{question} [y/N]: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        complain("nothing was deleted")
        raise typer.Exit(1)
