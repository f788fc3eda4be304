"""An S3 server in memory that keeps of each object only what is not zero, and counts what it gives: for large objects.

``python -m services.sparse_s3 --port PORT``. It honours conditions, and checks neither signatures nor checksums.
``GET /__sent__`` tells how many bytes of objects it has given, and to how many requests, since it was asked last.
"""

import argparse
import itertools
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote
from xml.sax.saxutils import escape, unescape

import numpy as np

BLOCK_NBYTES = 1 << 16
TIME = "Thu, 01 Jan 2026 00:00:00 GMT"


class Sparse:
    """Bytes, most of which are zero."""

    def __init__(self) -> None:
        self.nbytes = 0
        self.tag = ""
        self._blocks: list[tuple[int, bytes]] = []

    def add(self, other: "Sparse") -> None:
        self._blocks += [(self.nbytes + at, block) for at, block in other._blocks]
        self.nbytes += other.nbytes

    def append(self, data: memoryview) -> None:
        for at in range(0, len(data), BLOCK_NBYTES):
            block = data[at : at + BLOCK_NBYTES]
            if np.frombuffer(block, np.uint8).any():
                self._blocks.append((self.nbytes + at, bytes(block)))
        self.nbytes += len(data)

    def read(self, start: int, stop: int) -> bytearray:
        data = bytearray(stop - start)
        for at, block in self._blocks:
            first, last = max(at, start), min(at + len(block), stop)
            if first < last:
                data[first - start : last - start] = block[first - at : last - at]
        return data


LOCK = threading.Lock()
OBJECTS: dict[str, Sparse] = {}  # of "/bucket/key"
PARTS: dict[str, dict[int, Sparse]] = {}
NUMBERS = itertools.count(1)
SENT = [0, 0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def log_message(self, *_: Any) -> None:
        pass

    def do_any(self) -> None:
        self.path, _, text = self.path.partition("?")
        self.path, query = unquote(self.path), dict(parse_qsl(text, keep_blank_values=True))
        getattr(self, f"on_{self.command.lower()}")(query)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_any  # noqa: N815

    def body(self) -> Sparse:
        left, found, buffer = int(self.headers.get("Content-Length") or 0), Sparse(), memoryview(bytearray(1 << 20))
        while left:
            window, done = buffer[: min(left, len(buffer))], 0
            while done < len(window):
                done += self.rfile.readinto(window[done:])
            found.append(window)
            left -= done
        return found

    def on_put(self, query: dict[str, str]) -> None:
        data = self.body()
        data.tag = f'"{next(NUMBERS):032x}"'
        if "partNumber" in query:
            PARTS[query["uploadId"]][int(query["partNumber"])] = data
            return self.answer(200, headers={"ETag": data.tag})
        with LOCK:
            found, match = OBJECTS.get(self.path), self.headers.get("If-Match")
            is_refused = ("If-None-Match" in self.headers and found) or (match and (found is None or found.tag != match))
            if not is_refused:
                OBJECTS[self.path] = data
        return self.answer(412) if is_refused else self.answer(200, headers={"ETag": data.tag})

    def on_post(self, query: dict[str, str]) -> None:
        data = self.body()
        text = bytes(data.read(0, data.nbytes)).decode()
        if "uploads" in query:
            identity = f"upload-{next(NUMBERS)}"
            PARTS[identity] = {}
            names = f"<Bucket>b</Bucket><Key>k</Key><UploadId>{identity}</UploadId>"
            return self.xml(f"<InitiateMultipartUploadResult>{names}</InitiateMultipartUploadResult>")
        if "delete" in query:
            keys = re.findall(r"<Key>(.*?)</Key>", text)
            for key in keys:
                OBJECTS.pop(f"{self.path.rstrip('/')}/{unescape(key)}", None)
            deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            return self.xml(f"<DeleteResult>{deleted}</DeleteResult>")
        whole, parts = Sparse(), PARTS.pop(query["uploadId"])
        whole.tag = f'"{next(NUMBERS):032x}"'
        for number in sorted(parts):
            whole.add(parts[number])
        OBJECTS[self.path] = whole
        return self.xml(f"<CompleteMultipartUploadResult><ETag>{whole.tag}</ETag></CompleteMultipartUploadResult>")

    def on_delete(self, query: dict[str, str]) -> None:
        PARTS.pop(query.get("uploadId", ""), None) or OBJECTS.pop(self.path, None)
        self.answer(204)

    def on_head(self, _: dict[str, str]) -> None:
        found = OBJECTS.get(self.path)
        if found is None:
            return self.answer(404)
        return self.answer(200, headers={"ETag": found.tag, "Last-Modified": TIME}, nbytes=found.nbytes)

    def on_get(self, query: dict[str, str]) -> None:
        found = OBJECTS.get(self.path)
        if self.path == "/__sent__":
            text = json.dumps(SENT)
            SENT[:] = 0, 0
            return self.answer(200, text.encode())
        if "list-type" in query:
            return self.listing(query)
        if found is None:
            return self.xml("<Error><Code>NoSuchKey</Code></Error>", 404)
        start, stop, headers = 0, found.nbytes, {"ETag": found.tag, "Last-Modified": TIME}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if asked:
            start = int(asked[1]) if asked[1] else max(stop - int(asked[2]), 0)
            stop = min(int(asked[2]) + 1, stop) if asked[1] and asked[2] else stop
            if start >= stop:
                return self.answer(416)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{found.nbytes}"
        SENT[:] = SENT[0] + stop - start, SENT[1] + 1
        return self.answer(206 if asked else 200, found.read(start, stop), headers)

    def listing(self, query: dict[str, str]) -> None:
        prefix, bucket = query.get("prefix", ""), self.path.strip("/")
        keys = {key.removeprefix(f"/{bucket}/"): found for key, found in sorted(OBJECTS.items())}
        below = {key: found for key, found in keys.items() if key.startswith(prefix)}
        files = {key: found for key, found in below.items() if not query.get("delimiter") or "/" not in key[len(prefix) :]}
        folders = {prefix + key[len(prefix) :].partition("/")[0] + "/" for key in below.keys() - files.keys()}
        stamp = "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        parts = [
            f"<Contents><Key>{escape(key)}</Key><Size>{found.nbytes}</Size><ETag>{found.tag}</ETag>{stamp}</Contents>"
            for key, found in files.items()
        ]
        parts += [f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in sorted(folders)]
        self.xml(f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(parts)}</ListBucketResult>")

    def xml(self, text: str, status: int = 200) -> None:
        self.answer(status, text.encode(), {"Content-Type": "application/xml"})

    def answer(
        self, status: int, data: bytes | bytearray = b"", headers: dict[str, str] | None = None, nbytes: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if nbytes is None else nbytes))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    Server(("127.0.0.1", parser.parse_args().port), Handler).serve_forever()
