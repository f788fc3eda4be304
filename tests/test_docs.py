"""Every example of the documentation runs, in order, one process and one folder a page."""

import inspect
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

import ckptmgr
from ckptmgr.cli.app import app

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ ckptmgr (?!demo)(.+)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)  # the demo has tests of its own
FAILS = re.compile(r"# exits with (\d)$")


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
            done = CliRunner().invoke(app, shlex.split(command, comments=True))
            expected_code = int(found[1]) if (found := FAILS.search(command)) else 0
            assert done.exit_code == expected_code, f"{page.name}: {command}\n{done.output}"
            assert is_shown(shown, done.output), f"{page.name}: {command}\nshown:\n{shown}\nprinted:\n{done.output}"


def is_shown(shown: str, printed: str) -> bool:
    """Whether a page shows what a command printed; ``...`` stands for anything in a line, and alone for any lines.

    A page that shows nothing says nothing about it. Blanks count as one, so that columns may be as wide as they are.
    """
    if not shown.strip():
        return True
    lines = [r"(?:.*\n)*" if line.strip() == "..." else _pattern(line) for line in shown.rstrip().splitlines()]
    return re.fullmatch("".join(lines), "".join(f"{_blanks(line)}\n" for line in printed.rstrip().splitlines())) is not None


def _pattern(line: str) -> str:
    return ".*".join(map(re.escape, _blanks(line).split("..."))) + r"\n"


def _blanks(line: str) -> str:
    return " ".join(line.split())


def test_what_a_page_shows_is_compared_with_what_is_printed() -> None:
    printed = "step  saved                 size\n 100  2026-01-01 00:00:00Z   1 MB\n 200  2026-01-01 00:00:01Z   1 MB\n"

    assert is_shown("step saved size\n100 ...Z 1 MB\n...\n", printed)
    assert is_shown("", printed)
    assert not is_shown("step saved size\n300 ...Z 1 MB\n...\n", printed)
    assert not is_shown("step saved size\n100 ...Z 1 MB\n", printed)


def test_links_between_pages_lead_somewhere() -> None:
    missing = [
        (page.name, target)
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]

    assert missing == []


@pytest.mark.parametrize("index", ["README.md", "docs/index.md", "docs/mkdocs/mkdocs.yml"])
def test_every_page_is_listed(index: str) -> None:
    listed = (ROOT / index).read_text(encoding="utf-8")

    missing = [page.name for page in PAGES if page.name not in ("README.md", "index.md") and page.name not in listed]

    assert missing == []


def test_every_public_name_stands_in_the_reference() -> None:
    told = set(re.findall(r"`(\w+)", (ROOT / "docs" / "api.md").read_text(encoding="utf-8")))

    assert sorted(set(ckptmgr.__all__) - told) == []


def test_every_error_has_its_line() -> None:
    public = {name for name in ckptmgr.__all__ if name.endswith("Error") and name != "CheckpointError"}

    assert set(re.findall(r"^\| `(\w+)`", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)) == public


def test_every_argument_of_a_public_function_is_told() -> None:
    calls = [call for name in ckptmgr.__all__ if inspect.isfunction(call := getattr(ckptmgr, name))]

    untold = [
        (call.__name__, name)
        for call in calls
        for name in inspect.signature(call).parameters
        if not re.search(rf"\b{name}\b", call.__doc__ or "")
    ]

    assert len(calls) == 10
    assert untold == []


def test_changelog_says_nothing_twice() -> None:
    """Merges add lines of both sides."""
    lines = [line for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if line]
    begun = [line[:26] for line in lines if line.startswith("- ")]

    assert [line for line, count in Counter([*lines, *begun]).items() if count > 1] == []


def test_readme_loop_has_at_most_15_lines() -> None:
    loops = [example.text for example in examples(ROOT / "README.md") if "restore_or_initialize" in example.text]

    assert [len(text.strip().splitlines()) <= 15 for text in loops] == [True]


def examples(page: Path) -> list[Example]:
    text = page.read_text(encoding="utf-8")
    return [Example(found[1], found[2], text[: found.start(2)].count("\n")) for found in FENCE.finditer(text)]
