"""What is asked again, how often and until when; what never is; and what is left of an upload that is given up."""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from every_store import options, place
from services import Proxy

from ckptmgr.storage import Answer, Store, asking, clouds, open_folder
from ckptmgr.storage.clouds import Retries

MIB = 1 << 20


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Iterator[tuple[Callable[..., Store], Proxy]]:
    """Makes stores that have found their server to honour conditions, through the proxy."""
    server, proxy = (request.getfixturevalue(f"{request.param}_{kind}") for kind in ("server", "proxy"))
    url, _ = place(request.param, request)
    proxy.rules()

    def store(**given: Any) -> Store:
        made = open_folder(url, {**options(server, proxy.endpoint), **given}).store
        assert made.create("probed", b"x") in (Answer.OK, Answer.NO)
        return made

    yield store, proxy
    proxy.rules()


EVERYWHERE = pytest.mark.parametrize("told", ["s3", "gcs", "azure"], indirect=True)
CALLS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put("file", [[b"data"]], 4),
    "read": lambda store: store.read("probed"),
    "read_into": lambda store: store.read_into("probed", 0, [bytearray(1)]),
    "list": lambda store: store.list(""),
    "head": lambda store: store.head("probed"),
    "delete": lambda store: store.delete(["file"]),
}


@pytest.mark.cloud
@EVERYWHERE
@pytest.mark.parametrize("code", [429, 500, 503, 408])
def test_what_a_server_cannot_answer_now_is_asked_again_as_often_as_was_said(told: tuple, code: int) -> None:
    make, proxy = told
    store = make(retries=2)

    for name, call in CALLS.items():
        proxy.rules({"do": "status", "code": code, "times": 2})
        call(store)
        assert len(proxy.requests()) >= 3, name

        proxy.rules({"do": "status", "code": code})
        with pytest.raises(OSError, match=str(code)):
            call(store)
        assert len(proxy.requests()) == 3, name


@pytest.mark.cloud
@EVERYWHERE
@pytest.mark.parametrize("code", [400, 401, 403, 405, 409, 412, 501])
def test_an_answer_that_means_something_is_not_asked_for_again(told: tuple, code: int) -> None:
    make, proxy = told
    store = make()

    for name, call in CALLS.items():
        proxy.rules({"do": "status", "code": code})
        with pytest.raises(OSError, match=str(code)):
            call(store)
        assert len(proxy.requests()) <= 2, name  # a read asks where the file ends
        assert len({(each["method"], each["target"]) for each in proxy.requests()}) == len(proxy.requests()), name


@pytest.mark.cloud
@EVERYWHERE
def test_a_server_that_says_when_to_come_back_is_outwaited(told: tuple) -> None:
    make, proxy = told
    store = make()
    began = time.monotonic()
    proxy.rules({"do": "status", "code": 503, "headers": {"Retry-After": "1"}, "nth": [1, 3]})

    assert store.read("probed")[0] == b"x"

    assert len(proxy.requests()) == 4
    assert time.monotonic() - began < 30


@pytest.mark.cloud
@pytest.mark.parametrize("told", ["s3", "gcs"], indirect=True)
@pytest.mark.parametrize("fault", ["status", "lose", "reset"])
def test_an_upload_that_is_given_up_leaves_nothing(told: tuple, fault: str) -> None:
    make, proxy = told
    store = make(retries=1)
    proxy.rules({"method": "PUT", "path": "partNumber=2", "do": fault})

    with pytest.raises(OSError, match="file"):
        store.put("file", [[bytes(20 * MIB)]], 20 * MIB)

    assert store.uploads("") == []
    assert store.read("file") is None


class Clock:
    """Stands in for the module `time`: it passes only in pauses, and when it is told."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def test_no_try_begins_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(asking, "time", clock)
    monkeypatch.setattr(asking, "_chance", random.Random(1))

    def ask() -> None:
        clock.now += 0.5
        raise OSError(5, "HTTP error: nobody there", "file")

    with pytest.raises(OSError, match="nobody"):
        asking.again(ask, "file", Retries(1000, 60.0))

    assert 40 < clock.now <= 60.5
    assert all(0 <= pause <= min(0.1 * 2**number, 10) for number, pause in enumerate(clock.pauses))
    assert min(clock.pauses[6:]) < 3 < 7 < max(clock.pauses)  # anything between none and the longest


def test_a_request_that_took_too_long_says_what_to_do_on_a_slow_link() -> None:
    """The words are those of object_store for a part that was given up."""
    text = "Generic S3 error: Error performing PUT http://h/b/x?... in {}s - HTTP error: error sending request"

    assert "if the link is slow, give storage_options={'in_flight_nbytes': 8388608}" in str(
        asking.told(ValueError(text.format("300.000463961")), "s3://b/x")
    )
    assert "slow" not in str(asking.told(ValueError(text.format("3.000463961")), "s3://b/x"))


def test_retries_are_numbers() -> None:
    assert clouds.cloud("gs://b", {"retries": 3, "retry_timeout_s": 1.5}).retries == Retries(3, 1.5)
    assert clouds.cloud("gs://b", {"retries": 0}).retries.most == 0
    for wrong in ({"retries": -1}, {"retries": 1.5}, {"retry_timeout_s": "10"}):
        with pytest.raises(ValueError, match="retries and retry_timeout_s are numbers"):
            clouds.cloud("gs://b", wrong)
