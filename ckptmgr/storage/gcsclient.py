"""Google Cloud Storage through gcsfs and its session: its own calls repeat requests."""

import base64
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from errno import EIO
from typing import Any, TypeAlias
from urllib.parse import quote
from xml.etree import ElementTree

from ckptmgr.storage.clouds import Place, module
from ckptmgr.storage.fsspecs import answer, delete_each, filesystem, send_once, sync, unanswered, unless_absent, whole
from ckptmgr.storage.store import Answer, Marked, Upload, Version
from ckptmgr.threads import Pool

_Answered: TypeAlias = tuple[int, Mapping[str, str], bytes]  # status, headers, body

_AT_ONCE = 12


class GcsClient:
    """Through gcsfs and its session: its own calls repeat requests."""

    has_checksums = True
    has_remove = True

    def __init__(self, place: Place, options: dict[str, Any]) -> None:
        if options.get("endpoint_url"):
            # Else gcsfs asks, when it is imported, for Google's own gRPC service, which emulators do not have, and waits.
            os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        options.setdefault("project", "")
        self.fs = filesystem("gs", options)
        self._bucket = place.bucket
        retry = module("gcsfs.retry")
        self.errors: tuple[type[Exception], ...] = (
            *(module("aiohttp").ClientError, retry.HttpError, retry.ChecksumError),
            json.JSONDecodeError,  # a login page, for example
        )
        self._lost = (*self.errors, OSError)

    def read(self, path: str) -> tuple[bytes, Version] | None:
        status, headers, body = self._ask("GET", self._object(path), {"alt": "media"})
        if status >= 400:
            return unless_absent((status, OSError(EIO, f"status {status}", path)))
        return body, headers["x-goog-generation"]

    def send(self, path: str, data: bytes | None, version: Version | None) -> tuple[Answer, Version | None]:
        condition = {"ifGenerationMatch": version or "0"}
        try:
            if data is None:
                status, _, body = self._ask("DELETE", self._object(path), condition)
            else:
                status, _, body = self._ask("POST", self._uploads, {"uploadType": "media", "name": path, **condition}, data)
        except self._lost as error:
            return answer(0, error, path), None
        if status < 400:
            return Answer.OK, None if data is None else json.loads(body)["generation"]
        return answer(status, OSError(EIO, f"status {status}: {body[:200]!r}", path), path, is_made_here=version is None), None

    def pages(self, prefix: str) -> Iterator[list[tuple[str, Marked]]]:
        query = {"prefix": prefix, "maxResults": 1_000, "fields": "nextPageToken,items(name,size,updated,generation)"}
        while True:
            page = self.fs.call("GET", "b/{}/o", self._bucket, json_out=True, **query)
            yield [
                (each["name"], Marked(int(each["size"]), whole(datetime.fromisoformat(each["updated"])), each["generation"]))
                for each in page.get("items", [])
            ]
            if not page.get("nextPageToken"):
                return
            query["pageToken"] = page["nextPageToken"]

    def delete(self, paths: Sequence[str]) -> None:
        with Pool(_AT_ONCE) as pool:  # a batch of Google's would be counted as so many requests all the same
            for deleted in [pool.submit(delete_each, self.fs, self._bucket, [path]) for path in paths]:
                deleted.result()

    def checksum(self, path: str) -> int | None:
        return self._told_crc32c("GET", self._object(path), {"fields": "crc32c"}, path)

    def keep(self, path: str, data: bytes) -> int | None:
        return self._told_crc32c("POST", self._uploads, {"uploadType": "media", "name": path, "fields": "crc32c"}, path, data)

    def pipe(self, path: str, data: bytes) -> None:
        self.fs.pipe_file(f"{self._bucket}/{path}", data, consistency="md5")

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

    def _told_crc32c(self, method: str, url: str, query: Mapping[str, Any], path: str, data: bytes | None = None) -> int | None:
        try:
            status, _, body = self._ask(method, url, query, data)
        except self._lost as error:
            raise unanswered(0, error, path) from error
        if status >= 400:
            raise unanswered(status, body[:200], path)
        told = json.loads(body).get("crc32c")
        return None if told is None else int.from_bytes(base64.b64decode(told), "big")

    @property
    def _uploads(self) -> str:
        return f"{self.fs._location}/upload/storage/v1/b/{quote(self._bucket, safe='')}/o"

    def _object(self, path: str) -> str:
        return f"{self.fs.base}b/{quote(self._bucket, safe='')}/o/{quote(path, safe='')}"

    def _ask(self, method: str, url: str, query: Mapping[str, Any], data: bytes | None = None) -> _Answered:
        fs = self.fs
        yarl = module("yarl")

        async def ask() -> _Answered:
            await fs._set_session()
            send_once(fs.session)
            # The path is quoted already, and its slashes must stay as they are.
            where = yarl.URL(url, encoded=True).update_query(fs._get_params(dict(query)))
            async with fs.session.request(method, where, headers=fs._get_headers(None), data=data) as answer:
                return answer.status, answer.headers, await answer.read()

        done: _Answered = sync(fs.loop, ask)
        return done
