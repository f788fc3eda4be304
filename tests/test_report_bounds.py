"""What a report costs of a long run and of one in a bucket, and that no name of a step, a folder or a metric does harm."""

import math
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bounds import cheap
from every_store import CLOUDS, options
from report_runs import HARM, ordinary
from test_report_page import Page

from ckptmgr import CheckpointManager, KeepBest, KeepLast, StepNaming, save
from ckptmgr.manifest import STATS, Manifest, new_attempt
from ckptmgr.record import Record, encode
from ckptmgr.report import write_report
from ckptmgr.report.contents import MOST_METRICS
from ckptmgr.storage import Folder, weak

FORGED: list[Any] = [{"written": 10**400}, {"written": -1}, {"written": HARM}, HARM, [HARM], {"written": 2.5, "begun": HARM}]


def write_records(root: Folder, count: int, metrics: Callable[[int], dict[str, float]], **fields: Any) -> None:
    """Committed steps 0 to ``count``, without the files that they tell of."""
    for step in range(count):
        made = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=step)
        stats = {"begun": 0.1, "written": 1 + step % 7, "nbytes": 10}
        extra = {STATS: FORGED[step % len(FORGED)] if fields.get("forged") else stats}
        manifest = Manifest(step, new_attempt(), step + 1, "run", made, "raw", 1000, (), metrics(step), extra=extra)
        root.folder(StepNaming().format(step)).write("manifest.json", encode(Record(manifest=manifest)))


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_a_thousand_steps_cost_little_time_and_memory(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "run")
    write_records(manager.folder, 1_000, lambda step: {"loss": 1 / (step + 1), "accuracy": step / 1000})
    manager.save(1_000, {"w": np.zeros(3)}, metrics={"loss": 2.0})

    with cheap(seconds=30, nbytes=96 << 20):
        found = write_report(tmp_path / "run", tmp_path / "page.html", retention=KeepLast(5) | KeepBest("loss"))

    assert (len(found.run.steps), len(found.run.kept)) == (1_001, 5)
    assert found.times is not None
    assert len(found.times.saves) == 1_001


def test_metrics_without_end_are_counted_and_not_drawn(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "run") as manager:
        for step in (1, 2):
            manager.save(step, {"w": np.zeros(3)}, metrics={f"{HARM}{number}": float(number) for number in range(5_000)})

    with cheap(seconds=30, nbytes=96 << 20):
        write_report(tmp_path / "run", tmp_path / "page.html")

    made = read(tmp_path / "page.html")
    assert sum(name.startswith("metric-") for name in made.figures) == MOST_METRICS
    assert "4,988 further metrics" in made.text
    assert len(made.scripts) == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, 5e-324, -0.0])
def test_a_metric_of_any_value_and_the_worst_name_is_a_number_on_the_page(value: float, tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "run", retention=KeepBest("</script>")) as manager:
        for step in (1, 2):
            manager.save(step, {"w": np.zeros(3)}, metrics={"</script>": value, "<!--": value})
        found = write_report(manager, tmp_path / "page.html")

    made = read(tmp_path / "page.html")
    assert [metric.name for metric in found.run.metrics] == ["</script>", "<!--"]
    assert len(made.scripts) == 3
    assert "best 1 of </script>" in made.text


def test_names_of_folders_and_files_are_text(tmp_path: Path) -> None:
    plain = ordinary(tmp_path / "plain", steps=3)
    write_report(plain, tmp_path / "plain.html")
    run = tmp_path / "<img src=x onerror='window.harmed = 1'><b>run"
    with pytest.raises(ValueError, match="which has '<' in it"):
        StepNaming("<script>-{step}")  # steps of ours have no such names
    with CheckpointManager(run) as manager:
        for step in (5, 6, 7):
            manager.save(step, {"w": np.zeros(3)}, metrics={"loss": 1.0})
        (run / manager.steps()[0].name / "manifest.json").write_bytes(b"<script>alert(2)</script>")
        save(run / "<script>alert(1)<&amp;-9.safetensors", {"w": np.zeros(3)})
        found = write_report(manager, tmp_path / "page.html")

    made = read(tmp_path / "page.html")
    assert [step.info.step for step in found.run.steps] == [6, 7]  # that name means no step
    assert len(found.run.damaged) == 1
    assert len(made.scripts) == 3
    assert {tag for tag, _ in made.elements} - {tag for tag, _ in read(tmp_path / "plain.html").elements} <= {"p", "li", "code"}
    assert [name for _, attributes in made.elements for name in attributes if name.startswith("on")] == []
    assert "<img src=x onerror=" in made.text


def test_numbers_that_somebody_forged_are_not_shown(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "run")
    write_records(manager.folder, 2 * len(FORGED), lambda step: {}, forged=True)

    found = write_report(manager, tmp_path / "page.html")

    assert found.times is not None
    assert [(save.blocked, save.rate) for save in found.times.saves] == [(2.5, None)] * 2
    assert HARM not in read(tmp_path / "page.html").text.replace(found.problems[0], "")


@pytest.mark.cloud
def test_a_report_of_a_bucket_is_a_listing_its_records_and_one_index(s3_server: Any, s3_proxy: Any, tmp_path: Path) -> None:
    steps, place = 40, f"{CLOUDS['s3'][1]}/{secrets.token_hex(4)}/run"
    manager = CheckpointManager(place, storage_options=options(s3_server, s3_proxy.endpoint))
    weak.honours(manager.folder.store, manager.folder.store.url)  # type: ignore[arg-type]
    write_records(manager.folder, steps, lambda step: {"loss": 1.0})
    manager.save(steps, {"w": np.zeros(3)})
    fresh = CheckpointManager(place, storage_options=options(s3_server, s3_proxy.endpoint))
    s3_proxy.rules()

    found = write_report(fresh, tmp_path / "page.html")

    asked = s3_proxy.requests()
    assert len(found.run.steps) == steps + 1
    assert found.inventory is not None
    assert len(asked) <= steps + 8, [(each["method"], each["target"]) for each in asked]
    assert {each["method"] for each in asked} <= {"GET", "HEAD"}
