"""Where a bucket is and how to get in: from a URL and the storage options that s3fs, gcsfs and adlfs take, for obstore.

Whoever has used those changes nothing. Options that only tune their caches mean nothing here and are let go; unknown ones
are a TypeError. Nothing is asked of any server, and no package beyond the standard library is needed, until a client is made.
"""

import importlib
import importlib.util
import json
import os
import re
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ckptmgr.errors import MissingDependencyError

_Options = dict[str, Any]

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0
_NO_RETRIES = {"max_retries": 0, "retry_timeout": timedelta(minutes=1)}
TIMEOUT_S = 300  # of a whole request, a part of an upload too
_TIMEOUTS = {"connect_timeout": "10s", "timeout": f"{TIMEOUT_S}s"}
_REFRESH = timedelta(minutes=10)  # a credential is asked for again; who gave it renews it when it must

_CONNECTION = "AZURE_STORAGE_CONNECTION_STRING"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ENDPOINT = re.compile(r"https?://[^\s/]\S*")

# Taken by every fsspec file system, or by one of these three, for caches, instances and event loops that are not used here.
_WITHOUT_MEANING = {
    *("use_listings_cache", "listings_expiry_time", "max_paths", "skip_instance_cache", "asynchronous", "loop", "batch_size"),
    *("default_block_size", "default_fill_cache", "default_cache_type", "version_aware", "cache_regions", "max_concurrency"),
    *("fixed_upload_size", "local_expiry_check", "access", "block_size", "blocksize", "consistency", "cache_timeout", "project"),
    *("secure_serialize", "check_connection", "requests_timeout", "default_location", "assume_container_exists", "timeout"),
    *("connection_timeout", "read_timeout", "socket_timeout", "location_mode"),
}


class Retries(NamedTuple):
    """How often a request is made again at most, and until how many seconds after it was first made.

    Storage options ``retries`` and ``retry_timeout_s``.
    """

    most: int = 10
    seconds: float = 120.0

    def longest_pause_s(self, number: int) -> float:
        """The longest pause before try ``number`` (from 0) is made again."""
        return float(min(_FIRST_PAUSE_S * 2 ** min(number, 30), _LONGEST_PAUSE_S))

    def of_client(self) -> _Options:
        """The same for obstore, of each request that it makes for an upload."""
        backoff = {
            "init_backoff": timedelta(seconds=_FIRST_PAUSE_S),
            "max_backoff": timedelta(seconds=_LONGEST_PAUSE_S),
            "base": 2,
        }
        return {"max_retries": self.most, "retry_timeout": timedelta(seconds=self.seconds), "backoff": backoff}


def take_retries(options: _Options) -> Retries:
    """The retries that these storage options ask for, which are taken out.

    Raises:
        ValueError: they are no numbers of 0 and more.
    """
    default = Retries()
    most, seconds = options.pop("retries", None), options.pop("retry_timeout_s", None)
    made = Retries(default.most if most is None else most, default.seconds if seconds is None else seconds)
    if not isinstance(made.most, int) or not isinstance(made.seconds, int | float) or not (made.most >= 0 <= made.seconds):
        raise ValueError(f"retries and retry_timeout_s are numbers of 0 and more, not {made.most!r} and {made.seconds!r}")
    return made


class Place(NamedTuple):
    """The parts of a URL: ``prefix`` is empty or ends in ``/``."""

    scheme: str
    bucket: str
    prefix: str
    account: str = ""  # of Azure, where the URL names it


@dataclass(frozen=True)
class Cloud:
    """A bucket, and what obstore needs to open it."""

    place: Place
    kind: str  # the class in obstore.store
    endpoint: str  # the server's URL, which needs no credentials to tell the time
    is_vendor: bool  # Amazon's, Google's or Microsoft's own: it honours conditions
    config: Mapping[str, Any] = field(repr=False)  # secrets
    provider: Callable[[], Any] = field(default=lambda: None, repr=False)  # makes a credential provider, or None
    tls: Mapping[str, Any] = field(default_factory=dict)  # whom to trust
    retries: Retries = field(default_factory=Retries)

    def tls_context(self) -> ssl.SSLContext:
        """Whom to trust, for Python's own client."""
        context = ssl.create_default_context()
        if certificate := self.tls.get("root_certificate"):
            context.load_verify_locations(cadata=certificate.decode())
        if self.tls.get("allow_invalid_certificates"):
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    def client(self, *, is_once: bool = False, has_checksums: bool = True) -> Any:
        """A new client; with ``is_once`` one that sends each request once, without ``has_checksums`` one that sends none."""
        config = {name: value for name, value in self.config.items() if has_checksums or name != "checksum_algorithm"}
        return getattr(module("obstore.store"), self.kind)(
            self.place.bucket,
            config=config,
            credential_provider=self.provider(),
            client_options={**_TIMEOUTS, **self.tls, "allow_http": self.endpoint.startswith("http:")},
            retry_config=_NO_RETRIES if is_once else self.retries.of_client(),
        )


def split(url: str) -> Place:
    """The parts of a URL of an object store.

    Raises:
        ValueError: it names no bucket; or a path object has taken one of its slashes; or Azure would read it as another one.
    """
    scheme, colon, rest = url.partition(":")
    if not colon or not rest.startswith("//"):
        fixed = f"{scheme}://{rest.lstrip('/')}"
        raise ValueError(f"{url!r} is no URL: pathlib takes a slash out of them; give {fixed!r} as a string")
    bucket, _, path = rest[2:].partition("/")
    bucket, _, host = bucket.partition("@")
    if not bucket:
        raise ValueError(f"{url!r} names no bucket: {scheme}://bucket/path")
    if "\\" in path and scheme not in ("s3", "s3a", "gs", "gcs"):
        raise ValueError(f"{url!r}: Azure takes a backslash for a slash; give {url.replace(chr(92), '/')!r}")
    prefix = path.strip("/")
    return Place(scheme, bucket, f"{prefix}/" if prefix else "", host.partition(".")[0])


def cloud(url: str, options: Mapping[str, Any]) -> Cloud:
    """The bucket of a URL, with options as the fsspec client of its scheme takes them.

    Raises:
        ValueError: from `split`, or an option that cannot be understood, or that lacks another.
        TypeError: an option that is unknown, or that only the fsspec client can honour.
    """
    place = split(url)
    names = place.prefix.split("/")[:-1]
    if not all(map(is_name, names)):
        plain = "/".join([place.bucket, *filter(is_name, names)])
        text = f"{url!r} has an empty name, '.', '..' or a control character in its path, which obstore cannot ask for"
        raise ValueError(f"{text}: give {f'{place.scheme}://{plain}'!r}, for example, or storage_options={{'client': 'fsspec'}}")
    given = {name: value for name, value in options.items() if value is not None and name not in _WITHOUT_MEANING}
    retries = take_retries(given)
    made = replace(_MAKERS[place.scheme](place, given), retries=retries)
    if not _ENDPOINT.fullmatch(made.endpoint):  # obstore would panic
        raise ValueError(f"the endpoint {made.endpoint!r} is no URL: http://host:port or https://host")
    if given:
        text = f"unknown storage_options for {place.scheme}://: {', '.join(sorted(given))}"
        raise TypeError(f"{text} (with client='fsspec' the fsspec client gets them)")
    return made


def is_name(name: str) -> bool:
    """Whether obstore can ask for an object or folder of that name."""
    return name not in ("", ".", "..") and not _CONTROL.search(name)


def module(name: str) -> Any:
    """An optional module. Raises `MissingDependencyError` if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise MissingDependencyError(f"{package} is needed and cannot be imported ({error}): pip install {package}") from error


def is_installed(name: str) -> bool:
    """Whether an optional package can be imported."""
    return importlib.util.find_spec(name) is not None


def _s3(place: Place, given: _Options) -> Cloud:
    client: _Options = dict(given.pop("client_kwargs", {}))
    config_s3 = given.pop("config_kwargs", {}).get("s3") or {}
    style = config_s3.get("addressing_style", "auto")
    environ = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    endpoint = _first(given, client, "endpoint_url") or environ
    key = _first(given, client, "key", "username", "aws_access_key_id")
    secret = _first(given, client, "secret", "password", "aws_secret_access_key")
    token = _first(given, client, "token", "aws_session_token")
    if bool(key) != bool(secret):
        raise ValueError("key and secret belong together: give both, or neither")
    is_anonymous, profile = given.pop("anon", False), given.pop("profile", None)
    is_told = bool(is_anonymous or key)
    session = None if is_told and endpoint else _botocore(profile)
    endpoint = endpoint or _configured_endpoint(session)
    has_tls = given.pop("use_ssl", True)
    is_tls = has_tls if endpoint is None else endpoint.startswith("https:")
    region = _first(given, client, "region", "region_name") or _region(session)
    tls = _trusted(client.pop("verify", None))
    if client:
        raise TypeError(f"unknown client_kwargs: {', '.join(sorted(client))} (with client='fsspec' s3fs gets them)")
    config = {
        "region": region,
        "endpoint": endpoint,
        "skip_signature": bool(is_anonymous),
        # TLS already protects the body, and hashing it would cost as much as all else. Inside this machine nobody is between.
        "unsigned_payload": not config_s3.get("payload_signing_enabled", not (is_tls or _is_here(endpoint or ""))),
        "virtual_hosted_style_request": style == "virtual" or (endpoint is None and "." not in place.bucket and style == "auto"),
        "request_payer": given.pop("requester_pays", None) or None,
        # The server compares it with what arrives, part by part, and it costs next to nothing.
        "checksum_algorithm": "CRC64NVME",
        **_additional(given.pop("s3_additional_kwargs", {})),
    }
    where = endpoint or f"https://s3.{region}.amazonaws.com"
    # Not in the config, where obstore would put what it finds in the environment beside them.
    keys = {"access_key_id": key, "secret_access_key": secret, "token": token, "expires_at": None}
    provider: Callable[[], Any] = (lambda: lambda: keys) if key else lambda: _aws_provider(None if is_told else session)
    return Cloud(place, "S3Store", where, endpoint is None, _set(config), provider, tls)


def _gcs(place: Place, given: _Options) -> Cloud:
    endpoint = given.pop("endpoint_url", None) or _emulator()
    where = (endpoint or "https://storage.googleapis.com").rstrip("/")
    token = given.pop("token", None)
    config: _Options = {"base_url": where if endpoint else None}
    provider: Callable[[], Any] = lambda: None  # noqa: E731
    if token == "anon":
        nobody = {"client_email": "", "private_key": "", "private_key_id": ""}
        config = {
            "service_account_key": json.dumps({**nobody, "gcs_base_url": where, "disable_oauth": True}),
            "skip_signature": True,
        }
    elif isinstance(token, Mapping) and token.get("type") == "service_account":
        config["service_account_key"] = json.dumps(dict(token))
    elif isinstance(token, str | os.PathLike) and os.path.exists(token):
        config["application_credentials"] = os.fspath(token)
    elif hasattr(token, "refresh"):  # of google.auth
        provider = lambda: module("obstore.auth.google").GoogleCredentialProvider(token)  # noqa: E731
    elif token not in (None, "google_default", "cloud"):
        kind = repr(token) if isinstance(token, str) else type(token).__name__
        known = "'anon', 'google_default', a file, a service account, a credential of google.auth"
        raise TypeError(f"token: {kind} is none of {known} (with client='fsspec' gcsfs gets it)")
    return Cloud(place, "GCSStore", where, endpoint is None, _set(config), provider)


def _emulator() -> str | None:
    """The server that the environment names as all clients of Google's take it: also without ``http://``."""
    host = os.environ.get("STORAGE_EMULATOR_HOST")
    if host in (None, "", "default"):
        return None
    return host if "://" in str(host) else f"http://{host}"


def _azure(place: Place, given: _Options) -> Cloud:
    text = given.pop("connection_string", None)
    parts = dict(part.split("=", 1) for part in (text or os.environ.get(_CONNECTION, "")).split(";") if "=" in part)
    named = _setting(given, "account_name")
    named = place.account or named
    account = named or parts.get("AccountName")
    if account != parts.get("AccountName", account) and not text:  # adlfs would take it all the same, beside obstore
        theirs = parts["AccountName"]
        raise ValueError(
            f"the environment's {_CONNECTION} is of the account {theirs!r}, and not of {account!r}: take it out there"
        )
    if not account:
        raise ValueError(f"{place.scheme}:// needs storage_options={{'account_name': ...}} or a connection_string")
    key = _setting(given, "account_key") or parts.get("AccountKey")
    sas = _setting(given, "sas_token") or parts.get("SharedAccessSignature")
    credential = given.pop("credential", None)
    if isinstance(credential, str):
        key, sas = (key, credential) if "sig=" in credential else (credential, sas)
    who = {name: _setting(given, name) for name in ("client_id", "client_secret", "tenant_id")}
    host = given.pop("account_host", None) or f"{account}.blob.{parts.get('EndpointSuffix', 'core.windows.net')}"
    endpoint = parts.get("BlobEndpoint", "").rstrip("/") or f"https://{host}"
    is_anonymous = given.pop("anon", None)
    is_nobody = not (key or sas or all(who.values()) or (credential is not None and not isinstance(credential, str)))
    config = {
        "account_name": account,
        "account_key": key,
        "sas_key": sas and sas.lstrip("?"),
        "endpoint": endpoint,
        "skip_signature": (is_nobody and is_anonymous is not False) or None,  # as adlfs: with nothing given, as nobody
        **who,
    }
    needs_provider = is_nobody and is_anonymous is False
    is_vendor = urlsplit(endpoint).hostname is not None and str(urlsplit(endpoint).hostname).endswith(".windows.net")
    provider = (lambda: module("obstore.auth.azure").AzureCredentialProvider()) if needs_provider else lambda: None
    if credential is not None and not isinstance(credential, str):
        raise TypeError("credential: only a key or a SAS token as text (with client='fsspec' adlfs gets the object)")
    return Cloud(place, "AzureStore", endpoint, is_vendor, _set(config), provider)


_MAKERS: dict[str, Callable[[Place, _Options], Cloud]] = {
    **dict.fromkeys(("s3", "s3a"), _s3),
    **dict.fromkeys(("gs", "gcs"), _gcs),
    **dict.fromkeys(("az", "abfs", "abfss"), _azure),
}
SCHEMES = frozenset(_MAKERS)


def _first(given: _Options, client: _Options, *names: str) -> Any:
    """The first of the values under these names, all of which are taken out."""
    values = [place.pop(name, None) for name in names for place in (given, client)]
    return next(filter(None, values), None)


def _setting(given: _Options, name: str) -> str | None:
    return given.pop(name, None) or os.environ.get(f"AZURE_STORAGE_{name.upper()}")


def _set(config: _Options) -> _Options:
    return {name: value for name, value in config.items() if value is not None}


def _additional(given: Mapping[str, Any]) -> _Options:
    known = {"ServerSideEncryption": "server_side_encryption", "SSEKMSKeyId": "sse_kms_key_id"}
    known["ChecksumAlgorithm"] = "checksum_algorithm"
    if unknown := given.keys() - known:
        raise TypeError(f"unknown s3_additional_kwargs: {', '.join(sorted(unknown))} (with client='fsspec' s3fs gets them)")
    return {known[name]: value for name, value in given.items()}


def _trusted(verify: Any) -> _Options:
    """What botocore's ``verify`` means: False, or the file of a certificate."""
    if verify in (None, True):
        return {}
    return {"root_certificate": Path(verify).read_bytes()} if verify else {"allow_invalid_certificates": True}


def _is_here(endpoint: str) -> bool:
    """Whether a server is on this machine, by its address."""
    host = urlsplit(endpoint).hostname or ""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def _botocore(profile: str | None) -> Any:
    """A session that knows the user's profiles and logins, or None: then obstore looks at the environment by itself."""
    if not is_installed("botocore"):
        if profile:
            raise MissingDependencyError("profiles of AWS are read by botocore: pip install 'ckptmgr[s3]'")
        return None
    return module("botocore.session").Session(profile=profile)


def _configured_endpoint(session: Any) -> str | None:
    """The server that the user's profile names, for S3 or for all services: only botocore reads that, obstore does not."""
    if session is None or session.get_config_variable("ignore_configured_endpoint_urls"):
        return None
    profile = session.get_scoped_config()
    services = session.full_config.get("services", {}).get(profile.get("services"), {})
    found: str | None = services.get("s3", {}).get("endpoint_url") or profile.get("endpoint_url")
    return found


def _region(session: Any) -> str:
    here = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return here or (session and session.get_config_variable("region")) or "us-east-1"


def _aws_provider(session: Any) -> Callable[[], Mapping[str, Any]] | None:
    credentials = session and session.get_credentials()
    if credentials is None:
        return None

    def ask() -> Mapping[str, Any]:
        now = credentials.get_frozen_credentials()
        named = {"access_key_id": now.access_key, "secret_access_key": now.secret_key, "token": now.token}
        return {**named, "expires_at": datetime.now(UTC) + _REFRESH}

    return ask
