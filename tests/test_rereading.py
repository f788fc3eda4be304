"""A listing again reads only what may have changed, and sees every change."""

import contextlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ckptmgr.storage import PosixStore, RereadingStore, Sight, rereading, scanning

NAME = "step/record"
LATER_NS = 10**10


@pytest.fixture
def store(tmp_path: Path) -> PosixStore:
    (tmp_path / "step").mkdir()
    (tmp_path / NAME).write_bytes(b"old")
    return PosixStore(tmp_path)


def later(patch: pytest.MonkeyPatch, by_ns: int = LATER_NS) -> None:
    """Any file system counts as local, and ``by_ns`` have gone by since anything was changed."""

    def moment(folder: int) -> rereading._Moment:
        status = os.stat(NAME, dir_fd=folder)
        return rereading._Moment(status.st_dev, status.st_ctime_ns + by_ns)

    patch.setattr(rereading, "_moment", moment)


def sight(store: PosixStore, known: Sight | None = None) -> Sight:
    (found,) = store.reread("", [NAME], [known])
    assert isinstance(found, Sight)
    return found


def test_posix_store_is_one_that_can_tell(store: PosixStore) -> None:
    assert isinstance(store, RereadingStore)


def test_unchanged_file_is_not_opened_again(store: PosixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch)
    first = sight(store)
    assert first[:2] == (b"old", b"old")
    monkeypatch.setattr(rereading, "_sight", None)

    assert sight(store, first) is first


def test_file_that_changed_just_now_has_no_proof(store: PosixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for by_ns in (-LATER_NS, 0, rereading._SETTLED_NS):
        later(monkeypatch, by_ns)
        assert sight(store).proof is None


@pytest.mark.parametrize(("ctime_ns", "has_proof"), [(5_000_000_000, False), (5_000_000_001, True)])
def test_times_in_whole_seconds_prove_nothing(ctime_ns: int, has_proof: bool) -> None:
    status = os.stat_result([0o100600, 7, 1, 1, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, ctime_ns])

    proof = rereading._proven(status, rereading._Moment(1, ctime_ns + LATER_NS))

    assert (proof is not None) == has_proof


def test_a_write_that_is_held_up_after_its_time_was_set_has_no_proof(store: PosixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch, 4 * 10**8)

    assert sight(store).proof is None


def test_there_is_no_proof_on_other_file_systems(store: PosixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rereading, "_LOCAL", set())

    assert sight(store).proof is None


def test_there_is_no_proof_of_what_is_mounted_inside(store: PosixStore, tmp_path: Path) -> None:
    status = os.stat(tmp_path / NAME)

    assert rereading._proven(status, rereading._Moment(status.st_dev + 1, status.st_ctime_ns + LATER_NS)) is None


def replace(path: Path) -> None:
    path.with_name("new").write_bytes(b"new")
    path.with_name("new").replace(path)


def write_in_place(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"new")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def restore_copy(path: Path) -> None:
    before = path.stat()
    copy = path.with_name("copy")
    copy.write_bytes(b"new")
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
    shutil.copy2(copy, path)


def delete_and_create(path: Path) -> None:
    path.unlink()  # the next file may well get its inode
    path.write_bytes(b"new")


def swap_folder(path: Path) -> None:
    other = path.parent.with_name("other")
    other.mkdir()
    (other / path.name).write_bytes(b"new")
    path.parent.rename(path.parent.with_name("aside"))
    other.rename(path.parent)


@pytest.mark.parametrize("change", [replace, write_in_place, restore_copy, delete_and_create, swap_folder])
def test_change_that_keeps_the_size_is_seen(
    change: Callable[[Path], None], store: PosixStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        later(patch)
        known = sight(store)
    assert known.proof is not None

    change(tmp_path / NAME)

    assert sight(store, known).data == b"new"


@pytest.mark.parametrize("change", [replace, write_in_place, restore_copy, delete_and_create])
def test_every_change_in_a_row_is_seen_at_once(change: Callable[[Path], None], store: PosixStore, tmp_path: Path) -> None:
    known, path = sight(store), tmp_path / NAME

    for _ in range(300):  # many within one tick of the clock of the file system
        change(path)
        known = sight(store, known)
        assert known.data == b"new"
        path.write_bytes(b"old")
        known = sight(store, known)
        assert known.data == b"old"


def unlink(path: Path) -> None:
    path.unlink()


def link_to_itself(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to("real")


def put_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("change", [unlink, link_to_itself, put_a_folder, put_a_pipe])
@pytest.mark.parametrize("is_known", [True, False])
def test_what_is_no_file_any_more_is_absent(
    change: Callable[[Path], None], is_known: bool, store: PosixStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        later(patch)
        known = sight(store) if is_known else None

    change(tmp_path / NAME)

    assert store.reread("", [NAME], [known]) == [None]


def test_what_reading_would_raise_is_given_for_that_file_alone(store: PosixStore, tmp_path: Path) -> None:
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 1 << 40)
    (tmp_path / "large").write_bytes(b"x" * (rereading._SMALL_NBYTES + 1))

    huge, large, whole = store.reread("", ["huge", "large", NAME], [None] * 3)

    assert isinstance(huge, OSError)
    assert huge.filename == str(tmp_path / "huge")
    assert isinstance(large, Sight)
    assert len(large.data) == rereading._SMALL_NBYTES + 1
    assert isinstance(whole, Sight)


def test_folder_that_is_not_there_has_no_files(store: PosixStore) -> None:
    assert store.reread("none/", [NAME], [None]) == [None]


def test_no_name_leads_out_of_the_root(store: PosixStore) -> None:
    with pytest.raises(ValueError, match="no safe key"):
        store.reread("", ["../step/record"], [None])


def test_reading_again_gives_what_reading_anew_does(store: PosixStore, tmp_path: Path) -> None:
    chance = random.Random(1)
    names = [f"step-{number}/record" for number in range(20)]
    known: list[Sight | None] = [None] * len(names)
    for _ in range(400):
        path = tmp_path / chance.choice(names)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"old")
        chance.choice([replace, write_in_place, restore_copy, delete_and_create, unlink])(path)

        found = store.reread("", names, known)

        assert [each and each[:2] for each in found if not isinstance(each, OSError)] == [store.read(name) for name in names]
        known = [each if isinstance(each, Sight) else None for each in found]


def test_slow_disk_gives_the_same_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rereading, "_SLOW_S", 0)
    names = [f"{number}/record" for number in range(300)]
    for name in names[::2]:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    store = PosixStore(tmp_path)

    found = store.reread("", names, [None] * len(names))

    assert [isinstance(each, Sight) and each.data for each in found] == [
        name.encode() if number % 2 == 0 else False for number, name in enumerate(names)
    ]


def test_error_of_a_thread_is_raised(store: PosixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rereading, "_SLOW_S", 0)

    with pytest.raises(ValueError, match="no safe key"):
        store.reread("", [*[NAME] * 200, "../x"], [None] * 201)


def test_names_that_did_not_change_while_they_were_listed_are_of_one_moment(
    store: PosixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    later(monkeypatch)

    assert store.list("").is_moment
    assert not store.list("nothing/").is_moment


@pytest.mark.parametrize("change", ["come", "go", "rename", "link"])
def test_names_that_changed_while_they_were_listed_may_be_of_several_moments(
    store: PosixStore, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    later(monkeypatch)
    changes: dict[str, Callable[[], object]] = {
        "come": lambda: (tmp_path / "new").mkdir(),
        "go": lambda: (tmp_path / "other").rmdir(),
        "rename": lambda: (tmp_path / "other").rename(tmp_path / "new"),
        "link": lambda: (tmp_path / "new").symlink_to("other"),
    }

    @contextlib.contextmanager
    def meanwhile(folder: int) -> Iterator[Iterator[os.DirEntry[str]]]:
        def entries() -> Iterator[os.DirEntry[str]]:
            yield from list(found)
            time.sleep(0.05)  # the clock moves on
            changes[change]()

        with os.scandir(folder) as found:
            yield entries()

    monkeypatch.setattr(scanning, "os", SimpleNamespace(fstat=os.fstat, scandir=meanwhile))

    assert not store.list("").is_moment


def test_names_that_changed_just_now_may_be_of_several_moments(store: PosixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch, 0)

    assert not store.list("").is_moment
