"""Every store there is, by name: how to make an empty one. Those of the clouds need a server, which a fixture starts."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from services import S3, Azure, Gcs, Moto, Service, ServiceMissing
from stores import MemoryStore

from ckptmgr.storage import FilesystemStore, PosixStore, Store, open_folder

CLOUDS = {
    "s3": ("s3", "s3://test-bucket"),
    "gcs": ("gcs", "gs://test-bucket"),
    "azure": ("azure", "az://test-container"),
}
LOCAL: dict[str, Callable[[Path], Store]] = {
    "posix": lambda folder: PosixStore(folder / "run"),
    "memory": lambda _: MemoryStore(),
    "fsspec-local": lambda folder: FilesystemStore(f"file://{folder}/run"),
    "fsspec-memory": lambda _: open_folder(f"memory://{secrets.token_hex(4)}/run").store,
}
REMOTE = [*CLOUDS, *(f"{cloud}-fsspec" for cloud in CLOUDS)]
WEAK = ["moto", "moto-fsspec"]  # behind a proxy that takes the conditions out
STORES = [*LOCAL, *(pytest.param(name, marks=pytest.mark.cloud) for name in [*REMOTE, *WEAK])]


def running(service: Service) -> Iterator[Service]:
    """The service while a session lasts; skips tests where its program cannot be had."""
    try:
        service.__enter__()
    except ServiceMissing as missing:
        pytest.skip(str(missing))
    yield service
    service.stop()


def options(server: Service, endpoint: str | None = None) -> dict[str, Any]:
    """The storage options of a server's bucket, or of a proxy in front of it."""
    assert isinstance(server, S3 | Gcs | Azure | Moto)
    return server.options(endpoint)


def place(name: str, request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """A new URL and the storage options of a remote store; starts its server."""
    cloud, _, client = name.partition("-")
    server, bucket = (f"{cloud}_server", CLOUDS[cloud][1]) if cloud in CLOUDS else ("moto_server", "s3://test-bucket")
    made = options(request.getfixturevalue(server), None if cloud in CLOUDS else request.getfixturevalue("careless").endpoint)
    return f"{bucket}/{secrets.token_hex(4)}/run", {**made, "client": client or "obstore"}


def empty_store(name: str, request: pytest.FixtureRequest, folder: Path) -> Store:
    """The store of that name."""
    return LOCAL[name](folder) if name in LOCAL else open_folder(*place(name, request)).store
