"""The benchmarks run. In a process of their own, as they fork before TensorFlow has started its threads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TINY = "import sys, pathlib; from benchmarks import tf_bundle; tf_bundle.run(pathlib.Path(sys.argv[1]), 1 << 20, 30, 1)"


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float | str]]:
    command = [sys.executable, "-c", TINY, str(tmp_path_factory.mktemp("bench"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_the_tf_bundle_benchmark_has_a_line_for_every_case(facts: list[dict[str, float | str]]) -> None:
    assert [fact["case"] for fact in facts] == [
        "save, 1 MiB, managed",
        "save, 1 MiB, bare files",
        "replace, 1 MiB, managed",
        "replace, 1 MiB, bare files",
        "restore, 1 MiB, managed",
        "restore, 1 MiB, bare files",
        "restore, 1 MiB, TensorFlow's",
        "open, 30 entries",
    ]


def test_ratios_are_our_seconds_over_theirs(facts: list[dict[str, float | str]]) -> None:
    for fact in facts:
        assert fact["ratio"] == pytest.approx(float(fact["ours_s"]) / float(fact["theirs_s"]))


def test_a_sample_that_fails_shows_the_error_of_its_call() -> None:
    command = [sys.executable, "-c", "from benchmarks.measure import sample; sample(lambda: 1 / 0)"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
