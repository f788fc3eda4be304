"""What every `Store` does, whatever keeps the files. A new store gets a line in `every_store` and passes all of it."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from every_store import STORES, empty_store

from ckptmgr.storage import Answer, Folder, Store

# Files by way of fsspec have no conditions: there one process at a time may write, and its threads may race.
pytestmark = pytest.mark.filterwarnings("ignore:.* does not honour conditional writes")
OK, NO = Answer.OK, Answer.NO
LARGE = 17 << 20  # more than one part of an upload


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return empty_store(request.param, request, tmp_path)


def content(store: Store, key: str) -> bytes | None:
    found = store.read(key)
    return None if found is None else found[0]


def folders(store: Store, prefix: str) -> set[str]:
    """The folders below a prefix; SeaweedFS forgets empty ones some time later, so there only those with something in them."""
    found = store.list(prefix).folders
    return {name for name in found if not store.url.startswith("s3:") or is_there(store, f"{prefix}{name}/")}


def is_there(store: Store, prefix: str) -> bool:
    listing = store.list(prefix)
    return bool(listing.files) or any(is_there(store, f"{prefix}{name}/") for name in listing.folders)


def is_empty(store: Store) -> bool:
    return not store.list("").files and not folders(store, "")


def skip_if_uploads_are_unseen(store: Store) -> None:
    if store.url.startswith("az:"):
        pytest.skip("Azure does not list unfinished uploads, and forgets them by itself")


def wait_for_upload(store: Store) -> None:
    """Some begin it in a thread of their own."""
    deadline = time.monotonic() + 30
    while not store.uploads("") and time.monotonic() < deadline:
        time.sleep(0.01)


def put(store: Store, key: str, data: bytes) -> None:
    store.put(key, [[data]] if data else [], len(data))


def test_a_put_file_reads_back_in_every_way(store: Store) -> None:
    stored = store.put("a/b/file", [[b"hel", b"lo"], [b" world"]], 11)

    assert stored.nbytes == 11
    assert content(store, "a/b/file") == b"hello world"
    assert store.head("a/b/file").nbytes == 11
    with store.file("a/b/file") as file:
        file.seek(6)
        assert file.read() == b"world"
    buffers = [bytearray(2), np.zeros(3, np.uint8)]
    store.read_into("a/b/file", 3, buffers)
    assert bytes(buffers[0]) + bytes(buffers[1]) == b"lo wo"


def test_every_kind_of_buffer_is_written_as_its_bytes(store: Store) -> None:
    arrays = [np.array(1.5, ml_dtypes.bfloat16), np.ones((2, 3), ml_dtypes.float8_e4m3fn), np.array([1], ">i8"), np.array([True])]
    buffers = [b"ab", bytearray(b"cd"), memoryview(np.arange(4, dtype="<i4").reshape(2, 2)), *arrays]
    expected = b"".join(x.tobytes() if isinstance(x, np.ndarray | memoryview) else bytes(x) for x in buffers)

    store.put("file", [buffers], len(expected))

    assert content(store, "file") == expected


def test_every_kind_of_buffer_is_filled(store: Store) -> None:
    data = bytes(range(1, 45))
    put(store, "file", data)
    buffers = [bytearray(3), np.zeros((2, 2), ml_dtypes.bfloat16), memoryview(bytearray(5)), np.zeros((), ">i4"), np.zeros(3)]

    store.read_into("file", 0, buffers)

    got = b"".join(x.tobytes() if isinstance(x, np.ndarray) else bytes(x) for x in buffers)
    assert got == data


def test_an_empty_file_is_a_file(store: Store) -> None:
    store.put("none", [], 0)
    store.put("empty", [[], [b"", np.empty((0, 3))]], 0)

    assert content(store, "none") == content(store, "empty") == b""
    assert [head.nbytes for head in store.list("").files.values()] == [0, 0]
    store.read_into("none", 0, [])


def test_more_buffers_than_one_system_call_takes(store: Store) -> None:
    buffers = [bytes([n % 251]) * (n % 3) for n in range(5_000)]
    expected = b"".join(buffers)
    store.put("file", [buffers], len(expected))
    into = [bytearray(len(buffer)) for buffer in buffers]

    store.read_into("file", 0, into)

    assert content(store, "file") == expected
    assert b"".join(into) == expected


def test_put_replaces_the_whole_file(store: Store) -> None:
    put(store, "file", b"a long first content")

    put(store, "file", b"short")

    assert content(store, "file") == b"short"


@pytest.mark.parametrize("windows", [[[b"abc"]], [[b"abcdef"]], [[b"abcd"], [b"e"]], []], ids=["less", "more", "late", "none"])
def test_a_wrong_number_of_bytes_is_refused_and_nothing_appears(store: Store, windows: list[list[bytes]]) -> None:
    put(store, "old", b"old")

    for key in ("new", "old"):
        with pytest.raises(ValueError, match=key):
            store.put(key, windows, 4)

    assert content(store, "new") is None
    assert content(store, "old") == b"old"
    assert store.uploads("") == []


@pytest.mark.parametrize("error", [RuntimeError("broken source"), KeyboardInterrupt(), FileNotFoundError("gone")])
def test_a_failing_source_passes_its_error_and_nothing_appears(store: Store, error: BaseException) -> None:
    put(store, "old", b"old")

    def windows() -> Iterator[list[bytes]]:
        yield [b"new"]
        raise error

    for key, nbytes in (("new", 100), ("old", 100), ("new", 2 * LARGE)):
        with pytest.raises(type(error)) as caught:
            store.put(key, windows(), nbytes)
        assert caught.value is error

    assert content(store, "new") is None
    assert content(store, "old") == b"old"
    assert store.uploads("") == []


def test_an_unfinished_put_is_an_upload_and_nothing_else(store: Store) -> None:
    skip_if_uploads_are_unseen(store)
    put(store, "a/file", b"old")
    seen = []

    def windows() -> Iterator[list[bytes]]:
        yield [b"n" * LARGE]
        wait_for_upload(store)
        seen.append((content(store, "a/file"), set(store.list("a/").files), store.head("a/file").nbytes))
        seen.append([len(store.uploads(prefix)) for prefix in ("", "a/", "b/")])
        seen.append([upload.key.startswith("a/") for upload in store.uploads("")])
        yield [b"w"]

    store.put("a/file", windows(), LARGE + 1)

    assert seen == [(b"old", {"file"}, 3), [1, 1, 0], [True]]
    assert content(store, "a/file") == b"n" * LARGE + b"w"
    assert store.uploads("") == []


def test_the_writer_of_an_aborted_upload_fails_and_nothing_appears(store: Store) -> None:
    skip_if_uploads_are_unseen(store)

    def windows() -> Iterator[list[bytes]]:
        yield [b"h" * LARGE]
        wait_for_upload(store)
        for upload in store.uploads("a/"):
            store.abort(upload)
            store.abort(upload)
        yield [b"d" * LARGE]

    with pytest.raises(OSError, match="file"):
        store.put("a/file", windows(), 2 * LARGE)

    assert content(store, "a/file") is None
    assert store.uploads("") == []


def test_create_succeeds_once(store: Store) -> None:
    assert store.create("step/record", b"first") is OK
    assert store.create("step/record", b"second") is NO
    assert content(store, "step/record") == b"first"


def test_replace_needs_the_version_that_was_read(store: Store) -> None:
    store.create("step/record", b"one")
    _, old = store.read("step/record")

    assert store.replace("step/record", b"two", old) is OK
    assert store.replace("step/record", b"three", old) is NO
    assert content(store, "step/record") == b"two"
    assert store.replace("step/record", b"three", store.read("step/record")[1]) is OK
    assert content(store, "step/record") == b"three"


def test_replace_of_what_is_gone_is_refused_and_makes_nothing(store: Store) -> None:
    store.create("step/record", b"one")
    _, version = store.read("step/record")
    store.delete(["step/record"])

    assert store.replace("step/record", b"two", version) is NO
    assert store.read("step/record") is None
    assert is_empty(store)


def test_remove_needs_the_version_that_was_read(store: Store) -> None:
    if not store.has_remove:
        pytest.skip("this store has no conditional remove")
    store.create("step/record", b"one")
    _, old = store.read("step/record")
    store.replace("step/record", b"two", old)

    assert store.remove("step/record", old) is NO
    assert content(store, "step/record") == b"two"
    assert store.remove("step/record", store.read("step/record")[1]) is OK
    assert store.read("step/record") is None
    assert store.remove("step/record", old) is NO
    assert store.list("") == ({}, ())


def test_threads_that_race_create_have_one_winner(store: Store) -> None:
    with ThreadPoolExecutor(8) as threads:
        for step in range(2):
            answers = list(threads.map(lambda n, step=step: store.create(f"{step}/record", b"%d" % n), range(8)))

            assert sorted(answers, key=str) == [NO] * 7 + [OK]
            assert content(store, f"{step}/record") == b"%d" % answers.index(OK)


def test_threads_that_race_replace_lose_no_update(store: Store) -> None:
    store.create("counter", b"0")

    def add_three(_: int) -> None:
        added = 0
        while added < 3:
            data, version = store.read("counter")
            added += store.replace("counter", b"%d" % (int(data) + 1), version) is OK

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add_three, range(8)))

    assert content(store, "counter") == b"24"


def test_a_reader_beside_a_writer_sees_whole_records(store: Store) -> None:
    records = [bytes([65 + n]) * (1_000 + 500 * n) for n in range(26)]
    store.create("record", records[0])

    def write_all() -> None:
        for old, new in pairwise(records):
            assert store.replace("record", new, store.read("record")[1]) is OK, old

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write_all)
        seen = [content(store, "record")]
        while not writing.done():
            seen.append(content(store, "record"))
        writing.result()

    assert set(seen) <= set(records)
    assert seen == sorted(seen)


def test_what_is_not_there(store: Store) -> None:
    put(store, "folder/file", b"x")

    for key in ("nothing", "folder", "folder/nothing", "folder/file/below", "nothing/at/all"):
        assert store.read(key) is None
        assert store.head(key) is None
        with pytest.raises(FileNotFoundError):
            store.read_into(key, 0, [bytearray(1)])
        with pytest.raises(FileNotFoundError):
            store.file(key)
    for prefix in ("nothing/", "folder/file/", "fold/"):
        assert store.list(prefix) == ({}, ())
        assert store.uploads(prefix) == []


def test_nothing_is_there_before_the_first_write(store: Store) -> None:
    assert store.list("") == ({}, ())
    assert store.uploads("") == []
    assert store.read("step/record") is None
    store.delete(["step/file", "file"])


def test_reading_past_the_end_says_so(store: Store) -> None:
    put(store, "file", b"0123456789")

    for offset, nbytes in ((0, 11), (9, 2), (10, 1), (1_000, 1)):
        with pytest.raises(EOFError, match="file"):
            store.read_into("file", offset, [bytearray(nbytes)])
    store.read_into("file", 10, [bytearray(0)])


def test_list_shows_one_level(store: Store) -> None:
    for key in ("step-1/record", "step-1/a/x", "step-1/a/y", "step-10/record", "top", "step-1x"):
        put(store, key, key.encode())

    root, step, attempt = (store.list(prefix) for prefix in ("", "step-1/", "step-1/a/"))

    assert {name: head.nbytes for name, head in root.files.items()} == {"top": 3, "step-1x": 7}
    assert sorted(root.folders) == ["step-1", "step-10"]
    assert (set(step.files), step.folders) == ({"record"}, ("a",))
    assert (set(attempt.files), attempt.folders) == ({"x", "y"}, ())


def test_delete_takes_the_folders_that_become_empty(store: Store) -> None:
    for key in ("step/record", "step/a/x", "step/a/y", "step/b/c/d/z"):
        put(store, key, b"x")

    store.delete(key for key in ["step/a/x", "step/b/c/d/z", "step/a/nothing"])
    assert folders(store, "step/") == {"a"}
    store.delete(["step/a/y", "step/a/y", "step/record"])

    assert is_empty(store)
    put(store, "step/a/x", b"anew")
    assert content(store, "step/a/x") == b"anew"


def test_names_of_all_sorts_come_back(store: Store) -> None:
    names = ["with space", "ümlaut", "日本", "%41", "a+b", "#x?y=z", "*", "[a]", "-", "..x", "x" * 200]
    names += [] if store.url.startswith(("az:", "s3:")) else ["back\\slash"]  # a slash to Azure, and to SeaweedFS

    for name in names:
        put(store, f"folder {name}/{name}", name.encode())

    for name in names:
        assert set(store.list(f"folder {name}/").files) == {name}
        assert content(store, f"folder {name}/{name}") == name.encode()


def test_times_are_of_the_store_s_clock(store: Store) -> None:
    put(store, "first", b"x")
    before = store.now()
    put(store, "file", b"x")
    after = store.now()

    # File systems count in ticks of some milliseconds; object stores in seconds.
    assert before - 1.5 <= store.head("file").modified <= after + 1.5
    assert store.list("").files["file"] == store.head("file")


def test_a_folder_is_the_store_below_a_prefix(store: Store) -> None:
    folder = Folder(store).folder("step").folder("a")

    folder.write("file", b"hello")
    folder.write("empty", b"")

    assert content(store, "step/a/file") == b"hello"
    assert folder.read("file")[0] == b"hello"
    assert folder.read_range("file", 1, 3) == b"ell"
    assert set(folder.list().files) == {"file", "empty"}
    assert folder.location("file") == store.location("step/a/file")
    assert folder.location("file").endswith("step/a/file")
    folder.delete(["file", "empty"])
    assert folder.list() == ({}, ())
