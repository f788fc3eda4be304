"""``ckptmgr diff``: what it shows, which two it compares, and its exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import ckptmgr
from ckptmgr import CheckpointManager
from ckptmgr.cli.app import app

COMMAND = Path(sys.executable).with_name("ckptmgr")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["diff", *map(str, arguments)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with CheckpointManager(tmp_path / "run") as manager:
        for step in (1, 2, 3):
            state = {"net": {"w": np.full(3, step, np.float32), "b": np.zeros(2)}, "epoch": step}
            manager.save(step, state, metrics={"loss": 0.5})
    return tmp_path / "run"


def test_the_last_two_steps_of_a_run_are_compared(run: Path) -> None:
    done = call(run)

    assert (done.exit_code, done.stderr) == (1, "")
    assert [line.rstrip() for line in done.stdout.splitlines()] == [
        "A: step 2 (safetensors)",
        "B: step 3 (safetensors)",
        "",
        "tensor  differs in  dtype and shape  changed  max abs  relative",
        "net/w   values      float32 3         3 of 3        1       0.5",
        "",
        "what   name   A -> B",
        "value  epoch  2 -> 3",
        "",
        "1 tensor differs (1 in values), 1 equal; other values: 1 of the state",
    ]


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        (["{run}", "--steps", 3, 1], [3, 1]),
        (["{run}", "{run}", "--steps", 1, 2], [1, 2]),
        (["{run}/step-00000001", "{run}"], [1, 3]),
        (["{run}/step-00000002", "{run}/step-00000001"], [2, 1]),
    ],
)
def test_steps_are_chosen_by_number_or_by_their_folders(run: Path, arguments: list[object], steps: list[int]) -> None:
    done = call(*(str(each).format(run=run) for each in arguments), "--json")

    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert [found[side]["step"] for side in "ab"] == steps
    assert [(each["name"], each["changed"]) for each in found["tensors"]] == [("net/w", 3)]
    assert found["same"] is False


def test_the_same_exits_with_0(run: Path) -> None:
    done = call(run, run, "--steps", 2, 2)

    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "the same: 2 tensors")
    assert call(run, "--select", "net/b").exit_code == 0
    assert call(run, "--atol", 1).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--steps", "1", "9"], "step 9 is not committed"),
        (["{run}", "{run}x"], "nothing at"),
        (["{run}/step-00000001"], "say what to compare it with"),
        (["{run}", "--select", "typo/*"], "matches no name"),
        (["{run}", "--atol", "-1"], "a tolerance is a number from 0 on"),
        (["{run}", "--rules", "typo"], "neither a file of rules"),
    ],
)
def test_what_cannot_be_compared_exits_with_2_and_one_message(run: Path, arguments: list[str], message: str) -> None:
    done = call(*(each.format(run=run) for each in arguments))

    assert (done.exit_code, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.replace("│", " ").split())


def test_damage_exits_with_2_and_names_the_tensor(run: Path) -> None:
    [file] = (run / "step-00000002").glob("a-*/model.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)

    done = call(run, "--steps", 2, 3)

    assert (done.exit_code, done.stdout) == (2, "")
    assert "'net/w'" in done.stderr


def test_files_of_two_formats_are_compared_by_rules(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "a.npz", {"layers": {"fc": {"kernel": np.ones((2, 3))}}}, backend="npz")
    ckptmgr.convert(tmp_path / "a.npz", tmp_path / "b.safetensors", rename=["keras-to-torch", ("fc.", "head.")])

    rules = "--rules", "keras-to-torch", "--rename", "fc.=head."
    done, without = (
        call(tmp_path / "a.npz", tmp_path / "b.safetensors", *rules),
        call(tmp_path / "a.npz", tmp_path / "b.safetensors"),
    )

    assert done.exit_code == 0, done.output
    assert "only in A   float64 2x3" in without.stdout
    assert without.stdout.splitlines()[-1] == "no name is in both: --rules or --rename give names in A those in B"
    assert without.exit_code == 1


def test_a_long_table_is_cut_and_says_so(tmp_path: Path) -> None:
    for side in range(2):
        ckptmgr.save(tmp_path / f"{side}.npz", {f"t{index}": np.full(1, side) for index in range(5)}, backend="npz")

    done = call(tmp_path / "0.npz", tmp_path / "1.npz", "--most", 2)
    whole = call(tmp_path / "0.npz", tmp_path / "1.npz", "--most", 0)

    assert "... and 3 more (--most 0 lists all)" in done.stdout
    assert [done.stdout.count("int64"), whole.stdout.count("int64")] == [2, 5]


def test_quick_lists_what_was_not_compared_and_is_no_same(tmp_path: Path) -> None:
    for side in "ab":
        ckptmgr.save(tmp_path / f"{side}.safetensors", {"w": np.ones(1)})

    done = call(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--quick")

    assert done.exit_code == 2
    assert done.stdout.splitlines()[-2:] == [
        "no tensor differs, 0 equal, 1 not compared",
        "  not compared, as it has no checksum on both sides: w",
    ]


def test_a_difference_that_is_known_counts_more_than_what_was_not_compared(tmp_path: Path) -> None:
    for side in "ab":
        ckptmgr.save(tmp_path / f"{side}.safetensors", {"w": np.ones(1), side: np.ones(1)})

    assert call(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--quick").exit_code == 1


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("a mistake of ours")])
def test_no_failure_at_all_looks_like_a_difference(run: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("ckptmgr.cli.diff.diff", fails)
    monkeypatch.delenv("CKPTMGR_TRACEBACK", raising=False)

    assert call(run).exit_code == 2


def test_the_installed_command_compares_and_exits_as_diff_does(run: Path) -> None:
    codes = [
        subprocess.run([COMMAND, "diff", run, *more], capture_output=True, check=False).returncode
        for more in ([], [run, "--steps", "1", "1"], ["--steps", "1", "7"])
    ]

    assert codes == [1, 0, 2]
