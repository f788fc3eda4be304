"""What `CheckpointManager` does on a local folder (`test_manager`), it does on every store."""

import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from debris import debris, files_below
from every_store import REMOTE, WEAK, place
from runs import state

from ckptmgr import (
    CheckpointManager,
    CorruptCheckpointError,
    KeepBest,
    KeepLast,
    StepExistsError,
    StepNaming,
    StepNotFoundError,
    commit,
)
from ckptmgr.storage import Folder

pytestmark = pytest.mark.filterwarnings("ignore:.* does not honour conditional writes")
FAR = [pytest.param(name, marks=pytest.mark.cloud) for name in [*REMOTE, *WEAK]]


@pytest.fixture(params=["posix", "fsspec-memory", *FAR])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The arguments of a manager of a new run."""
    if request.param == "posix":
        return {"url": str(tmp_path / "run")}
    if request.param == "fsspec-memory":
        return {"url": f"memory:/{tmp_path}/run"}
    url, options = place(request.param, request)
    return {"url": url, "storage_options": options}


def contents(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read(name)[0] for name in files_below(folder) if name != ".ckptmgr.lock"}


def steps(manager: CheckpointManager) -> list[int]:
    return [info.step for info in manager.steps()]


def test_a_run_is_created_by_its_first_save_and_comes_back_bit_exact(run: dict[str, Any]) -> None:
    manager = CheckpointManager(**run)
    assert manager.steps() == []
    assert manager.latest() is None
    with pytest.raises(StepNotFoundError):
        manager.restore()
    assert contents(manager.folder) == {}
    tricky = {
        "nan": np.array([math.nan, -0.0, 5e-324]),
        "nothing": np.zeros((0, 3), np.int8),
        "half": np.arange(3, dtype=np.float16),
    }

    info = manager.save(7, {**state(7), **tricky}, metrics={"loss": 0.5}, metadata={"git": "abc"}, assets={"config.json": b"{}"})

    found = CheckpointManager(**run).restore()
    assert found.info == info
    assert (found.step, found.state["epoch"], found.state["note"]) == (7, 7, "é")
    assert all(
        found.state[name].tobytes() == array.astype(array.dtype.newbyteorder("=")).tobytes() for name, array in tricky.items()
    )
    with manager.open(7) as checkpoint:
        assert checkpoint.asset("config.json") == b"{}"
        np.testing.assert_array_equal(checkpoint.read("model/w"), np.full((4, 3), 7, np.float32))
    assert manager.verify().ok


def test_a_committed_step_is_refused_or_replaced_and_nothing_of_the_old_one_is_left(run: dict[str, Any]) -> None:
    manager = CheckpointManager(**run)
    manager.save(3, state(3))
    before = contents(manager.folder)

    with pytest.raises(StepExistsError, match="3"):
        manager.save(3, state(4))

    assert contents(manager.folder) == before
    manager.save(3, state(4), overwrite=True)
    assert manager.restore(3).state["epoch"] == 4
    assert contents(manager.folder).keys() & before.keys() == {"step-00000003/manifest.json"}
    assert debris(manager.folder) == set()


def test_retention_keeps_the_newest_the_best_and_what_is_pinned(run: dict[str, Any]) -> None:
    manager = CheckpointManager(**run)
    for step, loss in [(900, 0.5), (1, math.nan), (2, 0.2), (3, 0.9)]:
        manager.save(step, state(step), metrics={"loss": loss})
    manager.pin(900, "paper")
    manager.retention = KeepBest("loss", n=1, mode="min")

    plan = manager.plan()
    done = manager.collect()

    assert sorted(info.step for info in plan.kept) == [2, 3, 900]
    assert [info.step for info in done.dropped] == [1]
    assert steps(manager) == [900, 2, 3]
    manager.retention = KeepLast(1)
    manager.save(10, state(10))
    assert steps(manager) == [900, 10]
    manager.unpin(900, "paper")
    manager.collect()
    assert steps(manager) == [10]
    assert debris(manager.folder) == set()


def test_a_damaged_step_is_passed_over_loudly_and_can_be_deleted_or_overwritten(run: dict[str, Any]) -> None:
    manager = CheckpointManager(**run)
    for step in (1, 2, 3):
        manager.save(step, state(step))
    data = f"{manager.latest().name}/{manager.latest().path.rpartition('/')[2]}/model.safetensors"
    spoil(manager.folder, data)

    with pytest.warns(RuntimeWarning, match="step 3 is skipped"):
        assert manager.restore().step == 2
    with pytest.raises(CorruptCheckpointError, match="model"):
        manager.restore(3)
    assert {step for step, _ in manager.verify().problems} == {3}
    spoil(manager.folder, "step-00000002/manifest.json")
    manager.delete(2)
    manager.save(3, state(30), overwrite=True)
    manager.sweep(grace=0)

    assert steps(manager) == [1, 3]
    assert manager.restore().state["epoch"] == 30


def spoil(folder: Folder, name: str) -> None:
    data = folder.read(name)[0]
    folder.write(name, data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])


def test_foreign_files_are_neither_counted_nor_deleted(run: dict[str, Any]) -> None:
    manager = CheckpointManager(**run)
    manager.save(1, state(1))
    foreign = ["notes.txt", "step-00000009/model.bin", "step-abc/x", "step-00000001/mine.txt", "step-00000001-old/manifest.json"]
    for name in foreign:
        manager.folder.write(name, b"mine")

    manager.sweep(grace=0)
    manager.delete(1)
    manager.sweep(grace=0, empty_records=True)

    assert manager.steps() == []
    assert contents(manager.folder) == dict.fromkeys(foreign, b"mine")


def test_sweep_spares_what_shows_signs_of_life(run: dict[str, Any]) -> None:
    manager = CheckpointManager(**run)
    manager.save(1, state(1))
    attempt = commit.begin(manager.folder, "step-00000002", 2, overwrite=False)
    attempt.folder.write("model.safetensors", b"half")

    assert manager.sweep(grace=timedelta(hours=1)).files == 0
    assert attempt.folder.head("model.safetensors") is not None
    assert manager.sweep(grace=0).claims == 1

    assert debris(manager.folder) == set()
    assert steps(manager) == [1]


@pytest.mark.parametrize("error", [OSError(28, "disk full"), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
def test_a_save_that_fails_while_it_writes_leaves_nothing_behind(
    run: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    manager = CheckpointManager(**run)
    manager.save(1, state(1))

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("ckptmgr.treefile.encode", fail)
        with pytest.raises(type(error)):
            manager.save(2, state(2))

    assert debris(manager.folder) == set()
    manager.save(2, state(2))
    assert manager.restore().step == 2


def test_a_step_saved_again_under_other_metadata_in_its_name_is_the_same_step(run: dict[str, Any]) -> None:
    manager = CheckpointManager(**run, naming=StepNaming("epoch-{epoch}-step-{step}"))
    manager.save(40, state(1), metadata={"epoch": 2})

    with pytest.raises(StepExistsError):
        manager.save(40, state(2), metadata={"epoch": 3})
    manager.save(40, state(3), metadata={"epoch": 3}, overwrite=True)

    assert manager.folder.list().folders == ("epoch-2-step-40",)
    assert manager.latest().metadata == {"epoch": 3}


def test_incremental_saves_share_files_and_give_them_back(run: dict[str, Any]) -> None:
    manager = CheckpointManager(**run, incremental=True)
    frozen = np.arange(1000.0)
    for step in (1, 2, 3):
        manager.save(step, {"frozen": {"w": frozen}, "head": {"w": np.full(10, step)}})

    manager.delete(1)
    manager.sweep(grace=0)

    for step in (2, 3):
        found = CheckpointManager(**run).restore(step).state
        assert (found["frozen"]["w"] == frozen).all()
        assert (found["head"]["w"] == step).all()
    manager.delete(2)
    manager.delete(3)
    for _ in range(2):
        manager.sweep(grace=0, empty_records=True)
    assert contents(manager.folder) == {}
