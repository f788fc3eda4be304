"""What all commands have in common: how they end, and how they tell why.

The law: whatever happens, a person reads one line on standard error and a script an exit code, and neither sees a traceback.
0 is done, 1 a problem or a failure, 2 wrong usage, 130 interrupted (Ctrl-C). Where 1 is an answer, as of diff, a failure is 2.
"""

import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from typer.completion import get_completion_inspect_parameters
from typer.core import TyperGroup

from ckptmgr.cli.output import complain
from ckptmgr.errors import CheckpointError, MissingDependencyError

TRACEBACK = "CKPTMGR_TRACEBACK"  # in the environment: errors that nobody expected are shown in full
COMPLETE = "_CKPTMGR_COMPLETE"  # in the environment: a shell asks what may come next
INTERRUPTED = 130  # 128 and the number of SIGINT, as shells say it

# What messages of the library advise, and how that is said on the command line.
_OPTIONS = {
    "overwrite=True": "--overwrite",
    "storage_options={'follow_links': True}": "--storage-option follow_links=true",
    "storage_options={'client': 'fsspec'}": "--storage-option client=fsspec",
    "client='fsspec'": "--storage-option client=fsspec",
    "storage_options={'in_flight_nbytes': 8388608}": "--storage-option in_flight_nbytes=8388608",
    "storage_options={'account_name': ...}": "--storage-option account_name=...",
    "call sweep()": "run 'ckptmgr sweep'",
    "say to=": "say --to",
    "say select=": "say --select",
    "open one step's folder, or use CheckpointManager": "name its own folder",
}

ANSWERS = {"diff"}  # of these, 1 is no failure

UsageError: type[Any] = typer.BadParameter.__bases__[0]  # typer does not name it


class Commands(TyperGroup):
    """Ends the process with the exit code of a command, and tells errors and warnings in one line each."""

    _failure = 1  # the exit code of one

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """Runs the command line and ends the process."""
        if COMPLETE in os.environ:
            get_completion_inspect_parameters()  # which makes typer's shells known; its options are not ours
        with _told_in_lines():
            code = self._ended(*args, **options)
        sys.exit(code)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that ``ctx`` names."""
        try:
            return super().invoke(ctx)
        finally:
            self._failure = 2 if ctx.invoked_subcommand in ANSWERS else 1

    def _ended(self, *args: Any, **options: Any) -> int:
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
            sys.stdout.flush()  # here, where a full disk or a closed pipe can still be told
        except (typer.Abort, KeyboardInterrupt):  # the former is how some releases of typer say the latter
            code = INTERRUPTED
        except UsageError as error:
            return _told_usage(error)
        except (CheckpointError, OSError) as error:
            return 2 if _told(error) == 2 else self._failure
        except MemoryError:
            complain("not enough memory")
            return self._failure
        except Exception as error:  # a mistake of ours is no reason to fill somebody's screen
            if TRACEBACK in os.environ:
                raise
            complain(f"{type(error).__name__}: {error} (not expected; with {TRACEBACK}=1 it shows where it comes from)")
            return self._failure
        if code == INTERRUPTED:
            complain("interrupted: what was not finished does not appear; run the same command again")
        return code if isinstance(code, int) else 0


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\n".join(["\b", "Examples:" if len(lines) > 1 else "Example:", *(f"  {line}" for line in lines)])


def _told_usage(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # the help
        return 2
    text = in_options(error.format_message())
    where = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
    complain(f"{text[:1].lower()}{text[1:]}{where}")
    return 2


def _told(error: Exception) -> int:
    """One line about it; of a bare `OSError` what it says and of which file."""
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        _leave_unread()  # a reader that closed the pipe (`| head`) has seen enough
        return 1
    if isinstance(error, OSError) and not isinstance(error, CheckpointError) and error.strerror:
        complain(in_options(f"{error.filename}: {error.strerror}" if error.filename else error.strerror))
    else:
        complain(in_options(str(error) or type(error).__name__))
    _leave_unread_if_broken()
    return 2 if isinstance(error, MissingDependencyError) else 1


def in_options(text: str) -> str:
    """A message of the library as the command line says it: options for arguments, commands for methods."""
    for argument, option in _OPTIONS.items():
        text = text.replace(argument, option)
    return text


def _leave_unread_if_broken() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _leave_unread()


def _leave_unread() -> None:
    """What is still to be printed goes nowhere: Python would try once more at its end, and tell of that."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


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
