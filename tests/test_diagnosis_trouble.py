"""The doctor beside live saves, with shared files, closed folders and hostile bytes: it changes nothing, and ends."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import saves
from bounds import cheap
from incrementals import file_of as file_with
from incrementals import no_links, small_groups
from incrementals import state as parts
from sickness import Forbidding, file_of, flip, found, obey, on_a_disk, saved, snapshot
from stores import MarkedStore, MemoryStore
from test_posix_disk import as_nobody, open_to_all

from ckptmgr import CheckpointManager, Diagnosis, backend, commit, copy, diagnose
from ckptmgr.diagnosis import storing
from ckptmgr.diagnosis.storing import filesystem
from ckptmgr.manifest import Manifest, new_attempt
from ckptmgr.record import Record, encode
from ckptmgr.storage import Folder, PosixStore, Upload
from ckptmgr.sweep import sweep

__all__ = ["on_a_disk", "open_to_all"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    saved(tmp_path / "run")
    return tmp_path / "run"


def of_store(store: object, **options: object) -> Diagnosis:
    """A diagnosis of a run in that store, at its time."""
    opened = mock.patch("ckptmgr.diagnosis.diagnosing.open_folder", return_value=Folder(store))  # type: ignore[arg-type]
    with opened, mock.patch("time.time", return_value=getattr(store, "time", 0.0)):
        return known_formats(diagnose("run", **options))  # type: ignore[arg-type]


def known_formats(diagnosis: Diagnosis) -> Diagnosis:
    """The diagnosis as if the format ``raw`` of `saves` were installed."""
    return replace(diagnosis, findings=tuple(each for each in diagnosis.findings if each.kind != "missing-format"))


# ---- it changes nothing


@pytest.mark.parametrize("deep", [False, True])
def test_no_call_that_may_change_anything_is_made(run: Path, deep: bool) -> None:
    os.truncate(file_of(run, 300), 5)
    flip(run / "step-00000200" / "manifest.json")
    (run / "step-00000900" / "a-0123456789abcdef").mkdir(parents=True)
    (run / "step-00000900" / "a-0123456789abcdef" / "x").write_bytes(b"x")
    calls: list[str] = []
    store = Forbidding(PosixStore(run), calls)

    before = snapshot(run)
    diagnosis = of_store(store, deep=deep, grace_s=0)

    assert {each.kind for each in diagnosis.findings} == {"damaged-file", "damaged-record", "unnamed-attempt"}
    assert ("read_into" in calls) is deep
    assert snapshot(run) == before


def test_a_read_only_run_of_somebody_else_is_looked_at(open_to_all: Path) -> None:
    saved(open_to_all / "run")
    for path in (open_to_all / "run", *(open_to_all / "run").rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = snapshot(open_to_all)

    def look() -> None:
        diagnosis = diagnose(open_to_all / "run")
        assert (diagnosis.restores, diagnosis.ok) == (300, True), str(diagnosis)
        assert found(diagnosis, "not-writable").severity == "note"

    assert as_nobody(look) == 0
    assert snapshot(open_to_all) == before


@pytest.mark.parametrize("closed", ["step-00000200", "step-00000200/manifest.json", "."])
def test_what_this_user_may_not_read_is_told_and_stops_restores(open_to_all: Path, closed: str) -> None:
    saved(open_to_all / "run")
    (open_to_all / "run" / closed).chmod(0)

    def look() -> None:
        diagnosis = diagnose(open_to_all / "run")
        assert "Permission denied" in diagnosis.refuses, str(diagnosis)
        assert found(diagnosis, "unreadable").commands
        with pytest.raises(PermissionError):
            CheckpointManager(open_to_all / "run").restore()
        if closed != ".":
            assert CheckpointManager(open_to_all / "run").restore(300).step == 300

    assert as_nobody(look) == 0
    if closed != ".":
        (open_to_all / "run" / closed).chmod(0o755)
        assert diagnose(open_to_all / "run").ok


@pytest.mark.parametrize(("step", "restores"), [(300, None), (200, 300)])
def test_files_that_this_user_may_not_read_stop_the_restore_that_comes_to_them(
    open_to_all: Path, step: int, restores: int | None
) -> None:
    saved(open_to_all / "run")
    file_of(open_to_all / "run", step).parent.chmod(0)

    def look() -> None:
        diagnosis = diagnose(open_to_all / "run", deep=True)
        assert (diagnosis.restores, found(diagnosis, "unreadable").step) == (restores, step), str(diagnosis)
        if restores:
            assert CheckpointManager(open_to_all / "run").restore().step == restores
        else:
            with pytest.raises(PermissionError):
                CheckpointManager(open_to_all / "run").restore()

    assert as_nobody(look) == 0


@pytest.mark.parametrize(("step", "restores"), [(300, None), (200, 300)])
def test_a_file_that_this_user_may_not_read_is_one_finding_among_others(
    open_to_all: Path, step: int, restores: int | None
) -> None:
    saved(open_to_all / "run")
    closed = file_of(open_to_all / "run", step)
    closed.chmod(0)
    flip(file_of(open_to_all / "run", 100))

    def look() -> None:
        diagnosis = diagnose(open_to_all / "run", deep=True)
        told = found(diagnosis, "unreadable")
        assert (diagnosis.restores, told.step, str(closed) in told.found) == (restores, step, True), str(diagnosis)
        assert found(diagnosis, "damaged-file").step == 100
        assert ("Permission denied" in diagnosis.refuses) is (restores is None)

    assert as_nobody(look) == 0
    closed.chmod(0o644)
    assert diagnose(open_to_all / "run", deep=True).restores == 300


def test_a_disk_that_fails_is_told_with_the_file_and_promises_nothing(run: Path) -> None:
    class Failing(PosixStore):
        def read_into(self, key: str, *rest: Any) -> Any:
            if key.startswith("step-00000200/a-") and key.endswith("/model.safetensors"):
                raise OSError(errno.EIO, "Input/output error", self.location(key))
            return super().read_into(key, *rest)

    diagnosis = of_store(Failing(run), deep=True)

    assert found(diagnosis, "unreadable").means.startswith("Whether anything is lost cannot be told.")
    assert diagnosis.restores == 300


def test_a_closed_folder_of_another_tool_stops_restores(open_to_all: Path) -> None:
    saved(open_to_all / "run")
    (open_to_all / "run" / "checkpoint-50").mkdir(mode=0)

    def look() -> None:
        assert "checkpoint-50: Permission denied" in diagnose(open_to_all / "run").refuses
        with pytest.raises(PermissionError):
            CheckpointManager(open_to_all / "run").restore()

    assert as_nobody(look) == 0


def test_saves_in_another_process_raise_no_alarm(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np; from ckptmgr import *\n"
        "manager = CheckpointManager(sys.argv[1], retention=KeepLast(2))\n"
        "for step in range(100_000):\n"
        "    manager.save(step, {'w': np.zeros(20_000)}); manager.save(step, {'w': np.ones(9)}, overwrite=True)\n"
        "    print(step, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, tmp_path / "run"], stdout=subprocess.PIPE)
    try:
        assert child.stdout
        for _ in range(40):
            child.stdout.readline()
            diagnosis = diagnose(tmp_path / "run")
            assert diagnosis.ok, str(diagnosis)
            assert diagnosis.restores is not None
    finally:
        child.kill()
        child.communicate()


# ---- shared files


def test_a_missing_shared_file_names_all_steps_that_need_it(tmp_path: Path) -> None:
    with no_links(), small_groups():
        manager = CheckpointManager(tmp_path / "run", incremental=True)
        for step in (1, 2, 3):
            manager.save(step, parts(step, size=1 << 18))
    file_with(manager, 1, "base/w").unlink()

    diagnosis = diagnose(tmp_path / "run")
    finding = found(diagnosis, "damaged-file")

    assert (diagnosis.restores, diagnosis.skips) == (None, (3, 2, 1))
    assert "steps 1, 2, 3" in finding.found
    assert "step 1 has written it" in finding.found
    obey(finding)
    assert diagnose(tmp_path / "run", grace_s=0).steps == ()


def test_a_flipped_byte_in_a_shared_file_is_damage_of_each_step(tmp_path: Path) -> None:
    with no_links(), small_groups():
        manager = CheckpointManager(tmp_path / "run", incremental=True)
        for step in (1, 2, 3):
            manager.save(step, parts(step, size=1 << 18))
    flip(file_with(manager, 3, "adapter/a"))
    flip(file_with(manager, 2, "base/w"))

    diagnosis = diagnose(tmp_path / "run", deep=True)

    steps = sorted(each.found.partition(":")[0] for each in diagnosis.findings if each.kind == "damaged-file")
    assert steps == ["step 3", "steps 1, 2, 3"]


def test_a_hold_for_a_save_that_is_gone_is_swept(store: MemoryStore, root: Folder) -> None:
    saves.save(root, 1)
    attempt = saves.begin(root, 2)
    assert saves.hold(root, 1, attempt)
    assert of_store(store).severity == "note"  # the save may be in progress
    del store.files["step-00000002/manifest.json"]

    assert found(of_store(store), "stale-hold").step == 1
    sweep(root, saves.NAMING, grace_s=0)
    assert of_store(store).severity == "ok"


# ---- other stores


@pytest.mark.parametrize("make", [MemoryStore, MarkedStore])
def test_unfinished_uploads_are_told_by_age_and_swept(make: type[MemoryStore]) -> None:
    store = make()
    saves.save(Folder(store), 1)
    store.unfinished["1"] = Upload("step-00000002/a-0123456789abcdef/big", "1", store.time)
    store.unfinished["2"] = Upload("step-00000001/manifest.json", "2", store.time)
    assert of_store(store).severity == "note"
    store.time += 3600

    diagnosis = of_store(store)

    assert {each.kind for each in diagnosis.findings} == {"unnamed-attempt", "unfinished-write"}
    assert all(each.commands == ("ckptmgr sweep run",) for each in diagnosis.findings)


def test_a_run_of_a_thousand_steps_is_one_listing_and_its_records() -> None:
    inner = MarkedStore()
    for step in range(1_000):
        attempt = new_attempt()
        made = Manifest(step, attempt, step, "run", saves.CREATED, "raw", 0, saves.entries(attempt))
        home = saves.NAMING.format(step)
        Folder(inner).write(f"{home}/manifest.json", encode(Record(manifest=made)))
        Folder(inner).write(f"{home}/a-{attempt}/file-0", saves.content(attempt, "file-0"))
    calls: list[str] = []
    store = Forbidding(inner, calls)

    diagnosis = of_store(store)

    assert (len(diagnosis.steps), diagnosis.ok) == (1_000, True)
    assert sorted(set(calls)) == ["below", "location", "mark", "read", "uploads"]
    assert (calls.count("below"), calls.count("read"), calls.count("uploads")) == (1, 1_000, 1)


def test_a_step_of_a_format_that_is_not_installed_still_restores(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {name: point for name, point in backend._entry_points().items() if name != "safetensors"}
    monkeypatch.setattr(backend, "_entry_points", lambda: points)
    backend.find.cache_clear()
    try:
        diagnosis = diagnose(run)
    finally:
        backend.find.cache_clear()

    assert (diagnosis.restores, found(diagnosis, "missing-format").severity) == (300, "warning")


# ---- tiers


def test_steps_that_the_remote_tier_lacks_are_copied(run: Path, tmp_path: Path) -> None:
    copy(run, tmp_path / "far", steps=[100])

    finding = found(diagnose(run, remote=tmp_path / "far"), "not-in-remote")

    assert "steps 200, 300" in finding.found
    obey(finding)
    assert diagnose(run, remote=tmp_path / "far").ok


# ---- the disk


def test_no_room_for_another_save_is_a_warning(run: Path) -> None:
    status = os.statvfs(run)
    full = os.statvfs_result((*status[:4], 0, *status[5:10]))

    with mock.patch("os.statvfs", return_value=full):
        finding = found(diagnose(run), "no-room")

    assert "0 bytes are free" in finding.found
    assert f"ckptmgr gc {run} --keep-last 3" in finding.commands


@pytest.mark.parametrize(("kind", "told"), [("tmpfs", "fleeting-storage"), ("nfs4", "far-storage"), ("ext4", None)])
def test_kinds_of_file_systems_are_told(run: Path, kind: str, told: str | None) -> None:
    with mock.patch.object(storing, "filesystem", return_value=kind):
        kinds = [each.kind for each in diagnose(run).findings]
    assert kinds == ([told] if told else [])


def test_the_kind_is_that_of_the_innermost_mount(tmp_path: Path) -> None:
    (tmp_path / "a disk" / "run").mkdir(parents=True)
    table = tmp_path / "mountinfo"
    inner = str(tmp_path / "a disk").replace(" ", r"\040")
    lines = [
        "1 0 8:1 / / rw - ext4 /dev/sda rw",
        f"2 1 0:9 / {inner} rw,x shared:1 - nfs4 srv:/x rw",
        "3 1 0:9 / /a rw - tmpfs t rw",
    ]
    table.write_text("\n".join(lines))

    assert filesystem(str(tmp_path / "a disk" / "run"), str(table)) == "nfs4"
    assert filesystem(str(tmp_path), str(table)) == "ext4"
    assert filesystem(str(tmp_path), str(tmp_path / "none")) == ""


def test_a_disk_without_locks_is_a_note(run: Path) -> None:
    with mock.patch("fcntl.flock", side_effect=OSError(37, "no locks")):
        assert found(diagnose(run), "weak-storage").severity == "note"


def test_a_clock_that_was_turned_back_is_told(run: Path) -> None:
    long_ago = datetime(2020, 1, 1, tzinfo=UTC).timestamp()

    with mock.patch("time.time", return_value=long_ago):
        assert "in the future" in found(diagnose(run), "clock").found


# ---- hostile bytes


def test_hostile_runs_cost_little_and_break_no_terminal(run: Path) -> None:
    (run / "step-00000400").mkdir()
    with (run / "step-00000400" / "manifest.json").open("wb") as file:
        file.truncate(1 << 40)
    (run / "step-00000500").mkdir()
    (run / "step-00000500" / "manifest.json").write_bytes(b"[" * (1 << 20))
    (run / "step-\x1b[2J7").mkdir()
    os.mkdir(os.fsencode(run) + b"/\xff\n")
    subprocess.run(["mkdir", "-p", "/".join(["deep", *"d" * 1_500])], cwd=run / "step-00000300", check=True)

    with cheap():
        diagnosis = diagnose(run, grace_s=0)

    assert {each.step for each in diagnosis.findings if each.kind == "damaged-record"} == {400, 500}
    assert diagnosis.restores == 300
    assert "\x1b" not in "".join(each.found for each in diagnosis.findings)
    assert all("\n" not in line for each in diagnosis.findings for line in each.lines)
    subprocess.run(["rm", "-r", "deep"], cwd=run / "step-00000300", check=True)


def test_a_forged_claim_and_attempt_are_told_in_plain_characters(store: MemoryStore, root: Folder) -> None:
    commit.begin(root, "step-00000001", 1, overwrite=False, writer={"host": "\x1b[31m" + "x" * 9_999, "pid": 1 << 80})
    told = str(of_store(store, grace_s=0))

    assert "\x1b" not in told
    assert max(map(len, told.splitlines())) < 500


def test_a_run_that_cannot_be_reached_is_the_storages_own_error() -> None:
    class Gone(MemoryStore):
        def list(self, prefix: str):  # type: ignore[no-untyped-def]
            raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        of_store(Gone())
