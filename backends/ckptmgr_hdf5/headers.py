"""Object headers: the messages that say what an object is.

Source: HDF5 File Format Specification 3.0, section IV.A.1.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from ckptmgr_hdf5.blocks import Claims, Reader
from ckptmgr_hdf5.faults import Damaged, Unknown
from ckptmgr_hdf5.lookup3 import lookup3

DATASPACE, LINK_INFO, DATATYPE, OLD_FILL, FILL, LINK, EXTERNAL, LAYOUT = 0x1, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0x8
GROUP_INFO, FILTERS, ATTRIBUTE, SYMBOLS, MODIFIED, ATTRIBUTE_INFO, REFERENCES = 0xA, 0xB, 0xC, 0x11, 0x12, 0x15, 0x16
_NIL, _CONTINUATION = 0x0, 0x10
_FOR_ARRAYS = (DATASPACE, DATATYPE, OLD_FILL, FILL, EXTERNAL, LAYOUT, FILTERS)
_SINGLE = frozenset((*_FOR_ARRAYS, LINK_INFO, GROUP_INFO, SYMBOLS, MODIFIED, ATTRIBUTE_INFO, REFERENCES))
_MAX_CHUNK = 16 << 20
_SHARED = 2  # flag of a message: its body says where it is
_V1 = struct.Struct("<HHB3x")
_V2 = struct.Struct("<BHB")
_V2_ORDERED = struct.Struct("<BHBxx")


class Header(NamedTuple):
    """The messages of one object: single ones by type, with the address of each body; attributes and links in file order.

    ``pieces`` is how many parts of the file have them.
    """

    single: dict[int, tuple[bytes, int]]
    attributes: list[bytes]
    links: list[bytes]
    pieces: int = 1


def read_header(reader: Reader, address: int, claims: Claims) -> Header:
    """The object header at that address.

    Raises:
        Damaged: there is none, or its parts lead nowhere.
        Unknown: messages that others share, or that this parser does not know.
    """
    header, pieces = Header({}, [], []), 1
    for kind, flags, body, place in _messages(reader, address, claims):
        if kind == _NIL:
            continue
        if flags & _SHARED and kind != _CONTINUATION:
            raise Unknown(f"a shared message of type {kind}")
        if kind in _SINGLE:
            if kind in header.single:
                raise Damaged(f"it has two messages of type {kind}")
            header.single[kind] = (body, place)
        elif kind == ATTRIBUTE:
            header.attributes.append(body)
        elif kind == LINK:
            header.links.append(body)
        elif kind == _CONTINUATION:
            pieces += 1
        else:
            raise Unknown(f"a message of type {kind}")
    return header if pieces == 1 else header._replace(pieces=pieces)


def _messages(reader: Reader, address: int, claims: Claims) -> Iterator[tuple[int, int, bytes, int]]:
    """Type, flags, body and the body's address of each message, continuations followed."""
    prefix = reader.read(address, 16)
    is_new = prefix[:4] == b"OHDR"
    form, chunk, start = _first_new(reader, address, claims) if is_new else _first_old(reader, address, prefix, claims)
    chunks, seen = [(chunk, start)], {address}
    for chunk, start in chunks:
        at, last = 0, len(chunk) - form.size
        while at <= last:
            kind, nbytes, flags = form.unpack_from(chunk, at)
            at += form.size
            body = chunk[at : at + nbytes]
            if len(body) < nbytes:
                raise Damaged(f"a message of {nbytes} bytes is longer than the header's {len(chunk)}")
            if kind == _CONTINUATION:
                offset, length = struct.unpack_from("<QQ", body)
                if offset in seen:
                    raise Damaged("its header continues in itself")
                seen.add(offset)
                chunks.append(_next(reader, offset, length, is_new, claims))
            yield kind, flags, body, start + at
            at += nbytes


def _first_old(reader: Reader, address: int, prefix: bytes, claims: Claims) -> tuple[struct.Struct, bytes, int]:
    version, _, _, _, nbytes = struct.unpack_from("<BBHII", prefix)
    if version != 1:
        raise Damaged(f"there is no object header at byte {address}")
    chunk = _chunk(reader, address + 16, nbytes)
    claims.add(address, 16 + nbytes)
    return _V1, chunk, address + 16


def _first_new(reader: Reader, address: int, claims: Claims) -> tuple[struct.Struct, bytes, int]:
    version, flags = reader.read(address + 4, 2)
    if version != 2 or flags >> 6:
        raise Unknown(f"an object header of version {version}, flags {flags}")
    width = 1 << (flags & 3)
    at = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    nbytes = int.from_bytes(reader.read(address + at, width), "little")
    at += width
    chunk = _chunk(reader, address, at + nbytes + 4)
    claims.add(address, at + nbytes + 4)
    return _V2_ORDERED if flags & 4 else _V2, _checked(chunk)[at:], address + at


def _next(reader: Reader, address: int, nbytes: int, is_new: bool, claims: Claims) -> tuple[bytes, int]:
    chunk = _chunk(reader, address, nbytes)
    claims.add(address, nbytes)
    if not is_new:
        return chunk, address
    if chunk[:4] != b"OCHK":
        raise Damaged(f"its header does not continue at byte {address}")
    return _checked(chunk)[4:], address + 4


def _chunk(reader: Reader, address: int, nbytes: int) -> bytes:
    if nbytes > _MAX_CHUNK:
        raise Damaged(f"{nbytes} bytes of header are over the limit of {_MAX_CHUNK}")
    return reader.read(address, nbytes)


def _checked(chunk: bytes) -> bytes:
    """The chunk without its checksum."""
    if lookup3(chunk[:-4]) != int.from_bytes(chunk[-4:], "little"):
        raise Damaged("its header's checksum is wrong")
    return chunk[:-4]
