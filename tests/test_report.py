"""What a report says of a run is what its records say: kept, best, pinned and gone steps, storage, and time."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects
import pytest

from ckptmgr import CheckpointManager, KeepBest, KeepLast, save
from ckptmgr.finding import Committed, Run, Steps
from ckptmgr.ledger import Found
from ckptmgr.manifest import FileEntry, Manifest
from ckptmgr.record import Record
from ckptmgr.report.contents import MOST_ROWS, Contents, contents, drawn
from ckptmgr.report.facts import RunFacts, even, facts
from ckptmgr.report.figures import MOST_BARS, MOST_MARKS
from ckptmgr.report.shown import number, seconds, size

BEGUN = datetime(2026, 1, 1, tzinfo=UTC)


def known(step: int, sequence: int | None = None, *, nbytes: int = 10, pins: tuple[str, ...] = (), **fields: Any) -> Committed:
    """A committed step as its record tells it; one is saved every minute of sequence."""
    place = step if sequence is None else sequence
    manifest = Manifest(
        step=step,
        attempt=f"{step:016x}",
        sequence=place,
        run="r",
        created=BEGUN + timedelta(minutes=place),
        backend="safetensors",
        nbytes=nbytes,
        files=fields.pop("files", (FileEntry("model.safetensors", nbytes, 0),)),
        **fields,
    )
    record = Record(manifest=manifest, pins=frozenset(pins))
    return Committed(
        Found(f"step-{step}", record, b"", None), manifest, manifest.info(record.pins, name=f"step-{step}", path="p")
    )


def told(*steps: Committed, retention: Any = None) -> RunFacts:
    return facts(Steps(list(steps), [], [], {}), url="run", retention=retention)


def page(run: RunFacts) -> Contents:
    return Contents(run, BEGUN, tuple(drawn(run)))


# ---- what is kept, and what is gone


def test_marks_and_reasons_are_those_of_the_plan() -> None:
    losses = {1: 0.3, 2: 0.1, 3: 0.4, 4: math.nan}
    steps = [known(step, metrics={"loss": loss}, pins=("paper",) if step == 1 else ()) for step, loss in losses.items()]

    run = told(*steps, retention=KeepLast(1) | KeepBest("loss"))

    assert [step.marks for step in run.steps] == [("pinned",), ("best",), ("dropped",), ("newest",)]
    assert run.steps[0].reasons == ("pinned: paper",)
    assert run.steps[2].reasons == ("not among: last 1 | best 1 of loss",)
    assert [step.info.step for step in run.dropped] == [3]


def test_without_a_policy_no_step_is_called_dropped_or_best() -> None:
    run = told(known(1), known(2, pins=("a",)), known(3))

    assert [step.mark for step in run.steps] == ["kept", "pinned", "newest"]


def test_collected_steps_are_counted_from_the_order_of_saves(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, retention=KeepLast(2)) as manager:
        for step in range(1, 8):
            manager.save(step, {"w": np.zeros(4)})
        run = contents(manager).run

    assert [(step.info.step, step.gone_before) for step in run.steps] == [(6, 5), (7, 0)]
    assert run.gone == 5
    assert run.gone_nbytes == 5 * run.steps[0].info.nbytes


def test_adopted_steps_are_no_saves_that_are_gone() -> None:
    run = told(known(5, -3), known(6, -2), known(7, 1), known(8, 3))

    assert [step.gone_before for step in run.steps] == [0, 0, 0, 1]


def test_steps_of_other_tools_are_listed_and_left_alone(tmp_path: Path) -> None:
    save(tmp_path / "ckpt-50.safetensors", {"w": np.zeros(3)})
    with CheckpointManager(tmp_path) as manager:
        manager.save(60, {"w": np.zeros(3)})
        run = contents(manager, retention=KeepLast(1)).run

    assert [(step.info.step, step.mark) for step in run.steps] == [(50, "foreign"), (60, "newest")]


def test_a_damaged_record_is_told_and_the_others_are_shown(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, {})
        manager.save(2, {})
        (tmp_path / "step-00000001" / "manifest.json").write_bytes(b"{}")
        run = contents(manager).run

    assert [step.info.step for step in run.steps] == [2]
    assert len(run.damaged) == 1
    assert "step-00000001" in run.damaged[0]


# ---- storage and time


def test_files_that_steps_share_are_counted_once(tmp_path: Path) -> None:
    state = {"base": {"w": np.zeros(1 << 18)}, "head": {"w": np.zeros(1 << 18)}}
    with CheckpointManager(tmp_path, incremental=True) as manager:
        for step in (1, 2, 3):
            state["head"]["w"][0] = step
            manager.save(step, state)
        run = contents(manager).run

    on_disk = {path.stat().st_ino: path.stat().st_size for path in tmp_path.rglob("a-*/*")}
    assert run.stored_nbytes == sum(on_disk.values())
    assert run.whole_nbytes == sum(info.nbytes for info in manager.steps()) > run.stored_nbytes


def test_time_between_saves_is_known_where_none_is_gone() -> None:
    run = told(known(1), known(2), known(5), known(6))

    assert [step.interval_s for step in run.steps] == [None, 60.0, None, 60.0]


# ---- metrics


def test_lowest_and_highest_are_of_finite_values_and_the_newer_of_equal_ones() -> None:
    values = {1: 0.5, 2: 0.1, 3: 0.1, 4: math.nan, 5: math.inf, 6: 0.5}

    (metric,) = told(*(known(step, metrics={"loss": value}) for step, value in values.items())).metrics

    assert (metric.lowest, metric.highest, metric.latest) == (3, 6, 0.5)
    assert metric.steps == (1, 2, 3, 4, 5, 6)


def test_a_metric_without_a_finite_value_has_no_lowest() -> None:
    found = page(told(known(1, metrics={"loss": math.nan})))

    assert found.run.metrics[0].lowest is None
    assert found.figures[0].data[0]["y"] == [None]
    assert "none is finite" in found.figures[0].summary


def test_a_metrics_figure_has_every_value_at_its_step_and_each_mark_once() -> None:
    steps = [known(step, metrics={"loss": step / 10}, pins=("a",) if step == 2 else ()) for step in (3, 1, 2)]

    figure = page(told(*sorted(steps, key=lambda each: each.info.order))).figures[0]

    line, *marks = figure.data
    assert (line["x"], line["y"]) == ([1, 2, 3], [0.1, 0.2, 0.3])
    assert {trace["name"]: trace["x"] for trace in marks} == {"kept": [1], "pinned": [2], "newest": [3]}


def test_a_band_lies_where_saves_are_gone() -> None:
    figure = page(told(known(10, 1, metrics={"a": 1}), known(50, 5, metrics={"a": 1}))).figures[0]

    assert [(band["x0"], band["x1"]) for band in figure.layout["shapes"]] == [(10, 50)]


# ---- any run


def empty() -> RunFacts:
    return told()


def one() -> RunFacts:
    return told(known(0, 1, metrics={"loss": 1.0}))


def strange() -> RunFacts:
    values = {"nan": math.nan, "inf": -math.inf, "": 0.0, "損失 🙂": 1e308, "%{x}<b>": 5e-324}
    return told(known(1, metrics=values), known(10**40, 2, metrics=values), known(10**400, 3, metrics=values))


def many() -> RunFacts:
    return told(*(known(step, metrics={"loss": 1 / step}) for step in range(1, 10_001)), retention=KeepLast(5))


@pytest.mark.parametrize("make", [empty, one, strange, many])
def test_every_figure_is_one_that_plotly_knows_and_json_holds(make: Callable[[], RunFacts]) -> None:
    for figure in page(make()).figures:
        plotly.graph_objects.Figure(figure.to_json()["data"], figure.to_json()["layout"])
        json.dumps(figure.to_json(), allow_nan=False)
        assert figure.summary


def test_ten_thousand_steps_have_all_their_values_and_bounded_marks_bars_and_rows() -> None:
    found = page(many())

    line, *marks = found.figures[0].data
    assert len(line["x"]) == 10_000
    assert all(len(trace["x"]) <= MOST_MARKS for trace in marks)
    assert max(marks[0]["x"]) == 9_995  # the last that would be dropped
    assert len(found.figure("sizes").data[0]["x"]) == MOST_BARS  # type: ignore[union-attr]
    assert [step.info.step for step in found.rows[:2]] == [10_000, 9_999]
    assert len(found.rows) == MOST_ROWS


def test_older_steps_that_are_pinned_stay_in_the_table() -> None:
    steps = [known(step, pins=("a",) if step == 1 else ()) for step in range(1, MOST_ROWS + 5)]

    assert page(told(*steps)).rows[-1].info.step == 1


def test_a_report_changes_nothing_in_the_run(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, {"w": np.zeros(3)})
        manager.save(2, {"w": np.ones(3)})
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        contents(manager, retention=KeepLast(1), read=2, compare=(1, 2))

        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        assert len(Run(manager.folder, manager.naming).steps().committed) == 2


# ---- words


@pytest.mark.parametrize(
    ("count", "most", "chosen"), [(0, 3, []), (2, 3, [0, 1]), (5, 3, [0, 2, 4]), (9, 1, [8]), (4, 2, [0, 3])]
)
def test_even_has_the_last_and_spreads_the_others(count: int, most: int, chosen: list[int]) -> None:
    assert even(count, most) == chosen


def test_numbers_sizes_and_times_are_written_for_people() -> None:
    assert [size(n) for n in (0, 999, 1_000, 999_960, 1_234_567)] == ["0 B", "999 B", "1.0 kB", "1.0 MB", "1.2 MB"]
    assert [number(x) for x in (0.1, math.nan, math.inf, -math.inf, None)] == ["0.1", "NaN", "∞", "−∞", "–"]
    assert [seconds(s) for s in (0.25, 12.5, 200, 18_120, 273_600, -90)] == [
        "250 ms",
        "12.5 s",
        "3 min 20 s",
        "5 h 2 min",
        "3 d 4 h",
        "−1 min 30 s",
    ]


def test_replacing_a_fact_does_not_need_a_record() -> None:
    step = told(known(1)).steps[0]

    assert replace(step, marks=("best", "pinned")).mark == "best"
