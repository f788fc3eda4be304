"""Listings that tell which files have changed, puts that tell their version, and deletions in bulk: in the clouds."""

from pathlib import Path

import pytest
from every_store import CLOUDS, REMOTE, empty_store, options, place

from ckptmgr.storage import Answer, FilesystemStore, Marked, MarkingStore, PosixStore, is_local, is_marking, open_folder
from ckptmgr.storage import marking as module
from ckptmgr.storage.marking import bare, gathered

each_remote = pytest.mark.parametrize("name", REMOTE)
clouds = pytest.mark.cloud


@pytest.fixture
def store(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> MarkingStore:
    made = empty_store(name, request, tmp_path)
    assert isinstance(made, MarkingStore)
    return made


@clouds
@each_remote
def test_listing_marks_a_file_as_its_put_and_its_read_do(store: MarkingStore) -> None:
    created, first = store.change("step/a/record", b"one", None)
    replaced, second = store.change("step/a/record", b"two", first)
    store.put("top", [[b"x"]], 1)

    listed = store.below("", most=80)

    assert (created, replaced) == (Answer.OK, Answer.OK)
    assert listed is not None
    assert {name: file.nbytes for name, file in listed.items()} == {"step/a/record": 3, "top": 1}
    assert listed["step/a/record"].mark == store.mark(second) != store.mark(first)
    read = store.read("step/a/record")
    assert read is not None
    assert store.mark(read[1]) == store.mark(second) is not None
    assert store.replace("step/a/record", b"three", read[1]) is Answer.OK
    assert store.below("step/a/", most=80).keys() == {"record"}  # type: ignore[union-attr]
    assert store.below("absent/", most=80) == {}


@clouds
@each_remote
def test_change_that_is_refused_tells_no_version(store: MarkingStore) -> None:
    _, first = store.change("record", b"one", None)
    store.change("record", b"two", first)

    assert store.change("record", b"three", None) == (Answer.NO, None)
    assert store.change("record", b"three", first) == (Answer.NO, None)
    assert store.change("absent", b"three", first) == (Answer.NO, None)


@clouds
@pytest.mark.parametrize("name", ["azure"])
def test_record_is_replaced_and_removed_in_an_account_that_keeps_versions(store: MarkingStore) -> None:
    """There each answer has the id of the blob's version, which is no condition; the local server keeps none."""
    _, first = store.change("record", b"one", None)
    told = first._replace(version="2026-11-23T08:00:00.0000000Z")  # type: ignore[union-attr]

    answer, second = store.change("record", b"two", told)

    assert answer is Answer.OK
    assert store.remove("record", second._replace(version=told.version)) is Answer.OK  # type: ignore[union-attr]


@clouds
@each_remote
def test_files_that_are_gone_do_not_keep_others_from_being_deleted(store: MarkingStore) -> None:
    for number in range(4):
        store.put(f"a/{number}", [[b"x"]], 1)

    store.delete(["a/9", *(f"a/{number}" for number in range(3)), "a/8"])

    assert (store.below("", most=80) or {}).keys() == {"a/3"}


@clouds
@pytest.mark.parametrize(
    ("name", "most"), [("s3", 1), ("azure", 1), ("gcs", 5), ("s3-fsspec", 1), ("azure-fsspec", 1), ("gcs-fsspec", 5)]
)
def test_five_files_are_deleted_by_one_request_where_the_service_can(
    name: str, most: int, request: pytest.FixtureRequest
) -> None:
    cloud = name.partition("-")[0]
    url, given = place(name, request)
    proxy = request.getfixturevalue(f"{cloud}_proxy")
    server = request.getfixturevalue(f"{cloud}_server")
    store = open_folder(url, {**options(server, proxy.endpoint), "client": given["client"]}).store
    keys = [f"a/{number}" for number in range(5)]
    for key in keys:
        store.put(key, [[b"x"]], 1)
    proxy.rules()

    store.delete(keys)

    assert len(proxy.requests()) == most
    assert store.list("a/").files == {}


@clouds
@pytest.mark.parametrize("name", ["s3-fsspec", "azure-fsspec"])
def test_files_are_deleted_one_by_one_where_the_service_refuses_many(name: str, request: pytest.FixtureRequest) -> None:
    cloud = name.partition("-")[0]
    url, given = place(name, request)
    proxy = request.getfixturevalue(f"{cloud}_proxy")
    server = request.getfixturevalue(f"{cloud}_server")
    store = open_folder(url, {**options(server, proxy.endpoint), "client": given["client"]}).store
    for key in "ab":
        store.put(key, [[b"x"]], 1)
    proxy.rules({"method": "POST", "do": "status", "code": 400, "body": "not for many"})

    store.delete(["a", "absent", "b"])

    proxy.rules()
    assert store.list("").files == {}


@clouds
@pytest.mark.parametrize("name", [*CLOUDS, "s3-fsspec", "gcs-fsspec", "azure-fsspec"])
def test_wide_folder_is_given_up_after_some_pages(store: MarkingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEW", 2)
    for number in range(4):
        store.put(f"step/{number}", [[b"x"]], 1)

    assert store.below("", most=3) is None
    assert len(store.below("", most=4) or {}) == 4


def test_listing_is_given_up_on_the_page_that_shows_that_it_is_too_long() -> None:
    pages = iter([[(f"{step}/{number}", Marked(1, 0.0, "x")) for number in range(3_000)] for step in range(9)])

    assert gathered(pages, most=80) is None
    assert next(pages)[0][0] == "2/0"


def test_listing_of_many_steps_of_few_files_is_never_given_up() -> None:
    pages = ([(f"{step}/{number}", Marked(1, 0.0, "x")) for number in range(3)] for step in range(3_000))

    assert len(gathered(pages, most=80) or {}) == 9_000


@pytest.mark.parametrize("e_tag", ['"abc"', "abc"])
def test_mark_is_the_same_with_and_without_quotes(e_tag: str) -> None:
    assert bare(e_tag) == "abc"


@pytest.mark.parametrize("e_tag", [None, "", '""', 'W/"abc"'])
def test_entity_tag_that_other_bytes_may_have_too_is_no_mark(e_tag: str | None) -> None:
    assert bare(e_tag) is None


def test_other_stores_have_no_marks(tmp_path: Path) -> None:
    for url in (f"memory:/{tmp_path}/run", f"file://{tmp_path}"):
        store = FilesystemStore(url)
        store.put("record", [[b"one"]], 3)

        assert store.below("", most=80) is None
        assert store.mark(b"one") is None
    assert not isinstance(PosixStore(tmp_path), MarkingStore)


def test_one_method_tells_what_a_store_can_do(tmp_path: Path) -> None:
    stores = [PosixStore(tmp_path), FilesystemStore(f"memory:/{tmp_path}")]

    assert [is_local(store) for store in stores] == [True, False]
    assert [is_marking(store) for store in stores] == [isinstance(store, MarkingStore) for store in stores] == [False, True]
