"""HDF5 files of any kind, read by h5py in a process of its own: what our own parser does not know.

The law: whatever the bytes are, this process gets what they say, or one of our errors. h5py is never imported here.
"""

import math
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from ckptmgr.backend import Box, Folder
from ckptmgr_hdf5.answers import Builder, Details, Nonsense, parse_details, split_texts
from ckptmgr_hdf5.blocks import Reader
from ckptmgr_hdf5.heaps import Heaps, Share
from ckptmgr_hdf5.origin import Origin
from ckptmgr_hdf5.parsing import Dataset, Group, Tree
from ckptmgr_hdf5.process import Process

TIMEOUT_S = 30.0
MEMORY_NBYTES = 1 << 30
WINDOW_NBYTES = 8 << 20
CHUNK_NBYTES = 256 << 20  # HDF5 decodes a chunk as a whole
# What data may grow to when it is decoded. gzip alone makes up to 1032 bytes of one.
FREE_NBYTES, EXPANSION = 16 << 20, 1100
_VALUE_NBYTES = 64 << 20  # of an attribute, and of the texts that are read at once
_TEXTS = 1 << 16
_CHUNKS = 10_000  # that are read at once: it takes about a second
_LINK_NBYTES, _SPARE_LINKS = 16, 1000  # the least that a link takes; links of groups that have several names count again
_DEPTH = 200


class Worker:
    """One file by h5py. The process starts with the first question and ends with `close`; if it is lost, with the next one.

    Any thread may ask; one is answered at a time. ``memory_nbytes`` is what the process may take, ``timeout_s`` how long it
    may be silent; how long it may compute is limited as well, by what there is to decode.

    Raises:
        MissingDependencyError: by every method but `close`: h5py is not installed.
        OSError: by every method but `close`: no process can be started, or as the storage gave it.
    """

    def __init__(
        self, reader: Reader, origin: Origin, *, timeout_s: float = TIMEOUT_S, memory_nbytes: int = MEMORY_NBYTES
    ) -> None:
        self._reader = reader
        self._origin = origin
        self._details: dict[str, Details] = {}
        self._share = Share(reader.nbytes)
        limits = {
            "nbytes": reader.nbytes,
            "memory": memory_nbytes,
            "chunk": min(CHUNK_NBYTES, memory_nbytes // 4),
            "free": FREE_NBYTES,
            "expansion": EXPANSION,
            "value": min(_VALUE_NBYTES, reader.nbytes),
            "links": reader.nbytes // _LINK_NBYTES + _SPARE_LINKS,
            "depth": _DEPTH,
        }
        self._process = Process(reader, origin, limits, timeout_s)

    @classmethod
    def for_folder(cls, folder: Folder, file: str, base: int, nbytes: int | None, origin: Origin) -> Self:
        """For ``nbytes`` of a file from ``base`` on: a whole file, or one that is stored in an archive.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return cls(Reader.of_file(folder, file, start=base, nbytes=nbytes), origin)

    def tree(self) -> Tree:
        """All groups and datasets, as `ckptmgr_hdf5.parsing.parse` gives them, their attributes being read already.

        The storage of compact datasets is "chunked": only `read` finds their bytes, too.

        Raises:
            CorruptCheckpointError: no HDF5 file, or damaged.
            UnsafeCheckpointError: a link that is not a hard one, data in another file, a virtual dataset.
        """
        builder = Builder(self._origin, most=self._reader.nbytes + _VALUE_NBYTES, start=self._reader.start)
        with self._process.conversation():
            self._process.ask("tree")
            is_last = False
            while not is_last:
                frame, data, is_last = self._process.answer(2 * _VALUE_NBYTES)
                try:
                    builder.add(frame.get("entries"), data)
                except Nonsense as error:
                    raise self._process.nonsense() from error
        return _WorkedTree(self._root(builder), self)

    def read(self, path: str, box: Box, out: np.ndarray[Any, Any]) -> None:
        """Fills ``out`` with ``box`` of a dataset of anything but texts of variable length.

        ``out`` has the box's shape and the dataset's dtype, in any memory and byte order. Besides it some windows of at most
        8 MiB are held here.

        Raises:
            CorruptCheckpointError: there is no such dataset, it is damaged or was never written, it is stored through a
                filter that HDF5 does not have by itself, or it grows too much when it is decoded.
            UnsafeCheckpointError: see `tree`; this one may be asked for without it.
            ValueError: ``box`` is not inside the dataset, or ``out`` is of another shape or dtype.
        """
        dataset, chunk = self._detailed(path)
        dtype = dataset.dtype
        if dtype is None or dtype.hasobject or dataset.shape is None:
            raise self._origin.corrupt("it has no elements that numpy has a word for", path)
        if not box.fits(dataset.shape) or out.shape != box.shape:
            raise ValueError(f"{box} of {path!r}, whose shape is {dataset.shape}, cannot fill an array of shape {out.shape}")
        if out.dtype.newbyteorder("<") != dtype.newbyteorder("<"):
            raise ValueError(f"{path!r} has dtype {dtype}, and the array {out.dtype}")
        most = max(WINDOW_NBYTES // dtype.itemsize, 1)
        for window in windows(box, chunk, min(most, _CHUNKS * math.prod(chunk)) if chunk else most):
            raw = np.empty(window.size * dtype.itemsize, np.uint8)
            with self._process.conversation():
                self._process.ask("read", path, start=window.start, stop=window.stop)
                self._process.answer(0, raw)
            # What is not 0 is true, and must be 1 for numpy.
            found = raw != 0 if dataset.kind == "bool" else raw.view(dtype)
            out[window.relative_to(box).slices] = found.reshape(window.shape)

    def texts(self, path: str) -> np.ndarray[Any, Any]:
        """The elements of a dataset of texts: `str` objects if of variable length, else ``S<n>``; see `Tree.strings`.

        Raises:
            CorruptCheckpointError: see `read`; or they are no texts, or no UTF-8, or have more bytes than the file.
        """
        dataset, chunk = self._detailed(path)
        box = Box.whole(dataset.shape or (0,))
        if dataset.kind == "string":
            array = np.empty(box.shape, dataset.dtype)
            self.read(path, box, array)
            return array
        if dataset.kind != "vlen_string":
            raise self._origin.corrupt("its elements are no texts", path)
        most = left = self._share.left(dataset.address)
        texts = np.empty(box.shape, object)
        for window in windows(box, chunk, _TEXTS):
            with self._process.conversation():
                self._process.ask("texts", path, start=window.start, stop=window.stop)
                data = self._process.answer(_VALUE_NBYTES).data
            left -= len(data)  # every text lies in the file on its own
            if left < 0:
                raise self._origin.corrupt("its texts have more bytes than the file", path)
            texts[window.slices] = self._split(data, window, path)
        self._share.take(dataset.address, most - left)
        return texts

    def close(self) -> None:
        """Ends the process."""
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _detailed(self, path: str) -> Details:
        if path not in self._details:
            with self._process.conversation():
                self._process.ask("dataset", path)
                try:
                    self._details[path] = parse_details(self._process.answer(0).frame, path, self._reader.start)
                except Nonsense as error:
                    raise self._process.nonsense(path) from error
        return self._details[path]

    def _root(self, builder: Builder) -> Group:
        try:
            return builder.root
        except Nonsense as error:
            raise self._process.nonsense() from error

    def _split(self, data: bytearray, window: Box, path: str) -> np.ndarray[Any, Any]:
        array = np.empty(window.size, object)
        try:
            array[:] = split_texts(data, window.size)
        except (Nonsense, UnicodeDecodeError) as error:
            raise self._origin.corrupt("its texts are no UTF-8", path) from error
        return array.reshape(window.shape)


class _WorkedTree(Tree):
    """A tree whose texts the worker reads."""

    def __init__(self, root: Group, worker: Worker) -> None:
        super().__init__(root, worker._reader, Heaps(worker._reader), worker._origin)
        self._worker = worker

    def strings(self, dataset: Dataset) -> np.ndarray[Any, Any]:
        return self._worker.texts(dataset.path)


def windows(box: Box, chunk: Sequence[int] | None, most: int) -> Iterator[Box]:
    """``box`` cut into boxes of at most ``most`` elements, so that no chunk is decoded again after another one.

    Where a chunk has no more than ``most`` elements, each is in one window only. The windows cover the box once, in C order
    of the chunks; without chunks, in that of the elements.
    """
    if chunk is None or not box.size:
        yield from box.chunks(most)
        return
    cell = _widened(chunk, box, most)
    counts = [range(a // n, -(-b // n)) for a, b, n in zip(box.start, box.stop, cell, strict=True)]
    for flat in range(math.prod(map(len, counts))):
        at = _index(flat, counts)
        start = tuple(max(i * n, a) for i, n, a in zip(at, cell, box.start, strict=True))
        stop = tuple(min((i + 1) * n, b) for i, n, b in zip(at, cell, box.stop, strict=True))
        yield from Box(start, stop).chunks(most)


def _widened(chunk: Sequence[int], box: Box, most: int) -> list[int]:
    """Whole chunks side by side, as many as have ``most`` elements, or one."""
    cell = list(chunk)
    for axis in reversed(range(len(cell))):
        fitting = max(most // math.prod(cell), 1)
        wanted = -(-box.stop[axis] // cell[axis])
        cell[axis] *= min(fitting, wanted)
        if fitting < wanted:
            break
    return cell


def _index(flat: int, counts: Sequence[range]) -> list[int]:
    at = []
    for count in reversed(counts):
        flat, rest = divmod(flat, len(count))
        at.append(count[rest])
    return at[::-1]
