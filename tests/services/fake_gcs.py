"""A stand-in for Google Cloud Storage in memory: what gcsfs and obstore ask of it, with generation preconditions.

``python -m services.fake_gcs --port PORT --bucket NAME``. The JSON API (media, multipart and resumable uploads, ranges,
listings, deletions, batches of deletions) and the XML API (objects, listings, multipart uploads). It asks for no credentials.
"""

import argparse
import json
import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, quote, unquote
from xml.sax.saxutils import escape

from services.gcs_bucket import Bucket, Refused, Stored

BUCKETS: dict[str, Bucket] = {}


def bucket(name: str) -> Bucket:
    if name not in BUCKETS:
        raise Refused(404, "NoSuchBucket")
    return BUCKETS[name]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16  # head and body of a small answer go together

    def log_message(self, *_: Any) -> None:
        pass

    def do_any(self) -> None:
        body = self.body()
        path, _, query_text = self.path.partition("?")
        query = dict(parse_qsl(query_text, keep_blank_values=True))
        for header, name in (("match", "ifGenerationMatch"), ("not-match", "ifGenerationNotMatch")):
            if value := self.headers.get(f"x-goog-if-generation-{header}"):
                query[name] = value
        try:
            self.route(path, query, body)
        except Refused as refused:
            if refused.status == 304:
                self.answer(304)
            else:
                error = {"code": refused.status, "message": refused.reason, "errors": [{"reason": refused.reason}]}
                self.json({"error": error}, refused.status)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_any  # noqa: N815

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = bytearray()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(data)

    def route(self, path: str, query: dict[str, str], body: bytes) -> None:
        if path == "/":
            self.answer(200, b"ok")
        elif found := re.fullmatch(r"/(?:resumable/)?upload/storage/v1/b/([^/]+)/o", path):
            self.upload(bucket(unquote(found[1])), query, body)
        elif path.startswith("/batch/"):
            self.batch(body)
        elif found := re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", path):
            self.json_api(bucket(unquote(found[1])), unquote(found[2] or ""), path, query)
        else:
            name, _, key = path.lstrip("/").partition("/")
            self.xml_api(bucket(unquote(name)), unquote(key), query, body)

    def json_api(self, place: Bucket, key: str, path: str, query: dict[str, str]) -> None:
        if not key:
            is_listing = path.endswith("/o")
            self.listing(place, query) if is_listing else self.json(
                {"kind": "storage#bucket", "name": place.name, "location": "US"}
            )
        elif self.command == "DELETE":
            place.delete(key, query)
            self.answer(204)
        elif query.get("alt") == "media":
            self.media(place.get(key, query))
        else:
            self.json(place.get(key, query).meta)

    def xml_api(self, place: Bucket, key: str, query: dict[str, str], body: bytes) -> None:
        if query.keys() & {"uploads", "uploadId"}:
            self.xml_upload(place, key, query, body)
        elif not key:
            self.xml_listing(place, query)
        elif self.command == "PUT":
            sums = dict(each.strip().split("=", 1) for each in self.headers.get("x-goog-hash", "").split(",") if each)
            sums.setdefault("md5", self.headers.get("Content-MD5"))
            self.made(place.put(key, body, query, {"crc32c": sums.get("crc32c"), "md5Hash": sums["md5"]}))
        elif self.command == "DELETE":
            place.delete(key, query)
            self.answer(204)
        else:
            self.media(place.get(key, query))

    def xml_upload(self, place: Bucket, key: str, query: dict[str, str], body: bytes) -> None:
        identity = query.get("uploadId", "")
        if self.command == "GET":
            prefix = query.get("prefix", "")
            found = [(name, each) for name, each in place.uploads.items() if each.name.startswith(prefix) and not each.done]
            entry = "<Upload><Key>{}</Key><UploadId>{}</UploadId><Initiated>{}</Initiated></Upload>"
            listed = "".join(entry.format(escape(each.name), name, each.started) for name, each in found)
            self.xml(f"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>{listed}</ListMultipartUploadsResult>")
        elif self.command == "POST" and "uploads" in query:
            names = f"<Bucket>{place.name}</Bucket><Key>{escape(key)}</Key><UploadId>{place.begin(key, {}, {})}</UploadId>"
            self.xml(f"<InitiateMultipartUploadResult>{names}</InitiateMultipartUploadResult>")
        elif self.command == "PUT":
            place.upload(identity).parts[int(query["partNumber"])] = body
            self.answer(200, headers={"ETag": f'"part-{query["partNumber"]}"'})
        elif self.command == "POST":
            made = place.complete(identity, [int(number) for number in re.findall(rb"<PartNumber>(\d+)<", body)])
            tag = f'<ETag>"{made["etag"]}"</ETag>'
            self.xml(f"<CompleteMultipartUploadResult>{tag}</CompleteMultipartUploadResult>", made)
        else:
            place.upload(identity)
            del place.uploads[identity]
            self.answer(204)

    def upload(self, place: Bucket, query: dict[str, str], body: bytes) -> None:
        kind = query.get("uploadType")
        if "upload_id" in query:
            self.resume(place, query["upload_id"], body)
        elif kind == "resumable":
            meta = json.loads(body or b"{}")
            identity = place.begin(meta.get("name") or query["name"], query, meta)
            where = f"http://{self.headers['Host']}/upload/storage/v1/b/{quote(place.name)}/o?uploadType=resumable&upload_id={identity}"
            self.answer(200, headers={"Location": where})
        elif kind == "multipart":
            meta, data = _parts(self.headers["Content-Type"], body)
            self.json(place.put(meta.get("name") or query["name"], data, query, meta))
        else:
            self.json(place.put(query["name"], body, query, {"contentType": self.headers.get("Content-Type")}))

    def resume(self, place: Bucket, identity: str, body: bytes) -> None:
        upload = place.upload(identity)
        if self.command == "DELETE":
            del place.uploads[identity]
            return self.answer(499)
        found = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers.get("Content-Range") or f"bytes 0-0/{len(body)}")
        if found is None:
            raise Refused(400, "badRange")
        if upload.done is None and found[1] is not None:
            if int(found[1]) > len(upload.data):
                raise Refused(400, "gap")
            upload.data[int(found[1]) :] = body
        if upload.done is None and found[3] == str(len(upload.data)):
            upload.done = place.put(upload.name, bytes(upload.data), upload.conditions, upload.meta)
            upload.data.clear()
        if upload.done is not None:
            return self.json(upload.done)
        return self.answer(308, headers={"Range": f"bytes=0-{len(upload.data) - 1}"} if upload.data else {})

    def batch(self, body: bytes) -> None:
        parts = ""
        for identity, path in re.findall(r"Content-ID: *<([^>]+)>.*?DELETE (\S+) HTTP", body.decode("latin1"), re.DOTALL):
            name, key = re.match(r"/storage/v1/b/([^/]+)/o/([^?]+)", path).groups()
            try:
                bucket(unquote(name)).delete(unquote(key), {})
                status = "204 No Content"
            except Refused:
                status = "404 Not Found"
            head = f"--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{identity}>\r\n\r\n"
            parts += f"{head}HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"
        self.answer(200, f"{parts}\r\n--batch--".encode(), {"Content-Type": "multipart/mixed; boundary=batch"})

    def media(self, found: Stored) -> None:
        data, meta = found
        headers = {
            "Content-Type": meta["contentType"],
            "ETag": f'"{meta["etag"]}"',
            "Last-Modified": _http_date(meta["updated"]),
            "Accept-Ranges": "bytes",
            "x-goog-generation": meta["generation"],
            "x-goog-metageneration": "1",
            "x-goog-hash": f"crc32c={meta['crc32c']},md5={meta['md5Hash']}",
            "x-goog-stored-content-length": meta["size"],
        }
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            return self.answer(200, data, headers)
        start, stop = int(asked[1] or 0), int(asked[2]) + 1 if asked[2] else len(data)
        if not asked[1]:
            start, stop = max(len(data) - int(asked[2]), 0), len(data)
        if start >= len(data):
            raise Refused(416, "InvalidRange")
        stop = min(stop, len(data))
        return self.answer(
            206, memoryview(data)[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        )

    def listing(self, place: Bucket, query: dict[str, str]) -> None:
        objects, prefixes, token = place.page(query)
        found = {"items": objects, "prefixes": prefixes, "nextPageToken": token}
        self.json({"kind": "storage#objects", **{name: value for name, value in found.items() if value}})

    def xml_listing(self, place: Bucket, query: dict[str, str]) -> None:
        objects, prefixes, token = place.page(query)
        entry = '<Contents><Key>{}</Key><Size>{}</Size><ETag>"{}"</ETag><LastModified>{}</LastModified></Contents>'
        parts = [f"<Name>{place.name}</Name><IsTruncated>{str(token is not None).lower()}</IsTruncated>"]
        parts += [f"<NextContinuationToken>{escape(token)}</NextContinuationToken>"] if token else []
        parts += [entry.format(escape(meta["name"]), meta["size"], meta["etag"], meta["updated"]) for meta in objects]
        parts += [f"<CommonPrefixes><Prefix>{escape(prefix)}</Prefix></CommonPrefixes>" for prefix in prefixes]
        self.xml(f"<ListBucketResult>{''.join(parts)}</ListBucketResult>")

    def made(self, meta: dict[str, Any]) -> None:
        self.answer(200, headers={"ETag": f'"{meta["etag"]}"', "x-goog-generation": meta["generation"]})

    def json(self, value: object, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def xml(self, text: str, meta: dict[str, Any] | None = None) -> None:
        made = {"x-goog-generation": meta["generation"]} if meta else {}
        self.answer(200, text.encode(), {"Content-Type": "application/xml", **made})

    def answer(self, status: int, data: bytes | memoryview = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


def _parts(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """Metadata and data of a multipart/related body."""
    boundary = b"--" + re.search(r"boundary=[\"']?([^\"';]+)", content_type)[1].encode()
    first = body.index(boundary) + len(boundary)
    second = body.index(b"\n" + boundary, first)
    end = body.rindex(boundary)
    meta = re.split(rb"\r?\n\r?\n", body[first:second], maxsplit=1)[1]
    data = re.split(rb"\r?\n\r?\n", body[second + 1 + len(boundary) : end].lstrip(b"\r\n"), maxsplit=1)[1]
    return json.loads(meta), data[:-2] if data.endswith(b"\r\n") and b"\r\n" in body[:second] else data[:-1]


def _http_date(stamp: str) -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--bucket", action="append", default=[])
    arguments = parser.parse_args()
    BUCKETS.update({name: Bucket(name) for name in arguments.bucket})
    Server(("127.0.0.1", arguments.port), Handler).serve_forever()
