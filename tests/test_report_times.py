"""What a report says of saves: what they took, what of it blocked training, and how fast they wrote; or that nothing tells."""

import json
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects
import pytest
from report_runs import background
from test_report import BEGUN, known, told
from test_report_page import Page, page

from ckptmgr import CheckpointManager
from ckptmgr.finding import Committed
from ckptmgr.manifest import STATS
from ckptmgr.report.contents import Contents, contents, drawn, time_figures
from ckptmgr.report.facts import RunFacts
from ckptmgr.report.figures import MOST_BARS, durations, throughput
from ckptmgr.report.rendering import render
from ckptmgr.report.shown import percent, seconds
from ckptmgr.report.times import TimeFacts, times
from ckptmgr.step import StepInfo


def timed(step: int, stats: Any, **fields: Any) -> Committed:
    return known(step, extra={STATS: stats}, **fields)


def found(*steps: Committed) -> TimeFacts:
    how = times(told(*steps))
    assert how is not None
    return how


def parts(how: TimeFacts) -> list[tuple[float, float, float, float | None]]:
    return [(save.blocked, save.waited, save.written, save.rate) for save in how.saves]


def shown(infos: Path, **options: Any) -> Contents:
    with CheckpointManager(infos) as manager:
        return contents(manager, made=BEGUN, **options)


def page_of(run: RunFacts) -> Page:
    how = times(run)
    return Page(render(Contents(run, BEGUN, (*drawn(run), *time_figures(how)), how)))


# ---- facts


def test_a_save_in_the_foreground_blocks_for_all_that_is_known_of_it() -> None:
    how = found(timed(1, {"begun": 0.5, "written": 2.5}, nbytes=100))

    assert parts(how) == [(2.5, 0.0, 0.0, 50.0)]
    assert how.is_background is False


def test_a_save_in_the_background_has_three_parts_that_follow_each_other() -> None:
    how = found(timed(1, {"blocked": 0.5, "staged": 0.75, "begun": 1.0, "written": 3.0, "reused": 60}, nbytes=100))

    assert parts(how) == [(0.5, 0.5, 2.0, 20.0)]
    assert how.saves[0].took == 3.0
    assert (how.reused_nbytes, how.is_background) == (60, True)


@pytest.mark.parametrize("stats", [{"written": 1.0, "blocked": 5.0}, {"written": 1.0, "blocked": 5.0, "begun": 9.0}])
def test_times_that_contradict_each_other_make_no_negative_part(stats: Any) -> None:
    ((*times_, rate),) = parts(found(timed(1, stats)))

    assert min(times_) >= 0
    assert rate is None


def test_totals_medians_and_the_worst_are_of_the_saves_that_tell() -> None:
    how = found(*(timed(step, {"begun": 0, "written": 2.0 if step == 2 else 1.0}) for step in (1, 2, 3)), known(4))

    assert (how.blocked, how.usual_blocked, how.usual_took, how.usual_rate, how.untold) == (4.0, 1.0, 1.0, 10.0, 1)
    assert how.worst.step.info.step == how.slowest.step.info.step == 2


def test_the_share_is_of_the_time_between_saves_where_that_is_known() -> None:
    # A minute lies between saves; of 1 and 5 the ones before are gone.
    how = found(*(timed(step, {"written": 6.0}) for step in (1, 2, 3, 5)))

    assert how.share == pytest.approx(0.1)
    assert found(timed(1, {"written": 6.0})).share is None


def test_steps_that_tell_nothing_have_no_times() -> None:
    assert times(told()) is None
    assert times(told(known(1), timed(2, "forged"), timed(3, {"written": -1}), timed(4, {"written": 1e300}))) is None


# ---- figures


@pytest.mark.parametrize(
    ("length", "unit", "height"),
    [(0.25, "milliseconds", 250), (30, "seconds", 30), (600, "minutes", 10), (7200, "hours", 2), (259_200, "days", 3)],
)
def test_durations_have_the_unit_that_fits(length: float, unit: str, height: float) -> None:
    figure = durations(found(timed(1, {"written": length})), "s")

    assert figure.layout["yaxis"]["title"]["text"] == unit
    assert figure.data[0]["y"] == [pytest.approx(height)]
    assert figure.data[0]["hovertext"] == [seconds(length)]


def test_the_figures_of_a_run_are_ones_that_plotly_knows_and_add_up(tmp_path: Path) -> None:
    made = shown(background(tmp_path, steps=8))
    stacked, rates = made.figure("durations"), made.figure("throughput")

    assert stacked is not None
    assert rates is not None
    for figure in (stacked, rates):
        plotly.graph_objects.Figure(figure.to_json()["data"], figure.to_json()["layout"])
        json.dumps(figure.to_json(), allow_nan=False)
    assert [trace["name"].partition(" ")[0] for trace in stacked.data] == ["training", "waited", "written"]
    took = [sum(heights) for heights in zip(*(trace["y"] for trace in stacked.data), strict=True)]
    infos = CheckpointManager(tmp_path).steps()
    assert took == pytest.approx([info.stats.written for info in infos])  # type: ignore[union-attr]
    assert rates.data[0]["x"] == [info.step for info in infos]


def test_ten_thousand_saves_have_bounded_bars() -> None:
    run = told(*(timed(step, {"begun": 0, "written": step % 7 + 1}) for step in range(1, 10_001)))
    how = times(run)
    assert how is not None

    assert len(durations(how, "s").data[0]["x"]) == MOST_BARS
    assert len(throughput(how.saves, "s").data[0]["x"]) == 10_000


# ---- the page


def test_the_page_says_what_saves_took(tmp_path: Path) -> None:
    folder = background(tmp_path, steps=5)
    made = page(folder)

    def stats_of(info: StepInfo) -> tuple[str, str]:
        assert info.stats is not None
        return seconds(info.stats.written), seconds(info.stats.blocking)

    expected = [stats_of(info) for info in reversed(CheckpointManager(folder).steps())]
    rows = [" ".join(row.split()) for row in made.rows if re.match(r"\s+\d+\s+(newest|kept)", row)]
    assert all(f"{took} {blocked} " in f"{row} " for row, (took, blocked) in zip(rows, expected, strict=True))
    assert len(rows) == 5
    assert "5 saves: the median took" in made.text
    assert "tell nothing" not in made.text
    assert {"durations", "throughput"} <= made.figures.keys()


def test_a_run_without_numbers_says_so() -> None:
    made = page_of(told(known(1), known(2)))

    assert "No record tells how long its save took" in made.text
    assert "Took" not in made.text
    assert "durations" not in made.figures


def test_a_run_of_which_some_steps_tell_says_how_many_do_not() -> None:
    made = page_of(told(known(1), timed(2, {"written": 1.5})))

    assert "1 step of 2 tell nothing" in made.text
    assert "throughput" not in made.figures  # of a save that was begun nobody knows when
    assert "–" in next(row for row in made.rows if row.split()[0] == "1")


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (0.0000004, "under 0.1 %"), (0.003, "0.3 %"), (0.1234, "12 %"), (0.999, "100 %"), (1, "100 %")],
)
def test_shares_are_written_for_people(share: float, text: str) -> None:
    assert percent(share) == text
