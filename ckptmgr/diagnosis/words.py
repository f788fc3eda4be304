"""Sizes, times and names in sentences for people."""

import os
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from ckptmgr.errors import shown
from ckptmgr.step import JSON

_UNITS = ("kB", "MB", "GB", "TB", "PB")


def sized(nbytes: int) -> str:
    """A size as a person reads it: ``"1.2 MB"``."""
    if nbytes < 1000:
        return counted(nbytes, "byte")
    power = min((len(str(nbytes)) - 1) // 3, len(_UNITS))
    return f"{nbytes / 1000**power:.1f} {_UNITS[power - 1]}"


def aged(seconds: float) -> str:
    """An age: ``"12 s"``, ``"5 min"``, ``"3 h"``, ``"9 days"``."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def at(moment: float) -> str:
    """A time in UTC, to the minute."""
    try:
        return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, OSError, ValueError):  # a time that no clock has told
        return f"second {moment:g}"


def counted(number: int, what: str) -> str:
    """A number of things: ``"1 file"``, ``"2 files"``."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def steps(numbers: Sequence[int]) -> str:
    """``"step 7"``, ``"steps 7, 8"``."""
    return f"step {numbers[0]}" if len(numbers) == 1 else f"steps {shown(numbers)}"


def written_by(writer: Mapping[str, JSON]) -> str:
    """Who a record says has written it, and whether that process is still there, as far as this machine can tell."""
    host, pid = writer.get("host"), writer.get("pid")
    if not isinstance(host, str) or type(pid) is not int or pid < 1:
        return "a process that did not tell its name"
    text = f"process {pid} on {host[:80]!r}"
    if host != socket.gethostname():
        return text
    try:
        os.kill(pid, 0)  # asks, and sends nothing
    except (ProcessLookupError, OverflowError):
        return f"{text} (this machine, where no such process runs)"
    except PermissionError:
        pass
    return f"{text} (this machine, where such a process runs)"
