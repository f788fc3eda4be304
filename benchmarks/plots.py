"""Bars of every case, and lines over sizes for `scaling`: medians, with a line from the least to the most."""

import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import shown, spread

OURS, OTHERS, LIMIT = "#1b6ca8", "#b8bec6", "#e08a2c"


def write(name: str, results: Mapping[str, Any], path: Path) -> None:
    """One SVG for a benchmark; equal results give equal bytes."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 8}
    figure = (lines if name == "scaling" else bars)(results["cases"])
    figure.savefig(path, format="svg", metadata={"Date": None}, bbox_inches="tight")


def bars(cases: list[Mapping[str, Any]]) -> Any:
    """One row of bars for each case."""
    from matplotlib.figure import Figure

    counts = [len(case["rows"]) for case in cases]
    figure = Figure(figsize=(8, 0.2 * sum(counts) + 0.65 * len(cases)))
    axes = figure.subplots(len(cases), 1, squeeze=False, gridspec_kw={"height_ratios": [count + 1 for count in counts]})[:, 0]
    for case, axis in zip(cases, axes, strict=True):
        names = [row["who"] for row in case["rows"]]
        found = [[1e3 * value for value in spread(row["seconds"])] for row in case["rows"]]
        middles = [each[0] for each in found]
        errors = [[each[0] - each[1] for each in found], [each[2] - each[0] for each in found]]
        color = [LIMIT if who == case["limit"] else OURS if who.startswith("ckptmgr") else OTHERS for who in names]
        axis.barh(range(len(names)), middles, xerr=errors, color=color, height=0.7, error_kw={"lw": 0.8})
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        # One that takes far longer than most would make all others look alike: its bar is cut, and its number tells.
        end = 1.15 * min(max(each[2] for each in found), 12 * min(middles) + 2 * statistics.median(middles))
        axis.set_xlim(0, end)
        for place, (middle, _, most) in enumerate(found):
            axis.text(min(most, end) + end / 100, place, shown(middle / 1e3) + " (cut)" * (middle > end), va="center", fontsize=7)
        axis.set_title(f"{case['case']} (ms)", loc="left", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def lines(cases: list[Mapping[str, Any]]) -> Any:
    """Throughput by size, and seconds of a listing by number of steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2))
    left, right = figure.subplots(1, 2)
    moved: dict[str, list[tuple[float, float]]] = {}
    listed: dict[str, list[tuple[float, float]]] = {}
    for case in cases:
        size = int(re.search(r"([\d,]+) (?:MiB|steps)", case["case"])[1].replace(",", ""))
        kind = re.split(r"[\d,]+ (?:MiB|steps)", case["case"])[0].rstrip(", ")
        for row in case["rows"]:
            median = statistics.median(row["seconds"])
            if case["nbytes"]:
                moved.setdefault(f"{kind}: {row['who']}", []).append((size, case["nbytes"] / median / 1e6))
            else:
                label = "from disk" if "not in memory" in case["case"] else "first"
                listed.setdefault(label, []).append((size, median * 1e3))
                if label == "first":
                    listed.setdefault("again", []).append((size, statistics.median(row["aside"]) * 1e3))
    for axis, found, x, y in ((left, moved, "MiB", "MB/s"), (right, listed, "steps", "ms to list")):
        for label, points in found.items():
            axis.plot(*zip(*points, strict=True), marker="o", ms=3, lw=1.2, label=label)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel(x)
        axis.set_ylabel(y)
        axis.legend(fontsize=6, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure
