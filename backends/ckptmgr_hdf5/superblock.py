"""Where an HDF5 file starts, and where its root group is.

Source: HDF5 File Format Specification 3.0, section II.A.
"""

import struct
from typing import NamedTuple

from ckptmgr_hdf5.blocks import Reader
from ckptmgr_hdf5.faults import Damaged, Unknown
from ckptmgr_hdf5.lookup3 import lookup3

SIGNATURE = b"\x89HDF\r\n\x1a\n"
UNDEFINED = 0xFFFFFFFFFFFFFFFF
_WRITING = 1  # flag of version 3: the file is open for writing, or its writer died


class Superblock(NamedTuple):
    """``reader`` starts where addresses count from; ``leaf_k``, ``internal_k`` bound the nodes of symbol tables."""

    reader: Reader
    root: int
    leaf_k: int
    internal_k: int


def find_superblock(reader: Reader) -> Superblock:
    """The superblock of versions 0 to 3, at byte 0 or behind a user block.

    Raises:
        Damaged: there is none, or the file is shorter than it says.
        Unknown: addresses are not of 8 bytes, or it is a file of several parts or with an extension.
    """
    start = 0
    while start + 8 <= reader.nbytes:
        if reader.read(start, 8) == SIGNATURE:
            return _parse(reader.after(start))
        start = 2 * start or 512
    raise Damaged("there is no HDF5 signature")


def _parse(reader: Reader) -> Superblock:
    version = reader.read(8, 1)[0]
    if version > 3:
        raise Unknown(f"a superblock of version {version}")
    found, eof = _old(reader, version) if version < 2 else _new(reader, version)
    if eof > reader.nbytes:
        raise Damaged(f"it ends at byte {reader.nbytes}, and should at {eof}: the file was cut off")
    return found


def _old(reader: Reader, version: int) -> tuple[Superblock, int]:
    free, symbols, shared, offsets, lengths, leaf_k, internal_k = struct.unpack("<9xBBxBBBxHH4x", reader.read(0, 24))
    if (free, symbols, shared) != (0, 0, 0):
        raise Unknown(f"a superblock with parts of versions {free}, {symbols}, {shared}")
    _check_widths(offsets, lengths)
    base, space, eof, driver, _, root, _ = struct.unpack("<6QQ", reader.read(24 + 4 * version, 56))
    if space != UNDEFINED or driver != UNDEFINED:
        raise Unknown("a superblock with an extension, or a file of several parts")
    return Superblock(reader, root, leaf_k, internal_k), eof - base


def _new(reader: Reader, version: int) -> tuple[Superblock, int]:
    raw = reader.read(0, 48)
    offsets, lengths, flags, base, extension, eof, root, checksum = struct.unpack("<9xBBB4QI", raw)
    if lookup3(raw[:44]) != checksum:
        raise Damaged("the superblock's checksum is wrong")
    _check_widths(offsets, lengths)
    if version == 3 and flags & _WRITING:
        raise Damaged("its writer did not close it")
    if extension != UNDEFINED:
        raise Unknown("a superblock extension")
    return Superblock(reader, root, 0, 0), eof - base


def _check_widths(offsets: int, lengths: int) -> None:
    if (offsets, lengths) != (8, 8):
        raise Unknown(f"addresses of {offsets} and lengths of {lengths} bytes")
