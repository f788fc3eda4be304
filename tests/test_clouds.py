"""The storage options of s3fs, gcsfs and adlfs, as obstore is told them. Nothing here asks any server."""

import json

import pytest
from services import AZURE_KEY

from ckptmgr import MissingDependencyError
from ckptmgr.storage import clouds
from ckptmgr.storage.clouds import cloud, split
from ckptmgr.storage.sending import part_nbytes

KEYS = {"key": "k", "secret": "s"}
SETTINGS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "STORAGE_EMULATOR_HOST")


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://b", ("s3", "b", "", "")),
        ("s3://b/", ("s3", "b", "", "")),
        ("gs://b/x/y/", ("gs", "b", "x/y/", "")),
        ("abfs://box@me.dfs.core.windows.net/x", ("abfs", "box", "x/", "me")),
    ],
)
def test_the_parts_of_a_url(url: str, place: tuple[str, ...]) -> None:
    assert tuple(split(url)) == place


@pytest.mark.parametrize("path", ["a//b", "a/./b", "a/../b", "a/b\n", "a\x7f"])
@pytest.mark.parametrize("url", ["s3://b", "gs://b", "az://b"])
def test_a_path_that_obstore_cannot_ask_for_is_refused_with_a_way_out(url: str, path: str) -> None:
    with pytest.raises(ValueError, match=r"empty name, '\.', '\.\.' or a control character.*client"):
        cloud(f"{url}/{path}", {**KEYS} if url == "s3://b" else {"account_name": "me"} if url == "az://b" else {"token": "anon"})


def test_a_backslash_is_no_name_at_azure() -> None:
    with pytest.raises(ValueError, match=r"takes a backslash for a slash; give 'az://box/team/run'"):
        split("az://box/team\\run")
    assert split("s3://box/team\\run").prefix == "team\\run/"


def test_keys_of_s3() -> None:
    made = cloud("s3://b/x", {**KEYS, "token": "t", "client_kwargs": {"region_name": "eu-west-1"}})

    assert made.config == {
        "region": "eu-west-1",
        "skip_signature": False,
        "unsigned_payload": True,
        "virtual_hosted_style_request": True,
        "checksum_algorithm": "CRC64NVME",
    }
    assert made.provider()() == {"access_key_id": "k", "secret_access_key": "s", "token": "t", "expires_at": None}
    assert (made.endpoint, made.is_vendor) == ("https://s3.eu-west-1.amazonaws.com", True)
    assert "secret" not in repr(made)


@pytest.mark.parametrize(
    "options",
    [
        {"username": "k", "password": "s"},
        {"client_kwargs": {"aws_access_key_id": "k", "aws_secret_access_key": "s"}},
    ],
)
def test_other_names_for_the_keys_of_s3(options: dict) -> None:
    made = cloud("s3://b", options)
    keys = made.provider()()

    assert (keys["access_key_id"], keys["secret_access_key"], made.config["region"]) == ("k", "s", "us-east-1")


def test_whom_s3_trusts(tmp_path) -> None:
    (tmp_path / "ca.pem").write_bytes(b"pem")

    def tls(verify: object) -> dict:
        return dict(cloud("s3://b", {**KEYS, "client_kwargs": {"verify": verify}}).tls)

    assert tls(True) == tls(None) == {}
    assert tls(False) == {"allow_invalid_certificates": True}
    assert tls(str(tmp_path / "ca.pem")) == {"root_certificate": b"pem"}


@pytest.mark.parametrize("options", [{"endpoint_url": "http://h:1"}, {"client_kwargs": {"endpoint_url": "http://h:1"}}])
def test_an_endpoint_is_tried_first_and_signed_where_there_is_no_tls(options: dict) -> None:
    made = cloud("s3://b", {**KEYS, **options})

    assert (made.endpoint, made.is_vendor) == ("http://h:1", False)
    assert (made.config["endpoint"], made.config["unsigned_payload"]) == ("http://h:1", False)
    assert made.config["virtual_hosted_style_request"] is False


@pytest.mark.parametrize(
    ("endpoint", "is_unsigned"),
    [
        ("https://h", True),
        ("http://h", False),
        ("http://10.0.0.1:1", False),
        ("http://127.0.0.1:1", True),
        ("http://[::1]:1", True),
        ("http://localhost:1", True),
        ("http://localhost.example.com", False),
    ],
)
def test_bodies_are_signed_unless_tls_or_this_machine_protects_them(endpoint: str, is_unsigned: bool) -> None:
    def unsigned(**config: object) -> bool:
        return cloud("s3://b", {**KEYS, "endpoint_url": endpoint, **config}).config["unsigned_payload"]

    assert unsigned() is is_unsigned
    assert unsigned(config_kwargs={"s3": {"payload_signing_enabled": True}}) is False
    assert unsigned(config_kwargs={"s3": {"payload_signing_enabled": False}}) is True


def test_what_else_is_said_of_objects() -> None:
    said = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "id", "ChecksumAlgorithm": "SHA256"}

    config = cloud("s3://b", {**KEYS, "s3_additional_kwargs": said}).config

    found = [config[name] for name in ("server_side_encryption", "sse_kms_key_id", "checksum_algorithm")]
    assert found == ["aws:kms", "id", "SHA256"]


def test_an_endpoint_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://r2")

    made = cloud("s3://b", {**KEYS, "config_kwargs": {"s3": {"addressing_style": "virtual"}}})

    assert (made.endpoint, made.is_vendor, made.config["unsigned_payload"]) == ("https://r2", False, True)
    assert made.config["virtual_hosted_style_request"] is True


@pytest.mark.parametrize(
    "lines",
    [
        ["[profile lab]", "endpoint_url = http://lab:1"],
        [
            "[profile lab]",
            "endpoint_url = http://all:1",
            "services = mine",
            "[services mine]",
            "s3 =",
            "  endpoint_url = http://lab:1",
        ],
    ],
)
@pytest.mark.parametrize("options", [{}, {"key": "k", "secret": "s"}, {"anon": True}])
def test_an_endpoint_of_the_users_profile(
    monkeypatch: pytest.MonkeyPatch, tmp_path, options: dict[str, object], lines: list[str]
) -> None:
    (tmp_path / "config").write_text("\n".join([*lines, ""]))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))

    def endpoint(**more: object) -> str:
        return cloud("s3://b", {**options, "profile": "lab", **more}).endpoint

    assert endpoint() == "http://lab:1"
    assert endpoint(endpoint_url="http://given:1") == "http://given:1"
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert endpoint() == "https://s3.us-east-1.amazonaws.com"


def test_an_endpoint_with_use_ssl() -> None:
    assert cloud("s3://b", {**KEYS, "endpoint_url": "http://h:1", "use_ssl": False}).endpoint == "http://h:1"


@pytest.mark.parametrize("endpoint", ["localhost:9000", "127.0.0.1:9000", "http://", "http://h:1\n", "h", "ftp://h"])
def test_an_endpoint_that_is_no_url_is_refused(endpoint: str) -> None:
    for url, options in (("s3://b", KEYS), ("gs://b", {"token": "anon"})):
        with pytest.raises(ValueError, match=r"no URL: http://host:port"):
            cloud(url, {**options, "endpoint_url": endpoint})
    with pytest.raises(ValueError, match=r"no URL: http://host:port"):
        cloud("az://c", {"connection_string": f"AccountName=me;BlobEndpoint={endpoint}"})


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [("localhost:9", "http://localhost:9"), ("https://h", "https://h"), ("default", "https://storage.googleapis.com")],
)
def test_an_emulator_of_google_from_the_environment(monkeypatch: pytest.MonkeyPatch, host: str, endpoint: str) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)

    assert cloud("gs://b", {"token": "anon"}).endpoint == endpoint


@pytest.mark.parametrize("half", [{"key": "k"}, {"secret": "s"}, {"client_kwargs": {"aws_access_key_id": "k"}}])
def test_a_key_without_its_secret_is_refused(half: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="key and secret belong together"):
        cloud("s3://b", half)


def test_nobody_at_s3() -> None:
    config = cloud("s3://b", {"anon": True, "region": "eu-north-1"}).config

    assert (config["skip_signature"], config["region"]) == (True, "eu-north-1")


def test_a_profile_of_aws(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "config").write_text("[profile lab]\nregion = eu-south-1\n")
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = theirs\naws_secret_access_key = hidden\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))

    made = cloud("s3://b", {"profile": "lab"})
    credential = made.provider()()

    assert made.config["region"] == "eu-south-1"
    assert (credential["access_key_id"], credential["secret_access_key"], credential["token"]) == ("theirs", "hidden", None)


def test_a_profile_needs_botocore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clouds, "is_installed", lambda _: False)

    with pytest.raises(MissingDependencyError, match=r"pip install 'ckptmgr\[s3\]'"):
        cloud("s3://b", {"profile": "lab"})


def test_tokens_of_google(tmp_path) -> None:
    file = tmp_path / "account.json"
    file.write_text("{}")

    anonymous = json.loads(cloud("gs://b", {"token": "anon", "endpoint_url": "http://h:1"}).config["service_account_key"])
    account = cloud("gs://b", {"token": {"type": "service_account", "client_email": "me"}, "project": "p"})

    assert (anonymous["gcs_base_url"], anonymous["disable_oauth"]) == ("http://h:1", True)
    assert json.loads(account.config["service_account_key"])["client_email"] == "me"
    assert (account.endpoint, account.is_vendor) == ("https://storage.googleapis.com", True)
    assert cloud("gs://b", {"token": str(file)}).config == {"application_credentials": str(file)}
    assert cloud("gs://b", {}).config == {}
    with pytest.raises(TypeError, match="'browser' is none of"):
        cloud("gs://b", {"token": "browser"})


def test_a_connection_string_of_azure() -> None:
    text = f"DefaultEndpointsProtocol=http;AccountName=me;AccountKey={AZURE_KEY};BlobEndpoint=http://127.0.0.1:1/me;"

    made = cloud("az://box/x", {"connection_string": text})

    assert made.config == {"account_name": "me", "account_key": AZURE_KEY, "endpoint": "http://127.0.0.1:1/me"}
    assert not made.is_vendor


def test_a_connection_string_of_another_account_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "AccountName={};AccountKey=aGk=;EndpointSuffix=core.windows.net"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text.format("theirs"))

    for url, options in (("az://box", {"account_name": "me"}), ("abfs://box@me.dfs.core.windows.net/x", {})):
        with pytest.raises(ValueError, match=r"AZURE_STORAGE_CONNECTION_STRING is of the account 'theirs', and not of 'me'"):
            cloud(url, {**options, "account_key": "bWU="})
        assert cloud(url, {**options, "connection_string": text.format("me")}).config["account_name"] == "me"
    assert cloud("az://box", {"account_name": "theirs"}).config["account_key"] == "aGk="
    assert cloud("az://box", {}).config["account_name"] == "theirs"


def test_accounts_of_azure() -> None:
    made = cloud("abfs://box@me.dfs.core.windows.net/x", {"account_key": "aGk="})
    both = cloud("abfs://box@me.dfs.core.windows.net/x", {"account_name": "me", "account_key": "aGk="})
    sas = cloud("az://box", {"account_name": "me", "sas_token": "?sv=1&sig=2"})
    principal = {"client_id": "i", "client_secret": "s", "tenant_id": "t"}

    assert made.config == {"account_name": "me", "account_key": "aGk=", "endpoint": "https://me.blob.core.windows.net"}
    assert made.is_vendor
    assert both.config == made.config
    assert sas.config["sas_key"] == "sv=1&sig=2"
    assert cloud("az://box", {"account_name": "me", "credential": "sv=1&sig=2"}).config["sas_key"] == "sv=1&sig=2"
    assert cloud("az://box", {"account_name": "me", **principal}).config.items() >= principal.items()
    assert cloud("az://box", {"account_name": "me"}).config["skip_signature"] is True
    with pytest.raises(ValueError, match="account_name"):
        cloud("az://box", {})


@pytest.mark.parametrize(
    ("url", "options", "name"),
    [
        ("s3://b", {"acces_key": 1}, "acces_key"),
        ("s3://b", {"client_kwargs": {"aws_key": 1}}, "aws_key"),
        ("s3://b", {"s3_additional_kwargs": {"ACL": 1}}, "ACL"),
        ("gs://b", {"key": 1}, "key"),
        ("az://b", {"account_name": "me", "key": 1}, "key"),
    ],
)
def test_an_unknown_option_is_named_with_the_way_out(url: str, options: dict, name: str) -> None:
    with pytest.raises(TypeError, match=f"unknown .*: {name} .*client='fsspec'"):
        cloud(url, {**KEYS, **options} if url == "s3://b" else options)


def test_options_about_caches_mean_nothing() -> None:
    made = cloud("s3://b", {**KEYS, "use_listings_cache": True, "default_block_size": 1, "max_concurrency": 4, "profile": None})

    assert made.config == cloud("s3://b", KEYS).config


@pytest.mark.parametrize(
    ("nbytes", "part"),
    [(0, 8 << 20), (17 << 20, 8 << 20), (10_000 << 23, 8 << 20), ((10_000 << 23) + 1, 9 << 20), (5 << 40, 525 << 20)],
)
def test_parts_are_as_large_as_they_must_be(nbytes: int, part: int) -> None:
    assert part_nbytes(nbytes) == part
    assert part * 10_000 >= nbytes


@pytest.mark.parametrize(("in_flight", "part"), [(1, 5 << 20), (48 << 20, 6 << 20), (64 << 20, 8 << 20), (1 << 40, 16 << 20)])
def test_parts_are_smaller_where_little_may_be_on_its_way(in_flight: int, part: int) -> None:
    assert part_nbytes(1 << 30, in_flight) == part


def test_what_no_store_takes_is_refused_before_the_first_byte() -> None:
    with pytest.raises(OSError, match="more than an object store takes"):
        part_nbytes(60 << 40)
