"""Servers with a certificate of their own: whom storage options say to trust is trusted for all requests."""

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from webserver import served

from ckptmgr.storage import ObjectStore

KEYS = {"key": "k", "secret": "s", "region": "us-east-1"}
AHEAD = datetime(2040, 1, 1, tzinfo=UTC)


class Server(NamedTuple):
    endpoint: str
    certificate: Path


class Ahead(BaseHTTPRequestHandler):
    """Its clock is years ahead, and it has nothing."""

    def log_message(self, *_: object) -> None:
        pass

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(AHEAD.timestamp())

    def answer(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = answer  # noqa: N815


@pytest.fixture
def private(tmp_path: Path) -> Iterator[Server]:
    """A server at ``localhost`` that shows a certificate which nobody else trusts."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(datetime.now(UTC) - timedelta(1)).not_valid_after(AHEAD)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=True)
    made = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "ca.pem").write_bytes(made)
    (tmp_path / "own.pem").write_bytes(key.private_bytes(*form) + made)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "own.pem")
    with served(Ahead, context) as port:
        yield Server(f"https://localhost:{port}", tmp_path / "ca.pem")


@pytest.mark.parametrize("verify", ["its", False])
def test_the_clock_of_a_private_server_is_asked(private: Server, verify: Any) -> None:
    trust = {"verify": str(private.certificate) if verify else False}

    store = ObjectStore("s3://b/run", **KEYS, endpoint_url=private.endpoint, client_kwargs=trust)

    assert store.now() == AHEAD.timestamp()


def test_a_server_that_is_not_trusted_tells_no_time(private: Server) -> None:
    assert ObjectStore("s3://b/run", **KEYS, endpoint_url=private.endpoint).now() < AHEAD.timestamp()
