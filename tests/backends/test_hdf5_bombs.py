"""Small files that ask for much: one error each, soon and within little memory; and honest ones that look alike, read."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from bounds import cheap

import ckptmgr
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.source import TensorSource
from ckptmgr.storage import Folder, PosixStore
from ckptmgr_hdf5 import HDF5Backend

BACKEND = HDF5Backend()
MIB = 1 << 20
GZIP: dict[str, Any] = {"chunks": (MIB,), "compression": "gzip"}


def opened(folder: Path) -> TensorSource:
    return BACKEND.open(Folder(PosixStore(folder)), "m.h5")


def written(folder: Path, write: Callable[[h5py.File], Any]) -> int:
    """Writes ``m.h5`` and gives its size."""
    with h5py.File(folder / "m.h5", "w") as file:
        write(file)
    return (folder / "m.h5").stat().st_size


def check_refused(folder: Path, problem: str) -> None:
    with cheap(seconds=2.0), pytest.raises(CorruptCheckpointError, match=problem):
        ckptmgr.load(folder / "m.h5", backend=BACKEND)


def with_one_text(folder: Path, datasets: int, count: int) -> None:
    """Datasets of which every text leads to one object of 1 MB in the heap."""
    written(folder, lambda file: [file.create_dataset(f"{i}", (count,), h5py.string_dtype()) for i in range(datasets)])
    with h5py.File(folder / "m.h5", "r+") as file:
        for dataset in file.values():
            dataset[...] = [b"x" * 10**6 if dataset.name == "/0" else b"y", *[b"y"] * (count - 1)]
        places = [dataset.id.get_offset() for dataset in file.values()]
        first = file["0"].id.get_offset()
    raw = bytearray((folder / "m.h5").read_bytes())
    for place in places:
        raw[place : place + 16 * count] = raw[first : first + 16] * count
    (folder / "m.h5").write_bytes(raw)


def test_texts_that_are_one_object_do_not_become_many(tmp_path: Path) -> None:
    with_one_text(tmp_path, 1, 5000)

    check_refused(tmp_path, "'/0': texts of more than 1")


def test_datasets_that_lead_to_one_text_do_not_become_many(tmp_path: Path) -> None:
    with_one_text(tmp_path, 50, 1)

    check_refused(tmp_path, "texts of more than")


def test_texts_are_counted_once_however_often_they_are_read(tmp_path: Path) -> None:
    written(tmp_path, lambda file: file.create_dataset("a", data=["x" * 100_000], dtype=h5py.string_dtype()))

    with opened(tmp_path) as source:
        assert [source.read("a")[0] for _ in range(3)] == [b"x" * 100_000] * 3


def test_names_of_one_compressed_dataset_are_one_tensor(tmp_path: Path) -> None:
    def write(file: h5py.File) -> None:
        file.create_dataset("0", (8 * MIB,), "u1", fillvalue=0, **GZIP)[...] = 1
        for number in range(1, 300):
            file[f"{number}"] = file["0"]

    assert written(tmp_path, write) < 50_000

    with cheap(seconds=2.0):
        state = ckptmgr.load(tmp_path / "m.h5", backend=BACKEND)
    assert len(state) == 300
    assert all(state[name] is state["0"] for name in state)


def test_names_that_were_added_to_strings_of_ours_are_one_tensor(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "m.h5", {"s": np.array([b"\xff" * MIB], object)}, backend=BACKEND)
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        for number in range(100):
            group = file.create_group(f"{number}")
            group.attrs.update(file["s"].attrs)
            group["ends"], group["bytes"] = file["s/ends"], file["s/bytes"]

    with cheap(seconds=2.0):
        state = ckptmgr.load(tmp_path / "m.h5", backend=BACKEND)
    assert len(state) == 101
    assert all(state[name] is state["s"] for name in state)


def test_names_of_one_dataset_in_a_file_of_keras_are_one_tensor(tmp_path: Path) -> None:
    def write(file: h5py.File) -> None:
        variables = file.create_group("layers/dense/vars")
        variables.create_dataset("0", (8 * MIB,), "u1", **GZIP)[...] = 1
        for number in range(1, 100):
            variables[f"{number}"] = variables["0"]

    written(tmp_path, write)
    (tmp_path / "m.h5").rename(tmp_path / "m.weights.h5")

    with BACKEND.open(Folder(PosixStore(tmp_path)), "m.weights.h5") as source:
        assert source.metadata["keras"]
        assert len(source.specs) == 1
        assert len(source.aliases) == 99
        assert set(source.paths) == {*source.specs, *source.aliases}


def test_compressed_datasets_are_bounded_together(tmp_path: Path) -> None:
    def write(file: h5py.File) -> None:
        for number in range(300):  # each of which would be small enough alone
            file.create_dataset(f"{number}", (MIB,), "i1", **GZIP)

    assert written(tmp_path, write) < 200_000

    check_refused(tmp_path, "it would have 1048576 bytes, and its file has .* for all of its datasets")


def test_zeros_that_gzip_made_small_are_read(tmp_path: Path) -> None:
    def write(file: h5py.File) -> None:
        for number in range(3):
            file.create_dataset(f"{number}", data=np.zeros(16 * MIB, "u1"), **GZIP)

    assert written(tmp_path, write) < 100_000

    with opened(tmp_path) as source:
        assert len(source.specs) == 3
        assert not source.read("2").any()


def test_datasets_that_overlap_do_not_multiply_the_file(tmp_path: Path) -> None:
    written(tmp_path, lambda file: [file.create_dataset(f"{i}", data=np.full(10_000, i, "u1")) for i in range(10)])
    with h5py.File(tmp_path / "m.h5") as file:
        places = [dataset.id.get_offset() for dataset in file.values()]
    raw = (tmp_path / "m.h5").read_bytes()
    for offset in places:
        raw = raw.replace(struct.pack("<QQ", offset, 10_000), struct.pack("<QQ", 800, 90_000))
    raw = raw.replace(struct.pack("<QQ", 10_000, 10_000), struct.pack("<QQ", 90_000, 90_000))  # their shapes
    (tmp_path / "m.h5").write_bytes(raw)

    check_refused(tmp_path, "'/1': it would have 90000 bytes, and its file has")


@pytest.mark.parametrize("dtype", ["S1", h5py.string_dtype()], ids=["fixed", "variable"])
def test_compressed_texts_are_counted_as_what_they_become(tmp_path: Path, dtype: Any) -> None:
    count = 20 * MIB

    def write(file: h5py.File) -> None:
        file.create_dataset("x", (count,), dtype, **GZIP)
        file["x"][0] = b"x"  # the other chunks are not stored, and would be empty texts

    assert written(tmp_path, write) < 100_000

    check_refused(tmp_path, r"'/x': it would have 1\d{9} bytes, and its file has")


def test_compressed_ends_of_strings_are_counted_as_what_they_become(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "m.h5", {"s": np.array([b"\xff"], object)}, backend=BACKEND)
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        del file["s/ends"]
        file["s"].create_dataset("ends", (2 * MIB,), "<u8", **GZIP)[...] = 1

    check_refused(tmp_path, "'/s/ends': it would have 150994944 bytes, and its file has")


@pytest.mark.parametrize("text", ["{}", "[]", '{"a":[[]]}', '["\\\\",[[]]]'])
def test_a_text_of_ours_with_too_many_containers_is_refused_before_they_are_made(tmp_path: Path, text: str) -> None:
    joined = '{"a":[' + ",".join([text] * 3_000_000)[:3_000_000].rpartition(",")[0] + "]}"
    ckptmgr.save(tmp_path / "m.h5", {"w": np.ones(1)}, backend=BACKEND)
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        file.attrs["ckptmgr_metadata"] = joined

    check_refused(tmp_path, "its ckptmgr_metadata is no JSON: more than 440")


def test_a_state_with_many_small_parts_is_read(tmp_path: Path) -> None:
    state = {"w": [{"a": np.float32(i), "b": (), "n": i} for i in range(20_000)], "empty": [[] for _ in range(20_000)]}

    ckptmgr.save(tmp_path / "m.h5", state, backend=BACKEND)

    found = ckptmgr.load(tmp_path / "m.h5", backend=BACKEND)
    assert len(found["w"]) == 20_000
    assert found["empty"] == state["empty"]


def test_a_state_with_more_containers_than_are_read_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the metadata is no JSON: more than 122880 lists and objects"):
        BACKEND.layout(ckptmgr.layout.Contents(((),), metadata={"a": [[]] * 152_916}), stem="m", align=64)


def test_brackets_in_texts_are_no_containers(tmp_path: Path) -> None:
    metadata = {"a": "[" * 500_000 + '"\\', "b": ["{" * 500_000]}
    layout = BACKEND.layout(ckptmgr.layout.Contents(((),), metadata=metadata), stem="m", align=64)
    (tmp_path / "m.h5").write_bytes(b"".join(piece for piece in layout.files[0].pieces if isinstance(piece, bytes)))

    with opened(tmp_path) as source:
        assert source.metadata == metadata


def test_tensors_come_in_the_order_of_the_tree(tmp_path: Path) -> None:
    state = {
        "c": np.ones(2),
        "b": np.zeros((0, 3)),
        "a": np.array(["t"], object),
        "z": np.ones(3),
        "d": np.array([b"\xff"], object),
    }

    ckptmgr.save(tmp_path / "m.h5", state, backend=BACKEND)

    with opened(tmp_path) as source:
        assert [*source.specs] == ["c", "b", "a", "z", "d"]
