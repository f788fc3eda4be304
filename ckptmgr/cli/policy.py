"""Retention as options of the command line: ``--keep-last 3 --keep-best val_loss:min:2``."""

import functools
import operator
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Literal, TypeVar, cast

import typer

from ckptmgr import KeepBest, KeepBytes, KeepEvery, KeepEveryInterval, KeepLast, KeepWithin, Retention
from ckptmgr.cli.output import usage

Value = TypeVar("Value")

Last = Annotated[int | None, typer.Option("--keep-last", metavar="N", help="The N steps saved last.", show_default=False)]
Every = Annotated[
    int | None, typer.Option("--keep-every", metavar="STEPS", help="The first of every so many steps.", show_default=False)
]
Interval = Annotated[
    str | None, typer.Option("--keep-interval", metavar="TIME", help="The first of every 30m, 6h, 1d.", show_default=False)
]
Within = Annotated[
    str | None,
    typer.Option("--keep-within", metavar="TIME", help="Those saved within 30m, 6h, 1d of the newest.", show_default=False),
]
Best = Annotated[
    list[str] | None,
    typer.Option(
        "--keep-best",
        metavar="METRIC[:MODE[:N]]",
        help="The N best by a metric, mode min or max; repeatable.",
        show_default=False,
    ),
]
Bytes = Annotated[
    str | None, typer.Option("--keep-bytes", metavar="SIZE", help="The newest that fit in 500MB, 20GB, 1TiB.", show_default=False)
]

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_BYTES = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power for power, letter in enumerate("kMGT", 1) for suffix, base in (("B", 1000), ("iB", 1024))
}


def retention(
    last: int | None, every: int | None, interval: str | None, within: str | None, best: list[str] | None, most: str | None
) -> Retention:
    """The policies of all options that were given, joined; none at all is an error of usage."""
    policies: list[Retention] = [
        *_made("--keep-last", KeepLast, last),
        *_made("--keep-every", KeepEvery, every),
        *_made("--keep-interval", lambda text: KeepEveryInterval(duration(text)), interval),
        *_made("--keep-within", lambda text: KeepWithin(duration(text)), within),
        *(policy for text in best or () for policy in _made("--keep-best", keep_best, text)),
        *_made("--keep-bytes", lambda text: KeepBytes(nbytes(text)), most),
    ]
    if not policies:
        raise typer.BadParameter("say what to keep, e.g. --keep-last 3 (the newest and pinned steps always stay)")
    return functools.reduce(operator.or_, policies)


def keep_best(text: str) -> KeepBest:
    """``METRIC[:MODE[:N]]``; a metric whose name has colons needs its mode."""
    found = re.fullmatch(r"(.+):(min|max)(?::(\d+))?|[^:]+", text)
    if not found:
        raise ValueError(f"expected METRIC[:min|max[:N]], not {text!r}")
    return KeepBest(found[1] or text, n=int(found[3] or 1), mode=cast(Literal["min", "max"], found[2] or "min"))


def duration(text: str) -> timedelta:
    """``90``, ``90s``, ``15m``, ``6h``, ``7d``, ``2w``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", text)
    if not found:
        raise ValueError(f"expected a time such as 30m, 6h or 1d, not {text!r}")
    return timedelta(seconds=float(found[1]) * _SECONDS[found[2]])


def nbytes(text: str) -> int:
    """``500MB`` (decimal), ``1GiB`` (binary), or plain bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?i?B?)", text)
    if not found or found[2] not in _BYTES:
        raise ValueError(f"expected a size such as 500MB, 20GB or 1TiB, not {text!r}")
    return int(float(found[1]) * _BYTES[found[2]])


def _made(option: str, make: Callable[[Value], Retention], value: Value | None) -> list[Retention]:
    with usage(option):
        return [] if value is None else [make(value)]
