"""Every example of the documentation runs, in order, one process and one folder a page."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from ckptmgr.cli.app import app

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A command and what it prints; the demo has tests of its own.
COMMAND = re.compile(r"^\$ ckptmgr (?!demo)(.+)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


class Example(NamedTuple):
    language: str
    text: str
    line: int


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_examples_of_page_run(page: Path, tmp_path: Path) -> None:
    script = (
        f"import sys, pathlib; sys.path.insert(0, {str(TESTS)!r}); import test_docs; test_docs.run(pathlib.Path({str(page)!r}))"
    )

    # A process of its own: some use frameworks, and other tests fork.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )

    assert done.returncode == 0, done.stdout + done.stderr


def run(page: Path) -> None:
    """All examples of a page, in order, in the current folder."""
    namespace: dict[str, Any] = {"__name__": page.stem}
    for example in examples(page):
        if example.language == "python":
            # Blank lines first, so that a traceback shows the line of the page.
            exec(compile("\n" * example.line + example.text, str(page), "exec"), namespace)
        for command, shown in COMMAND.findall(example.text) if example.language == "console" else ():
            done = CliRunner().invoke(app, shlex.split(command))
            is_diff = command.startswith("diff ")  # of which 1 is an answer, and the page shows all of it
            assert done.exit_code in ((0, 1) if is_diff else (0,)), f"{page.name}: {command}\n{done.output}"
            if is_diff and shown:
                assert unpadded(done.stdout) == unpadded(shown), f"{page.name}: {command}\n{done.output}"


def unpadded(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def test_links_between_pages_lead_somewhere() -> None:
    missing = [
        (page.name, target)
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]

    assert missing == []


def test_readme_loop_has_at_most_15_lines() -> None:
    loops = [example.text for example in examples(ROOT / "README.md") if "restore_or_initialize" in example.text]

    assert [len(text.strip().splitlines()) <= 15 for text in loops] == [True]


def examples(page: Path) -> list[Example]:
    text = page.read_text(encoding="utf-8")
    return [Example(found[1], found[2], text[: found.start(2)].count("\n")) for found in FENCE.finditer(text)]
