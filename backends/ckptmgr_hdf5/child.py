"""Reads one HDF5 file by h5py for another process, which loses nothing when this one crashes, hangs or grows.

Started by `ckptmgr_hdf5.process`, with a socket as standard input. It opens no file: the bytes of the HDF5 file come from
the asker. Before it looks at the first of them it gives up the right to open, write or load anything.

A frame is two sizes (of JSON and of data; 32 bits each), JSON, and data. A request is answered with one frame or several,
the last with ``end`` or ``error``; in between there may be ``want``, which the asker answers with bytes of the file.
"""

import json
import math
import os
import resource
import signal
import socket
import struct
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from h5py import h5a, h5d, h5f, h5fd, h5g, h5o, h5p, h5pl, h5s, version

from ckptmgr_hdf5 import vetting
from ckptmgr_hdf5.vetting import Damaged, Limits, Readable

_FRAME = struct.Struct("<II")
_BLOCK = 64 << 10  # what is fetched at least
_BLOCKS = 256
_FETCH = 4 << 20  # what is fetched at most
_BATCH_NBYTES = 256 << 10  # of names and values, before they are sent
_BATCH = 200
_H5PY_ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError)
_STEP_S = 1.0  # of CPU time that one object may take
_DECODED_PER_S = 20 << 20  # bytes that the slowest filter gives
_CHUNKS_PER_S = 5000  # that are found, however small
_RECORD = 16  # bytes at least, which tell where a chunk is


class Asker:
    """The process that asks: requests come from it, and the bytes of the file."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def send(self, frame: dict[str, Any], data: bytes | bytearray | memoryview = b"") -> None:
        """Says something to the asker."""
        text = json.dumps(frame).encode()
        self._channel.sendall(_FRAME.pack(len(text), len(data)) + text)
        if data:
            self._channel.sendall(data)

    def receive(self) -> dict[str, Any]:
        """What the asker says next; this process ends if that is nothing any more."""
        head = bytearray(_FRAME.size)
        self._fill(head)
        text = bytearray(_FRAME.unpack(head)[0])
        self._fill(text)
        words: dict[str, Any] = json.loads(text)
        return words

    def fetch(self, offset: int, out: bytearray | memoryview) -> None:
        """Fills a buffer with bytes of the file."""
        self.send({"want": [offset, len(out)]})
        self.receive()
        self._fill(out)

    def _fill(self, out: bytearray | memoryview) -> None:
        if out and self._channel.recv_into(out, len(out), socket.MSG_WAITALL) < len(out):
            os._exit(0)  # HDF5 must not tidy up: it crashes when Python is half gone


class AskedFile:
    """The asker's file as h5py wants one; the blocks used last are kept."""

    def __init__(self, asker: Asker, nbytes: int) -> None:
        self._asker = asker
        self._nbytes = nbytes
        self._at = 0
        self._blocks: OrderedDict[int, bytearray] = OrderedDict()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.IOBase.seek`."""
        self._at = offset + (self._nbytes if whence == os.SEEK_END else 0)
        return self._at

    def tell(self) -> int:
        """See `io.IOBase.tell`."""
        return self._at

    def flush(self) -> None:
        """Nothing is ever written."""

    def readinto(self, buffer: memoryview) -> int:
        """See `io.RawIOBase.readinto`."""
        out = memoryview(buffer).cast("B")
        nbytes, done = max(min(len(out), self._nbytes - self._at), 0), 0
        while done < nbytes:
            count = self._fill(self._at, out[done:nbytes])
            done += count
            self._at += count
        return done

    def _fill(self, offset: int, out: memoryview) -> int:
        """Fills the start of a buffer, and tells how much of it."""
        if len(out) >= _BLOCK:
            self._asker.fetch(offset, out[:_FETCH])
            return min(len(out), _FETCH)
        index, within = divmod(offset, _BLOCK)
        found = self._block(index)[within : within + len(out)]
        out[: len(found)] = found
        return len(found)

    def _block(self, index: int) -> bytearray:
        block = self._blocks.get(index)
        if block is None:
            start = index * _BLOCK
            block = self._blocks[index] = bytearray(min(_BLOCK, self._nbytes - start))
            self._asker.fetch(start, block)
            if len(self._blocks) > _BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(index)
        return block


class Batch:
    """Entries of the tree that are sent together, with the values of attributes as data."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._entries: list[list[Any]] = []
        self._data = bytearray()
        self._nbytes = 0

    def add(self, entry: list[Any], data: bytes = b"") -> None:
        """Sends an entry, now or later."""
        self._entries.append(entry)
        self._data += data
        self._nbytes += len(data) + sum(len(word) for word in entry if isinstance(word, str))
        if self._nbytes > _BATCH_NBYTES or len(self._entries) >= _BATCH:
            self.send()

    def send(self, **frame: Any) -> None:
        """Sends what was not sent yet."""
        self._asker.send({"entries": self._entries, **frame}, self._data)
        self._entries, self._data, self._nbytes = [], bytearray(), 0


class File:
    """The file, opened when it is first asked for, and the dataset that was read last. Its methods answer requests.

    ``place`` is the object that is looked at, for errors that do not name it.
    """

    def __init__(self, asker: Asker, limits: Limits) -> None:
        self._asker = asker
        self._limits = limits
        self.place = "/"
        self._root: h5g.GroupID | None = None
        self._last: Readable | None = None

    def tree(self, request: dict[str, Any]) -> None:
        """Every group, dataset and attribute: what is in a group after it, the attributes of an object right after it."""
        batch, root, left = Batch(self._asker), self._opened(), self._limits.links
        batch.add(["group", None, ""])
        self._attributes(root, "/", batch)
        groups, count = [(root, "", 0, frozenset((h5o.get_info(root).addr,)))], 1
        while groups:
            group, path, number, above = groups.pop()
            links = self._links(group, path, left)
            left -= len(links)
            for name, address in links:
                tick()
                place = self.place = f"{path}/{name}"
                child = h5o.open(group, name.encode())
                if isinstance(child, h5g.GroupID):
                    self._check_nesting(place, address, above)
                    batch.add(["group", number, name])
                    groups.append((child, place, count, above | {address}))
                    count += 1
                elif isinstance(child, h5d.DatasetID):
                    batch.add(["dataset", number, name, *vetting.described(child, place, self._limits), address])
                else:
                    continue  # a type with a name
                self._attributes(child, place, batch)
        batch.send(end=True)

    def dataset(self, request: dict[str, Any]) -> None:
        """What a dataset is and how it is chunked, if it may be read."""
        found = self._readable(request["path"])
        words = vetting.described(found.dataset, found.path, self._limits)
        self._asker.send({"end": [*words, h5o.get_info(found.dataset).addr], "chunk": found.chunk})

    def read(self, request: dict[str, Any]) -> None:
        """The stored bytes of a box of a dataset, in C order."""
        found, count = self._readable(request["path"]), _count(request)
        file_type = found.dataset.get_type()
        flat = np.empty(math.prod(count) * file_type.get_size(), np.uint8)
        self._tick(found, count)
        found.dataset.read(*_selection(found.dataset, request["start"], count), flat, file_type)
        self._asker.send({"end": True}, flat.data)

    def texts(self, request: dict[str, Any]) -> None:
        """A box of a dataset of texts of variable length, with NULs between."""
        found, count = self._readable(request["path"]), _count(request)
        texts = np.empty(count, found.dataset.dtype)
        self._tick(found, count)
        found.dataset.read(*_selection(found.dataset, request["start"], count), texts)
        self._asker.send({"end": True}, vetting.joined(texts, self._limits.value))

    def _opened(self) -> h5g.GroupID:
        if self._root is None:
            access = h5p.create(h5p.FILE_ACCESS)
            access.set_fileobj_driver(h5fd.fileobj_driver, AskedFile(self._asker, self._limits.nbytes))
            self._root = h5g.open(h5f.open(b"file", h5f.ACC_RDONLY, access), b"/")
        return self._root

    def _readable(self, path: str) -> Readable:
        if self._last is None or self._last.path != path:
            self.place, self._last = path, None
            self._last = vetting.readable(self._opened(), path, self._limits)
        return self._last

    def _tick(self, found: Readable, count: Sequence[int]) -> None:
        """Starts the step of reading that many elements along each dimension."""
        touched = math.prod(size // cut + 2 for size, cut in zip(count, found.chunk or (), strict=bool(found.chunk)))
        chunks = min(touched, self._limits.nbytes // _RECORD)
        tick(max(math.prod(count) * found.dataset.get_type().get_size(), found.chunk_nbytes), chunks)

    def _links(self, group: h5g.GroupID, path: str, most: int) -> list[tuple[str, int]]:
        """The objects of a group by name, and their addresses."""
        self.place = path or "/"
        found: list[tuple[bytes, int, int]] = []

        def add(raw: bytes, info: Any) -> bool | None:
            tick()
            found.append((raw, info.type, info.u))
            return len(found) > most or None  # h5py breaks if this raises; None goes on

        group.links.iterate(add, info=True)
        if len(found) > most:
            raise Damaged("there are more links than the file has place for", self.place)
        return [(vetting.link_name(raw, kind, path), address) for raw, kind, address in found]

    def _check_nesting(self, path: str, address: int, above: frozenset[int]) -> None:
        if address in above:
            raise Damaged("the group contains itself", path)
        if len(above) >= self._limits.depth:
            raise Damaged(f"groups are nested more than {self._limits.depth} deep", path)

    def _attributes(self, owner: Any, path: str, batch: Batch) -> None:
        self.place = path
        if h5a.get_num_attrs(owner) > self._limits.links:
            raise Damaged("there are more attributes than the file has place for", path)
        names: list[bytes] = []
        h5a.iterate(owner, names.append)
        for raw in names:
            tick()
            name = raw.decode()
            try:
                kind, dtype, shape, data = vetting.value(h5a.open(owner, raw), self._limits.value)
                batch.add(["attribute", name, kind, dtype, shape, len(data)], data)
            except (Damaged, *_H5PY_ERRORS) as error:
                batch.add(["attribute", name, "unreadable", str(error)[:200], None, 0])


def tick(nbytes: int = 0, chunks: int = 0) -> None:
    """Starts a step, which may decode ``nbytes``: this process is ended if it goes on computing for too long."""
    signal.setitimer(signal.ITIMER_PROF, _STEP_S + nbytes / _DECODED_PER_S + chunks / _CHUNKS_PER_S)


def confine(memory_nbytes: int) -> None:
    """From here on nothing can be opened, written or loaded, and no more than that much memory be taken."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    while h5pl.size():
        h5pl.remove(0)
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            most = int(file.read().split()[0]) * resource.getpagesize() + memory_nbytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
        resource.setrlimit(limit, (0, 0))


def _count(request: dict[str, Any]) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in zip(request["start"], request["stop"], strict=True))


def _selection(dataset: h5d.DatasetID, start: Sequence[int], count: Sequence[int]) -> tuple[h5s.SpaceID, h5s.SpaceID]:
    """Which elements of memory and of the file are meant."""
    file = dataset.get_space()
    if not count:
        return h5s.create(h5s.SCALAR), file
    file.select_hyperslab(tuple(start), tuple(count))
    return h5s.create_simple(tuple(count)), file


def main() -> None:
    """Answers one request after another until the asker is gone."""
    asker = Asker(socket.socket(fileno=0))
    asker.send({"end": version.version})
    limits = Limits(**asker.receive())
    confine(limits.memory)
    file = File(asker, limits)
    answers = {"tree": file.tree, "dataset": file.dataset, "read": file.read, "texts": file.texts}
    while True:
        request = asker.receive()
        tick()
        try:
            answers[request["ask"]](request)
        except Damaged as error:
            asker.send({"error": str(error), "path": error.path, "is_unsafe": error.is_unsafe})
        except _H5PY_ERRORS as error:
            asker.send({"error": f"h5py gave {type(error).__name__}: {error}"[:300], "path": file.place, "is_unsafe": False})
