"""A terminal of one's own: a command runs in it, what it shows is read, and keys are pressed."""

import fcntl
import os
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CTRL_C = b"\x03"
_LIMIT_S = 120
# Makes the terminal the one whose keys mean signals to it.
_HERE = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"


class Terminal:
    """What is at the other side of a command: its screen and its keyboard."""

    def __init__(self, keyboard: int, process: "subprocess.Popen[bytes]") -> None:
        self.shown = ""
        self._keyboard = keyboard
        self._process = process

    def wait_for(self, *texts: str) -> None:
        """Reads until one of the texts has been shown."""
        while not any(text in self.shown for text in texts):
            assert self._read(), f"it ended before it showed one of {texts}: {self.shown}"

    def press(self, keys: bytes) -> None:
        """Presses keys."""
        os.write(self._keyboard, keys)

    def ended(self) -> int:
        """Reads what is still shown, and gives the exit code."""
        while self._read():
            pass
        return self._process.wait(_LIMIT_S)

    def _read(self) -> bool:
        if not select.select([self._keyboard], [], [], _LIMIT_S)[0]:
            raise TimeoutError(f"nothing is shown any more: {self.shown}")
        try:
            data = os.read(self._keyboard, 65536)
        except OSError:  # the other side is closed
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)


@contextmanager
def terminal(command: list[str | Path], folder: Path, *, columns: int = 100, **environ: str) -> Iterator[Terminal]:
    """Runs a command in a terminal of that width; it is killed at the end, with all that it has started in its session."""
    keyboard, screen = os.openpty()
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "CI")}
    process = subprocess.Popen(
        [sys.executable, "-c", _HERE, *command],
        cwd=folder,
        stdin=screen,
        stdout=screen,
        stderr=screen,
        start_new_session=True,
        env={**env, "TERM": "xterm", **environ},
    )
    os.close(screen)
    try:
        yield Terminal(keyboard, process)
    finally:
        process.kill()
        process.wait()
        os.close(keyboard)
