"""The page itself: it says what the facts say, escapes what others wrote, and needs nothing but itself."""

import itertools
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import HARM, hostile, ordinary
from typer.testing import CliRunner, Result

from ckptmgr import CheckpointManager, KeepLast, MissingDependencyError, StepNotFoundError
from ckptmgr.cli.app import app
from ckptmgr.report import rendering, write_report
from ckptmgr.report.contents import contents
from ckptmgr.report.rendering import render

MADE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Page(HTMLParser):
    """A page taken apart: elements with their attributes, the scripts, and the text of all table rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.rows: list[str] = []
        self.text = ""
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside.append(tag)
        if tag == "script":
            self.scripts.append("")
        if tag == "tr":
            self.rows.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" in self._inside:
            self.scripts[-1] += data
        elif "style" not in self._inside:
            self.text += data
            if "tr" in self._inside:
                self.rows[-1] += f" {data}"

    @property
    def figures(self) -> dict[str, Any]:
        """What the charts are drawn from."""
        found: dict[str, Any] = json.loads(self.scripts[0])
        return found


def page(folder: Path, **options: Any) -> Page:
    with CheckpointManager(folder) as manager:
        return Page(render(contents(manager, made=MADE, **options)))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


# ---- what it says


def test_the_table_has_every_step_with_its_metrics_and_its_reason(tmp_path: Path) -> None:
    found = page(ordinary(tmp_path / "run"), retention=KeepLast(2))

    rows = [" ".join(row.split()) for row in found.rows]
    steps = [row for row in rows if re.match(r"\d+ (newest|kept|pinned|would be dropped) ", row)]
    assert [int(row.split()[0]) for row in steps] == [1200, 1100, 1000, 900, 500, 300]
    assert steps[0].startswith("1200 newest 0.181436")
    assert steps[0].endswith("newest; last 2")
    assert "NaN" in steps[2]
    assert steps[-1].endswith("pinned: paper")
    assert [row for row in rows if row.endswith("gone")] == ["3 saves gone", "1 save gone", "2 saves gone"]


def test_the_charts_have_the_values_of_the_run(tmp_path: Path) -> None:
    found = page(ordinary(tmp_path / "run"))

    with CheckpointManager(tmp_path / "run") as manager:
        losses = {info.step: info.metrics["val/loss"] for info in manager.steps()}
    line = found.figures["metric-0"]["data"][0]
    assert dict(zip(line["x"], line["y"], strict=True)) == losses


def test_a_run_without_a_step_says_so(tmp_path: Path) -> None:
    found = page(tmp_path / "nothing")

    assert "no committed step yet" in found.text
    assert found.figures == {}


def test_a_run_with_one_step_has_a_page(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path) as manager:
        manager.save(0, {"n": 3})

    found = page(tmp_path, read=3)

    assert "No two saves in a row" in found.text
    assert len(found.rows) > 1


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    ordinary(tmp_path / "run")
    with CheckpointManager(tmp_path / "run") as manager:
        first, second = (render(contents(manager, made=MADE, read=2)) for _ in range(2))

    assert first == second


# ---- what it must not do


def test_nothing_that_a_writer_chose_becomes_markup(tmp_path: Path) -> None:
    plain, harmed = (
        page(make(tmp_path / make.__name__), read=2, compare=pair) for make, pair in ((ordinary, (300, 1200)), (hostile, (1, 2)))
    )

    assert len(harmed.scripts) == 3
    assert {tag for tag, _ in harmed.elements} <= {tag for tag, _ in plain.elements}
    names = {name for _, attributes in harmed.elements for name in attributes}
    assert [name for name in names if name.startswith("on")] == []
    assert HARM in harmed.text


def test_names_in_charts_are_text_for_plotly_too(tmp_path: Path) -> None:
    labels = page(hostile(tmp_path / "run")).figures["tensors"]["data"][0]["labels"]

    assert [label for label in labels if "<" in label] == []
    assert any(label.startswith("&lt;") for label in labels)


def test_the_page_names_no_place_to_load_from(tmp_path: Path) -> None:
    found = page(ordinary(tmp_path / "run"), read=1)

    sources = [value for _, attributes in found.elements for name, value in attributes.items() if name in ("src", "href")]
    assert [source for source in sources if not str(source).startswith(("#", "data:,"))] == []
    policy = next(attributes["content"] for _, attributes in found.elements if "http-equiv" in attributes)
    assert str(policy).startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in str(policy)


def test_headings_go_down_one_level_at_a_time_and_ids_are_unique(tmp_path: Path) -> None:
    found = page(ordinary(tmp_path / "run"), read=2, compare=(300, 1200), retention=KeepLast(1))

    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h\d", tag)]
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert levels[0] == 1
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels))
    assert len(ids) == len({*ids})
    named = [attributes.get("aria-label") for _, attributes in found.elements if attributes.get("role") in ("img", "region")]
    assert len(named) > 5
    assert all(named)


# ---- the command


def test_report_writes_the_page_and_says_where(tmp_path: Path) -> None:
    ordinary(tmp_path / "run")
    out = tmp_path / "page.html"
    out.write_text("old")

    done = call("report", tmp_path / "run", "-o", out, "--tensors", 2, "--compare", 300, 1200, "--keep-last", 1)

    assert done.exit_code == 0, done.output
    assert re.fullmatch(rf"{re.escape(str(out))}: 6 steps of .*/run, \d\.\d MB\n", done.stdout)
    assert "From step 300 to step 1200" in Page(out.read_text(encoding="utf-8")).text
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == ["page.html"]


def test_report_of_nothing_or_of_a_step_that_is_not_there_fails_in_one_line(tmp_path: Path) -> None:
    ordinary(tmp_path / "run", steps=2)

    for arguments in ((tmp_path / "typo",), (tmp_path / "run", "--compare", 1, 2)):
        done = call("report", *arguments, "-o", tmp_path / "page.html")
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert not (tmp_path / "page.html").exists()


def test_a_policy_that_keeps_nothing_is_wrong_usage(tmp_path: Path) -> None:
    ordinary(tmp_path / "run", steps=1)

    assert call("report", tmp_path / "run", "--keep-last", 0, "-o", tmp_path / "page.html").exit_code == 2


def test_what_cannot_be_encoded_is_shown_as_a_question_mark(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, {"w": np.zeros(1)}, metadata={"half": "\ud800"})

    assert call("report", tmp_path / "run", "-o", tmp_path / "page.html").exit_code == 0


def test_without_its_libraries_the_report_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)

    with CheckpointManager(tmp_path) as manager, pytest.raises(MissingDependencyError, match=r"pip install 'ckptmgr\[report\]'"):
        rendering.render(contents(manager))


def test_no_other_command_loads_them() -> None:
    script = "import sys, ckptmgr.cli.app; print(*{'jinja2', 'plotly'} & sys.modules.keys())"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


# ---- in Python


def test_write_report_takes_a_manager_with_its_policy(tmp_path: Path) -> None:
    ordinary(tmp_path / "run")

    with CheckpointManager(tmp_path / "run", retention=KeepLast(2)) as manager:
        facts = write_report(manager, tmp_path / "page.html").run

    assert [step.info.step for step in facts.dropped] == [500, 900, 1000]
    assert "Kept by: last 2" in Page((tmp_path / "page.html").read_text(encoding="utf-8")).text


def test_write_report_takes_the_place_of_a_run(tmp_path: Path) -> None:
    run = ordinary(tmp_path / "run", steps=3)

    assert write_report(str(run), str(tmp_path / "page.html"), tensors=1).values is not None
    assert write_report(run, tmp_path / "page.html").run.policy is None


def test_write_report_of_nothing_leaves_the_old_page(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    out.write_text("old")

    with pytest.raises(FileNotFoundError, match="no run at"):
        write_report(tmp_path / "typo", out)
    with pytest.raises(StepNotFoundError):
        write_report(ordinary(tmp_path / "run", steps=1), out, compare=(100, 7))

    assert out.read_text() == "old"


def test_importing_it_loads_neither_jinja_nor_plotly() -> None:
    script = "import sys, ckptmgr.report; print(*{'jinja2', 'plotly'} & sys.modules.keys())"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []
