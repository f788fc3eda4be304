"""Datatypes byte for byte as h5py makes them, and elements that read back."""

import io

import h5py
import ml_dtypes
import numpy as np
import pytest
from hdf5_encoded import literal, opened

from ckptmgr_hdf5.datatypes import FileType, file_type, fixed_string, vlen_string
from ckptmgr_hdf5.encoding import GroupNode

INTEGERS = [f"{order}{kind}{size}" for order in "<>" for kind in "iu" for size in (1, 2, 4, 8)]
FLOATS = [f"{order}{kind}" for order in "<>" for kind in ("f2", "f4", "f8", "c8", "c16")]


def by_h5py(dtype: np.dtype) -> bytes:
    """The datatype message that HDF5 writes; its two first bytes only say what follows."""
    return h5py.h5t.py_create(dtype, logical=True).encode()[2:]


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS, "?", "S1", "S7", "V1", "V2", "V16"])
def test_a_datatype_is_what_h5py_writes(dtype: str) -> None:
    assert file_type(np.dtype(dtype)) == FileType(np.dtype(dtype).itemsize, by_h5py(np.dtype(dtype)))


def test_fixed_length_strings_are_what_h5py_writes() -> None:
    assert fixed_string(5).message == by_h5py(h5py.string_dtype("ascii", 5))
    assert fixed_string(5, is_utf8=True).message == by_h5py(h5py.string_dtype("utf-8", 5))
    assert fixed_string(5) == file_type(np.dtype("S5"))
    assert not fixed_string(5).is_vlen


@pytest.mark.parametrize(("value", "is_utf8"), [("text", True), (b"text", False)])
def test_variable_length_strings_are_what_h5py_writes(value: str | bytes, is_utf8: bool) -> None:
    raw = io.BytesIO()
    with h5py.File(raw, "w") as file:
        file.attrs["a"] = value

    assert raw.getvalue().count(vlen_string(is_utf8=is_utf8).message) == 1
    assert raw.getvalue().count(vlen_string(is_utf8=not is_utf8).message) == 0
    assert vlen_string(is_utf8=is_utf8).is_vlen


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS, "?", "S5", "V2"])
def test_elements_read_back(dtype: str) -> None:
    array = np.frombuffer(bytes([1, 0, 0, 1] * 40), np.uint8)[: 10 * np.dtype(dtype).itemsize].view(dtype)

    found = opened(GroupNode({"x": literal(array)}))["x"]

    assert found.dtype == array.dtype
    assert found[()].tobytes() == array.tobytes()


@pytest.mark.parametrize("value", [-(2**63), 2**63 - 1])
def test_the_ends_of_int64_read_back(value: int) -> None:
    assert opened(GroupNode({"x": literal(np.array(value, "<i8"))}))["x"][()] == value


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f8"])
def test_special_floats_are_understood(dtype: str) -> None:
    array = np.array([np.nan, np.inf, -np.inf, -0.0, 1.5, np.finfo(dtype).tiny], dtype)

    found = opened(GroupNode({"x": literal(array)}))["x"].astype("<f8")[()]

    assert np.isnan(found[0])
    assert found[1:].tolist() == [np.inf, -np.inf, 0.0, 1.5, float(np.finfo(dtype).tiny)]
    assert np.signbit(found[3])


@pytest.mark.parametrize(
    "dtype",
    [object, "M8[s]", "m8[s]", "U3", "g", "G", [("a", "<f4")], ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4],
)
def test_a_dtype_that_would_not_read_back_is_refused(dtype: object) -> None:
    with pytest.raises(ValueError, match="HDF5 has no plain type for dtype"):
        file_type(np.dtype(dtype))


@pytest.mark.parametrize("dtype", ["S0", "V0"])
def test_elements_of_no_bytes_are_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match="HDF5 has no plain type for dtype"):
        file_type(np.dtype(dtype))


@pytest.mark.parametrize("nbytes", [0, -1])
def test_strings_have_bytes(nbytes: int) -> None:
    with pytest.raises(ValueError, match=f"HDF5 has no strings of {nbytes} bytes"):
        fixed_string(nbytes)
