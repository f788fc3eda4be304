"""The training loop of the README, word for word: on local disk and on an object store, killed and started again."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from services import S3

from ckptmgr import CheckpointManager

pytestmark = pytest.mark.cloud
README = Path(__file__).parents[1] / "README.md"
URL = '"run-1"'
DIES = 'if step == 250: __import__("os").kill(__import__("os").getpid(), 9)'


def loop() -> str:
    """Its text."""
    (text,) = re.findall(r"## A training loop\n\n```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert text.count(URL) == 1
    return text


def train(text: str, url: str, environ: dict[str, str], folder: Path, *, is_killed: bool = False) -> None:
    """Runs the loop with nothing but the URL changed; or lets it be killed between two saves."""
    text = text.replace(URL, repr(url))
    if is_killed:
        text = text.replace("    for step in range(step + 1, 301):\n", f"    for step in range(step + 1, 301):\n        {DIES}\n")
        assert DIES in text
    done = subprocess.run(
        [sys.executable, "-c", text], env={**os.environ, **environ}, cwd=folder, capture_output=True, timeout=60
    )
    assert done.returncode == (-signal.SIGKILL if is_killed else 0), done.stderr.decode()


@pytest.mark.parametrize("place", ["local", "s3"])
def test_the_loop_goes_on_where_it_was_killed_and_ends_with_the_same_weights(
    place: str, s3_server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": s3_server.key, "AWS_SECRET_ACCESS_KEY": s3_server.secret, "AWS_REGION": s3_server.region}
    environ = {**keys, "AWS_ENDPOINT_URL": s3_server.endpoint}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    root = {"local": "", "s3": f"s3://test-bucket{tmp_path}/"}[place]

    train(loop(), "whole", environ, tmp_path)
    train(loop(), f"{root}killed", environ, tmp_path, is_killed=True)
    monkeypatch.chdir(tmp_path)
    assert CheckpointManager(f"{root}killed").latest().step == 200
    train(loop(), f"{root}killed", environ, tmp_path)

    whole, killed = CheckpointManager("whole").restore(), CheckpointManager(f"{root}killed").restore()
    assert killed.step == whole.step == 300
    assert np.array_equal(killed.state["w"], whole.state["w"])
    assert killed.state["rng"].normal() == whole.state["rng"].normal()
