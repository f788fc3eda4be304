"""HDF5 files that h5py wrote, read as checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest

from ckptmgr import transfer
from ckptmgr.box import Box
from ckptmgr.errors import CorruptCheckpointError, UnsafeCheckpointError, UnsupportedTensorError
from ckptmgr.source import TensorSource
from ckptmgr.storage import Folder, PosixStore
from ckptmgr.transfer import Want
from ckptmgr_hdf5 import HDF5Backend

GRID = np.arange(60, dtype=np.float32).reshape(5, 4, 3) - 30
BOX = Box((1, 0, 1), (4, 3, 3))


def opened(folder: Path, write: Callable[[h5py.File], Any], **options: Any) -> TensorSource:
    with h5py.File(folder / "x.h5", "w", **options) as file:
        write(file)
    return HDF5Backend().open(Folder(PosixStore(folder)), "x.h5")


def read(source: TensorSource, name: str) -> np.ndarray:
    """By the engine, after the source itself has given the same."""
    (array,), _ = transfer.read(source, [Want(name)])
    alone = source.read(name)
    assert array.dtype == alone.dtype
    assert array.tobytes() == alone.tobytes() if array.dtype != object else array.tolist() == alone.tolist()
    return array


def test_names_are_the_paths_of_datasets(tmp_path: Path) -> None:
    with opened(tmp_path, lambda file: file.update({"b/c": GRID, "a": 1.5, "50%25/%": 2})) as source:
        assert {name: spec.shape for name, spec in source.specs.items()} == {"50%25/%": (), "a": (), "b/c": (5, 4, 3)}
        assert source.paths == {"50%25/%": ("50%25", "%"), "a": ("a",), "b/c": ("b", "c")}
        assert np.array_equal(read(source, "b/c"), GRID)
        assert source.extents("b/c")


def test_attributes_of_the_root_are_metadata_where_json_has_them(tmp_path: Path) -> None:
    attributes = {"s": "né", "b": np.bytes_(b"raw"), "i": 3, "f": 0.5, "t": np.True_, "list": [1, 2], "names": ["a", "b"]}
    odd = {"nan": np.nan, "c": 1j, "e": h5py.Empty("f4"), "ckptmgr": "{}", "r": np.zeros(2, [("a", "i4")])}

    with opened(tmp_path, lambda file: file.attrs.update(attributes | odd)) as source:
        assert source.metadata == attributes | {"b": "raw", "t": True}


def test_a_second_name_of_a_dataset_is_a_tied_one(tmp_path: Path) -> None:
    def write(file: h5py.File) -> None:
        file["b/w"] = GRID
        file["a"] = file["b/w"]
        file["c"] = file["b"]

    with opened(tmp_path, write) as source:
        assert [*source.specs] == ["a"]
        assert source.aliases == {"b/w": "a", "c/w": "a"}
        assert np.array_equal(source.read("c/w"), GRID)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize(
    "options", [{"chunks": True}, {"data": np.zeros((0, 3))}, {"data": ["ä"]}], ids=["chunked", "empty", "text"]
)
def test_second_names_are_tied_however_the_data_is_stored(tmp_path: Path, options: dict[str, Any], libver: str) -> None:
    def write(file: h5py.File) -> None:
        file.create_dataset("a", **({"data": GRID} | options))
        file["b"] = file["a"]
        for number in range(20):  # so that newer files have a heap of links, which h5py reads
            file[f"z{number:02}"] = number

    with opened(tmp_path, write, libver=libver) as source:
        assert source.aliases == {"b": "a"}
        assert source.read("b").tolist() == source.read("a").tolist()


def test_bools_are_true_where_their_byte_is_not_zero(tmp_path: Path) -> None:
    with opened(tmp_path, lambda file: file.update({"b": np.array([True, False, True])})) as source:
        data = bytearray((tmp_path / "x.h5").read_bytes())
        offset = source.entries["b"].dataset.offset
        data[offset : offset + 3] = b"\x02\x00\x01"
        (tmp_path / "x.h5").write_bytes(data)

        assert source.extents("b") == ()
        assert read(source, "b").view(np.uint8).tolist() == [1, 0, 1]
        assert source.read("b", Box((0,), (1,))).view(np.uint8).tolist() == [1]


@pytest.mark.parametrize("dtype", [">f4", ">i8", ">u2", ">c16", ">f2"])
@pytest.mark.parametrize("options", [{}, {"chunks": True}], ids=["contiguous", "chunked"])
def test_big_endian_numbers_come_in_native_order(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    array = (GRID * (1 + 2j) if "c" in dtype else abs(GRID)).astype(dtype)

    with opened(tmp_path, lambda file: file.create_dataset("w", data=array, **options)) as source:
        found = read(source, "w")
        assert found.dtype == array.dtype.newbyteorder("=")
        assert np.array_equal(found, array)
        assert np.array_equal(source.read("w", BOX), array[BOX.slices])
        assert source.extents("w") == ()


@pytest.mark.parametrize("dtype", ["f4", "?", "i2"])
@pytest.mark.parametrize(
    "options",
    [{"chunks": (2, 2, 2)}, {"compression": "gzip", "shuffle": True}, {"compression": "lzf", "fletcher32": True}],
    ids=["chunked", "gzip", "lzf"],
)
def test_chunked_and_compressed_datasets_are_decoded(tmp_path: Path, options: dict[str, Any], dtype: str) -> None:
    array = GRID.astype(dtype)

    with opened(tmp_path, lambda file: file.create_dataset("g/w", data=array, **options)) as source:
        assert np.array_equal(read(source, "g/w"), array)
        assert np.array_equal(source.read("g/w", BOX), array[BOX.slices])


def test_groups_and_attributes_that_only_hdf5_knows_are_read_by_it(tmp_path: Path) -> None:
    def write(file: h5py.File) -> None:
        for index in range(30):
            file[f"w{index:02}"] = np.full(3, index)
            file.attrs[f"a{index}"] = index

    with opened(tmp_path, write, libver="latest") as source:
        assert [*source.specs] == [f"w{index:02}" for index in range(30)]
        assert read(source, "w17").tolist() == [17] * 3
        assert source.metadata["a29"] == 29


def test_compact_data_lies_in_the_header_of_its_dataset(tmp_path: Path) -> None:
    def write(file: h5py.File) -> None:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.COMPACT)
        space, data = h5py.h5s.create_simple(GRID.shape), GRID.copy()
        h5py.h5d.create(file.id, b"w", h5py.h5t.py_create(GRID.dtype), space, plist).write(h5py.h5s.ALL, h5py.h5s.ALL, data)

    with opened(tmp_path, write) as source:
        assert np.array_equal(read(source, "w"), GRID)


def test_enumerations_are_carried(tmp_path: Path) -> None:
    kind = h5py.enum_dtype({"RED": 1, "BLUE": 5}, basetype="i2")

    with opened(tmp_path, lambda file: file.create_dataset("e", data=[5, 1], dtype=kind)) as source:
        assert not source.specs
        assert dict(source.blobs) == {"e": b"\5\0\1\0"}


@pytest.mark.parametrize("options", [{}, {"chunks": True}], ids=["contiguous", "chunked"])
def test_texts_are_strings(tmp_path: Path, options: dict[str, Any]) -> None:
    def write(file: h5py.File) -> None:
        file.create_dataset("v", data=["a", "né", ""], dtype=h5py.string_dtype(), **options)
        file.create_dataset("s", data=np.array([[b"ab", b"c"]]), **options)

    with opened(tmp_path, write) as source:
        assert read(source, "v").tolist() == [b"a", "né".encode(), b""]
        assert read(source, "s").tolist() == [[b"ab", b"c"]]
        assert source.read("v", Box((1,), (2,))).tolist() == ["né".encode()]


@pytest.mark.parametrize("options", [{}, {"chunks": True}], ids=["contiguous", "chunked"])
def test_opaque_bytes_are_what_kerass_note_says(tmp_path: Path, options: dict[str, Any]) -> None:
    array = GRID.astype(ml_dtypes.bfloat16)

    def write(file: h5py.File) -> None:
        file.create_dataset("w", data=array.view("V2"), **options).attrs["dtype"] = "bfloat16"

    with opened(tmp_path, write) as source:
        assert read(source, "w").tobytes() == array.tobytes()
        assert source.specs["w"].dtype == "bfloat16"
        assert bool(source.extents("w")) == (not options)


@pytest.mark.parametrize("note", [None, "float32", "nonsense", 7])
def test_opaque_bytes_without_a_meaning_are_carried(tmp_path: Path, note: Any) -> None:
    def write(file: h5py.File) -> None:
        file["a/w"] = np.array([b"xy", b"z"], "V2")
        if note is not None:
            file["a/w"].attrs["dtype"] = note

    with opened(tmp_path, write) as source:
        assert not source.specs
        assert dict(source.blobs) == {"a/w": b"xyz\0"}


def test_compounds_are_carried_as_far_as_their_bytes_are_there(tmp_path: Path) -> None:
    array = np.array([(1, 2.0)], [("a", "<i4"), ("b", "<f4")])

    def write(file: h5py.File) -> None:
        file["plain"] = array
        file.create_dataset("chunked", data=array, chunks=True)
        file["w"] = GRID

    with opened(tmp_path, write) as source:
        assert [*source.specs] == ["w"]
        assert source.blobs["plain"] == array.tobytes()
        with pytest.raises(UnsupportedTensorError, match=r"'/chunked' of .* is chunked, and no array can be made"):
            source.blobs["chunked"]


def test_datasets_without_elements_and_shape_are_no_tensors(tmp_path: Path) -> None:
    with opened(tmp_path, lambda file: file.update({"none": h5py.Empty("f4"), "w": np.zeros((3, 0))})) as source:
        assert {name: spec.shape for name, spec in source.specs.items()} == {"w": (3, 0)}
        assert read(source, "w").shape == (3, 0)


def test_a_dataset_that_was_never_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpointError, match="'/w': it was never written"):
        opened(tmp_path, lambda file: file.create_dataset("w", (3,)))


def test_a_small_file_cannot_claim_a_large_dataset(tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpointError, match="'/w': it would have 4398046511104 bytes, and its file has"):
        opened(tmp_path, lambda file: file.create_dataset("w", (1 << 40,), "f4", chunks=(1 << 20,), compression="gzip"))


@pytest.mark.parametrize("link", [h5py.SoftLink("/w"), h5py.ExternalLink("other.h5", "/w")], ids=["soft", "external"])
def test_links_are_refused(tmp_path: Path, link: Any) -> None:
    with pytest.raises(UnsafeCheckpointError, match="only hard links are followed"):
        opened(tmp_path, lambda file: file.update({"w": GRID, "link": link}))


def test_a_user_block_moves_all_bytes(tmp_path: Path) -> None:
    with opened(tmp_path, lambda file: file.update({"w": GRID}), userblock_size=1024) as source:
        assert np.array_equal(read(source, "w"), GRID)


def test_arrays_of_any_order_are_filled(tmp_path: Path) -> None:
    targets = [np.zeros((3, 4, 5), "f4").T, np.zeros((5, 4, 3), ">f4"), np.zeros((10, 4, 3), "f4")[::2]]

    with opened(tmp_path, lambda file: file.update({"big": GRID.astype(">f4"), "w": GRID})) as source:
        for name in ("w", "big"):
            for target in targets:
                assert source.read(name, out=target) is target
                assert np.array_equal(target, GRID)


def test_what_does_not_fit_the_tensor_is_an_error(tmp_path: Path) -> None:
    with opened(tmp_path, lambda file: file.update({"w": GRID})) as source:
        with pytest.raises(ValueError, match="not inside tensor 'w' of shape"):
            source.read("w", Box((0, 0, 0), (6, 4, 3)))
        with pytest.raises(ValueError, match="is float32 of shape"):
            source.read("w", out=np.zeros((5, 4, 3)))


def test_reading_goes_on_after_close(tmp_path: Path) -> None:
    source = opened(tmp_path, lambda file: file.create_dataset("w", data=GRID, chunks=True))

    for _ in range(2):
        with source:
            assert np.array_equal(source.read("w"), GRID)
