"""The buckets of the GCS stand-in: objects with generations, every change under its preconditions, uploads in parts.

As Google's, it is strongly consistent. Old generations are not kept.
"""

import base64
import hashlib
import itertools
import struct
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from crc32c import crc32c


class Refused(Exception):
    """An answer that is an error, with its HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Stored(NamedTuple):
    data: bytes
    meta: dict[str, Any]


class Page(NamedTuple):
    objects: list[dict[str, Any]]
    prefixes: list[str]
    token: str | None


@dataclass
class Upload:
    """A resumable upload (``data`` grows), or a multipart one (``parts`` by number)."""

    name: str
    conditions: Mapping[str, str]
    meta: dict[str, Any]
    started: str
    data: bytearray = field(default_factory=bytearray)
    parts: dict[int, bytes] = field(default_factory=dict)
    done: dict[str, Any] | None = None


class Bucket:
    def __init__(self, name: str) -> None:
        self.name = name
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, Upload] = {}
        self.lock = threading.RLock()
        self._generations = itertools.count(time.time_ns() // 1000)

    def get(self, name: str, query: Mapping[str, str]) -> Stored:
        with self.lock:
            found = self.objects.get(name)
            if found is None or query.get("generation", found.meta["generation"]) != found.meta["generation"]:
                raise Refused(404, "No such object")
            self._check(name, query)
            return found

    def put(self, name: str, data: bytes, query: Mapping[str, str], meta: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Keeps an object if the conditions in ``query`` hold and the checksums in ``meta``, if any, are right."""
        sums = {"md5Hash": text(hashlib.md5(data).digest()), "crc32c": text(struct.pack(">I", crc32c(data)))}
        meta = {key: value for key, value in (meta or {}).items() if value is not None}
        if any(meta.get(kind, value) != value for kind, value in sums.items()):
            raise Refused(400, "The checksum does not match the data")
        with self.lock:  # the check and the change are one step
            self._check(name, query)
            generation, now = str(next(self._generations)), timestamp()
            made = {
                "contentType": "application/octet-stream",
                **meta,
                **sums,
                "kind": "storage#object",
                "name": name,
                "bucket": self.name,
                "id": f"{self.name}/{name}/{generation}",
                "generation": generation,
                "metageneration": "1",
                "size": str(len(data)),
                "etag": text(generation.encode()),
                "timeCreated": now,
                "updated": now,
                "storageClass": "STANDARD",
            }
            self.objects[name] = Stored(data, made)
            return made

    def delete(self, name: str, query: Mapping[str, str]) -> None:
        with self.lock:
            self.get(name, query)
            del self.objects[name]

    def page(self, query: Mapping[str, str]) -> Page:
        """One page of a listing; the token is the last name that was given."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        most = int(query.get("maxResults") or query.get("max-keys") or 1000)
        after = query.get("pageToken") or query.get("continuation-token") or query.get("start-after") or ""
        with self.lock:
            entries: dict[str, dict[str, Any] | None] = {}
            for name in sorted(name for name in self.objects if name.startswith(prefix)):
                end = name.find(delimiter, len(prefix)) if delimiter else -1
                key = name if end < 0 else name[: end + 1]
                if key > after and name >= query.get("startOffset", ""):
                    entries.setdefault(key, self.objects[name].meta if end < 0 else None)
        given = dict(itertools.islice(entries.items(), most))
        token = next(reversed(given)) if len(entries) > most else None
        return Page([meta for meta in given.values() if meta], [key for key, meta in given.items() if meta is None], token)

    def begin(self, name: str, query: Mapping[str, str], meta: dict[str, Any]) -> str:
        """The id of a new upload."""
        with self.lock:
            self._check(name, query)
            upload = uuid.uuid4().hex
            self.uploads[upload] = Upload(name, dict(query), meta, timestamp())
            return upload

    def upload(self, identity: str) -> Upload:
        with self.lock:
            found = self.uploads.get(identity)
        if found is None:
            raise Refused(404, "NoSuchUpload")
        return found

    def complete(self, identity: str, numbers: list[int]) -> dict[str, Any]:
        """Makes an object of the parts with these numbers."""
        with self.lock:
            upload = self.upload(identity)
            missing = [number for number in numbers if number not in upload.parts]
            if missing or not numbers:
                raise Refused(400, "InvalidPart")
            made = self.put(upload.name, b"".join(upload.parts[number] for number in numbers), upload.conditions, upload.meta)
            del self.uploads[identity]
            return made

    def _check(self, name: str, query: Mapping[str, str]) -> None:
        found = self.objects.get(name)
        current = found.meta["generation"] if found else "0"
        if query.get("ifGenerationMatch", current) != current:
            raise Refused(412, "conditionNotMet")
        if query.get("ifGenerationNotMatch") == current:
            raise Refused(304 if found else 412, "conditionNotMet")


def text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def timestamp() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
