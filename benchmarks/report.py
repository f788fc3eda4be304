"""What was measured, as tables for people and as JSON for programs; nothing here measures.

All tables are made from the samples in the results alone, so that pages can be written anew without a run.
"""

import importlib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.goals import GOALS, Goal, verdict

Row = Mapping[str, Any]
Results = Mapping[str, Any]
BEGIN, END = "<!-- results: written by python -m benchmarks -->", "<!-- end of results -->"
MIB = 1 << 20


def spread(values: Iterable[float]) -> tuple[float, float, float]:
    """Median, minimum and maximum."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[0], ordered[-1]


def ratio(ours: Row, theirs: Row) -> tuple[float, float, float]:
    """Our seconds over theirs, round by round: below 1 is faster than they are. Median, minimum and maximum."""
    return spread(a / b for a, b in zip(ours["seconds"], theirs["seconds"], strict=False))  # some take part in fewer rounds


def table(case: Mapping[str, Any]) -> list[list[str]]:
    """The case's table, with its head."""
    rows = {row["who"]: row for row in case["rows"]}
    ours, limit, nbytes = rows.get(case["ours"]), rows.get(case["limit"]), case["nbytes"]
    ours = ours if len(rows) > 1 else None
    is_cold = any("resident" in row for row in case["rows"])
    head = ["who", "ms", "min .. max", "MB/s" * bool(nbytes), "of the limit's time" * bool(limit), "ours / theirs" * bool(ours)]
    head += [f"{case['aside']}, ms" * bool(case["aside"]), "extra memory", "still in memory" * is_cold, "rounds"]
    lines = [head]
    for row in case["rows"]:
        median, low, high = spread(row["seconds"])
        lines.append(
            [
                row["who"],
                shown(median),
                f"{shown(low)} .. {shown(high)}",
                f"{nbytes / median / 1e6:,.0f}" if nbytes else "",
                f"{ratio(row, limit)[0]:.2f}" if limit else "",
                "{:.2f} ({:.2f} .. {:.2f})".format(*ratio(ours, row)) if ours and row is not ours else "",
                shown(statistics.median(row["aside"])) if "aside" in row else "",
                _extra(row, nbytes),
                f"{max(row['resident']):.0%}" if "resident" in row else "",
                str(len(row["seconds"])),
            ]
        )
    kept = [i for i, title in enumerate(head) if title]
    return [[line[i] for i in kept] for line in lines]


def text(name: str, results: Results) -> str:
    """All tables of a benchmark for a terminal, and a JSON line for each case."""
    parts = [f"{name}: {where(results)}"]
    for case in results["cases"]:
        lines = table(case)
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        parts.append(f"\n{case['case']}")
        parts += ["  ".join(_aligned(i, cell, widths[i]) for i, cell in enumerate(line)).rstrip() for line in lines]
        parts.append(json.dumps({"benchmark": name, **case}))
    parts += [f"left out: {who}: {why}" for who, why in results["left_out"].items()]
    return "\n".join(parts)


def markdown(name: str, results: Results) -> str:
    """The section of a benchmark in the docs."""
    told = (importlib.import_module(f"benchmarks.{name}").__doc__ or "").strip()
    parts = [f"### {name}", told, f"*{where(results)}*", f"![{name}](benchmarks/{name}.svg)"]
    for case in results["cases"]:
        head, *lines = table(case)
        rule = ["---", *["---:"] * (len(head) - 1)]
        parts.append(f"**{case['case']}**")
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines]))
    if results["left_out"]:
        parts.append("Left out: " + "; ".join(f"{who} ({why})" for who, why in results["left_out"].items()) + ".")
    return "\n\n".join(parts)


def where(results: Results) -> str:
    """On what, with what, and when."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {each}" for name, each in machine["versions"].items())
    place = f"{machine['cores']} cores, {machine['memory_gib']} GiB, {machine['file_system']}, {machine['kernel']}"
    run = f"{results['rounds']} rounds{' (quick)' * results['quick']} in {results['seconds']} s"
    return f"{machine['date']}, {place}, Python {machine['python']}, {versions}; {run}, load at the end {machine['load']}"


def goals_table(results: Mapping[str, Results], goals: Sequence[Goal] = GOALS) -> list[list[str]]:
    """Each goal, what was measured, and whether it was reached."""
    lines = [["goal", "at most", "measured", ""]]
    for goal in goals:
        found = verdict(goal, results, ratio)
        if found is not None:
            told = "reached" if found[1] else "**not reached**"
            lines.append([goal.told(), goal.shown(goal.at_most), goal.shown(found[0]), told])
    return lines


def goals_text(results: Mapping[str, Results]) -> str:
    """The goals for a terminal."""
    lines = goals_table(results)
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    return "\n" + "\n".join("  ".join(_aligned(i, cell, widths[i]) for i, cell in enumerate(line)) for line in lines)


def write(docs: Path, new: Mapping[str, Results]) -> None:
    """Puts results beside those that are there, and writes tables and plots of all of them anew."""
    from benchmarks import plots

    folder = docs / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    results: dict[str, Results] = json.loads(path.read_text()) if path.exists() else {}
    results |= {name: rounded(each) for name, each in new.items()}
    path.write_text(dumped(results))
    for name in new or results:
        plots.write(name, results[name], folder / f"{name}.svg")
    page = docs / "benchmarks.md"
    before, _, rest = (page.read_text(encoding="utf-8") if page.exists() else f"{BEGIN}\n{END}\n").partition(BEGIN)
    goals = goals_table(results)
    parts = ["| " + " | ".join(line) + " |" for line in [goals[0], ["---", "---:", "---:", "---"], *goals[1:]]]
    sections = [
        "[Every sample as JSON](benchmarks/results.json)",
        "### Goals",
        "\n".join(parts),
        *(markdown(name, each) for name, each in results.items()),
    ]
    page.write_text(before + "\n\n".join([BEGIN, *sections, END]) + rest.partition(END)[2], encoding="utf-8")


def rounded(value: Any) -> Any:
    """The same with numbers as exact as they were measured: microseconds."""
    if isinstance(value, Mapping):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 6) if isinstance(value, float) else value


def dumped(results: Mapping[str, Results]) -> str:
    """The results as JSON, a line for each row."""
    lines = []
    for name, each in results.items():
        head = json.dumps({key: value for key, value in each.items() if key != "cases"})
        cases = ",\n".join(
            json.dumps({key: value for key, value in case.items() if key != "rows"})[:-1]
            + ', "rows": [\n   '
            + ",\n   ".join(json.dumps(row) for row in case["rows"])
            + "]}"
            for case in each["cases"]
        )
        lines.append(f'"{name}": {head[:-1]}, "cases": [\n{cases}]}}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def shown(seconds: float) -> str:
    """Seconds as milliseconds, to three digits."""
    ms = seconds * 1e3
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def _extra(row: Row, nbytes: int) -> str:
    median = statistics.median(row["extra_nbytes"])
    return f"{median / nbytes:.2f} states" if nbytes else f"{median / MIB:.1f} MiB"


def _aligned(column: int, cell: str, width: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)
