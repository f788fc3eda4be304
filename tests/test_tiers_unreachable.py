"""`TieredManager` and a remote tier that hangs, is gone, or is somebody else's too: nothing waits for it, or is told, in vain."""

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from every_store import place
from runs import state
from stores import MemoryStore
from tiering import PATIENCE_S, FarStore, Tiers, steps, tier

from ckptmgr import CheckpointManager, KeepAll, KeepLast, StepNotFoundError, TieredManager, uploading


class Asked(FarStore):
    """Tells who lists it, and can be held there."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.listers: list[bool] = []
        self.is_quick = True  # for whoever does not copy
        self.listing, self.answer = threading.Event(), threading.Event()
        self.answer.set()

    def operate(self, name: str, call: Callable[[], Any]) -> Any:
        if name == "list":
            is_copying = threading.current_thread().name == "ckptmgr-copies"
            self.listers.append(not is_copying)
            if is_copying or not self.is_quick:
                self.listing.set()
                assert self.answer.wait(PATIENCE_S)
        return super().operate(name, call)


@pytest.fixture
def tiers(tmp_path: Path) -> Iterator[Tiers]:
    tiers = Tiers(tmp_path)
    yield tiers
    tiers.end()


@pytest.fixture
def asked(tiers: Tiers) -> Asked:
    tiers.far = Asked()
    return tiers.far


# ---- waiting


def test_only_the_first_save_waits_for_a_tier_that_is_gone(tiers: Tiers, asked: Asked) -> None:
    asked.is_down = True
    manager = tiers.start()
    for step in (1, 2, 3):
        manager.save(step, state(step))
    with pytest.raises(OSError, match="No route"):
        manager.close()

    assert asked.listers.count(True) == 1


def test_the_first_save_does_not_wait_long_for_a_tier_that_hangs(
    tiers: Tiers, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploading, "LOOK_S", 0.01)
    asked.is_quick = False
    asked.answer.clear()
    manager = tiers.start()
    manager.save(1, state(1))
    asked.answer.set()
    manager.close()

    assert steps(manager.remote) == [1]


def test_a_tier_that_takes_long_to_fail_is_not_asked_for_each_save(tiers: Tiers, asked: Asked) -> None:
    manager = tiers.start()
    manager.save(1, state(1))
    manager.wait()
    asked.listers.clear()
    asked.listing.clear()
    asked.answer.clear()
    manager.save(2, state(2))
    assert asked.listing.wait(PATIENCE_S)
    for step in range(3, 9):
        manager.save(step, state(step))
    asked.is_down = True
    asked.answer.set()
    with pytest.raises(OSError, match="No route") as caught:
        manager.close()

    assert len(asked.listers) == 2  # for the save it was at, and for all others
    assert len(caught.value.__notes__) == 1


def test_a_tier_that_goes_is_not_asked_for_each_step_that_is_due(tiers: Tiers) -> None:
    manager = tiers.start()
    with tiers.far.held():
        for step in range(1, 9):
            manager.save(step, state(step))
        tiers.far.is_down = True
        tiers.far.names.clear()
    with pytest.raises(OSError, match="No route"):
        manager.close()

    assert len(tiers.far.names) <= 4


def test_close_without_waiting_does_not_wait_for_a_store_that_hangs(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "END_S", 0.01, raising=False)
    manager = tiers.start()
    with tiers.far.held():
        manager.save(1, state(1))
        assert tiers.far.begun.wait(PATIENCE_S)
        manager.close(wait=False)


def test_an_interrupt_while_the_end_waits_ends_the_copy(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    manager = tiers.start()
    monkeypatch.setattr(manager._uploader, "wait", interrupt)

    with pytest.raises(KeyboardInterrupt):
        manager.close()

    assert manager._uploader.is_over


def test_delete_does_not_wait_for_the_copy_of_another_step(tiers: Tiers) -> None:
    manager = tiers.start()
    manager.save(1, state(1))
    manager.wait()
    with tiers.far.held():
        manager.save(2, state(2))
        assert tiers.far.begun.wait(PATIENCE_S)
        deleting = threading.Thread(target=manager.delete, args=[1])
        deleting.start()
        deleting.join(PATIENCE_S / 4)
        assert not deleting.is_alive()
    manager.close()

    assert steps(manager.remote) == [2]


def test_delete_in_a_forked_process_is_refused(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = tiers.start()
    manager.save(1, state(1))
    manager.wait()
    with monkeypatch.context() as patched:
        patched.setattr(manager._uploader, "_pid", -1)
        with pytest.raises(RuntimeError, match="forked"):
            manager.delete(1)

    manager.close()


@pytest.mark.cloud
@pytest.mark.parametrize("kind", ["obstore", "fsspec"])
def test_what_is_unfinished_at_the_end_of_a_program_reaches_a_bucket(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url, given = place("s3", request)
    given = {**given, "client": kind}
    for step in (1, 2, 3):
        CheckpointManager(url, storage_options=given).save(step, state(step))
    script = """
        import json, sys
        import numpy as np
        from ckptmgr import BackgroundSaver, CheckpointManager, TieredManager
        near, url, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
        tiers = TieredManager(CheckpointManager(near), CheckpointManager(url, storage_options=given))
        tiers._uploader.known = []  # so that the first look at these records is at the end
        tiers.save(8, {"w": np.ones(3)})
        saver = BackgroundSaver(CheckpointManager(url, storage_options=given))
        saver.save(9, {"w": np.ones(5 << 20)})
    """

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), url, json.dumps(given)],
        capture_output=True, text=True, timeout=100, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False,
    )  # fmt: skip

    assert "Error" not in done.stderr
    assert {8, 9} <= set(steps(CheckpointManager(url, storage_options=given)))


# ---- telling


def test_an_upload_function_that_fails_is_told(tiers: Tiers) -> None:
    manager = tiers.start(upload=lambda info: info.metrics["accuracy"] > 0.5)
    manager.save(1, state(1))

    with pytest.raises(KeyError, match="accuracy") as caught:
        manager.close()

    assert caught.value.__notes__ == [
        "raised by the search for steps to copy to 'memory:/'; it is tried again at the next save or start"
    ]


def test_a_failed_copy_that_nobody_wants_any_more_is_not_told(tiers: Tiers) -> None:
    tiers.remote_options["retention"] = KeepLast(1)
    with tiers.start() as manager:
        manager.save(1, state(1))
        manager.wait()
        with tiers.far.held():
            manager.save(2, state(2))
            assert tiers.far.begun.wait(PATIENCE_S)
            tiers.far.is_down = True
        manager._uploader.wait()
        tiers.far.is_down = False
        manager.save(3, state(3))

    assert steps(manager.remote) == [3]


def test_a_failed_copy_of_a_step_that_is_deleted_is_not_told(tiers: Tiers) -> None:
    with tiers.start() as manager:
        manager.save(1, state(1))
        manager.wait()
        tiers.far.is_down = True
        manager.save(2, state(2))
        manager._uploader.wait()
        tiers.far.is_down = False
        manager.delete(2)

    assert steps(manager) == [1]


# ---- holding


def test_tiers_that_are_closed_hold_nothing_for_those_that_follow(tiers: Tiers) -> None:
    local, remote = CheckpointManager(tiers.folder / "near", retention=KeepLast(2)), tier(tiers.far)
    for first in (1, 11, 21):
        with TieredManager(local, remote) as manager:
            for step in range(first, first + 4):
                manager.save(step, state(step))
                manager.wait()

    assert steps(local) == [23, 24]
    assert len(local.retention.policies) == 2


def test_two_remote_tiers_of_one_local_tier_both_hold(tiers: Tiers) -> None:
    local, other = CheckpointManager(tiers.folder / "near", retention=KeepLast(1)), FarStore(MemoryStore())
    other.url = "memory://other"
    other.is_down = True
    with TieredManager(local, CheckpointManager(tiers.folder / "far")) as first:
        second = TieredManager(local, tier(other))
        for step in (1, 2, 3):
            second.save(step, state(step))
        first.wait()
        with pytest.raises(OSError, match="No route"):
            second.close()

    assert steps(local) == [1, 2, 3]


# ---- others at the same tiers


def test_a_newer_save_in_the_remote_tier_is_not_overwritten(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = tiers.start()
    manager.save(1, state(1))
    manager.wait()
    copy = uploading.copy_step

    def late(*args: Any, **given: Any) -> Any:
        other = tier(tiers.far.inner)
        other.save(2, state(8))  # so that it is newer
        other.save(1, state(9), overwrite=True)
        return copy(*args, **given)

    with monkeypatch.context() as patch:
        patch.setattr(uploading, "copy_step", late)
        manager.save(1, state(5), overwrite=True)
        manager.wait()
    manager.close()

    assert manager.remote.restore(1).state["epoch"] == 9


def test_a_pin_that_is_taken_out_while_a_step_is_copied_does_not_come_back(tiers: Tiers) -> None:
    tiers.remote_options["retention"] = KeepAll()
    manager = tiers.start()
    with tiers.far.held():
        manager.save(1, state(1))
        assert tiers.far.begun.wait(PATIENCE_S)
    manager.close()
    manager = tiers.start()
    manager.local.save(2, state(2))
    manager.local.pin(2, "paper")
    with tiers.far.held():
        manager._uploader.wake()
        assert tiers.far.begun.wait(PATIENCE_S)
        manager.unpin(2, "paper")
    manager.close()

    assert [sorted(info.pins) for info in manager.remote.steps()] == [[], []]


def test_a_step_that_is_gone_from_the_local_tier_is_no_failure(tiers: Tiers) -> None:
    tiers.local_options["retention"] = KeepLast(1)
    with tiers.start(hold=None) as manager, tiers.far.held():
        for step in (1, 2, 3):
            manager.save(step, state(step))
    with pytest.raises(StepNotFoundError):
        manager.restore(2)

    assert steps(manager.remote)[-1] == 3
