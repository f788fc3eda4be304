"""Hints for other tools beside the steps of a run: what they name is there at any moment, and nobody fails by them."""

import threading
from pathlib import Path

import numpy as np
import pytest
from pointing import HINT, PointingBackend, write_foreign
from runs import files, state
from syscalls import counting, dying_at, in_child

from ckptmgr import CheckpointManager, KeepLast, backend, commit
from ckptmgr.hints import Hints
from ckptmgr.storage import PosixStore


@pytest.fixture
def manager(tmp_path) -> CheckpointManager:
    return CheckpointManager(tmp_path, backend=PointingBackend())


@pytest.fixture
def installed(monkeypatch) -> None:
    """Makes the format one that is installed."""
    find = backend.find
    monkeypatch.setattr(backend, "find", lambda name: PointingBackend() if name == "fake" else find(name))


def named(folder: Path) -> list[str]:
    return (folder / HINT).read_text().splitlines()


def stems(manager: CheckpointManager) -> list[str]:
    return [f"{info.name}/a-{info.attempt}/model" for info in manager.steps() if info.backend == "fake"]


def test_a_save_names_its_step_last_by_the_stem_of_its_files(manager, tmp_path):
    for step in (2, 1):
        manager.save(step, {"w": np.zeros(2)})

    assert named(tmp_path) == stems(manager)
    assert (tmp_path / f"{named(tmp_path)[-1]}.idx").parent == Path(manager.path(1))


def test_assets_are_no_part_of_the_stem(manager, tmp_path):
    manager.save(1, {"w": np.zeros(2)}, assets={"other.idx": b"", "notes.txt": b""})

    assert named(tmp_path) == stems(manager)


def test_steps_of_other_tools_are_named_too_before_ours(manager, tmp_path):
    for step in (8, 9):
        write_foreign(tmp_path, f"ckpt-{step}", {"w": np.zeros(1)})
    manager.save(10, {"w": np.zeros(1)})

    assert named(tmp_path) == ["ckpt-8", "ckpt-9", *stems(manager)[2:]]


def test_what_retention_overwrites_and_deletes_remove_is_not_named(tmp_path):
    manager = CheckpointManager(tmp_path, backend=PointingBackend(), retention=KeepLast(2))
    for step in (1, 2, 3):
        manager.save(step, {"w": np.zeros(2)})
    assert named(tmp_path) == stems(manager)

    manager.save(2, {"w": np.ones(2)}, overwrite=True)
    assert named(tmp_path) == stems(manager)

    manager.delete(3)
    assert named(tmp_path) == stems(manager)
    assert len(named(tmp_path)) == 1


def test_with_the_last_step_the_hints_go(manager, tmp_path):
    manager.save(1, {"w": np.zeros(2)})

    manager.delete(1)

    assert not (tmp_path / HINT).exists()


def test_with_the_last_step_of_ours_those_of_other_tools_remain(manager, tmp_path):
    write_foreign(tmp_path, "ckpt-9", {"w": np.zeros(1)})
    manager.save(10, {"w": np.zeros(2)})

    manager.delete(10)

    assert named(tmp_path) == ["ckpt-9"]


def test_where_nothing_is_ours_another_tools_hints_are_left_alone(manager, tmp_path):
    write_foreign(tmp_path, "ckpt-9", {"w": np.zeros(1)})
    (tmp_path / HINT).write_text("its own business")

    manager.collect()
    manager.sweep()
    CheckpointManager(tmp_path).save(10, {"w": np.zeros(1)})

    assert (tmp_path / HINT).read_text() == "its own business"


def test_a_manager_of_another_format_keeps_the_hints_of_steps_that_are_there(manager, tmp_path, installed):
    manager.save(1, {"w": np.zeros(2)})
    manager.save(2, {"w": np.zeros(2)})
    other = CheckpointManager(tmp_path)

    other.save(3, {"w": np.zeros(2)})
    assert named(tmp_path) == stems(manager)
    other.delete(2)
    assert named(tmp_path) == stems(manager)
    assert len(stems(manager)) == 1
    other.save(1, {"w": np.zeros(2)}, overwrite=True)

    assert not (tmp_path / HINT).exists()


def test_hints_that_are_right_are_not_written_again(manager, tmp_path):
    manager.save(1, {"w": np.zeros(2)})
    before = (tmp_path / HINT).stat().st_ino

    manager.collect()
    manager.pin(1, "paper")
    manager.sweep(grace=0)

    assert (tmp_path / HINT).stat().st_ino == before


def test_hints_that_somebody_has_changed_are_put_right_by_the_next_save(manager, tmp_path):
    manager.save(1, {"w": np.zeros(2)})
    (tmp_path / HINT).write_text("nothing\n")

    manager.save(2, {"w": np.zeros(2)})

    assert named(tmp_path) == stems(manager)


def test_saves_that_came_while_hints_were_written_are_named_too(manager, tmp_path, monkeypatch):
    other = CheckpointManager(tmp_path, backend=PointingBackend())
    put, coming, busy = PosixStore.put, [4, 3, 2], []

    def slow(self, key, windows, nbytes):
        if key == HINT and coming and not busy:
            busy.append(1)
            other.save(coming.pop(), {"w": np.zeros(2)})
            busy.clear()
        return put(self, key, windows, nbytes)

    monkeypatch.setattr(PosixStore, "put", slow)
    manager.save(1, {"w": np.zeros(2)})

    assert named(tmp_path) == stems(manager)
    assert [info.step for info in manager.steps()] == [1, 2, 3, 4]


@pytest.mark.parametrize("call", ["save", "overwrite", "delete", "collect"])
def test_that_hints_cannot_be_written_is_logged_and_no_more(tmp_path, monkeypatch, caplog, call):
    manager = CheckpointManager(tmp_path, backend=PointingBackend(), retention=KeepLast(2))
    manager.save(1, state(1))
    manager.save(2, state(2))
    put = PosixStore.put

    def failing(self, key, windows, nbytes):
        if key == HINT:
            raise OSError(28, "disk full", key)
        return put(self, key, windows, nbytes)

    monkeypatch.setattr(PosixStore, "put", failing)
    if call == "collect":
        manager.retention = KeepLast(1)
    calls = {
        "save": lambda: manager.save(3, state(3)),
        "overwrite": lambda: manager.save(1, state(4), overwrite=True),
        "delete": lambda: manager.delete(1),
        "collect": manager.collect,
    }
    calls[call]()

    assert [info.step for info in manager.steps()] == {"save": [2, 3], "overwrite": [2, 1]}.get(call, [2])
    assert "hints for other tools" in caplog.text


def test_hints_that_could_not_be_written_on_a_full_disk_are_when_a_step_is_deleted(manager, tmp_path, monkeypatch):
    manager.save(1, {"w": np.zeros(2)})
    manager.save(2, {"w": np.zeros(2)})
    put = PosixStore.put

    def full(self, key, windows, nbytes):
        if key == HINT and len(list(tmp_path.glob("step-*"))) == 2:
            raise OSError(28, "disk full", key)
        return put(self, key, windows, nbytes)

    monkeypatch.setattr(PosixStore, "put", full)
    manager.delete(1)

    assert named(tmp_path) == stems(manager)


def test_formats_without_hints_pay_nothing(tmp_path, monkeypatch):
    manager = CheckpointManager(tmp_path, retention=KeepLast(1))
    manager.save(1, state(1))
    monkeypatch.setattr(Hints, "_entries", lambda self: pytest.fail("the run was listed for hints"))

    manager.save(2, state(2))
    manager.save(2, state(3), overwrite=True)
    manager.delete(2)

    assert files(tmp_path) == set()


def test_before_a_sweep_the_leavings_of_a_death_are_not_named_any_more(manager, tmp_path):
    manager.save(1, {"w": np.zeros(2)})
    manager.save(2, {"w": np.zeros(2)})
    gone = stems(manager)[0]
    commit.delete(manager.folder, "step-00000001", 1)  # without hints, as if it had died
    assert gone in named(tmp_path)

    manager.sweep(grace=0)

    assert named(tmp_path) == stems(manager)


# ---- at any moment


def check(folder: Path) -> None:
    """What the hints name is there, if it is not that they have just changed."""
    while True:
        try:
            before = named(folder)
        except FileNotFoundError:
            return
        if all((folder / f"{stem}.idx").exists() and (folder / f"{stem}.bin").exists() for stem in before):
            return
        try:
            assert named(folder) != before, before
        except FileNotFoundError:
            return


def work(folder: Path) -> None:
    """Three saves with retention, an overwrite, a delete, an adoption."""
    manager = CheckpointManager(folder, backend=PointingBackend(), retention=KeepLast(1))
    for step in (1, 2):
        manager.save(step, {"w": np.full(3, step)})
    manager.save(2, {"w": np.full(3, 9)}, overwrite=True)
    CheckpointManager(folder, backend=PointingBackend()).save(3, {"w": np.zeros(3)})
    manager.delete(2)
    write_foreign(folder, "ckpt-1", {"w": np.zeros(1)})
    manager.adopt()


@pytest.mark.slow
def test_after_death_at_any_system_call_hints_name_what_is_there(tmp_path):
    with counting() as calls:
        work(tmp_path / "count")

    def dies(n: int, folder: Path) -> None:
        with dying_at(n, when="after"):
            work(folder)

    for n in range(len(calls)):
        folder = tmp_path / f"run-{n}"
        assert in_child(lambda n=n, folder=folder: dies(n, folder)) < 0

        check(folder)
        CheckpointManager(folder, backend=PointingBackend()).sweep(grace=0)
        check(folder)


def test_a_reader_always_finds_what_hints_name(tmp_path):
    stop, wrong, seen = threading.Event(), [], set()

    def read() -> None:
        while not stop.is_set():
            try:
                check(tmp_path)
                seen.add(tuple(named(tmp_path)))
            except FileNotFoundError:
                continue
            except AssertionError as error:
                wrong.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(8):
            work(tmp_path)
            CheckpointManager(tmp_path, backend=PointingBackend()).delete(3)
    finally:
        stop.set()
        for reader in readers:
            reader.join()

    assert wrong == []
    assert len(seen) > 8
