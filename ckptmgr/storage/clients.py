"""s3fs, gcsfs and adlfs below their fsspec face: conditional requests that are sent once, and the uploads that were left.

Paths are without the bucket. All credentials are theirs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from ckptmgr.storage.azureclient import AzureClient
from ckptmgr.storage.clouds import Place, is_installed, take_retries
from ckptmgr.storage.gcsclient import GcsClient
from ckptmgr.storage.s3client import S3Client
from ckptmgr.storage.store import Answer, Marked, Upload, Version

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"}


class Client(Protocol):
    """What the stores ask of the three."""

    fs: Any
    has_remove: bool
    has_checksums: bool  # `checksum` tells one
    errors: tuple[type[Exception], ...]  # of the client's own, which are no OSErrors

    def read(self, path: str) -> tuple[bytes, Version] | None:
        """A small object and its version, which are of one moment."""

    def send(self, path: str, data: bytes | None, version: Version | None) -> tuple[Answer, Version | None]:
        """One conditional request: ``data`` None removes, ``version`` None is for what is not there. Tells the new version."""

    def pages(self, prefix: str) -> Iterator[list[tuple[str, Marked]]]:
        """All objects below a prefix, with a mark that is their version (see `bare`), a page of them for each request."""

    def delete(self, paths: Sequence[str]) -> None:
        """Deletes objects, many by one request where the service can; gone already is fine."""

    def checksum(self, path: str) -> int | None:
        """The crc32c of an object as the store has computed it, or None if it tells none."""

    def pipe(self, path: str, data: bytes) -> None:
        """Keeps a small file by one request, which the package repeats as it does. `GcsClient` has it compared too."""

    def uploads(self, prefix: str) -> list[Upload]:
        """Unfinished uploads below a prefix."""

    def abort(self, upload: Upload) -> None:
        """Ends one; gone already is fine."""

    def discard(self, file: Any) -> None:
        """Ends the upload of a file that was opened for writing; it is never closed."""


@runtime_checkable
class ComparingClient(Client, Protocol):
    """One whose service can tell by the same request what it keeps."""

    def keep(self, path: str, data: bytes) -> int | None:
        """Keeps a small file, by one request that is sent once.

        The crc32c of what is kept; None where the service has compared it itself.

        Raises:
            OSError: (EIO) as `asking.again` knows it: no answer, or one with a status.
        """


def client_of(place: Place, options: Mapping[str, Any]) -> Client | None:
    """The client of a bucket, or None if the package for it is not installed."""
    if not has_client(place):
        return None
    given = dict(options)
    take_retries(given)  # these three have their own
    return _CLIENTS[_PACKAGES[place.scheme]](place, given)


def has_client(place: Place) -> bool:
    """Whether the package for a bucket is installed."""
    return is_installed(_PACKAGES[place.scheme])


_CLIENTS: dict[str, Callable[[Place, dict[str, Any]], Client]] = {
    "s3fs": S3Client,
    "gcsfs": GcsClient,
    "adlfs": AzureClient,
}
