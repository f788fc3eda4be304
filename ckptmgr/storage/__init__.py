"""Where files live: the `Store` protocol, a `Folder` in a store, and the stores there are."""

import inspect
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fsspec import available_protocols
from fsspec.core import split_protocol, strip_protocol
from fsspec.registry import known_implementations

from ckptmgr.storage import clouds, fsspecs
from ckptmgr.storage.elsewhere import FolderOfFiles
from ckptmgr.storage.filesystem import FilesystemStore
from ckptmgr.storage.objects import ObjectStore
from ckptmgr.storage.posix import PosixStore
from ckptmgr.storage.staging import staging
from ckptmgr.storage.store import (
    Answer,
    Buffer,
    Folder,
    Head,
    LinkingStore,
    Listing,
    LocalListing,
    Marked,
    MarkingStore,
    ParallelStore,
    RereadingStore,
    Sight,
    StagingStore,
    Store,
    Stored,
    Upload,
    Version,
    is_local,
    is_marking,
)

__all__ = [
    "Answer",
    "Buffer",
    "FilesystemStore",
    "Folder",
    "FolderOfFiles",
    "Head",
    "LinkingStore",
    "Listing",
    "LocalListing",
    "Marked",
    "MarkingStore",
    "ObjectStore",
    "ParallelStore",
    "PosixStore",
    "RereadingStore",
    "Sight",
    "StagingStore",
    "Store",
    "Stored",
    "Upload",
    "Version",
    "is_local",
    "is_marking",
    "is_remote",
    "open_folder",
    "staging",
]


def open_folder(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Folder:
    """The folder at a path or URL, which need not exist; URLs are read as fsspec reads them.

    Local paths and ``file://`` are a `PosixStore`; S3, Google Cloud Storage and Azure an `ObjectStore`, or a
    `FilesystemStore` where obstore is not installed; everything else that fsspec knows a `FilesystemStore`.
    ``storage_options`` are those of the scheme's fsspec client (for local paths: of `PosixStore`), ``client``, which is
    ``"obstore"`` or ``"fsspec"`` and says which of the two it is to be, and ``in_flight_nbytes`` (64 MiB), which remote stores
    may have on their way at once in each direction, of all files together.

    Raises:
        ValueError: there is no store for the URL's scheme; or a path object has damaged the URL.
        TypeError: the store has no such option.
        MissingDependencyError: the client that was asked for is not installed.
    """
    text, options = os.fspath(url), dict(storage_options or {})
    scheme, _ = split_protocol(text)
    if not is_remote(text):
        first = text.partition(":/")[0]
        if first in known_implementations and first not in ("file", "local", text):
            clouds.split(text)  # "s3:/bucket": says what has happened to it
        return Folder(_local(strip_protocol(text), options))
    client = options.pop("client", None)
    if client not in (None, "obstore", "fsspec"):
        raise ValueError(f"client={client!r} is neither 'obstore' nor 'fsspec'")
    if scheme in clouds.SCHEMES:
        with suppress(OSError):  # told when it is needed
            fsspecs.start()
    if scheme in clouds.SCHEMES and client != "fsspec" and (client == "obstore" or clouds.is_installed("obstore")):
        return Folder(ObjectStore(text, **options))
    if scheme not in available_protocols() or "::" in text:
        raise ValueError(f"no store for {scheme!r} URLs (supported: local paths, file://, local://, and what fsspec knows)")
    return Folder(FilesystemStore(text, **options))


def _local(path: str, options: Mapping[str, Any]) -> PosixStore:
    known = inspect.signature(PosixStore).parameters.keys() - {"root"}
    if unknown := options.keys() - known:
        text = f"unknown storage_options for a local folder: {', '.join(sorted(unknown))}"
        raise TypeError(f"{text} (there are {', '.join(sorted(known))})")
    return PosixStore(path, **options)


def is_remote(url: str) -> bool:
    """Whether a URL means another storage than this machine's files."""
    return split_protocol(url)[0] not in (None, "file", "local")
