"""New zip archives of stored members, as places for tensors in a file that is written in one pass.

What a member's checksum is turns out only when its last byte was written. So it stands behind the member (a data
descriptor) and in the directory at the end, and both are late pieces of a layout. The same members always give the same bytes.

Source: PKWARE's APPNOTE.TXT 6.3, sections 4.3.7 to 4.3.16 and 4.5.3 (Zip64); Android's zipalign for the padding field.
"""

import functools
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from ckptmgr.checksum import combine_crc32, crc32
from ckptmgr.layout import Digests, Late, Part

_Files: TypeAlias = Mapping[str, Digests]
Pieces: TypeAlias = tuple[bytes | Part | Late, ...]

DIGESTS = frozenset({"crc32c", "crc32"})  # of pieces, that the late ones need
_DESCRIBED, _UTF8 = 1 << 3, 1 << 11
_PLAIN, _ZIP64 = 20, 45  # versions needed to extract
_EPOCH = 1 << 5 | 1  # 1980-01-01, as Python's zipfile writes where it knows no date
_MODE = 0o600 << 16
_FULL, _SHORT_FULL = 0xFFFFFFFF, 0xFFFF
_PADDING = 0xD935  # the extra field that zipalign pads with


class Member(NamedTuple):
    """One file of the archive, as its bytes and tensors in order. With ``is_aligned`` its first byte is, to ``align``.

    ``align`` None is that of the archive.
    """

    name: str
    pieces: Sequence[bytes | Part]
    is_aligned: bool = False
    align: int | None = None

    @property
    def nbytes(self) -> int:
        """Its size."""
        return sum(len(piece) if isinstance(piece, bytes) else piece.nbytes for piece in self.pieces)


class _Placed(NamedTuple):
    """A member whose place is known: offset of its local header, and which pieces of the file it is."""

    name: bytes
    offset: int
    nbytes: int
    pieces: slice
    sizes: tuple[int, ...]
    flags: int


def archive(file: str, members: Iterable[Member], *, align: int) -> Pieces:
    """The pieces of the archive ``file``; the layout that they go into must ask for `DIGESTS`.

    Members that are aligned start at multiples of ``align``, if that is at most 32 KiB.

    Raises:
        ValueError: two members have one name, or a name is none that a zip can hold.
    """
    pieces: list[bytes | Part | Late] = []
    placed: list[_Placed] = []
    names: set[bytes] = set()
    offset = 0
    for member in members:
        name = _name(member.name, names)
        names.add(name)
        is_late = any(isinstance(piece, Part) for piece in member.pieces)
        flags = (_DESCRIBED if is_late else 0) | (0 if name.isascii() else _UTF8)
        crc = 0 if is_late else crc32(b"".join(piece for piece in member.pieces if isinstance(piece, bytes)))
        wanted = (member.align or align) if member.is_aligned else 1
        header = _local_header(name, flags, crc, member.nbytes, offset, wanted)
        first = len(pieces) + 1
        sizes = tuple(len(piece) if isinstance(piece, bytes) else piece.nbytes for piece in member.pieces)
        place = _Placed(name, offset, member.nbytes, slice(first, first + len(member.pieces)), sizes, flags)
        pieces += [header, *member.pieces]
        offset += len(header) + member.nbytes
        if is_late:
            pieces.append(Late(_descriptor_nbytes(place.nbytes), functools.partial(_descriptor, file, place)))
            offset += _descriptor_nbytes(place.nbytes)
        placed.append(place)
    directory = functools.partial(_directory, file, tuple(placed), offset)
    return (*pieces, Late(_directory_nbytes(placed, offset), directory))


def _name(name: str, taken: Collection[bytes]) -> bytes:
    try:
        raw = name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name!r} cannot name a member of a zip: it has a surrogate, which UTF-8 has not") from error
    parts = name.split("/")
    if len(raw) > _SHORT_FULL or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{name!r} cannot name a member of a zip: it is no plain relative path")
    if raw in taken:
        raise ValueError(f"two members of a zip have the name {name!r}")
    return raw


def _local_header(name: bytes, flags: int, crc: int, nbytes: int, offset: int, align: int) -> bytes:
    is_big = nbytes >= _FULL
    # What a descriptor tells is zero here. That the descriptor has 64 bits is told by the field alone.
    sizes = (0, 0) if flags & _DESCRIBED else (nbytes, nbytes)
    extra = struct.pack("<HHQQ", 1, 16, *sizes) if is_big else b""
    size = _FULL if is_big else sizes[0]
    extra += _padding(offset + 30 + len(name) + len(extra), align)
    version = _ZIP64 if is_big else _PLAIN
    fields = (b"PK\3\4", version, flags, 0, 0, _EPOCH, crc, size, size, len(name), len(extra))
    return struct.pack("<4s5H3I2H", *fields) + name + extra


def _padding(start: int, align: int) -> bytes:
    if not 1 < align <= 1 << 15 or start % align == 0:
        return b""
    held = (-start - 6) % align
    return struct.pack("<HHH", _PADDING, 2 + held, align) + bytes(held)


def _descriptor_nbytes(nbytes: int) -> int:
    return 24 if nbytes >= _FULL else 16


def _descriptor(file: str, place: _Placed, digests: _Files) -> bytes:
    kind = "<4sIQQ" if place.nbytes >= _FULL else "<4sIII"
    return struct.pack(kind, b"PK\7\x08", _crc(file, place, digests), place.nbytes, place.nbytes)


def _crc(file: str, place: _Placed, digests: _Files) -> int:
    value = 0
    for crc, nbytes in zip(digests[file]["crc32"][place.pieces], place.sizes, strict=True):
        value = combine_crc32(value, crc, nbytes) if value else crc
    return value


def _wide(place: _Placed) -> bytes:
    """The fields of 64 bits that a directory entry needs: sizes, then the offset."""
    sizes = struct.pack("<QQ", place.nbytes, place.nbytes) if place.nbytes >= _FULL else b""
    fields = sizes + (struct.pack("<Q", place.offset) if place.offset >= _FULL else b"")
    return struct.pack("<HH", 1, len(fields)) + fields if fields else b""


def _has_wide_end(placed: Sequence[_Placed], start: int) -> bool:
    entries = sum(46 + len(place.name) + len(_wide(place)) for place in placed)
    return start >= _FULL or entries >= _FULL or len(placed) >= _SHORT_FULL


def _directory_nbytes(placed: Sequence[_Placed], start: int) -> int:
    entries = sum(46 + len(place.name) + len(_wide(place)) for place in placed)
    return entries + (76 if _has_wide_end(placed, start) else 0) + 22


def _directory(file: str, placed: Sequence[_Placed], start: int, digests: _Files) -> bytes:
    entries = b"".join(_entry(place, _crc(file, place, digests)) for place in placed)
    count = min(len(placed), _SHORT_FULL)
    end = struct.pack("<4s4HIIH", b"PK\5\6", 0, 0, count, count, min(len(entries), _FULL), min(start, _FULL), 0)
    if not _has_wide_end(placed, start):
        return entries + end
    fields = (b"PK\6\6", 44, _ZIP64, _ZIP64, 0, 0, len(placed), len(placed), len(entries), start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + len(entries), 1)
    return entries + struct.pack("<4sQ2H2I4Q", *fields) + locator + end


def _entry(place: _Placed, crc: int) -> bytes:
    extra = _wide(place)
    size, version = min(place.nbytes, _FULL), _ZIP64 if extra else _PLAIN
    head = (b"PK\1\2", 3 << 8 | version, version, place.flags, 0, 0, _EPOCH, crc, size, size, len(place.name), len(extra))
    return struct.pack("<4s6H3I5H2I", *head, 0, 0, 0, _MODE, min(place.offset, _FULL)) + place.name + extra
