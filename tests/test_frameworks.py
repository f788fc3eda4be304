"""No test forks a process that has loaded a framework, and a child that crashes tells where."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import frameworks
import pytest
from syscalls import in_child

TESTS = Path(__file__).parent


def test_collecting_all_tests_loads_no_framework() -> None:
    script = f"import pytest, frameworks; print(pytest.main(['-q', '--co', {str(TESTS)!r}]), frameworks.loaded())"

    done = subprocess.run([sys.executable, "-c", script], cwd=TESTS, capture_output=True, text=True, check=False)

    assert done.stdout.splitlines()[-1] == "0 []", done.stdout[-2000:] + done.stderr[-2000:]


def test_tests_that_name_a_framework_come_last(request: pytest.FixtureRequest) -> None:
    named = [bool(frameworks.named_by(item.module)) for item in request.session.items]

    assert named == sorted(named)


def test_a_process_with_a_framework_does_not_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))

    with pytest.raises(AssertionError, match="a process with torch loaded must not fork"):
        in_child(lambda: None)


def test_a_child_that_crashes_tells_its_stack(capfd: pytest.CaptureFixture[str]) -> None:
    def crash() -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    assert in_child(crash) == -signal.SIGSEGV
    assert "Segmentation fault" in (told := capfd.readouterr().err)
    assert " in crash\n" in told
