"""HDF5 files for tests: by h5py, and put together by hand as no library writes them (old groups, headers of version 1)."""

import io
import itertools
import struct
from collections.abc import Callable, Sequence
from typing import Any

import h5py
import numpy as np

from ckptmgr_hdf5.origin import Origin
from ckptmgr_hdf5.parsing import Dataset, Reader, Tree, parse

UNDEFINED = 0xFFFFFFFFFFFFFFFF
LAYOUT, SYMBOLS, ATTRIBUTE, CONTINUATION = 0x8, 0x11, 0xC, 0x10
ORIGIN = Origin("x.h5", "run/x.h5")
INT8 = struct.pack("<IIHH", 0x10 | 8 << 8, 1, 0, 8)
TEXT = struct.pack("<II", 0x19 | 1 << 8, 16) + struct.pack("<II", 0x13, 1)  # of variable length
SCALAR = struct.pack("<BBB5x", 1, 0, 0)


def parsed(data: bytes) -> Tree:
    return parse(Reader.of_bytes(data), ORIGIN)


def message(kind: int, body: bytes, flags: int = 0) -> bytes:
    body = body.ljust(-(-len(body) // 8) * 8, b"\0")
    return struct.pack("<HHB3x", kind, len(body), flags) + body


def header(*messages: bytes) -> bytes:
    body = b"".join(messages)
    return struct.pack("<BxHII4x", 1, len(messages), 1, len(body)) + body


def symbols(tree: int, heap: int) -> bytes:
    return message(SYMBOLS, struct.pack("<QQ", tree, heap))


def shape(*sizes: int) -> bytes:
    return message(1, struct.pack("<BBB5x", 1, len(sizes), 0) + struct.pack(f"<{len(sizes)}Q", *sizes))


def contiguous(address: int, nbytes: int) -> bytes:
    return message(LAYOUT, struct.pack("<BBQQ", 3, 1, address, nbytes))


def dataset(address: int, *sizes: int, nbytes: int) -> bytes:
    """The header of a dataset of int8."""
    return header(shape(*sizes), message(3, INT8), contiguous(address, nbytes))


def attribute(name: str, kind: bytes, space: bytes, data: bytes) -> bytes:
    raw = name.encode() + b"\0"
    parts = [part.ljust(-(-len(part) // 8) * 8, b"\0") for part in (raw, kind, space)]
    return message(ATTRIBUTE, struct.pack("<BxHHH", 1, len(raw), len(kind), len(space)) + b"".join(parts) + data)


def tree_node(children: Sequence[int], level: int = 0) -> bytes:
    keys = b"".join(struct.pack("<QQ", 0, child) for child in children)
    return struct.pack("<4sBBHQQ", b"TREE", 0, level, len(children), UNDEFINED, UNDEFINED) + keys + bytes(8)


def symbol_node(entries: Sequence[tuple[int, int]], cached: int = 0) -> bytes:
    """Entries are the place of the name in the heap, and the object's address."""
    rows = b"".join(struct.pack("<QQI20x", name, address, cached) for name, address in entries)
    return struct.pack("<4sBxH", b"SNOD", 1, len(entries)) + rows


def heap(segment: int, nbytes: int) -> bytes:
    return struct.pack("<4sB3xQQQ", b"HEAP", 0, nbytes, 1, segment)


def global_heap(*objects: tuple[int, bytes]) -> bytes:
    """Objects are index and bytes."""
    held = b"".join(
        struct.pack("<HHIQ", index, 1, 0, len(raw)) + raw.ljust(-(-len(raw) // 8) * 8, b"\0") for index, raw in objects
    )
    return struct.pack("<4sB3xQ", b"GCOL", 1, 32 + len(held)) + held + bytes(16)


def written(fill: Callable[[h5py.File], object], **options: Any) -> bytes:
    """The bytes of a file that h5py writes."""
    target = io.BytesIO()
    with h5py.File(target, "w", **options) as file:
        fill(file)
    return target.getvalue()


def one(fill: Callable[[h5py.File], object], **options: Any) -> Dataset:
    """The dataset ``x`` of such a file."""
    found = parsed(written(fill, **options)).find("x")
    assert isinstance(found, Dataset)
    return found


def stored(array: Any, **options: Any) -> tuple[Dataset, np.ndarray[Any, Any]]:
    """The dataset that an array becomes, and the array that lies where it says."""
    data = written(lambda file: file.create_dataset("x", data=array), **options)
    found = parsed(data).find("x")
    assert isinstance(found, Dataset)
    assert found.offset is not None
    return found, np.frombuffer(data[found.offset : found.offset + found.nbytes], found.dtype).reshape(found.shape)


class Image:
    """The bytes of a file as they grow; the superblock comes last, by `finished`."""

    def __init__(self) -> None:
        self.data = bytearray(96)

    def reserve(self, nbytes: int) -> int:
        """The address of that many new bytes."""
        address = len(self.data)
        self.data += bytes(-(-nbytes // 8) * 8)
        return address

    def put(self, raw: bytes, address: int | None = None) -> int:
        """Writes bytes at an address, or at the end, and gives the address."""
        address = self.reserve(len(raw)) if address is None else address
        self.data[address : address + len(raw)] = raw
        return address

    def table(self, names: Sequence[bytes], addresses: Sequence[int], cached: int = 0) -> bytes:
        """The message of a group that has these names, in one symbol node."""
        raw = b"\0" + b"\0".join(names) + b"\0"
        places = [*itertools.accumulate((len(name) + 1 for name in names), initial=1)][:-1]
        node = self.put(symbol_node([*zip(places, addresses, strict=True)], cached))
        return symbols(self.put(tree_node([node])), self.put(heap(self.put(raw), len(raw))))

    def group(self, names: Sequence[bytes], addresses: Sequence[int], *attributes: bytes) -> int:
        """The address of a new group."""
        return self.put(header(self.table(names, addresses), *attributes))

    def finished(self, root: int, leaf_k: int = 4) -> bytes:
        """The whole file."""
        fields = b"\x89HDF\r\n\x1a\n" + struct.pack("<8BHHI", 0, 0, 0, 0, 0, 8, 8, 0, leaf_k, 16, 0)
        self.data[:24] = fields
        self.data[24:80] = struct.pack("<QQQQQQQ", 0, UNDEFINED, len(self.data), UNDEFINED, 0, root, 0)
        return bytes(self.data)
