"""Which files are opened, and how: byte order, compression, indexes, folders, and what stands beside them."""

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from torch_pickles import W, archive, loaded, program, state, storage, tensor, text

import ckptmgr
from ckptmgr import backend as backends
from ckptmgr.backend import Box, Contents, Part, TensorSpec
from ckptmgr.errors import (
    BackendNotFoundError,
    CorruptCheckpointError,
    FormatVersionError,
    UnsafeCheckpointError,
    UnsupportedTensorError,
)
from ckptmgr.storage import Folder, PosixStore
from ckptmgr.testing import sample
from ckptmgr.testing.samples import same
from ckptmgr_torch import TorchBackend

GRID = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_both_backends_are_installed() -> None:
    assert {"torch", "torch_dcp"} <= set(backends.available())


def test_files_of_a_big_endian_machine_are_turned_around(tmp_path: Path) -> None:
    parts = struct.pack(">4f", 1, 2, 3, 4)
    numbers = tensor(shape=(2,), strides=(1,), of=storage("1", 2, "torch\nComplexFloatStorage"))
    data = state(w=tensor(), t=tensor(shape=(3, 2), strides=(1, 3)), c=numbers)
    archive(tmp_path / "m.pt", data, {"byteorder": b"big", "data/0": struct.pack(">6f", *range(6)), "data/1": parts})

    found = loaded(tmp_path / "m.pt")

    assert same(found["w"], GRID)
    assert same(found["t"], np.ascontiguousarray(GRID.T))
    assert same(found["c"], np.array([1 + 2j, 3 + 4j], np.complex64))


def test_an_archive_without_a_byte_order_is_little_endian(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as target:
        target.writestr("m/data.pkl", state(w=tensor()))
        target.writestr("m/data/0", W)

    assert same(loaded(tmp_path / "m.pt")["w"], GRID)


def test_a_compressed_pickle_is_read_and_a_compressed_tensor_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.pt", state(n=b"K\x05", w=tensor()), method=zipfile.ZIP_DEFLATED)

    with ckptmgr.open_checkpoint(path) as checkpoint:
        assert checkpoint.specs["w"].shape == (2, 3)
        with pytest.raises(CorruptCheckpointError, match=r"'w': its record 'archive/data/0' is compressed.*without compression"):
            checkpoint.read("w")


@pytest.mark.parametrize("root", ["archive", "epoch=3-12:30", "ünï", "a b"])
def test_records_may_have_any_root(tmp_path: Path, root: str) -> None:
    assert same(loaded(archive(tmp_path / "m.pt", state(w=tensor()), root=root))["w"], GRID)


def test_one_tensor_a_number_or_a_list_may_be_all_there_is(tmp_path: Path) -> None:
    assert same(loaded(archive(tmp_path / "m.pt", program(tensor()))), GRID)
    assert loaded(archive(tmp_path / "m.pt", program(b"K\x05"))) == 5
    assert same(loaded(archive(tmp_path / "m.pt", program(b"](", tensor(), b"e")))[0], GRID)


def test_of_overlapping_views_one_has_an_extent_and_all_are_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.pt", state(row=tensor(offset=3, shape=(3,), strides=(1,)), w=tensor()))

    with ckptmgr.open_checkpoint(path) as checkpoint:
        assert [bool(checkpoint.extents(name)) for name in ("w", "row")] == [True, False]
        assert same(checkpoint.read("row"), GRID[1])
        assert same(checkpoint.read("w", Box((1, 0), (2, 3))), GRID[1:])


def test_a_set_has_an_index_as_hugging_face_has_it_and_opens_by_it(tmp_path: Path) -> None:
    arrays = {name: sample("float32", (4, 4), seed=seed) for seed, name in enumerate("abc")}

    paths = ckptmgr.save(f"{tmp_path}/", {"m": arrays, "n": (1, None)}, backend="torch", max_file_nbytes=100)

    assert [Path(path).name for path in paths] == [*(f"model-0000{n}-of-00003.pt" for n in (1, 2, 3)), "model.pt.index.json"]
    index = json.loads((tmp_path / "model.pt.index.json").read_bytes())
    assert index["weight_map"]["m/b"] == "model-00002-of-00003.pt"
    found = ckptmgr.load(tmp_path)
    assert found["n"] == (1, None)
    assert all(same(found["m"][name], array) for name, array in arrays.items())


@pytest.mark.parametrize("most", [None, 100])
@pytest.mark.parametrize("ending", [".bin", ".pth"])
def test_files_of_other_endings_are_written_and_found_in_a_folder(tmp_path: Path, ending: str, most: int | None) -> None:
    arrays = {name: sample("float32", (4, 4), seed=seed) for seed, name in enumerate("abc")}
    backend = TorchBackend().for_file(f"pytorch_model{ending}")

    paths = ckptmgr.save(tmp_path / f"pytorch_model{ending}", arrays, backend=backend, max_file_nbytes=most)

    shards = [f"pytorch_model-0000{n}-of-00003{ending}" for n in (1, 2, 3)]
    names = [*shards, f"pytorch_model{ending}.index.json"] if most else [f"pytorch_model{ending}"]
    assert [Path(path).name for path in paths] == names
    assert backend.file_sets([*names, "optimizer.bin", "training_args.bin"]) == {"pytorch_model": names}
    found = ckptmgr.load(tmp_path)
    assert all(same(found[name], array) for name, array in arrays.items())


def test_an_ending_that_torch_has_not_is_refused() -> None:
    assert TorchBackend().for_file("any.bin") == TorchBackend()
    with pytest.raises(ValueError, match=r"\.pt, \.pth, \.bin"):
        TorchBackend(".ckpt")


def test_a_set_of_hugging_face_is_read_by_its_index(tmp_path: Path) -> None:
    archive(tmp_path / "pytorch_model-00001-of-00002.bin", state(a=tensor()))
    flat = tensor(shape=(6,), strides=(1,))
    archive(tmp_path / "pytorch_model-00002-of-00002.bin", state(b=flat, tied=flat))
    weights = {"a": "pytorch_model-00001-of-00002.bin", **dict.fromkeys(("b", "tied"), "pytorch_model-00002-of-00002.bin")}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 48}, "weight_map": weights}))

    with ckptmgr.open_checkpoint(index) as checkpoint:
        assert checkpoint.aliases == {"tied": "b"}
        assert same(checkpoint.load()["a"], GRID)
    assert same(ckptmgr.load(tmp_path)["b"], GRID.reshape(-1))


@pytest.mark.parametrize(
    ("weights", "kind", "problem"),
    [
        ({"a": "../m.pt"}, UnsafeCheckpointError, "no plain name"),
        ({"a": "/etc/passwd"}, UnsafeCheckpointError, "no plain name"),
        ({"a": "gone.pt"}, CorruptCheckpointError, "no such file"),
        ({"z": "m.pt"}, CorruptCheckpointError, "'z': 'x.pt.index.json' says that it is here"),
        ({"a": 5}, CorruptCheckpointError, "no text"),
        ([], CorruptCheckpointError, "weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, weights: object, kind: type[Exception], problem: str) -> None:
    archive(tmp_path / "m.pt", state(a=tensor()))
    (tmp_path / "x.pt.index.json").write_text(json.dumps({"weight_map": weights}))

    with pytest.raises(kind, match=problem):
        ckptmgr.load(tmp_path / "x.pt.index.json")


def test_a_folder_of_safetensors_with_pickles_beside_them_is_one_of_safetensors(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "model.safetensors", {"w": GRID})
    for name in ("optimizer.pt", "rng_state.pth", "pytorch_model.pt"):
        archive(tmp_path / name, state(a=tensor()))

    assert same(ckptmgr.load(tmp_path)["w"], GRID)


def test_a_folder_with_one_file_opens_and_with_two_says_which(tmp_path: Path) -> None:
    archive(tmp_path / "a.pt", state(a=tensor()))
    archive(tmp_path / "optimizer.pt", state(a=tensor()))
    assert same(ckptmgr.load(tmp_path)["a"], GRID)

    archive(tmp_path / "b.pth", state(a=tensor()))
    with pytest.raises(FileNotFoundError, match=r"several PyTorch checkpoints \(a.pt, b.pth\)"):
        ckptmgr.load(tmp_path)


def test_other_archives_and_pickles_are_not_recognized(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as target:
        target.writestr("w.txt", b"words")
    (tmp_path / "m.pkl").write_bytes(program(b"N"))

    for name in ("a.zip", "m.pkl"):
        with pytest.raises(BackendNotFoundError):
            ckptmgr.load(tmp_path / name)


def test_files_are_recognized_whatever_their_names_are(tmp_path: Path) -> None:
    assert same(loaded(archive(tmp_path / "last.ckpt", state(w=tensor())))["w"], GRID)


def test_a_file_of_a_newer_ckptmgr_says_so(tmp_path: Path) -> None:
    archive(tmp_path / "m.pt", state(w=tensor()), {"ckptmgr.json": b'{"format_version": 9}'})

    with pytest.raises(FormatVersionError, match="version 9"):
        ckptmgr.load(tmp_path / "m.pt")


@pytest.mark.parametrize(
    "raw", [b"{", b"[]", b'{"format_version":1,"names":[]}', b"[" * 200_000, b'{"format_version":1,"tied":{"a":1}}']
)
def test_what_we_wrote_and_is_damaged_is_an_error(tmp_path: Path, raw: bytes) -> None:
    archive(tmp_path / "m.pt", state(w=tensor()), {"ckptmgr.json": raw})

    with pytest.raises(CorruptCheckpointError, match="what ckptmgr wrote into it is damaged"):
        ckptmgr.load(tmp_path / "m.pt")


def test_a_file_that_becomes_shorter_is_told(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.pt", state(t=tensor(shape=(3, 2), strides=(1, 3))))
    with TorchBackend().open(Folder(PosixStore(tmp_path)), "m.pt") as source:
        path.write_bytes(path.read_bytes()[:150])
        with pytest.raises(CorruptCheckpointError):
            source.read("t")


def test_what_torch_has_no_dtype_for_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedTensorError, match=r"torch has no dtype for datetime64.*'m/t'"):
        ckptmgr.save(tmp_path / "m.pt", {"m": {"t": np.zeros(3, "datetime64[s]")}}, backend="torch")
    assert list(tmp_path.iterdir()) == []


def test_names_that_stand_under_each_other_are_keys_of_one_dict() -> None:
    parts = (Part("a", TensorSpec("int8", (1,))), Part("a/b", TensorSpec("int8", (1,))))

    [file] = TorchBackend().layout(Contents((parts,)), stem="m", align=64).files

    pickled = file.pieces[1]
    assert isinstance(pickled, bytes)
    assert text("a") in pickled
    assert text("a/b") in pickled
