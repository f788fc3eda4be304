"""Checkpoints of several files: found by any of them, and by their folder."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import ckptmgr
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.storage import Folder, PosixStore
from ckptmgr_hdf5 import HDF5Backend, filesets

BACKEND = HDF5Backend()
THREE = ["m-00001-of-00003.h5", "m-00002-of-00003.h5", "m-00003-of-00003.h5"]
STATE = {"a": np.zeros(10), "b": [np.ones(10), 7], "c": np.arange(10.0)}


def saved(folder: Path, state: Any = STATE, limit: int | None = 80, name: str = "m.h5") -> list[str]:
    return [Path(path).name for path in ckptmgr.save(folder / name, state, backend=BACKEND, max_file_nbytes=limit)]


def loaded(folder: Path, name: str = "") -> Any:
    return ckptmgr.load(folder / name, backend=BACKEND)


def test_the_last_file_has_the_metadata_and_each_says_which_it_is(tmp_path: Path) -> None:
    assert saved(tmp_path) == THREE

    for number, name in enumerate(THREE, 1):
        with h5py.File(tmp_path / name) as file:
            assert file.attrs["ckptmgr_files"].tolist() == [number, 3]
            assert ("ckptmgr_metadata" in file.attrs) == (number == 3)


@pytest.mark.parametrize("name", ["", *THREE])
def test_any_of_the_files_leads_to_all(tmp_path: Path, name: str) -> None:
    saved(tmp_path)

    state = loaded(tmp_path, name)

    assert [*state] == ["a", "b", "c"]
    assert state["b"][0].tolist() == [1.0] * 10
    assert state["b"][1] == 7


def test_tied_tensors_may_be_in_another_file(tmp_path: Path) -> None:
    shared = np.arange(10.0)
    saved(tmp_path, {"a": shared, "b": np.ones(10), "c": {"tied": shared}})

    state = loaded(tmp_path)

    assert state["c"]["tied"] is state["a"]


@pytest.mark.parametrize("missing", THREE[:2])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    saved(tmp_path)
    (tmp_path / missing).unlink()

    with pytest.raises(CorruptCheckpointError, match=f"one of 3 files, and these are missing: '{missing}'$"):
        loaded(tmp_path, THREE[2])


def test_a_folder_without_the_last_file_was_never_finished(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / THREE[2]).unlink()

    with pytest.raises(CorruptCheckpointError, match=r"'m-00003-of-00003\.h5', which is written last, is missing"):
        BACKEND.open(Folder(PosixStore(tmp_path)), "")


def test_a_file_that_was_renamed_is_not_half_a_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / THREE[0]).rename(tmp_path / "first.h5")

    with pytest.raises(CorruptCheckpointError, match="one of several files, and not named so"):
        loaded(tmp_path, "first.h5")


def test_a_file_in_the_place_of_another_is_found_out(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / THREE[1]).write_bytes((tmp_path / THREE[0]).read_bytes())

    with pytest.raises(CorruptCheckpointError, match=r"its ckptmgr_files is \[1 3\], and its name says 2 of 3"):
        loaded(tmp_path, THREE[2])


def test_a_file_of_another_tool_in_a_set_is_found_out(tmp_path: Path) -> None:
    saved(tmp_path)
    with h5py.File(tmp_path / THREE[1], "w") as file:
        file["b/0"] = np.ones(10)

    with pytest.raises(CorruptCheckpointError, match="no file of ckptmgr's"):
        loaded(tmp_path, THREE[2])


def test_a_file_of_another_tool_may_be_named_like_one_of_several(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data-00001-of-00009.h5", "w") as file:
        file["x"] = np.ones(3)

    assert loaded(tmp_path, "data-00001-of-00009.h5")["x"].tolist() == [1.0] * 3


def test_the_same_tensor_in_two_files_is_found_out(tmp_path: Path) -> None:
    saved(tmp_path)
    with h5py.File(tmp_path / THREE[1], "r+") as file:
        file["a"] = np.ones(3)

    with pytest.raises(CorruptCheckpointError, match="another tensor has its name"):
        loaded(tmp_path, THREE[2])


def test_one_file_in_place_of_several_leaves_no_other(tmp_path: Path) -> None:
    saved(tmp_path)

    saved(tmp_path, limit=None)

    assert [path.name for path in tmp_path.iterdir()] == ["m.h5"]


def test_several_files_in_place_of_one_leave_no_other(tmp_path: Path) -> None:
    saved(tmp_path, limit=None)

    saved(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == THREE


def test_files_that_keras_writes_beside_a_checkpoint_stay(tmp_path: Path) -> None:
    for name in ("m.weights.h5", "m.keras", "m.weights.json"):
        (tmp_path / name).write_bytes(b"other")

    saved(tmp_path, limit=None)

    assert len([*tmp_path.iterdir()]) == 4


@pytest.mark.parametrize(
    ("names", "sets"),
    [
        (["x.h5", "x-00001-of-00002.h5"], {"x": ["x-00001-of-00002.h5", "x.h5"]}),
        (["x.h5", "x-00002-of-00002.h5"], {"x": ["x.h5", "x-00002-of-00002.h5"]}),
        (
            ["x-00001-of-00002.h5", "x-00003-of-00003.h5"],
            {"x": ["x-00001-of-00002.h5", "x-00003-of-00003.h5"]},
        ),
        (
            ["x-00001-of-00003.h5", "x-00002-of-00002.h5"],
            {"x": ["x-00001-of-00003.h5", "x-00002-of-00002.h5"]},
        ),
        (["x-00001-of-00003.h5"], {"x": ["x-00001-of-00003.h5", "x-00003-of-00003.h5"]}),
        (["x-00000-of-00002.h5"], {"x-00000-of-00002": ["x-00000-of-00002.h5"]}),
        (["x-1-of-2.h5", "x-00001-of-00001.h5"], {name: [f"{name}.h5"] for name in ("x-00001-of-00001", "x-1-of-2")}),
        ([".h5", ".keras", ".weights.json", "x.hdf5", "x.json"], {}),
        (["x.h5", "x.keras", "x.weights.h5"], {"x": ["x.h5"], "x.weights": ["x.weights.h5"], "x.keras": ["x.keras"]}),
        (["x_00000.weights.h5", "x.weights.json"], {"x.weights": ["x_00000.weights.h5", "x.weights.json"]}),
    ],
)
def test_sets_are_told_by_names(names: list[str], sets: dict[str, list[str]]) -> None:
    assert filesets.file_sets(names) == sets


def test_a_name_that_claims_a_billion_files_takes_no_time(tmp_path: Path) -> None:
    name = "x-00001-of-1000000000.h5"
    assert filesets.file_sets([name]) == {"x": [name, "x-1000000000-of-1000000000.h5"]}
    saved(tmp_path)
    (tmp_path / THREE[0]).rename(tmp_path / name)

    with pytest.raises(CorruptCheckpointError, match=r"'x-00006-of-1000000000\.h5', and 999999994 more"):
        loaded(tmp_path, name)


def test_a_folder_with_several_checkpoints_wants_one_named(tmp_path: Path) -> None:
    saved(tmp_path, limit=None)
    saved(tmp_path, name="n.h5")

    with pytest.raises(ValueError, match="has several checkpoints, name one of them: 'm', 'n'"):
        BACKEND.open(Folder(PosixStore(tmp_path)), "")


def test_model_is_the_usual_name(tmp_path: Path) -> None:
    saved(tmp_path, {"w": np.zeros(1)}, limit=None, name="model.h5")
    saved(tmp_path, limit=None)

    with BACKEND.open(Folder(PosixStore(tmp_path)), "") as source:
        assert [*source.specs] == ["w"]


@pytest.mark.parametrize("path", ["", "nothing"])
def test_a_folder_without_such_a_file_is_no_checkpoint(tmp_path: Path, path: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \.h5 or \.keras file in"):
        BACKEND.open(Folder(PosixStore(tmp_path)), path)


@pytest.mark.parametrize("place", [0, 512, 1024, 2048])
def test_files_are_recognized_by_their_signature(place: int) -> None:
    assert BACKEND.recognizes("any.name", bytes(place) + b"\x89HDF\r\n\x1a\n" + bytes(100), ())


@pytest.mark.parametrize("place", [8, 256, 1536])
def test_a_signature_elsewhere_is_none(place: int) -> None:
    assert not BACKEND.recognizes("model.h5", bytes(place) + b"\x89HDF\r\n\x1a\n" + bytes(100), ())


@pytest.mark.parametrize("name", ["a.h5", "a.hdf5", "a.weights.h5", "a.keras", "a.weights.json"])
def test_folders_are_recognized_by_the_names_in_them(name: str) -> None:
    assert BACKEND.recognizes("", b"", {name, "notes.txt"})
    assert not BACKEND.recognizes(name, b"", {name})
