"""`BackgroundSaver`: what it saves, what it does while it is busy, and how often it wants to save."""

import concurrent.futures
import gc
import inspect
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from holding import PATIENCE_S, HeldManager

from ckptmgr import BackgroundSaver, CheckpointManager, KeepLast, PendingSave, UnsupportedLeafError, snapshot


@pytest.fixture
def held(tmp_path: Path) -> Iterator[HeldManager]:
    manager = HeldManager(tmp_path / "run")
    yield manager
    manager.go.set()


def steps(manager: CheckpointManager) -> list[int]:
    return [info.step for info in manager.steps()]


def test_save_takes_what_the_manager_takes() -> None:
    ours, theirs = inspect.signature(BackgroundSaver.save), inspect.signature(CheckpointManager.save)

    assert ours.parameters == theirs.parameters


def test_save_returns_before_anything_is_written(held: HeldManager) -> None:
    with BackgroundSaver(held) as saver:
        pending = saver.save(1, {"w": np.ones(3)})

        assert (pending.step, pending.done(), pending.cancelled(), pending.staged) == (1, False, False, True)
        assert held.steps() == []
        held.go.set()
        assert pending.result(PATIENCE_S).step == 1
        assert (pending.done(), pending.exception()) == (True, None)
    assert held.restore().state["w"].tolist() == [1, 1, 1]


def test_all_that_is_given_may_be_changed_at_once(held: HeldManager) -> None:
    rng = np.random.default_rng(1)
    state: dict[str, Any] = {"w": np.ones(3), "list": [1, np.zeros(2), {"deep": "text"}], "rng": rng, "raw": bytearray(b"abc")}
    metrics, metadata, assets = {"loss": np.array(0.5)}, {"names": ["a"]}, {"notes": bytearray(b"n")}
    draw = np.random.default_rng(1).random()

    with BackgroundSaver(held) as saver:
        saver.save(1, state, metrics=metrics, metadata=metadata, assets=assets)
        state["w"] += 1
        state["list"][1][:] = 5
        state["list"][2]["deep"] = "other"
        state["list"].append(3)
        state["raw"][:] = b"xyz"
        rng.random()
        metrics["loss"][...] = 9
        metadata["names"].append("b")
        assets["notes"][:] = b"x"
        del state["w"]
        held.go.set()

    restored = held.restore().state
    assert restored["w"].tolist() == [1, 1, 1]
    assert (restored["list"][0], restored["list"][1].tolist(), restored["list"][2:]) == (1, [0, 0], [{"deep": "text"}])
    assert (restored["rng"].random(), restored["raw"].tobytes()) == (draw, b"abc")
    with held.open() as checkpoint:
        info, notes = checkpoint.info, checkpoint.asset("notes")
    assert info is not None
    assert (info.metrics, info.metadata, notes) == ({"loss": 0.5}, {"names": ["a"]}, b"n")


def test_times_are_in_order_and_sizes_known(held: HeldManager) -> None:
    with BackgroundSaver(held) as saver:
        pending = saver.save(1, {"w": np.ones(3), "b": np.ones(2, np.int8)})
        before = pending.stats
        held.go.set()
        pending.result()
        after = pending.stats

    assert before.nbytes == 26
    assert before.written is before.committed is None
    assert 0 <= after.staged <= after.blocked <= after.written <= after.committed


def test_what_cannot_be_saved_is_told_at_once_and_nothing_is_copied(held: HeldManager) -> None:
    with BackgroundSaver(held) as saver:
        with pytest.raises(UnsupportedLeafError, match="bad"):
            saver.save(1, {"w": np.ones(3), "bad": object()})
        with pytest.raises(TypeError):
            saver.save(1, {"w": np.ones(3)}, metrics={"loss": "high"})
        held.go.set()
        saver.wait()

        assert (steps(held), held.begun.is_set()) == ([], False)


def test_no_memory_for_a_copy_is_told_at_once(held: HeldManager, monkeypatch: pytest.MonkeyPatch) -> None:
    held.go.set()
    with BackgroundSaver(held) as saver:
        with monkeypatch.context() as patch:
            patch.setattr(snapshot, "free_nbytes", lambda: 0)
            with pytest.raises(MemoryError):
                saver.save(1, {"w": np.ones(3)})
        saver.save(2, {"w": np.ones(3)})

    assert steps(held) == [2]


def test_by_default_a_save_waits_for_the_one_before(held: HeldManager) -> None:
    with BackgroundSaver(held) as saver:
        first = saver.save(1, {"w": np.ones(3)})
        threading.Timer(0.05, held.go.set).start()
        second = saver.save(2, {"w": np.ones(3)})

        assert first.done()
        assert second.result().step == 2
    assert steps(held) == [1, 2]


def test_skip_does_not_wait(held: HeldManager) -> None:
    with BackgroundSaver(held, on_busy="skip") as saver:
        saver.save(1, {"w": np.ones(3)})
        skipped = saver.save(2, {"w": np.ones(3)})

        assert (skipped.skipped, skipped.done(), skipped.cancelled()) == (True, True, True)
        with pytest.raises(concurrent.futures.CancelledError, match="step 2 was not saved: step 1 was still being saved"):
            skipped.result()
        held.go.set()
        saver.wait()
        saver.save(3, {"w": np.ones(3)})
    assert steps(held) == [1, 3]


def test_replace_takes_the_place_of_what_has_not_begun(held: HeldManager) -> None:
    with BackgroundSaver(held, on_busy="replace") as saver:
        first = saver.save(1, {"w": np.ones(3)})
        assert held.begun.wait(PATIENCE_S)
        queued = saver.save(2, {"w": np.full(3, 2.0)})
        last = saver.save(3, {"w": np.full(3, 3.0)})

        assert (first.done(), queued.cancelled(), queued.skipped, last.done()) == (False, True, False, False)
        with pytest.raises(concurrent.futures.CancelledError, match="step 2 was not saved: step 3 took its place"):
            queued.exception()
        held.go.set()
    assert steps(held) == [1, 3]
    assert held.restore(1).state["w"].tolist() == [1, 1, 1]
    assert held.restore(3).state["w"].tolist() == [3, 3, 3]


def test_memory_is_that_of_one_copy_or_of_two_when_one_may_wait(held: HeldManager) -> None:
    made: list[weakref.ref[Any]] = []
    state = {"w": np.ones(3)}

    class Counted(snapshot.Staging):
        def __init__(self) -> None:
            super().__init__()
            made.append(weakref.ref(self))

    with pytest.MonkeyPatch.context() as patch, BackgroundSaver(held, on_busy="replace") as saver:
        patch.setattr("ckptmgr.background.Staging", Counted)
        saver.save(0, state)
        assert held.begun.wait(PATIENCE_S)
        for step in range(1, 5):
            saver.save(step, state)
        held.go.set()
        saver.wait()
        saver.save(9, state)
        assert len(made) == 2

    assert [ref() for ref in made] == [None, None]


def test_what_is_saved_is_let_go_of(held: HeldManager) -> None:
    held.go.set()
    with BackgroundSaver(held) as saver:
        saver.save(1, {"w": np.ones(3)}).result()
        assert not [found for found in gc.get_objects() if type(found) is snapshot.Snapshot]


def test_callbacks_are_called_once_with_the_save(held: HeldManager, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[tuple[str, PendingSave]] = []
    with BackgroundSaver(held) as saver:
        pending = saver.save(1, {"w": np.ones(3)})
        pending.add_done_callback(lambda done: seen.append(("before", done)))
        pending.add_done_callback(lambda done: [][1])
        assert seen == []
        held.go.set()
        saver.wait()
    pending.add_done_callback(lambda done: seen.append(("after", done)))

    assert sorted(seen, reverse=True) == [("before", pending), ("after", pending)]
    assert "a callback of the background save of step 1 failed" in caplog.text


def test_result_waits_no_longer_than_asked(held: HeldManager) -> None:
    with BackgroundSaver(held) as saver:
        pending = saver.save(1, {"w": np.ones(3)})
        with pytest.raises(TimeoutError, match="step 1"):
            pending.result(timeout=0.01)
        with pytest.raises(TimeoutError):
            saver.wait(timeout=0)
        held.go.set()
        assert pending.result().step == 1


def test_budget_is_kept_by_the_time_between_saves(held: HeldManager) -> None:
    now = 0.0
    held.go.set()
    taking = held.prepare

    def slow(*arguments: Any, **options: Any) -> Any:
        nonlocal now
        now += 3.0
        return taking(*arguments, **options)

    held.prepare = slow  # type: ignore[method-assign]
    saver = BackgroundSaver(held, overhead_budget=0.03, clock=lambda: now)
    saved = []
    for step in range(1, 1001):
        now += 1.0
        if saver.should_save():
            saver.save(step, {"w": np.ones(3)})
            saver.wait()
            saved.append((step, now))
    saver.close()

    assert saved[0] == (1, 4.0)
    assert len(saved) == 11
    assert 3.0 * (len(saved) - 1) / (saved[-1][1] - saved[0][1]) == pytest.approx(0.03, abs=0.001)


def test_without_a_budget_it_is_time_whenever_nothing_is_saved(held: HeldManager) -> None:
    with BackgroundSaver(held) as saver:
        assert saver.should_save()
        saver.save(1, {"w": np.ones(3)})
        assert not saver.should_save()
        held.go.set()
        saver.wait()
        assert saver.should_save()


def test_threads_save_one_after_another(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "run")
    with BackgroundSaver(manager) as saver, concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda step: saver.save(step, {"w": np.full(9, step)}), range(20)))

    assert sorted(steps(manager)) == list(range(20))
    assert all((manager.restore(step).state["w"] == step).all() for step in range(20))


def test_retention_is_applied(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "run", retention=KeepLast(2))
    with BackgroundSaver(manager) as saver:
        for step in range(5):
            saver.save(step, {"w": np.ones(3)})

    assert steps(manager) == [3, 4]


def test_a_closed_saver_saves_nothing_more(held: HeldManager) -> None:
    held.go.set()
    saver = BackgroundSaver(held)
    saver.close()
    saver.close()

    with pytest.raises(RuntimeError, match="closed"):
        saver.save(1, {"w": np.ones(3)})


def test_a_saver_that_nobody_needs_finishes_and_its_thread_ends(held: HeldManager) -> None:
    pending = BackgroundSaver(held).save(1, {"w": np.ones(3)})
    gc.collect()
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "ckptmgr-background"]
    held.go.set()

    assert pending.result(PATIENCE_S).step == 1
    gc.collect()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


@pytest.mark.parametrize("options", [{"on_busy": "later"}, {"overhead_budget": 0}, {"overhead_budget": 3}])
def test_options_out_of_their_range_are_refused(held: HeldManager, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        BackgroundSaver(held, **options)
