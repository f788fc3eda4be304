"""How the page writes numbers, sizes and times."""

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_CUT = 200


def size(nbytes: int) -> str:
    """A decimal size: ``"1.2 MB"``."""
    value, unit = float(nbytes), 0
    while value >= 999.95 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:,.1f} {_UNITS[unit]}" if unit else f"{nbytes} B"


def number(value: float | None, digits: int = 6) -> str:
    """A measured number with so many digits; what is not known as a dash."""
    if value is None:
        return "–"
    return f"{value:.{digits}g}" if math.isfinite(value) else "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"


def seconds(value: float | None) -> str:
    """A duration: ``"0.4 ms"``, ``"340 ms"``, ``"12.5 s"``, ``"3 min 20 s"``, ``"5 h 2 min"``, ``"3 d 4 h"``."""
    if value is None:
        return "–"
    if value < 0:
        return f"−{seconds(-value)}"
    if value < 60:
        digits = 1 if 0 < value < 0.01 else 0
        return f"{value * 1000:.{digits}f} ms" if value < 0.9995 else f"{value:.1f} s"
    whole = round(value)
    for unit, inner, length, below in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= length:
            rest = whole % length // below
            return f"{whole // length:,} {unit}" + (f" {rest} {inner}" if rest else "")
    raise AssertionError(value)


def percent(share: float) -> str:
    """A share: ``"12 %"``, ``"0.3 %"``, ``"under 0.1 %"``."""
    return "under 0.1 %" if 0 < share < 0.001 else f"{share * 100:.2g} %" if share < 0.995 else f"{share * 100:.0f} %"


def when(moment: datetime) -> str:
    """A time in UTC, to the second."""
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def counted(count: int, what: str) -> str:
    """A number of things: ``"1 step"``, ``"1,200 steps"``."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def shape(sizes: tuple[int, ...]) -> str:
    """A shape: ``"3 × 4"``, ``"scalar"``."""
    return " × ".join(map(str, sizes)) or "scalar"


def cut(value: Any) -> str:
    """The start of what somebody wrote, and how much it is."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _CUT else f"{text[:_CUT]}… ({len(text):,} characters)"


FILTERS: Mapping[str, Callable[..., str]] = {
    made.__name__: made for made in (size, number, seconds, percent, when, counted, shape, cut)
}
