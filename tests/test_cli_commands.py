"""What every command of ``ckptmgr`` has: a section in docs/cli.md, help with an example, JSON, and a use of the installed one.

A new command makes these fail until it has them: give it a line in USES, and a section in docs/cli.md.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from test_docs import COMMAND as SHOWN
from test_docs import examples
from typer.testing import CliRunner

from ckptmgr import CheckpointManager
from ckptmgr.cli.app import app

COMMAND = Path(sys.executable).with_name("ckptmgr")
PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]

# What each does in a folder with a run ("run", of steps 100 and 200, 100 pinned as "kept"), without --json.
USES: dict[str, list[str]] = {
    "ls": ["run"],
    "show": ["run"],
    "verify": ["run"],
    "cp": ["run", "copy"],
    "doctor": ["run"],
    "diff": ["run", "run"],
    "export": ["run", "net.pt", "--to", "torch", "--select", "*"],
    "adopt": ["run"],
    "convert": ["run", "model.npz"],
    "migrate": ["run", "other", "--to", "npz"],
    "report": ["run", "-o", "page.html"],
    "gc": ["run", "--keep-last", "1", "--yes"],
    "delete": ["run", "200", "--yes"],
    "pin": ["run", "200", "paper"],
    "unpin": ["run", "100", "kept"],
    "sweep": ["run"],
    "demo": ["--help"],  # tests/test_demo.py runs it: it takes long
    "completion": ["bash"],
}
WITHOUT_JSON = {"completion": "it prints a script for a shell"}

each_command = pytest.mark.parametrize("name", COMMANDS)
each_use = pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo"])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    with CheckpointManager(folder / "run") as manager:
        for step in (100, 200):
            manager.save(step, {"w": np.full(3, step, np.float32)}, metrics={"loss": 1 / step})
        manager.pin(100, "kept")
    return folder


@pytest.fixture
def place(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_has_a_use_here() -> None:
    assert set(USES) == set(COMMANDS)


@each_command
def test_command_has_a_section_that_shows_it(name: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    section = re.search(rf"^## ckptmgr {name}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)

    assert section, f"docs/cli.md has no section '## ckptmgr {name}'"
    assert f"$ ckptmgr {name}" in section[1]


@each_command
def test_help_explains_every_option_and_has_an_example(name: str) -> None:
    done = CliRunner().invoke(app, [name, "--help"], terminal_width=100)

    assert done.exit_code == 0
    assert re.search(rf"^ +Examples?:\n +(eval \"\$\()?ckptmgr {name}\b", done.stdout, re.MULTILINE), done.stdout
    unexplained = [param.name for param in COMMANDS[name].params if not getattr(param, "help", None)]
    assert unexplained == []


@pytest.mark.parametrize("columns", [40, 200])
@each_command
def test_help_fits_any_terminal(name: str, columns: int) -> None:
    done = CliRunner().invoke(app, [name, "--help"], terminal_width=columns)

    # What cannot be broken, an option and a line of an example, may be wider.
    wide = [line for line in done.stdout.splitlines() if len(line) > max(columns, 50) and "ckptmgr" not in line]
    assert wide == []


def test_first_sentences_fit_the_list_of_commands() -> None:
    listed = CliRunner().invoke(app, ["--help"], terminal_width=80).stdout

    assert [line for line in listed.splitlines() if line.endswith("...") and not line.startswith("Usage")] == []


@each_use
def test_json_is_one_document_and_nothing_else(name: str, place: Path) -> None:
    done = CliRunner().invoke(app, [name, *USES[name], "--json"])

    if name in WITHOUT_JSON:
        assert done.exit_code == 2, "it has --json after all"
        return
    assert (done.exit_code, done.stderr) == (0, "")
    assert isinstance(json.loads(done.stdout), dict)


@each_command
def test_installed_command_does_it_in_a_pipe(name: str, place: Path) -> None:
    done = subprocess.run([COMMAND, name, *USES[name]], capture_output=True, text=True, check=False, timeout=120)

    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout
    assert "\x1b" not in done.stdout


@each_command
def test_examples_in_help_are_command_lines_that_parse(name: str) -> None:
    command = COMMANDS[name]
    for line in re.findall(rf"ckptmgr {name} ([^\n\")]*)", command.epilog):
        arguments = [word.strip("'") for word in line.split()]
        command.make_context(name, arguments, resilient_parsing=False)


def test_page_shows_output_of_what_it_runs() -> None:
    bare = [found for example in examples(PAGE) for found, shown in SHOWN.findall(example.text) if not shown.strip()]

    assert bare == []
