"""An HDF5 file as bytes and places for tensors, without the HDF5 library.

The same tree always gives the same bytes, and nothing is written: superblock version 0, symbol-table groups, object
headers version 1 and contiguous data, which is HDF5's "earliest" format and what Keras writes. Every HDF5 opens it, and
may go on writing into it. Strings and structures come first, then literal data, then the tensors.

Source: HDF5 File Format Specification 3.0, sections II.A "Disk Format: Level 0A" (superblock) and IV.A "Data Object Headers".
"""

import math
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np

from ckptmgr_hdf5.datatypes import FileType, file_type, fixed_string, vlen_string
from ckptmgr_hdf5.global_heap import GlobalHeap
from ckptmgr_hdf5.symbol_tables import INTERNAL_K, LEAF_K, encode_name, write_links

BIG_NBYTES = 64 * 1024  # tensors of this size and more lie at multiples of ``align``
ATTRIBUTE_LIMIT = 0xFFFF // 8 * 8  # bytes of an attribute's message: 16 bits, and a multiple of 8
_UNDEFINED = 2**64 - 1
_MESSAGES_LIMIT = 0xFFFF
_RANK_LIMIT = 32
_DATASPACE, _DATATYPE, _FILL, _LAYOUT, _ATTRIBUTE, _SYMBOL_TABLE = 0x01, 0x03, 0x05, 0x08, 0x0C, 0x11
_SUPERBLOCK_NBYTES = 96
_PREFIX_NBYTES = 16  # of an object header
_COUNT_SLOT = 4  # where a header counts the links to its object
_GROUP_SLOT = _PREFIX_NBYTES + 8  # where a group's header has the addresses of B-tree and local heap
_LAYOUT_NBYTES = 22  # from the address in a layout message to its end: address, size, padding


class Attribute(NamedTuple):
    """A named value at an object, of the types that h5py would give it.

    A ``str`` is a variable-length scalar tagged as UTF-8, ``bytes`` one tagged as ASCII. An array (or numpy scalar) is its
    numbers or fixed-length strings: ``S<n>`` tagged as ASCII; and ``U``, which h5py has not, as UTF-8.
    """

    name: str
    value: str | bytes | np.ndarray | np.generic


class DatasetNode(NamedTuple):
    """An array: its bytes in C order, or the name of the tensor that will lie there, or its variable-length strings."""

    dtype: FileType
    shape: tuple[int, ...]
    data: bytes | str | tuple[bytes, ...]
    attributes: Sequence[Attribute] = ()


@dataclass(slots=True)
class GroupNode:
    """Objects by name, in the order in which their data shall lie. HDF5 itself lists them by name."""

    children: "dict[str, GroupNode | DatasetNode]" = field(default_factory=dict)
    attributes: Sequence[Attribute] = ()

    def within(self, *names: str) -> "GroupNode":
        """The group below this one that these names lead to; groups that are missing are made.

        Raises:
            ValueError: one of the names is a dataset's.
        """
        group = self
        for name in names:
            child = group.children.setdefault(name, GroupNode())
            if isinstance(child, DatasetNode):
                raise ValueError(f"{'/'.join(names)!r} leads through {name!r}, which is a dataset")
            group = child
        return group


@dataclass(frozen=True, slots=True)
class Encoded:
    """A whole file: bytes and names of tensors in file order, its size, and where each tensor starts."""

    pieces: list[bytes | str]
    nbytes: int
    offsets: dict[str, int]


def encode(root: GroupNode, *, align: int) -> Encoded:
    """The file of this tree, without holes. Tensors lie in the order of the tree, at multiples of 8 bytes.

    A dataset node that is in the tree twice, as the same object, is one dataset with two names.

    Those of 64 KiB and more lie at multiples of ``align``, too. A tensor of no bytes is a piece as well.

    Raises:
        ValueError: what HDF5 cannot hold: an attribute of 64 KiB, a name with ``/`` or NUL, more than 32 axes; data that do
            not fit their shape, or a tensor or group that is in the tree twice.
    """
    if align < 1:
        raise ValueError(f"align must be a positive number of bytes, not {align!r}")
    heap = GlobalHeap(_SUPERBLOCK_NBYTES)
    links: dict[str, str] = {}
    objects = [_describe(path, node, heap) for path, node in _walk(root, links)]
    out = bytearray(_SUPERBLOCK_NBYTES) + heap.build()
    addresses = _write_objects(out, objects, links)
    literals = _place_literals(out, objects, addresses)
    pieces, offsets, end = _place_tensors(out, objects, addresses, len(out) + len(literals), align)
    _write_superblock(out, addresses[0], end)
    return Encoded([b"".join((out, literals)), *pieces], end, offsets)


_Node: TypeAlias = GroupNode | DatasetNode


class _Object(NamedTuple):
    """What is written of a node: its header, where in it the address of the data has its place, and the data's size."""

    path: str
    node: _Node
    header: bytes
    slot: int
    nbytes: int
    literal: bytes


def _walk(root: GroupNode, links: dict[str, str]) -> Iterator[tuple[str, _Node]]:
    """Every object with its path, which is empty for the root; parents before children.

    ``links`` gets the further paths of datasets, each with the first one.
    """
    groups: set[int] = set()
    datasets: dict[int, str] = {}
    tensors: set[str] = set()
    stack: list[tuple[str, _Node]] = [("", root)]
    while stack:
        path, node = stack.pop()
        if isinstance(node, GroupNode):
            if id(node) in groups:
                raise ValueError(f"the group at {path!r} is in the tree twice")
            groups.add(id(node))
            stack.extend([(f"{path}/{name}", child) for name, child in reversed(node.children.items())])
        elif datasets.setdefault(id(node), path) != path:
            links[path] = datasets[id(node)]
            continue
        elif isinstance(node.data, str):
            if node.data in tensors:
                raise ValueError(f"tensor {node.data!r} is in the tree twice, the second time at {path!r}")
            tensors.add(node.data)
        yield path, node


def _describe(path: str, node: _Node, heap: GlobalHeap) -> _Object:
    shown = path or "/"
    body, count, slot, nbytes, literal = _GROUP_MESSAGES, 1, _GROUP_SLOT, 0, b""
    if isinstance(node, DatasetNode):
        _check(shown, node)
        body, nbytes = _dataset_messages(node.dtype, node.shape)
        count, slot = 4, _PREFIX_NBYTES + len(body) - _LAYOUT_NBYTES
        literal = _literal(shown, node, nbytes, heap)
    if node.attributes:
        body = b"".join((body, *_attributes(shown, node.attributes, heap)))
        count += len(node.attributes)
    if count > _MESSAGES_LIMIT or len(body) >= 2**32:
        raise ValueError(f"{shown!r} has {len(node.attributes)} attributes of {len(body)} bytes, more than HDF5 can hold")
    return _Object(path, node, struct.pack("<BxHII4x", 1, count, 1, len(body)) + body, slot, nbytes, literal)


def _check(path: str, node: DatasetNode) -> None:
    if len(node.shape) > _RANK_LIMIT or min(node.shape, default=0) < 0:
        raise ValueError(f"dataset {path!r} cannot have the shape {node.shape}; HDF5 holds up to {_RANK_LIMIT} axes")
    if node.dtype.is_vlen != isinstance(node.data, tuple):
        raise ValueError(f"dataset {path!r}: the data of variable-length strings, and only theirs, are a tuple of bytes")


@lru_cache(maxsize=1024)
def _dataset_messages(dtype: FileType, shape: tuple[int, ...]) -> tuple[bytes, int]:
    """The four messages of all such datasets, and the size of their data. The address, at the end, is still undefined."""
    nbytes = math.prod(shape) * dtype.itemsize
    # Flag 1 is a constant message. HDF5 marks the layout so where space is allocated from the start.
    messages = (
        _message(_DATASPACE, _dataspace(shape)),
        _message(_DATATYPE, dtype.message, flags=1),
        _message(_FILL, struct.pack("<4BI", 2, 1, 1, 1, 0), flags=1),
        _message(_LAYOUT, struct.pack("<BBQQ", 3, 1, _UNDEFINED, nbytes), flags=1 if nbytes else 0),
    )
    return b"".join(messages), nbytes


def _literal(path: str, node: DatasetNode, nbytes: int, heap: GlobalHeap) -> bytes:
    if isinstance(node.data, str):
        return b""
    try:
        data = b"".join(map(heap.insert, node.data)) if isinstance(node.data, tuple) else node.data
    except ValueError as error:
        raise ValueError(f"dataset {path!r}: {error}") from error
    if len(data) != nbytes:
        raise ValueError(f"dataset {path!r} of shape {node.shape} takes {nbytes} bytes, not {len(data)}")
    return data


def _attributes(path: str, attributes: Sequence[Attribute], heap: GlobalHeap) -> Iterator[bytes]:
    seen = set()
    for name, value in attributes:
        if name in seen:
            raise ValueError(f"{path!r} has two attributes {name!r}")
        seen.add(name)
        try:
            yield _message(_ATTRIBUTE, _attribute(encode_name(name), value, heap))
        except ValueError as error:
            raise ValueError(f"attribute {name!r} of {path!r}: {error}") from error


def _attribute(name: bytes, value: str | bytes | np.ndarray | np.generic, heap: GlobalHeap) -> bytes:
    dtype, shape, data = _value(value, heap)
    space = _dataspace(shape)
    head = struct.pack("<BxHHH", 1, len(name) + 1, len(dtype.message), len(space))
    body = b"".join((head, _padded(name + b"\0"), _padded(dtype.message), space, data))
    if len(body) > ATTRIBUTE_LIMIT:
        raise ValueError(
            f"it takes {len(body)} bytes in the header of its object, where HDF5 holds at most {ATTRIBUTE_LIMIT}; "
            "split it, or make it one string of variable length"
        )
    return body


def _value(value: str | bytes | np.ndarray | np.generic, heap: GlobalHeap) -> tuple[FileType, tuple[int, ...], bytes]:
    if isinstance(value, str | bytes) and not isinstance(value, np.generic):
        raw = value.encode() if isinstance(value, str) else value
        return vlen_string(is_utf8=isinstance(value, str)), (), heap.insert(raw)
    array = np.asarray(value)
    if array.ndim > _RANK_LIMIT:
        raise ValueError(f"it has {array.ndim} axes; HDF5 holds up to {_RANK_LIMIT}")
    if array.dtype.kind == "U":
        array = np.char.encode(array, "utf-8")
        return fixed_string(array.dtype.itemsize, is_utf8=True), array.shape, array.tobytes()
    return file_type(array.dtype), array.shape, array.tobytes()


def _dataspace(shape: tuple[int, ...]) -> bytes:
    """Sizes and greatest sizes, which HDF5 writes even where they are the same."""
    return struct.pack(f"<3B5x{2 * len(shape)}Q", 1, len(shape), 1 if shape else 0, *shape, *shape)


def _message(kind: int, body: bytes, *, flags: int = 0) -> bytes:
    padded = _padded(body)
    return struct.pack("<HHB3x", kind, len(padded), flags) + padded


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


_GROUP_MESSAGES = _message(_SYMBOL_TABLE, bytes(16))


def _write_objects(out: bytearray, objects: Sequence[_Object], links: Mapping[str, str]) -> list[int]:
    """Append headers and groups' links. Gives where each header is."""
    slots: dict[str, int] = {}
    addresses = []
    for item in objects:
        address = len(out)
        addresses.append(address)
        if item.path:
            struct.pack_into("<Q", out, slots.pop(item.path), address)
        out += item.header
        if isinstance(item.node, GroupNode):
            try:
                tree, heap, places = write_links(out, item.node.children)
            except ValueError as error:
                raise ValueError(f"group {item.path or '/'!r}: {error}") from error
            struct.pack_into("<QQ", out, address + item.slot, tree, heap)
            for name, place in places.items():
                slots[f"{item.path}/{name}"] = place
    if links:
        _link(out, slots, {item.path: address for item, address in zip(objects, addresses, strict=True)}, links)
    return addresses


def _link(out: bytearray, slots: Mapping[str, int], addresses: Mapping[str, int], links: Mapping[str, str]) -> None:
    """Fills in the addresses of datasets that have further names; their headers count all of these."""
    for path, first in links.items():
        struct.pack_into("<Q", out, slots[path], addresses[first])
    for first, count in Counter(links.values()).items():
        struct.pack_into("<I", out, addresses[first] + _COUNT_SLOT, 1 + count)


def _place_literals(out: bytearray, objects: Sequence[_Object], addresses: Sequence[int]) -> bytes:
    """The data of datasets that are no tensors; they follow what is there so far."""
    chunks = []
    start = len(out)
    for item, address in zip(objects, addresses, strict=True):
        if item.literal:
            struct.pack_into("<Q", out, address + item.slot, start)
            chunks.append(_padded(item.literal))
            start += len(chunks[-1])
    return b"".join(chunks)


def _place_tensors(
    out: bytearray, objects: Sequence[_Object], addresses: Sequence[int], start: int, align: int
) -> tuple[list[bytes | str], dict[str, int], int]:
    """Tensors with the zeros between them, where each one starts, and the end of the file."""
    pieces: list[bytes | str] = []
    offsets: dict[str, int] = {}
    wide = math.lcm(8, align)
    for item, address in zip(objects, addresses, strict=True):
        if isinstance(item.node, GroupNode) or not isinstance(item.node.data, str):
            continue
        if item.nbytes:
            gap = -start % (wide if item.nbytes >= BIG_NBYTES else 8)
            if gap:
                pieces.append(bytes(gap))
            start += gap
            struct.pack_into("<Q", out, address + item.slot, start)
        pieces.append(item.node.data)
        offsets[item.node.data] = start
        start += item.nbytes
    return pieces, offsets, start


def _write_superblock(out: bytearray, root: int, end: int) -> None:
    head = struct.pack("<8s8BHHI", b"\x89HDF\r\n\x1a\n", 0, 0, 0, 0, 0, 8, 8, 0, LEAF_K, INTERNAL_K, 0)
    tree, heap = struct.unpack_from("<QQ", out, root + _GROUP_SLOT)
    # The root's entry is the only one that repeats where B-tree and heap are (cache type 1).
    entry = struct.pack("<QQIIQQ", 0, root, 1, 0, tree, heap)
    struct.pack_into(f"<{len(head)}s4Q{len(entry)}s", out, 0, head, 0, _UNDEFINED, end, _UNDEFINED, entry)
