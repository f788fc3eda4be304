"""The installed command in a real terminal: what a person sees of its progress, and what Ctrl-C does."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from terminals import CTRL_C, terminal
from test_cli_commands import COMMAND

from ckptmgr import CheckpointManager
from ckptmgr.cli.output import progress

CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# title, bar, bytes of bytes, bytes/s, time left
BAR = re.compile(r"(\w+) [━╸╺ -]{10,} *[\d.]+/[\d.]+ \wB [\d.]+ \wB/s -?\d+:\d\d:\d\d")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal")
    with CheckpointManager(folder / "run") as manager:
        for step in (1, 2, 3):
            manager.save(step, {str(part): np.full((1 << 20,), step, np.float32) for part in range(4)})
    return folder


@pytest.mark.parametrize(
    "line",
    ["verify run", "cp run copy", "convert run new.h5", "migrate run other --to npz", "report run --tensors 3 -o a.html"],
)
def test_a_person_sees_bytes_and_their_speed_and_the_time_left(place: Path, line: str) -> None:
    with terminal([COMMAND, *line.split()], place) as seen:
        code = seen.ended()

    bars = BAR.findall(CONTROLS.sub("", seen.shown))
    assert code == 0, seen.shown
    assert set(bars) == {{"cp": "copy"}.get(line.split()[0], line.split()[0])}, seen.shown


def test_what_is_done_in_one_go_has_a_speed_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # which also says that a person is watching
    monkeypatch.setenv("COLUMNS", "100")

    with progress("copy") as tell:
        assert tell is not None
        tell(0, 4_000_000)
        tell(4_000_000, 4_000_000)

    assert BAR.findall(CONTROLS.sub("", capsys.readouterr().err)) != []


@pytest.mark.parametrize("columns", [40, 200])
def test_a_bar_and_a_table_fit_the_terminal(place: Path, columns: int) -> None:
    for line in ("verify run", "ls run"):
        with terminal([COMMAND, *line.split()], place, columns=columns) as seen:
            assert seen.ended() == 0

        rows = re.split(r"[\r\n]+", CONTROLS.sub("", seen.shown))
        assert max(map(len, rows)) <= columns


def test_without_colours_none_are_sent(place: Path) -> None:
    with terminal([COMMAND, "ls", "run"], place, NO_COLOR="1") as seen:
        assert seen.ended() == 0

    assert re.findall(r"\x1b\[(?:\d+;)*(?:3|4|9)\d", seen.shown) == []


def test_ctrl_c_at_a_question_deletes_nothing(place: Path) -> None:
    with terminal([COMMAND, "gc", "run", "--keep-last", "1"], place) as seen:
        seen.wait_for("[y/N]")
        seen.press(CTRL_C)

        assert seen.ended() == 130

    assert "Traceback" not in seen.shown
    assert steps(place / "run") == [1, 2, 3]


@pytest.mark.parametrize(
    ("line", "sign"),
    [
        ("cp run copy-2", "step 1:"),
        ("migrate run other-2 --to hdf5 --processes --workers 2", "migrate"),
        ("demo --keep demo", "Handwritten"),
    ],
)
def test_ctrl_c_ends_it_in_one_line_with_all_that_it_has_started(place: Path, line: str, sign: str) -> None:
    with terminal([COMMAND, *line.split()], place) as seen:
        seen.wait_for(sign)
        seen.press(CTRL_C)
        code = seen.ended()  # nobody has the terminal any more

    assert code == 130, seen.shown
    assert "Traceback" not in seen.shown
    assert CONTROLS.sub("", seen.shown).count("ckptmgr: interrupted") == 1
    if line.startswith("demo"):
        return
    done = subprocess.run([COMMAND, *line.split()], cwd=place, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert steps(place / line.split()[2]) == [1, 2, 3]


def steps(run: Path) -> list[int]:
    """The steps of a run, all of them good."""
    done = subprocess.run([COMMAND, "verify", run, "--json"], capture_output=True, text=True, check=True)
    return [each["step"] for each in json.loads(done.stdout)["checked"]]
