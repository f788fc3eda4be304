"""TensorFlow's dtype numbers, against TensorFlow itself."""

import ml_dtypes
import numpy as np
import pytest
from frameworks import tf

from ckptmgr.backend import numpy_dtype
from ckptmgr_tf_bundle.dtypes import CODES, INEXACT, LOW_BITS, NAMES, STRING, VARIANT

NOT_STORABLE = {0, 20, VARIANT}


@pytest.mark.parametrize("number", sorted(set(NAMES) - {STRING}))
def test_a_dtype_number_is_numpys_dtype_of_the_same_name_in_tensorflow(number: int) -> None:
    found = np.dtype(tf.dtypes.as_dtype(number).as_numpy_dtype)

    assert numpy_dtype(NAMES[number]) == (found[0] if found.names else found)


def test_every_dtype_that_tensorflow_stores_has_a_name() -> None:
    assert set(range(34)) - NOT_STORABLE == set(NAMES)


def test_strings_and_variants_have_tensorflows_numbers() -> None:
    assert tf.string.as_datatype_enum == STRING
    assert tf.variant.as_datatype_enum == VARIANT
    assert NAMES[STRING] == "string"


def test_plain_integers_are_written_as_plain_integers() -> None:
    numbers = {CODES[name] for name in ("int8", "uint8", "int16", "uint16", "int32")}

    assert numbers == {6, 4, 5, 17, 3}


def test_every_name_has_a_number_to_be_written_with() -> None:
    assert set(CODES) == set(NAMES.values())
    assert all(NAMES[number] == name for name, number in CODES.items())


def test_bools_and_what_is_smaller_than_a_byte_needs_a_look() -> None:
    assert {"bool", "int2", "int4", "uint2", "uint4", "float4_e2m1fn"} == INEXACT


@pytest.mark.parametrize("name", sorted(LOW_BITS))
def test_the_low_bits_of_a_byte_are_all_that_ml_dtypes_makes_itself(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name))
    smallest, largest = (-6, 6) if name.startswith("float") else (ml_dtypes.iinfo(dtype).min, ml_dtypes.iinfo(dtype).max)

    made = np.arange(smallest, largest + 1).astype(np.float32).astype(dtype)

    assert bool((made.view(np.uint8) <= LOW_BITS[name]).all())
