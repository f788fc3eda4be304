"""An S3 server that swallows what is sent and serves zeros: for what a client costs by itself.

``python -m services.sink_s3 --port PORT``
It hashes nothing, copies nothing and keeps only the size of each key: no server for tests of correctness.
"""

import argparse
import asyncio
import socket
from urllib.parse import parse_qsl

ZEROS = memoryview(bytes(4 << 20))
TAG = 'ETag: "0123456789abcdef0123456789abcdef"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n'
SIZES: dict[str, int] = {}  # of "/bucket/key"
PARTS: dict[str, dict[str, int]] = {}  # of an upload: sizes by number
HEAD_NBYTES = 1 << 14  # of a request at most
RECEIVED = bytearray(1 << 20)  # every connection receives into this: bodies are discarded


class Sink(asyncio.BufferedProtocol):
    """One connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.head = bytearray()
        self.left = 0  # bytes of the body still to come
        self.can_write = asyncio.Event()
        self.can_write.set()
        transport.set_write_buffer_limits(high=8 << 20)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def pause_writing(self) -> None:
        self.can_write.clear()

    def resume_writing(self) -> None:
        self.can_write.set()

    def connection_lost(self, _: Exception | None) -> None:
        self.can_write.set()

    def get_buffer(self, _: int) -> bytearray:
        return RECEIVED

    def buffer_updated(self, nbytes: int) -> None:
        view = memoryview(RECEIVED)[:nbytes]
        while len(view):
            if self.left:
                taken = min(self.left, len(view))
                self.left -= taken
                view = view[taken:]
                if not self.left:
                    self.finish()
                continue
            before = len(self.head)
            self.head += view[:HEAD_NBYTES]
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return
            view = view[end + 4 - before :]  # the body behind it stays where it is
            self.begin(bytes(self.head[:end]).decode("latin1").split("\r\n"))

    def begin(self, lines: list[str]) -> None:
        self.head = bytearray()
        self.method, self.target, _ = lines[0].split(" ", 2)
        self.headers = {name.strip().lower(): value.strip() for name, value in (line.split(":", 1) for line in lines[1:])}
        self.left = self.nbytes = int(self.headers.get("content-length", 0))
        if self.headers.get("expect", "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self.left:
            self.finish()

    def finish(self) -> None:
        path, _, query_text = self.target.partition("?")
        query = dict(parse_qsl(query_text, keep_blank_values=True))
        if self.method == "PUT":
            self.put(path, query)
        elif self.method == "POST":
            self.post(path, query)
        elif self.method == "DELETE":
            SIZES.pop(path, None)
            self.reply(204)
        elif "list-type" in query:
            self.listing(path.strip("/"), query.get("prefix", ""))
        elif path not in SIZES:
            self.reply(404, b"" if self.method == "HEAD" else b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self.get(SIZES[path])

    def put(self, path: str, query: dict[str, str]) -> None:
        if "partNumber" in query:
            PARTS[query["uploadId"]][query["partNumber"]] = self.nbytes
        else:
            SIZES[path] = self.nbytes
        self.reply(200, extra=TAG)

    def post(self, path: str, query: dict[str, str]) -> None:
        if "uploads" in query:
            upload = f"upload-{len(PARTS)}"
            PARTS[upload] = {}
            names = f"<Bucket>b</Bucket><Key>k</Key><UploadId>{upload}</UploadId>"
            self.reply(200, f"<InitiateMultipartUploadResult>{names}</InitiateMultipartUploadResult>".encode())
        else:
            SIZES[path] = sum(PARTS[query["uploadId"]].values())
            self.reply(200, b'<CompleteMultipartUploadResult><ETag>"0-1"</ETag></CompleteMultipartUploadResult>')

    def listing(self, bucket: str, prefix: str) -> None:
        found = {key.removeprefix(f"/{bucket}/"): size for key, size in sorted(SIZES.items()) if key.startswith(f"/{bucket}/")}
        stamp = "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        entries = "".join(
            f'<Contents><Key>{key}</Key><Size>{size}</Size><ETag>"0"</ETag>{stamp}</Contents>'
            for key, size in found.items()
            if key.startswith(prefix)
        )
        self.reply(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode())

    def get(self, size: int) -> None:
        start, stop, status, extra = 0, size, "200 OK", ""
        if "range" in self.headers:
            first, last = self.headers["range"].removeprefix("bytes=").split("-")
            start, stop = (int(first), min(int(last or size) + 1, size)) if first else (max(size - int(last), 0), size)
            status, extra = "206 Partial Content", f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n"
        head = f"HTTP/1.1 {status}\r\nContent-Length: {stop - start}\r\nAccept-Ranges: bytes\r\n{TAG}{extra}\r\n"
        self.transport.write(head.encode())
        if self.method == "GET":
            self.sending = asyncio.ensure_future(self.send(stop - start))

    async def send(self, nbytes: int) -> None:
        while nbytes > 0 and not self.transport.is_closing():
            part = ZEROS[: min(nbytes, len(ZEROS))]
            self.transport.write(part)
            nbytes -= len(part)
            await self.can_write.wait()

    def reply(self, status: int, body: bytes = b"", extra: str = "") -> None:
        self.transport.write(f"HTTP/1.1 {status} Done\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(serve(parser.parse_args().port))
