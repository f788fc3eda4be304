"""crc32c by numpy: the package's values for every buffer, without the package."""

import hashlib
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import crc32c as package
import fastcrc
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptmgr
from ckptmgr import checksum, folding

NOISE = np.frombuffer(b"".join(hashlib.sha512(number.to_bytes(4, "little")).digest() for number in range(16_000)), np.uint8)
# Where a stage begins or ends: the tables, two neighbours more, folding by bytes, folding by words, each once and twice.
EDGES = [1023, 1024, 1025, 2047, 2048, 2049, 4096, 4097, 8192, 8193, 13069, 13070, 13071, 19362, 19363, 19364]
EDGES += [104559, 104560, 104561, 104567, 104568, 154903, 154904, 154905, 999_999, 1_000_003]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"", 0),
    ],
)
def test_values_are_those_of_rfc_3720(data: bytes, expected: int) -> None:
    assert folding.crc32c(data) == expected


@pytest.mark.parametrize("offset", [0, 1, 5])
def test_every_short_length_has_the_packages_value(offset: int) -> None:
    wrong = [n for n in range(1_300) if folding.crc32c(NOISE[offset : offset + n]) != package.crc32c(NOISE[offset : offset + n])]

    assert wrong == []


def test_lengths_up_to_20_000_have_the_packages_value() -> None:
    wrong = [n for n in range(1_300, 20_001, 61) if folding.crc32c(NOISE[:n]) != package.crc32c(NOISE[:n])]

    assert wrong == []


@pytest.mark.parametrize("length", EDGES)
@pytest.mark.parametrize("value", [0, 1, 0xDEADBEEF, 0xFFFFFFFF])
def test_lengths_at_the_edges_go_on_from_any_value(length: int, value: int) -> None:
    assert folding.crc32c(NOISE[:length], value) == package.crc32c(NOISE[:length], value)


@pytest.mark.parametrize("where", [0, 3, 4, 50_343, 50_344, 54_216, 99_999])
def test_each_single_bit_counts(where: int) -> None:
    data = np.zeros(200_000, np.uint8)
    data[where] = 0x80

    assert folding.crc32c(data) == package.crc32c(data)


@given(st.integers(0, 250_000), st.integers(0, 250_000))
def test_a_value_goes_on_from_an_earlier_one(first: int, second: int) -> None:
    head, tail = NOISE[:first], NOISE[first : first + second]

    assert folding.crc32c(tail, folding.crc32c(head)) == folding.crc32c(NOISE[: first + second])


@given(st.binary(max_size=3000), st.integers(0, 2**32 - 1))
def test_any_bytes_have_the_packages_value(data: bytes, value: int) -> None:
    assert folding.crc32c(data, value) == package.crc32c(data, value)


BUFFERS = {
    "bytes": NOISE[:5000].tobytes(),
    "a bytearray": bytearray(NOISE[:5000]),
    "a memoryview": memoryview(NOISE[:5000].tobytes())[3:4001],
    "a memoryview of floats": memoryview(np.arange(600.0).reshape(20, 30)),
    "floats": np.arange(600.0).reshape(20, 30),
    "big-endian": np.arange(600, dtype=">i4"),
    "bfloat16": np.arange(600).astype(ml_dtypes.bfloat16),
    "int4": np.arange(2000).astype(ml_dtypes.int4),
    "dates": np.arange(600).astype("datetime64[s]"),
    "bytes of one size": np.array([b"ab", b"c"], "S2"),
    "unaligned": NOISE[1:200_002][:200_000].view(np.float64),
    "0-d": np.array(1.5),
    "0-d bfloat16": np.array(1.5, ml_dtypes.bfloat16),
    "a scalar": np.float64(1.5),
    "empty": np.empty((3, 0), np.float32),
    "empty strings": np.array([b""], "S0"),
    "empty bytes": b"",
    "an empty memoryview": memoryview(b""),
}


@pytest.mark.parametrize("buffer", BUFFERS.values(), ids=BUFFERS)
def test_any_buffer_counts_with_its_bytes(buffer: Any) -> None:
    assert folding.crc32c(buffer) == package.crc32c(buffer.tobytes() if isinstance(buffer, np.ndarray) else buffer)


@pytest.mark.parametrize("buffer", [np.zeros((4, 4))[:, ::2], np.zeros((200, 100)).T], ids=["strided", "of Fortran's order"])
def test_memory_in_another_order_is_refused(buffer: np.ndarray) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        folding.crc32c(buffer)
    with pytest.raises((ValueError, BufferError), match="contiguous"):
        folding.crc32c(memoryview(buffer))


@pytest.mark.parametrize("value", ["text", 5, None, np.array([None, 1])])
def test_what_is_no_buffer_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        folding.crc32c(value)


def test_source_is_read_only() -> None:
    data = NOISE[:300_000].copy()
    data.flags.writeable = False

    folding.crc32c(data)

    assert np.array_equal(data, NOISE[:300_000])


def test_large_source_is_not_copied() -> None:
    data = np.zeros(20_000_000, np.uint8)
    folding.crc32c(data)  # the tables stay

    tracemalloc.start()
    try:
        folding.crc32c(data)
        assert tracemalloc.get_traced_memory()[1] < 260_000
    finally:
        tracemalloc.stop()


# Saves, restores and verifies a large tensor and a small one; prints whether numpy and zlib computed the checksums.
SCRIPT = """
import sys, zlib
if sys.argv[2] == "without":
    sys.modules["fastcrc"] = None
import numpy as np
from ckptmgr import CheckpointManager, checksum, folding
state = {"w": np.arange(300_000, dtype=np.float32), "b": np.ones(3)}
with CheckpointManager(sys.argv[1], run="one") as manager:
    manager.save(1, state)
    restored = manager.restore(1).state
    assert manager.verify(1).ok
assert np.array_equal(restored["w"], state["w"]) and np.array_equal(restored["b"], state["b"])
print(checksum.crc32c is folding.crc32c, checksum.crc32 is zlib.crc32)
"""


def test_library_works_the_same_without_the_package(tmp_path: Path) -> None:
    used = []
    for name in ("with", "without"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / name), name], capture_output=True, text=True, check=True
        )
        used.append(done.stdout.strip())

    assert used == ["False False", "True True"]
    assert checksums(tmp_path / "with") == checksums(tmp_path / "without")


def checksums(run: Path) -> list[tuple[str, int, int]]:
    with ckptmgr.CheckpointManager(run) as manager, manager.open(1) as checkpoint:
        return [(file.name, file.nbytes, file.crc32c) for file in checkpoint.files]


def test_package_is_used_where_it_is_installed() -> None:
    assert (checksum.crc32c, checksum.crc32) == (fastcrc.crc32.iscsi, fastcrc.crc32.iso_hdlc)


@pytest.mark.parametrize("wrong", ["iscsi", "iso_hdlc"])
def test_package_that_gives_wrong_checksums_is_not_used(
    wrong: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = getattr(fastcrc.crc32, wrong)
    monkeypatch.setattr(fastcrc.crc32, wrong, lambda data, value=0: right(data, value) ^ (len(data) >= 4096))

    assert checksum._both() == (folding.crc32c, zlib.crc32)
    assert "fastcrc" in caplog.text


@pytest.mark.parametrize("wrong", ["iscsi", "iso_hdlc"])
def test_package_that_cannot_go_on_is_not_used(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(fastcrc.crc32, wrong)
    monkeypatch.setattr(fastcrc.crc32, wrong, lambda data, value=0: right(data))

    assert checksum._both() == (folding.crc32c, zlib.crc32)
