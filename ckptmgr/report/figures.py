"""Figures as plain plotly specifications, made from facts. Colours are named by role; the page gives them to roles by its theme.

Plotly takes markup in labels, so whatever a run's writer chose is escaped here before it becomes one.
"""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ckptmgr.report.facts import MetricFacts, RunFacts, StepFacts, even
from ckptmgr.report.reading import BINS, Summary
from ckptmgr.report.shown import seconds
from ckptmgr.report.tensors import Inventory, TensorFacts
from ckptmgr.report.times import SaveFacts, TimeFacts

MOST_MARKS = 400  # marks of one kind in one figure
MOST_BARS = 200
MOST_BANDS = 200
MOST_LEVELS = 5
MOST_TILES = 150  # that are shown at once, all levels of them
LABEL_WIDTH = 60
_EXACT = 1 << 53  # largest integer up to which a browser counts

MARKS = {  # title, plotly's symbol, and a character like it; those that matter most last, so that they lie on top
    "kept": ("kept", "circle", "●"),
    "foreign": ("of another tool", "triangle-up", "▲"),
    "dropped": ("would be dropped", "x-thin", "✕"),
    "pinned": ("pinned", "square", "■"),
    "newest": ("newest", "diamond", "◆"),
    "best": ("best", "star", "★"),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure: what plotly draws, and ``summary``, what it shows in words."""

    name: str
    summary: str
    data: tuple[dict[str, Any], ...]
    layout: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """What the page's script takes."""
        return {"data": list(self.data), "layout": self.layout, "summary": self.summary}


def label(text: str) -> str:
    """``text`` as plotly shows it and nothing else, cut to `LABEL_WIDTH`."""
    return html.escape(text if len(text) <= LABEL_WIDTH else f"{text[: LABEL_WIDTH - 1]}…", quote=False)


def metric(name: str, run: RunFacts, found: MetricFacts, summary: str) -> Figure:
    """A metric over steps, with a mark on each step and a band where saves are gone."""
    heights = dict(zip(found.steps, found.values, strict=True))
    points = sorted((number, _finite(heights[step])) for step in found.steps if (number := _number(step)) is not None)
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "meta": {"role": "line"},
        "name": "value",
        "showlegend": False,
        "hoverinfo": "skip" if len(points) <= MOST_MARKS else "x+y",
    }
    marked = [step for step in run.steps if step.info.step in heights]
    layout = {**_axes("step", ""), "shapes": _bands(run), "showlegend": False}
    return Figure(name, summary, (line, *_marks(marked, heights, is_full=len(points) <= MOST_MARKS)), layout)


def sizes(run: RunFacts, summary: str) -> Figure:
    """What each step takes: files of its own, and those that it shares with older ones."""
    steps = run.steps[-MOST_BARS:]
    common = {"type": "bar", "x": [label(str(step.info.step)) for step in steps], "hovertemplate": "step %{x}: %{y:.4s}B"}
    own = {**common, "y": [step.own_nbytes for step in steps], "name": "its own", "meta": {"role": "line"}}
    shared = {**common, "y": [step.info.nbytes - step.own_nbytes for step in steps], "name": "shared", "meta": {"role": "muted"}}
    layout = {**_axes("step", "bytes"), "barmode": "stack", "legend": _LEGEND}
    layout["xaxis"] = {**layout["xaxis"], "type": "category", "nticks": 8}
    return Figure("sizes", summary, (own, shared) if any(shared["y"]) else ({**own, "showlegend": False},), layout)


def stored(run: RunFacts, summary: str) -> Figure:
    """Bytes of the steps that are there, added up over time, beside an estimate of all saves."""
    steps = sorted((step for step in run.steps), key=lambda step: step.info.created)
    each = run.gone_nbytes // run.gone if run.gone else 0
    there, ever = 0, 0
    sums: list[tuple[str, int, int]] = []
    for step in steps:
        there += step.own_nbytes
        ever += step.own_nbytes + step.gone_before * each
        sums.append((step.info.created.isoformat(), there, ever))
    common = {"type": "scatter", "mode": "lines", "x": [x for x, _, _ in sums], "hovertemplate": "%{x}: %{y:.4s}B"}
    now = {**common, "y": [y for _, y, _ in sums], "name": "steps that are there", "meta": {"role": "line"}, "fill": "tozeroy"}
    total = {**common, "y": [y for _, _, y in sums], "name": "all saves (estimate)", "meta": {"role": "muted"}}
    layout = {**_axes("time (UTC)", "bytes"), "legend": _LEGEND}
    layout["xaxis"] = {**layout["xaxis"], "type": "date", "nticks": 4, "tickangle": 0}
    begun, ended = steps[0].info.created, steps[-1].info.created
    if begun < ended:  # the last save is a step up, too, and not the edge
        layout["xaxis"]["range"] = [begun.isoformat(), (ended + (ended - begun) / 25).isoformat()]
    data = [{**trace, "line": {"shape": "hv"}} for trace in ((total, now) if run.gone else ({**now, "showlegend": False},))]
    return Figure("stored", summary, tuple(data), layout)


def intervals(steps: Sequence[StepFacts], summary: str) -> Figure:
    """The time between saves, over steps."""
    points = [(x, step.interval_s) for step in steps if (x := _number(step.info.step)) is not None]
    unit, length = _unit([height for _, height in points if height is not None])
    shown = [(x, None if height is None else height / length) for x, height in points]
    line = {**_line(shown), "hovertext": [seconds(height) for _, height in points]}
    return Figure(
        "intervals", summary, ({**line, "hovertemplate": "step %{x}: %{hovertext}<extra></extra>"},), _axes("step", unit)
    )


def durations(found: TimeFacts, summary: str) -> Figure:
    """What each save took: the part that blocked training, and what went on in the background after that."""
    saves = found.saves[-MOST_BARS:]
    unit, length = _unit([save.took for save in saves])
    parts = [("training was blocked", "best", [save.blocked for save in saves])]
    if found.is_background:
        parts += [("waited in the background", "muted", [save.waited for save in saves])]
        parts += [("written in the background", "line", [save.written for save in saves])]
    data = [
        {
            "type": "bar",
            "x": [label(str(save.step.info.step)) for save in saves],
            "y": [height / length for height in heights],
            "name": name,
            "meta": {"role": role},
            "hovertext": [seconds(height) for height in heights],
            "hovertemplate": f"step %{{x}}: {name} %{{hovertext}}<extra></extra>",
            "showlegend": True,
        }
        for name, role, heights in parts
    ]
    layout = {**_axes("step", unit), "barmode": "stack", "legend": _LEGEND}
    layout["xaxis"] = {**layout["xaxis"], "type": "category", "nticks": 8}
    return Figure("durations", summary, tuple(data), layout)


def throughput(saves: Sequence[SaveFacts], summary: str) -> Figure:
    """Bytes a second, over steps, while each was written."""
    points = [(x, save.rate) for save in saves if (x := _number(save.step.info.step)) is not None]
    line = {**_line(sorted(points)), "hovertemplate": "step %{x}: %{y:.4s}B/s<extra></extra>"}
    layout = _axes("step", "bytes/s")
    layout["yaxis"]["rangemode"] = "tozero"
    return Figure("throughput", summary, (line,), layout)


def treemap(found: Inventory, summary: str) -> Figure:
    """Tensors by size, in the tree that their names spell, coloured by dtype."""
    joint = "/" if any("/" in tensor.name for tensor in found.tensors) else "."
    tones = {dtype: tone for tone, (dtype, _, _) in enumerate(found.by_dtype)}
    root: list[Any] = ["all tensors", "", found.nbytes, -1, ""]
    tiles, branches = [root], {}
    for tensor in found.tensors:
        *above, last = _levels(tensor, joint)
        parent = 0
        for depth in range(len(above)):
            key = tuple(above[: depth + 1])
            if key not in branches:
                branches[key] = len(tiles)
                tiles.append([above[depth] + joint, str(parent), 0, -1, ""])
            parent = branches[key]
            tiles[parent][2] += tensor.nbytes
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        tiles.append([last, str(parent), tensor.nbytes, tones[tensor.dtype], f"{tensor.dtype} {shape}"])
    if found.others:
        tiles.append([f"{found.others} smaller ones", "0", found.others_nbytes, -1, ""])
    trace = {
        "type": "treemap",
        "ids": [str(index) for index in range(len(tiles))],
        "labels": [label(tile[0]) for tile in tiles],
        "parents": [tile[1] for tile in tiles],
        "values": [tile[2] for tile in tiles],
        "text": [tile[4] for tile in tiles],
        "branchvalues": "total",
        "texttemplate": "%{label}<br>%{text}",
        "hovertemplate": "%{label}<br>%{text}<br>%{value:.4s}B (%{percentRoot:.1%})<extra></extra>",
        "maxdepth": -1 if len(tiles) <= MOST_TILES else 3,
        "meta": {"role": "tiles", "tones": [tile[3] for tile in tiles]},
    }
    return Figure("tensors", summary, (trace,), {"margin": {"l": 0, "r": 0, "t": 28, "b": 0}})


def norms(name: str, found: Sequence[tuple[int, Summary]], summary: str) -> Figure:
    """The L2 norm of a tensor over steps."""
    points = [(x, each.norm) for step, each in found if (x := _number(step)) is not None]
    return Figure(name, summary, (_line(points),), _axes("step", "L2 norm"))


def histogram(name: str, found: Sequence[tuple[int, Summary]], summary: str) -> Figure:
    """How the values of a tensor lie at the first and the last of the steps that were read."""
    ends = [found[-1]] if len(found) == 1 else [found[0], found[-1]]
    roles = ["line"] if len(ends) == 1 else ["muted", "line"]
    traces = []
    for (step, each), role in zip(ends, roles, strict=True):
        if not each.counts or each.lowest is None or each.highest is None:
            continue
        low, width = (
            (each.lowest, (each.highest - each.lowest) / BINS) if each.highest > each.lowest else (each.lowest - 0.5, 1 / BINS)
        )
        total = sum(each.counts)
        x = [low + width * edge for edge in range(BINS + 1)]
        y = [count / total for count in each.counts]
        traces.append({"type": "scatter", "mode": "lines", "x": x, "y": [*y, y[-1]], "line": {"shape": "hv"}, "fill": "tozeroy"})
        traces[-1] |= {"name": f"step {step}", "meta": {"role": role}, "hovertemplate": "%{x:.4g}: %{y:.1%}"}
    layout = {**_axes("value", "share"), "legend": _LEGEND}
    layout["yaxis"] = {**layout["yaxis"], "tickformat": ".0%", "rangemode": "tozero"}
    return Figure(name, summary, tuple(traces), layout)


def _line(points: Sequence[tuple[int, float | None]]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(points) <= MOST_MARKS else "lines",
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "meta": {"role": "line"},
        "showlegend": False,
    }


_LEGEND = {"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"}


def _unit(durations: Sequence[float]) -> tuple[str, float]:
    """The unit that durations are shown in, and its length in seconds."""
    most = max(map(abs, durations), default=0.0)
    units = {"days": 86_400.0, "hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
    return next(((name, length) for name, length in units.items() if most >= 2 * length), ("milliseconds", 0.001))


def _axes(x: str, y: str) -> dict[str, Any]:
    sizes = {"tickformat": "~s", "ticksuffix": y.replace("bytes", "B")} if y in ("bytes", "bytes/s") else {}
    xaxis = {"title": {"text": x}, "nticks": 6, "automargin": True}
    yaxis = {"title": {"text": "" if sizes else y}, "nticks": 6, "automargin": True, "exponentformat": "e", **sizes}
    return {"xaxis": xaxis, "yaxis": yaxis}


def _marks(steps: Sequence[StepFacts], heights: dict[int, float], *, is_full: bool) -> Iterable[dict[str, Any]]:
    for mark, (title, symbol, _) in MARKS.items():
        chosen = [step for step in steps if step.mark == mark]
        if not chosen or (mark == "kept" and not is_full):
            continue
        shown = [chosen[index] for index in even(len(chosen), MOST_MARKS)]
        points = [(number, step) for step in shown if (number := _number(step.info.step)) is not None]
        yield {
            "type": "scatter",
            "mode": "markers",
            "x": [number for number, _ in points],
            "y": [_finite(heights[step.info.step]) for _, step in points],
            "text": [label("; ".join(step.reasons)) for _, step in points],
            "name": title,
            "marker": {"symbol": symbol},
            "meta": {"role": mark},
            "hovertemplate": "step %{x}: %{y:.6g}<br>%{text}<extra></extra>",
        }


def _bands(run: RunFacts) -> list[dict[str, Any]]:
    """A rectangle between two steps where saves are gone: that is all that is known of where they were."""
    bands: list[dict[str, Any]] = []
    for before, step in zip([None, *run.steps], run.steps, strict=False):
        x0, x1 = _number(before.info.step) if before else 0, _number(step.info.step)
        if step.gone_before and x0 is not None and x1 is not None and x0 < x1:
            bands.append({"type": "rect", "x0": x0, "x1": x1, "y0": 0, "y1": 1, "yref": "paper", "layer": "below"})
    return bands[-MOST_BANDS:]


def _levels(tensor: TensorFacts, joint: str) -> list[str]:
    parts = tensor.name.split(joint)
    return parts if len(parts) <= MOST_LEVELS else [*parts[: MOST_LEVELS - 1], joint.join(parts[MOST_LEVELS - 1 :])]


def _number(step: int) -> int | None:
    return step if abs(step) <= _EXACT else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
