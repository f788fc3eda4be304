"""``.npz`` files of numpy's own, every way that it writes them; and ours, read by numpy."""

import io
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import ckptmgr
from ckptmgr.box import Box
from ckptmgr.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError, UnsupportedTensorError
from ckptmgr.storage import Folder, PosixStore
from ckptmgr.zipreading import Archive, Member
from ckptmgr_npz import NpzBackend
from ckptmgr_npz.inflating import Inflater
from ckptmgr_npz.source import NpzSource

GRID = np.arange(12, dtype=np.float32).reshape(3, 4)


def opened(path: Path) -> NpzSource:
    source = NpzBackend().open(Folder(PosixStore(path.parent)), path.name)
    assert isinstance(source, NpzSource)
    return source


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_numpy_are_read_in_any_order_and_byte_order(tmp_path: Path, save: object) -> None:
    arrays = {
        "plain": GRID,
        "fortran": np.asfortranarray(GRID),
        "big": GRID.astype(">f8"),
        "both": np.asfortranarray(np.arange(24, dtype=">i2").reshape(2, 3, 4)),
        "times": np.array(["2026-01-01", "NaT"], "datetime64[D]"),
        "none": np.zeros((0, 3), np.int8),
        "scalar": np.float16(1.5),
    }
    save(tmp_path / "w.npz", **arrays)  # type: ignore[operator]

    with opened(tmp_path / "w.npz") as source:
        for name, array in arrays.items():
            read = source.read(name)
            assert read.dtype == array.dtype.newbyteorder("=")
            np.testing.assert_array_equal(read, array)
        np.testing.assert_array_equal(source.read("both", Box((1, 0, 2), (2, 2, 4))), arrays["both"][1:2, 0:2, 2:4])


def test_texts_are_strings_and_load_as_bytes(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", texts=np.array(["ü", "long"]), raw=np.array([[b"a"], [b""]]))

    with opened(tmp_path / "w.npz") as source:
        assert source.read("texts").tolist() == ["ü".encode(), b"long"]
        assert source.read("raw").tolist() == [[b"a"], [b""]]


def test_numpy_reads_what_is_saved_and_ml_dtypes_come_back_by_name(tmp_path: Path) -> None:
    half = GRID.astype(ml_dtypes.bfloat16)

    ckptmgr.save(tmp_path / "w.npz", {"net/w": GRID, "half": half, "i4": np.array([-1, 3], ml_dtypes.int4)}, backend=NpzBackend())

    with np.load(tmp_path / "w.npz") as file:
        np.testing.assert_array_equal(file["net/w"], GRID)
        np.testing.assert_array_equal(file["half"], half.view(np.uint16))
        assert file["i4"].dtype == np.uint8
    with opened(tmp_path / "w.npz") as source:
        assert [spec.dtype for spec in source.specs.values()] == ["float32", "bfloat16", "int4"]


def test_a_flat_dict_of_plain_arrays_makes_a_file_of_arrays_alone(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "w.npz", {"a": GRID, "b": GRID[0]}, backend=NpzBackend())

    assert zipfile.ZipFile(tmp_path / "w.npz").namelist() == ["a.npy", "b.npy"]


def test_pickled_objects_are_refused_unopened(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", good=GRID, bad=np.array([{}, None], object))

    with pytest.raises(UnsafeCheckpointError, match="'bad': its elements are pickled"):
        opened(tmp_path / "w.npz")


def test_records_and_void_are_carried_as_bytes(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", w=GRID, records=np.zeros(2, [("a", "i4")]), half=GRID.astype(ml_dtypes.bfloat16))

    with opened(tmp_path / "w.npz") as source:
        assert list(source.specs) == ["w"]
        assert np.load(io.BytesIO(source.blobs["half"])).tobytes() == GRID.astype(ml_dtypes.bfloat16).tobytes()


def test_a_compressed_array_is_read_in_pieces_and_decompressed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(1).integers(0, 3, 300_000).reshape(300, 1000)
    np.savez_compressed(tmp_path / "w.npz", w=array)
    made: list[int] = []

    class Counted(Inflater):
        def __init__(self, archive: Archive, member: Member) -> None:
            made.append(1)
            super().__init__(archive, member)

    monkeypatch.setattr("ckptmgr_npz.source.Inflater", Counted)

    with opened(tmp_path / "w.npz") as source:
        parts = [source.read("w", Box((at, 0), (at + 100, 1000))) for at in (0, 100, 200)]

    np.testing.assert_array_equal(np.concatenate(parts), array)
    assert made == [1]


def test_damage_in_an_array_is_told_by_its_crc32(tmp_path: Path) -> None:
    for name, save in (("plain.npz", np.savez), ("small.npz", np.savez_compressed)):
        save(tmp_path / name, w=np.arange(1000))
        data = bytearray((tmp_path / name).read_bytes())
        data[700] ^= 1
        (tmp_path / name).write_bytes(data)

        with pytest.raises(CorruptCheckpointError) as told, opened(tmp_path / name) as source:
            source.read("w")
        assert told.value.tensor in ("w", "w.npy")


def test_a_header_that_claims_more_than_the_member_has_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as file:
        data = io.BytesIO()
        np.lib.format.write_array_header_1_0(data, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)})
        file.writestr("w.npy", data.getvalue())

    with pytest.raises(CorruptCheckpointError, match="its header tells of"):
        opened(tmp_path / "w.npz")


@pytest.mark.parametrize(
    "text", [b"[" * 9000, b"{'descr': 1}", b"{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}", b"x", b"\xff"]
)
def test_a_header_that_is_none_is_refused(tmp_path: Path, text: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as file:
        file.writestr("w.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64))

    with pytest.raises(CheckpointError):
        opened(tmp_path / "w.npz")


def test_strings_that_numpy_would_cut_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedTensorError, match="'s'"):
        ckptmgr.save(tmp_path / "w.npz", {"s": np.array([b"nul\0"], object)}, backend=NpzBackend())


def test_one_file_of_a_set_that_is_missing_is_told(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "w.npz", {"a": GRID, "b": GRID + 1}, backend=NpzBackend(), max_file_nbytes=50)
    (tmp_path / "w-00001-of-00002.npz").unlink()

    with pytest.raises(CorruptCheckpointError, match="missing"):
        opened(tmp_path / "w-00002-of-00002.npz")
