"""Damaged and invented files: accepted where the reference library accepts them, else refused with our errors only."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors as reference
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ckptmgr.backend import Folder
from ckptmgr.errors import CheckpointError, CorruptCheckpointError
from ckptmgr.storage import PosixStore
from ckptmgr_safetensors import SafetensorsBackend
from ckptmgr_safetensors.header import CODES, DTYPES

GOLDEN = Path(__file__).parents[1] / "golden" / "safetensors"
FILES = [path.read_bytes() for path in sorted(GOLDEN.rglob("*.safetensors"))]
# Where the format's text is stricter than the reference (equal keys, entries that are no objects), or numpy is (shapes).
STRICTER = ("is there twice", "its entry needs", "no array can have the shape")
TOKENS = [
    b'"',
    b"\\",
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    b" ",
    b"-",
    b"0",
    b"00",
    b"1",
    b"9" * 21,
    b".5",
    b"e1",
    b"1e999",
    b"\x00",
    b"\xff",
]
TOKENS += [
    b"null",
    b"true",
    b"NaN",
    b"[]",
    b"{}",
    b'"a":1,',
    b"\\ud800",
    b"\\u0061",
    b'"dtype":',
    b'"__metadata__":',
    b"18446744073709551616",
]

backend = SafetensorsBackend()
Tensors = dict[str, tuple[str, list[int], bytes]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(len(data), start + 12)))
        data[start:stop] = draw(st.one_of(st.sampled_from(TOKENS), st.binary(max_size=4), st.just(bytes(data[start:stop]) * 2)))
    return bytes(data)


@st.composite
def with_right_length(draw: st.DrawFn) -> bytes:
    """A file whose header was changed, and its length with it, so that the change is reached at all."""
    data = draw(st.sampled_from(FILES))
    end = 8 + int.from_bytes(data[:8], "little")
    text = draw(mutated([data[8:end]]))
    return len(text).to_bytes(8, "little") + text + data[end:]


NUMBERS: st.SearchStrategy[Any] = st.one_of(
    st.integers(0, 6), st.sampled_from([-1, 2**31, 2**32, 2**53, 2**62, 2**63, 2**64 - 1, 2**64, 10**30, 1.0, True, None, "1"])
)


@st.composite
def invented(draw: st.DrawFn) -> bytes:
    """Entries that are nearly, or wholly, right."""
    header: dict[str, Any] = {}
    offset = 0
    for name in draw(st.lists(st.sampled_from(["a", "b", "", "é", "__metadata__", "x\n"]), unique=True, max_size=4)):
        code = draw(st.sampled_from([*DTYPES, "U8", "U8", "F64", "u8", "F128"]))
        shape = draw(st.lists(st.integers(0, 4), max_size=3) | st.lists(NUMBERS, max_size=4))
        count = 1
        for size in shape:
            count *= size if isinstance(size, int) else 1
        nbytes = count * {"F4": 4, "F64": 64, "F32": 32}.get(code, 8) // 8
        offsets = [offset, offset + nbytes] if draw(st.integers(0, 3)) else draw(st.lists(NUMBERS, min_size=1, max_size=3))
        header[name] = {"dtype": code, "shape": shape, "data_offsets": offsets}
        offset += nbytes
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.dictionaries(st.text(max_size=2), st.text(max_size=2) | NUMBERS, max_size=2) | st.none())
    text = json.dumps(header).encode()
    rest = bytes(min(max(offset + draw(st.sampled_from([0, 0, 0, 1, -1])), 0), 5000))
    return len(text).to_bytes(8, "little") + text + rest


def theirs(data: bytes) -> Tensors | None:
    try:
        return {name: (held["dtype"], held["shape"], bytes(held["data"])) for name, held in reference.deserialize(data)}
    except reference.SafetensorError:
        return None


def ours(place: Path, data: bytes) -> Tensors | CorruptCheckpointError:
    (place / "x.safetensors").write_bytes(data)
    try:
        with backend.open(Folder(PosixStore(place)), "x.safetensors") as source:
            return {
                name: (CODES[spec.dtype], list(spec.shape), source.read(name).tobytes()) for name, spec in source.specs.items()
            }
    except CorruptCheckpointError as error:
        return error


def assert_agrees(place: Path, data: bytes) -> None:
    found, expected = ours(place, data), theirs(data)
    if isinstance(found, CorruptCheckpointError):
        assert expected is None or any(reason in str(found) for reason in STRICTER)
    else:
        assert found == expected


@settings(max_examples=400)
@given(data=mutated(FILES))
@example(data=b"")
def test_mutated_files_are_read_as_the_reference_reads_them(place: Path, data: bytes) -> None:
    assert_agrees(place, data)


@settings(max_examples=800)
@given(data=with_right_length())
def test_mutated_headers_are_read_as_the_reference_reads_them(place: Path, data: bytes) -> None:
    assert_agrees(place, data)


@settings(max_examples=800)
@given(data=invented())
def test_invented_headers_are_read_as_the_reference_reads_them(place: Path, data: bytes) -> None:
    assert_agrees(place, data)


@settings(max_examples=200)
@given(data=mutated([(GOLDEN / "hf_sharded" / "model.safetensors.index.json").read_bytes()]))
def test_mutated_indexes_give_only_our_errors(place: Path, data: bytes) -> None:
    folder = place / "sharded"
    if not folder.exists():
        shutil.copytree(GOLDEN / "hf_sharded", folder)
    (folder / "model.safetensors.index.json").write_bytes(data)

    try:
        with backend.open(Folder(PosixStore(folder)), "") as source:
            names = list(source.specs)
    except CheckpointError:
        return

    assert all(source.read(name).nbytes == source.specs[name].nbytes for name in names)
