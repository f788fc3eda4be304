"""A server as a child process: started on a free loopback port, ready when it answers, gone at the end."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

TESTS = Path(__file__).parents[1]
READY_S = 60.0  # shared machines are slow


class ServiceMissing(Exception):
    """The server's program is not installed here; says how to get it."""


class Service:
    """A context manager around a server. ``endpoint`` is its URL while it runs."""

    endpoint: str
    _keeper: subprocess.Popen[bytes] | None = None

    def command(self, folder: Path) -> Sequence[str]:
        """What to run, in a folder of its own; sets `endpoint`. Raises `ServiceMissing`."""
        raise NotImplementedError

    def elsewhere(self) -> Sequence[Path]:
        """Files that the command makes outside its folder; they go with it."""
        return ()

    def is_ready(self) -> bool:
        return answers(self.endpoint)

    def __enter__(self) -> Self:
        folder = Path(tempfile.mkdtemp(prefix="ckptmgr-service-"))
        log = folder / "log"
        try:
            command = self.command(folder)
            paths = os.pathsep.join(map(str, [folder, *self.elsewhere()]))
            command = [sys.executable, "-m", "services.keeper", paths, *command]
            with log.open("wb") as out:  # never a pipe: it would keep the test runner waiting
                self._keeper = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=out, stderr=out, cwd=TESTS, env=_environment()
                )
            self._wait(log)
        except BaseException:
            self.stop()
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the server and what it has started."""
        if self._keeper is not None:
            self._keeper.stdin.close()
            self._keeper.wait(30)
            self._keeper = None

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if self._keeper.poll() is not None:
                break
            with suppress(OSError):
                if self.is_ready():
                    return
            time.sleep(0.05)
        text = log.read_text(errors="replace")[-2_000:] if log.exists() else ""
        raise RuntimeError(f"{type(self).__name__} did not get ready:\n{text}")


def answers(url: str) -> bool:
    """Whether a server gives any answer but a server error."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500


def free_ports(count: int, also: Sequence[int] = ()) -> list[int]:
    """Free loopback ports; for each one ``port + distance`` is free too, for the distances in ``also``."""
    ports: list[int] = []
    held: list[socket.socket] = []
    while len(ports) < count:
        port = _hold(0, held)
        with suppress(OSError, OverflowError):
            for distance in also:
                _hold(port + distance, held)
            ports.append(port)
    for each in held:
        each.close()
    return ports


def program(name: str, how: str) -> str:
    """The path of an installed program. Raises `ServiceMissing`."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ServiceMissing(f"{name} is not installed: {how}")
    return found


def _hold(port: int, held: list[socket.socket]) -> int:
    each = socket.socket()
    held.append(each)
    each.bind(("127.0.0.1", port))
    return each.getsockname()[1]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))}
