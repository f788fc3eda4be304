"""s3fs, gcsfs and adlfs below their fsspec face: conditional requests that are sent once, and the uploads that were left.

fsspec has no conditions, and the three repeat a request whose answer was lost, which then meets its own effect. So their own
clients are asked here. Paths are without the bucket. All credentials are theirs.
"""

import base64
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from errno import EACCES, EIO
from typing import Any, Protocol, TypeAlias
from urllib.parse import quote
from xml.etree import ElementTree

import fsspec

from ckptmgr.storage.clouds import Place, is_installed, module, take_retries
from ckptmgr.storage.store import Answer, Upload, Version

logger = logging.getLogger(__name__)
_Answered: TypeAlias = tuple[int, Mapping[str, str], bytes]  # status, headers, body

_TIMEOUT_S = 60.0
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"}


class Client(Protocol):
    """What the stores ask of the three."""

    fs: Any
    has_remove: bool
    errors: tuple[type[Exception], ...]  # of the client's own, which are no OSErrors

    def read(self, path: str) -> tuple[bytes, Version] | None:
        """A small object and its version, which are of one moment."""

    def send(self, path: str, data: bytes | None, version: Version | None) -> Answer:
        """One conditional request: ``data`` None removes, ``version`` None is for what is not there."""

    def checksum(self, path: str) -> int | None:
        """The crc32c of an object as the store has computed it, or None if it tells none."""

    def uploads(self, prefix: str) -> list[Upload]:
        """Unfinished uploads below a prefix."""

    def abort(self, upload: Upload) -> None:
        """Ends one; gone already is fine."""

    def discard(self, file: Any) -> None:
        """Ends the upload of a file that was opened for writing; it is never closed."""


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


class S3Client:
    """Through s3fs and the client of botocore within."""

    has_remove = False  # Amazon has had a conditional DELETE only for a while, others have none

    def __init__(self, place: Place, options: dict[str, Any]) -> None:
        if region := options.pop("region", None):
            options["client_kwargs"] = {"region_name": region, **(options.get("client_kwargs") or {})}
        self.fs = _filesystem("s3", options)
        config = dict(options.pop("config_kwargs", None) or {})
        config["retries"] = {"total_max_attempts": 1, "mode": "standard"}
        self._once = _filesystem("s3", {**options, "config_kwargs": config})
        self._bucket = place.bucket
        self._errors = module("botocore.exceptions")
        self.errors: tuple[type[Exception], ...] = (self._errors.ClientError, self._errors.BotoCoreError)

    def read(self, path: str) -> tuple[bytes, Version] | None:
        async def ask() -> tuple[bytes, Version]:
            await self.fs.set_session()
            client = await self.fs.get_s3(self._bucket)
            found = await client.get_object(Bucket=self._bucket, Key=path)
            return await found["Body"].read(), found["ETag"]

        return _unless_absent(self._told(self.fs, ask, path))

    def send(self, path: str, data: bytes | None, version: Version | None) -> Answer:
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}

        async def ask() -> object:
            await self._once.set_session()
            client = await self._once.get_s3(self._bucket)
            _send_once(await client._endpoint.http_session._get_session(None))
            return await client.put_object(Bucket=self._bucket, Key=path, Body=data, **condition)

        status, error = self._told(self._once, ask, path)
        return _answer(status, error, path, is_made_here=version is None)

    def checksum(self, path: str) -> int | None:
        return None

    def uploads(self, prefix: str) -> list[Upload]:
        found: list[Upload] = []
        more: dict[str, str] = {}
        while True:
            page = self.fs.call_s3("list_multipart_uploads", Bucket=self._bucket, Prefix=prefix, **more)
            found += [Upload(each["Key"], each["UploadId"], each["Initiated"].timestamp()) for each in page.get("Uploads", [])]
            if not page.get("IsTruncated"):
                return found
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def abort(self, upload: Upload) -> None:
        with suppress(FileNotFoundError):
            self.fs.call_s3("abort_multipart_upload", Bucket=self._bucket, Key=upload.key, UploadId=upload.id)

    def discard(self, file: Any) -> None:
        file.closed = True  # else it would be completed when it is collected
        file.discard()

    def _told(self, fs: Any, ask: Any, path: str) -> tuple[Any, BaseException | None]:
        """The status and the error of a request; its result and no error if there was none."""
        try:
            return _sync(fs.loop, ask), None
        except self._errors.ClientError as error:
            return error.response["ResponseMetadata"]["HTTPStatusCode"], error
        except self._errors.NoCredentialsError as error:
            raise PermissionError(EACCES, str(error), f"s3://{self._bucket}/{path}") from error
        except (self._errors.BotoCoreError, OSError) as error:
            return 0, error


class GcsClient:
    """Through gcsfs and its session: its own calls repeat requests."""

    has_remove = True

    def __init__(self, place: Place, options: dict[str, Any]) -> None:
        if options.get("endpoint_url"):
            # Else gcsfs asks, when it is imported, for Google's own gRPC service, which emulators do not have, and waits.
            os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        options.setdefault("project", "")
        self.fs = _filesystem("gs", options)
        self._bucket = place.bucket
        self.errors: tuple[type[Exception], ...] = (module("aiohttp").ClientError, module("gcsfs.retry").HttpError)
        self._lost = (*self.errors, OSError)

    def read(self, path: str) -> tuple[bytes, Version] | None:
        status, headers, body = self._ask("GET", self._object(path), {"alt": "media"})
        if status >= 400:
            return _unless_absent((status, OSError(EIO, f"status {status}", path)))
        return body, headers["x-goog-generation"]

    def send(self, path: str, data: bytes | None, version: Version | None) -> Answer:
        condition = {"ifGenerationMatch": version or "0"}
        try:
            if data is None:
                status, _, body = self._ask("DELETE", self._object(path), condition)
            else:
                url = f"{self.fs._location}/upload/storage/v1/b/{quote(self._bucket, safe='')}/o"
                status, _, body = self._ask("POST", url, {"uploadType": "media", "name": path, **condition}, data)
        except self._lost as error:
            return _answer(0, error, path)
        if status < 400:
            return Answer.OK
        return _answer(status, OSError(EIO, f"status {status}: {body[:200]!r}", path), path, is_made_here=version is None)

    def checksum(self, path: str) -> int | None:
        status, _, body = self._ask("GET", self._object(path), {"fields": "crc32c"})
        if status >= 400:
            raise OSError(EIO, f"status code: {status}", path)
        told = json.loads(body).get("crc32c")
        return None if told is None else int.from_bytes(base64.b64decode(told), "big")

    def uploads(self, prefix: str) -> list[Upload]:
        url = f"{self.fs._location}/{quote(self._bucket, safe='')}"
        status, _, body = self._ask("GET", url, {"uploads": "", "prefix": prefix})
        if status >= 400:
            raise OSError(EIO, f"uploads cannot be listed: status {status}", url)
        root = ElementTree.fromstring(re.sub(rb'\sxmlns="[^"]*"', b"", body, count=1))
        entries = [{child.tag: child.text or "" for child in entry} for entry in root.iter("Upload")]
        return [Upload(each["Key"], each["UploadId"], datetime.fromisoformat(each["Initiated"]).timestamp()) for each in entries]

    def abort(self, upload: Upload) -> None:
        url = f"{self.fs._location}/{quote(self._bucket, safe='')}/{quote(upload.key, safe='')}"
        status, _, _ = self._ask("DELETE", url, {"uploadId": upload.id})
        if status >= 400 and status != 404:
            raise OSError(EIO, f"the upload cannot be ended: status {status}", url)

    def discard(self, file: Any) -> None:
        file.closed = True
        if file.location is not None:
            self._ask("DELETE", file.location, {})

    def _object(self, path: str) -> str:
        return f"{self.fs.base}b/{quote(self._bucket, safe='')}/o/{quote(path, safe='')}"

    def _ask(self, method: str, url: str, query: Mapping[str, Any], data: bytes | None = None) -> _Answered:
        fs = self.fs
        yarl = module("yarl")

        async def ask() -> _Answered:
            await fs._set_session()
            _send_once(fs.session)
            # The path is quoted already, and its slashes must stay as they are.
            where = yarl.URL(url, encoded=True).update_query(fs._get_params(dict(query)))
            async with fs.session.request(method, where, headers=fs._get_headers(None), data=data) as answer:
                return answer.status, answer.headers, await answer.read()

        done: _Answered = _sync(fs.loop, ask)
        return done


class AzureClient:
    """Through adlfs and Microsoft's client within."""

    has_remove = True

    def __init__(self, place: Place, options: dict[str, Any]) -> None:
        if place.account:
            options.setdefault("account_name", place.account)
        self.fs = _filesystem("az", options)
        self._bucket = place.bucket
        self._errors = module("azure.core.exceptions")
        self.errors: tuple[type[Exception], ...] = (self._errors.AzureError,)
        self._match = module("azure.core").MatchConditions

    def read(self, path: str) -> tuple[bytes, Version] | None:
        async def ask() -> tuple[bytes, Version]:
            async with self._blob(path) as blob:
                found = await blob.download_blob()
                return await found.readall(), found.properties.etag

        return _unless_absent(self._told(ask))

    def send(self, path: str, data: bytes | None, version: Version | None) -> Answer:
        condition = {} if version is None else {"etag": version, "match_condition": self._match.IfNotModified}
        transport = self.fs.service_client._pipeline._transport

        async def ask() -> object:
            await transport.open()
            _send_once(transport.session)
            async with self._blob(path) as blob:
                if data is None:
                    return await blob.delete_blob(**condition, retry_total=0)
                return await blob.upload_blob(data, overwrite=version is not None, **condition, retry_total=0)

        status, error = self._told(ask)
        return _answer(status, error, path, is_made_here=version is None)

    def checksum(self, path: str) -> int | None:
        return None

    def uploads(self, prefix: str) -> list[Upload]:
        return []  # blocks that are never committed go by themselves after a week, and cannot be listed

    def abort(self, upload: Upload) -> None:
        pass

    def discard(self, file: Any) -> None:
        file.closed = True

    def _blob(self, path: str) -> Any:
        return self.fs.service_client.get_blob_client(self._bucket, path)

    def _told(self, ask: Any) -> tuple[Any, BaseException | None]:
        try:
            return _sync(self.fs.loop, ask), None
        except self._errors.HttpResponseError as error:
            return error.status_code or 0, error
        except (self._errors.AzureError, OSError) as error:
            return 0, error


_CLIENTS: dict[str, Callable[[Place, dict[str, Any]], Client]] = {
    "s3fs": S3Client,
    "gcsfs": GcsClient,
    "adlfs": AzureClient,
}


def _filesystem(scheme: str, options: Mapping[str, Any]) -> Any:
    """An instance of our own: a shared one may remember what was there, and be changed by others."""
    return fsspec.filesystem(scheme, **{**options, "use_listings_cache": False, "skip_instance_cache": True})


def _sync(loop: Any, ask: Callable[[], Any]) -> Any:
    return module("fsspec.asyn").sync(loop, ask, timeout=_TIMEOUT_S)  # brings asyncio along, which few need


def _send_once(session: Any) -> None:
    """Keeps aiohttp from sending a PUT or DELETE again over a new connection when one breaks: there is no public switch."""
    session._retry_connection = False


def _unless_absent(told: tuple[Any, BaseException | None]) -> tuple[bytes, Version] | None:
    value, error = told
    if error is None:
        found: tuple[bytes, Version] = value
        return found
    if value == 404:
        return None
    raise error if isinstance(error, OSError) else OSError(EIO, str(error)) from error


def _answer(status: Any, error: BaseException | None, path: str, *, is_made_here: bool = False) -> Answer:
    """What a conditional request was told: the status of its error, or 0 if nobody answered.

    Raises:
        PermissionError, FileNotFoundError, OSError: a refusal that proves that nothing was changed.
    """
    if error is None:
        return Answer.OK
    if status in (409, 412) or (status == 404 and not is_made_here):
        return Answer.NO
    if status in (401, 403):
        raise PermissionError(EACCES, str(error), path) from error
    if status == 404:
        raise FileNotFoundError(path, "the bucket does not exist") from error
    if 400 <= status < 500 and status not in (408, 429):
        raise OSError(EIO, str(error), path) from error
    logger.warning("it is not known whether a change was made: %s", error)
    return Answer.LOST
