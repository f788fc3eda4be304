"""The command ``ckptmgr``: looks at, checks, copies and tidies up runs and checkpoints, and shows one survive being killed."""

import sys

_MISSING: ModuleNotFoundError | None = None
try:
    from ckptmgr.cli.app import app
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("typer", "rich"):
        raise
    _MISSING = error


def main() -> None:
    """Runs the command line in `sys.argv` and ends the process: 0 done, 1 a problem was found or it failed, 2 wrong usage."""
    if _MISSING:
        print("ckptmgr: the command needs typer and rich: pip install 'ckptmgr[cli]'", file=sys.stderr)
        sys.exit(2)
    try:
        app()
    except KeyboardInterrupt:  # before any command has begun
        sys.exit(130)
