"""A bucket as its clients see it: obstore's, and beside it the fsspec client, for the few calls that obstore lacks.

Clients are made at the first use. What a server turned out not to understand is not sent to it again by this process.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from errno import EIO
from typing import Any, TypeVar

from ckptmgr.storage import clouds
from ckptmgr.storage.asking import again
from ckptmgr.storage.clients import Client, client_of
from ckptmgr.storage.folders import names_of

_T = TypeVar("_T")


class Bucket:
    """The bucket and prefix of a URL, with storage options as `clouds.cloud` takes them."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self.cloud = clouds.cloud(url, options)
        self.prefix = self.cloud.place.prefix
        self.url = f"{url.partition('://')[0]}://{url.partition('://')[2].partition('/')[0]}/{self.prefix}".rstrip("/")
        self._options = options
        self._clients: dict[tuple[bool, bool], Any] = {}
        self._companion: Client | None = None

    @property
    def has_checksums(self) -> bool:
        """Whether the server compares what it gets with checksums of obstore's. False is kept for all buckets of the server."""
        return "checksum_algorithm" in self.cloud.config and self.cloud.endpoint not in _without_checksums

    @has_checksums.setter
    def has_checksums(self, has: bool) -> None:
        (_without_checksums.discard if has else _without_checksums.add)(self.cloud.endpoint)

    def client(self, *, is_once: bool = True) -> Any:
        """For obstore; it sends each request once, unless told to repeat."""
        with _guard:
            kind = is_once, self.cloud.endpoint not in _without_checksums
            if kind not in self._clients:
                self._clients[kind] = self.cloud.client(is_once=is_once, has_checksums=kind[1])
            return self._clients[kind]

    def helper(self) -> Client | None:
        """The same bucket through its fsspec client; None if that is not installed."""
        with _guard:
            if self._companion is None:
                self._companion = client_of(self.cloud.place, self._options)
            return self._companion

    def again(self, key: str, ask: Callable[[], _T]) -> _T:
        """See `asking.again`."""
        return again(ask, self.location(key), self.cloud.retries)

    @contextmanager
    def asking(self, helper: Client, where: str) -> Iterator[None]:
        """Lets the helper's errors be OSErrors with the location."""
        try:
            yield
        except helper.errors as error:
            raise OSError(EIO, str(error), where) from error

    def path(self, key: str) -> str:
        """The name of an object in the bucket."""
        names_of(key)
        return self.prefix + key

    def location(self, key: str) -> str:
        """The URL of an object, or of the prefix."""
        return f"{self.url}/{key}" if key else self.url


_guard = threading.RLock()
_without_checksums: set[str] = set()  # servers that refuse them
