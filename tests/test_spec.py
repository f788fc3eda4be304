import copy
import string

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmgr.errors import UnsupportedTensorError
from ckptmgr.spec import PACKED_BITS, STRING, PackedArray, TensorSpec, dtype_name, is_possible, numpy_dtype, tensor_spec

NUMPY = ["bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float16", "float32", "float64"]
OTHERS = ["complex64", "complex128", "datetime64[ns]", "datetime64[25s]", "timedelta64[us]", "datetime64"]
ML = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "int4", "uint4", "float4_e2m1fn"]


@pytest.mark.parametrize("name", [*NUMPY, *OTHERS, *ML])
def test_a_dtype_has_one_name_that_leads_back_to_it(name: str):
    dtype = numpy_dtype(name)

    assert dtype.name == name
    assert dtype_name(dtype) == name
    assert dtype.isnative


@pytest.mark.parametrize("name", ["<f4", ">i8", "=u2", "<M8[ns]", ">c16"])
def test_byte_order_is_no_part_of_a_name(name: str):
    dtype = np.dtype(name)

    assert numpy_dtype(dtype_name(dtype)) == dtype.newbyteorder("=")


@pytest.mark.parametrize("dtype", [np.dtype("S3"), np.dtype("<U5"), np.dtype(object), np.dtypes.StringDType()])
def test_text_and_bytes_are_strings(dtype: np.dtype):
    assert dtype_name(dtype) == "string"


@pytest.mark.parametrize("dtype", ["V8", "i4,f8", [("x", "O")]])
def test_structured_and_void_dtypes_cannot_be_stored(dtype):
    with pytest.raises(UnsupportedTensorError, match="cannot be stored"):
        dtype_name(np.dtype(dtype))


OTHER_SPELLINGS = [
    "f4",
    "<f4",
    "float",
    "int",
    "bool_",
    "half",
    "longdouble",
    "m8[s]",
    "float32 ",
    " float32",
    "Float32",
    "float32\n",
]
UNKNOWN = [
    "",
    "float33",
    "float999",
    "bfloat17",
    "datetime64[0s]",
    "datetime64[x]",
    "datetime64[ns/5]",
    "object",
    "str",
    "void64",
    "S3",
]
EXPRESSIONS = ["datetime64[ns/5]", "(2,)i4", "(-1,)i4", "(0x,)i4", "i4,i4", "i4,", "a5", "\x00", "V10000000000000"]


@pytest.mark.parametrize("name", [*OTHER_SPELLINGS, *UNKNOWN, *EXPRESSIONS])
def test_other_spellings_and_unknown_dtypes_are_refused(name: str):
    with pytest.raises(UnsupportedTensorError, match="is not known"):
        numpy_dtype(name)


@given(st.text(st.sampled_from(string.ascii_letters[:20] + string.digits + "()[],=<>|:x* \0é"), max_size=20))
def test_no_name_out_of_a_file_gets_past_our_own_error(name: str):
    try:
        dtype = numpy_dtype(name)
    except UnsupportedTensorError:
        return

    assert dtype.name == name or name in (STRING, *PACKED_BITS)


@pytest.mark.parametrize(
    ("dtype", "shape", "nbytes"),
    [
        ("float32", (2, 3), 24),
        ("bfloat16", (), 2),
        ("float64", (7, 0), 0),
        ("int4", (3,), 3),  # ml_dtypes gives each element a byte of its own
        ("packed_float4_e2m1fn", (3, 2), 3),
        ("packed_float6_e2m3fn", (4,), 3),
        ("string", (10,), 0),
        ("uint8", (1 << 40, 1 << 40), 1 << 80),
    ],
)
def test_a_spec_knows_its_raw_bytes(dtype: str, shape: tuple[int, ...], nbytes: int):
    assert TensorSpec(dtype, shape).nbytes == nbytes


def test_a_spec_counts_elements_and_names_its_kind():
    assert TensorSpec("float32", (2, 3)).size == 6
    assert TensorSpec("float32", ()).size == 1
    assert TensorSpec("string", (2,)).is_string
    assert TensorSpec("packed_float4_e2m1fn", (2,)).is_packed
    assert TensorSpec("packed_float4_e2m1fn", (2,)).numpy == np.uint8


@pytest.mark.parametrize(("dtype", "shape"), [("int8", (2, -1)), ("packed_float4_e2m1fn", (3,)), ("packed_float6_e3m2fn", (2,))])
def test_senseless_specs_are_refused(dtype: str, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"negative|whole bytes"):
        TensorSpec(dtype, shape)


def test_specs_are_equal_by_dtype_and_shape_and_interned_for_arrays():
    spec = tensor_spec(np.dtype(">f4"), (2,))

    assert spec == TensorSpec("float32", (2,))
    assert repr(spec) == "TensorSpec(dtype='float32', shape=(2,))"
    assert tensor_spec(np.dtype(">f4"), (2,)) is spec


def test_a_packed_array_is_the_raw_bytes_without_a_copy():
    spec = TensorSpec("packed_float4_e2m1fn", (4, 2))
    raw = np.array([[0x1234], [0x5678]], dtype=np.uint16)

    packed = PackedArray.wrap(raw, spec)

    assert packed.tobytes() == raw.tobytes()
    assert np.shares_memory(packed, raw)
    assert (packed.shape, packed.dtype, packed.spec) == ((4,), np.uint8, spec)


def test_a_copied_packed_array_is_still_the_same_tensor_and_a_piece_of_it_is_not():
    spec = TensorSpec("packed_float4_e2m1fn", (8,))
    packed = PackedArray.wrap(np.arange(4, dtype=np.uint8), spec)

    assert packed.copy().spec == copy.deepcopy(packed).spec == spec
    assert not hasattr(packed[:2], "spec")


def test_wrapping_the_wrong_number_of_bytes_is_refused():
    with pytest.raises(ValueError, match="3 bytes cannot be packed_float4_e2m1fn of shape"):
        PackedArray.wrap(np.zeros(3, np.uint8), TensorSpec("packed_float4_e2m1fn", (4,)))
    with pytest.raises(ValueError, match="4 bytes cannot be float32"):
        PackedArray.wrap(np.zeros(4, np.uint8), TensorSpec("float32", (1,)))


def test_every_dtype_of_ml_dtypes_is_known():
    scalars = [value for value in vars(ml_dtypes).values() if isinstance(value, type) and issubclass(value, np.generic)]

    assert scalars
    assert all(numpy_dtype(dtype_name(np.dtype(scalar))) == np.dtype(scalar) for scalar in scalars)


@pytest.mark.parametrize(
    ("shape", "itemsize"),
    [((), 8), ((1 << 62,), 1), ((1 << 60,), 8), ((0, 1 << 40), 8), ((0, 1 << 62, 4), 1), ((1,) * 64, 1), ((1,) * 65, 1)],
)
def test_a_shape_is_possible_when_numpy_can_make_it_if_memory_did_not_matter(shape: tuple[int, ...], itemsize: int) -> None:
    try:
        np.lib.stride_tricks.as_strided(np.zeros(8, f"V{itemsize}"), shape, (0,) * len(shape))
        is_made = True
    except ValueError:
        is_made = False

    assert is_possible(shape, itemsize) == is_made
