"""Zip archives where they lie: in a part of a file, and many members at once. (Hostile ones: `test_hdf5_archive_hostile`.)"""

import zipfile
from pathlib import Path

import pytest

from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.storage import Folder, PosixStore
from ckptmgr.zipreading import Archive, open_archive
from ckptmgr_hdf5.origin import Origin


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(path, "w", method) as target:
        for name, data in members.items():
            target.writestr(name, data)
    return path.read_bytes()


def opened(path: Path, window: tuple[int, int] | None = None) -> Archive:
    return open_archive(Folder(PosixStore(path.parent)), path.name, Origin(path.name, str(path)), window=window)


def test_places_of_many_members_are_those_of_each(tmp_path: Path) -> None:
    members = {f"data/{number}": bytes([number]) * (number * 7000) for number in range(60)}
    data = zipped(tmp_path / "a.zip", members)
    archive = opened(tmp_path / "a.zip")

    places = archive.places([*members][::-1])

    assert places == {name: archive.place(name) for name in members}
    assert all(data[place or 0 :][: len(members[name])] == members[name] for name, place in places.items())


def test_a_compressed_member_has_no_place(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"a": b"x" * 1000, "b": b"y"}, zipfile.ZIP_DEFLATED)

    assert opened(tmp_path / "a.zip").places(["a", "b"]) == {"a": None, "b": None}


def test_an_archive_in_a_part_of_a_file_has_its_places_in_the_file(tmp_path: Path) -> None:
    data = zipped(tmp_path / "a.zip", {"a": b"first", "b": b"second"})
    (tmp_path / "all.bin").write_bytes(b"before" + data + b"after")

    archive = opened(tmp_path / "all.bin", (6, len(data)))

    assert archive.read("b", 100) == b"second"
    assert archive.place("a") == 6 + data.index(b"first")
    with pytest.raises(CorruptCheckpointError, match="cut off"):
        opened(tmp_path / "all.bin", (6, len(data) + 3))


def test_a_crc32_of_zero_counts_as_none_only_where_that_is_asked_for(tmp_path: Path) -> None:
    data = zipped(tmp_path / "a.zip", {"a": b"first"})
    entry = data.index(b"PK\x01\x02")
    (tmp_path / "a.zip").write_bytes(data[: entry + 16] + bytes(4) + data[entry + 20 :])
    archive = opened(tmp_path / "a.zip")

    assert archive.read("a", 100, may_lack_crc32=True) == b"first"
    with pytest.raises(CorruptCheckpointError, match="crc32"):
        archive.read("a", 100)


def test_a_colon_leads_out_only_behind_the_letter_of_a_drive(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"epoch=1-12:30/data": b"x"})

    assert opened(tmp_path / "a.zip").read("epoch=1-12:30/data", 10) == b"x"
