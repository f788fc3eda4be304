"""HDF5 files that h5py and real Keras wrote, read without h5py."""

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hdf5_images import one, parsed, stored, written

from ckptmgr.errors import CorruptCheckpointError
from ckptmgr_hdf5.parsing import Dataset, Group, Unknown

GOLDEN = Path(__file__).parents[1] / "golden" / "keras"
DTYPES = ["|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16"]
MODELS = [json.loads(file.read_text()) for file in sorted(GOLDEN.glob("*.expected.json"))]
EXPECTED = {name: found for model in MODELS for name, found in model["files"].items()}


def golden(name: str) -> bytes:
    file, _, member = name.partition("!")
    return zipfile.ZipFile(GOLDEN / file).read(member) if member else (GOLDEN / file).read_bytes()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_of_keras_has_the_objects_that_h5py_finds(name: str) -> None:
    data, expected = golden(name), EXPECTED[name]["tree"]

    nodes = {node.path: node for node in parsed(data).walk()}

    assert [*nodes] == [row["path"] for row in expected]
    for row in expected:
        node = nodes[row["path"]]
        assert ("group" if isinstance(node, Group) else "dataset") == row["kind"]
        assert {*node.attributes} == {*row["attrs"]}
        if isinstance(node, Dataset):
            assert (list(node.shape or ()), node.dtype, node.storage) == (row["shape"], np.dtype(row["dtype"]), row["layout"])


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_of_keras_has_the_values_that_h5py_finds(name: str) -> None:
    data = golden(name)
    tree = parsed(data)

    with h5py.File(io.BytesIO(data)) as file:
        for node in tree.walk():
            right = file[node.path]
            if isinstance(node, Dataset) and node.offset is not None:
                assert data[node.offset : node.offset + node.nbytes] == right[()].tobytes()
            for key, value in node.attributes.items():
                np.testing.assert_array_equal(value, right.attrs[key])
                assert type(value) is type(right.attrs[key])


def test_the_bytes_of_the_golden_variables_are_the_live_models() -> None:
    expected = json.loads((GOLDEN / "k3_tutorial.expected.json").read_text())["model_variables"][0]
    data = golden("k3_tutorial.weights.h5")

    found = parsed(data).find("layers/dense/vars/0")

    assert isinstance(found, Dataset)
    assert found.offset is not None
    assert hashlib.sha256(data[found.offset :][: found.nbytes]).hexdigest()[:32] == expected["sha256_32"]


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_are_raw_in_every_width(dtype: str, libver: str) -> None:
    array = np.arange(6).astype(dtype).reshape(2, 3)

    found, values = stored(array, libver=libver)

    assert (found.kind, found.dtype, found.shape, found.storage) == ("raw", np.dtype(dtype), (2, 3), "contiguous")
    np.testing.assert_array_equal(values, array)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_an_enum_of_false_and_true_is_bool(libver: str) -> None:
    found, values = stored(np.array([True, False]), libver=libver)

    assert (found.kind, found.dtype) == ("bool", np.dtype(np.bool_))
    assert values.tolist() == [True, False]


def test_any_other_enum_is_of_another_kind() -> None:
    found = one(lambda file: file.create_dataset("x", (2,), h5py.enum_dtype({"RED": 0, "BLUE": 1}, "i1")))

    assert (found.kind, found.dtype, found.nbytes) == ("other", None, 2)


def test_bits_without_a_type_are_opaque() -> None:
    found, values = stored(np.array([1, 2], "<u2").view("V2"))

    assert (found.kind, found.dtype) == ("opaque", np.dtype("V2"))
    assert values.view("<u2").tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [">f4", ">i8", ">c16"])
def test_big_endian_numbers_are_not_raw(dtype: str) -> None:
    found, values = stored(np.arange(3).astype(dtype))

    assert (found.kind, found.dtype) == ("other", np.dtype(dtype))
    assert values.tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [[("a", "i4"), ("b", "f4")], [("r", "f4"), ("i", "f8")], [("i", "f4"), ("r", "f4")], "g"])
def test_types_that_numpy_has_no_word_for_are_of_another_kind(dtype: Any) -> None:
    found = one(lambda file: file.create_dataset("x", (2,), dtype))

    assert (found.kind, found.dtype) == ("other", None)


@pytest.mark.parametrize("dtype", [h5py.vlen_dtype("i4"), h5py.ref_dtype, h5py.regionref_dtype])
def test_sequences_and_references_are_of_another_kind(dtype: Any) -> None:
    assert one(lambda file: file.create_dataset("x", (2,), dtype)).kind == "other"


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_texts_of_fixed_length_are_strings(libver: str) -> None:
    data = written(lambda file: file.create_dataset("x", data=np.array([b"ab", b"cde"])), libver=libver)
    tree = parsed(data)
    found = tree.find("x")
    assert isinstance(found, Dataset)

    assert (found.kind, found.dtype) == ("string", np.dtype("S3"))
    assert tree.strings(found).tolist() == [b"ab", b"cde"]


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_texts_of_variable_length_come_out_of_the_global_heap(libver: str) -> None:
    texts = [["", "ä"], ["x" * 5000, "y"]]
    data = written(lambda file: file.create_dataset("x", data=texts, dtype=h5py.string_dtype()), libver=libver)
    tree = parsed(data)
    found = tree.find("x")
    assert isinstance(found, Dataset)

    assert (found.kind, found.dtype, found.shape) == ("vlen_string", np.dtype(object), (2, 2))
    assert tree.strings(found).tolist() == texts


@pytest.mark.parametrize("dtype", ["S3", h5py.string_dtype()])
def test_no_texts_are_an_empty_array(dtype: Any) -> None:
    tree = parsed(written(lambda file: file.create_dataset("x", (0, 2), dtype)))
    found = tree.find("x")
    assert isinstance(found, Dataset)

    assert tree.strings(found).shape == (0, 2)


def test_texts_of_a_dataset_that_are_no_utf_8_are_an_error() -> None:
    tree = parsed(written(lambda file: file.create_dataset("x", data=[b"\xff"], dtype=h5py.string_dtype())))
    found = tree.find("x")
    assert isinstance(found, Dataset)

    with pytest.raises(CorruptCheckpointError, match=r"'/x': the text .* is no UTF-8"):
        tree.strings(found)


def test_texts_of_a_dataset_of_numbers_are_not_asked_for() -> None:
    tree = parsed(written(lambda file: file.create_dataset("x", data=[1])))
    found = tree.find("x")
    assert isinstance(found, Dataset)

    with pytest.raises(Unknown, match="'/x' is raw"):
        tree.strings(found)
