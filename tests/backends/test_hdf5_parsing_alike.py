"""Datasets whose headers are the same but for the address of the data: each has its own place, and is vetted like the first."""

import struct
from typing import Any
from unittest import mock

import h5py
import numpy as np
import pytest
from hdf5_images import CONTINUATION, INT8, UNDEFINED, Image, contiguous, dataset, header, message, parsed, shape, written

from ckptmgr.errors import CorruptCheckpointError
from ckptmgr_hdf5 import parsing
from ckptmgr_hdf5.datatypes import file_type
from ckptmgr_hdf5.encoding import DatasetNode, GroupNode, encode
from ckptmgr_hdf5.parsing import Dataset


def datasets(data: bytes) -> dict[str, Dataset]:
    return {node.path: node for node in parsed(data).walk() if isinstance(node, Dataset)}


def values(data: bytes) -> dict[str, Any]:
    """What lies where the datasets say."""
    found = {path: (x.offset or 0, x.nbytes, x.dtype) for path, x in datasets(data).items()}
    return {path: np.frombuffer(data[at : at + nbytes], dtype).tolist() for path, (at, nbytes, dtype) in found.items()}


def image(*headers: bytes) -> bytes:
    """A file with these objects: ``0``, ``1`` and so on, visited in this order."""
    made = Image()
    addresses = [made.put(each) for each in headers]
    return made.finished(made.group([b"%d" % index for index in range(len(headers))], addresses))


def how_many_are_parsed(data: bytes) -> int:
    with mock.patch.object(parsing, "parse_layout", wraps=parsing.parse_layout) as layouts:
        parsed(data)
    return layouts.call_count


def test_each_of_many_alike_has_its_own_values() -> None:
    data = written(lambda file: [file.create_dataset(f"{i}", data=np.array([i, i + 1], "i2")) for i in range(3)])

    assert values(data) == {"/0": [0, 1], "/1": [1, 2], "/2": [2, 3]}


def test_only_the_first_of_many_alike_is_parsed() -> None:
    assert how_many_are_parsed(image(*[dataset(96, 2, nbytes=2)] * 5)) == 1


def test_another_type_or_shape_is_not_alike() -> None:
    data = written(lambda file: [file.create_dataset(name, data=np.ones(2, name)) for name in ("i4", "f4", "u4")])

    assert {path: str(found.dtype) for path, found in datasets(data).items()} == {
        "/f4": "float32",
        "/i4": "int32",
        "/u4": "uint32",
    }


def test_those_alike_in_all_have_their_own_attributes() -> None:
    def fill(file: h5py.File) -> None:
        for name, value in (("a", 1), ("b", 1), ("c", 2)):
            file.create_dataset(name, data=np.float32(0)).attrs["n"] = value

    found = datasets(written(fill))

    assert {path: node.attributes["n"] for path, node in found.items()} == {"/a": 1, "/b": 1, "/c": 2}


def test_an_attribute_that_is_damaged_is_told_with_the_path_of_its_own_dataset() -> None:
    data = image(*[header(shape(2), message(3, INT8), contiguous(96, 2), message(0xC, b"\1\0\x09\0"))] * 2)

    with pytest.raises(CorruptCheckpointError) as caught:
        len(datasets(data)["/1"].attributes)
    assert caught.value.tensor == "/1"


def test_data_outside_of_the_file_is_refused_of_the_second_too() -> None:
    with pytest.raises(CorruptCheckpointError, match="its bytes end at") as caught:
        datasets(image(dataset(96, 2, nbytes=2), dataset(1 << 40, 2, nbytes=2)))
    assert caught.value.tensor == "/1"


def test_one_that_was_never_written_is_not_alike() -> None:
    found = datasets(image(dataset(96, 2, nbytes=2), dataset(UNDEFINED, 2, nbytes=2)))

    assert [node.storage for node in found.values()] == ["contiguous", "none"]
    assert found["/1"].offset is None


def test_headers_in_two_pieces_are_parsed_each_time() -> None:
    made = Image()
    more = made.put(message(0xC, b""))
    two = header(shape(2), message(3, INT8), contiguous(96, 2), message(CONTINUATION, struct.pack("<QQ", more, 8)))
    data = made.finished(made.group([b"0", b"1"], [made.put(two), made.put(two)]))

    assert how_many_are_parsed(data) == 2


def test_a_short_header_at_the_end_of_the_file_is_read_after_a_long_one() -> None:
    def made(last: int) -> tuple[bytes, int]:
        image = Image()
        root = image.group([b"0", b"1"], [image.put(dataset(96, *[1] * 20, nbytes=1)), last])
        end = image.put(dataset(96, 2, nbytes=2))
        return image.finished(root), end

    data, _ = made(made(0)[1])

    assert [len(node.shape or ()) for node in datasets(data).values()] == [20, 1]


def test_many_that_are_not_alike_are_all_read() -> None:
    nodes = {f"{i:04}": DatasetNode(file_type(np.dtype("u1")), (i,), bytes([i % 251]) * i) for i in range(2100)}
    data = b"".join(piece for piece in encode(GroupNode({**nodes}), align=8).pieces if isinstance(piece, bytes))

    found = values(data)

    assert len(found) == 2100
    assert found["/0003"] == [3, 3, 3]
    assert found["/2099"] == [91] * 2099
