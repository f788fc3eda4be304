"""Where files live: the `Store` protocol, a `Folder` in a store, and the stores there are."""

import os
from collections.abc import Mapping
from typing import Any

from fsspec.core import split_protocol, strip_protocol

from ckptmgr.storage.elsewhere import FolderOfFiles
from ckptmgr.storage.posix import PosixStore
from ckptmgr.storage.staging import staging
from ckptmgr.storage.store import (
    Answer,
    Buffer,
    Folder,
    Head,
    LinkingStore,
    Listing,
    LocalStore,
    RereadingStore,
    Sight,
    StagingStore,
    Store,
    Stored,
    Upload,
    Version,
)

__all__ = [
    "Answer",
    "Buffer",
    "Folder",
    "FolderOfFiles",
    "Head",
    "LinkingStore",
    "Listing",
    "LocalStore",
    "PosixStore",
    "RereadingStore",
    "Sight",
    "StagingStore",
    "Store",
    "Stored",
    "Upload",
    "Version",
    "open_folder",
    "staging",
]


def open_folder(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Folder:
    """The folder at a path or URL, which need not exist; URLs are read as fsspec reads them.

    ``storage_options`` are the store's own arguments: for local paths and ``file://`` those of `PosixStore`.

    Raises:
        ValueError: there is no store for the URL's scheme.
        TypeError: the store has no such option.
    """
    scheme, _ = split_protocol(os.fspath(url))
    if scheme not in (None, "file", "local"):
        raise ValueError(f"no store for {scheme!r} URLs (supported: local paths, file://, local://)")
    return Folder(PosixStore(strip_protocol(os.fspath(url)), **(storage_options or {})))
