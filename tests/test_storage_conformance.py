"""What every `Store` does, whatever keeps the files. A new store gets a line in ``STORES`` and passes all of it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import MemoryStore

from ckptmgr.storage import Answer, Folder, PosixStore, Store

OK, NO = Answer.OK, Answer.NO

STORES: dict[str, Callable[[Path], Store]] = {
    "posix": lambda folder: PosixStore(folder / "run"),
    "memory": lambda _: MemoryStore(),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return STORES[request.param](tmp_path)


def content(store: Store, key: str) -> bytes | None:
    found = store.read(key)
    return None if found is None else found[0]


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


def test_a_buffer_may_be_used_again_for_the_next_window(store: Store) -> None:
    buffer = bytearray(4)

    def windows() -> Iterator[list[bytearray]]:
        for n in range(8):
            buffer[:] = bytes([n]) * 4
            yield [buffer]

    store.put("file", windows(), 32)

    assert content(store, "file") == bytes(n for n in range(8) for _ in range(4))


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


@pytest.mark.parametrize("error", [RuntimeError("broken source"), KeyboardInterrupt()])
def test_a_failing_source_passes_its_error_and_nothing_appears(store: Store, error: BaseException) -> None:
    put(store, "old", b"old")

    def windows() -> Iterator[list[bytes]]:
        yield [b"new"]
        raise error

    for key in ("new", "old"):
        with pytest.raises(type(error)) as caught:
            store.put(key, windows(), 100)
        assert caught.value is error

    assert content(store, "new") is None
    assert content(store, "old") == b"old"
    assert store.uploads("") == []


def test_an_unfinished_put_is_an_upload_and_nothing_else(store: Store) -> None:
    put(store, "a/file", b"old")
    seen = []

    def windows() -> Iterator[list[bytes]]:
        yield [b"n" * 1_000]
        seen.append((content(store, "a/file"), set(store.list("a/").files), store.head("a/file").nbytes))
        seen.append([len(store.uploads(prefix)) for prefix in ("", "a/", "b/")])
        seen.append([upload.key.startswith("a/") for upload in store.uploads("")])
        yield [b"w"]

    store.put("a/file", windows(), 1_001)

    assert seen == [(b"old", {"file"}, 3), [1, 1, 0], [True]]
    assert content(store, "a/file") == b"n" * 1_000 + b"w"
    assert store.uploads("") == []


def test_the_writer_of_an_aborted_upload_fails_and_nothing_appears(store: Store) -> None:
    def windows() -> Iterator[list[bytes]]:
        yield [b"half"]
        for upload in store.uploads("a/"):
            store.abort(upload)
            store.abort(upload)
        yield [b"done"]

    with pytest.raises(OSError, match="file"):
        store.put("a/file", windows(), 8)

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
    assert store.list("") == ({}, ())


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
        for step in range(5):
            answers = list(threads.map(lambda n, step=step: store.create(f"{step}/record", b"%d" % n), range(8)))

            assert sorted(answers, key=str) == [NO] * 7 + [OK]
            assert content(store, f"{step}/record") == b"%d" % answers.index(OK)


def test_threads_that_race_replace_lose_no_update(store: Store) -> None:
    store.create("counter", b"0")

    def add_five(_: int) -> None:
        added = 0
        while added < 5:
            data, version = store.read("counter")
            added += store.replace("counter", b"%d" % (int(data) + 1), version) is OK

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add_five, range(8)))

    assert content(store, "counter") == b"40"


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
    assert store.list("step/").folders == ("a",)
    store.delete(["step/a/y", "step/a/y", "step/record"])

    assert store.list("") == ({}, ())
    put(store, "step/a/x", b"anew")
    assert content(store, "step/a/x") == b"anew"


def test_names_of_all_sorts_come_back(store: Store) -> None:
    names = ["with space", "ümlaut", "日本", "%41", "a+b", "#x?y=z", "*", "back\\slash", "-", "..x", "x" * 200]

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


KEYS = ["a", "b", "s/a", "s/t/a", "s/t/b"]
CALLS = st.tuples(st.sampled_from(["put", "create", "replace", "remove", "delete"]), st.sampled_from(KEYS), st.booleans())


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(CALLS, max_size=25))
def test_a_store_is_a_dict(store: Store, calls: list[tuple[str, str, bool]]) -> None:
    store.delete(KEYS)
    model: dict[str, bytes] = {}
    first: dict[str, object] = {}

    for n, (call, key, is_fresh) in enumerate(calls):
        data = b"%d" % n
        current = store.read(key)[1] if key in model else b"none"
        version = current if is_fresh else first.setdefault(key, current)
        holds = key in model and version == current
        if call == "put":
            put(store, key, data)
        elif call == "delete":
            store.delete([key])
        elif call == "create":
            holds = key not in model
            assert store.create(key, data) is (OK if holds else NO)
        elif call == "replace":
            assert store.replace(key, data, version) is (OK if holds else NO)
        elif store.has_remove:
            assert store.remove(key, version) is (OK if holds else NO)
        if call == "put" or (call in ("create", "replace") and holds):
            model[key] = data
        elif call == "delete" or (call == "remove" and store.has_remove and holds):
            model.pop(key, None)

    found = {key: content(store, key) for key in KEYS}
    assert found == {key: model.get(key) for key in KEYS}
    assert set(store.list("").folders) == {"s" for key in model if key.startswith("s/")}
    assert set(store.list("s/").folders) == {"t" for key in model if key.startswith("s/t/")}
