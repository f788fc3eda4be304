"""HTTP/1.1 messages as they pass by: heads that are parsed, bodies that are not, paced to a given bandwidth."""

import asyncio
import struct
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from socket import SO_LINGER, SOL_SOCKET

CHUNK = 1 << 17
LIMIT = 1 << 18


@dataclass(frozen=True)
class Head:
    """The first line and the headers, and the bytes that they came as."""

    raw: bytes
    line: str
    headers: dict[str, str]


class Pace:
    """One clock for all bodies together: bytes a second, or None for as fast as they come."""

    def __init__(self) -> None:
        self.bandwidth: float | None = None
        self._free_at = 0.0

    async def wait(self, nbytes: int) -> None:
        if self.bandwidth:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + nbytes / self.bandwidth
            await asyncio.sleep(self._free_at - now)


async def read_head(reader: asyncio.StreamReader) -> Head:
    raw = await reader.readuntil(b"\r\n\r\n")
    line, *lines = raw.decode("latin1").split("\r\n")
    pairs = (each.split(":", 1) for each in lines if ":" in each)
    return Head(raw, line, {name.strip().lower(): value.strip() for name, value in pairs})


async def body(
    reader: asyncio.StreamReader, headers: dict[str, str], pace: Pace, *, to_end: bool = False
) -> AsyncIterator[bytes]:
    """A body's bytes as they are, chunk framing included. Raises ConnectionResetError if the peer closes inside it."""
    if "chunked" in headers.get("transfer-encoding", ""):
        async for data in _chunks(reader, pace):
            yield data
    elif "content-length" in headers:
        async for data in _exactly(reader, int(headers["content-length"]), pace):
            yield data
    elif to_end:
        while data := await reader.read(CHUNK):
            yield data


async def drain(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([data async for data in chunks])


async def again(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), CHUNK):
        yield data[at : at + CHUNK]


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection by RST, so that the peer knows that it was no end."""
    if (socket := writer.get_extra_info("socket")) is not None:
        socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _exactly(reader: asyncio.StreamReader, nbytes: int, pace: Pace) -> AsyncIterator[bytes]:
    while nbytes:
        data = await reader.read(min(nbytes, CHUNK))
        if not data:
            raise ConnectionResetError("the peer closed inside a body")
        nbytes -= len(data)
        yield data
        await pace.wait(len(data))


async def _chunks(reader: asyncio.StreamReader, pace: Pace) -> AsyncIterator[bytes]:
    while True:
        line = await reader.readuntil(b"\r\n")
        yield line
        nbytes = int(line.split(b";")[0], 16)
        if nbytes == 0:
            break
        async for data in _exactly(reader, nbytes + 2, pace):
            yield data
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        yield line
    yield line
