"""One checkpoint by its own keys: what its index says, and arrays out of its data files.

The law: an entry that is broken, or lies where no data is, stops nobody from reading the others. Nothing is allocated
that the files' real sizes do not bear out.

Source: TensorFlow's tensor_bundle.cc, BundleReader.
"""

import errno
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ckptmgr.backend import Box, Extent, Folder, Places, TensorSpec, crc32c, numpy_dtype, read_raw, tensor_spec
from ckptmgr.errors import CorruptCheckpointError, UnsupportedTensorError
from ckptmgr_tf_bundle import stringtensor, table
from ckptmgr_tf_bundle.dtypes import INEXACT, LOW_BITS, NAMES, VARIANT
from ckptmgr_tf_bundle.entry import Entry, Header, parse_entry, parse_header
from ckptmgr_tf_bundle.origin import Origin
from ckptmgr_tf_bundle.slices import boxes, slice_key

INDEX = ".index"
_MAX_INDEX_NBYTES = 256 << 20
_STRAY_SLICES = 1024  # of damaged checkpoints: slices that lack their own entry
_MAX_EXTENTS = 1024  # of one tensor; those in more slices, which nobody writes, are joined here


class _Piece(NamedTuple):
    """A whole tensor (``box`` None), or a slice of a partitioned one, at a place that is inside its file."""

    entry: Entry
    file: str
    box: Box | None


class Specs(Mapping[str, TensorSpec]):
    """The spec of each tensor by its key, in the order of the index; asking for that of a broken entry raises its error."""

    def __init__(self, found: Mapping[str, TensorSpec | CorruptCheckpointError]) -> None:
        self._found = found

    def __getitem__(self, key: str) -> TensorSpec:
        found = self._found[key]
        if isinstance(found, CorruptCheckpointError):
            raise _again(found)
        return found

    def __contains__(self, key: object) -> bool:
        return key in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened checkpoint; it holds no open file, and many threads may read from it.

    ``specs`` has every tensor, ``variants`` what only TensorFlow can decode; ``keys`` are those of both, in the order of the
    index. ``is_exact`` says that all data is as numpy holds it, because ckptmgr wrote it.
    """

    folder: Folder
    prefix: str
    header: Header
    keys: Sequence[str]
    specs: Specs
    variants: Mapping[str, Entry]
    is_exact: bool
    _origin: Origin
    _entries: Mapping[str, Entry]
    _slices: Mapping[bytes, bytes]
    _sizes: Mapping[str, int]

    def extents(self, key: str) -> Sequence[Extent]:
        """Where the tensor's raw bytes lie, slice by slice if it is partitioned; empty if only `read` can decode it.

        Raises:
            KeyError: no tensor of that key.
            CorruptCheckpointError: its entry is broken, or its place is not in the files.
            UnsupportedTensorError: it is a variant.
        """
        spec, entry = self._tensor(key)
        pieces = self._pieces(entry, key)
        is_raw = not spec.is_string and not self.header.is_big_endian and (self.is_exact or spec.dtype not in INEXACT)
        if not is_raw or len(pieces) > _MAX_EXTENTS:
            return ()
        return [Extent(self.folder, file, found.offset, box, found.crc32c) for found, file, box in pieces]

    def extents_of(self, keys: Sequence[str]) -> Places:
        """The places of tensors by their keys, -1 for those that are not one piece of raw bytes; raises like `extents`."""
        found = [self._tensor(key) for key in keys]
        shards = sorted({entry.shard for _, entry in found})
        files = {shard: (number, self._sizes.get(self._file(shard), -1)) for number, shard in enumerate(shards)}
        inexact = frozenset[str]() if self.is_exact else INEXACT
        is_swapped = self.header.is_big_endian
        raw = [not (is_swapped or entry.slices or spec.is_string or spec.dtype in inexact) for spec, entry in found]
        offsets = [
            entry.offset if is_raw and entry.offset + entry.nbytes <= files[entry.shard][1] else -1
            for is_raw, (_, entry) in zip(raw, found, strict=True)
        ]
        indexes = np.array([files[entry.shard][0] for _, entry in found], np.int64)
        names = [self._file(shard) for shard in shards]
        checksums = [entry.crc32c for _, entry in found]
        return Places(self.folder, names, indexes, np.array(offsets, np.int64), checksums, {})

    def read(self, key: str, box: Box | None = None, out: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
        """The tensor, or the slice ``box`` of it, in a new array or in ``out``; string tensors as objects, which are `bytes`.

        What is read whole (a tensor, or a slice of a partitioned one) is compared with its crc32c; string tensors always.

        Raises:
            KeyError: no tensor of that key.
            ValueError: ``box`` is not inside the tensor, or ``out`` is of another shape or dtype.
            CorruptCheckpointError: its entry is broken, its place is not in the files, or bytes are not what was written.
            UnsupportedTensorError: it is a variant.
        """
        spec, entry = self._tensor(key)
        wanted = Box.whole(spec.shape) if box is None else box
        if not wanted.fits(spec.shape):
            raise ValueError(f"the slice {box} is not inside tensor {key!r} of shape {spec.shape}")
        pieces = self._pieces(entry, key, wanted)
        array = np.empty(wanted.shape, spec.numpy) if out is None else out
        if array.shape != wanted.shape or array.dtype.newbyteorder("=") != spec.numpy:
            raise ValueError(f"tensor {key!r} is {spec.dtype} of shape {wanted.shape}, not {array.dtype} of {array.shape}")
        for piece in pieces:
            if piece.box is None:
                self._fill(piece, key, wanted, array)
            elif common := piece.box.overlap(wanted):
                inside: tuple[Any, ...] = (..., *common.relative_to(wanted).slices)  # a view also of a 0-d array
                self._fill(piece, key, common.relative_to(piece.box), array[inside])
        return array

    def stored(self, key: str) -> bytes:
        """The bytes of any entry as they lie in the file, not verified; those of a variant can be copied into another bundle.

        Raises:
            KeyError: no entry of that key.
            CorruptCheckpointError: its entry is broken, or its place is not in the files.
            UnsupportedTensorError: it is partitioned, and has no bytes of its own.
        """
        entry = self._entry(key)
        if entry.slices:
            raise UnsupportedTensorError(f"tensor {key!r} is partitioned, and has no bytes of its own", tensor=key)
        return self._bytes(self._placed(entry, key), key)

    def nbytes(self, key: str) -> int:
        """How many bytes an entry says that it has in a file; KeyError or CorruptCheckpointError like `stored`."""
        return self._entry(key).nbytes

    def is_same(self, first: str, second: str) -> bool:
        """Whether two entries say the same of the same bytes, as those of tied tensors do.

        Raises:
            KeyError: no entry of such a key.
            CorruptCheckpointError: one of them is broken.
        """
        one, other = self._entry(first), self._entry(second)
        return one == other and (not one.slices or self._pieces(one, first) == self._pieces(other, second))

    def shared(self, keys: Iterable[str]) -> Mapping[str, str]:
        """Of these keys those whose entry says the same as that of an earlier one, with that: they are one tensor.

        Raises:
            CorruptCheckpointError: the tensors claim more bytes than the files hold, so some of them share bytes otherwise.
        """
        first: dict[tuple[int, int, int], str] = {}
        same: dict[str, str] = {}
        claimed = 0
        entries = self._entries
        sizes = {shard: self._sizes.get(self._file(shard), -1) for shard in {entry.shard for entry in entries.values()}}
        for key in keys:
            entry = entries.get(key)
            if entry is None:
                continue  # it tells so when it is asked for, as does one that is not inside its file
            if entry.slices:
                claimed += self.specs[key].nbytes
            elif entry.nbytes and entry.offset + entry.nbytes <= sizes[entry.shard]:
                other = first.setdefault((entry.shard, entry.offset, entry.nbytes), key)
                if other is not key and entries[other] == entry:
                    same[key] = other
                else:
                    claimed += entry.nbytes
        held = sum(nbytes for file, nbytes in self._sizes.items() if not file.endswith(INDEX))
        if claimed > held:
            raise self._origin.corrupt(f"its tensors claim {claimed} bytes, and its data files hold {held}")
        return same

    def _entry(self, key: str) -> Entry:
        if key in self.specs:
            _ = self.specs[key]  # raises, if the entry is broken
        return self._entries[key]

    def _tensor(self, key: str) -> tuple[TensorSpec, Entry]:
        if key in self.variants:
            raise UnsupportedTensorError(
                f"{key!r} is a variant (the state of a dataset's iterator, or the like), which only TensorFlow can decode",
                tensor=key,
            )
        return self.specs[key], self._entries[key]

    def _pieces(self, entry: Entry, key: str, wanted: Box | None = None) -> list[_Piece]:
        """The pieces of a tensor, of a partitioned one those that hold some of ``wanted``."""
        if not entry.slices:
            return [self._placed(entry, key)]
        pieces = [
            self._placed(self._slice(entry, slice_key(key.encode(), extents), box, key), key, box)
            for extents, box in zip(entry.slices, boxes(entry, key, self._origin), strict=True)
            if wanted is None or box.overlap(wanted)
        ]
        claimed = sum(piece.entry.nbytes for piece in pieces)
        held = sum(self._sizes[file] for file in {piece.file for piece in pieces})
        if claimed > held:
            raise self._origin.corrupt(f"its slices have {claimed} bytes, the files that they lie in {held}", key)
        return pieces

    def _slice(self, whole: Entry, stored_key: bytes, box: Box, key: str) -> Entry:
        value = self._slices.get(stored_key)
        if value is None:
            raise self._origin.corrupt(f"its slice from {box.start} to {box.stop} has no entry", key)
        found = parse_entry(value, key, self.header, self._origin)
        if (found.dtype, found.shape, found.slices) != (whole.dtype, box.shape, ()):
            raise self._origin.corrupt(f"the entry of its slice from {box.start} to {box.stop} is of another kind", key)
        return found

    def _placed(self, entry: Entry, key: str, box: Box | None = None) -> _Piece:
        file = self._file(entry.shard)
        size, end = self._sizes.get(file), entry.offset + entry.nbytes
        if size is None:
            raise self._at(file).corrupt("its data file is missing (links do not count)", key)
        if end > size:
            raise self._at(file).corrupt(f"its bytes end at {end}, the file at {size}: the file was cut off", key)
        return _Piece(entry, file, box)

    def _file(self, shard: int) -> str:
        return f"{self.prefix}.data-{shard:05d}-of-{self.header.num_shards:05d}"

    def _at(self, file: str) -> Origin:
        return Origin(file, self.folder.location(file))

    def _fill(self, piece: _Piece, key: str, box: Box, target: np.ndarray[Any, Any]) -> None:
        """Fills ``target`` with the slice ``box`` of a piece."""
        entry, file, _ = piece
        name = NAMES[entry.dtype]
        if target.dtype.hasobject:
            target[...] = self._strings(piece, key)[box.slices]
            return
        is_direct = target.flags.c_contiguous and target.dtype == numpy_dtype(name)
        array = target if is_direct else np.empty(target.shape, numpy_dtype(name))
        raw = array.reshape(-1).view(np.uint8)
        is_whole = box.shape == entry.shape
        try:
            if is_whole:
                self.folder.read_into(file, entry.offset, [raw])
            else:
                read_raw(self.folder, file, entry.offset, entry.shape, box, array)
        except (EOFError, FileNotFoundError) as error:
            raise self._at(file).corrupt("its data file was cut off or deleted while it was read", key) from error
        if is_whole and crc32c(raw) != entry.crc32c:
            raise self._at(file).corrupt("its bytes are not what was written (their crc32c differs)", key)
        _normalise(raw, name, self.header.is_big_endian)
        if not is_direct:
            target[...] = array

    def _strings(self, piece: _Piece, key: str) -> np.ndarray[Any, Any]:
        entry, file, _ = piece
        count = math.prod(entry.shape)
        stored = self._bytes(piece, key)
        try:
            values = stringtensor.decode(stored, count, entry.crc32c, self.header.is_big_endian)
        except ValueError as error:
            raise self._at(file).corrupt(str(error), key) from error
        array = np.empty(count, object)
        array[:] = values
        return array.reshape(entry.shape)

    def _bytes(self, piece: _Piece, key: str) -> bytes:
        entry, file, _ = piece
        try:
            return self.folder.read_range(file, entry.offset, entry.nbytes)
        except (EOFError, FileNotFoundError) as error:
            raise self._at(file).corrupt("its data file was cut off or deleted while it was read", key) from error


def open_bundle(folder: Folder, prefix: str, *, is_exact: bool = False) -> Bundle:
    """The checkpoint whose index is ``<prefix>.index`` in the folder. No data file is opened; the folder is listed once.

    Raises:
        FileNotFoundError: there is no such index.
        CorruptCheckpointError: the index or its header is damaged; a broken entry only raises when it is asked for.
        FormatVersionError: readers of this version must not read it.
    """
    name = prefix + INDEX
    sizes = {file: head.nbytes for file, head in folder.list().files.items() if file.startswith(prefix)}
    if name not in sizes:
        raise FileNotFoundError(errno.ENOENT, "no index of a TensorFlow checkpoint", folder.location(name))
    origin = Origin(name, folder.location(name))
    if sizes[name] > _MAX_INDEX_NBYTES:
        raise origin.corrupt(f"an index of {sizes[name]} bytes is over the limit of {_MAX_INDEX_NBYTES}")
    try:
        items = table.decode(folder.read_range(name, 0, sizes[name]), origin)
    except EOFError as error:
        raise origin.corrupt("it was cut off while it was read") from error
    header = parse_header(items[0][1], origin)
    hidden = {key: value for key, value in items[1:] if key[0] == 0}
    found = _entries((pair for pair in items[1:] if pair[0][0] != 0), header, origin, len(hidden) + _STRAY_SLICES)
    entries = {key: entry for key, entry in found.items() if isinstance(entry, Entry)}
    variants = {key: entry for key, entry in entries.items() if entry.dtype == VARIANT}
    specs = {
        key: tensor_spec(numpy_dtype(NAMES[entry.dtype]), entry.shape) if isinstance(entry, Entry) else entry
        for key, entry in found.items()
        if key not in variants
    }
    return Bundle(folder, prefix, header, [*found], Specs(specs), variants, is_exact, origin, entries, hidden, sizes)


def _entries(
    items: Iterable[tuple[bytes, bytes]], header: Header, origin: Origin, slices: int
) -> dict[str, Entry | CorruptCheckpointError]:
    """Each entry by its key, or what is wrong with it. A key that is no text has its `repr`, where no other is called so.

    All of them have at most ``slices`` slices together: each slice needs an entry of its own.
    """
    found: dict[str, Entry | CorruptCheckpointError] = {}
    for raw, value in items:
        key = ""
        try:
            key = raw.decode()
            entry = found[key] = parse_entry(value, key, header, origin, most_slices=slices)
            slices -= len(entry.slices)
        except UnicodeDecodeError:
            found.setdefault(repr(raw), origin.corrupt("its key is no UTF-8", repr(raw)))
        except CorruptCheckpointError as error:
            found[key] = _again(error)
    return found


def _again(error: CorruptCheckpointError) -> CorruptCheckpointError:
    """The same error without the story of where it was raised before."""
    return CorruptCheckpointError(str(error), file=error.file, tensor=error.tensor)


def _normalise(raw: np.ndarray[Any, Any], name: str, is_big_endian: bool) -> None:
    """Turns the stored bytes of a dtype into those that numpy holds, in place."""
    if name in LOW_BITS:
        raw &= LOW_BITS[name]
    elif name == "bool":
        np.not_equal(raw, 0, out=raw.view(np.bool_))
    elif is_big_endian:
        dtype = numpy_dtype(name)
        width = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
        raw.view(f"u{width}").byteswap(inplace=True)
