"""`ckptmgr.save` of a set of several files in place of another: at every moment the old one, the new one, or a clear error."""

import errno
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from stores import MemoryStore
from syscalls import Call, counting, dying_at, failing_at, in_child, start_child

import ckptmgr
from ckptmgr import BackendNotFoundError, CheckpointManager, CorruptCheckpointError, saving, tree
from ckptmgr.storage import Folder, PosixStore
from ckptmgr.storage.newfile import TEMPORARY
from ckptmgr_safetensors import SafetensorsBackend

SHARD_NBYTES = 2000  # three data files


class Form(NamedTuple):
    """How a set is saved: its backend, its place in a folder, and the name of its index."""

    backend: str
    place: str
    index: str

    def save(self, root: Path, version: int, *, nbytes: int = SHARD_NBYTES, **options: object) -> None:
        ckptmgr.save(f"{root}/{self.place}", state(version), backend=self.backend, max_file_nbytes=nbytes, **options)

    def version(self, root: Path) -> int | None:
        """Which version is there, whole; None if an error says that there is none."""
        try:
            found = ckptmgr.load(f"{root}/{self.place}")
        except (FileNotFoundError, CorruptCheckpointError):
            return None
        version = found["version"]
        assert found.keys() == state(version).keys()
        assert all(np.array_equal(found[name], value) for name, value in state(version).items()), "a mixture"
        return version


FORMS = [Form("tf_bundle", "cp.ckpt", "cp.ckpt.index"), Form("safetensors", "", "model.safetensors.index.json")]
each_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.backend)


def state(version: int) -> dict[str, object]:
    rng = np.random.default_rng(version)
    return {f"w{n}": rng.random(200) for n in range(3)} | {"version": version}


def content(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


def leftovers(root: Path) -> list[str]:
    return [upload.key for upload in PosixStore(root).uploads("")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "run"


def calls_of(form: Form, root: Path, **options: int) -> list[Call]:
    """What a save over version 1 does to the disk."""
    form.save(root, 1)
    with counting() as calls:
        form.save(root, 2, **options)
    shutil.rmtree(root)
    return calls


def window_of(form: Form, calls: list[Call]) -> tuple[int, int]:
    """The numbers of the calls by which the old index goes, and the new one comes."""
    index = [(n, call.name) for n, call in enumerate(calls) if Path(call.path).name == form.index]
    assert [name for _, name in index] == ["unlink", "replace"]
    return index[0][0], index[1][0]


@each_form
def test_a_set_in_place_of_another_is_the_new_one_and_nothing_else(root: Path, form: Form) -> None:
    form.save(root, 1)
    before = sorted(content(root))

    form.save(root, 2)

    assert form.version(root) == 2
    assert sorted(content(root)) == before
    assert len(before) == 4


@each_form
def test_a_file_that_gets_too_large_leaves_the_old_set_bit_exact(root: Path, form: Form) -> None:
    form.save(root, 1)
    before = content(root)

    def exceed() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
        with pytest.raises(OSError, match=form.place or "model") as caught:
            form.save(root, 2, nbytes=10_000)
        assert caught.value.errno == errno.EFBIG

    assert in_child(exceed) == 0
    assert content(root) == before


@each_form
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_an_error_at_any_call_before_the_old_index_goes_leaves_the_old_set_bit_exact(root: Path, form: Form, code: int) -> None:
    gone, _ = window_of(form, calls_of(form, root))
    form.save(root, 1)
    before = content(root)

    for n in range(gone + 1):
        with failing_at(n, code), pytest.raises(OSError, match=errno_text(code)):
            form.save(root, 2)
        assert content(root) == before, n
    assert gone > 15


def errno_text(code: int) -> str:
    return {errno.ENOSPC: "No space", errno.EIO: "Input/output"}[code]


@each_form
def test_a_disk_that_stays_full_leaves_the_old_set_and_temporary_files_at_most(root: Path, form: Form) -> None:
    form.save(root, 1)
    before = content(root)

    with failing_at(10, errno.ENOSPC, lasting=True), pytest.raises(OSError, match="No space"):
        form.save(root, 2)

    after = content(root)
    left = leftovers(root)
    assert {name: after[name] for name in before} == before
    assert left
    assert sorted(after) == sorted([*before, *left])


@each_form
def test_an_interrupted_save_leaves_the_old_set_and_nothing_else(root: Path, form: Form) -> None:
    form.save(root, 1)
    before = content(root)

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        form.save(root, 2, progress=interrupt)

    assert content(root) == before


@each_form
@pytest.mark.parametrize("when", ["before", "after"])
def test_death_at_any_call_leaves_the_old_or_the_new_and_an_error_only_while_names_are_taken(
    root: Path, form: Form, when: str
) -> None:
    calls = calls_of(form, root)
    gone, come = window_of(form, calls)
    seen = versions_after_death(form, root, len(calls), when)

    first = gone + (when == "before")  # the first death after which the old index is gone
    assert seen == [1] * first + [None] * (come - gone) + [2] * (len(calls) - first - (come - gone))
    assert [call.name for call in calls[gone : come + 1]] == ["unlink", "fsync", *["replace"] * 3, "fsync", "replace"]


@each_form
@pytest.mark.parametrize("when", ["before", "after"])
def test_where_no_data_file_has_an_old_name_there_is_the_old_or_the_new_at_any_death(root: Path, form: Form, when: str) -> None:
    calls = calls_of(form, root, nbytes=4000)
    seen = versions_after_death(form, root, len(calls), when, nbytes=4000)

    change = seen.index(2)
    assert seen == [1] * change + [2] * (len(calls) - change)
    assert change >= 15


def versions_after_death(form: Form, root: Path, ncalls: int, when: str, **options: int) -> list[int | None]:
    """What is there after a death at each call in turn; what a death leaves harms no later save."""
    seen = []
    for n in range(ncalls):
        form.save(root, 1)
        names = sorted(content(root))

        def die(n: int = n) -> None:
            with dying_at(n, when):
                form.save(root, 2, **options)

        assert in_child(die) == -9
        seen.append(form.version(root))
        left = leftovers(root)
        assert all(map(TEMPORARY.fullmatch, left))
        form.save(root, 1)
        assert form.version(root) == 1
        assert sorted(content(root)) == sorted([*names, *left])
        shutil.rmtree(root)
    return seen


@each_form
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_error_while_names_are_taken_is_told_and_leaves_no_temporary_file(root: Path, form: Form, when: str) -> None:
    calls = calls_of(form, root)
    gone, _ = window_of(form, calls)
    taking = [n for n, call in enumerate(calls) if n > gone and call.name == "replace"]

    for n in taking:
        form.save(root, 1)
        with failing_at(n, errno.EIO, when), pytest.raises(OSError, match="Input/output"):
            form.save(root, 2)
        is_index = n == taking[-1]
        assert form.version(root) == (2 if is_index and when == "after" else None)
        assert leftovers(root) == []
    assert len(taking) == 4


@each_form
def test_a_smaller_and_a_larger_set_leave_no_file_of_the_other(root: Path, form: Form) -> None:
    form.save(root, 1)
    large = sorted(content(root))

    form.save(root, 2, nbytes=4000)
    small = sorted(content(root))
    assert form.version(root) == 2
    assert len(small) == 3
    form.save(root, 3)

    assert form.version(root) == 3
    assert sorted(content(root)) == large


def test_a_reader_beside_a_saving_loop_sees_no_mixture(root: Path) -> None:
    form = FORMS[0]  # with checksums
    form.save(root, 0)
    seen: list[int | None] = []

    child = start_child(lambda: [form.save(root, version) for version in range(1, 60)])
    ended = 0, 0
    while ended == (0, 0):
        seen.append(form.version(root))
        ended = os.waitpid(child, os.WNOHANG)

    assert os.waitstatus_to_exitcode(ended[1]) == 0
    assert form.version(root) == 59
    versions = [version for version in seen if version is not None]
    assert versions == sorted(versions)
    assert len({*versions}) > 5


@each_form
def test_where_nothing_is_replaced_nothing_is_staged(root: Path, form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    ckptmgr.save(root / "cp.ckpt-2", state(1), backend="tf_bundle")
    ckptmgr.save(root / "other.safetensors", state(1))
    monkeypatch.setattr(PosixStore, "stage", None)

    form.save(root, 1)

    assert ckptmgr.load(root / form.index)["version"] == 1


def test_where_the_store_stages_nothing_the_old_index_goes_first() -> None:
    folder, changes = replaced_in_memory(SHARD_NBYTES)

    data = [f"m-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert changes == [("-", INDEX), *(("+", name) for name in data), ("+", INDEX)]
    assert sorted(folder.list().files) == [*data, INDEX]


def test_where_the_store_stages_nothing_the_index_stays_beside_data_of_other_names() -> None:
    folder, changes = replaced_in_memory(4000)

    data = [f"m-0000{n}-of-00002.safetensors" for n in (1, 2)]
    stale = [f"m-0000{n}-of-00003.safetensors" for n in (3, 2, 1)]
    assert changes == [*(("+", name) for name in [*data, INDEX]), *(("-", name) for name in stale)]
    assert sorted(folder.list().files) == [*data, INDEX]


INDEX = "m.safetensors.index.json"


def replaced_in_memory(nbytes: int) -> tuple[Folder, list[tuple[str, str]]]:
    """A set of two or three files in place of one of three, where nothing can be staged, and the changes in order."""
    store = MemoryStore()
    folder, backend, flat = Folder(store), SafetensorsBackend(), tree.flatten(state(1))
    plan: Callable[[int], saving.Plan] = lambda nbytes: saving.plan(flat, backend, stem="m", max_file_nbytes=nbytes)  # noqa: E731
    saving.replace(folder, plan(SHARD_NBYTES), backend, stem="m")
    changes: list[tuple[str, str]] = []
    store.on_change = lambda key, before, after: changes.append(("-" if after is None else "+", key))
    saving.replace(folder, plan(nbytes), backend, stem="m")
    return folder, changes


@pytest.mark.parametrize("place", ["cp.ckpt", "cp.ckpt.data-00001-of-00003", ""], ids=["prefix", "data file", "folder"])
def test_a_set_without_its_index_is_told_so(root: Path, place: str) -> None:
    FORMS[0].save(root, 1)
    (root / "cp.ckpt.index").unlink()

    with pytest.raises(FileNotFoundError, match="its index is missing: the save of it was interrupted or is in progress"):
        ckptmgr.load(f"{root}/{place}")


def test_a_prefix_beside_a_set_without_its_index_is_nothing_of_it(root: Path) -> None:
    FORMS[0].save(root, 1)
    (root / "cp.ckpt.index").unlink()

    with pytest.raises(BackendNotFoundError, match=r"recognizes .*/cp'"):
        ckptmgr.load(root / "cp")


def test_a_run_with_files_beside_its_steps_says_what_to_open(root: Path) -> None:
    with CheckpointManager(root, backend="tf_bundle") as manager:
        manager.save(1, state(1))
    assert (root / "checkpoint").exists()

    with pytest.raises(FileNotFoundError, match="only its steps: of a run, open one step's folder, or use CheckpointManager"):
        ckptmgr.load(root)


def test_other_files_beside_folders_that_are_no_steps_are_not_taken_for_a_run(root: Path) -> None:
    (root / "logs").mkdir(parents=True)
    (root / "notes.txt").write_text("hello")

    with pytest.raises(BackendNotFoundError, match="install the backend of its format"):
        ckptmgr.load(root)


@pytest.mark.parametrize("options", [{}, {"max_file_nbytes": 400}])
@pytest.mark.parametrize(("backend", "suffix"), [("safetensors", "safetensors"), ("hdf5", "h5")])
def test_a_reader_of_an_older_set_is_told_that_it_was_replaced(tmp_path, options, backend, suffix):
    url = f"{tmp_path}/" if options else tmp_path / f"m.{suffix}"
    options = {**options, "backend": backend}
    old = {name: np.full(64, 1.0, np.float32) for name in "abcd"}
    ckptmgr.save(url, old, **options)

    with ckptmgr.open_checkpoint(url) as checkpoint:
        assert checkpoint.read("a").tolist() == [1] * 64
        ckptmgr.save(url, {name: array + 1 for name, array in old.items()}, **options)
        with pytest.raises(CorruptCheckpointError, match="was replaced while it was open"):
            checkpoint.read("a")
        with pytest.raises(CorruptCheckpointError, match="was replaced while it was open"):
            checkpoint.load()

    assert ckptmgr.load(url)["a"].tolist() == [2] * 64
