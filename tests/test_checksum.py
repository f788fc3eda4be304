import random
import zlib

import crc32c as package
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmgr.checksum import combine, combine_crc32, crc32, crc32c, joined

NOISE = np.frombuffer(random.Random(1).randbytes(1 << 17), np.uint8)


def straightforward(data: bytes, polynomial: int) -> int:
    """A crc bit by bit, as its definition says."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (polynomial if value & 1 else 0)
    return value ^ 0xFFFFFFFF


@given(st.binary(max_size=300))
def test_values_are_those_of_the_definition(data: bytes) -> None:
    assert crc32c(data) == straightforward(data, 0x82F63B78)
    assert crc32(data) == straightforward(data, 0xEDB88320)


def test_crc32c_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value in RFC 3720's register of crcs
    assert crc32c(b"") == 0


@given(st.integers(0, 63), st.integers(0, 9000) | st.integers(0, 120_000), st.integers(0, 2**32 - 1))
def test_values_are_those_of_other_packages(offset: int, nbytes: int, value: int) -> None:
    data = NOISE[offset : offset + nbytes]  # at any address: processors have ways of their own for stretches that are aligned

    assert crc32c(data, value) == package.crc32c(data, value)
    assert crc32(data, value) == zlib.crc32(data, value)


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_a_value_goes_on_from_an_earlier_one(first: bytes, second: bytes) -> None:
    assert crc32c(second, crc32c(first)) == crc32c(first + second)
    assert crc32(second, crc32(first)) == crc32(first + second)


@given(st.binary(max_size=100), st.binary(max_size=5000))
def test_combining_two_values_is_the_value_of_both(first: bytes, second: bytes) -> None:
    assert combine(crc32c(first), crc32c(second), len(second)) == crc32c(first + second)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**70), st.integers(0, 2**70))
def test_lengths_beyond_any_file_combine_too(value: int, some: int, more: int) -> None:
    assert combine(combine(value, 0, some), 0, more) == combine(value, 0, some + more)


@given(st.lists(st.binary(max_size=50), max_size=6))
def test_parts_join_to_the_value_of_the_whole(parts: list[bytes]) -> None:
    assert joined((crc32c(part), len(part)) for part in parts) == crc32c(b"".join(parts))


@given(st.integers(0, 5000), st.integers(14, 40), st.binary(max_size=9), st.randoms(use_true_random=False))
def test_many_parts_of_one_size_join_to_the_value_of_the_whole(size: int, count: int, last: bytes, random: random.Random) -> None:
    parts = [random.randbytes(size) for _ in range(count)] + [last]

    assert joined((crc32c(part), len(part)) for part in parts) == crc32c(b"".join(parts))


@pytest.mark.parametrize("dtype", [np.float64, ml_dtypes.bfloat16, ml_dtypes.int4, np.dtype("datetime64[ns]")])
def test_arrays_are_buffers_of_their_bytes(dtype: np.dtype) -> None:
    array = np.ones((3, 5), np.uint8).astype(dtype)

    assert crc32c(array) == crc32c(array.tobytes())
    assert crc32(array) == crc32(array.tobytes())


def test_memory_in_another_order_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        crc32c(np.zeros((4, 4))[:, ::2])


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_values_of_zip_join_likewise(first: bytes, second: bytes) -> None:
    assert combine_crc32(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)
