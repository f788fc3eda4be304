"""Every byte of small HDF5 files, damaged: our error, `Unknown`, or what h5py reads from the same damaged bytes."""

import random
from typing import Any

import h5py
import hdf5_oracle
import numpy as np
import pytest
from bounds import cheap
from hdf5_images import Image, dataset, parsed, written
from hypothesis import given
from hypothesis import strategies as st

from ckptmgr.errors import CorruptCheckpointError, UnsafeCheckpointError
from ckptmgr_hdf5.parsing import Dataset, Unknown


def fill(file: h5py.File) -> None:
    file.attrs["names"] = np.array([b"ab", b"cde"])
    group = file.create_group("layers/dense")
    group.attrs["name"] = "dense"
    group["0"] = np.arange(6, dtype="f4").reshape(2, 3)
    group["1"] = np.array([True, False])
    group["2"] = np.complex64(1j)
    group["3"] = np.array([1, 2], "u2").view("V2")
    file["texts"] = np.array([b"q", b"rr"])


FILES = {libver: written(fill, libver=libver) for libver in ("earliest", "latest")}
OUTCOMES = (CorruptCheckpointError, UnsafeCheckpointError, Unknown)


def contents(data: bytes) -> dict[str, Any]:
    """Everything in a file that can be read, by path and attribute."""
    found: dict[str, Any] = {}
    for node in parsed(data).walk():
        found[node.path] = None
        if isinstance(node, Dataset) and node.offset is not None and node.dtype is not None:
            found[node.path] = node.dtype, node.shape, data[node.offset : node.offset + node.nbytes]
        for name, value in node.attributes.items():
            found[f"{node.path}@{name}"] = getattr(value, "dtype", str), np.asarray(value).tolist()
    return found


def damaged(data: bytes, seed: int) -> list[bytes]:
    """The file with each byte changed, once in one bit."""
    dice = random.Random(seed)
    return [data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :] for at in range(len(data))]


def outcome(data: bytes) -> dict[str, Any] | type[Exception]:
    try:
        return contents(data)
    except OUTCOMES as error:
        return type(error)


@pytest.mark.parametrize("libver", FILES)
def test_an_undamaged_file_is_read_as_h5py_reads_it(libver: str) -> None:
    assert contents(FILES[libver]) == hdf5_oracle.contents(FILES[libver])


@pytest.mark.parametrize("libver", FILES)
def test_one_damaged_bit_anywhere_gives_a_tree_or_our_error(libver: str) -> None:
    outcomes = [outcome(data) for data in damaged(FILES[libver], 1)]

    assert {CorruptCheckpointError, Unknown} <= {found for found in outcomes if isinstance(found, type)}
    assert sum(isinstance(found, dict) for found in outcomes) > 100


@pytest.mark.parametrize("libver", FILES)
def test_no_single_damage_is_slow_or_large(libver: str) -> None:
    data, dice = FILES[libver], random.Random(2)

    for _ in range(150):
        at = dice.randrange(len(data) - 8)
        value = dice.choice([b"\xff" * 8, bytes(8), b"\xff\xff\xff\x7f", dice.randbytes(8), (1 << 20).to_bytes(8, "little")])
        with cheap():
            outcome(data[:at] + value + data[at + len(value) :])


def test_of_the_newer_headers_no_damage_goes_unseen() -> None:
    data = FILES["latest"]
    right, start = contents(data), data.index(b"OHDR")
    end = start + 10 + data[start + 6] if data[start + 5] & 0x20 == 0 else start + 24 + data[start + 22]

    for at in range(start, end):
        found = outcome(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])
        assert isinstance(found, type) or found == right


@pytest.mark.parametrize("seed", range(3))
def test_what_is_read_of_a_damaged_file_is_what_h5py_reads(seed: int) -> None:
    data = written(lambda file: file.create_dataset("g/x", data=np.arange(6, dtype="f4").reshape(2, 3)))
    right = contents(data)
    changed = [(bad, found) for bad in damaged(data, seed) if isinstance(found := outcome(bad), dict) and found != right]

    theirs = hdf5_oracle.contents_apart([bad for bad, _ in changed])

    pairs = [(ours, other) for (_, ours), other in zip(changed, theirs, strict=True) if other is not None]
    assert len(pairs) > 20
    for ours, other in pairs:
        assert ours.keys() <= other.keys()
        assert all(value is None or value == other[path] for path, value in ours.items())


@given(st.binary(max_size=400))
def test_any_bytes_behind_a_good_superblock_give_our_error_or_a_tree(raw: bytes) -> None:
    image = Image()
    root = image.put(raw)

    found = outcome(image.finished(root))

    assert isinstance(found, (dict, type))


@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=4))
def test_several_damages_of_a_file_by_hand_give_our_error_or_a_tree(changes: list[tuple[int, int]]) -> None:
    image = Image()
    inner = image.group([b"x", b"y"], [image.put(dataset(96, 2, nbytes=2)), image.group([], [])])
    data = bytearray(image.finished(image.group([b"g"], [inner])))
    for at, value in changes:
        data[at % len(data)] = value

    assert isinstance(outcome(bytes(data)), (dict, type))
