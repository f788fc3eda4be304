"""The bytes of one HDF5 file, fetched in few and bounded reads; and the law that no byte of structure is used twice.

A file of up to 1 MiB is fetched whole. Of others 64 KiB around what is asked for, and twice as much (up to 1 MiB) each time
that a read goes on where the last one ended: many small objects in a row cost few requests, few scattered ones few bytes.
"""

import errno
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from ckptmgr.backend import Folder
from ckptmgr_hdf5.faults import Damaged

_BLOCK = 64 << 10
_WHOLE = 1 << 20  # the largest file that is fetched whole, and the largest piece fetched of others
_CACHE = (16 << 20) // _BLOCK  # blocks held
_SLACK = 1 << 20  # bytes of structure that may be read again, because an object has several names


class Reader:
    """A file, or a stored member of an archive, from ``start`` on: reads inside of it, many threads at once.

    ``fetch`` gives bytes of the whole file by offset and number.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], nbytes: int, *, start: int = 0) -> None:
        self.nbytes = nbytes
        self.start = start
        self._fetch = fetch
        self._whole: bytes | None = None
        self._blocks: dict[int, bytes] = {}
        self._grown: dict[int, int] = {}  # where a fetch ended: blocks that it had
        self._lock = threading.Lock()

    @classmethod
    def of_file(cls, folder: Folder, file: str, *, start: int = 0, nbytes: int | None = None) -> "Reader":
        """Reads ``nbytes`` of a file from ``start`` on (all that there is, if None).

        Raises:
            FileNotFoundError: there is no such file.
        """
        if nbytes is None:
            head = folder.head(file)
            if head is None:
                raise FileNotFoundError(errno.ENOENT, "no such file", folder.location(file))
            nbytes = max(head.nbytes - start, 0)

        def fetch(offset: int, count: int) -> bytes:
            try:
                return folder.read_range(file, offset, count)
            except (EOFError, FileNotFoundError) as error:
                raise Damaged("the file was cut off or deleted while it was read") from error

        return cls(fetch, nbytes, start=start)

    @classmethod
    def of_bytes(cls, data: bytes) -> "Reader":
        """Reads what is in memory already."""
        return cls(lambda offset, count: data[offset : offset + count], len(data))

    def after(self, nbytes: int) -> "Reader":
        """A reader of the same bytes without the first ``nbytes``."""
        return Reader(self._fetch, self.nbytes - nbytes, start=self.start + nbytes) if nbytes else self

    def read(self, offset: int, nbytes: int) -> bytes:
        """``nbytes`` bytes from ``offset`` on, counted from ``start``.

        Raises:
            Damaged: they are not all inside.
        """
        end = offset + nbytes
        if offset < 0 or nbytes < 0 or end > self.nbytes:
            raise Damaged(f"bytes {offset} to {end} are needed, and there are {self.nbytes}")
        if self._whole is not None:
            return self._whole[offset:end]
        index, within = divmod(offset, _BLOCK)
        block = self._blocks.get(index)
        if block is not None and within + nbytes <= len(block):
            return block[within : within + nbytes]
        return self._read(offset, end)

    def _read(self, offset: int, end: int) -> bytes:
        if self.nbytes <= _WHOLE:
            self._whole = self._fetch(self.start, self.nbytes)
            return self._whole[offset:end]
        if end - offset > _WHOLE:
            return self._fetch(self.start + offset, end - offset)
        first = offset // _BLOCK
        with self._lock:
            found = b"".join([self._block(index) for index in range(first, -(-end // _BLOCK))])
        return found[offset - first * _BLOCK : end - first * _BLOCK]

    def _block(self, index: int) -> bytes:
        found = self._blocks.get(index)
        if found is not None:
            return found
        count = min(2 * self._grown.pop(index, 0) or 1, _WHOLE // _BLOCK)
        _keep(self._grown, index + count, count)
        data = self._fetch(self.start + index * _BLOCK, min(count * _BLOCK, self.nbytes - index * _BLOCK))
        for at in range(0, len(data), _BLOCK):
            _keep(self._blocks, index + at // _BLOCK, data[at : at + _BLOCK])
        return data[:_BLOCK]


def _keep(held: dict[int, Any], key: int, value: Any) -> None:
    """Puts a value where few are held, the oldest of which goes."""
    held[key] = value
    if len(held) > _CACHE:
        del held[next(iter(held))]


class Claims:
    """The parts of a file that were read as structure. They do not overlap, so all work is bounded by what is there.

    The same part may be read again, as for an object with two names, up to 1 MiB in all.
    """

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}
        self._first = self._again = 0
        self._limit = _SLACK

    @property
    def nbytes(self) -> int:
        """How much was read."""
        return self._first + self._again

    def add(self, start: int, nbytes: int) -> None:
        """Says that these bytes are read now.

        Raises:
            Damaged: too many bytes have been read as two things.
        """
        if start in self._ends:
            self._again += nbytes
            if self._again > _SLACK:
                raise Damaged("the file leads to the same places over and over")
            return
        self._ends[start] = start + nbytes
        self._first += nbytes
        if self._first > self._limit:
            self._check()
            self._limit = 2 * self._first

    def _check(self) -> None:
        for (_, end), (start, _) in pairwise(sorted(self._ends.items())):
            if end > start:
                raise Damaged(f"two of its structures overlap at byte {start}")
