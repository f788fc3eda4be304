"""Zip archives read where they lie: the place of every member, and the bytes of one, checked and bounded.

Nothing is ever extracted, so a member's name is only a name; those that would lead anywhere are refused nevertheless,
with the whole archive. All sizes are compared with the archive's real one before they are used.

Source: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from ckptmgr.checksum import crc32
from ckptmgr.origin import FileOrigin
from ckptmgr.storage import Folder
from ckptmgr.threads import Pool

SIGNATURE = b"PK\x03\x04"
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000  # weakly, strongly, or the directory itself
_SIZES_FOLLOW = 0x0008  # the data, so the header has none
_UTF8 = 0x0800
_END, _END_NBYTES = b"PK\x05\x06", 22
_END64, _END64_NBYTES = b"PK\x06\x06", 56
_LOCATOR, _LOCATOR_NBYTES = b"PK\x06\x07", 20
_ENTRY = struct.Struct("<4s4xHH4xIIIHHHHHII")
_ENTRY_SIGNATURE = b"PK\x01\x02"
_LOCAL = struct.Struct("<4s2xHH4xIIIHH")
_ZIP64 = 0x0001
_BIG = 0xFFFFFFFF
_SYMLINK = 0xA
_MAX_DIRECTORY_NBYTES = 16 << 20
_SMALL_NBYTES = 1 << 20
MAX_INFLATED_NBYTES = 16 << 20  # no framework compresses, so what is compressed is small, or was packed again by somebody
_MAX_RATIO = 200  # of what is larger; text is compressed 30 times, a model's weights hardly, a bomb 1000 times
_CHUNK = 1 << 20
_GAP_NBYTES = 64 * 1024  # between two headers: read through up to here, cheaper than another request
_GROUP_NBYTES = 1 << 20  # of headers and gaps that are read at once


class Member(NamedTuple):
    """One file in an archive. ``nbytes`` is its size, ``stored`` the number of bytes that it takes."""

    name: str
    is_deflated: bool
    flags: int
    crc32: int
    stored: int
    nbytes: int
    header: int


class _End(NamedTuple):
    """Where the directory is, and how many members it says that it has."""

    offset: int
    nbytes: int
    members: int


@dataclass(frozen=True, slots=True)
class Archive:
    """The members of an archive by name, in the order of its directory. It holds no open file.

    ``base`` is where in the file the archive starts; the places of members count from the start of the file.
    """

    folder: Folder
    file: str
    members: Mapping[str, Member]
    origin: FileOrigin
    _directory: int
    base: int = 0

    def place(self, name: str) -> int | None:
        """The offset in the archive of a member's bytes as they are, or None if they are compressed.

        Raises:
            KeyError: no such member.
            CorruptCheckpointError: its own header is not there, or says something else than the directory.
        """
        return self.places([name])[name]

    def places(self, names: Sequence[str]) -> dict[str, int | None]:
        """`place` of each, with few requests: headers that lie close together are read at once, the others side by side."""
        members = sorted((self.members[name] for name in names), key=lambda member: member.header)
        groups: list[list[Member]] = []
        end = -_GAP_NBYTES
        for member in members:
            if member.header - end >= _GAP_NBYTES or end - groups[-1][0].header >= _GROUP_NBYTES:
                groups.append([])
            groups[-1].append(member)
            end = member.header + _header_nbytes(member)
        if len(groups) < 2:
            read = iter([self._starts(group) for group in groups])
        else:
            with Pool(max_workers=max(self.folder.store.workers, 1)) as pool:
                read = pool.map(self._starts, groups)
        starts = [start for found in read for start in found]
        return {
            member.name: None if member.is_deflated else self.base + start for member, start in zip(members, starts, strict=True)
        }

    def data_start(self, name: str) -> int:
        """Where in the file a member's bytes start, as they are stored. Raises like `place`."""
        return self.base + self._starts([self.members[name]])[0]

    def read(self, name: str, most: int, *, inflated: int = MAX_INFLATED_NBYTES, may_lack_crc32: bool = False) -> bytes:
        """All bytes of a member of at most that many, compared with its crc32; of at most ``inflated`` if it is compressed.

        With ``may_lack_crc32`` a crc32 of 0 stands for none, as some writers leave it.

        Raises:
            KeyError: no such member.
            CorruptCheckpointError: it is larger, damaged or cut off.
        """
        member = self.members[name]
        if member.is_deflated and member.nbytes > inflated:
            problem = f"it is compressed and has {member.nbytes} bytes, of which at most {inflated} are decompressed"
            raise self.origin.corrupt(f"{problem}: save the model again, or pack it without compression", name)
        if member.nbytes > most:
            raise self.origin.corrupt(f"it has {member.nbytes} bytes, and at most {most} are read", name)
        [start] = self._starts([member])
        data = self._inflated(member, start) if member.is_deflated else self._bytes(start, member.stored, name)
        if crc32(data) != member.crc32 and (member.crc32 or not may_lack_crc32):
            raise self.origin.corrupt("its bytes are not what was written (their crc32 differs)", name)
        return data

    def _starts(self, members: Sequence[Member]) -> list[int]:
        """Where the bytes of these members start in the archive; their headers are read at once."""
        if not members:
            return []
        first, last = members[0].header, members[-1]
        raw = self._bytes(first, last.header + _header_nbytes(last) - first, last.name)
        return [self._start(member, raw[member.header - first :][: _header_nbytes(member)]) for member in members]

    def _start(self, member: Member, raw: bytes) -> int:
        signature, flags, method, _, stored, nbytes, name_nbytes, extra_nbytes = _LOCAL.unpack_from(raw)
        start: int = member.header + _LOCAL.size + name_nbytes + extra_nbytes
        is_same = (
            signature == SIGNATURE
            and not flags & _ENCRYPTED
            and method == (_DEFLATED if member.is_deflated else _STORED)
            and len(raw) == _LOCAL.size + name_nbytes
            and _is_named(raw[_LOCAL.size :], flags, member.name)
            and (flags & _SIZES_FOLLOW or (stored in (member.stored, _BIG) and nbytes in (member.nbytes, _BIG)))
        )
        if not is_same:
            raise self.origin.corrupt("its own header is not what the archive's directory says", member.name)
        if start + member.stored > self._directory:
            raise self.origin.corrupt(f"its bytes end at {start + member.stored}, in the archive's directory", member.name)
        return start

    def _inflated(self, member: Member, start: int) -> bytes:
        inflater, pieces, left = zlib.decompressobj(-zlib.MAX_WBITS), list[bytes](), member.nbytes + 1
        try:
            for at in range(0, member.stored, _CHUNK):
                raw = self._bytes(start + at, min(_CHUNK, member.stored - at), member.name)
                pieces.append(inflater.decompress(raw, left))
                left -= len(pieces[-1])
                if left == 0:
                    break
        except zlib.error as error:
            raise self.origin.corrupt(f"it cannot be decompressed: {error}", member.name) from error
        if left != 1 or not inflater.eof:
            raise self.origin.corrupt(f"decompressed it does not have the {member.nbytes} bytes that it claims", member.name)
        return b"".join(pieces)

    def _bytes(self, offset: int, nbytes: int, name: str) -> bytes:
        if offset + nbytes > self._directory:
            raise self.origin.corrupt(f"its bytes end at {offset + nbytes}, in the archive's directory", name)
        return _read(self.folder, self.file, self.base + offset, nbytes, self.origin)


def open_archive(
    folder: Folder, file: str, origin: FileOrigin, *, window: tuple[int, int] | None = None, free_nbytes: int = _SMALL_NBYTES
) -> Archive:
    """The archive in a file, of which only the directory is read; folders in it are left out.

    ``window``: offset and size of the archive, if it is a part of the file that is known to be there.
    ``origin`` makes the errors. Members of at most ``free_nbytes`` may be compressed to any size.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptCheckpointError: it is no zip archive, cut off, encrypted, with a name twice or members that overlap.
        UnsafeCheckpointError: a member that is a link, whose name leads out of the archive, or that is a bomb.
    """
    if window is None:
        head = folder.head(file)
        if head is None:
            raise FileNotFoundError(2, "no such file", folder.location(file))
        window = (0, head.nbytes)
    base = window[0]
    end = _find_end(folder, file, window, origin)
    raw = _read(folder, file, base + end.offset, end.nbytes, origin)
    found: dict[str, Member] = {}
    try:
        entries = [*_entries(raw, end.members)]
    except (struct.error, ValueError) as error:
        raise origin.corrupt(f"the archive's directory is damaged: {error}") from error
    for entry, mode in entries:
        _check(entry, mode, origin, free_nbytes)
        if entry.name in found:
            raise origin.corrupt("two members have this name", entry.name)
        found[entry.name] = entry
    _check_overlap([*found.values()], end.offset, origin)
    members = {name: member for name, member in found.items() if not name.endswith("/")}
    return Archive(folder, file, members, origin, end.offset, base)


def _find_end(folder: Folder, file: str, window: tuple[int, int], origin: FileOrigin) -> _End:
    """The end record, which has nothing but its comment after it; and that with 64 bits, where there is one."""
    base, size = window
    tail_nbytes = min(size, _END_NBYTES + _LOCATOR_NBYTES + 0xFFFF)
    start = size - tail_nbytes
    tail = _read(folder, file, base + start, tail_nbytes, origin)
    at = len(tail)
    while (at := tail.rfind(_END, 0, at)) >= 0:
        if len(tail) - at >= _END_NBYTES and len(tail) - at - _END_NBYTES == int.from_bytes(tail[at + 20 : at + 22], "little"):
            break
    else:
        raise origin.corrupt("it is no zip archive, or it was cut off: the end of its directory is not there")
    disk, first_disk, here, count, nbytes, offset = struct.unpack_from("<HHHHII", tail, at + 4)
    last, locator = start + at, tail[max(at - _LOCATOR_NBYTES, 0) : at]
    if locator.startswith(_LOCATOR):
        last = struct.unpack_from("<Q", locator, 8)[0]
        if last + _END64_NBYTES > size:
            raise origin.corrupt("the end of the archive's directory is not there")
        raw = _read(folder, file, base + last, _END64_NBYTES, origin)
        if raw[:4] != _END64:
            raise origin.corrupt("the end of the archive's directory is not there")
        disk, first_disk, here, count, nbytes, offset = struct.unpack_from("<IIQQQQ", raw, 16)
    if disk or first_disk or here != count:
        raise origin.corrupt("the archive is one of several parts")
    if nbytes > _MAX_DIRECTORY_NBYTES:
        raise origin.corrupt(f"a directory of {nbytes} bytes is over the limit of {_MAX_DIRECTORY_NBYTES}")
    if offset + nbytes != last:
        raise origin.corrupt(f"the archive's directory should end at {last}, and ends at {offset + nbytes}")
    return _End(offset, nbytes, count)


def _entries(raw: bytes, count: int) -> Iterator[tuple[Member, int]]:
    """Each member with its mode in Unix, if it was made there.

    Raises:
        ValueError, struct.error: the directory is damaged.
    """
    at = 0
    for _ in range(count):
        signature, flags, method, crc, stored, nbytes, *lengths, disk, _, outer, header = _ENTRY.unpack_from(raw, at)
        name_nbytes, extra_nbytes, comment_nbytes = lengths
        if signature != _ENTRY_SIGNATURE:
            raise ValueError(f"there is no entry at {at}")
        name = raw[at + _ENTRY.size : at + _ENTRY.size + name_nbytes]
        extra = raw[at + _ENTRY.size + name_nbytes : at + _ENTRY.size + name_nbytes + extra_nbytes]
        nbytes, stored, header, disk = _widened((nbytes, stored, header, disk), extra)
        at += _ENTRY.size + name_nbytes + extra_nbytes + comment_nbytes
        if at > len(raw) or disk:
            raise ValueError("an entry ends early, or its member is in another part")
        if method not in (_STORED, _DEFLATED) or (method == _STORED and stored != nbytes):
            raise ValueError(f"{name[:100]!r} is kept by method {method} in {stored} bytes of {nbytes}")
        yield Member(_decoded(name, flags), method == _DEFLATED, flags, crc, stored, nbytes, header), outer >> 16
    if at != len(raw):
        raise ValueError(f"it has {len(raw)} bytes, and {count} entries take {at}")


def _widened(values: tuple[int, int, int, int], extra: bytes) -> list[int]:
    """Those of size, stored size, offset and part that say "too large", with 64 bits (the part with 32)."""
    wide = list(values)
    missing = [index for index, most in enumerate((_BIG, _BIG, _BIG, 0xFFFF)) if wide[index] == most]
    at = 0
    while missing and at + 4 <= len(extra):
        kind, nbytes = struct.unpack_from("<HH", extra, at)
        if kind == _ZIP64:
            formats = "<" + "".join("I" if index == 3 else "Q" for index in missing)
            found = struct.unpack_from(formats, extra[: at + 4 + nbytes], at + 4)
            for index, value in zip(missing, found, strict=True):
                wide[index] = value
            return wide
        at += 4 + nbytes
    return wide


def _decoded(raw: bytes, flags: int) -> str:
    return raw.decode("utf-8" if flags & _UTF8 else "cp437")


def _header_nbytes(member: Member) -> int:
    """Of its own header with the name; what follows it there, the extra fields, is not wanted."""
    return _LOCAL.size + len(member.name.encode("utf-8" if member.flags & _UTF8 else "cp437"))


def _is_named(raw: bytes, flags: int, name: str) -> bool:
    try:
        return _decoded(raw, flags) == name
    except UnicodeDecodeError:
        return False


def _check(member: Member, mode: int, origin: FileOrigin, free_nbytes: int) -> None:
    name = member.name
    parts = name.removesuffix("/").split("/")
    # A colon is common in the name of a run, and leads out only behind the letter of a drive.
    if any(part in ("", ".", "..") for part in parts) or any(c in name for c in "\\\0") or name[1:2] == ":":
        raise origin.unsafe("a member's name leads out of the archive, or is none", name)
    if mode >> 12 == _SYMLINK:
        raise origin.unsafe("it is a link", name)
    if member.flags & _ENCRYPTED:
        raise origin.corrupt("it is encrypted", name)
    if member.nbytes > max(free_nbytes, _MAX_RATIO * member.stored):
        raise origin.unsafe(f"it is a bomb: {member.nbytes} bytes in {member.stored}", name)


def _check_overlap(members: list[Member], directory: int, origin: FileOrigin) -> None:
    """Members lie one after another before the directory; else few bytes could be many members."""
    places = sorted((member.header, member.header + _LOCAL.size + member.stored, member.name) for member in members)
    for (_, end, name), (start, _, _) in pairwise([*places, (directory, directory, "")]):
        if end > start:
            raise origin.corrupt("its bytes overlap those of another member, or the archive's directory", name)


def _read(folder: Folder, file: str, offset: int, nbytes: int, origin: FileOrigin) -> bytes:
    try:
        return folder.read_range(file, offset, nbytes)
    except (EOFError, FileNotFoundError) as error:
        raise origin.corrupt("it was cut off or deleted while it was read") from error
