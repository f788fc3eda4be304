"""Azurite comes from npm: found where it is installed, and otherwise installed once into a cache folder of this machine."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from services.process import ServiceMissing

VERSION = "3.37.0"
INSTALL_S = 300


def azurite() -> Sequence[str]:
    """The command of Azurite's blob service.

    Raises:
        ServiceMissing: Node.js is not here, or npm cannot install Azurite.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if found := shutil.which("azurite-blob"):
        return [found]
    if node is None or npm is None:
        raise ServiceMissing("Azurite needs Node.js and npm")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ckptmgr-tests" / f"azurite-{VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    main = folder / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    with (folder / ".lock").open("w") as lock:  # the other workers of this test run wait for the first
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / ".done"
        if not done.exists():
            _install(npm, folder)
            done.touch()
    return [node, str(main)]


def _install(npm: str, folder: Path) -> None:
    # No package's own scripts are run: nothing but Azurite itself is executed.
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), f"azurite@{VERSION}"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        raise ServiceMissing(f"npm could not install azurite@{VERSION}: {error}") from error
