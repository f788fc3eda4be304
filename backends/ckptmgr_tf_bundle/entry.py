"""The header and the entries of an index: what a bundle is, and what each tensor is and where it lies.

An entry that `parse_entry` returns is consistent in itself; whether its place is inside a file is for whoever knows the
files. There may be many thousands, so they are plain tuples, and what equal ones share is checked once.

Source: TensorFlow's tensor_bundle.proto and versions.proto.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from google.protobuf.message import DecodeError

from ckptmgr.backend import is_possible, numpy_dtype
from ckptmgr.errors import FormatVersionError
from ckptmgr_tf_bundle.dtypes import NAMES, STRING, VARIANT
from ckptmgr_tf_bundle.masking import mask, unmask
from ckptmgr_tf_bundle.messages import BundleEntry, BundleHeader
from ckptmgr_tf_bundle.origin import Origin

VERSION = 1  # of the format, as a reader
MAX_RANK = 64  # numpy's; TensorFlow's is 254
_MAX_ENTRY_NBYTES = 1 << 20  # twenty thousand slices; protobuf takes thirty times the bytes of empty messages
_BIG = 1
_SMALL = [bytes((number,)) for number in range(0x80)]

Extents: TypeAlias = tuple[tuple[int, int | None], ...]  # of a slice, per dimension: start, and length if it is given


class Header(NamedTuple):
    """Into how many files the tensors went, and in which byte order."""

    num_shards: int
    is_big_endian: bool


class Entry(NamedTuple):
    """One tensor, or one slice of a partitioned one. ``crc32c`` is not masked.

    A partitioned tensor has ``slices`` and its whole shape, and means nothing by the fields from ``shard`` on.
    """

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    nbytes: int
    crc32c: int
    slices: tuple[Extents, ...]


def parse_header(value: bytes, origin: Origin) -> Header:
    """The header of a bundle.

    Raises:
        CorruptCheckpointError: it is no header, or claims what cannot be.
        FormatVersionError: whoever wrote it says that readers of version 1 must not read it.
    """
    try:
        header = BundleHeader.FromString(value)
    except DecodeError as error:
        raise origin.corrupt("its header is no protobuf message of that kind") from error
    if header.version.min_consumer > VERSION or VERSION in header.version.bad_consumers:
        raise FormatVersionError(
            f"{origin.location!r} is a TensorFlow checkpoint that readers of format version {VERSION} must not read "
            f"(it asks for version {header.version.min_consumer} at least): upgrade ckptmgr",
            found=header.version.min_consumer,
            supported=VERSION,
        )
    if header.num_shards < 1:
        raise origin.corrupt(f"its header claims {header.num_shards} data files")
    if header.endianness not in (0, _BIG):
        raise origin.corrupt(f"its header claims byte order {header.endianness}, which is neither little (0) nor big (1)")
    return Header(header.num_shards, header.endianness == _BIG)


def parse_entry(value: bytes, key: str, header: Header, origin: Origin, *, most_slices: int = _MAX_ENTRY_NBYTES) -> Entry:
    """The entry of ``key``, checked as far as that goes without knowing the files. It may have ``most_slices`` slices.

    Raises:
        CorruptCheckpointError: it is no entry, has a dtype or a shape that no array has, or a place in no file.
    """
    if len(value) > _MAX_ENTRY_NBYTES:
        raise origin.corrupt(f"its entry has {len(value)} bytes, over the limit of {_MAX_ENTRY_NBYTES}", key)
    try:
        message = BundleEntry.FromString(value)
    except DecodeError as error:
        raise origin.corrupt("its entry is no protobuf message of that kind", key) from error
    try:
        return _checked(message, header.num_shards, most_slices)
    except ValueError as error:
        raise origin.corrupt(str(error), key) from error


def build_header(num_shards: int) -> bytes:
    """The header of a bundle of that many data files, as TensorFlow writes it."""
    return b"\x08" + varint(num_shards) + b"\x1a\x02\x08" + varint(VERSION)


def build_entry(dtype: int, shape: tuple[int, ...], shard: int, offset: int, nbytes: int, crc32c: int) -> bytes:
    """The entry of a whole tensor, byte for byte as TensorFlow writes it. ``crc32c`` is not masked."""
    masked = mask(crc32c)
    checksum = b"\x35" + masked.to_bytes(4, "little") if masked else b""
    place = b"\x20" + varint(offset) if offset else b""
    return _kind(dtype, shape) + _number(b"\x18", shard) + place + _number(b"\x28", nbytes) + checksum


def build_slices(dtype: int, shape: tuple[int, ...], slices: Sequence[Extents]) -> bytes:
    """The entry of a partitioned tensor, likewise; its slices have entries of their own."""
    return _kind(dtype, shape) + b"".join(
        message(b"\x3a", b"".join(message(b"\x0a", _extent(*one)) for one in each)) for each in slices
    )


def varint(number: int) -> bytes:
    """A number that is not negative in groups of 7 bits, lowest first; the high bit says that more follow."""
    if number < 0x80:
        return _SMALL[number]
    groups = []
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*groups, number))


def message(tag: bytes, content: bytes) -> bytes:
    """A field of protobuf that has a length: a message, or text."""
    return tag + varint(len(content)) + content


def _checked(message: Any, num_shards: int, most_slices: int) -> Entry:
    """The entry in a message. Raises ValueError, with the reason."""
    shape = message.shape
    if shape.unknown_rank or len(shape.dim) > MAX_RANK:
        raise ValueError("its shape is not known" if shape.unknown_rank else f"its rank {len(shape.dim)} is over {MAX_RANK}")
    dims = tuple([dim.size for dim in shape.dim])
    dtype, shard, offset, nbytes = message.dtype, message.shard_id, message.offset, message.size
    expected = _nbytes(dtype, dims)
    if message.slices:
        if len(message.slices) > most_slices:
            raise ValueError(f"it has {len(message.slices)} slices, and the index entries for at most {most_slices}")
        slices = tuple([_extents(one) for one in message.slices])
        return Entry(dtype, dims, shard, offset, nbytes, unmask(message.crc32c), slices)
    if not 0 <= shard < num_shards:
        raise ValueError(f"its data file is number {shard} of {num_shards}")
    if offset < 0 or nbytes < 0:
        raise ValueError(f"its {nbytes} bytes start at {offset}")
    if dtype == STRING and math.prod(dims) + 4 > nbytes:  # each has a length of a byte or more; then a checksum
        raise ValueError(f"its {nbytes} bytes cannot hold {math.prod(dims)} strings")
    if expected is not None and nbytes != expected:
        raise ValueError(f"its shape {dims} of {NAMES[dtype]} needs {expected} bytes, not {nbytes}")
    return Entry(dtype, dims, shard, offset, nbytes, unmask(message.crc32c), ())


def _extents(one: Any) -> Extents:
    return tuple([(extent.start, extent.length if extent.HasField("length") else None) for extent in one.extent])


@functools.lru_cache(maxsize=4096)
def _nbytes(dtype: int, dims: tuple[int, ...]) -> int | None:
    """Bytes of a tensor, or None if they depend on its values. Raises ValueError if no array can be so."""
    if dtype != VARIANT and dtype not in NAMES:
        raise ValueError(f"its dtype number {dtype} is not known")
    if dims and min(dims) < 0:
        raise ValueError(f"its shape {dims} has a negative dimension")
    itemsize = numpy_dtype(NAMES.get(dtype, NAMES[STRING])).itemsize
    if not is_possible(dims, itemsize):
        raise ValueError(f"no array can have its shape {dims}")
    return None if dtype in (STRING, VARIANT) else math.prod(dims) * itemsize


@functools.lru_cache(maxsize=4096)
def _kind(dtype: int, shape: tuple[int, ...]) -> bytes:
    """The dtype and shape of an entry."""
    dims = [message(b"\x12", b"\x08" + varint(size) if size else b"") for size in shape]
    return b"\x08" + varint(dtype) + message(b"\x12", b"".join(dims))


def _extent(start: int, length: int | None) -> bytes:
    return (b"\x08" + varint(start) if start else b"") + (b"" if length is None else b"\x10" + varint(length))


@functools.lru_cache(maxsize=4096)
def _number(tag: bytes, number: int) -> bytes:
    return tag + varint(number) if number else b""
