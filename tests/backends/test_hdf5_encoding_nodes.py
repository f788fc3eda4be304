"""Bytes of B-trees, symbol nodes and heaps that HDF5 does not look at on every way, but may."""

import io
import struct

import h5py
import numpy as np
import pytest
from hdf5_encoded import image, literal

from ckptmgr_hdf5.encoding import GroupNode
from ckptmgr_hdf5.global_heap import GlobalHeap
from ckptmgr_hdf5.symbol_tables import write_links

UNDEFINED = 2**64 - 1
NODE = struct.Struct("<4sBBHQQ")  # signature, type, level, entries, left and right sibling


def node(out: bytes, address: int) -> tuple[int, int, int, list[int]]:
    """Level, siblings, and keys with children between them."""
    signature, kind, level, count, left, right = NODE.unpack_from(out, address)
    assert (signature, kind) == (b"TREE", 0)
    return level, left, right, [*struct.unpack_from(f"<{2 * count + 1}Q", out, address + NODE.size)]


def test_a_group_without_links_has_a_tree_without_children() -> None:
    out = bytearray(16)

    tree, heap, slots = write_links(out, [])

    assert (heap, slots) == (16, {})
    assert out[heap:tree] == struct.pack("<4s4xQQQ8x", b"HEAP", 8, 1, 48)
    assert node(out, tree) == (0, UNDEFINED, UNDEFINED, [0])
    assert len(out) - tree == 544


def test_names_and_entries_lie_sorted() -> None:
    out = bytearray()

    tree, heap, slots = write_links(out, ["b", "12345678", "a"])

    segment = b"".join((bytes(8), b"12345678".ljust(16, b"\0"), b"a".ljust(8, b"\0"), b"b".ljust(8, b"\0")))
    assert out[heap + 32 : heap + 32 + 40] == segment
    symbols = heap + 32 + 40
    assert out[symbols : symbols + 8] == b"SNOD\x01\0\x03\0"
    assert [struct.unpack_from("<Q", out, symbols + 8 + 40 * index)[0] for index in range(3)] == [8, 24, 32]
    assert slots == {"12345678": symbols + 16, "a": symbols + 56, "b": symbols + 96}
    assert node(out, tree) == (0, UNDEFINED, UNDEFINED, [0, symbols, 32])


def test_nodes_of_a_level_know_their_siblings_and_the_names_between_them() -> None:
    out = bytearray()

    root, heap, _ = write_links(out, [f"{index:07d}" for index in range(520)])  # 65 symbol nodes, so 32, 32 and 1 in a node

    level, left, right, (first, one, second, two, third, three, fourth) = node(out, root)
    assert (level, left, right) == (1, UNDEFINED, UNDEFINED)
    names = [bytes(out[heap + 32 + key :][:8]) for key in (first, second, third, fourth)]
    assert names == [bytes(8), b"0000255\0", b"0000511\0", b"0000519\0"]
    nodes = [node(out, address) for address in (one, two, three)]
    assert [each[:3] for each in nodes] == [(0, UNDEFINED, two), (0, one, three), (0, two, UNDEFINED)]
    assert [(keys[0], keys[-1]) for _, _, _, keys in nodes] == [(first, second), (second, third), (third, fourth)]


def test_free_space_of_a_collection_is_its_last_object() -> None:
    heap = GlobalHeap(96)

    assert heap.insert(b"hello") == struct.pack("<IQI", 5, 96, 1)
    assert heap.insert(b"") == struct.pack("<IQI", 0, 96, 2)
    assert heap.build() == b"".join(
        (
            b"GCOL\x01\0\0\0",
            struct.pack("<Q", 4096),
            struct.pack("<HH4xQ8s", 1, 0, 5, b"hello"),
            struct.pack("<HH4xQ", 2, 0, 0),
            struct.pack("<HH4xQ", 0, 0, 4040).ljust(4040, b"\0"),
        )
    )


def test_free_space_may_be_no_more_than_its_header_or_less() -> None:
    tails = []
    for nbytes in (4048, 4056, 4064, 4065):
        heap = GlobalHeap(0)
        heap.insert(b"x" * nbytes)
        tails.append(heap.build()[32 + nbytes :])

    assert tails == [struct.pack("<8xQ", 16), bytes(8), b"", bytes(7)]


def test_a_collection_of_64_kib_takes_no_further_string() -> None:
    heap = GlobalHeap(96)

    references = [heap.insert(b"x" * nbytes) for nbytes in (65_512, 65_520, 1)]  # with headers: 65,528, then 65,536 more

    assert [struct.unpack("<IQI", each) for each in references] == [(65_512, 96, 1), (65_520, 96, 2), (1, 131_176, 1)]
    assert heap.build()[131_080:131_084] == b"GCOL"
    assert GlobalHeap(96).build() == b""


def by_h5py(array: np.ndarray) -> bytes:
    """A file of h5py with this array at "x", with space from the start that is never filled."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple(array.shape) if array.shape else h5py.h5s.create(h5py.h5s.SCALAR)
    raw = io.BytesIO()
    with h5py.File(raw, "w") as file:
        h5py.h5d.create(file.id, b"x", h5py.h5t.py_create(array.dtype, logical=True), space, plist)
    return raw.getvalue()


def messages(raw: bytes, until: bytes) -> bytes:
    """The messages of the only object in a file, the first that starts so included."""
    address = struct.unpack_from("<Q", raw, raw.index(b"SNOD") + 16)[0]
    end = raw.index(until, address)
    return raw[address + 16 : end + 8 + struct.unpack_from("<H", raw, end + 2)[0]]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 3)])
@pytest.mark.parametrize("dtype", ["<f4", "?", "S3"])
def test_the_messages_of_a_dataset_are_those_of_h5py(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, dtype)
    layout = b"\x08\0\x18\0"

    ours, theirs = messages(image(GroupNode({"x": literal(array)})), layout), messages(by_h5py(array), layout)

    # Only where the data are may differ: 8 bytes, and then their size and the end of the message.
    assert ours[:-22] == theirs[:-22]
    assert ours[-14:] == theirs[-14:]
    assert (ours[-22:-14] == b"\xff" * 8) == (theirs[-22:-14] == b"\xff" * 8) == (array.size == 0)
