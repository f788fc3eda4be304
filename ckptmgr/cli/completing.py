"""What a shell is offered while somebody types: the steps of a run, the names of formats.

Nothing but local folders is looked at, and whatever goes wrong there offers nothing and says nothing.
"""

import typer

from ckptmgr import backend
from ckptmgr.finding import Run
from ckptmgr.naming import StepNaming
from ckptmgr.storage import is_remote, open_folder


def steps(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The steps of the run that is named before, newest first, with what is known of them. Of a remote run none: nobody waits."""
    # Of an unfinished line, with an option that still lacks its value, nothing but the words is known.
    url = next((ctx.params[name] for name in ("url", "src") if ctx.params.get(name)), None) or next(iter(ctx.args), None)
    if url is None or is_remote(url):
        return []
    try:
        known = Run(open_folder(url), StepNaming(ctx.params.get("template") or StepNaming().template)).steps()
    except Exception:  # noqa: BLE001 - nobody asked for anything that could fail
        return []
    found = [(str(info.step), f"{info.created:%Y-%m-%d %H:%M}") for info in (each.info for each in reversed(known.known))]
    return [each for each in found if each[0].startswith(incomplete)]


def formats(incomplete: str) -> list[str]:
    """The names of formats that can be written."""
    return [name for name in sorted(backend.available()) if name.startswith(incomplete)]
