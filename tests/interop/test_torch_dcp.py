"""Distributed checkpoints that torch saved, with one process and with four: joined without torch, and damaged in every way."""

import os
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bounds import cheap

import ckptmgr
from ckptmgr.backend import Box
from ckptmgr.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError, UnsupportedTensorError
from ckptmgr.testing.samples import same

PROGRAM = Path(__file__).parents[1] / "torch_dcp_program.py"
METADATA = ".metadata"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dcp")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-W", "ignore", str(PROGRAM), str(folder), "4"], check=True, timeout=240, env=environment)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A copy of one checkpoint, to be damaged."""
    for path in (saved / "dtensor").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def read(folder: Path) -> Any:
    with ckptmgr.open_checkpoint(folder) as checkpoint:
        return checkpoint.load()


def held(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and bytes of every tensor."""
    with ckptmgr.open_checkpoint(folder) as checkpoint:
        arrays = {name: checkpoint.read(name) for name in checkpoint.specs}
    return {name: (array.dtype.name, array.shape, array.tobytes()) for name, array in arrays.items()}


def test_tensors_are_joined_from_the_slices_of_all_ranks(saved: Path) -> None:
    expected = ckptmgr.load(saved / "expected.pt")

    with ckptmgr.open_checkpoint(saved / "dtensor") as checkpoint:
        assert checkpoint.backend == "torch_dcp"
        found = checkpoint.load()
        assert len(checkpoint.extents("model/rows")) == 4
        columns = expected["columns"]
        assert same(checkpoint.read("model/columns", Box((1, 2), (5, 8))), np.ascontiguousarray(columns[1:5, 2:8]))
        assert same(checkpoint._source.read("model/columns", Box((1, 2), (5, 8))), np.ascontiguousarray(columns[1:5, 2:8]))
    assert same(found["model"]["rows"], expected["rows"])
    assert same(found["model"]["columns"], columns)
    assert found["model"]["same"].astype(float).tolist() == [1, 1, 1, 1]
    assert found["model"]["same"].dtype.name == "bfloat16"
    assert found["model"]["short"].tolist() == [[1, 1]]
    assert found["model"]["float8"].dtype.name == "float8_e4m3fn"
    assert found["step"] == 3


def test_a_grid_of_slices_is_joined(saved: Path) -> None:
    assert same(read(saved / "grid")["rows"], ckptmgr.load(saved / "expected.pt")["rows"])


def test_model_and_optimizer_of_fsdp_come_back_in_their_tree(saved: Path) -> None:
    expected, found = ckptmgr.load(saved / "expected.pt"), read(saved / "fsdp")

    assert all(same(found["model"][name], value) for name, value in expected["weights"].items())
    assert all(same(found["optimizer"]["state"][name]["exp_avg"], value) for name, value in expected["moments"].items())
    assert found["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)
    assert found["optimizer"]["param_groups"][0]["params"] == [*expected["weights"]]


def test_lists_numbers_and_texts_come_back(saved: Path) -> None:
    found = read(saved / "plain")

    assert same(found["t"], np.ascontiguousarray(found["w"].T))
    assert found["mixed"][0].tolist() == [0, 0]
    assert found["mixed"][1] == {"x": 7, "raw": b"\xff"}
    assert (found["list"], found["step"], found["none"], found["zero"].shape) == ([1, "two", 3.0], 12, None, (0, 3))


def test_it_is_converted_by_a_load_and_a_save(saved: Path, tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "m.pt", read(saved / "fsdp"), backend="torch")

    assert ckptmgr.load(tmp_path / "m.pt")["optimizer"]["param_groups"] == read(saved / "fsdp")["optimizer"]["param_groups"]


def test_the_metadata_file_opens_its_folder(saved: Path) -> None:
    assert read(saved / "dtensor" / METADATA)["step"] == 3


def test_it_is_only_read(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedTensorError, match="only read"):
        ckptmgr.save(f"{tmp_path}/", {"w": np.zeros(3)}, backend="torch_dcp")


def test_a_missing_file_or_no_metadata_is_told(copied: Path) -> None:
    (copied / "__2_0.distcp").rename(copied / "other")
    with pytest.raises(CorruptCheckpointError, match=r"'__2_0.distcp', and there is no such file"):
        read(copied)
    (copied / METADATA).unlink()
    with pytest.raises(FileNotFoundError, match="save was interrupted"):
        ckptmgr.open_checkpoint(copied, backend="torch_dcp")


@pytest.mark.parametrize(
    ("old", "new", "kind", "problem"),
    [
        (b"__1_0.distcp", b"/etc/passwd/", UnsafeCheckpointError, "no plain name"),
        (b"__1_0.distcp", b"../../x/y/z1", UnsafeCheckpointError, "no plain name"),
        (b"MetadataIndex", b"MetadataOther", UnsafeCheckpointError, "torch.distributed.checkpoint.metadata.MetadataOther"),
        (b"\x8c\x05torch\x94\x8c\x07float32", b"\x8c\x02os\x94\x8c\x0asystem____", UnsafeCheckpointError, "os.system____"),
        (b"\x8c\x07float32", b"\x8c\x07float64", CorruptCheckpointError, "float64"),
        (b"storage_data", b"storage_xxxx", CorruptCheckpointError, "storage_data"),
    ],
)
def test_metadata_that_lies_is_refused(copied: Path, old: bytes, new: bytes, kind: type[CheckpointError], problem: str) -> None:
    data = (copied / METADATA).read_bytes()
    assert old in data
    (copied / METADATA).write_bytes(data.replace(old, new))

    with cheap(), pytest.raises(kind, match=problem):
        read(copied)


def test_slices_that_overlap_or_leave_gaps_are_refused(copied: Path) -> None:
    """The first dimension of a slice, of its start, of the whole: each number of the metadata one less, or one more.

    What loads nevertheless has the tensors that were saved: none is left as the memory was, none comes from elsewhere.
    """
    data = (copied / METADATA).read_bytes()
    good = held(copied)
    refused = 0
    for at in [at for at in range(len(data)) if data[at] == ord("K")]:
        for change in (1, -1):
            bad = bytearray(data)
            bad[at + 1] = (bad[at + 1] + change) % 256
            (copied / METADATA).write_bytes(bad)
            try:
                found = held(copied)
            except CheckpointError:
                refused += 1
            else:
                assert found.items() <= good.items()
    assert refused > 40


def test_changed_bytes_give_only_our_errors(copied: Path) -> None:
    choose = random.Random(3)
    files = {path: path.read_bytes() for path in copied.iterdir()}
    for turn in range(500):
        path = copied / METADATA if turn % 3 else choose.choice([*files])
        bad = bytearray(files[path])
        for _ in range(choose.randint(1, 3)):
            bad[choose.randrange(len(bad))] = choose.randrange(256)
        path.write_bytes(bad)
        with suppress(CheckpointError, FileNotFoundError):
            read(copied)
        path.write_bytes(files[path])
    assert read(copied)["step"] == 3
