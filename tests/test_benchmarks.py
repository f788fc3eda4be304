"""The benchmarks run. Each in a process of its own, as they fork before TensorFlow has started its threads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TINY = "import sys, pathlib; from benchmarks import {} as it; it.run(pathlib.Path(sys.argv[1]), 1 << 20, 30, 1)"
Facts = list[dict[str, float | str]]


def run(name: str, folder: Path) -> Facts:
    command = [sys.executable, "-c", TINY.format(name), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def tf_bundle(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return run("tf_bundle", tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def hdf5(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return run("hdf5", tmp_path_factory.mktemp("bench"))


def test_the_tf_bundle_benchmark_has_a_line_for_every_case(tf_bundle: Facts) -> None:
    assert [fact["case"] for fact in tf_bundle] == [
        "save, 1 MiB, managed",
        "save, 1 MiB, bare files",
        "replace, 1 MiB, managed",
        "replace, 1 MiB, bare files",
        "restore, 1 MiB, managed",
        "restore, 1 MiB, bare files",
        "restore, 1 MiB, TensorFlow's",
        "open, 30 entries",
    ]


def test_the_hdf5_benchmark_has_a_line_for_every_case(hdf5: Facts) -> None:
    assert [fact["case"] for fact in hdf5] == [
        "save, 1 MiB, managed / h5py",
        "save, 1 MiB, managed / Keras",
        "save, 1 MiB, bare file / h5py",
        "save, 1 MiB, bare file / Keras",
        "restore, 1 MiB, managed / h5py",
        "restore, 1 MiB, managed / Keras",
        "restore, 1 MiB, bare file / h5py",
        "restore, 1 MiB, bare file / Keras",
        "restore, 1 MiB, h5py's file / h5py",
        "restore, 1 MiB, h5py's file / Keras",
        "save, 30 small, managed / h5py",
        "save, 30 small, bare file / h5py",
        "restore, 30 small, managed / h5py",
        "restore, 30 small, bare file / h5py",
        "restore, 30 small, h5py's file / h5py",
    ]


def test_ratios_are_our_seconds_over_theirs(tf_bundle: Facts, hdf5: Facts) -> None:
    for fact in tf_bundle + hdf5:
        assert fact["ratio"] == pytest.approx(float(fact["ours_s"]) / float(fact["theirs_s"]))


def test_the_incremental_benchmark_stores_the_base_once(tmp_path: Path) -> None:
    command = f"import pathlib; from benchmarks import incremental; incremental.run(pathlib.Path({str(tmp_path)!r}), 8 << 20, 4)"

    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["stored"] < 1.2


def test_a_sample_that_fails_shows_the_error_of_its_call() -> None:
    command = [sys.executable, "-c", "from benchmarks.measure import sample; sample(lambda: 1 / 0)"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
