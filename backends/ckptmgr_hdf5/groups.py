"""What is in a group: names and the addresses of the objects they are hard links to.

Source: HDF5 File Format Specification 3.0, sections III.A.1, III.B, III.C, III.D and IV.A.2.g.
"""

import struct
from collections.abc import Iterable, Iterator

from ckptmgr_hdf5.blocks import Claims
from ckptmgr_hdf5.faults import Damaged, Refused, Unknown
from ckptmgr_hdf5.headers import ATTRIBUTE_INFO, LINK_INFO, SYMBOLS, Header
from ckptmgr_hdf5.superblock import UNDEFINED, Superblock

_MAX_HEAP = 64 << 20
_HARD = 0
_SOFT = 2  # in a symbol table
_ENTRY = struct.Struct("<QQI20x")


def read_links(file: Superblock, header: Header, claims: Claims) -> dict[str, int]:
    """The objects in a group by name, sorted by the names' bytes.

    Raises:
        Damaged: its tables are.
        Refused: a link that is not a hard one.
        Unknown: links in a fractal heap.
    """
    if SYMBOLS in header.single:
        if header.links or LINK_INFO in header.single:
            raise Damaged("it is a group of both kinds")
        tree, heap = struct.unpack_from("<QQ", header.single[SYMBOLS][0])
        return _named(_symbols(file, tree, _heap(file, heap, claims), claims))
    check_compact(header, LINK_INFO, "links")
    return _named(sorted(map(_link, header.links)))


def check_compact(header: Header, kind: int, what: str) -> None:
    """Raises Unknown if the object's links or attributes are in a fractal heap, and not in its header."""
    if kind not in header.single:
        return
    body, _ = header.single[kind]
    version, flags = struct.unpack_from("<BB", body)
    if version or flags > 3:
        raise Unknown(f"{what} of version {version}, flags {flags}")
    order = 2 if kind == ATTRIBUTE_INFO else 8
    if struct.unpack_from("<Q", body, 2 + order * (flags & 1))[0] != UNDEFINED:
        raise Unknown(f"{what} in a fractal heap")


def _named(links: Iterable[tuple[bytes, int]]) -> dict[str, int]:
    """The links by name. They must be in order: HDF5 would not find the others."""
    found, last = {}, b""
    for raw, address in links:
        if raw <= last or raw == b"." or b"/" in raw:
            raise Damaged(f"the name {raw[:100]!r} is no name, or not in order")
        last = raw
        try:
            found[raw.decode()] = address
        except UnicodeDecodeError as error:
            raise Damaged(f"the name {raw[:100]!r} is no UTF-8") from error
    return found


def _heap(file: Superblock, address: int, claims: Claims) -> bytes:
    """The data segment of a local heap, which has the names."""
    signature, version, nbytes, _, segment = struct.unpack("<4sB3xQQQ", file.reader.read(address, 32))
    claims.add(address, 32)
    if signature != b"HEAP" or version:
        raise Damaged(f"there is no local heap at byte {address}")
    if nbytes > _MAX_HEAP:
        raise Damaged(f"a local heap of {nbytes} bytes is over the limit of {_MAX_HEAP}")
    names = file.reader.read(segment, nbytes)
    claims.add(segment, nbytes)
    return names


def _symbols(file: Superblock, root: int, heap: bytes, claims: Claims) -> Iterator[tuple[bytes, int]]:
    left = len(heap)
    for node in _leaves(file, root, claims):
        for offset, address, cached in _entries(file, node, claims):
            end = heap.find(b"\0", offset) if offset < len(heap) else -1
            left -= end + 1 - offset
            if end < 0 or left < 0:
                raise Damaged(f"the name at {offset} is not in the local heap of {len(heap)} bytes")
            name = heap[offset:end]
            if cached > _SOFT:
                raise Damaged(f"the link {name[:100]!r} is of no kind")
            if cached == _SOFT:
                raise Refused(f"{name[:100]!r} is a soft link, and only hard links are followed")
            yield name, address


def _leaves(file: Superblock, root: int, claims: Claims) -> Iterator[int]:
    """The symbol nodes below a node of the B-tree, in order."""
    nodes: list[tuple[int, int | None]] = [(root, None)]  # with the level that it must have
    while nodes:
        address, level = nodes.pop()
        if level == -1:
            yield address
            continue
        signature, kind, found, used = struct.unpack("<4sBBH", file.reader.read(address, 8))
        if signature != b"TREE" or kind or found != (found if level is None else level) or used > 2 * file.internal_k:
            raise Damaged(f"there is no node of a group's B-tree at byte {address}")
        words = struct.unpack(f"<{2 * used}Q", file.reader.read(address + 24, 16 * used))
        claims.add(address, 32 + 16 * used)
        nodes.extend((child, found - 1) for child in reversed(words[1::2]))


def _entries(file: Superblock, address: int, claims: Claims) -> Iterator[tuple[int, int, int]]:
    """Where the name is in the heap, address and cache type, of each entry of a symbol node."""
    signature, version, count = struct.unpack("<4sBxH", file.reader.read(address, 8))
    if signature != b"SNOD" or version != 1 or count > 2 * file.leaf_k:
        raise Damaged(f"there is no node of a group's symbols at byte {address}")
    entries = file.reader.read(address + 8, 40 * count)
    claims.add(address, 8 + 40 * count)
    return _ENTRY.iter_unpack(entries)


def _link(raw: bytes) -> tuple[bytes, int]:
    version, flags = struct.unpack_from("<BB", raw)
    if version != 1 or flags >> 5:
        raise Unknown(f"a link of version {version}, flags {flags}")
    at, kind = 2, _HARD
    if flags & 8:
        kind, at = raw[at], at + 1
    at += (8 if flags & 4 else 0) + (1 if flags & 16 else 0)
    width = 1 << (flags & 3)
    nbytes = int.from_bytes(raw[at : at + width], "little")
    name = raw[at + width : at + width + nbytes]
    if kind != _HARD:
        raise Refused(f"{name[:100]!r} is a soft or external link, and only hard links are followed")
    return name, struct.unpack_from("<Q", raw, at + width + nbytes)[0]
