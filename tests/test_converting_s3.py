"""Conversions from and to a real S3 server, and what another process sees of one that was killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from every_store import options
from services import S3

import ckptmgr
from ckptmgr import CheckpointManager, convert
from ckptmgr.storage import open_folder

pytestmark = pytest.mark.cloud
STATE = {"a": np.arange(2_000_000.0), "b": {"c": np.ones((3, 5), np.float32)}, "n": 4}


@pytest.mark.parametrize("to", ["npz", "torch", "tf_bundle"])
def test_a_bucket_may_be_either_side(tmp_path: Path, s3_server: S3, to: str) -> None:
    url, given = f"s3://test-bucket{tmp_path}", options(s3_server)
    ckptmgr.save(tmp_path / "a.safetensors", STATE)

    convert(tmp_path / "a.safetensors", f"{url}/there/", to=to, dst_options=given)
    convert(f"{url}/there", f"{url}/run", to="safetensors", step=3, src_options=given, dst_options=given)
    report = convert(f"{url}/there", tmp_path / "back.safetensors", src_options=given)

    for found in (
        ckptmgr.load(tmp_path / "back.safetensors"),
        CheckpointManager(f"{url}/run", storage_options=given).restore(3).state,
    ):
        assert found["n"] == 4
        np.testing.assert_array_equal(found["a"], STATE["a"])
    assert report.lost == {}


@pytest.mark.parametrize("where", ["new/b.npz", "run"])
def test_a_conversion_that_is_killed_leaves_nothing_to_be_seen(tmp_path: Path, s3_server: S3, where: str) -> None:
    url, given = f"s3://test-bucket{tmp_path}", options(s3_server)
    ckptmgr.save(tmp_path / "a.safetensors", {"w": np.zeros(6_000_000)})
    script = f"""
import threading
from ckptmgr import convert
def told(done, total):
    if done > 20_000_000:
        print("half", flush=True)
        threading.Event().wait()
convert({str(tmp_path / "a.safetensors")!r}, {f"{url}/{where}"!r}, to="npz", step={5 if where == "run" else None},
        dst_options={given!r}, progress=told)
"""
    converting = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert converting.stdout is not None
    assert converting.stdout.readline() == b"half\n"
    os.kill(converting.pid, signal.SIGKILL)
    converting.wait()
    converting.stdout.close()

    if where == "run":
        manager = CheckpointManager(f"{url}/run", backend="npz", storage_options=given)
        assert manager.steps() == []
    else:
        assert open_folder(f"{url}/new", given).list().files == {}
    convert(tmp_path / "a.safetensors", f"{url}/{where}", to="npz", step=5 if where == "run" else None, dst_options=given)
