"""The benchmarks run with tiny states, each in a process of its own, and what they report follows from their samples."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package
from benchmarks import goals, report
from benchmarks.goals import GOALS, Goal

ROOT = Path(__file__).resolve().parents[1]
TINY = """
import functools, json, pathlib, sys
from benchmarks import {name} as it, running
cases = functools.partial(it.cases, **{sizes})
print(json.dumps(running.run({name!r}, cases, pathlib.Path(sys.argv[1]) / "run", 1, peers={peers}, quick=True)))
"""
SIZES = {
    "save_restore": {"nbytes": 1 << 20},
    "background": {"nbytes": 1 << 20},
    "small_tensors": {"count": 30, "times": 2},
    "incremental": {"nbytes": 8 << 20, "saves": 4},
    "memory": {"nbytes": 1 << 20},
    "scaling": {"sizes": [1], "counts": [1, 3]},
    "shard_io": {"nbytes": 1 << 20},
    "tf_bundle": {"nbytes": 1 << 20, "count": 30},
    "hdf5": {"nbytes": 1 << 20, "count": 30},
    "cloud": {"nbytes": 17 << 20},
    "convert": {"nbytes": 1 << 20},
}
QUICK = ["safetensors.numpy", "h5py", "numpy.savez", "nobody"]  # the others take seconds to import
ALL = ["safetensors.torch", "torch.save", "torch DCP", "Orbax", "tf.train.Checkpoint", "Keras weights.h5"]


def run(name: str, folder: Path, peers: list[str]) -> dict[str, Any]:
    code = TINY.format(name=name, sizes=SIZES[name], peers=peers)
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def rows(results: dict[str, Any]) -> dict[str, list[str]]:
    return {case["case"]: [row["who"] for row in case["rows"]] for case in results["cases"]}


@pytest.mark.parametrize("name", SIZES)
def test_a_benchmark_has_samples_of_ours_in_every_case(name: str, tmp_path: Path) -> None:
    results = run(name, tmp_path, QUICK)

    assert results["left_out"] == {}
    assert results["cases"]
    for case in results["cases"]:
        assert case["rows"], case["case"]
        assert all(len(row["seconds"]) == len(row["extra_nbytes"]) == 1 for row in case["rows"])
        assert case["limit"] in ("", *(row["who"] for row in case["rows"]))


@pytest.mark.slow
def test_save_and_restore_are_measured_beside_each_peer(tmp_path: Path) -> None:
    results = run("save_restore", tmp_path, ALL)

    missing = [] if importlib.util.find_spec("orbax") else ["Orbax"]
    assert list(results["left_out"]) == missing
    ours = ["raw write", "ckptmgr safetensors", "ckptmgr tf_bundle", "ckptmgr hdf5"]
    assert rows(results)["durable save"] == [*ours, *(peer for peer in ALL if peer not in missing)]
    assert rows(results)["restore into given arrays"][-3:] == ["torch DCP", "tf.train.Checkpoint", "Keras weights.h5"]


MEASURED = """
from benchmarks.measure import Case, Way, measured, timed
def missing():
    import no_such_package
def task(): return timed(lambda: bytearray(1 << 24), then=lambda _: None)
ways = [Way("good", task), Way("absent", task, missing), Way("{who}", lambda: 1 / 0), Way("few", task, rounds=1)]
results, left_out = measured([Case("c", ways)], 3, say=print)
print([(row["who"], len(row["seconds"]), min(row["extra_nbytes"]) >= 1 << 24) for row in results[0]["rows"]], left_out)
"""


def measured(who: str) -> subprocess.CompletedProcess[str]:
    code = MEASURED.replace("{who}", who)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_who_is_missing_or_fails_is_named_and_left_out() -> None:
    done = measured("peer")

    assert "[('good', 3, True), ('few', 1, True)]" in done.stdout
    assert "'absent': \"No module named 'no_such_package'\"" in done.stdout
    assert "'peer': 'failed: ZeroDivisionError: division by zero'" in done.stdout
    assert "Traceback" in done.stderr


def test_what_is_ours_may_not_fail() -> None:
    done = measured("ckptmgr")

    assert done.returncode == 1
    assert "RuntimeError: ZeroDivisionError" in done.stderr


def case(name: str = "durable save", **who: list[float]) -> dict[str, Any]:
    named = {"ours": "ckptmgr safetensors", "theirs": "safetensors.numpy", "limit": "raw write"}
    found = [{"who": named[key], "seconds": each, "extra_nbytes": [0] * len(each)} for key, each in who.items()]
    return {"case": name, "nbytes": 10**6, "limit": "raw write", "ours": "ckptmgr safetensors", "aside": "", "rows": found}


def results(*cases: dict[str, Any]) -> dict[str, Any]:
    machine = {"date": "2026-01-01", "cores": 2, "memory_gib": 8, "file_system": "ext4", "kernel": "Linux 6", "python": "3.11"}
    facts = {"machine": machine | {"load": 0.1, "versions": {"numpy": "2"}}, "rounds": 3, "quick": False, "seconds": 1}
    return {**facts, "left_out": {"Orbax": "No module named 'orbax'"}, "cases": list(cases)}


def test_ratios_are_medians_of_pairs() -> None:
    table = report.table(case(limit=[0.1, 0.2, 0.4], ours=[0.2, 0.2, 0.2], theirs=[0.1, 0.4, 0.8]))

    assert table[0] == ["who", "ms", "min .. max", "MB/s", "of the limit's time", "ours / theirs", "extra memory", "rounds"]
    assert table[3] == ["safetensors.numpy", "400", "100 .. 800", "2", "2.00", "0.50 (0.25 .. 2.00)", "0.00 states", "3"]


def test_a_lost_goal_is_shown_like_a_won_one() -> None:
    found = {"save_restore": results(case(limit=[1.0], ours=[0.8], theirs=[0.5]))}

    lines = report.goals_table(found)[1:]

    assert [line[1:] for line in lines] == [
        ["0.85x", "1.60x", "**not reached**"],
        ["0.85x", "0.80x", "reached"],
        ["0.05 states", "0.00 states", "reached"],
    ]


def test_a_goal_that_allows_milliseconds_is_reached_by_them() -> None:
    found = {"save_restore": results(case(ours=[0.020], theirs=[0.010]))}
    goal = Goal("save_restore", "durable save", "ckptmgr safetensors", 1.15, ["safetensors.numpy"])

    assert goals.verdict(goal, found, report.ratio) == (2.0, False)
    assert goals.verdict(Goal(**vars(goal) | {"or_ms": 15}), found, report.ratio) == (2.0, True)


def test_to_be_faster_is_not_enough_for_a_goal_that_allows_no_milliseconds() -> None:
    found = {"save_restore": results(case(ours=[0.005], theirs=[0.010]))}
    goal = Goal("save_restore", "durable save", "ckptmgr safetensors", 0.4, ["safetensors.numpy"])

    assert goals.verdict(goal, found, report.ratio) == (0.5, False)


def test_a_goal_of_the_call_is_about_the_second_times() -> None:
    found = case("restore", ours=[0.020], theirs=[0.010])
    for row, seconds in zip(found["rows"], (0.001, 0.002), strict=True):
        row["aside"] = [seconds]
    goal = Goal("save_restore", "restore", "ckptmgr safetensors", 0.6, ["safetensors.numpy"], figure="call")

    assert goals.verdict(goal, {"save_restore": results(found)}, report.ratio) == (0.5, True)


def test_results_are_kept_beside_those_of_other_benchmarks_and_pages_written_again_are_equal(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "benchmarks.md").write_text(f"before\n\n{report.BEGIN}\nnonsense\n{report.END}\nafter\n")
    report.write(tmp_path, {"save_restore": results(case(limit=[1.0], ours=[0.8], theirs=[0.5]))})
    report.write(tmp_path, {"background": results(case("blocked by a save", ours=[0.1234567]))})
    page = (tmp_path / "benchmarks.md").read_text()

    report.write(tmp_path, {})

    assert (tmp_path / "benchmarks.md").read_text() == page
    assert page.startswith("before\n")
    assert page.endswith(f"{report.END}\nafter\n")
    assert [word in page for word in ("nonsense", "### save_restore", "### background", "Left out: Orbax")] == [
        False,
        True,
        True,
        True,
    ]
    assert json.loads((tmp_path / "benchmarks/results.json").read_text())["background"]["cases"][0]["rows"][0]["seconds"] == [
        0.123457
    ]
    assert {path.name for path in tmp_path.glob("benchmarks/*.svg")} == {"save_restore.svg", "background.svg"}


def test_goals_name_benchmarks_that_there_are() -> None:
    assert {goal.benchmark for goal in GOALS} <= set(SIZES)
