"""Sick runs for tests, made by real means: kills, cut and missing files, flipped bytes, wrong names."""

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from runs import state
from syscalls import in_child
from typer.testing import CliRunner

from ckptmgr import CheckpointManager, Diagnosis, Finding
from ckptmgr.cli.app import app
from ckptmgr.diagnosis import storing

READING = {"read", "read_into", "opened", "is_cached", "reread", "file", "head", "list", "below", "uploads", "location", "mark"}
STEPS = (100, 200, 300)


@pytest.fixture(autouse=True)
def on_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the tests run, memory or a container's layer included, this is no news of the run."""
    monkeypatch.setattr(storing, "filesystem", lambda path: "ext4")


def saved(run: Path, **options: Any) -> CheckpointManager:
    """A run of three steps."""
    manager = CheckpointManager(run, **options)
    for step in STEPS:
        manager.save(step, state(step), assets={"config.json": b"{}"})
    return manager


def file_of(run: Path, step: int, name: str = "model.safetensors") -> Path:
    return Path(CheckpointManager(run).path(step)) / name


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(action: Callable[[], object], where: str | None = None) -> None:
    """Runs the action in a process that is killed, where it calls the function of that name or by itself."""

    def act() -> None:
        with mock.patch(where, die) if where else contextlib.nullcontext():
            action()

    assert in_child(act) == -signal.SIGKILL


def found(diagnosis: Diagnosis, kind: str) -> Finding:
    """The one finding of that kind."""
    (only,) = [each for each in diagnosis.findings if each.kind == kind]
    return only


def obey(finding: Finding) -> str:
    """Runs the commands that a finding prints, one after another, as a shell would; gives their output."""
    assert finding.commands
    return "".join(_run(shlex.split(command)) for command in finding.commands)


def _run(words: list[str]) -> str:
    match words:
        case ["ckptmgr", *arguments]:
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, done.output
            return done.output
        case _:
            return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def snapshot(folder: Path) -> dict[str, object]:
    """All of a tree that a change of it would change: names, bytes, kinds, owners, modes, times and inodes."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return {str(path): (_facts(path.lstat()), path.read_bytes() if path.is_file() else None) for path in paths}


def _facts(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mode, status.st_ino, status.st_nlink, status.st_uid, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Forbidding:
    """A store that fails at any call that changes anything, or may."""

    def __init__(self, inner: Any, calls: list[str]) -> None:
        self._inner = inner
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not callable(value):
            return value

        def call(*given: Any, **named: Any) -> Any:
            self._calls.append(name)
            assert name in READING, f"{name} may change something"
            return value(*given, **named)

        return call
