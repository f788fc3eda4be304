"""The servers of the tests: they do what they stand in for, and end with the test run."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from services import S3, Gcs, Proxy, Service, Sink

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def gcs() -> Iterator[Gcs]:
    with Gcs() as server:
        yield server


def ask(server: Service, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"{server.endpoint}/{path}", body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_only_one_of_many_creates_an_object(gcs: Gcs) -> None:
    def create(n: int) -> int:
        return ask(gcs, "test-bucket/created", "PUT", b"%d" % n, x_goog_if_generation_match="0")[0]

    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(create, range(16)))

    assert sorted(statuses) == [200] + [412] * 15
    assert ask(gcs, "test-bucket/created")[1] == b"%d" % statuses.index(200)


def test_an_old_generation_replaces_and_deletes_nothing(gcs: Gcs) -> None:
    ask(gcs, "test-bucket/replaced", "PUT", b"one")

    for method in ("PUT", "DELETE"):
        assert ask(gcs, "test-bucket/replaced", method, b"two", x_goog_if_generation_match="1")[0] == 412

    assert ask(gcs, "test-bucket/replaced") == (200, b"one")


def test_a_wrong_checksum_is_refused(gcs: Gcs) -> None:
    assert ask(gcs, "test-bucket/summed", "PUT", b"data", x_goog_hash="crc32c=AAAAAA==")[0] == 400
    assert ask(gcs, "test-bucket/summed")[0] == 404


def test_ranges_end_with_the_object(gcs: Gcs) -> None:
    ask(gcs, "test-bucket/ranged", "PUT", b"0123456789")

    assert ask(gcs, "test-bucket/ranged", Range="bytes=7-20") == (206, b"789")
    assert ask(gcs, "test-bucket/ranged", Range="bytes=-2") == (206, b"89")
    assert ask(gcs, "test-bucket/ranged", Range="bytes=10-")[0] == 416


def test_the_proxy_makes_each_fault_and_tells_of_it(gcs: Gcs) -> None:
    ask(gcs, "test-bucket/proxied", "PUT", b"data")
    with Proxy(gcs.endpoint) as proxy:
        proxy.rules(
            {"path": "proxied", "nth": 1, "do": "status", "code": 503},
            {"path": "proxied", "nth": 1, "do": "corrupt", "bytes": 1},
            {"method": "PUT", "do": "lose", "times": 1},
            {"method": "PUT", "do": "reset"},
        )

        first, second, third = (ask(proxy, "test-bucket/proxied") for _ in range(3))
        for key in ("kept", "refused"):
            with pytest.raises(OSError, match=r"reset|closed"):
                ask(proxy, f"test-bucket/{key}", "PUT", b"x")
        log = proxy.requests()

    assert (first[0], second, third) == (503, (200, b"d`ta"), (200, b"data"))
    assert (ask(gcs, "test-bucket/kept")[0], ask(gcs, "test-bucket/refused")[0]) == (200, 404)
    assert [(each["method"], each["status"], each["fault"]) for each in log] == [
        ("GET", 503, "status"),
        ("GET", 200, "corrupt"),
        ("GET", 200, None),
        ("PUT", 200, "lose"),
        ("PUT", None, "reset"),
    ]


def test_the_sink_gives_as_many_zeros_as_it_was_sent() -> None:
    with Sink() as sink:
        ask(sink, "bucket/key", "PUT", b"x" * 100_000)

        assert ask(sink, "bucket/key") == (200, bytes(100_000))
        assert ask(sink, "bucket/key", Range="bytes=5-9") == (206, bytes(5))


def test_a_server_ends_when_the_test_run_is_killed() -> None:
    script = "import services, time; server = services.Sink().__enter__(); print(server.endpoint, flush=True); time.sleep(60)"
    runner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=TESTS, text=True)
    endpoint = runner.stdout.readline().strip()
    assert endpoint

    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    runner.stdout.close()

    deadline = time.monotonic() + 30
    while is_up(endpoint) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_up(endpoint)


def is_up(endpoint: str) -> bool:
    try:
        urllib.request.urlopen(endpoint, timeout=1)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@pytest.mark.cloud
def test_a_server_leaves_no_file_behind() -> None:
    with S3() as server:
        sockets = [path for path in server.elsewhere() if path.exists()]

    assert sockets
    assert [path for path in sockets if path.exists()] == []
