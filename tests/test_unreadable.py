"""One step that cannot be read, of many: `verify`, `cp` and `migrate` tell it, and go on with the others."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from runs import state
from test_cli import call, damage
from test_posix_disk import as_nobody, open_to_all

import ckptmgr
from ckptmgr import CheckpointManager, TieredManager
from ckptmgr.storage import PosixStore

__all__ = ["open_to_all"]

CLOSED: dict[str, Callable[[Path], Path]] = {
    "folder": lambda run: run / "step-00000002",
    "record": lambda run: run / "step-00000002" / "manifest.json",
    "attempt": lambda run: next((run / "step-00000002").glob("a-*")),
    "tree": lambda run: next((run / "step-00000002").glob("a-*/tree.json")),
    "tensors": lambda run: next((run / "step-00000002").glob("a-*/*.safetensors")),
}
each_place = pytest.mark.parametrize("place", CLOSED)


@pytest.fixture
def run(open_to_all: Path) -> Path:
    for step in (1, 2, 3):
        CheckpointManager(open_to_all / "run").save(step, state(step))
    (open_to_all / "out").mkdir()
    (open_to_all / "out").chmod(0o777)
    return open_to_all / "run"


@each_place
def test_verify_tells_of_each_step_and_fails(run: Path, place: str) -> None:
    damage(run, 3)
    closed = CLOSED[place](run)
    closed.chmod(0)

    def verify() -> None:
        report = CheckpointManager(run).verify()
        assert not report.ok
        assert ({step for step, _ in report.problems}, report.unread) == ({2, 3}, (2,))
        done = call("verify", run)
        heads = {line for line in done.stdout.splitlines() if not line.startswith(" ")}
        assert (done.exit_code, heads) == (1, {"step 1: ok", "step 2: not read", "step 3: damaged"}), done.output
        assert f"{str(closed)!r}"[:-1] in done.stdout
        assert "Permission denied" in done.stdout
        told = json.loads(call("verify", run, "--json").stdout)
        assert {one["step"]: one["read"] for one in told["checked"]} == {1: True, 2: False, 3: True}

    assert as_nobody(verify) == 0


@each_place
def test_cp_and_migrate_bring_what_can_be_read_and_fail(run: Path, place: str) -> None:
    CLOSED[place](run).chmod(0)

    def copy() -> None:
        for command in ("cp", "migrate"):
            target = run.parent / "out" / command
            done = call(command, run, target)
            assert done.exit_code == 1, done.output
            assert f"step 2 was not {'copied' if command == 'cp' else 'migrated'}" in done.stderr
            assert "Permission denied" in done.stderr
            assert [info.step for info in CheckpointManager(target).steps()] == [1, 3]
            assert CheckpointManager(target).verify().ok
        with pytest.raises((PermissionError, ckptmgr.CorruptCheckpointError), match="step-00000002"):
            ckptmgr.copy(run, run.parent / "out" / "api")
        assert [info.step for info in CheckpointManager(run.parent / "out" / "api").steps()] == [1, 3]

    assert as_nobody(copy) == 0


@pytest.mark.parametrize("place", ["folder", "record"])
def test_what_may_hide_the_latest_step_still_stops_who_asks_for_that(run: Path, place: str) -> None:
    CLOSED[place](run).chmod(0)

    def ask() -> None:
        manager = CheckpointManager(run)
        manager.verify()
        for use in (manager.steps, manager.restore, lambda: ckptmgr.copy(run, run.parent / "out" / "o", steps="latest")):
            with pytest.raises(PermissionError):
                use()
        assert call("cp", run, run.parent / "out" / "o", "--latest").exit_code == 1
        assert not (run.parent / "out" / "o").exists()

    assert as_nobody(ask) == 0
    CLOSED[place](run).chmod(0o755)
    assert CheckpointManager(run).verify().ok


def test_a_closed_folder_of_another_tool_is_one_of_the_steps(run: Path) -> None:
    (run / "checkpoint-500").mkdir(mode=0)

    def look() -> None:
        assert CheckpointManager(run).verify().unread == (500,)
        done = call("cp", run, run.parent / "out" / "cp")
        assert (done.exit_code, "step 500 was not copied" in done.stderr) == (1, True)
        assert [info.step for info in CheckpointManager(run.parent / "out" / "cp").steps()] == [1, 2, 3]

    assert as_nobody(look) == 0


def failing(fails: Callable[[str], bool]) -> Any:
    read_into = PosixStore.read_into

    def read(self: PosixStore, key: str, *rest: Any) -> None:
        if fails(self.location(key)):
            raise OSError(errno.EIO, "Input/output error", self.location(key))
        read_into(self, key, *rest)

    return mock.patch.object(PosixStore, "read_into", read)


def test_a_bad_sector_is_one_of_the_steps(run: Path) -> None:
    target = run.parent / "out" / "cp"
    with failing(lambda path: path.startswith(str(run / "step-00000002")) and path.endswith(".safetensors")):
        report, done = CheckpointManager(run).verify(), call("cp", run, target)

        with pytest.raises(OSError, match="Input/output error"):
            CheckpointManager(run).verify(2)

    assert (report.steps, report.unread) == ((1, 2, 3), (2,))
    assert "Input/output error" in str(report)
    assert (done.exit_code, "step 2 was not copied" in done.stderr) == (1, True)
    assert [info.step for info in CheckpointManager(target).steps()] == [1, 3]


def test_a_target_that_fails_still_ends_the_copy(run: Path) -> None:
    target = run.parent / "out" / "cp"
    with failing(lambda path: path.startswith(str(target))), pytest.raises(OSError, match="Input/output error"):
        ckptmgr.copy(run, target)

    assert CheckpointManager(target).steps() == []


def test_a_store_that_answers_no_more_ends_the_verification(run: Path) -> None:
    gone = OSError(errno.ENODEV, "no such device")
    manager = CheckpointManager(run)

    def unplugged(path: str) -> bool:
        if path.endswith(".safetensors"):
            mock.patch.object(PosixStore, "list", side_effect=gone).start()
        return path.endswith(".safetensors")

    try:
        with failing(unplugged), pytest.raises(OSError, match="no such device"):
            manager.verify()
    finally:
        mock.patch.stopall()


def test_each_tier_tells_what_it_could_not_read(run: Path) -> None:
    with TieredManager(CheckpointManager(run), CheckpointManager(run.parent / "out" / "far")) as tiers:
        tiers.wait()
        with failing(lambda path: path.startswith(str(run / "step-00000002")) and path.endswith(".safetensors")):
            report = tiers.verify()

    assert (report.steps, report.unread, report.ok) == ((1, 2, 3), (2,), False)
