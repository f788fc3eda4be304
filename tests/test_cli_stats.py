"""How saves went, as the commands tell it: `ls --long`, `show`, and all of it as JSON."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from ckptmgr import CheckpointManager, StepInfo, save
from ckptmgr.cli.app import app
from ckptmgr.cli.output import duration


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def document(*arguments: object) -> Any:
    return json.loads(call(*arguments, "--json").stdout)


@pytest.fixture
def saved(tmp_path: Path) -> StepInfo:
    """A step, and one of another tool before it."""
    with CheckpointManager(tmp_path) as manager:
        save(tmp_path / "ckpt-0.safetensors", {"w": np.zeros(2)})
        return manager.save(1, {"w": np.zeros(1000)})


def test_ls_long_tells_how_each_save_went(saved: StepInfo, tmp_path: Path) -> None:
    titles, foreign, row = (re.split(r"  +", line.strip()) for line in call("ls", tmp_path, "--long").stdout.splitlines())

    assert saved.stats is not None
    assert titles[3:6] == ["blocked", "took", "speed"]
    assert foreign[3:6] == ["-", "-", "-"]
    assert row[3:5] == [f"{saved.stats.written:.3f} s"] * 2
    assert re.fullmatch(r"[\d.,]+ ([kMG]B|bytes)/s", row[5])


def test_json_has_the_numbers_of_the_manifest(saved: StepInfo, tmp_path: Path) -> None:
    assert saved.stats is not None
    assert [info["stats"] for info in document("ls", tmp_path)["steps"]] == [None, saved.stats.to_json()]
    assert document("show", tmp_path, "--step", 1)["step"]["stats"] == saved.stats.to_json()


def test_show_tells_how_the_save_went_where_that_is_known(saved: StepInfo, tmp_path: Path) -> None:
    assert re.search(r"^took +0\.\d{3} s  blocked 0\.\d{3} s  wrote ", call("show", tmp_path).stdout, re.M)
    assert "took" not in call("show", tmp_path, "--step", 0).stdout


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.0341, "0.034 s"), (12.34, "12.3 s"), (59.96, "60.0 s"), (200, "3:20 min"), (18_123, "5:02:03 h")],
)
def test_durations_are_written_for_people(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
