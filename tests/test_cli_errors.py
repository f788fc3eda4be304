"""Rubbish for every command: one line that says what to do, the right exit code, and never a traceback."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_cli_commands import COMMAND, COMMANDS
from typer.testing import CliRunner, Result

from ckptmgr import CheckpointManager
from ckptmgr.cli.app import app
from ckptmgr.cli.frame import in_options

# The arguments of each command, where {} is the place that it is given; more than one line where it takes two places.
LINES: dict[str, list[str]] = {
    "ls": ["{}"],
    "show": ["{}", "{} --step 7"],
    "verify": ["{}", "{} --step 7"],
    "cp": ["{} target", "run {}/target"],
    "convert": ["{} new.npz", "run {}/new.npz"],
    "doctor": ["{}"],
    "diff": ["{} run", "run {}"],
    "export": ["{} new --to hf", "run {}/new --to hf"],
    "adopt": ["{}"],
    "migrate": ["{} target", "run {}/target"],
    "report": ["{}"],
    "gc": ["{} --keep-last 1 --yes"],
    "delete": ["{} 100 --yes"],
    "pin": ["{} 100 name"],
    "unpin": ["{} 100 name"],
    "sweep": ["{}"],
}
WITHOUT_PLACE = {"demo", "completion"}
in_the_cloud = pytest.mark.cloud  # its client has threads, and other tests fork
each_line = pytest.mark.parametrize("line", [f"{name} {line}" for name, lines in LINES.items() for line in lines])
each_source = pytest.mark.parametrize("line", [f"{name} {lines[0]}" for name, lines in LINES.items()])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with CheckpointManager(tmp_path / "run") as manager:
        manager.save(100, {"w": np.ones(3)})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CKPTMGR_TRACEBACK", "1")  # what is not expected is raised
    return tmp_path


def call(line: str, where: str) -> Result:
    return CliRunner().invoke(app, [word.replace("{}", where) for word in line.split()])


def is_told(done: Result, *codes: int) -> bool:
    """Whether it ended with one of the codes, and told why in one line without what a terminal would obey."""
    told = done.stderr.splitlines()
    assert done.exit_code in codes, (done.exit_code, done.output, done.exception)
    assert isinstance(done.exception, SystemExit)
    assert [line for line in told if not line.startswith("ckptmgr: ")] == []
    assert all(char.isprintable() for line in told for char in line)
    return len([line for line in told if "warning:" not in line]) == 1


def test_every_command_has_its_lines_here() -> None:
    assert set(LINES) | WITHOUT_PLACE == set(COMMANDS)


def empty(path: Path) -> None:
    path.touch()


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 64)


def folder_of_notes(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("hello")


@each_line
@pytest.mark.parametrize("name", ["typo", "\x1b[2J\x07new\nline", "é" * 300, " "])
def test_a_place_that_is_not_there(place: Path, line: str, name: str) -> None:
    done = call(line, name)

    if line.startswith("doctor"):
        assert done.exit_code == 1 if done.stdout else is_told(done, 1)  # the former is its answer
    elif "/" in line and done.exit_code == 0:
        assert name in ("typo", "\x1b[2J\x07new\nline", " ")  # a new folder
    else:
        assert is_told(done, 1, 2)
    assert (place / "run").exists()


@each_line
def test_an_empty_name_is_wrong_usage_and_not_this_folder(place: Path, line: str) -> None:
    arguments = ["" if "{}" in word else word for word in line.split()]

    assert is_told(CliRunner().invoke(app, arguments), 2)
    assert [path.name for path in place.iterdir()] == ["run"]


@each_line
@pytest.mark.parametrize("make", [empty, binary])
def test_a_file_that_is_nothing(place: Path, line: str, make: Callable[[Path], None]) -> None:
    make(place / "thing")

    done = call(line, "thing")

    if line.startswith(("verify {}", "doctor")) and done.stdout:
        assert done.exit_code == 1  # told as damaged, which is its answer
    else:
        assert is_told(done, 1, 2)


@each_source
def test_a_folder_that_is_no_run(place: Path, line: str) -> None:
    folder_of_notes(place / "notes")

    done = call(line, "notes")

    if line.split()[0] in ("ls", "sweep", "gc", "report", "adopt", "doctor"):  # nothing to list, to delete or to show
        assert done.exit_code in (0, 1)
    else:
        assert is_told(done, 1, 2)
    assert (place / "notes" / "notes.txt").read_text() == "hello"


@each_line
@pytest.mark.parametrize("url", ["gopher://host/run", "s3:/bucket/run", "s3://", "a::b://c"])
def test_a_url_that_means_nothing_is_wrong_usage(place: Path, line: str, url: str) -> None:
    assert is_told(call(line, url), 2)


@in_the_cloud
@each_line
def test_an_unknown_storage_option_is_wrong_usage(place: Path, line: str) -> None:
    done = call(f"{line} --storage-option colour=red", "s3://bucket/run")

    assert is_told(done, 2)
    assert "colour" in done.stderr


@each_source
@pytest.mark.parametrize("option", ["colour", "=red", 'config_kwargs={"s3"'])
def test_a_storage_option_that_is_no_pair_is_wrong_usage(place: Path, line: str, option: str) -> None:
    assert is_told(call(f"{line} --storage-option {option}", "s3://bucket/run"), 2)


@each_line
def test_a_storage_whose_package_is_missing_is_wrong_usage(place: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.implementations.smb", None)

    done = call(line, "smb://host/run")

    assert is_told(done, 1, 2)
    assert "smb" in done.stderr


@in_the_cloud
@each_line
def test_an_endpoint_that_nobody_answers_is_named(place: Path, line: str) -> None:
    options = [f"--storage-option {pair}" for pair in ("endpoint_url=http://127.0.0.1:1", "key=a", "secret=b", "retries=0")]

    done = call(" ".join([line, *options]), "s3://bucket/run")

    assert is_told(done, 2 if line.startswith("diff") else 1)
    assert "127.0.0.1:1" in done.stderr


@each_line
@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_is_forbidden(place: Path, line: str) -> None:
    (place / "closed").mkdir(mode=0)

    assert is_told(call(line, "closed"), 1)


@pytest.mark.parametrize(
    "line", ["show run --step {}", "verify run --step {}", "delete run {} --yes", "pin run {} x", "cp run b --step {}"]
)
def test_an_unknown_step_names_the_nearest(place: Path, line: str) -> None:
    with CheckpointManager(place / "run") as manager:
        for step in (*range(200, 2001, 100),):
            manager.save(step, {})

    done = call(line, "510")

    assert is_told(done, 1)
    assert "committed: 500, 600, 400, 700, 300" in done.stderr


@pytest.mark.parametrize("line", ["{}", "--{}", "ls --{} run", "ls run {} extra"])
def test_a_slip_is_wrong_usage(place: Path, line: str) -> None:
    assert is_told(call(line, "shwo"), 2)


def test_what_was_meant_is_named(place: Path) -> None:
    assert "'verify'" in call("verfy {}", "run").stderr
    assert "--json" in call("ls {} --jsn", "run").stderr


def test_advice_is_in_words_of_the_command_line(place: Path) -> None:
    shutil.copytree("run", "other")
    call("convert {} new.npz", "run")

    assert "--overwrite" in call("convert {} new.npz", "run").stderr
    assert "say --to, one of" in call("convert {} new.foo", "run").stderr
    assert in_options("nothing (client='fsspec')") == "nothing (--storage-option client=fsspec)"


def test_a_full_disk_behind_standard_output_is_told(place: Path) -> None:
    done = subprocess.run(f"{COMMAND} ls run > /dev/full", shell=True, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (1, "ckptmgr: No space left on device\n")
