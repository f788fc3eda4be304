"""An HTTP proxy that makes faults (`services.fault_rules`), for one server on this machine.

``python -m services.faultproxy --upstream http://127.0.0.1:PORT --port PORT``. Clients use its URL as their endpoint: the
Host header and the path pass unchanged, so signatures stay valid. On the same port it is steered:

- ``POST /__fault__/rules`` with a JSON list: the rules from now on; the log is cleared
- ``GET /__fault__/log``: every request seen, in order
- ``POST /__fault__/set`` with ``latency`` (seconds before each request) and ``bandwidth`` (bytes a second, or null)
"""

import argparse
import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from services.fault_rules import Rule
from services.http_messages import LIMIT, Head, Pace, again, body, drain, read_head, reset

SLOW_DOWN = '<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
INTERNAL = SLOW_DOWN.replace("SlowDown", "InternalError")
KEPT_NBYTES = 1 << 20  # of a response that may be given again
NO_FAULT = Rule(do=None)
BROKEN = (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError)


class Response:
    def __init__(self, head: Head, chunks: AsyncIterator[bytes]) -> None:
        self.head, self.chunks = head, chunks
        self.status = int(head.line.split()[1])


class Proxy:
    def __init__(self, host: str, port: int) -> None:
        self.upstream = host, port
        self.rules: list[Rule] = []
        self.log: list[dict[str, Any]] = []
        self.seen: dict[tuple[str, str], bytes] = {}  # whole responses that a stale answer repeats
        self.pace = Pace()
        self.latency = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, reader, writer)
        with suppress(*BROKEN):
            while await connection.pass_one():
                pass
        connection.close()

    def steer(self, what: str, data: bytes) -> object:
        if what == "rules":
            self.rules = [Rule(**each) for each in json.loads(data)]
            self.log.clear()
            self.seen.clear()
        elif what == "set":
            given = json.loads(data)
            self.latency, self.pace.bandwidth = given["latency"], given["bandwidth"]
        else:
            return self.log
        return {}


class Connection:
    """One client, and the connection to the server that its requests go through."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.proxy, self.reader, self.writer = proxy, reader, writer
        self.server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def close(self) -> None:
        for writer in (self.writer, self.server and self.server[1]):
            if writer is not None and not writer.is_closing():
                writer.close()

    async def pass_one(self) -> bool:
        """Passes one request; says whether there may be another one."""
        head = await read_head(self.reader)
        self.method, self.target, _ = head.line.split(" ", 2)
        if self.target.startswith("/__fault__/"):
            data = await drain(body(self.reader, head.headers, Pace()))
            return self.plain(200, json.dumps(self.proxy.steer(self.target.rpartition("/")[2], data)))
        if head.headers.get("expect", "").lower() == "100-continue":
            self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = Head(re.sub(rb"(?i)\r\nexpect:[^\r]*", b"", head.raw), head.line, head.headers)
        rules = self.proxy.rules
        rule = next((rule for rule in rules if rule.fires(self.method, self.target, head.headers)), NO_FAULT)
        asked = head.headers.get("range") or head.headers.get("x-ms-range")
        self.entry = {"method": self.method, "target": self.target, "range": asked, "sent": 0}
        self.entry |= {"status": None, "fault": rule.action}
        self.proxy.log.append(self.entry)
        await asyncio.sleep(self.proxy.latency)
        chunks = body(self.reader, head.headers, self.proxy.pace)
        answered = await self.without_server(rule, chunks)
        if answered is not None:
            return answered
        if rule.action == "strip":
            names = "|".join(map(re.escape, rule["names"])).encode()
            head = Head(re.sub(rb"(?i)\r\n(?:%b):[^\r]*" % names, b"", head.raw), head.line, head.headers)
        if rule.action == "reset_req":
            return await self.cut_request(head, chunks, rule.get("bytes", 0))
        if rule.action == "spoil":
            data = bytearray(await drain(chunks))
            at = min(rule.get("bytes", len(data)), len(data) - 1)
            data[at:] = bytes([data[at] ^ 1]) + data[at + 1 :] if data else b""
            chunks = again(bytes(data))
        if rule.action == "dup":
            data = await drain(chunks)
            await drain((await self.ask(head, again(data))).chunks)
            chunks = again(data)
        response = await self.ask(head, chunks)
        self.entry["status"] = response.status
        return await self.answer(rule, response)

    async def without_server(self, rule: Rule, chunks: AsyncIterator[bytes]) -> bool | None:
        """What the rule does before the server sees anything; None if the server is to be asked."""
        kept = self.proxy.seen.get((self.method, self.target))
        if rule.action == "delay":
            await asyncio.sleep(rule.get("seconds", 1))
        elif rule.action == "reset":
            return self.reset()
        elif rule.action == "kill" and rule.get("when", "before") == "before":
            rule.kill()
            return self.reset()
        elif rule.action == "hang":
            await drain(chunks)
            await asyncio.sleep(rule.get("seconds", 60))
            return self.reset()
        elif rule.action == "status":
            await drain(chunks)
            return self.plain(rule.get("code", 503), rule.get("body", SLOW_DOWN), rule.get("headers", {}))
        elif rule.action == "stale" and kept is not None:
            self.writer.write(kept)
            return True
        return None

    async def answer(self, rule: Rule, response: Response) -> bool:
        """Passes the response on, or what the rule makes of it."""
        if rule.action in ("lose", "late", "kill"):
            await drain(response.chunks)
            if rule.action == "late":
                return self.plain(rule.get("code", 500), rule.get("body", INTERNAL))
            if rule.action == "kill":
                rule.kill()
            return self.reset()
        if rule.action == "delay_resp":
            await asyncio.sleep(rule.get("seconds", 1))
        self.writer.write(response.head.raw)
        kept: list[bytes] | None = [response.head.raw]
        if self.method not in ("GET", "HEAD") or int(response.head.headers.get("content-length", 0)) > KEPT_NBYTES:
            kept = None
        at, cut = 0, rule.get("bytes", 0)
        async for data in response.chunks:
            here = cut - at
            if 0 <= here < len(data):
                if rule.action in ("reset_resp", "truncate"):
                    self.writer.write(data[:here])
                    await self.writer.drain()
                    return self.reset() if rule.action == "reset_resp" else False
                if rule.action == "corrupt":
                    data = data[:here] + bytes([data[here] ^ 1]) + data[here + 1 :]
            at += len(data)
            self.writer.write(data)
            await self.writer.drain()
            if kept is not None:
                kept.append(data)
        if kept is not None and rule is NO_FAULT:
            self.proxy.seen[self.method, self.target] = b"".join(kept)
        return response.head.headers.get("connection", "").lower() != "close"

    async def ask(self, head: Head, chunks: AsyncIterator[bytes]) -> Response:
        """Sends the request to the server; gives its response, whose body is still to come."""
        try:
            return await self.ask_once(await self.connected(), head, chunks)
        except asyncio.IncompleteReadError:  # the server had dropped the idle connection
            if self.entry["sent"]:
                raise
            self.server = None
            return await self.ask_once(await self.connected(), head, chunks)

    async def ask_once(
        self, server: tuple[asyncio.StreamReader, asyncio.StreamWriter], head: Head, chunks: AsyncIterator[bytes]
    ) -> Response:
        reader, writer = server
        try:
            writer.write(head.raw)
            async for data in chunks:
                self.entry["sent"] += len(data)
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            await drain(chunks)  # the server answered early, a 412 for example, and closed
        while int((answer := await read_head(reader)).line.split()[1]) < 200:
            pass
        status = int(answer.line.split()[1])
        is_empty = self.method == "HEAD" or status in (204, 304)
        headers = {"content-length": "0"} if is_empty else answer.headers
        return Response(answer, body(reader, headers, self.proxy.pace, to_end=True))

    async def cut_request(self, head: Head, chunks: AsyncIterator[bytes], nbytes: int) -> bool:
        _, writer = await self.connected()
        writer.write(head.raw)
        async for data in chunks:
            writer.write(data[:nbytes])
            await writer.drain()
            nbytes -= len(data)
            if nbytes <= 0:
                break
        reset(writer)
        return self.reset()

    async def connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.server is None or self.server[0].at_eof() or self.server[1].is_closing():
            self.server = await asyncio.open_connection(*self.proxy.upstream, limit=LIMIT)
        return self.server

    def plain(self, status: int, text: str, headers: dict[str, str] | None = None) -> bool:
        data = text.encode()
        given = {"Content-Length": len(data), "Content-Type": "application/xml", **(headers or {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        self.writer.write(f"HTTP/1.1 {status} Fault\r\n{lines}\r\n".encode() + (b"" if self.method == "HEAD" else data))
        if not self.target.startswith("/__fault__/"):
            self.entry["status"] = status
        return True

    def reset(self) -> bool:
        reset(self.writer)
        return False


async def main(upstream: str, port: int) -> None:
    where = urlsplit(upstream)
    if where.hostname != "127.0.0.1":
        raise ValueError("only for servers on this machine")
    server = await asyncio.start_server(Proxy(where.hostname, int(where.port or 80)).serve, "127.0.0.1", port, limit=LIMIT)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.upstream, arguments.port))
