"""How far a migration is: bytes that go on while they move, told in the thread that asked, and all of them at the end."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptmgr import CheckpointManager, MigrationError, migrate, migrating, save
from ckptmgr.moving import migrate_step

STATE = {"w": np.arange(1 << 20, dtype=np.float64)}


@pytest.fixture(params=["ours", "foreign"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Two steps of 8 MiB."""
    for step in (1, 2):
        if request.param == "foreign":
            save(tmp_path / "run" / f"ckpt-{step}.safetensors", STATE)
        else:
            CheckpointManager(tmp_path / "run").save(step, STATE)
    return tmp_path / "run"


def nbytes(run: Path) -> int:
    return sum(info.nbytes for info in CheckpointManager(run).steps())


def is_foreign(run: Path) -> bool:
    return CheckpointManager(run).steps()[0].is_foreign


@pytest.mark.parametrize("to", [None, "npz"])
def test_a_worker_tells_bytes_before_its_step_is_done(
    run: Path, tmp_path: Path, to: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: dict[int, list[tuple[int, int]]] = {1: [], 2: []}

    def watched(errand: Any, asked: Any, progress: Any) -> Any:
        def tell(done: int, total: int) -> None:
            moved[asked.step].append((done, total))
            progress(done, total)

        return migrate_step(errand, asked, tell)

    monkeypatch.setattr(migrating, "migrate_step", watched)
    migrate(run, tmp_path / "new", to=to)

    for seen in moved.values():
        assert len(seen) > 1 or (to is None and is_foreign(run))  # a copy of another tool's files is told file by file
        assert seen == sorted(seen)
        assert seen[-1][0] == seen[-1][1] >= STATE["w"].nbytes


def test_what_moves_is_told_while_it_moves(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    is_heard = threading.Event()

    def half_way(errand: Any, asked: Any, progress: Any) -> Any:
        progress(1, 2)
        assert is_heard.wait(60)  # goes on when half of both steps has been told
        return migrate_step(errand, asked, progress)

    def told(done: int, total: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert total == nbytes(run)
        seen.append(done)
        if done >= total // 2 - 1:
            is_heard.set()

    monkeypatch.setattr(migrating, "migrate_step", half_way)
    monkeypatch.setattr(migrating, "LOOK_S", 0.01)
    migrate(run, tmp_path / "new", progress=told)

    assert seen[0] == 0
    assert any(abs(done - nbytes(run) // 2) <= 1 for done in seen)
    assert seen[-1] == nbytes(run)


def test_steps_that_fail_and_executors_of_others_count_too(run: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    (next(iter(run.rglob("*.safetensors")))).write_bytes(b"damaged")
    CheckpointManager(run).save(3, STATE)

    with ThreadPoolExecutor(1) as pool, pytest.raises(MigrationError):
        migrate(run, tmp_path / "new", executor=pool, progress=lambda done, total: seen.append(done))

    assert seen == sorted({*seen})
    assert seen[-1] == nbytes(run)


def test_what_progress_raises_ends_the_migration(run: Path, tmp_path: Path) -> None:
    def refuse(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        migrate(run, tmp_path / "new", progress=refuse)

    migrate(run, tmp_path / "new")
    assert [info.step for info in CheckpointManager(tmp_path / "new").steps()] == [1, 2]
