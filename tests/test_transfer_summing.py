"""Files of zip's kind tell a crc32 of each record: bits that flipped in them are found by every way of reading."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import torch

import ckptmgr
from ckptmgr import convert, open_checkpoint
from ckptmgr.errors import CorruptCheckpointError

W = np.arange(300_000, dtype=np.float32)
STATE = {"small": np.arange(10.0), "w": W.reshape(500, 600)}


def numpys(path: Path) -> None:
    np.savez(path, **STATE)


def torchs(path: Path) -> None:
    torch.save({name: torch.from_numpy(array) for name, array in STATE.items()}, path)


def in_fortran_order(path: Path) -> None:
    np.savez(path, small=STATE["small"], w=np.asfortranarray(STATE["w"]))


FILES = {"a.npz": numpys, "b.npz": in_fortran_order, "a.pt": torchs}
WAYS: dict[str, Callable[[Path], Any]] = {
    "load": ckptmgr.load,
    "into": lambda path: ckptmgr.load(path, into={"small": np.zeros(10), "w": np.zeros_like(STATE["w"])}, strict=False),
    "a tensor": lambda path: open_checkpoint(path).read("w"),
    "convert": lambda path: convert(path, path.with_suffix(".safetensors")),
    "cast": lambda path: convert(path, path.with_suffix(".safetensors"), cast={"w": "float16"}, budget=1 << 19),
}


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = max(data.find(b"data/1"), data.find(b"w.npy")) + 50_000
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(("file", "way"), [(file, way) for file in FILES for way in WAYS if (file, way) != ("b.npz", "cast")])
def test_a_bit_that_flipped_in_a_tensor_is_told(tmp_path: Path, file: str, way: str) -> None:
    FILES[file](tmp_path / file)
    flipped(tmp_path / file)

    with pytest.raises(CorruptCheckpointError, match=r"their (crc32|checksum) differs|have crc32") as told:
        WAYS[way](tmp_path / file)

    assert told.value.tensor == "w"
    assert not (tmp_path / file).with_suffix(".safetensors").exists()


@pytest.mark.parametrize("file", FILES)
def test_verify_names_the_tensor_and_a_quick_look_is_still_one(tmp_path: Path, file: str) -> None:
    FILES[file](tmp_path / file)
    with open_checkpoint(tmp_path / file) as checkpoint:
        assert checkpoint.verify() == []
    flipped(tmp_path / file)

    with open_checkpoint(tmp_path / file) as checkpoint:
        assert [problem.tensor for problem in checkpoint.verify()] == ["w"]
    if file != "b.npz":
        assert set(open_checkpoint(tmp_path / file, verify="fast").load()) == set(STATE)


def test_a_part_of_a_record_is_read_without_a_checksum(tmp_path: Path) -> None:
    whole = torch.arange(1000.0)
    torch.save({"part": whole[10:20], "turned": whole.reshape(10, 100).t()}, tmp_path / "a.pt")

    assert ckptmgr.load(tmp_path / "a.pt")["part"].tolist() == [*range(10, 20)]
    assert open_checkpoint(tmp_path / "a.pt").verify() == []
