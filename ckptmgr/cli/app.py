"""The commands put together, and what happens when one fails: a line on standard error and an exit code, never a traceback."""

import errno
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ckptmgr.cli import adopt, convert, copying, demo, diff, doctor, export, listing, migration, report, retain, show, verify
from ckptmgr.cli.output import complain, emit
from ckptmgr.errors import CheckpointError, MissingDependencyError


class Commands(TyperGroup):
    """Tells errors and warnings of the library in one line each."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that ``ctx`` names."""
        with _told_in_lines():
            try:
                return super().invoke(ctx)
            except (CheckpointError, OSError) as error:
                # A reader that closed the pipe (`| head`) has seen enough: typer ends quietly.
                if isinstance(error, OSError) and error.errno == errno.EPIPE:
                    raise
                complain(_told(error))
                # Of diff, 1 is an answer.
                is_two = isinstance(error, MissingDependencyError) or ctx.invoked_subcommand == "diff"
                raise typer.Exit(2 if is_two else 1) from error


app = typer.Typer(
    name="ckptmgr",
    cls=Commands,
    help="Looks at runs and checkpoints, checks, copies, converts and migrates them, tidies up. "
    "Exit codes: 0 done, 1 a problem or a failure, 2 wrong usage; of diff: 0 the same, 1 different, 2 a failure or wrong usage.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("ls")(listing.list_steps)
app.command("show")(show.show)
app.command("verify")(verify.verify)
app.command("doctor")(doctor.doctor)
app.command("cp")(copying.copy)
app.command("convert")(convert.convert_checkpoint)
app.command("diff")(diff.show_differences)
app.command("export")(export.export_step)
app.command("adopt")(adopt.adopt_steps)
app.command("migrate")(migration.migrate_run)
app.command("report")(report.report)
app.command("gc")(retain.collect)
app.command("pin")(retain.pin)
app.command("unpin")(retain.unpin)
app.command("sweep")(retain.sweep)
app.command("demo")(demo.demo)


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


def _told(error: Exception) -> str:
    """The error's message; of a bare `OSError`, what it says and of which file."""
    if isinstance(error, OSError) and not isinstance(error, CheckpointError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        complain(f"{record.levelname.lower()}: {record.getMessage()}")


@contextmanager
def _told_in_lines() -> Iterator[None]:
    """Warnings and log records of the library go to standard error, each as one line."""
    log, lines = logging.getLogger("ckptmgr"), _Lines(logging.WARNING)
    log.addHandler(lines)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *where, **more: complain(f"warning: {message}")
            yield
    finally:
        log.removeHandler(lines)
