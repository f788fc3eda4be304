"""The tensors of opened files. Nothing is read before somebody asks for it."""

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from ckptmgr.backend import (
    JSON,
    Box,
    Extent,
    Folder,
    Head,
    PackedArray,
    TensorSpec,
    combine_crc32,
    crc32,
    read_raw,
    zipreading,
)
from ckptmgr_npz.inflating import Inflater
from ckptmgr_npz.npy import Header

_BLOB_NBYTES = 16 << 20


class Entry(NamedTuple):
    """One array: its member, header and the header's bytes; ``place`` is where the member starts, None if it is compressed."""

    archive: zipreading.Archive
    member: str
    header: Header
    head: bytes
    spec: TensorSpec
    place: int | None


@dataclass(frozen=True, slots=True)
class NpzSource:
    """A `TensorSource` over one ``.npz`` file or a set of them.

    ``main`` is the file that was opened. No file is held open; a compressed array that is read box by box from its beginning on
    is decompressed once.
    """

    entries: Mapping[str, Entry]
    aliases: Mapping[str, str]
    metadata: Mapping[str, JSON]
    held: Mapping[str, tuple[zipreading.Archive, str]]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    main: tuple[Folder, str, Head] | None = None
    specs: Mapping[str, TensorSpec] = field(init=False)
    _inflating: dict[str, Inflater] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        object.__setattr__(self, "specs", {name: entry.spec for name, entry in self.entries.items()})

    @property
    def blobs(self) -> Mapping[str, bytes]:
        """Members of which no array can be made, as they are: records, raw void, other files."""
        return _Blobs(self.held)

    def is_same(self) -> bool:
        """See `Replaceable`."""
        return self.main is None or self.main[0].head(self.main[1]) == self.main[2]

    def extents(self, name: str) -> Sequence[Extent]:
        """Where the tensor lies; empty if it is compressed, big-endian, in Fortran order, or strings."""
        entry = self._entry(name)
        if entry.place is None or not entry.header.is_raw:
            return ()
        return (Extent(entry.archive.folder, entry.archive.file, entry.place + entry.header.nbytes),)

    def crc32(self, name: str) -> int | None:
        """See `Summed`; that of the member without its header."""
        entry = self._entry(name)
        if entry.place is None or not entry.header.is_raw:
            return None
        whole = entry.archive.members[entry.member].crc32
        return whole ^ combine_crc32(crc32(entry.head), 0, entry.header.data_nbytes)

    def read(self, name: str, box: Box | None = None, out: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
        """See `TensorSource.read`. A packed tensor is flat and comes whole; strings are objects, which are `bytes`.

        Raises:
            KeyError: no tensor of that name.
            ValueError: ``box`` is not inside the tensor or cuts a packed one, or ``out`` is of another shape or dtype.
            CorruptCheckpointError: the bytes are not there, or not what was written.
        """
        entry = self._entry(name)
        spec = entry.spec
        if box is not None and (not box.fits(spec.shape) or (spec.is_packed and box != Box.whole(spec.shape))):
            raise ValueError(f"{box} is no slice of tensor {name!r}, {spec.dtype} of shape {spec.shape}")
        shape = (spec.nbytes,) if spec.is_packed else spec.shape
        wanted = Box.whole(shape) if box is None or spec.is_packed else box
        array = np.empty(wanted.shape, spec.numpy) if out is None else out
        if array.shape != wanted.shape or array.dtype.newbyteorder("=") != spec.numpy:
            raise ValueError(f"tensor {name!r} is {spec.dtype} of shape {wanted.shape}, not {array.dtype} of {array.shape}")
        if self.extents(name):
            self._read_raw(name, entry, shape, wanted, array)
        else:
            array[...] = self._decoded(name, entry, wanted)
        return PackedArray.wrap(array, spec) if spec.is_packed and out is None else array

    def close(self) -> None:
        """Forgets what is half decompressed."""
        self._inflating.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _entry(self, name: str) -> Entry:
        return self.entries[self.aliases.get(name, name)]

    def _read_raw(self, name: str, entry: Entry, shape: tuple[int, ...], box: Box, array: np.ndarray[Any, Any]) -> None:
        assert entry.place is not None
        try:
            read_raw(entry.archive.folder, entry.archive.file, entry.place + entry.header.nbytes, shape, box, array)
        except EOFError as error:
            raise entry.archive.origin.corrupt("it was cut off while it was read", name) from error
        if box == Box.whole(shape) and array.flags.c_contiguous and array.dtype == entry.spec.numpy:
            self._check(name, entry, crc32(array.reshape(-1).view(np.uint8).data) if array.nbytes else 0, self.crc32(name))

    @staticmethod
    def _check(name: str, entry: Entry, found: int, expected: int | None) -> None:
        if found != expected:
            raise entry.archive.origin.corrupt("its bytes are not what was written (their crc32 differs)", name)

    def _decoded(self, name: str, entry: Entry, box: Box) -> np.ndarray[Any, Any]:
        """The elements in the box, of an array whose bytes are not those of its tensor."""
        header, spec = entry.header, entry.spec
        shape = header.shape[::-1] if header.is_fortran else header.shape  # as the bytes lie in C order
        lying = Box(box.start[::-1], box.stop[::-1]) if header.is_fortran else box
        runs = [*lying.runs(shape)]
        first, last = (runs[0][0], runs[-1][0] + runs[-1][1]) if runs else (0, 0)
        itemsize = header.dtype.itemsize
        raw = self._bytes(name, entry, header.nbytes + first * itemsize, (last - first) * itemsize)
        if entry.place is not None and len(raw) == header.data_nbytes:
            self._check(name, entry, crc32(raw, crc32(entry.head)), entry.archive.members[entry.member].crc32)
        if header.dtype.kind == "U" and raw and np.frombuffer(raw, header.dtype.str[0] + "u4").max() > sys.maxunicode:
            raise entry.archive.origin.corrupt("its texts are not made of characters", name)
        flat = np.frombuffer(raw, header.dtype)
        taken = np.concatenate([flat[start - first : start - first + count] for start, count in runs] or [flat])
        found = taken.reshape(lying.shape)
        found = found.transpose() if header.is_fortran else found
        if spec.is_string:
            values = found.reshape(-1).tolist()
            made = np.empty(len(values), object)
            made[:] = [value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value for value in values]
            return made.reshape(box.shape)
        if found.dtype.newbyteorder("=") == spec.numpy:
            return found
        return np.ascontiguousarray(found.astype(found.dtype.newbyteorder("="))).view(spec.numpy)

    def _bytes(self, name: str, entry: Entry, offset: int, nbytes: int) -> bytes:
        if entry.place is not None:
            try:
                return entry.archive.folder.read_range(entry.archive.file, entry.place + offset, nbytes)
            except EOFError as error:
                raise entry.archive.origin.corrupt("it was cut off while it was read", name) from error
        with self._lock:
            inflater = self._inflating.pop(name, None)
            if inflater is None or inflater.position > offset:
                inflater = Inflater(entry.archive, entry.archive.members[entry.member])
            while inflater.position < offset:
                inflater.read(min(offset - inflater.position, 1 << 20))
            data = inflater.read(nbytes)
            if inflater.position < inflater.member.nbytes:
                self._inflating[name] = inflater
        return data


@dataclass(frozen=True, slots=True)
class _Blobs(Mapping[str, bytes]):
    held: Mapping[str, tuple[zipreading.Archive, str]]

    def __getitem__(self, name: str) -> bytes:
        archive, member = self.held[name]
        return archive.read(member, _BLOB_NBYTES)

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)
