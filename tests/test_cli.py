"""The command line: what it prints, its exit codes, and that it changes nothing it was not asked to."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from ckptmgr import CheckpointManager, KeepBest, KeepBytes, KeepEvery, KeepLast, KeepWithin, StepNaming, save
from ckptmgr.cli import policy
from ckptmgr.cli.app import app
from ckptmgr.cli.output import printable
from ckptmgr.cli.show import lines, nested
from ckptmgr.spec import TensorSpec

COMMAND = Path(sys.executable).with_name("ckptmgr")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of four steps: 300 has the best loss, 400 none, 200 is pinned."""
    folder = tmp_path / "run"
    losses = {100: 0.5, 200: 0.4, 300: 0.1, 400: float("nan")}
    with CheckpointManager(folder) as manager:
        for step, loss in losses.items():
            state = {"model": {"w": np.full((2, 3), step, np.float32), "b": np.zeros(3, np.int64)}, "epoch": step // 100}
            manager.save(step, state, metrics={"loss": loss}, metadata={"note": "a"}, assets={"config.json": b"{}"})
        manager.pin(200, "paper")
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def document(*arguments: object) -> Any:
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def damage(run: Path, step: int) -> None:
    with CheckpointManager(run) as manager:
        file = Path(manager.path(step)) / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


# ---- ls


def test_ls_prints_a_line_a_step_in_order_of_saves(run: Path) -> None:
    rows = call("ls", run).stdout.splitlines()

    assert [row.split()[0] for row in rows] == ["step", "100", "200", "300", "400"]
    assert "loss=0.4" in rows[2]
    assert rows[2].split()[-1] == "paper"


def test_ls_as_json_has_everything_known_of_a_step(run: Path) -> None:
    last = document("ls", run)["steps"][-1]

    assert (last["step"], last["metrics"], last["metadata"]) == (400, {"loss": "NaN"}, {"note": "a"})
    assert Path(last["path"], "model.safetensors").exists()


def test_ls_of_a_file_says_what_shows_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run / "w.safetensors", {"w": np.zeros(2)})
    monkeypatch.chdir(run)

    for url in ("w.safetensors", f"file://{run}/w.safetensors"):
        done = call("ls", url)
        assert (done.exit_code, done.stdout) == (1, "")
        assert "it is a file, and 'ckptmgr show' tells" in done.stderr


def test_ls_of_a_folder_of_runs_says_what_explains_it(run: Path) -> None:
    assert "'ckptmgr doctor' tells why" in call("ls", run.parent).stderr


def test_ls_of_nothing_fails_in_one_line(tmp_path: Path) -> None:
    done = call("ls", tmp_path / "typo")

    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("ckptmgr: no run at ")
    assert done.stderr.count("\n") == 1


def test_looking_at_nothing_makes_no_folder(tmp_path: Path) -> None:
    for command in ("ls", "show", "verify", "sweep"):
        assert call(command, tmp_path / "typo").exit_code == 1

    assert list(tmp_path.iterdir()) == []


def test_ls_warns_of_a_damaged_record_and_lists_the_others(run: Path) -> None:
    (run / "step-00000300" / "manifest.json").write_bytes(b"{}")

    done = call("ls", run)

    assert [row.split()[0] for row in done.stdout.splitlines()[1:]] == ["100", "200", "400"]
    assert "step-00000300" in done.stderr


def test_ls_of_steps_with_other_names_says_which_names_it_knows(tmp_path: Path) -> None:
    CheckpointManager(tmp_path, naming=StepNaming("ckpt-{step}")).save(1, {})

    assert "'step-{step:08d}'" in call("ls", tmp_path).stderr


def test_ls_show_and_gc_mark_steps_of_other_tools(run: Path) -> None:
    save(run / "ckpt-50.safetensors", {"w": np.zeros(3)})

    rows = [row.split() for row in call("ls", run).stdout.splitlines()]
    assert (rows[1][0], rows[1][-2:]) == ("50", ["safetensors", "(foreign)"])
    assert [info["is_foreign"] for info in document("ls", run)["steps"]] == [True, False, False, False, False]
    assert "by another tool (foreign)" in call("show", run, "--step", 50).stdout
    done = call("gc", run, "--keep-last", 1, "--yes")
    assert "left alone, of other tools: 1 step" in done.stdout
    assert "deleted 2 of 4 steps" in done.stdout
    assert (run / "ckpt-50.safetensors").exists()


# ---- show


def test_show_prints_the_tree_with_dtype_shape_and_size(run: Path) -> None:
    rows = [row.split() for row in call("show", run, "--step", 300).stdout.splitlines()]

    assert ["w", "float32", "2x3", "24", "bytes"] in rows
    assert ["b", "int64", "3", "24", "bytes"] in rows
    assert ["model/", "48", "bytes"] in rows
    assert ["epoch", "int", "3"] in rows
    assert ["assets", "config.json"] in rows


@pytest.mark.parametrize("inside", ["", "step-00000400", "step-00000400/a-*", "step-00000400/a-*/model.safetensors"])
def test_show_takes_a_run_a_step_an_attempt_or_a_file(run: Path, inside: str) -> None:
    (place,) = run.glob(inside) if inside else [run]

    shown = document("show", place)

    assert sorted(tensor["shape"] for tensor in shown["tensors"].values()) == [[2, 3], [3]]


def test_show_opens_a_file_that_no_run_holds(tmp_path: Path) -> None:
    save(tmp_path / "w.safetensors", {"layer.weight": np.ones((4, 2)), "layer.bias": np.ones(2)})

    rows = [row.split() for row in call("show", tmp_path / "w.safetensors").stdout.splitlines()]

    assert ["layer.", "80", "bytes"] in rows


def test_show_of_a_missing_step_names_those_that_are_there(run: Path) -> None:
    done = call("show", run, "--step", 7)

    assert done.exit_code == 1
    assert "step 7" in done.stderr
    assert "400" in done.stderr


def test_show_of_an_unknown_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")

    done = call("show", tmp_path / "notes.txt")

    assert done.exit_code == 1
    assert "no installed backend recognizes" in done.stderr


def test_a_name_that_is_both_tensor_and_branch_keeps_both() -> None:
    specs = {name: TensorSpec("int8", ()) for name in ("a", "a.b", "c.d", "c")}

    shown = lines(nested(specs))

    assert [line.key for line in shown] == ["a", "a.", "  b", "c.", "  d", "c"]


def test_a_missing_package_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)

    done = call("demo")

    assert done.exit_code == 2
    assert "pip install 'ckptmgr[demo]'" in done.stderr


def test_control_characters_are_shown_not_sent() -> None:
    assert printable("a\x1b[2Jb\n\ud800") == "a\\x1b[2Jb\\n\\ud800"


# ---- verify


def test_verify_of_a_run_checks_every_step(run: Path) -> None:
    assert call("verify", run).stdout.splitlines() == ["step 100: ok", "step 200: ok", "step 300: ok", "step 400: ok"]


def test_verify_names_step_file_and_tensor(run: Path) -> None:
    damage(run, 300)

    done = call("verify", run)

    assert done.exit_code == 1
    assert "step 300: damaged" in done.stdout
    assert "model.safetensors, tensor model/" in done.stdout
    assert "step 400: ok" in done.stdout


def test_verify_as_json_fails_with_the_same_exit_code(run: Path) -> None:
    damage(run, 300)

    done = call("verify", run, "--step", 300, "--json")

    assert done.exit_code == 1
    assert json.loads(done.stdout)["checked"][0]["problems"][0]["file"] == "model.safetensors"


def test_verify_takes_a_single_file(run: Path) -> None:
    (file,) = run.glob("step-00000100/a-*/model.safetensors")

    assert call("verify", file).stdout == f"{file}: ok\n"


def test_verify_of_a_file_that_does_not_open_says_so_in_its_report(run: Path) -> None:
    (file,) = run.glob("step-00000100/a-*/model.safetensors")
    file.write_bytes(file.read_bytes()[:-1])

    done = call("verify", file, "--json")

    assert done.exit_code == 1
    assert json.loads(done.stdout)["checked"][0]["problems"][0]["file"] == "model.safetensors"


# ---- gc, pin, unpin, sweep


def test_gc_dry_run_prints_reasons_and_deletes_nothing(run: Path) -> None:
    done = call("gc", run, "--keep-best", "loss:min:1", "--dry-run")

    rows = {row.split()[1]: row for row in done.stdout.splitlines()[1:]}
    assert rows["100"].startswith("drop")
    assert "pinned: paper" in rows["200"]
    assert "best 1 of loss" in rows["300"]
    assert "newest" in rows["400"]
    assert len(document("ls", run)["steps"]) == 4


def test_gc_executes_the_plan_it_prints(run: Path) -> None:
    planned = document("gc", run, "--keep-last", 2, "--dry-run")["plan"]

    executed = document("gc", run, "--keep-last", 2, "--yes")

    assert executed["executed"]
    assert executed["plan"] == planned
    assert [info["step"] for info in document("ls", run)["steps"]] == [200, 300, 400]


def test_gc_asks_nobody_in_a_pipe_and_deletes_nothing(run: Path) -> None:
    done = call("gc", run, "--keep-last", 1)

    assert done.exit_code == 2
    assert "--yes" in done.stderr
    assert len(document("ls", run)["steps"]) == 4


@pytest.mark.parametrize("options", [[], ["--keep-last", "0"], ["--keep-best", "loss:up"], ["--keep-within", "soon"]])
def test_gc_refuses_options_that_say_nothing(run: Path, options: list[str]) -> None:
    assert call("gc", run, *options, "--dry-run").exit_code == 2


def test_options_become_policies() -> None:
    made = policy.retention(3, 1000, None, "2h", ["val:loss:max:2", "acc"], "1GiB")

    assert list(made.policies) == [
        KeepLast(3),
        KeepEvery(1000),
        KeepWithin(policy.duration("120m")),
        KeepBest("val:loss", n=2, mode="max"),
        KeepBest("acc"),
        KeepBytes(1 << 30),
    ]


def test_unpin_of_a_pin_that_is_not_there_fails_and_names_those_that_are(run: Path) -> None:
    done = call("unpin", run, 200, "papr")

    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "ckptmgr: step 200 has no pin 'papr' (it has 'paper')\n"
    assert document("ls", run)["steps"][1]["pins"] == ["paper"]


def test_unpin_takes_a_pin_off(run: Path) -> None:
    assert call("pin", run, 100, "thesis").stdout == "step 100 pinned: thesis\n"
    assert call("unpin", run, 200, "paper").stdout == "step 200 unpinned: paper\n"

    pins = {info["step"]: info["pins"] for info in document("ls", run)["steps"]}

    assert pins == {100: ["thesis"], 200: [], 300: [], 400: []}


@pytest.mark.parametrize("name", ["", "a" * 100_000, "line\nbreak"])
def test_a_pin_of_no_usable_name_is_wrong_usage(run: Path, name: str) -> None:
    done = call("pin", run, 100, name)

    assert done.exit_code == 2
    assert document("ls", run)["steps"][0]["pins"] == []


@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_folder_of_several_checkpoints_is_wrong_usage(tmp_path: Path, command: str) -> None:
    for name in ("a", "b"):
        save(tmp_path / f"{name}.safetensors", {"w": np.zeros(2)})

    done = call(command, tmp_path)

    assert done.exit_code == 2
    assert "a.safetensors" in done.stderr


def test_a_place_that_cannot_be_opened_is_wrong_usage() -> None:
    done = call("ls", "gopher://bucket/run")

    assert done.exit_code == 2
    assert "gopher" in done.stderr


def test_sweep_deletes_leftovers_and_leaves_foreign_files(run: Path) -> None:
    dead, foreign = run / "step-00000500" / "a-0123456789abcdef", run / "step-00000500" / "notes.txt"
    dead.mkdir(parents=True)
    (dead / "model.safetensors").write_bytes(b"half")
    foreign.write_text("mine")

    swept = document("sweep", run, "--grace", "0s")

    assert swept["nbytes"] == 4
    assert not dead.exists()
    assert foreign.exists()
    assert len(document("ls", run)["steps"]) == 4


def test_other_step_names_are_told_by_template(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, naming=StepNaming("ckpt-{step}")) as manager:
        manager.save(5, {"w": np.zeros(1)})

    assert document("ls", tmp_path, "--naming", "ckpt-{step}")["steps"][0]["name"] == "ckpt-5"
    assert call("ls", tmp_path, "--naming", "ckpt").exit_code == 2


# ---- the installed command


def test_installed_command_is_quiet_in_a_pipe(run: Path) -> None:
    done = subprocess.run([COMMAND, "verify", run, "--step", "400"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "step 400: ok\n", "")


def test_installed_command_fails_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run([COMMAND, "show", tmp_path / "typo"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


@pytest.mark.parametrize(("answer", "code", "steps"), [(b"n\n", 1, [100, 200, 300, 400]), (b"y\n", 0, [200, 400])])
def test_gc_asks_a_person_before_it_deletes(run: Path, answer: bytes, code: int, steps: list[int]) -> None:
    keyboard, terminal = os.openpty()
    os.write(keyboard, answer)

    done = subprocess.run([COMMAND, "gc", run, "--keep-last", "1"], stdin=terminal, capture_output=True, text=True, check=False)

    os.close(keyboard)
    os.close(terminal)
    assert done.returncode == code
    assert "Delete 2 of 4 steps?" in done.stderr
    assert [info["step"] for info in document("ls", run)["steps"]] == steps


def test_a_reader_that_has_seen_enough_is_no_error(run: Path) -> None:
    done = subprocess.run(f"{COMMAND} show {run} --json | head -1", shell=True, capture_output=True, text=True, check=False)

    assert (done.stdout, done.stderr) == ("{\n", "")


def test_module_runs_like_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "ckptmgr.cli", "--version"], capture_output=True, text=True, check=False)

    assert done.stdout.startswith("ckptmgr ")
