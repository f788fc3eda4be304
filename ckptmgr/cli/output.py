"""How the command prints: plain aligned text or JSON on standard output, everything else on standard error.

Names and metadata come from files that others wrote, so control characters in them are shown and never sent to a terminal.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, TypeAlias

import typer
from rich import filesize
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, Task, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from ckptmgr.errors import CheckpointError
from ckptmgr.retention import Plan
from ckptmgr.step import JSON, StepInfo

Report: TypeAlias = Callable[[int, int], None]  # bytes done, bytes in all
AsJSON = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def emit(text: str = "") -> None:
    """One line on standard output."""
    print(printable(text))


def complain(text: str) -> None:
    """One line on standard error."""
    print(f"ckptmgr: {printable(' '.join(text.split()))}", file=sys.stderr)


def emit_json(value: JSON) -> None:
    """A JSON document on standard output; numbers that JSON has not are written as their names."""
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def emit_table(titles: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str] = ()) -> None:
    """Rows in aligned columns on standard output; columns named in ``numbers`` are aligned right."""
    # In a pipe a line is a step: nothing is wrapped to a width that nobody has.
    width = None if sys.stdout.isatty() else 10_000
    console = Console(width=width, markup=False, highlight=False, emoji=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, justify="right" if title in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    console.print(table)


@contextmanager
def progress(title: str) -> Iterator[Report | None]:
    """Shows a bar while the block runs, if a person is watching; gives what the library calls with bytes done and in all."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), _Speed(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Speed(TransferSpeedColumn):
    """Bytes a second of late; of what was done in one go, which nothing is known between, bytes a second since it began."""

    def render(self, task: Task) -> Text:
        took_s = task.finished_time or task.elapsed
        if task.finished_speed or task.speed or not (task.completed and took_s):
            return super().render(task)
        return Text(f"{size(round(task.completed / took_s))}/s", style="progress.data.speed")


@contextmanager
def usage(option: str) -> Iterator[None]:
    """A value that the library refuses is an error of usage, of that option or argument."""
    try:
        yield
    except CheckpointError:
        raise
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def printable(text: str) -> str:
    """``text`` with control characters, and what cannot be encoded, shown as escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def size(nbytes: int) -> str:
    """A size as a person reads it: ``"1.2 MB"``."""
    return filesize.decimal(nbytes)


def counted(number: int, what: str) -> str:
    """A number of things: ``"1 file"``, ``"2 files"``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def when(moment: datetime) -> str:
    """A time in UTC, to the second."""
    return f"{moment:%Y-%m-%d %H:%M:%S}Z"


def metrics(values: Mapping[str, float]) -> str:
    """Metrics on one line."""
    return "  ".join(f"{name}={value:.6g}" for name, value in values.items())


def duration(seconds: float | None) -> str:
    """Seconds as a person reads them: ``"0.034 s"``, ``"12.5 s"``, ``"3:20 min"``; of what is not known a dash."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.3f} s" if seconds < 10 else f"{seconds:.1f} s"
    whole = round(seconds)
    minutes = f"{whole % 3600 // 60:02}:{whole % 60:02}"
    return f"{whole // 3600}:{minutes} h" if whole >= 3600 else f"{minutes.removeprefix('0')} min"


def rate(info: StepInfo) -> str:
    """Bytes a second while the step was written, as its record tells; a dash if it does not."""
    found = info.stats.throughput(info.nbytes) if info.stats else None
    return "-" if found is None else f"{size(round(found))}/s"


def origin(info: StepInfo) -> str:
    """The format of a step, and whether another tool wrote it."""
    return f"{info.backend} (foreign)" if info.is_foreign else info.backend


def step_json(info: StepInfo) -> dict[str, JSON]:
    """All that is known of a step."""
    return {
        "step": info.step,
        "created": info.created.isoformat(),
        "sequence": info.sequence,
        "run": info.run,
        "attempt": info.attempt,
        "backend": info.backend,
        "nbytes": info.nbytes,
        "metrics": dict(info.metrics),
        "metadata": dict(info.metadata),
        "pins": sorted(info.pins),
        "name": info.name,
        "path": info.path,
        "is_foreign": info.is_foreign,
        "stats": info.stats and info.stats.to_json(),
    }


def plan_rows(plan: Plan) -> Iterator[tuple[str, str, str, str, str]]:
    """A plan for a table: verdict, step, time, size, reasons."""
    for verdict in plan:
        info = verdict.info
        yield (
            "keep" if verdict.keep else "drop",
            str(info.step),
            when(info.created),
            size(info.nbytes),
            "; ".join(verdict.reasons),
        )


def plan_json(plan: Plan) -> list[JSON]:
    """A plan's verdicts with their reasons."""
    return [{"keep": verdict.keep, "reasons": list(verdict.reasons), **step_json(verdict.info)} for verdict in plan]


def _finite(value: Any) -> JSON:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
