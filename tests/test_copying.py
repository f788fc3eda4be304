"""`ckptmgr.copy`: the same step in another run, checked byte by byte, gone on with after interruptions, and never half."""

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import incrementals
import numpy as np
import pytest
from copies import check_aftermath, copied, is_copy
from every_store import place
from interleaving import manifests
from runs import state
from saves import begin, save
from stores import MemoryStore, WrappedStore

import ckptmgr
from ckptmgr import CheckpointManager, Copied, CorruptCheckpointError, SaveError, StepExistsError, StepInfo, StepNotFoundError
from ckptmgr.record import seal
from ckptmgr.storage import Folder
from ckptmgr.storage.posix import PosixStore


@pytest.fixture
def run(tmp_path: Path) -> CheckpointManager:
    """Steps 1 to 3, each with metrics, metadata and an asset; step 2 is pinned."""
    manager = CheckpointManager(tmp_path / "run")
    for step in (1, 2, 3):
        manager.save(step, state(step), metrics={"loss": float("nan")}, metadata={"n": step}, assets={"a.txt": b"hello"})
    manager.pin(2, "paper")
    return manager


def facts(info: StepInfo) -> dict[str, Any]:
    """All that is known of a step but where it lies; as text, because of NaN."""
    return {name: str(value) for name, value in dataclasses.asdict(info).items() if name not in ("attempt", "path")}


def damage(folder: str, name: str = "model.safetensors") -> None:
    file = Path(folder, name)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_a_copy_is_the_same_step_in_all_that_is_told_of_it(run: CheckpointManager, tmp_path: Path) -> None:
    ckptmgr.copy(tmp_path / "run", tmp_path / "copy")

    copy = CheckpointManager(tmp_path / "copy")
    assert [facts(info) for info in copy.steps()] == [facts(info) for info in run.steps()]
    assert copy.verify().ok
    assert copy.restore().state["epoch"] == 3
    with copy.open(2) as checkpoint:
        assert checkpoint.asset("a.txt") == b"hello"
    copy.save(4, state(4))  # the run goes on there
    assert copy.latest().step == 4


@pytest.mark.parametrize(
    ("steps", "expected"), [("latest", [3]), (2, [2]), (np.int64(2), [2]), ([3, 1], [1, 3]), ("all", [1, 2, 3])]
)
def test_which_steps_are_copied(run: CheckpointManager, tmp_path: Path, steps: Any, expected: list[int]) -> None:
    done = ckptmgr.copy(tmp_path / "run", tmp_path / "copy", steps=steps)

    assert [each.info.step for each in done] == expected
    assert [info.step for info in CheckpointManager(tmp_path / "copy").steps()] == expected


def test_a_step_that_is_not_there_is_an_error(run: CheckpointManager, tmp_path: Path) -> None:
    with pytest.raises(StepNotFoundError, match="step 7"):
        ckptmgr.copy(tmp_path / "run", tmp_path / "copy", steps=7)
    with pytest.raises(StepNotFoundError):
        ckptmgr.copy(tmp_path / "nothing", tmp_path / "copy")
    with pytest.raises(ValueError, match="'newest'"):
        ckptmgr.copy(tmp_path / "run", tmp_path / "copy", steps="newest")  # type: ignore[arg-type]


def test_a_second_copy_sends_nothing(run: CheckpointManager, tmp_path: Path) -> None:
    first = ckptmgr.copy(tmp_path / "run", tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "copy").rglob("*") if path.name != ".ckptmgr.lock"}

    second = ckptmgr.copy(tmp_path / "run", tmp_path / "copy")

    assert [(each.was_there, each.nbytes) for each in first] == [(False, info.nbytes) for info in run.steps()]
    assert [(each.was_there, each.nbytes, each.sent) for each in second] == [(True, 0, ())] * 3
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_step_of_that_number_is_only_overwritten_if_asked(run: CheckpointManager, tmp_path: Path) -> None:
    other = CheckpointManager(tmp_path / "copy")
    other.save(2, state(9))

    with pytest.raises(StepExistsError, match="step 2"):
        ckptmgr.copy(tmp_path / "run", tmp_path / "copy")
    assert [info.step for info in other.steps()] == [1, 2, 3]  # which did not keep the others from it
    assert other.restore(2).state["epoch"] == 9
    ckptmgr.copy(tmp_path / "run", tmp_path / "copy", steps=2, overwrite=True)

    assert other.restore(2).state["epoch"] == 2
    assert other.sweep(grace=0).files == 0


def test_a_rotten_file_never_becomes_a_step(run: CheckpointManager, tmp_path: Path) -> None:
    damage(run.path(2))

    with pytest.raises(CorruptCheckpointError, match=r"crc32c .*model\.safetensors|model\.safetensors.* crc32c") as caught:
        ckptmgr.copy(tmp_path / "run", tmp_path / "copy")

    assert caught.value.step == 2
    copy = CheckpointManager(tmp_path / "copy")
    assert [info.step for info in copy.steps()] == [1, 3]
    assert (copy.sweep(grace=0).files, copy.sweep(grace=0).claims) == (0, 0)


def test_a_manifest_that_is_not_what_was_committed_is_not_copied(run: CheckpointManager, tmp_path: Path) -> None:
    record = tmp_path / "run" / "step-00000002" / "manifest.json"
    body = record.read_bytes().replace(b'"n": 2', b'"n": 9').rpartition(b'  "crc32c"')[0]
    record.write_bytes(seal(body))  # whoever sealed it has made a mistake

    with pytest.raises(CorruptCheckpointError, match="crc32c"):
        ckptmgr.copy(tmp_path / "run", tmp_path / "copy")

    assert [info.step for info in CheckpointManager(tmp_path / "copy").steps()] == [1, 3]


def test_several_failures_are_told_together(run: CheckpointManager, tmp_path: Path) -> None:
    damage(run.path(2))
    (tmp_path / "run" / "step-00000001" / "manifest.json").write_bytes(b"{}")

    with pytest.raises(CorruptCheckpointError, match="manifest") as caught:
        ckptmgr.copy(tmp_path / "run", tmp_path / "copy")

    assert [note[:26] for note in caught.value.__notes__] == ["step 2 was not copied either"[:26]]
    assert [info.step for info in CheckpointManager(tmp_path / "copy").steps()] == [3]


class Ending(Exception):
    """The copy is interrupted."""


def ending_at(nbytes: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= nbytes:
            raise Ending

    return progress


def test_an_interrupted_copy_sends_what_is_missing_and_repairs_what_is_rotten(run: CheckpointManager, tmp_path: Path) -> None:
    total = run.steps()[2].nbytes
    with pytest.raises(Ending):
        ckptmgr.copy(tmp_path / "run", tmp_path / "copy", steps=3, progress=ending_at(total))
    assert CheckpointManager(tmp_path / "copy").steps() == []
    (left,) = (tmp_path / "copy").glob("*/a-*/model.safetensors")
    damage(str(left.parent), "a.txt")

    (done,) = ckptmgr.copy(tmp_path / "run", tmp_path / "copy", steps=3)

    assert (done.found, done.sent) == (("model.safetensors",), ("a.txt", "tree.json"))
    assert CheckpointManager(tmp_path / "copy").verify().ok


@pytest.mark.cloud
def test_what_ends_a_large_upload_is_raised_as_it_is(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url, options = place("s3", request)
    CheckpointManager(tmp_path / "run").save(1, {"w": np.zeros(40 << 20, np.uint8)})

    with pytest.raises(Ending):
        ckptmgr.copy(tmp_path / "run", url, dst_options=options, progress=ending_at(20 << 20))

    copy = CheckpointManager(url, storage_options=options)
    assert copy.steps() == []
    assert copy.folder.uploads() == []


def test_an_interrupted_copy_of_another_save_is_not_gone_on_with(run: CheckpointManager, tmp_path: Path) -> None:
    with pytest.raises(Ending):
        ckptmgr.copy(tmp_path / "run", tmp_path / "copy", steps=3, progress=ending_at(run.steps()[2].nbytes))
    run.save(3, state(8), overwrite=True)

    (done,) = ckptmgr.copy(tmp_path / "run", tmp_path / "copy", steps=3)

    assert done.found == ()
    copy = CheckpointManager(tmp_path / "copy")
    assert copy.restore().state["epoch"] == 8
    assert copy.sweep(grace=0).files == 2  # of the other


def test_what_the_target_stored_is_read_back(store: MemoryStore) -> None:
    class Spoiling(WrappedStore):
        def operate(self, name: str, call: Callable[[], Any]) -> Any:
            before, done = set(store.files), call()
            for key in store.files.keys() - before:
                if key.endswith("file-0"):
                    store.files[key] = store.files[key][0][::-1], 0.0
            return done

    source = MemoryStore()
    save(Folder(source), 1, nfiles=2)

    with pytest.raises(SaveError, match="file-0"):
        copied(source, 1, Spoiling(store))
    again = copied(source, 1, store)

    assert (again.sent, again.found) == (("file-0",), ("file-1",))
    assert is_copy(source, store, 1)


def test_two_may_copy_a_step_at_once(store: MemoryStore) -> None:
    source = MemoryStore()
    save(Folder(source), 1, nfiles=2)

    others: list[Copied] = []

    def overtake(done: int, total: int) -> None:
        if done == total:
            others.append(copied(source, 1, store))

    mine = copied(source, 1, store, progress=overtake)

    assert (others[0].found, others[0].info) == (("file-0",), mine.info)
    assert is_copy(source, store, 1)
    check_aftermath(store)


def test_a_step_that_is_deleted_meanwhile_leaves_nothing(run: CheckpointManager, tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        if done and run.latest().step == 3:
            run.delete(3)

    with pytest.raises(StepNotFoundError, match="while it was copied"):
        ckptmgr.copy(tmp_path / "run", tmp_path / "copy", steps=3, progress=progress)

    assert list((tmp_path / "copy").rglob("model*")) == []


def test_a_save_in_progress_loses_its_claim_to_a_copy(store: MemoryStore) -> None:
    source = MemoryStore()
    save(Folder(source), 1)
    other = begin(Folder(store), 1)

    copied(source, 1, store)

    with pytest.raises(StepExistsError):
        other.commit(ckptmgr.StepNaming(), lambda _: dataclasses.replace(manifests(source)[1], attempt=other.attempt))
    assert is_copy(source, store, 1)


def test_steps_that_share_files_are_whole_in_a_copy(tmp_path: Path) -> None:
    with incrementals.no_links(), incrementals.small_groups():
        manager = incrementals.manager_of(PosixStore(tmp_path / "run"))
        for step in (1, 2, 3):
            manager.save(step, incrementals.state(step, size=1 << 10))
        assert json.loads(Path(manager.path(3)).parent.joinpath("manifest.json").read_text())["manifest"]["files"][0]["step"] == 1

        ckptmgr.copy(tmp_path / "run", tmp_path / "copy", steps=3)

    copy = CheckpointManager(tmp_path / "copy")
    assert incrementals.same(copy.restore().state, 3)
    assert copy.materialize(3).attempt == copy.latest().attempt  # there is nothing to do
    assert copy.sweep(grace=0).files == 0


def test_hints_of_the_target_follow(tmp_path: Path) -> None:
    run = CheckpointManager(tmp_path / "run", backend="tf_bundle")
    for step in (1, 2):
        run.save(step, state(step))

    ckptmgr.copy(tmp_path / "run", tmp_path / "copy")

    hint = (tmp_path / "copy" / "checkpoint").read_text()
    assert CheckpointManager(tmp_path / "copy").latest().attempt in hint.splitlines()[0]


@pytest.mark.parametrize("name", ["fsspec-memory", pytest.param("s3", marks=pytest.mark.cloud)])
def test_to_another_storage_and_back(run: CheckpointManager, name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url, options = (f"memory:/{tmp_path}/copy", {}) if name == "fsspec-memory" else place(name, request)
    run.save(4, {"w": np.arange(3 << 20)})  # 24 MiB: in parts

    ckptmgr.copy(tmp_path / "run", url, dst_options=options)
    ckptmgr.copy(url, tmp_path / "back", src_options=options)

    back = CheckpointManager(tmp_path / "back")
    assert [facts(info) for info in back.steps()] == [facts(info) for info in run.steps()]
    assert back.verify().ok


def test_small_files_go_to_a_store_that_answers_from_afar_at_once(store: MemoryStore) -> None:
    both = threading.Barrier(2)

    class Afar(WrappedStore):
        files_at_once = 2

        def operate(self, name: str, call: Callable[[], Any]) -> Any:
            if name == "put":
                both.wait(60)  # for another one
            return call()

    source = MemoryStore()
    save(Folder(source), 1, nfiles=4)
    done: list[tuple[int, int]] = []

    copied(source, 1, Afar(store), progress=lambda *now: done.append(now))

    assert is_copy(source, store, 1)
    assert done == sorted(done)


def test_what_failed_before_the_storage_did_is_told_too(
    run: CheckpointManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(run.path(1))
    put = PosixStore.put

    def full(store: PosixStore, key: str, *args: Any) -> Any:
        if "00000002" in key:
            raise OSError(28, "No space left on device")
        return put(store, key, *args)

    monkeypatch.setattr(PosixStore, "put", full)
    with pytest.raises(OSError, match="No space") as caught:
        ckptmgr.copy(tmp_path / "run", tmp_path / "copy")

    assert [note.partition(":")[0] for note in caught.value.__notes__] == ["before, step 1 was not copied"]
