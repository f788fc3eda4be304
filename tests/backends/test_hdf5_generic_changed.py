"""Files of ours after other tools have been at them: what still means the same, and what is told as damage."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest

import ckptmgr
from ckptmgr import transfer
from ckptmgr.errors import CorruptCheckpointError, FormatVersionError
from ckptmgr.layout import Contents, Part
from ckptmgr.memory import MemorySource
from ckptmgr.source import TensorSource
from ckptmgr.spec import PackedArray, TensorSpec
from ckptmgr.storage import Folder, PosixStore
from ckptmgr_hdf5 import HDF5Backend

BACKEND = HDF5Backend()
SHARED = np.arange(6.0)
STATE = {
    "w": SHARED,
    "bits": np.arange(6).astype(ml_dtypes.bfloat16),
    "flags": np.array([True, False, True]),
    "time": np.array(["2026-01-02"], "datetime64[D]"),
    "raw": np.array([[b"a\0"], [b""], [b"\xff"]], object),
    "text": np.array(["x", "né"], object),
    "tied": [SHARED],
    "n": 3,
}


def opened(folder: Path) -> TensorSource:
    return BACKEND.open(Folder(PosixStore(folder)), "m.h5")


def changed(folder: Path, change: Callable[[h5py.File], Any], state: Any = STATE) -> None:
    ckptmgr.save(folder / "m.h5", state, backend=BACKEND)
    with h5py.File(folder / "m.h5", "r+") as file:
        change(file)


def check(folder: Path) -> None:
    state = ckptmgr.load(folder / "m.h5", backend=BACKEND)
    for name in ("w", "bits", "flags", "time"):
        assert state[name].dtype == STATE[name].dtype
        assert state[name].tobytes() == STATE[name].tobytes()
    assert state["raw"].tolist() == [[b"a\0"], [b""], [b"\xff"]]
    assert state["text"].tolist() == ["x", "né"]
    assert state["tied"][0] is state["w"]
    assert state["n"] == 3


def test_a_file_of_ours_comes_back(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "m.h5", STATE, backend=BACKEND)

    check(tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"chunks": True}, {"compression": "gzip", "shuffle": True}, {"chunks": True, "fletcher32": True}],
    ids=["chunked", "gzip", "fletcher32"],
)
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_a_repacked_file_means_the_same(tmp_path: Path, options: dict[str, Any], libver: str) -> None:
    ckptmgr.save(tmp_path / "m.h5", STATE, backend=BACKEND)
    old = h5py.File(io.BytesIO((tmp_path / "m.h5").read_bytes()))

    with h5py.File(tmp_path / "m.h5", "w", libver=libver) as new:
        new.attrs.update(old.attrs)

        def copy(name: str, node: h5py.Group | h5py.Dataset) -> None:
            if isinstance(node, h5py.Dataset):
                new.create_dataset(
                    name, data=node[()], dtype=node.dtype, **(options if node.dtype.kind != "O" else {"chunks": True})
                )
            else:
                new.require_group(name)
            new[name].attrs.update(node.attrs)

        old.visititems(copy)
    check(tmp_path)


def test_packed_elements_come_back_from_chunks(tmp_path: Path) -> None:
    spec = TensorSpec("packed_float4_e2m1fn", (2, 6))
    array = PackedArray.wrap(np.arange(6, dtype=np.uint8), spec)
    layout = BACKEND.layout(Contents(((Part("p", spec),),)), stem="m", align=64)
    transfer.write(Folder(PosixStore(tmp_path)), layout, MemorySource({"p": array}, {"p": spec}))
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        data, marks = file["p"][()], dict(file["p"].attrs)
        del file["p"]
        file.create_dataset("p", data=data, chunks=True).attrs.update(marks)

    with opened(tmp_path) as source:
        assert source.extents("p") == ()
        assert source.read("p").tolist() == [0, 1, 2, 3, 4, 5]
        assert source.read("p").spec == spec


def test_a_dataset_that_was_added_is_one_more_tensor(tmp_path: Path) -> None:
    changed(tmp_path, lambda file: file.update({"extra/v": np.ones(2)}), {"w": SHARED})

    with opened(tmp_path) as source:
        assert set(source.specs) == {"w", "extra/v"}
        assert source.read("extra/v").tolist() == [1.0, 1.0]


def test_a_tied_name_that_got_values_of_its_own_is_a_tensor(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        if "tied/0" in file:
            del file["tied/0"]
        file["tied/0"] = np.zeros(6)

    changed(tmp_path, change)

    with opened(tmp_path) as source:
        assert not source.aliases
        assert source.read("tied/0").tolist() == [0.0] * 6
        assert source.read("w").tolist() == SHARED.tolist()


def test_a_tensor_that_is_left_under_its_tied_name_alone_is_still_it(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        if "tied/0" in file:
            del file["tied/0"]
        file.move("w", "tied/0")

    changed(tmp_path, change)

    check(tmp_path)


def test_a_tied_name_that_got_chunks_of_its_own_is_a_tensor(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        del file["tied/0"], file["w"]
        file.create_dataset("tied/0", data=np.zeros(6), chunks=True)
        file.create_dataset("w", data=SHARED, chunks=True)

    changed(tmp_path, change)

    with opened(tmp_path) as source:
        assert not source.aliases
        assert source.read("tied/0").tolist() == [0.0] * 6


def test_a_newer_format_asks_for_a_newer_ckptmgr(tmp_path: Path) -> None:
    changed(tmp_path, lambda file: file.attrs.modify("ckptmgr_format", np.uint8(2)))

    with pytest.raises(FormatVersionError, match=r"version 2 of ckptmgr's HDF5 format, .* up to 1: upgrade") as refusal:
        opened(tmp_path)
    assert (refusal.value.found, refusal.value.supported) == (2, 1)


@pytest.mark.parametrize("version", ["one", 0, 1.0, np.ones(2, int)], ids=repr)
def test_a_mark_that_is_no_number_of_a_format_is_an_error(tmp_path: Path, version: Any) -> None:
    changed(tmp_path, lambda file: file.attrs.update({"ckptmgr_format": version}))

    with pytest.raises(CorruptCheckpointError, match="its ckptmgr_format is no number of a format"):
        opened(tmp_path)


@pytest.mark.parametrize("key", ["ckptmgr_metadata", "ckptmgr_aliases", "ckptmgr_names"])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is no JSON:"),
        ("[" * 100_000, "is no JSON:"),
        ('{"a":"1","a":"2"}', "is no JSON: an object has a key twice"),
        ("[]", "is no JSON object"),
        (7, "is no text"),
    ],
    ids=["cut", "deep", "twice", "list", "number"],
)
def test_texts_of_ours_that_are_damaged_are_told(tmp_path: Path, key: str, text: Any, problem: str) -> None:
    changed(tmp_path, lambda file: file.attrs.update({key: text}))

    with pytest.raises(CorruptCheckpointError, match=f"its {key} {problem}"):
        opened(tmp_path)


@pytest.mark.parametrize("key", ["ckptmgr_aliases", "ckptmgr_names"])
def test_names_are_texts(tmp_path: Path, key: str) -> None:
    changed(tmp_path, lambda file: file.attrs.update({key: '{"w":1}'}))

    with pytest.raises(CorruptCheckpointError, match=f"its {key} is no mapping of texts to texts"):
        opened(tmp_path)


@pytest.mark.parametrize("aliases", ['{"a":"nothing"}', '{"a":"a"}', '{"a":"b","b":"w"}'])
def test_a_tied_name_leads_to_a_tensor(tmp_path: Path, aliases: str) -> None:
    changed(tmp_path, lambda file: file.attrs.update({"ckptmgr_aliases": aliases}))

    with pytest.raises(CorruptCheckpointError, match=r"is tied to .*, which is no tensor"):
        opened(tmp_path)


def test_two_tensors_cannot_have_one_name(tmp_path: Path) -> None:
    changed(tmp_path, lambda file: file.attrs.update({"ckptmgr_names": '{"bits":"w"}'}))

    with pytest.raises(CorruptCheckpointError, match="another tensor has its name"):
        opened(tmp_path)


@pytest.mark.parametrize("mark", ["nonsense", "float8_e5m2", "string", "float128", "float32", "packed_float4_e2m1fn", 7])
def test_a_dtype_that_the_bits_are_not_is_an_error(tmp_path: Path, mark: Any) -> None:
    changed(tmp_path, lambda file: file["bits"].attrs.update({"ckptmgr_dtype": mark}))

    with pytest.raises(CorruptCheckpointError, match="'/bits': its ckptmgr_dtype is"):
        opened(tmp_path)


@pytest.mark.parametrize("shape", [[3], [-2, -2], [2**62, 2**62], [[2, 2]], [2.0, 2.0], 4, "4"], ids=str)
def test_a_shape_that_packed_elements_do_not_fill_is_an_error(tmp_path: Path, shape: Any) -> None:
    def change(file: h5py.File) -> None:
        file["w"].attrs.update({"ckptmgr_dtype": "packed_float4_e2m1fn", "ckptmgr_shape": shape})

    changed(tmp_path, change, {"w": np.zeros(2, np.uint8)})

    with pytest.raises(CorruptCheckpointError, match="'/w': it"):
        opened(tmp_path)


@pytest.mark.parametrize("ends", [[[2], [1], [3]], [[0], [2], [4]], [[0], [0], [2]], [[2**63], [2**63], [3]]], ids=str)
def test_strings_that_do_not_end_one_after_another_are_an_error(tmp_path: Path, ends: list[list[int]]) -> None:
    changed(tmp_path, lambda file: file["raw/ends"].write_direct(np.array(ends, np.uint64)))

    with opened(tmp_path) as source, pytest.raises(CorruptCheckpointError, match="its strings do not end inside of their 3"):
        source.read("raw")


@pytest.mark.parametrize("name", ["bytes", "ends"])
def test_strings_that_lack_a_part_are_an_error(tmp_path: Path, name: str) -> None:
    def change(file: h5py.File) -> None:
        del file[f"raw/{name}"]

    changed(tmp_path, change)

    with pytest.raises(CorruptCheckpointError, match="'/raw': it lacks a part of a tensor of strings"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["bytes", "ends"])
def test_strings_with_a_part_of_another_dtype_are_an_error(tmp_path: Path, name: str) -> None:
    def change(file: h5py.File) -> None:
        del file[f"raw/{name}"]
        file[f"raw/{name}"] = np.ones(3)

    changed(tmp_path, change)

    with pytest.raises(CorruptCheckpointError, match=f"'/raw/{name}': it is no part of a tensor of strings"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["w", "text", "raw", "bits"])
def test_a_file_that_is_cut_off_while_it_is_open_is_an_error(tmp_path: Path, name: str) -> None:
    state = {**STATE, "large": np.zeros(1 << 18)}
    ckptmgr.save(tmp_path / "m.h5", state, backend=BACKEND)

    with opened(tmp_path) as source:
        (tmp_path / "m.h5").write_bytes(b"")
        source.entries[name].file.reader._whole = None
        source.entries[name].file.reader._blocks.clear()

        with pytest.raises(CorruptCheckpointError, match="the file was cut off or deleted while it was read"):
            source.read(name)
