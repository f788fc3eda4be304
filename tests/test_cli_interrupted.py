"""Ctrl-C at any moment at which a command touches the disk: nothing half-visible, the source as it was, and again it finishes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from syscalls import exit_code, start_child
from typer.testing import CliRunner

import ckptmgr
from ckptmgr import CheckpointManager
from ckptmgr.cli.app import app
from ckptmgr.cli.demo import images
from ckptmgr.cli.interrupting import uninterrupted

ROOT = Path(__file__).parents[1]
EVENTS = {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "fcntl.flock", "os.scandir"}
MOMENTS = 5
LINES = {
    "convert to a file": "convert run new.h5",
    "convert to several": "convert run new/ --to npz",
    "convert to a step": "convert run copy --step 3 --to npz",
    "cp": "cp run copy",
    "migrate": "migrate run copy --workers 2",
    "migrate to another format": "migrate run copy --to hdf5",
    "gc": "gc run --keep-last 1 --yes",
    "sweep": "sweep run --grace 0s",
    "verify": "verify run",
    "report": "report run -o page.html --tensors 1",
}
MADE = {"run", "copy", "new", "new.h5", "page.html"}  # all names that may ever be seen


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    with CheckpointManager(folder / "run") as manager:
        for step in (1, 2, 3):
            manager.save(step, {"a": np.full(1000, step), "b": {"c": np.zeros(3), "d": step}}, metrics={"loss": 1 / step})
    left = folder / "run" / "step-00000009" / "a-0123456789abcdef"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    return folder


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_an_interrupt_leaves_nothing_half_visible_and_again_it_finishes(prepared: Path, line: str, tmp_path: Path) -> None:
    arguments = line.split()
    whole = tmp_path / "whole"
    shutil.copytree(prepared, whole)
    code, touched, told = interrupted(whole, arguments, None)
    assert (code, told) == (0, "")
    expected = visible(whole)

    codes = set()
    for moment in sorted({1 + touched * number // MOMENTS for number in range(MOMENTS)}):
        place = tmp_path / str(moment)
        shutil.copytree(prepared, place)
        code, _, told = interrupted(place, arguments, moment)
        codes.add(code)
        assert (code, told.count("\n"), told[:21]) == (130, 1, "ckptmgr: interrupted:") or (code, told) == (0, "")

        found = visible(place)
        assert {path.name for path in place.iterdir()} <= MADE
        if not line.startswith(("gc", "sweep")):
            assert found["run"] == [1, 2, 3]
        for name in found.keys() - {"run", "copy"}:
            assert found[name] == expected[name]

        code, _, told = interrupted(place, arguments, None)
        if line.startswith("convert") and code == 1:  # it had been done, and is not done twice
            assert "--overwrite" in told or "is committed already" in told
        else:
            assert (code, told) == (0, "")
        assert visible(place) == expected
        shutil.rmtree(place)
    assert 130 in codes


@pytest.mark.parametrize(("shell", "code"), [("", 130), ("trap '' INT;", 0)], ids=["heeded", "ignored, as by nohup"])
def test_an_interrupt_while_modules_are_imported_shows_no_traceback(tmp_path: Path, shell: str, code: int) -> None:
    module, _, function = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["ckptmgr"].partition(":")
    script = f"import sys; from {module} import {function}; sys.exit({function}())"
    # Stands before a module that is imported on the way, and leaves its place to that one.
    (tmp_path / "fastcrc.py").write_text(
        "import os, signal, sys\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.path.remove(os.path.dirname(__file__))\n"
        "del sys.modules[__name__]\n"
        "import fastcrc\n"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])

    done = subprocess.run(
        ["bash", "-c", f'{shell} exec "$0" "$@"', sys.executable, "-c", script, "--version"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.startswith("ckptmgr ") is (code == 0)


def test_what_a_command_starts_is_known_before_an_interrupt_comes_and_never_gets_it() -> None:
    started: list[subprocess.Popen[str]] = []
    with ThreadPoolExecutor(1) as threads:
        threads.submit(int).result()  # a thread that the signal can go to
        with pytest.raises(KeyboardInterrupt):
            start_one(started)

    assert started[0].communicate()[0] == "True\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def start_one(started: list[subprocess.Popen[str]]) -> None:
    """Starts a process that says whether it is deaf to SIGINT, which comes before that."""
    says = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set()))"
    with uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        started.append(subprocess.Popen([sys.executable, "-c", says], stdout=subprocess.PIPE, text=True))


def test_a_process_that_is_to_ignore_interrupts_ignores_those_that_come_while_it_starts_another() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_demo_s_training_ends_without_a_word_when_nobody_listens(tmp_path: Path) -> None:
    data = tmp_path / "digits.safetensors"
    ckptmgr.save(data, images())
    listens, tells = os.pipe()
    os.close(listens)

    training = [sys.executable, "-c", "from ckptmgr.cli.digits import main; main()", tmp_path / "run", data, "400"]
    done = subprocess.run(training, stdout=tells, stderr=subprocess.PIPE, text=True, check=False)
    os.close(tells)

    assert (done.returncode, done.stderr) == (1, "")


def interrupted(place: Path, arguments: list[str], moment: int | None) -> tuple[int, int, str]:
    """The exit code of a command, how often it touched the disk, and what it told; SIGINT comes at one of these touches."""
    touches, told = place.with_suffix(".touches"), place.with_suffix(".told")
    code = exit_code(start_child(lambda: _run(place, arguments, moment, touches, told)))
    return code, int(touches.read_text()), told.read_text()


def _run(place: Path, arguments: list[str], moment: int | None, touches: Path, told: Path) -> None:
    os.chdir(place)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    count = 0
    is_watching = True

    def watch(event: str, _: object) -> None:
        nonlocal count
        if event in EVENTS and is_watching:
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGINT)

    with told.open("w", buffering=1) as sys.stderr, open(os.devnull, "w") as sys.stdout:
        sys.addaudithook(watch)
        try:
            app(arguments)
        except SystemExit as end:
            is_watching = False
            touches.write_text(str(count))
            os._exit(end.code if isinstance(end.code, int) else 0)


def visible(place: Path) -> dict[str, object]:
    """What a reader finds: the steps of runs, all of them good, and files, which open whole."""
    return {path.name: content(path) for path in sorted(place.iterdir()) if path.is_file() or any(path.iterdir())}


def content(path: Path) -> object:
    if path.name in ("run", "copy"):
        done = CliRunner().invoke(app, ["verify", str(path), "--json"])
        checked = json.loads(done.stdout or '{"checked": []}')["checked"]
        assert all(each["ok"] for each in checked)
        return [each["step"] for each in checked]
    if path.name == "page.html":
        assert path.read_text().rstrip().endswith("</html>")
        return "a page"
    return ckptmgr.load(path)["a"].tolist()
