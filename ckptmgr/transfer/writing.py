"""Moves tensors from a source into the files of a layout, in one pass.

A file is a sequence of windows, each a list of buffers: views of the tensors' own memory wherever that holds raw
little-endian C-order bytes, staged copies where it does not. While the store writes a window, a second thread makes
its checksums. Small tensors share a window, so none costs the store a call of its own.
"""

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from ckptmgr.box import Box
from ckptmgr.checksum import combine, crc32, crc32c
from ckptmgr.errors import SaveError
from ckptmgr.layout import Digest, FileLayout, Late, Layout, Part
from ckptmgr.source import TensorSource
from ckptmgr.spec import USED_BITS
from ckptmgr.storage import Folder
from ckptmgr.transfer.lanes import Lane
from ckptmgr.transfer.planning import BUFFERS
from ckptmgr.transfer.stats import Progress, Stats, Tally

_Array: TypeAlias = np.ndarray[Any, Any]
_Buffer: TypeAlias = memoryview | _Array
_B = TypeVar("_B", memoryview, _Array)
_Digests: TypeAlias = Mapping[str, Sequence[Digest]]

LANE_DEPTH = 2  # windows whose checksums are waited for; besides these one is filled, and that is all that is staged
_COMBINE_NBYTES = 1 << 16  # from here on, combining two checksums is cheaper than reading the bytes again
_KINDS = frozenset({"crc32c", "crc32"})


class WrittenFile(NamedTuple):
    """What a file is to be compared with later."""

    nbytes: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: files in the layout's order, and the digests of each file's pieces, in their order."""

    files: Mapping[str, WrittenFile]
    digests: _Digests
    stats: Stats


def write(
    folder: Folder,
    layout: Layout,
    source: TensorSource,
    *,
    progress: Progress | None = None,
    known: Mapping[str, tuple[WrittenFile, Sequence[Digest]]] | None = None,
) -> Written:
    """Writes the layout's files into the folder, in order, with the source's tensors in their places.

    ``known`` files are there already: they are passed over, with these checksums of the whole and of the pieces.

    Each file is durable before the next is begun. If this raises, the file it was at does not appear; those before it
    stay. The source is asked for slices of at most one window at a time. ``progress`` is called in this thread.

    Raises:
        SaveError: a tensor is not of the announced dtype and shape any more.
        ValueError: the layout is wrong in itself: an unknown digest, a string tensor, a late piece of another size.
        OSError: from the store.
    """
    if unknown := layout.digests - _KINDS:
        raise ValueError(f"the layout asks for digests {sorted(unknown)}; known are {sorted(_KINDS)}")
    started = time.perf_counter()
    files: dict[str, WrittenFile] = {}
    digests: dict[str, Sequence[Digest]] = {}
    sizes = [file.nbytes for file in layout.files]
    known = known or {}
    total = sum(size or 0 for file, size in zip(layout.files, sizes, strict=True) if file.name not in known)
    tally = Tally(progress, total, "stage", "checksum")
    with Lane(LANE_DEPTH) as lane:
        for planned, size in zip(layout.files, sizes, strict=True):
            if planned.name in known:
                files[planned.name], digests[planned.name] = known[planned.name]
                continue
            file, nbytes = _sized(planned, size, digests)
            tally.total += nbytes if size is None else 0
            sums = _Sums(len(file.pieces), layout.digests, lane)
            late = functools.partial(_build, file.name, digests, sums)
            windows = _windows(file, source, folder.store.window_nbytes, late)
            folder.put(file.name, _taken(windows, sums, tally), nbytes)
            digests[file.name] = sums.digests()
            files[file.name] = WrittenFile(nbytes, sums.file)
            tally.add(0, checksum=sums.seconds)
    seconds = time.perf_counter() - started
    phases = {**tally.phases, "write": seconds - tally.phases["stage"]}
    return Written(files, digests, Stats(sum(file.nbytes for file in files.values()), seconds, phases))


def _sized(file: FileLayout, nbytes: int | None, before: _Digests) -> tuple[FileLayout, int]:
    """The file and its size, which a sole late piece tells only now."""
    if nbytes is not None:
        return file, nbytes
    if len(file.pieces) > 1 or not isinstance(late := file.pieces[0], Late):
        raise ValueError(f"file {file.name!r} has a late piece of unknown size among others")
    data = late.build({**before, file.name: ()})
    return FileLayout(file.name, (data,)), len(data)


def _build(file: str, before: _Digests, sums: "_Sums", late: Late, index: int) -> bytes:
    """A late piece's bytes, from the digests of all pieces before it."""
    data = late.build({**before, file: sums.digests(index)})
    if len(data) != late.nbytes:
        raise ValueError(f"late piece {index} of file {file!r} was announced with {late.nbytes} bytes and has {len(data)}")
    return data


class _Window:
    """Buffers that the store gets together, and the index of each one's piece."""

    __slots__ = ("buffers", "indices", "nbytes")

    def __init__(self) -> None:
        self.buffers: list[_Buffer] = []
        self.indices: list[int] = []
        self.nbytes = 0


def _windows(file: FileLayout, source: TensorSource, most: int, late: Callable[[Late, int], bytes]) -> Iterator[_Window]:
    """A file's bytes in windows of at most ``most`` bytes. What comes before a late piece is handed out before it is built."""
    window = _Window()
    for index, piece in enumerate(file.pieces):
        if isinstance(piece, Late):
            if window.buffers:
                yield window
                window = _Window()
            piece = late(piece, index)
        for buffer in _buffers(piece, source, most):
            nbytes = buffer.nbytes
            if window.buffers and (window.nbytes + nbytes > most or len(window.buffers) == BUFFERS):
                yield window
                window = _Window()
            window.buffers.append(buffer)
            window.indices.append(index)
            window.nbytes += nbytes
    if window.buffers:
        yield window


def _buffers(piece: bytes | Part, source: TensorSource, most: int) -> Iterable[_Buffer]:
    """A piece's bytes in buffers of at most ``most`` bytes, or of one element; none if it is empty."""
    if isinstance(piece, bytes):
        return _cut(memoryview(piece), most)
    spec, nbytes = piece.spec, piece.nbytes
    if spec.is_string:
        raise ValueError(f"string tensor {piece.name!r} has no raw bytes: its layout must hold them literally")
    if nbytes == 0:
        return ()
    if spec.is_packed:
        # Elements share bytes, so there are no slices of such a tensor.
        return _cut(_raw(piece, None, source), most)
    if nbytes <= most:
        return (_raw(piece, piece.box, source),)
    box = piece.box or Box.whole(spec.shape)
    return (_raw(piece, chunk, source) for chunk in box.chunks(max(most // spec.numpy.itemsize, 1)))


def _cut(flat: _B, most: int) -> Iterator[_B]:
    return (flat[at : at + most] for at in range(0, len(flat), most))


def _raw(part: Part, box: Box | None, source: TensorSource) -> _Array:
    """The part's elements in the box as raw bytes: the array's own memory if it holds just that, else a copy."""
    spec = part.spec
    array, dtype = source.read(part.name, box), spec.numpy
    shape = box.shape if box is not None else (spec.nbytes,) if spec.is_packed else spec.shape
    if array.shape != shape or (array.dtype != dtype and array.dtype.newbyteorder("=") != dtype):
        raise SaveError(
            f"tensor {part.name!r} was announced as {spec.dtype} of shape {spec.shape}, but {box or 'the whole of it'} came "
            f"as {array.dtype} of shape {array.shape}; was it changed during the save?"
        )
    if spec.dtype == "bool":
        array = array.view(np.uint8) != 0  # an array viewed as another dtype may hold any byte, and a file only 0 and 1
    elif spec.dtype in USED_BITS:
        array = (array.view(np.uint8) & USED_BITS[spec.dtype]).view(dtype)  # arithmetic leaves its traces in the others
    return array if array.flags.c_contiguous and array.dtype == dtype else array.astype(dtype, order="C")


class _Sums:
    """The checksums of one file and of its pieces, made on the lane while its windows go by."""

    def __init__(self, npieces: int, kinds: frozenset[str], lane: Lane) -> None:
        self.file = 0
        self.seconds = 0.0
        self._crc32c = [0] * npieces
        self._crc32 = [0] * npieces if "crc32" in kinds else None
        self._lane = lane

    def begin(self, window: _Window) -> None:
        """Begins with those of the file's next window."""
        self._lane.submit(functools.partial(self._add, window))

    def digests(self, npieces: int | None = None) -> list[Digest]:
        """Those of the first ``npieces`` pieces, or of all, when they are made."""
        self._lane.wait()
        if self._crc32 is None:
            return [{"crc32c": value} for value in self._crc32c[:npieces]]
        both = zip(self._crc32c[:npieces], self._crc32[:npieces], strict=True)
        return [{"crc32c": first, "crc32": second} for first, second in both]

    def _add(self, window: _Window) -> None:
        started = time.perf_counter()
        pieces, file = self._crc32c, self.file
        for index, buffer in zip(window.indices, window.buffers, strict=True):
            value, nbytes = crc32c(buffer), buffer.nbytes
            file = combine(file, value, nbytes) if nbytes >= _COMBINE_NBYTES else crc32c(buffer, file)
            pieces[index] = combine(pieces[index], value, nbytes) if pieces[index] else value
        self.file = file
        if self._crc32 is not None:
            for index, buffer in zip(window.indices, window.buffers, strict=True):
                self._crc32[index] = crc32(buffer, self._crc32[index])
        self.seconds += time.perf_counter() - started


def _taken(windows: Iterator[_Window], sums: _Sums, tally: Tally) -> Iterator[list[_Buffer]]:
    """The windows as the store takes them: what has been asked for again was written."""
    while True:
        started = time.perf_counter()
        window = next(windows, None)
        staged = time.perf_counter() - started
        if window is None:
            return
        sums.begin(window)
        yield window.buffers
        tally.add(window.nbytes, stage=staged)
