"""A server that is no object store: a login page, or the web interface beside the store. A run there is not an empty one."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np
import pytest
from webserver import served

from ckptmgr import CheckpointManager

PAGE = b"<html><head><title>Log in</title></head><body>Who are you?</body></html>"
KEYS = {"key": "k", "secret": "s", "region": "us-east-1"}


class Page(BaseHTTPRequestHandler):
    """The same page for whatever is asked for, as far as ``only`` lets it; nothing else is there."""

    protocol_version = "HTTP/1.1"
    only = ("GET", "HEAD")
    length = str(len(PAGE))

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        body = PAGE if self.command in self.only else b""
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = answer  # noqa: N815 - as the class above wants it


class Dated(Page):
    """One whose page has what the head of an object has."""

    def end_headers(self) -> None:
        self.send_header("ETag", '"abc"')
        self.send_header("Last-Modified", "Mon, 23 Nov 2026 10:00:00 GMT")
        super().end_headers()


@pytest.fixture(params=[Page, Dated])
def endpoint(request: pytest.FixtureRequest) -> Iterator[str]:
    with served(request.param) as port:
        yield f"http://127.0.0.1:{port}"


def options(url: str, endpoint: str, client: str) -> dict[str, Any]:
    given = KEYS if url.startswith("s3") else {"token": "anon"}
    return {**given, "endpoint_url": endpoint, "client": client}


@pytest.mark.parametrize(
    ("url", "client"), [("s3://b/run", "obstore"), ("gs://b/run", "obstore"), ("s3://b/run", "fsspec"), ("gs://b/run", "fsspec")]
)
def test_training_does_not_start_anew_behind_a_login_page(endpoint: str, url: str, client: str) -> None:
    manager = CheckpointManager(url, storage_options=options(url, endpoint, client))

    for ask in (manager.steps, lambda: manager.restore_or_initialize({"w": np.zeros(3)})):
        with pytest.raises(OSError, match=r"is the endpoint an object store's|Expecting value"):
            ask()
