"""An index file: a sorted table of keys and values, in blocks with checksums.

A file that `decode` takes was written whole and is undamaged wherever entries are; what it yields is bounded by the
file's own size. `encode` gives the very bytes that TensorFlow writes for the same entries.

Source: LevelDB's table_format.md, table_builder.cc and comparator.cc; TensorFlow's copies of them in tsl/lib/io.
"""

import operator
import struct
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from typing import NamedTuple

from ckptmgr.backend import crc32c
from ckptmgr.errors import MissingDependencyError
from ckptmgr_tf_bundle.masking import mask
from ckptmgr_tf_bundle.origin import Origin

MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER_NBYTES = 48
TRAILER_NBYTES = 5  # after each block: how it is stored, then the checksum of all that

_BLOCK_NBYTES = 262_144
_RESTART_INTERVAL = 16
_RAW, _SNAPPY = 0, 1
_FIXED32 = struct.Struct("<I")
_MAX_VARINT_NBYTES = 10

# Keys share prefixes, and snappy repeats: a few bytes can stand for long keys and for many. TensorFlow's tables, of at
# least 14 bytes an entry and with a whole key each 16 entries, stay far below what these allow.
_GROWTH = 64
_MIN_BUDGET = 1 << 20
_ENTRY_COST = 64


class _Handle(NamedTuple):
    """Where a block is; its trailer comes after it."""

    offset: int
    nbytes: int

    @property
    def stop(self) -> int:
        return self.offset + self.nbytes + TRAILER_NBYTES


class _Block(NamedTuple):
    """The bytes that hold a block's entries: ``data[start:stop]``."""

    data: bytes
    start: int
    stop: int


def decode(data: bytes, origin: Origin) -> list[tuple[bytes, bytes]]:
    """All keys and values of an index file, in the order of the keys; the first key is ``b""``, the header's.

    Takes memory and time in proportion to ``data``, whatever that claims. Search aids (restart points, the keys of the
    index block) and the metaindex block are not looked at.

    Raises:
        CorruptCheckpointError: it is damaged, cut short, no index file, or grows beyond all measure when decoded.
        MissingDependencyError: a block is compressed, and cramjam is not installed.
    """
    entries: list[tuple[bytes, bytes]] = []
    index: list[tuple[bytes, bytes]] = []
    budget = _MIN_BUDGET + _GROWTH * len(data)
    budget = _append_entries(index, _block(data, _index_handle(data, origin), origin), budget, origin)
    end = 0
    for _, value in index:
        handle, _ = _handle(value, 0, len(value), origin)
        if handle.offset < end:
            raise origin.corrupt(f"its block at byte {handle.offset} starts before the end of the block before it, {end}")
        end = handle.stop
        budget = _append_entries(entries, _block(data, handle, origin), budget, origin)
    if not entries or entries[0][0] != b"":
        raise origin.corrupt("the header is missing")
    _check_order(entries, origin)
    return entries


def encode(items: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The index file with these keys and values; nothing is compressed.

    Raises:
        ValueError: the first key is not ``b""``, or a key is not greater than the one before it.
    """
    file, index = bytearray(), _BlockBuilder(1)
    last, handle = b"", b""
    for block in _cut(_rising(items)):
        if handle:
            index.add(_separator(last, block.first), handle)
        last, handle = block.last, _append_block(file, block)
    index.add(_successor(last), handle)
    footer = _append_block(file, _BlockBuilder(1)) + _append_block(file, index)  # an empty metaindex, then the index
    return bytes(file) + footer.ljust(FOOTER_NBYTES - len(MAGIC), b"\0") + MAGIC


def _index_handle(data: bytes, origin: Origin) -> _Handle:
    start, stop = len(data) - FOOTER_NBYTES, len(data) - len(MAGIC)
    if start < 0:
        raise origin.corrupt(f"{len(data)} bytes are too few for an index")
    if data[stop:] != MAGIC:
        raise origin.corrupt("it does not end with the mark of an index; it is something else, or cut short")
    _, at = _handle(data, start, stop, origin)  # the metaindex: TensorFlow does not read it either
    handle, _ = _handle(data, at, stop, origin)
    return handle


def _handle(data: bytes, at: int, stop: int, origin: Origin) -> tuple[_Handle, int]:
    """The block handle at ``at``, and where it ends. What comes after it is nobody's business."""
    offset, at = _varint(data, at, stop, origin)
    nbytes, at = _varint(data, at, stop, origin)
    return _Handle(offset, nbytes), at


def _varint(data: bytes, at: int, stop: int, origin: Origin) -> tuple[int, int]:
    """The number at ``at``, and where it ends."""
    number = 0
    for count, byte in enumerate(data[at : min(stop, at + _MAX_VARINT_NBYTES)]):
        number |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            if number >> 64:
                raise origin.corrupt(f"it has a number of over 64 bits, before byte {at + count + 1}")
            return number, at + count + 1
    raise origin.corrupt("it has a number without an end")


def _block(data: bytes, handle: _Handle, origin: Origin) -> _Block:
    """A block's entries, its checksum verified; a raw block is not copied."""
    offset, nbytes = handle
    if handle.stop > len(data) - FOOTER_NBYTES:
        raise origin.corrupt(f"it names a block of {nbytes} bytes at byte {offset}, the file has {len(data)} bytes")
    stop = offset + nbytes
    kind = data[stop]
    if _FIXED32.unpack_from(data, stop + 1)[0] != mask(crc32c(memoryview(data)[offset : stop + 1])):
        raise origin.corrupt(f"the checksum of its block at byte {offset} does not match")
    if kind == _SNAPPY:
        block = _unsnapped(data[offset:stop], origin)
        return _without_restarts(block, 0, len(block), origin)
    if kind != _RAW:
        raise origin.corrupt(f"its block at byte {offset} is stored in an unknown way, type {kind}")
    return _without_restarts(data, offset, stop, origin)


def _without_restarts(data: bytes, start: int, stop: int, origin: Origin) -> _Block:
    if stop - start < _FIXED32.size:
        raise origin.corrupt(f"it has a block of {stop - start} bytes")
    (restarts,) = _FIXED32.unpack_from(data, stop - _FIXED32.size)
    end = stop - _FIXED32.size * (restarts + 1)
    if end < start:
        raise origin.corrupt(f"it has a block of {stop - start} bytes with {restarts} restart points")
    return _Block(data, start, end)


def _unsnapped(packed: bytes, origin: Origin) -> bytes:
    claimed, at = _varint(packed, 0, len(packed), origin)
    if claimed * 3 > 64 * (len(packed) - at):  # at best, 3 bytes repeat 64
        raise origin.corrupt(f"it has a compressed block of {len(packed)} bytes that claims to hold {claimed}")
    try:
        import cramjam
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{origin.location!r} is compressed with snappy, which needs cramjam: pip install 'ckptmgr[tf-bundle]'"
        ) from error
    try:
        return bytes(cramjam.snappy.decompress_raw(packed))
    except cramjam.DecompressionError as error:
        raise origin.corrupt(f"it has a compressed block that snappy refuses: {error}") from error


def _append_entries(entries: list[tuple[bytes, bytes]], block: _Block, budget: int, origin: Origin) -> int:
    """Adds a block's entries to the list, at most ``budget`` of them by their cost; what is left of that."""
    data, at, stop = block
    append = entries.append
    key = b""
    while at < stop:
        # Never past the data: at least 4 bytes come after a block's entries.
        shared, unshared, nbytes = data[at], data[at + 1], data[at + 2]
        if (shared | unshared | nbytes) < 0x80:
            at += 3
        else:
            shared, at = _varint(data, at, stop, origin)
            unshared, at = _varint(data, at, stop, origin)
            nbytes, at = _varint(data, at, stop, origin)
        middle = at + unshared
        end = middle + nbytes
        if end > stop or shared > len(key):
            raise origin.corrupt(f"it has an entry that leaves its block, after key {_shown(key)}")
        budget -= shared + unshared + nbytes + _ENTRY_COST
        if budget < 0:
            raise origin.corrupt(f"it grows too much when decoded, at key {_shown(key)}")
        key = key[:shared] + data[at:middle]
        append((key, data[middle:end]))
        at = end
    return budget


def _check_order(entries: list[tuple[bytes, bytes]], origin: Origin) -> None:
    keys = [key for key, _ in entries]
    if any(map(operator.ge, keys, islice(keys, 1, None))):
        first, second = next(pair for pair in pairwise(keys) if pair[0] >= pair[1])
        raise origin.corrupt(f"its keys are out of order: {_shown(second)} comes after {_shown(first)}")


def _shown(key: bytes) -> str:
    return repr(key) if len(key) <= 200 else f"{key[:200]!r}..."


class _BlockBuilder:
    """A block that entries are added to, their keys rising."""

    def __init__(self, restart_interval: int) -> None:
        self.first = b""
        self.last = b""
        self.count = 0
        self._interval = restart_interval
        self._entries = bytearray()
        self._restarts = [0]  # also in an empty block

    @property
    def nbytes(self) -> int:
        """The size of the block as it is now."""
        return len(self._entries) + 4 * len(self._restarts) + 4

    def add(self, key: bytes, value: bytes) -> None:
        """Adds an entry; between two restart points its key is told by how it differs from the one before it."""
        shared = 0
        if self.count % self._interval:
            shared = _shared(self.last, key)
        elif self.count:
            self._restarts.append(len(self._entries))
        else:
            self.first = key
        self._entries += _varints(shared, len(key) - shared, len(value)) + key[shared:] + value
        self.count += 1
        self.last = key

    def finish(self) -> bytes:
        """The block as it is stored."""
        return bytes(self._entries) + struct.pack(f"<{len(self._restarts) + 1}I", *self._restarts, len(self._restarts))


def _rising(items: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """The items, found to be what a table can hold."""
    last: bytes | None = None
    for key, value in items:
        if key if last is None else key <= last:
            raise ValueError(f"key {_shown(key)} cannot come after {'nothing' if last is None else _shown(last)}")
        yield key, value
        last = key
    if last is None:
        raise ValueError("a table needs the header's entry")


def _cut(items: Iterable[tuple[bytes, bytes]]) -> Iterator[_BlockBuilder]:
    """The items in blocks of TensorFlow's size."""
    block = _BlockBuilder(_RESTART_INTERVAL)
    for key, value in items:
        if block.count and len(key) + len(value) >= 2 * _BLOCK_NBYTES:
            yield block
            block = _BlockBuilder(_RESTART_INTERVAL)
        block.add(key, value)
        if block.nbytes >= _BLOCK_NBYTES:
            yield block
            block = _BlockBuilder(_RESTART_INTERVAL)
    if block.count:
        yield block


def _append_block(file: bytearray, block: _BlockBuilder) -> bytes:
    """Appends a block and its trailer to the file; the handle of it."""
    offset, data = len(file), block.finish()
    stored = data + bytes((_RAW,))
    file += stored
    file += _FIXED32.pack(mask(crc32c(stored)))
    return _varints(offset, len(data))


def _varints(*numbers: int) -> bytes:
    if max(numbers) < 0x80:
        return bytes(numbers)
    data = bytearray()
    for number in numbers:
        while number >= 0x80:
            data.append(number & 0x7F | 0x80)
            number >>= 7
        data.append(number)
    return bytes(data)


def _shared(first: bytes, second: bytes) -> int:
    """How many bytes both start with."""
    nbytes = min(len(first), len(second))
    differing = int.from_bytes(first[:nbytes]) ^ int.from_bytes(second[:nbytes])
    return nbytes - (differing.bit_length() + 7) // 8


def _separator(last: bytes, following: bytes) -> bytes:
    """A short key from ``last`` on and before ``following``."""
    at = _shared(last, following)
    if at < len(last) and last[at] + 1 < following[at]:
        return last[:at] + bytes((last[at] + 1,))
    return last


def _successor(last: bytes) -> bytes:
    """A short key from ``last`` on."""
    for at, byte in enumerate(last):
        if byte < 0xFF:
            return last[:at] + bytes((byte + 1,))
    return last
