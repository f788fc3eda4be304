"""Stores for tests: one in memory, and wrappers that fail, die, or lose answers at a chosen operation."""

import functools
import io
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from ckptmgr.storage import Answer, Buffer, Head, Listing, Marked, Stored, Upload, Version

CONDITIONAL = ("create", "replace", "remove")
CHANGING = (*CONDITIONAL, "put", "delete", "abort")
OPERATIONS = (*CHANGING, "read", "read_into", "file", "head", "list", "below", "uploads", "now")


class MemoryStore:
    """A `Store` in a dict, with real conditions: a version is the content, as an ETag is.

    ``time`` is its clock; tests set it. ``on_change`` sees every change of a file: key, bytes before, bytes after.
    """

    url = "memory:"
    window_nbytes = 1 << 20
    workers = 2
    is_weak = False

    def __init__(self, files: dict[str, bytes] | None = None, *, has_remove: bool = True) -> None:
        self.has_remove = has_remove
        self.time = 1_700_000_000.0
        self.files: dict[str, tuple[bytes, float]] = {key: (data, self.time) for key, data in (files or {}).items()}
        self.unfinished: dict[str, Upload] = {}
        self.on_change: Callable[[str, bytes | None, bytes | None], None] = lambda key, before, after: None
        self._lock = threading.RLock()

    def put(self, key: str, windows: Iterable[Sequence[Buffer]], nbytes: int) -> Stored:
        with self._lock:
            upload = Upload(key, secrets.token_hex(8), self.time)
            self.unfinished[upload.id] = upload
        try:
            data = b"".join(_bytes(buffer) for window in windows for buffer in window)
            if len(data) != nbytes:
                raise ValueError(f"{len(data)} bytes were given for {key!r}, {nbytes} announced")
        except (Exception, KeyboardInterrupt):
            self.abort(upload)  # a dead process does not get here
            raise
        with self._lock:
            if self.unfinished.pop(upload.id, None) is None:
                raise FileNotFoundError(f"the put of {key!r} was aborted")
            self._set(key, data)
        return Stored(nbytes)

    def create(self, key: str, data: bytes) -> Answer:
        return self._conditional(key, data, None)

    def replace(self, key: str, data: bytes, version: Version) -> Answer:
        return self._conditional(key, data, version)

    def remove(self, key: str, version: Version) -> Answer:
        assert self.has_remove
        return self._conditional(key, None, version)

    def read(self, key: str) -> tuple[bytes, Version] | None:
        with self._lock:
            found = self.files.get(key)
        return (found[0], found[0]) if found else None

    def read_into(self, key: str, offset: int, buffers: Sequence[Buffer]) -> None:
        file = self.file(key)
        file.seek(offset)
        for buffer in buffers:
            view = memoryview(buffer.reshape(-1).view(np.uint8) if isinstance(buffer, np.ndarray) else buffer).cast("B")
            if file.readinto(view) < len(view):  # type: ignore[attr-defined]
                raise EOFError(f"{key!r} ends too early")

    def file(self, key: str) -> BinaryIO:
        found = self.read(key)
        if found is None:
            raise FileNotFoundError(key)
        return io.BytesIO(found[0])

    def head(self, key: str) -> Head | None:
        with self._lock:
            found = self.files.get(key)
        return Head(len(found[0]), found[1]) if found else None

    def list(self, prefix: str) -> Listing:
        with self._lock:
            below = {key.removeprefix(prefix): value for key, value in self.files.items() if key.startswith(prefix)}
        files = {key: Head(len(data), time) for key, (data, time) in below.items() if "/" not in key}
        return Listing(files, tuple(sorted({key.partition("/")[0] for key in below if "/" in key})))

    def delete(self, keys: Iterable[str]) -> None:
        with self._lock:
            for key in keys:
                if key in self.files:
                    self._set(key, None)

    def uploads(self, prefix: str) -> Sequence[Upload]:
        with self._lock:
            return [upload for upload in self.unfinished.values() if upload.key.startswith(prefix)]

    def abort(self, upload: Upload) -> None:
        with self._lock:
            self.unfinished.pop(upload.id, None)

    def now(self) -> float:
        return self.time

    def location(self, key: str) -> str:
        return f"memory:/{key}"

    def copy(self) -> "MemoryStore":
        """The same files, each with its time, in a store of their own; nothing is under way there."""
        other = type(self)(has_remove=self.has_remove)
        other.files, other.time = dict(self.files), self.time
        return other

    def _conditional(self, key: str, data: bytes | None, version: Version) -> Answer:
        with self._lock:
            found = self.read(key)
            if (found and found[1]) != version:
                return Answer.NO
            self._set(key, data)
        return Answer.OK

    def _set(self, key: str, data: bytes | None) -> None:
        before = self.read(key)
        if data is None:
            del self.files[key]
        else:
            self.files[key] = data, self.time
        self.on_change(key, before and before[0], data)


class MarkedStore(MemoryStore):
    """The same as a `MarkingStore`: a mark is the content, as an ETag is."""

    def below(self, prefix: str, *, most: int) -> dict[str, Marked] | None:
        with self._lock:
            found = sorted((key.removeprefix(prefix), value) for key, value in self.files.items() if key.startswith(prefix))
        return {name: Marked(len(data), time, data) for name, (data, time) in found}

    def mark(self, version: Version) -> Version:
        return version

    def change(self, key: str, data: bytes, version: Version | None) -> tuple[Answer, Version | None]:
        return changed(self, key, data, version)


def changed(store: Any, key: str, data: bytes, version: Version | None) -> tuple[Answer, Version | None]:
    """What `MarkingStore.change` does, by the two others."""
    answer = store.create(key, data) if version is None else store.replace(key, data, version)
    return answer, data if answer is Answer.OK else None


def _bytes(buffer: Buffer) -> bytes:
    return buffer.tobytes() if isinstance(buffer, np.ndarray) else bytes(buffer)


class WrappedStore:
    """A store whose every operation goes through `operate`, which may do something else instead."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        if name == "change":
            return functools.partial(changed, self)
        return (lambda *args, **more: self.operate(name, lambda: value(*args, **more))) if name in OPERATIONS else value

    def operate(self, name: str, call: Callable[[], Any]) -> Any:
        return call()


class Death(BaseException):
    """The process is gone: from here on it does nothing at all."""


class FaultyStore(WrappedStore):
    """Counts operations, and goes wrong at the one with the number ``at`` (from 0).

    With an ``error``, that operation raises it and does nothing (or is done all the same, with ``is_done``; a conditional
    call never is, for its errors prove that nothing was changed). Without one, it is done and is the last: `Death` comes
    up instead of its answer, and out of every operation after it.
    """

    def __init__(self, inner: Any, at: int | None = None, error: OSError | None = None, *, is_done: bool = False) -> None:
        super().__init__(inner)
        self.at, self.error, self.is_done = at, error, is_done
        self.names: list[str] = []

    def operate(self, name: str, call: Callable[[], Any]) -> Any:
        number = len(self.names)
        self.names.append(name)
        if self.at is None or number < self.at:
            return call()
        if self.error is None:
            if number == self.at:
                call()
            raise Death
        if number > self.at:
            return call()
        if self.is_done and name not in CONDITIONAL:
            call()
        raise self.error


class LossyStore(WrappedStore):
    """Loses answers of conditional calls. ``fates`` says what becomes of each, in order; after them all is well.

    A fate is ``"ok"`` (answered), or the answer is lost and the change was made (``"applied"``), never will be
    (``"never"``), or will be when `deliver` is called (``"later"``).
    """

    def __init__(self, inner: Any, fates: Iterable[str]) -> None:
        super().__init__(inner)
        self.fates: Iterator[str] = iter(fates)
        self.late: list[Callable[[], Any]] = []

    def operate(self, name: str, call: Callable[[], Any]) -> Any:
        fate = next(self.fates, "ok") if name in CONDITIONAL else "ok"
        if fate == "later":
            self.late.append(call)
        elif fate != "never":
            answer = call()
        return answer if fate == "ok" else Answer.LOST

    def deliver(self) -> list[Any]:
        """Makes the late changes, in order; gives the answers nobody waits for."""
        late, self.late = self.late, []
        return [call() for call in late]
