"""``python -m services.keeper FOLDER:PATH... COMMAND...`` runs a server in a folder of its own while standard input is open.

The test run holds the other end: when it ends, killed or not, the server and all its children end, the folder goes, and so do
the other paths, where the server makes files elsewhere.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path


def keep(folder: str, elsewhere: list[str], command: list[str]) -> int:
    """Runs the command in the folder until it ends by itself or standard input does; gives its exit code."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=folder, start_new_session=True)
    threading.Thread(target=_end_with_input, args=(process,), daemon=True).start()
    code = process.wait()
    shutil.rmtree(folder, ignore_errors=True)
    for path in elsewhere:
        Path(path).unlink(missing_ok=True)
    return code


def _end_with_input(process: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1 << 10):
        pass
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it keeps is not worth a farewell


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # an interrupted test run still talks to its servers while it cleans up
    own, *others = sys.argv[1].split(os.pathsep)
    sys.exit(keep(own, others, sys.argv[2:]))
