"""The links of a new group: names in a local heap, entries in symbol nodes sorted by name, a B-tree over these.

Source: HDF5 File Format Specification 3.0, sections III.A "B-trees" (version 1), III.B "Group Symbol Table Nodes" and
III.D "Local Heaps". The sizes of nodes are the library's defaults.
"""

import struct
from collections.abc import Iterable, Sequence

LEAF_K, INTERNAL_K = 4, 16  # half of what a symbol node and a B-tree node hold; the superblock says so
_UNDEFINED = 2**64 - 1
_ENTRY_NBYTES = 40
_NODE_NBYTES = 24 + 16 * 2 * INTERNAL_K + 8
_NO_FREE_SPACE = 1


def encode_name(name: str) -> bytes:
    """The bytes of a name in a file.

    Raises:
        ValueError: it is empty, or has a NUL or a surrogate.
    """
    try:
        raw = name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name!r} is no name in HDF5: it has a surrogate, which UTF-8 has not") from error
    if not raw or b"\0" in raw:
        raise ValueError(f"{name!r} is no name in HDF5, which wants at least one byte and no NUL")
    return raw


def write_links(out: bytearray, names: Iterable[str]) -> tuple[int, int, dict[str, int]]:
    """Append a group's links to the file: addresses of B-tree and local heap, and where each child's address has its place.

    ``out`` is the file from its first byte on. The children's addresses are zero until the caller fills them in.

    Raises:
        ValueError: a name that HDF5 cannot hold or reach.
    """
    ordered = sorted((_link_name(name), name) for name in names)
    segment = bytearray(8)  # offset 0 is the empty name, less than all others
    offsets = []
    for raw, _ in ordered:
        offsets.append(len(segment))
        segment += raw + bytes(8 - len(raw) % 8)
    heap = len(out)
    out += struct.pack("<4sB3xQQQ", b"HEAP", 0, len(segment), _NO_FREE_SPACE, heap + 32) + segment

    leaves = []
    slots = {}
    for start in range(0, len(ordered), 2 * LEAF_K):
        held = offsets[start : start + 2 * LEAF_K]
        leaves.append((len(out), held[-1]))
        for index, (_, name) in enumerate(ordered[start : start + 2 * LEAF_K]):
            slots[name] = len(out) + 8 + index * _ENTRY_NBYTES + 8
        entries = b"".join([struct.pack("<Q32x", offset) for offset in held])
        out += struct.pack("<4sBxH", b"SNOD", 1, len(held)) + entries.ljust(2 * LEAF_K * _ENTRY_NBYTES, b"\0")
    return _write_tree(out, leaves), heap, slots


def _link_name(name: str) -> bytes:
    raw = encode_name(name)
    if b"/" in raw or raw == b".":
        raise ValueError(f"{name!r} cannot be reached in HDF5, where '/' parts names and '.' is the group itself")
    return raw


def _write_tree(out: bytearray, children: Sequence[tuple[int, int]]) -> int:
    """The address of a B-tree's root. Children come with the greatest name in them, as its offset in the local heap."""
    level = 0
    while True:
        children = _write_level(out, children, level)
        if len(children) == 1:
            return children[0][0]
        level += 1


def _write_level(out: bytearray, children: Sequence[tuple[int, int]], level: int) -> list[tuple[int, int]]:
    firsts = range(0, max(1, len(children)), 2 * INTERNAL_K)
    nodes = []
    for first in firsts:
        address = len(out)
        left = address - _NODE_NBYTES if first else _UNDEFINED
        right = address + _NODE_NBYTES if first != firsts[-1] else _UNDEFINED
        held = children[first : first + 2 * INTERNAL_K]
        # Keys stand between the children: no name before the first key, and none after the last.
        keys = [children[first - 1][1] if first else 0]
        for child, greatest in held:
            keys += (child, greatest)
        node = struct.pack(f"<4sBBHQQ{len(keys)}Q", b"TREE", 0, level, len(held), left, right, *keys)
        out += node.ljust(_NODE_NBYTES, b"\0")
        nodes.append((address, keys[-1]))
    return nodes
