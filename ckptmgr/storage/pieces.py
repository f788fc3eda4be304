"""Buffers on their way to a store, and bytes on their way into buffers."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np

from ckptmgr.checksum import crc32c
from ckptmgr.storage.budget import Budget, Share
from ckptmgr.storage.store import Buffer, Store
from ckptmgr.threads import started

_SMALL_NBYTES = 1 << 15  # smaller buffers are joined: each costs the client some microseconds, and copying it none
_Line: TypeAlias = "queue.SimpleQueue[list[memoryview] | BaseException | None]"
Taken: TypeAlias = Generator[memoryview, None, None]


class Pieces:
    """The bytes of windows as flat views, in order; small ones are joined. What goes wrong in the windows is remembered."""

    def __init__(self, windows: Iterable[Sequence[Buffer]], nbytes: int, where: str) -> None:
        self._windows, self._nbytes, self._where = windows, nbytes, where
        self.failed: BaseException | None = None  # what went wrong in the windows

    def __iter__(self) -> Iterator[memoryview]:
        try:
            yield from self._pieces()
        except GeneratorExit:
            raise
        except BaseException as error:
            self.failed = error
            raise

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Raises what went wrong in the windows as it was, whatever the client has made of it."""
        try:
            yield
        except BaseException as error:
            if self.failed is not None and error is not self.failed:
                raise self.failed from None
            raise

    def _pieces(self) -> Iterator[memoryview]:
        done = 0
        for window in self._windows:
            small: list[memoryview] = []
            for buffer in window:
                view = flat(buffer)
                done += len(view)
                if done > self._nbytes:
                    raise ValueError(f"{self._where!r}: more than the {self._nbytes} bytes that were announced")
                if 0 < len(view) < _SMALL_NBYTES:
                    small.append(view)
                elif len(view):
                    yield from _joined(small)
                    yield view
            yield from _joined(small)
        if done < self._nbytes:
            raise ValueError(f"{self._where!r}: only {done} of the {self._nbytes} bytes that were announced")


def feed(send: Callable[[Taken], object], pieces: Iterable[memoryview], parts: Iterable[int], budget: Budget) -> None:
    """Lets ``send`` take the pieces in a thread of its own, while this one makes them; ``parts`` are the upload's, in bytes.

    A client that drives its requests while it asks for the next piece cannot be used again in there, and whoever makes
    the pieces may read them with the same client. If they end with an error, so does ``send``, and the error is raised.

    No piece is of two parts of the upload, and there is room in the budget for a whole part before the first piece of it is
    made; the part leaves it when the client lets go of its last piece.

    Where no thread can be had (`threads`), this one makes them when the client asks for them.
    """
    line: _Line = queue.SimpleQueue()  # as short as the budget is small
    failed: list[BaseException] = []
    ended = threading.Event()
    shares: deque[Share] = deque()

    def run() -> None:
        try:
            send(_emptied(_coming(line)))
        except BaseException as error:  # noqa: BLE001 - raised again by who waits for it
            failed.append(error)
        ended.set()
        for share in [*shares]:  # the error's traceback may hold pieces
            share.end()

    def room(nbytes: int) -> Share | None:
        shares.append(budget.take(nbytes))
        return None if ended.is_set() else shares[-1]

    made = _made(pieces, parts, room)
    thread = threading.Thread(target=run, name="ckptmgr-upload", daemon=True)
    try:
        if not started(thread):
            send(_emptied(made))
            return
        for part in made:
            line.put(part)  # all of it: to wake the other thread for each piece costs more than to send some
        line.put(None)
    except BaseException as error:
        line.put(error)
        raise
    finally:
        if thread.is_alive():
            thread.join()
        for share in shares:
            share.end()
    if failed:
        raise failed[0]


def _made(pieces: Iterable[memoryview], parts: Iterable[int], room: Callable[[int], Share | None]) -> Iterator[list[memoryview]]:
    """The parts, each in its share; until there is none."""
    cut = _Cut(pieces)
    for nbytes in parts:
        share = room(nbytes)
        if share is None:
            return
        part = cut.next(nbytes)
        share.end_with(part)
        yield part
    cut.end()


class _Cut:
    """Pieces cut where the parts of an upload end."""

    def __init__(self, pieces: Iterable[memoryview]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")

    def next(self, nbytes: int) -> list[memoryview]:
        """The next pieces, of that many bytes together."""
        part: list[memoryview] = []
        while nbytes:
            self._rest = self._rest or next(self._pieces)
            part.append(self._rest[:nbytes])
            self._rest = self._rest[nbytes:]
            nbytes -= len(part[-1])
        return part

    def end(self) -> None:
        """Lets the pieces come to their end, and tell what is wrong with them."""
        for _ in self._pieces:
            pass


def _coming(line: _Line) -> Iterator[list[memoryview]]:
    while isinstance(part := line.get(), list):
        yield part
    if part is not None:
        raise OSError("the bytes to be sent ended with an error") from part


def _emptied(parts: Iterable[list[memoryview]]) -> Taken:
    for part in parts:
        while part:
            yield part.pop(0)  # nothing but the client must hold what it was given


class Places:
    """Writable buffers that are filled one after another."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self._views = [np.frombuffer(view, np.uint8) for view in map(flat, buffers) if len(view)]
        self.nbytes = self.left = sum(map(len, self._views))
        self._index = self._at = 0

    def fill(self, chunk: bytes | memoryview) -> None:
        """Takes the next bytes; what is too much is dropped. numpy copies without holding up other threads."""
        source, done = np.frombuffer(chunk, np.uint8), 0
        if len(source) < self.left and (end := self._at + len(source)) < len(view := self._views[self._index]):
            view[self._at : end] = source  # as are most of them, of which a download has thousands
            self._at, self.left = end, self.left - len(source)
            return
        while done < len(source) and self.left:
            view = self._views[self._index]
            count = min(len(view) - self._at, len(source) - done)
            view[self._at : self._at + count] = source[done : done + count]
            done += count
            self.left -= count
            self._at += count
            if self._at == len(view):
                self._index, self._at = self._index + 1, 0


def read_back(store: Store, key: str, nbytes: int) -> int:
    """The crc32c of the first ``nbytes`` bytes of a file, read in windows."""
    buffer, value = bytearray(min(nbytes, store.window_nbytes)), 0
    for at in range(0, nbytes, len(buffer) or 1):
        part = memoryview(buffer)[: nbytes - at]
        store.read_into(key, at, [part])
        value = crc32c(part, value)
    return value


def flat(buffer: Buffer) -> memoryview:
    """The bytes of a buffer; numpy's way for its arrays, because memoryview does not know the dtypes of ml_dtypes."""
    if isinstance(buffer, np.ndarray):
        return buffer.reshape(-1).view(np.uint8).data if buffer.size else memoryview(b"")
    view = memoryview(buffer)
    return view.cast("B") if view.nbytes else memoryview(b"")


def _joined(small: list[memoryview]) -> Iterator[memoryview]:
    if len(small) > 1:
        yield memoryview(b"".join(small))
    else:
        yield from small
    small.clear()
