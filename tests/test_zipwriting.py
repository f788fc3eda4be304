"""New zip archives: what Python's zipfile and Info-ZIP find in them, and where tensors lie."""

import struct
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ckptmgr import transfer
from ckptmgr.backend import FileLayout, Layout, Part, TensorSpec
from ckptmgr.layout import Late, piece_nbytes
from ckptmgr.memory import MemorySource
from ckptmgr.storage import Folder, PosixStore
from ckptmgr.testing.pipe import ForwardStore
from ckptmgr.zipwriting import DIGESTS, Member, archive

W = np.arange(5000, dtype="<f4")
B = np.arange(7, dtype="<i2")
SPECS = {"w": TensorSpec("float32", (5000,)), "b": TensorSpec("int16", (7,))}
WEIGHTS = Member("data/weights", (b"head", Part("w", SPECS["w"]), b"\0" * 3, Part("b", SPECS["b"])), is_aligned=True)
DATA = b"head" + W.tobytes() + b"\0" * 3 + B.tobytes()


def planned(members: list[Member], align: int = 4096) -> Layout:
    return Layout((FileLayout("a.zip", archive("a.zip", members, align=align)),), DIGESTS)


def write(path: Path, members: list[Member], *, align: int = 4096) -> Path:
    transfer.write(Folder(PosixStore(path)), planned(members, align), MemorySource({"w": W, "b": B}, SPECS))
    return path / "a.zip"


def test_zipfile_reads_every_member_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, [Member("a.json", (b"{}",)), WEIGHTS, Member("assets/ä.txt", (b"last",))])

    with zipfile.ZipFile(path) as found:
        assert found.testzip() is None
        assert {name: found.read(name) for name in found.namelist()} == {
            "a.json": b"{}",
            "data/weights": DATA,
            "assets/ä.txt": b"last",
        }


def test_unzip_finds_no_error(tmp_path: Path) -> None:
    path = write(tmp_path, [Member("a.json", (b"{}",)), WEIGHTS, Member("assets/ä.txt", (b"last",))])

    done = subprocess.run(["unzip", "-t", str(path)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_a_member_with_tensors_starts_at_a_multiple_of_the_alignment(tmp_path: Path) -> None:
    path = write(tmp_path, [Member("a.json", (b"{}",)), WEIGHTS])

    assert path.read_bytes().index(DATA) % 4096 == 0


@pytest.mark.parametrize("align", [1, 1 << 20])
def test_an_alignment_that_no_padding_reaches_is_left_out(tmp_path: Path, align: int) -> None:
    path = write(tmp_path, [WEIGHTS], align=align)

    assert path.read_bytes().index(DATA) == 30 + len("data/weights")


def test_the_same_members_give_the_same_bytes_into_a_pipe_as_well(tmp_path: Path) -> None:
    pipe = ForwardStore()

    transfer.write(Folder(pipe), planned([WEIGHTS]), MemorySource({"w": W, "b": B}, SPECS))

    assert pipe.files["a.zip"] == write(tmp_path, [WEIGHTS]).read_bytes()


def test_an_archive_without_members_opens(tmp_path: Path) -> None:
    with zipfile.ZipFile(write(tmp_path, [])) as found:
        assert found.namelist() == []


@pytest.mark.parametrize("name", ["", "/etc/passwd", "a/../b", "a//b", "a\\b", "a\0", "\ud800"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a member of a zip"):
        archive("a.zip", [Member(name, (b"",))], align=8)


def test_two_members_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two members of a zip have the name 'a'"):
        archive("a.zip", [Member("a", (b"1",)), Member("a", (b"2",))], align=8)


def test_a_member_over_4_gib_has_sizes_and_offsets_of_64_bits(tmp_path: Path) -> None:
    """Its data are a hole in the file: only headers, descriptor and directory are written."""
    big = Part("big", TensorSpec("uint8", (5 << 30,)))
    pieces = archive("a.zip", [Member("big", (big,)), Member("after", (b"here",))], align=4096)
    crc = 0x12345678
    digests = {"a.zip": {"crc32": [crc] * len(pieces)}}
    path = tmp_path / "a.zip"

    offset = 0
    with path.open("wb") as file:
        for piece in pieces:
            file.seek(offset)
            data = piece.build(digests) if isinstance(piece, Late) else piece
            file.write(data if isinstance(data, bytes) else b"")
            offset += piece_nbytes(piece) or 0

    with zipfile.ZipFile(path) as found:
        big_info, after_info = found.infolist()
        assert (big_info.file_size, big_info.CRC) == (5 << 30, crc)
        assert after_info.header_offset > 5 << 30
        with found.open("big") as member:
            assert member.read(16) == bytes(16)


def test_the_descriptor_of_a_member_over_4_gib_counts_in_64_bits() -> None:
    big = Part("big", TensorSpec("uint8", (5 << 30,)))
    descriptor = archive("a.zip", [Member("big", (big,))], align=1)[2]

    assert isinstance(descriptor, Late)
    data = descriptor.build({"a.zip": {"crc32": [1, 2]}})
    assert struct.unpack("<4sIQQ", data) == (b"PK\7\x08", 2, 5 << 30, 5 << 30)


def test_a_directory_of_65535_members_counts_in_64_bits(tmp_path: Path) -> None:
    path = write(tmp_path, [Member(f"{index}", (b"",)) for index in range(65535)])

    with zipfile.ZipFile(path) as found:
        assert len(found.namelist()) == 65535
