"""`BackgroundSaver` at the end of a process, across forks and kills."""

import os
import random
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from ckptmgr import BackgroundSaver, CheckpointManager, KeepLast

START = """
import os, sys, threading, time
import numpy as np
from holding import HeldManager
from ckptmgr import BackgroundSaver, CheckpointManager
manager = HeldManager(sys.argv[1])
state = {"w": np.ones(3)}
"""


def run(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.run(
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", START + textwrap.dedent(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )


def steps(folder: Path) -> list[int]:
    return [info.step for info in CheckpointManager(folder).steps()]


def test_the_interpreter_ends_when_the_save_has(tmp_path: Path) -> None:
    script = """
        BackgroundSaver(manager).save(1, state)
        threading.Timer(0.2, manager.go.set).start()
        sys.exit(3)
    """

    done = run(tmp_path, script)

    assert (done.returncode, done.stderr) == (3, "")
    assert steps(tmp_path) == [1]


def test_a_failure_that_nobody_was_told_is_told_at_the_end(tmp_path: Path) -> None:
    script = """
        manager.failing[2] = OSError(28, "No space left on device")
        manager.go.set()
        BackgroundSaver(manager).save(2, state)
    """

    done = run(tmp_path, script)

    assert done.stderr.count("raised by the background save of step 2") == 1
    assert done.stderr.count("No space left on device") == 1


def test_at_the_end_all_savers_are_waited_for_whatever_one_raises(tmp_path: Path) -> None:
    script = """
        ended = HeldManager(sys.argv[1] + "/ended")
        ended.failing[1] = SystemExit(5)
        ended.go.set()
        BackgroundSaver(ended).save(1, state)
        BackgroundSaver(manager).save(1, state)
        threading.Timer(0.2, manager.go.set).start()
    """

    done = run(tmp_path, script)

    assert "SystemExit: 5\nraised by the background save of step 1" in done.stderr
    assert steps(tmp_path) == [1]


def test_a_save_that_nothing_would_wait_for_is_refused(tmp_path: Path) -> None:
    script = """
        import atexit
        atexit.register(lambda: saver.save(2, state))  # comes after the saver's own end
        saver = BackgroundSaver(manager)
        manager.go.set()
        saver.save(1, state).result()
    """

    done = run(tmp_path, script)

    assert "RuntimeError: the interpreter exits, and waits for no further save" in done.stderr
    assert steps(tmp_path) == [1]


def test_a_failure_that_was_told_is_not_told_at_the_end(tmp_path: Path) -> None:
    script = """
        manager.failing[2] = OSError(28, "No space left on device")
        manager.go.set()
        saver = BackgroundSaver(manager)
        saver.save(2, state)
        try:
            saver.wait()
        except OSError:
            print("told")
    """

    done = run(tmp_path, script)

    assert (done.stdout, done.stderr) == ("told\n", "")


def test_a_forked_child_neither_writes_nor_waits(tmp_path: Path) -> None:
    script = """
        saver = BackgroundSaver(manager)
        with saver:
            pending = saver.save(1, state)
            child = os.fork()
            if not child:
                saver.wait()
                for call in (lambda: saver.save(2, state), pending.result):
                    try:
                        call()
                    except RuntimeError as error:
                        print(error, flush=True)
                manager.go.set()
                BackgroundSaver(CheckpointManager(sys.argv[1])).save(3, state)
                sys.exit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), [info.step for info in manager.steps()], flush=True)
            manager.go.set()
            print(pending.result().step)
    """

    done = run(tmp_path, script)

    new_one, ask_there, *rest = done.stdout.splitlines()
    assert "make a new one here" in new_one
    assert "ask there" in ask_there
    assert (rest, done.stderr) == (["7 [3]", "1"], "")
    assert steps(tmp_path) == [3, 1]


@pytest.mark.slow
def test_40_random_kills_lose_only_the_save_that_goes_on(tmp_path: Path) -> None:
    rng = random.Random(2)
    told = unfinished = 0
    for _ in range(40):
        receive, send = os.pipe()
        child = os.fork()
        if not child:
            _save_for_ever(tmp_path, send)
        os.close(send)
        select.select([receive], [], [], 30)
        time.sleep(rng.random() * 0.3)  # a few saves
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(receive, "rb") as stream:
            told = max([told, *map(int, stream.read().split())])

        manager = CheckpointManager(tmp_path)
        assert max([0, *steps(tmp_path)]) >= told
        assert all((manager.restore(step).state["w"] == step).all() for step in steps(tmp_path))
        swept = manager.sweep(grace=0)
        unfinished += bool(swept.claims or swept.files or swept.uploads)

    assert told > 10
    assert unfinished > 10, "too few kills hit a save"


def _save_for_ever(root: Path, send: int) -> None:
    try:
        manager = CheckpointManager(root, retention=KeepLast(3))
        latest = manager.latest()
        w = np.full(1000, latest.step if latest else 0)
        saver = BackgroundSaver(manager)
        os.write(send, b" ")
        while True:
            w += 1
            saver.save(int(w[0]), {"w": w}).add_done_callback(lambda done: os.write(send, b"%d " % done.result().step))
    finally:
        os._exit(1)
