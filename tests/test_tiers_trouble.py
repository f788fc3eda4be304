"""`TieredManager` when the remote tier or a file fails: local saves go on, it is told once, and it heals."""

import errno
import logging
import os
import random
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from every_store import options, place
from runs import state
from stores import MemoryStore
from tiering import FarStore, steps, tier

from ckptmgr import BackgroundSaver, CheckpointManager, CorruptCheckpointError, KeepLast, StepExistsError, TieredManager

far_is_s3 = pytest.mark.cloud


@pytest.fixture
def far() -> FarStore:
    return FarStore(MemoryStore())


def start(folder: Path, far: FarStore, **options: Any) -> TieredManager:
    return TieredManager(CheckpointManager(folder / "near", retention=KeepLast(2)), tier(far), **options)


def damage(manager: TieredManager, step: int) -> None:
    file = Path(manager.local.path(step)) / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_saves_go_on_and_the_failure_is_told_once_and_heals(
    tmp_path: Path, far: FarStore, caplog: pytest.LogCaptureFixture
) -> None:
    manager = start(tmp_path, far)
    manager.save(1, state(1))
    manager.wait()
    far.is_down = True
    for step in (2, 3, 4):
        manager.save(step, state(step))  # none fails
    with pytest.raises(OSError, match="No route") as caught:
        manager.wait()
    assert "raised by the copy of step" in caught.value.__notes__[0]
    assert sum("was not copied" in record.message for record in caplog.records) <= 3  # once a step, at most
    manager.close()  # it was told

    far.is_down = False
    with start(tmp_path, far) as manager:
        manager.save(5, state(5))

    assert steps(manager.remote) == [1, 2, 3, 4, 5]


def test_a_failure_that_healed_is_not_raised(tmp_path: Path, far: FarStore, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ckptmgr"), start(tmp_path, far) as manager:
        manager.save(1, state(1))
        manager.wait()
        far.is_down = True
        manager.save(2, state(2))
        manager._uploader.wait()
        far.is_down = False

    assert [record.name for record in caplog.records] == ["ckptmgr.uploading"]
    assert steps(manager.remote) == [1, 2]


def test_the_error_that_ends_a_block_has_a_note_of_the_failure(tmp_path: Path, far: FarStore) -> None:
    def train() -> None:
        with start(tmp_path, far) as manager:
            manager.save(1, state(1))
            manager.wait()
            far.is_down = True
            manager.save(2, state(2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        train()

    assert "before, a copy failed: OSError: [Errno 113] No route to host" in caught.value.__notes__[0]


def test_a_rotten_local_file_never_becomes_a_remote_step(tmp_path: Path, far: FarStore) -> None:
    manager = start(tmp_path, far)
    with far.held():
        manager.save(1, state(1))
        manager.save(2, state(2))
        damage(manager, 1)
        damage(manager, 2)
    manager.save(3, state(3))
    with pytest.raises(CorruptCheckpointError, match="crc32c") as caught:
        manager.close()

    assert caught.value.step in (1, 2)
    assert steps(manager.remote) in ([3], [2, 3])  # the file of the copy under way may have been read before
    assert manager.remote.verify().ok
    assert manager.remote.sweep(grace=0).files == 0


def test_a_rotten_step_is_not_read_again_and_again(tmp_path: Path, far: FarStore) -> None:
    manager = start(tmp_path, far)
    far.is_down = True
    manager.save(1, state(1))
    damage(manager, 1)
    far.is_down = False
    with pytest.raises(CorruptCheckpointError):
        manager.wait()
    puts = far.names.count("put")

    manager.wait()
    manager.save(2, state(2))
    manager.save(3, state(3))
    manager.close()

    assert steps(manager.local) == [2, 3]  # nor is it held
    with manager.local.open(3) as checkpoint:
        assert far.names.count("put") == puts + 2 * len(checkpoint.files)


def test_another_step_of_that_number_in_the_remote_tier_is_told_and_kept(tmp_path: Path, far: FarStore) -> None:
    far.is_down = True
    manager = start(tmp_path, far)
    manager.save(1, state(1))  # without a look at the remote tier
    tier(far.inner).save(1, state(9))
    far.is_down = False

    with pytest.raises(StepExistsError, match="step 1"):
        manager.close()

    assert manager.remote.restore(1).state["epoch"] == 9
    assert manager.local.restore(1).state["epoch"] == 1


def test_a_full_local_disk_is_raised_by_the_save(tmp_path: Path, far: FarStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(tmp_path, far) as manager:
        manager.save(1, state(1))

        def full(*args: object, **given: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(type(manager.local.folder.store), "put", full)
            with pytest.raises(OSError, match="No space"):
                manager.save(2, state(2))

    assert steps(manager.remote) == [1]


# ---- processes

TRAINING = """
import sys
import numpy as np
from ckptmgr import BackgroundSaver, CheckpointManager, KeepLast, TieredManager
near, far = sys.argv[1:3]
local = CheckpointManager(near, retention=KeepLast(2), max_file_nbytes=1 << 20)
with TieredManager(local, CheckpointManager(far, retention=KeepLast(3))) as manager, BackgroundSaver(manager) as saver:
    step, state = manager.restore_or_initialize({"w": np.zeros(1 << 19), "epoch": 0})
    assert (state["w"] == state["epoch"]).all()
    print("start", step, flush=True)
    while True:
        step += 1
        state["w"] += 1
        state["epoch"] += 1
        saver.save(step, state).result()
        print("saved", step, flush=True)
"""


def test_a_killed_process_leaves_both_tiers_whole_and_the_next_goes_on(tmp_path: Path) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    chance = random.Random(7)
    saved = 0
    for _ in range(5):
        command = [sys.executable, "-c", textwrap.dedent(TRAINING), str(near), str(far)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as child:
            assert child.stdout is not None
            began = int(child.stdout.readline().split()[1])
            assert began >= saved  # nothing that was told is lost
            for _ in range(chance.randint(1, 4)):
                saved = int(child.stdout.readline().split()[1])
            select.select([child.stdout], [], [], chance.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
        for folder in (near, far):
            assert CheckpointManager(folder).verify().ok

    with TieredManager(CheckpointManager(near), CheckpointManager(far, retention=KeepLast(3))) as manager:
        manager.wait()
        newest = manager.local.latest()
        assert newest.step >= saved
        assert steps(manager.remote) == [newest.step - 2, newest.step - 1, newest.step][-len(steps(manager.remote)) :]
        assert manager.verify().ok
    manager.sweep(grace=0)
    live = {info.attempt for tier in (manager.local, manager.remote) for info in tier.steps()}
    assert {path.name for path in tmp_path.glob("*/*/a-*")} == {f"a-{attempt}" for attempt in live}


def test_the_interpreter_waits_for_copies_and_tells_failures(tmp_path: Path) -> None:
    script = """
        import sys
        import numpy as np
        from stores import MemoryStore
        from tiering import FarStore, tier
        from ckptmgr import CheckpointManager, TieredManager
        TieredManager(CheckpointManager(sys.argv[1] + "/a"), CheckpointManager(sys.argv[1] + "/b")).save(1, {"w": np.ones(3)})
        far = FarStore(MemoryStore())
        far.is_down = True
        TieredManager(CheckpointManager(sys.argv[1] + "/c"), tier(far)).save(1, {"w": np.ones(3)})
    """

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True, text=True, timeout=60, env=environment(), check=False,
    )  # fmt: skip

    assert steps(CheckpointManager(tmp_path / "b")) == [1]
    assert done.stderr.count("OSError: [Errno 113] No route to host") == 1
    assert done.stderr.count("raised by the copy of step 1") == 1


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}


# ---- a real server


@far_is_s3
def test_a_server_that_refuses_uploads_and_comes_back(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    server, proxy = request.getfixturevalue("s3_server"), request.getfixturevalue("s3_proxy")
    url, given = place("s3", request)
    remote = CheckpointManager(url, storage_options=options(server, proxy.endpoint))
    with TieredManager(CheckpointManager(tmp_path / "near"), remote) as manager, BackgroundSaver(manager) as saver:
        proxy.rules()
        saver.save(1, state(1)).result()
        manager.wait()
        proxy.rules({"method": "PUT", "path": "a-[0-9a-f]{16}/model", "do": "status", "code": 403})
        saver.save(2, state(2)).result()
        with pytest.raises(PermissionError):
            manager.wait()
        assert steps(manager.local) == [1, 2]
        proxy.rules()

    assert steps(CheckpointManager(url, storage_options=given)) == [1, 2]
    assert CheckpointManager(url, storage_options=given).verify().ok


@far_is_s3
def test_after_an_interruption_a_server_gets_only_the_missing_files(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    server, proxy = request.getfixturevalue("s3_server"), request.getfixturevalue("s3_proxy")
    url, _ = place("s3", request)
    values = {f"w{number}": np.full(1 << 18, number, np.float32) for number in range(6)}  # 1 MiB each

    def tiers() -> TieredManager:
        local = CheckpointManager(tmp_path / "near", max_file_nbytes=1 << 20)
        return TieredManager(local, CheckpointManager(url, storage_options=options(server, proxy.endpoint)))

    proxy.rules({"method": "PUT", "path": "model-00005", "do": "status", "code": 403})
    with pytest.raises(PermissionError), tiers() as manager:
        manager.save(1, values)
    names = {file.name for file in Path(manager.local.path(1)).iterdir()}
    folder = manager.remote.folder.folder("step-00000001")
    (attempt,) = folder.list().folders
    there = set(folder.folder(attempt).list().files)
    assert "model-00001-of-00006.safetensors" in there
    assert "model-00005-of-00006.safetensors" not in there
    proxy.rules()
    with tiers() as manager:
        manager.wait()

    sent = [each for each in proxy.requests() if each["method"] == "PUT" and "/a-" in each["target"]]
    again = sorted(each["target"].partition("?")[0].rpartition("/")[2] for each in sent)
    assert again == sorted(names - there)
    assert sum(each["sent"] for each in sent) < 2.2 * (1 << 20)
    assert manager.remote.restore().state["w5"][0] == 5
