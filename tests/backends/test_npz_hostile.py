"""``.npz`` files that attack: each is refused by one of our errors, or read as what it is, and takes neither time nor memory."""

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from bounds import cheap

import ckptmgr
from ckptmgr.errors import CorruptCheckpointError


def npz(path: Path, text: str, data: bytes = b"", *, name: str = "w", method: int = zipfile.ZIP_STORED) -> Path:
    """A file with one array of that header and these bytes."""
    with zipfile.ZipFile(path / "a.npz", "w", method) as file:
        file.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data)
    return path / "a.npz"


def header(descr: str, shape: object) -> str:
    return f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}}}\n"


LIES = {
    "an empty shape that no array can have": (header("<f4", (1 << 62, 1 << 62, 0)), b""),
    "a size over 64 bits": (header("<f4", (1 << 70, 0)), b""),
    "sizes of thousands of digits": (header("<f4", (10**3000, 10**3000)), b""),
    "a key that cannot be one": ("{[]: 1}\n", b""),
    "texts that are no characters": (header("<U1", (2,)), b"\xff\xff\xff\xff\x00\xd8\x00\x00"),
}


@pytest.mark.parametrize(("text", "data"), LIES.values(), ids=LIES)
def test_a_header_that_lies_is_one_error_of_ours(tmp_path: Path, text: str, data: bytes) -> None:
    with cheap(), pytest.raises(CorruptCheckpointError) as caught:
        ckptmgr.load(npz(tmp_path, text, data))

    assert caught.value.tensor == "w"
    assert len(str(caught.value)) < 5000


@pytest.mark.parametrize("descr", ["|S0", "<U0", "|V0"])
def test_elements_of_no_bytes_are_no_tensor_however_many_there_are(tmp_path: Path, descr: str) -> None:
    path = npz(tmp_path, header(descr, (1 << 40,)))

    with cheap(), ckptmgr.open_checkpoint(path) as checkpoint:
        assert checkpoint.load() == {}
        assert [*checkpoint.blobs] == ["w"]


def test_compressed_strings_take_no_more_than_their_file_tells(tmp_path: Path) -> None:
    path = npz(tmp_path, header("|S1", (1 << 22,)), bytes(1 << 22), method=zipfile.ZIP_DEFLATED)

    with cheap(nbytes=16 << 20), pytest.raises(CorruptCheckpointError, match="4194304 strings"):
        ckptmgr.load(path)


def test_a_name_that_is_longer_than_what_a_format_is_told_by_is_read(tmp_path: Path) -> None:
    name = "n" * 5000
    np.savez(tmp_path / "a.npz", **{name: np.arange(3)})

    assert ckptmgr.load(tmp_path / "a.npz")[name].tolist() == [0, 1, 2]
