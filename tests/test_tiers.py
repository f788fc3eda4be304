"""`TieredManager`: saves are done when the local tier has them, copies follow, and restores take the nearest good copy."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from holding import PATIENCE_S
from runs import files, state
from tiering import Tiers, restored, steps, tier

from ckptmgr import (
    BackgroundSaver,
    CheckpointManager,
    KeepEvery,
    KeepLast,
    StepNotFoundError,
    TieredManager,
)
from ckptmgr.storage import PosixStore


@pytest.fixture
def tiers(tmp_path: Path) -> Iterator[Tiers]:
    tiers = Tiers(tmp_path)
    yield tiers
    tiers.end()


def save_three(manager: TieredManager) -> None:
    """While none can be copied, and all are there."""
    for step in (1, 2, 3):
        manager.save(step, state(step))
    assert steps(manager.local) == [1, 2, 3]


# ---- saving and copying


def test_steps_are_in_both_tiers_and_the_same(tiers: Tiers) -> None:
    with tiers.start() as manager:
        for step in (1, 2):
            manager.save(step, state(step), metrics={"loss": 1 / step}, metadata={"n": step}, assets={"a.txt": b"hello"})

    for one, other in zip(manager.local.steps(), manager.remote.steps(), strict=True):
        assert (one.step, one.sequence, one.run, one.created, one.metrics) == (
            other.step, other.sequence, other.run, other.created, other.metrics,
        )  # fmt: skip
    assert steps(manager.remote) == [1, 2]
    assert manager.remote.verify().ok
    assert restored(manager.remote) == 2


def test_a_save_does_not_wait_for_the_remote_tier(tiers: Tiers) -> None:
    manager = tiers.start()
    with tiers.far.held():
        for step in (1, 2, 3):
            assert manager.save(step, state(step)).step == step
        assert tiers.far.begun.wait(PATIENCE_S)

        assert steps(manager.local) == [1, 2, 3]
        assert steps(manager.remote) == []
        with pytest.raises(TimeoutError, match="goes on"):
            manager.wait(timeout=0.01)
    manager.close()

    assert steps(manager.remote) == [1, 2, 3]


def test_each_tier_has_its_own_retention(tiers: Tiers) -> None:
    tiers.local_options = {"retention": KeepLast(1)}
    tiers.remote_options = {"retention": KeepEvery(2)}
    with tiers.start() as manager:
        for step in range(1, 8):
            manager.save(step, state(step))
            manager.wait()

    assert steps(manager.local) == [7]
    assert steps(manager.remote) == [2, 4, 6, 7]  # the newest is always kept
    assert steps(manager) == [2, 4, 6, 7]


def test_a_step_that_is_not_copied_yet_is_held(tiers: Tiers) -> None:
    tiers.local_options = {"retention": KeepLast(1)}
    manager = tiers.start()
    with tiers.far.held():
        save_three(manager)
        assert "not copied yet" in str(manager.local.plan())
        assert "KeepLast(1) | KeepUncopied(KeepAll())" in repr(manager)
    manager.wait()
    manager.save(4, state(4))
    manager.close()

    assert steps(manager.local)[-1] == 4
    assert 1 not in steps(manager.local)
    assert steps(manager.remote) == [1, 2, 3, 4]


@pytest.mark.parametrize(("hold", "expected"), [(KeepLast(2), {3, 4, 5}), (None, {5})])
def test_what_is_held_can_be_bounded(tiers: Tiers, hold: Any, expected: set[int]) -> None:
    tiers.local_options = {"retention": KeepLast(1)}
    tiers.far.is_down = True
    manager = tiers.start(hold=hold)
    for step in (1, 2, 3, 4, 5):
        manager.save(step, state(step))

    assert set(steps(manager.local)) <= expected
    assert 5 in steps(manager.local)
    with pytest.raises(OSError, match="No route"):
        manager.close()


def test_upload_chooses_what_goes_far(tiers: Tiers) -> None:
    with tiers.start(upload=lambda info: info.step % 2 == 0) as manager:
        for step in (1, 2, 3, 4, 5):
            manager.save(step, state(step))

    assert steps(manager.remote) == [2, 4]
    assert steps(manager) == [1, 2, 3, 4, 5]


def test_background_saves_go_through_both_tiers(tiers: Tiers) -> None:
    w = np.zeros((4, 3), np.float32)
    with tiers.start() as manager, BackgroundSaver(manager) as saver:
        for step in (1, 2, 3):
            w += 1
            saver.save(step, {"model": {"w": w}, "epoch": step})
        assert saver.save(4, {"model": {"w": w + 1}, "epoch": 4}).result().path.startswith(str(tiers.folder))

    assert [restored(manager.remote, step) for step in (1, 2, 3, 4)] == [1, 2, 3, 4]


def test_shared_files_of_incremental_saves_are_whole_in_the_remote_tier(tiers: Tiers) -> None:
    tiers.local_options = {"incremental": ["model/*"], "retention": KeepLast(1)}
    model = {"w": np.ones(1000)}
    with tiers.start() as manager:
        for step in (1, 2, 3):
            manager.save(step, {"model": model, "step": np.array([step])})
            manager.wait()

    for step in (1, 2, 3):
        found = manager.remote.restore(step).state
        assert (found["step"][0], found["model"]["w"].sum()) == (step, 1000)


def test_overwriting_a_step_overwrites_its_copy(tiers: Tiers) -> None:
    with tiers.start() as manager:
        manager.save(1, state(1))
        manager.wait()
        manager.save(1, state(7), overwrite=True)

    assert restored(manager.remote, 1) == 7
    assert manager.remote.sweep(grace=0).files == 0


def test_hints_for_other_tools_follow_in_the_remote_tier(tmp_path: Path) -> None:
    near, far = (CheckpointManager(tmp_path / name, backend="tf_bundle") for name in ("near", "far"))
    with TieredManager(near, far) as manager:
        for step in (1, 2):
            manager.save(step, state(step))

    assert far.latest().attempt in (tmp_path / "far" / "checkpoint").read_text().splitlines()[0]


# ---- keeping


def test_delete_pin_and_verify_are_for_both_tiers(tiers: Tiers) -> None:
    tiers.local_options = tiers.remote_options = {"retention": KeepLast(1)}
    with tiers.start() as manager:
        manager.save(1, state(1))
        manager.pin(1, "paper")
        manager.save(2, state(2))
        manager.wait()
        assert [(info.step, info.pins) for info in manager.remote.steps()] == [(1, {"paper"}), (2, set())]
        assert manager.verify().ok
        manager.unpin(1, "paper")
        manager.delete(1)
        assert steps(manager) == [2]
        tiers.damage(manager, 2)
        assert [step for step, _ in manager.verify().problems] == [2, 2]  # a file, and the tensor in it; not the far copy
        with pytest.raises(StepNotFoundError):
            manager.delete(1)


def test_a_pin_that_comes_while_a_step_is_copied_comes_along(tiers: Tiers) -> None:
    manager = tiers.start()
    with tiers.far.held():
        manager.save(1, state(1))
        assert tiers.far.begun.wait(PATIENCE_S)
        manager.pin(1, "paper")
    manager.close()

    assert manager.remote.latest().pins == {"paper"}


def test_a_step_that_is_deleted_while_it_is_copied_does_not_come_back(tiers: Tiers) -> None:
    manager = tiers.start()
    with tiers.far.held():
        manager.save(1, state(1))
        assert tiers.far.begun.wait(PATIENCE_S)
        deleting = threading.Thread(target=manager.delete, args=(1,))
        deleting.start()
    deleting.join()
    manager.close()

    assert (steps(manager.local), steps(manager.remote)) == ([], [])
    assert files(tiers.folder / "near") == set()


def test_both_tiers_must_be_different_places(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both tiers"):
        TieredManager(CheckpointManager(tmp_path), CheckpointManager(str(tmp_path)))
    with pytest.raises(TypeError, match="upload"):
        TieredManager(CheckpointManager(tmp_path), tier(PosixStore(tmp_path / "far")), upload=5)  # type: ignore[arg-type]


# ---- what local retention had to leave


@pytest.mark.parametrize("end", ["close", "wait", "with"])
def test_what_was_kept_only_for_its_copy_goes_when_it_is_copied(tiers: Tiers, end: str) -> None:
    tiers.local_options = {"retention": KeepLast(1)}
    manager = tiers.start()
    with tiers.far.held():
        save_three(manager)

    {"close": manager.close, "wait": manager.wait, "with": lambda: manager.__exit__(None, None, None)}[end]()

    assert (steps(manager.local), steps(manager.remote)) == ([3], [1, 2, 3])
    assert restored(manager.local) == 3
    manager.close()


def test_what_could_not_be_copied_stays_when_the_tiers_are_closed(tiers: Tiers) -> None:
    tiers.local_options = {"retention": KeepLast(1)}
    tiers.far.is_down = True
    manager = tiers.start()
    for step in (1, 2, 3):
        manager.save(step, state(step))

    with pytest.raises(OSError, match="No route"):
        manager.close()

    assert steps(manager.local) == [1, 2, 3]
    tiers.far.is_down = False
    with tiers.start() as manager:
        manager.save(4, state(4))
    assert (steps(manager.local), steps(manager.remote)) == ([4], [1, 2, 3, 4])


def test_tiers_that_saved_nothing_remove_nothing(tiers: Tiers) -> None:
    with tiers.start() as manager:
        for step in (1, 2, 3):
            manager.save(step, state(step))
    tiers.local_options = {"retention": KeepLast(1)}

    with tiers.start() as manager:
        manager.wait()

    assert steps(manager.local) == [1, 2, 3]


def test_a_local_retention_that_fails_at_the_end_is_raised_with_the_copies_that_failed(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiers.local_options = {"retention": KeepLast(1)}
    manager = tiers.start()
    manager.save(1, state(1))

    def failing() -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(manager.local, "collect", failing)
    with pytest.raises(OSError, match="Input/output error") as caught:
        manager.close()

    assert "removing older local steps" in caught.value.__notes__[0]
    assert steps(manager.remote) == [1]
    manager.close()  # it is told once
