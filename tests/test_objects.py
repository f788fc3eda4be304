"""What is special about object stores: requests that are sent once or again, broken reads, uploads that are left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from debris import debris
from every_store import CLOUDS, REMOTE, options, place
from services import S3, Proxy, Service

from ckptmgr import CheckpointManager, MissingDependencyError
from ckptmgr.storage import Answer, ObjectStore, Store, clouds, open_folder
from ckptmgr.storage.pieces import Places

pytestmark = pytest.mark.cloud
MIB = 1 << 20
CHANGING = ("PUT", "POST", "DELETE")
BREAKS = [{"do": "reset_resp", "bytes": 1}, {"do": "truncate", "bytes": 1}, {"do": "reset"}]


@pytest.fixture
def proxy(s3_proxy: Proxy) -> Iterator[Proxy]:
    """A proxy in front of the S3 server, which makes no faults yet."""
    s3_proxy.rules()
    yield s3_proxy
    s3_proxy.rules()


@pytest.fixture(params=REMOTE)
def told(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, Proxy]]:
    """A store of each cloud by each client, that has found its server to honour conditions, and the proxy between."""
    cloud, _, client = request.param.partition("-")
    server, proxy = (request.getfixturevalue(f"{cloud}_{kind}") for kind in ("server", "proxy"))
    proxy.rules()
    given = {**options(server, proxy.endpoint), "client": client or "obstore"}
    store = open_folder(f"{CLOUDS[cloud][1]}{tmp_path}", given).store
    assert store.create("probed", b"x") is Answer.OK
    yield store, proxy
    proxy.rules()


def change(**rule: object) -> list[dict]:
    """The rule, for every request that changes anything."""
    return [{"method": method, **rule} for method in CHANGING]


def changes(proxy: Proxy) -> int:
    return sum(each["method"] in CHANGING for each in proxy.requests())


def test_nothing_is_deleted_after_a_delete_has_returned(told: tuple[Store, Proxy]) -> None:
    store, proxy = told
    store.put("slow", [[b"old"]], 3)
    proxy.rules({"method": "DELETE", "path": "slow", "do": "delay", "seconds": 0.5, "times": 1})

    store.delete(["absent", "slow", "gone"])
    proxy.rules()
    store.put("slow", [[b"new"]], 3)
    time.sleep(1)

    assert store.read("slow")[0] == b"new"


@pytest.mark.parametrize("fault", ["lose", "late"])
def test_a_lost_answer_is_lost_and_the_request_is_not_repeated(told: tuple[Store, Proxy], fault: str) -> None:
    store, proxy = told
    store.create("old", b"old")
    _, version = store.read("old")
    proxy.rules(*change(do=fault))

    assert store.create("new", b"new") is Answer.LOST
    assert store.replace("old", b"changed", version) is Answer.LOST

    assert changes(proxy) == 2
    assert [store.read(key)[0] for key in ("new", "old")] == [b"new", b"changed"]


@pytest.mark.parametrize("fault", ["status", "reset"])
def test_a_request_that_never_arrives_is_lost_too(told: tuple[Store, Proxy], fault: str) -> None:
    store, proxy = told
    proxy.rules(*change(do=fault))

    assert store.create("new", b"new") is Answer.LOST

    assert changes(proxy) == 1
    assert store.read("new") is None


@pytest.mark.parametrize(("code", "error"), [(403, PermissionError), (400, OSError)])
def test_a_refusal_that_proves_that_nothing_was_changed_is_an_error(told: tuple[Store, Proxy], code: int, error: type) -> None:
    store, proxy = told
    proxy.rules(*change(do="status", code=code, body="<Error><Code>Refused</Code><Message>No.</Message></Error>"))

    with pytest.raises(error) as caught:
        store.create("new", b"new")

    assert "new" in str(caught.value)
    assert changes(proxy) == 1


@pytest.mark.parametrize("told", CLOUDS, indirect=True)
def test_a_put_is_repeated(told: tuple[Store, Proxy]) -> None:
    store, proxy = told
    proxy.rules({"method": "(PUT|POST)", "do": "status", "times": 1}, {"method": "(PUT|POST)", "do": "lose", "times": 1})

    store.put("file", [[b"data"]], 4)

    assert store.read("file")[0] == b"data"
    assert changes(proxy) == 3


@pytest.mark.parametrize("told", CLOUDS, indirect=True)
@pytest.mark.parametrize("fault", BREAKS, ids=lambda fault: fault["do"])
def test_an_answer_that_breaks_off_is_asked_for_again(told: tuple[Store, Proxy], fault: dict) -> None:
    store, proxy = told
    store.put("a/file", [[b"0123456789"]], 10)

    for method in ("GET", "HEAD", "POST", "DELETE"):
        for ask, expected in (
            (lambda: store.read("a/file")[0], b"0123456789"),
            (lambda: set(store.list("a/").files), {"file"}),
            (lambda: store.head("a/file").nbytes, 10),
            (lambda: store.delete(["b/file"]), None),
        ):
            proxy.rules({"method": method, "times": 1, **fault})
            assert ask() == expected


BEGIN, PART, COMPLETE = ("POST", "uploads"), ("PUT", "partNumber=2"), ("POST", "uploadId")
BLOCK, BLOCKS = ("PUT", "comp=block&"), ("PUT", "comp=blocklist")
FIRST = ("PUT", "partNumber=1")
REQUESTS = [(cloud, asked) for cloud in ("s3", "gcs") for asked in (BEGIN, PART, COMPLETE)]
REQUESTS += [("azure", BLOCK), ("azure", BLOCKS), *(("s3-fsspec", asked) for asked in (BEGIN, FIRST, COMPLETE))]
REQUESTS += [("gcs-fsspec", ("POST", "uploadType=resumable")), ("gcs-fsspec", ("(POST|PUT)", "upload_id="))]


@pytest.mark.parametrize("fault", ["status", "lose"])
@pytest.mark.parametrize(("told", "asked"), REQUESTS, indirect=["told"])
def test_an_upload_survives_a_fault_at_any_of_its_requests(told: tuple[Store, Proxy], asked: tuple[str, str], fault: str) -> None:
    store, proxy = told
    data = np.random.default_rng(0).integers(0, 255, 20 * MIB, np.uint8)
    proxy.rules({"method": asked[0], "path": asked[1], "do": fault, "times": 1})

    store.put("file", [[data]], data.nbytes)

    back = np.empty_like(data)
    store.read_into("file", 0, [back])
    assert (back == data).all()
    assert [each["fault"] for each in proxy.requests()].count(fault) == 1
    for upload in store.uploads(""):  # nobody knows the one whose beginning was not answered: it is left to sweep
        assert (asked[0], fault) == ("POST", "lose")
        store.abort(upload)


def test_an_upload_that_was_ended_is_no_success_because_of_an_older_file(s3_server: S3, tmp_path: Path, monkeypatch) -> None:
    store = open_folder(f"s3://test-bucket{tmp_path}", options(s3_server)).store
    store.put("file", [[bytes(20 * MIB)]], 20 * MIB)
    monkeypatch.setattr(store, "now", lambda: time.time() + 60)  # all that is older than a minute

    def windows() -> Iterator[list[bytes]]:
        yield [b"x" * (17 * MIB)]
        while not store.uploads(""):
            time.sleep(0.01)
        store.abort(store.uploads("")[0])
        yield [b"x" * (3 * MIB)]

    with pytest.raises(FileNotFoundError, match="somebody ended the upload"):
        store.put("file", windows(), 20 * MIB)

    assert store.read("file")[0] == bytes(20 * MIB)


@pytest.mark.parametrize("nbytes", [1_000, 20 * MIB])
@pytest.mark.parametrize("name", [*CLOUDS, "s3-fsspec", "gcs-fsspec"])
def test_bytes_that_are_damaged_on_their_way_are_never_committed(name: str, nbytes: int, request: pytest.FixtureRequest) -> None:
    cloud, _, client = name.partition("-")
    server, proxy = (request.getfixturevalue(f"{cloud}_{kind}") for kind in ("server", "proxy"))
    proxy.rules()
    url, _ = place(name, request)
    manager = CheckpointManager(url, storage_options={**options(server, proxy.endpoint), "client": client or "obstore"})
    manager.save(1, {"w": np.arange(9)})
    data = np.random.default_rng(0).integers(0, 255, nbytes, np.uint8)
    of_data = {
        "path": "(00000002.*safetensors|upload_id=|uploadType=multipart)",
        "header": {"content-length": r"\d{4}"},
        "do": "spoil",
        "bytes": 700,
    }
    proxy.rules({"method": "(PUT|POST)", **of_data})

    with pytest.raises(OSError, match="00000002"):
        manager.save(2, {"w": data})

    assert [each["fault"] for each in proxy.requests()].count("spoil") >= 1
    proxy.rules()
    assert [info.step for info in manager.steps()] == [1]
    assert debris(manager.folder) == set()


def test_a_server_that_knows_no_checksums_gets_none(s3_server: S3, tmp_path: Path) -> None:
    with Proxy(s3_server.endpoint) as proxy:
        proxy.rules({"method": "PUT", "header": {"x-amz-checksum-crc64nvme": "."}, "do": "status", "code": 501})
        for _ in range(2):
            store = open_folder(f"s3://test-bucket{tmp_path}", options(s3_server, proxy.endpoint)).store
            assert store.create("record", b"x") in (Answer.OK, Answer.NO)
            store.put("file", [[b"data"]], 4)

        assert [each["fault"] for each in proxy.requests()].count("status") == 1
        assert store.read("file")[0] == b"data"


def test_damage_on_the_way_is_no_reason_to_leave_checksums_out(s3_server: S3, tmp_path: Path) -> None:
    with Proxy(s3_server.endpoint) as proxy:
        store = open_folder(f"s3://test-bucket{tmp_path}", options(s3_server, proxy.endpoint)).store
        proxy.rules({"method": "PUT", "do": "spoil", "times": 1})
        with pytest.raises(OSError, match="BadDigest"):
            store.create("record", b"x")

        proxy.rules({"method": "PUT", "path": "file", "do": "spoil", "times": 1})
        assert store.create("record", b"x") is Answer.OK
        with pytest.raises(OSError, match="BadDigest"):
            store.put("file", [[b"data"]], 4)

        assert store.read("file") is None


@pytest.mark.parametrize("told", CLOUDS, indirect=True)
def test_a_broken_range_goes_on_where_it_broke(told: tuple[Store, Proxy]) -> None:
    store, proxy = told
    data = np.random.default_rng(0).integers(0, 255, 8 * MIB, np.uint8)
    store.put("file", [[data]], data.nbytes)
    proxy.rules({"method": "GET", "do": "reset_resp", "bytes": 5 * MIB, "times": 1})

    back = np.empty(6 * MIB, np.uint8)
    store.read_into("file", MIB, [back[: 2 * MIB], back[2 * MIB :]])

    assert (back == data[MIB : 7 * MIB]).all()
    asked = proxy.requests()
    assert [(each["status"], each["fault"]) for each in asked] == [(206, "reset_resp"), (206, None)]
    start, end = asked[1]["range"].removeprefix("bytes=").split("-")
    assert MIB < int(start) <= 6 * MIB  # some of what had come was on its way still
    assert int(end) == 7 * MIB - 1


def test_a_range_that_breaks_off_behind_its_last_byte_is_whole(proxy: Proxy, s3_server: S3, tmp_path: Path, monkeypatch) -> None:
    store = open_folder(f"s3://test-bucket{tmp_path}", options(s3_server, proxy.endpoint)).store
    store.put("file", [[b"0123456789"]], 10)
    fill, broken = Places.fill, [1]

    def breaking(places: Places, chunk: bytes) -> None:
        fill(places, chunk)
        if broken and broken.pop():
            raise OSError(5, "HTTP error: broken", "file")

    monkeypatch.setattr(Places, "fill", breaking)
    back = bytearray(10)
    store.read_into("file", 0, [back])

    assert back == b"0123456789"


def test_an_upload_whose_writer_was_killed_is_listed_and_ended(s3_server: S3, tmp_path: Path) -> None:
    url, given = f"s3://test-bucket{tmp_path}", options(s3_server)
    script = f"""
from ckptmgr.storage import open_folder
import time
store = open_folder({url!r}, {given!r}).store
def windows():
    yield [bytes(9 << 20)]
    while not store.uploads("a/"):
        time.sleep(0.01)
    print("begun", flush=True)
    time.sleep(60)
store.put("a/file", windows(), 18 << 20)
"""
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"begun\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    store = open_folder(url, given).store

    found = store.uploads("a/")

    assert [upload.key for upload in found] == ["a/file"]
    assert abs(found[0].modified - store.now()) < 60
    assert store.uploads("b/") == []
    store.abort(found[0])
    store.abort(found[0])
    assert store.uploads("") == []


def test_the_clock_is_the_server_s(s3_server: S3, gcs_server: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = [
        ObjectStore(f"s3://test-bucket{tmp_path}", **options(s3_server)),
        ObjectStore("gs://test-bucket", **options(gcs_server)),
    ]
    now = time.time()
    monkeypatch.setattr("ckptmgr.storage.objects.time", lambda: 0.0)

    assert [abs(store.now() - now) < 60 for store in stores] == [True, True]


def test_a_missing_bucket_is_not_an_empty_one(s3_server: S3, gcs_server: Service, azure_server: Service) -> None:
    for url, server in (
        ("s3://no-such-bucket", s3_server),
        ("gs://no-such-bucket", gcs_server),
        ("az://no-such-box", azure_server),
    ):
        store = ObjectStore(f"{url}/run", **options(server))

        for ask in (lambda s=store: s.read("x"), lambda s=store: s.list(""), lambda s=store: s.create("x", b"")):
            with pytest.raises(FileNotFoundError, match=r"the bucket does not exist.*no-such"):
                ask()


def test_wrong_keys_are_a_permission_error(s3_server: S3) -> None:
    store = ObjectStore("s3://test-bucket/run", **{**options(s3_server), "secret": "wrong"})

    for ask in (lambda: store.read("x"), lambda: store.list(""), lambda: store.create("x", b"")):
        with pytest.raises(PermissionError):
            ask()


def test_what_lies_about_in_the_environment_is_not_mixed_with_given_keys(s3_server: S3, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "somebody's")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    store = ObjectStore(f"s3://test-bucket{tmp_path}", **options(s3_server))

    store.put("file", [[b"data"]], 4)

    assert store.read("file")[0] == b"data"


def test_a_forked_child_is_told_that_it_cannot(s3_server: S3, tmp_path: Path) -> None:
    store = ObjectStore(f"s3://test-bucket{tmp_path}", **options(s3_server))
    store.read("x")
    child = os.fork()
    if child == 0:
        try:
            store.read("x")
        except RuntimeError as error:
            os._exit(7 if "spawn" in str(error) else 1)
        os._exit(2)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_without_obstore_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.store", None)

    with pytest.raises(MissingDependencyError, match="pip install obstore"):
        clouds.module("obstore.store")
    with pytest.raises(MissingDependencyError, match="pip install obstore"):
        open_folder("s3://bucket/run", {"anon": True, "client": "obstore"}).read("x")
