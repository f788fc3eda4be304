"""`TieredManager` after a restart, on another machine, and where a copy is damaged."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from holding import PATIENCE_S
from runs import state
from tiering import Tiers, restored, steps

from ckptmgr import CorruptCheckpointError, KeepLast, StepExistsError, StepNotFoundError


@pytest.fixture
def tiers(tmp_path: Path) -> Iterator[Tiers]:
    tiers = Tiers(tmp_path)
    yield tiers
    tiers.end()


# ---- restarting


def test_what_is_left_is_copied_after_a_restart(tiers: Tiers) -> None:
    tiers.far.is_down = True
    manager = tiers.start()
    for step in (1, 2):
        manager.save(step, state(step))
    manager._uploader.end()  # as a kill would
    tiers.far.is_down = False

    with tiers.start() as manager:
        manager.wait()
        assert steps(manager.remote) == [1, 2]


def test_an_interrupted_copy_goes_on_with_the_missing_files(tiers: Tiers) -> None:
    tiers.local_options = {"max_file_nbytes": 400}
    values = {f"w{number}": np.full(100, number, np.float32) for number in range(8)}
    is_cut = threading.Event()

    def cut(done: int, total: int) -> None:
        if done > total // 2:
            is_cut.set()
            raise ConnectionResetError("cut off")

    manager = tiers.start(progress=cut)
    manager.save(1, values)
    assert is_cut.wait(PATIENCE_S)
    manager._uploader.end()  # as a kill would
    assert steps(manager.remote) == []

    with tiers.start() as manager:
        manager.wait()

    with manager.local.open(1) as checkpoint:
        assert tiers.far.names.count("put") == len(checkpoint.files) + 1  # the one that was cut off
    assert steps(manager.remote) == [1]


def test_close_without_waiting_ends_the_copy_where_it_is(tiers: Tiers) -> None:
    manager = tiers.start()
    with tiers.far.held():
        for step in (1, 2):
            manager.save(step, state(step))
        assert tiers.far.begun.wait(PATIENCE_S)
        closing = threading.Thread(target=manager.close, kwargs={"wait": False})
        closing.start()
        while not manager._uploader._is_ended:
            closing.join(0.001)
    closing.join()

    assert steps(manager.remote) == []
    with pytest.raises(RuntimeError, match="closed"):
        manager.save(3, state(3))
    manager.close()
    with tiers.start() as manager:
        manager.wait()
    assert steps(manager.remote) == [1, 2]


def test_a_new_machine_goes_on_where_the_old_one_was(tiers: Tiers) -> None:
    with tiers.start() as manager:
        for step in (1, 2, 3):
            manager.save(step, state(step))

    tiers.remote_options = {"retention": KeepLast(2)}
    with tiers.start("other") as manager:
        step, found = manager.restore_or_initialize(lambda: state(0))
        assert (step, found["epoch"]) == (3, 3)
        manager.save(4, state(4))

    assert manager.local.latest().sequence == 4
    assert steps(manager.remote) == [3, 4]
    assert {info.run for info in manager.steps()} == {manager.local.run}


def test_a_save_without_a_restore_is_newer_than_what_is_far(tiers: Tiers) -> None:
    with tiers.start() as manager:
        for step in (1, 2, 3):
            manager.save(step, state(step))

    with tiers.start("other") as manager:
        assert manager.save(9, state(9)).sequence == 4
        with pytest.raises(StepExistsError, match="step 3"):
            manager.save(3, state(4))


def test_fill_brings_the_step_to_the_local_tier(tiers: Tiers) -> None:
    with tiers.start() as manager:
        for step in (1, 2):
            manager.save(step, state(step))
    reads = tiers.far.names.count("read_into")

    with tiers.start("other", fill=True) as manager:
        assert restored(manager) == 2
        once = tiers.far.names.count("read_into") - reads
        assert steps(manager.local) == [2]
        assert restored(manager) == 2

    with manager.local.open(2) as checkpoint:
        assert once == len(checkpoint.files)  # no byte came twice
    assert tiers.far.names.count("read_into") == reads + once


# ---- restoring


def test_restore_takes_the_newest_of_both_and_the_local_copy(tiers: Tiers) -> None:
    with tiers.start() as manager:
        for step in (1, 2):
            manager.save(step, state(step))
        manager.wait()
        reads = tiers.far.names.count("read_into")
        assert restored(manager) == 2
        assert tiers.far.names.count("read_into") == reads
        manager.local.delete(2)
        assert manager.latest().step == 2
        assert restored(manager) == 2
        assert restored(manager, 1) == 1
        with manager.open() as checkpoint:
            assert checkpoint.read("epoch" if "epoch" in checkpoint.specs else "model/w").max() == 2


@pytest.mark.parametrize("how", ["bytes", "tree", "missing", "record"])
def test_a_damaged_local_copy_is_told_and_the_remote_one_taken(tiers: Tiers, how: str) -> None:
    with tiers.start() as manager:
        for step in (1, 2):
            manager.save(step, state(step))
        manager.wait()
        place = Path(manager.local.path(2))
        if how == "record":
            (place.parent / "manifest.json").write_bytes(b"{}")
        elif how == "missing":
            (place / "model.safetensors").unlink()
        else:
            tiers.damage(manager, 2, "model.safetensors" if how == "bytes" else "tree.json")

        with pytest.warns(RuntimeWarning, match="step 2 is skipped"):
            found = manager.restore()

    assert (found.step, found.state["epoch"]) == (2, 2)
    assert [entry.step for entry in found.report.skipped] == [2]


def test_fill_repairs_a_damaged_local_copy(tiers: Tiers) -> None:
    with tiers.start(fill=True) as manager:
        manager.save(1, state(1))
        manager.wait()
        tiers.damage(manager, 1)

        with pytest.warns(RuntimeWarning, match="step 1 is skipped"):
            assert restored(manager) == 1

        assert manager.local.verify().ok


def test_an_older_step_is_taken_when_no_copy_is_good(tiers: Tiers) -> None:
    with tiers.start() as manager:
        for step in (1, 2):
            manager.save(step, state(step))
        manager.wait()
        tiers.damage(manager, 2)
        inner = tiers.far.inner.files
        for name in [name for name in inner if "00000002" in name and name.endswith("safetensors")]:
            inner[name] = (inner[name][0][:-1] + b"x", 0.0)

        with pytest.warns(RuntimeWarning, match="step 2 is skipped"):
            found = manager.restore()
        assert (found.step, [entry.step for entry in found.report.skipped]) == (1, [2, 2])
        with pytest.warns(RuntimeWarning), pytest.raises(CorruptCheckpointError, match="no copy of step 2"):
            manager.restore(2)


def test_nothing_saved_is_a_fresh_start_and_an_unreachable_tier_is_not(tiers: Tiers) -> None:
    with tiers.start() as manager:
        assert manager.restore_or_initialize(state(0))[0] == 0
        with pytest.raises(StepNotFoundError, match="step 5"):
            manager.restore(5)
        tiers.far.is_down = True
        with pytest.raises(OSError, match="No route"):
            manager.restore_or_initialize(state(0))


def test_without_the_remote_tier_the_local_one_restores_with_a_warning(tiers: Tiers) -> None:
    with tiers.start() as manager:
        manager.save(1, state(1))
        manager.wait()
        tiers.far.is_down = True
        with pytest.warns(RuntimeWarning, match="cannot be reached"):
            assert restored(manager) == 1
