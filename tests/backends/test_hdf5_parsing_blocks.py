"""How the bytes of an HDF5 file are fetched: few requests, little memory, and none outside of the file."""

import io
import random

import h5py
import numpy as np
import pytest
from bounds import cheap
from hdf5_images import ORIGIN, Image, dataset
from stores import MemoryStore

from ckptmgr.backend import Folder
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr_hdf5.blocks import Claims, Reader
from ckptmgr_hdf5.faults import Damaged
from ckptmgr_hdf5.lookup3 import lookup3
from ckptmgr_hdf5.parsing import Dataset, parse

KIB = 1 << 10
MIB = 1 << 20


class Counted:
    """Bytes that remember what was fetched of them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.fetched: list[tuple[int, int]] = []

    def __call__(self, offset: int, nbytes: int) -> bytes:
        self.fetched.append((offset, nbytes))
        return self.data[offset : offset + nbytes]

    def reader(self) -> Reader:
        return Reader(self, len(self.data))


def test_a_small_file_is_fetched_once_and_whole() -> None:
    source = Counted(bytes(MIB))
    reader = source.reader()

    for offset in range(0, MIB, 1000):
        reader.read(offset, 8)

    assert source.fetched == [(0, MIB)]


def test_reads_in_a_row_fetch_ever_more_up_to_a_limit() -> None:
    source = Counted(bytes(6 * MIB))
    reader = source.reader()

    for offset in range(0, 6 * MIB, 1000):
        reader.read(offset, 8)

    assert [nbytes // KIB for _, nbytes in source.fetched] == [64, 128, 256, 512, 1024, 1024, 1024, 1024, 1024, 64]


def test_scattered_reads_fetch_little() -> None:
    source = Counted(bytes(20 * MIB))
    reader = source.reader()

    for offset in range(0, 20 * MIB, 2 * MIB):
        reader.read(offset + 5, 8)

    assert source.fetched == [(offset, 64 * KIB) for offset in range(0, 20 * MIB, 2 * MIB)]


def test_a_read_across_the_border_of_two_blocks() -> None:
    data = random.Random(1).randbytes(2 * MIB)

    assert Counted(data).reader().read(64 * KIB - 3, 7) == data[64 * KIB - 3 : 64 * KIB + 4]


def test_a_large_read_is_one_fetch() -> None:
    source = Counted(bytes(5 * MIB))

    source.reader().read(100, 3 * MIB)

    assert source.fetched == [(100, 3 * MIB)]


def test_any_reads_give_the_files_bytes() -> None:
    data, dice = random.Random(2).randbytes(3 * MIB + 77), random.Random(3)
    reader = Reader(lambda offset, nbytes: data[offset : offset + nbytes], len(data) - 100, start=100).after(28)

    for _ in range(300):
        offset = dice.randrange(len(data) - 128)
        nbytes = min(dice.choice([0, 1, 100, 70_000, 2 * MIB]), len(data) - 128 - offset)
        assert reader.read(offset, nbytes) == data[128 + offset : 128 + offset + nbytes]


def test_what_is_held_of_a_large_file_is_bounded() -> None:
    reader = Reader(lambda offset, nbytes: bytes(nbytes), 1 << 40)

    with cheap(nbytes=24 * MIB):
        for offset in range(0, 100 * MIB, 50 * KIB):
            reader.read(offset, 8)
        for offset in range(0, 1 << 30, MIB):
            reader.read(offset, 8)


@pytest.mark.parametrize(("offset", "nbytes"), [(-1, 1), (0, -1), (90, 11), (101, 0), (1 << 63, 1), (0, 1 << 63)])
def test_a_read_outside_of_the_file_is_damage(offset: int, nbytes: int) -> None:
    with pytest.raises(Damaged, match="are needed, and there are 100"):
        Reader.of_bytes(bytes(100)).read(offset, nbytes)


def test_a_file_that_is_cut_off_while_it_is_read_is_an_error() -> None:
    folder = Folder(MemoryStore())
    folder.write("x.h5", bytes(1000))
    reader = Reader.of_file(folder, "x.h5")
    folder.write("x.h5", bytes(10))

    with pytest.raises(CorruptCheckpointError, match=r"'run/x.h5' .* cut off or deleted while it was read"):
        parse(reader, ORIGIN)


def test_a_file_that_is_not_there_is_no_damage() -> None:
    with pytest.raises(FileNotFoundError):
        Reader.of_file(Folder(MemoryStore()), "x.h5")


def test_a_member_of_a_file_is_read_in_its_bounds() -> None:
    folder = Folder(MemoryStore())
    folder.write("x.keras", bytes(50) + b"member" + bytes(50))

    reader = Reader.of_file(folder, "x.keras", start=50, nbytes=6)

    assert (reader.nbytes, reader.read(0, 6)) == (6, b"member")
    with pytest.raises(Damaged, match="are needed"):
        reader.read(0, 7)


def test_structures_before_the_data_cost_few_requests() -> None:
    image = Image()
    names = [b"%05d" % at for at in range(20_000)]
    root = image.group(names, [image.put(dataset(96, 1, nbytes=1)) for _ in names])
    source = Counted(image.finished(root, leaf_k=10_000) + bytes(50 * MIB))

    tree = parse(source.reader(), ORIGIN)

    assert len(tree.root.children) == 20_000
    assert len(source.fetched) < 20


def test_only_headers_are_fetched_of_a_file_with_large_arrays() -> None:
    target = io.BytesIO()
    with h5py.File(target, "w") as file:
        for at in range(10):
            file[f"layers/{at}/kernel"] = np.zeros(4 * MIB, np.uint8)
    source = Counted(target.getvalue())

    tree = parse(source.reader(), ORIGIN)

    assert sum(isinstance(node, Dataset) for node in tree.walk()) == 10
    assert sum(nbytes for _, nbytes in source.fetched) < 3 * MIB


def test_what_is_read_twice_is_bounded() -> None:
    claims = Claims()
    for _ in range(1 + MIB // 1000):
        claims.add(0, 1000)

    with pytest.raises(Damaged, match="over and over"):
        claims.add(0, 1000)


def test_what_overlaps_is_bounded() -> None:
    claims = Claims()
    for at in range(MIB // 1000):
        claims.add(at, 1000)

    with pytest.raises(Damaged, match="overlap"):
        claims.add(5000, 1000)


def test_many_parts_beside_each_other_do_not_overlap() -> None:
    claims = Claims()

    for at in range(10_000):
        claims.add(at * 1000, 1000)

    assert claims.nbytes == 10_000_000


@pytest.mark.parametrize(("data", "expected"), [(b"", 0xDEADBEEF), (b"Four score and seven years ago", 0x17770551)])
def test_the_checksum_is_that_of_bob_jenkins(data: bytes, expected: int) -> None:
    assert lookup3(data) == expected
