"""HDF5 itself may go on writing into our files: free space, ends and node sizes are right."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from hdf5_encoded import literal, tensor, written

from ckptmgr_hdf5.encoding import Attribute, GroupNode


def test_groups_datasets_and_attributes_can_be_added(tmp_path: Path) -> None:
    root = GroupNode({"x": tensor("x", np.arange(3.0)), "g": GroupNode()}, [Attribute("config", "text")])
    path = written(tmp_path, root, {"x": np.arange(3.0)})

    with h5py.File(path, "r+") as file:
        file.create_group("g/new/deep").attrs["a"] = "in a new group"
        file["g/y"] = np.arange(1000)
        file["x"].attrs["note"] = "on an old dataset"
        file.attrs["more"] = "in the root"

    with h5py.File(path) as file:
        assert file["x"][()].tolist() == [0.0, 1.0, 2.0]
        assert file["g/y"][()].sum() == 499_500
        assert file["g/new/deep"].attrs["a"] == "in a new group"
        assert dict(file["x"].attrs) == {"note": "on an old dataset"}
        assert dict(file.attrs) == {"config": "text", "more": "in the root"}


@pytest.mark.parametrize("count", [0, 1, 8, 256, 257, 8193])
def test_groups_of_every_size_grow_and_shrink(count: int, tmp_path: Path) -> None:
    path = written(tmp_path, GroupNode({f"k{index}": GroupNode() for index in range(count)}))

    with h5py.File(path, "r+") as file:
        for index in range(300):
            file.create_group(f"k{index}a")
        for index in range(0, count, 2):
            del file[f"k{index}"]

    with h5py.File(path) as file:
        assert {*file} == {f"k{index}a" for index in range(300)} | {f"k{index}" for index in range(1, count, 2)}
        assert all(name in file for name in file)


@pytest.mark.parametrize("nbytes", [0, 10, 4040, 4048, 4056, 4064, 100_000])
def test_strings_can_be_added_beside_ours_and_ours_replaced(nbytes: int, tmp_path: Path) -> None:
    path = written(tmp_path, GroupNode(attributes=[Attribute("a", "x" * nbytes), Attribute("b", "kept")]))

    with h5py.File(path, "r+") as file:
        for index in range(200):
            file.attrs[f"new{index}"] = f"text {index}" * 5
        file.attrs["a"] = "other"

    with h5py.File(path) as file:
        assert (file.attrs["a"], file.attrs["b"], file.attrs["new199"]) == ("other", "kept", "text 199" * 5)


def test_an_attribute_as_large_as_can_be_is_replaced(tmp_path: Path) -> None:
    path = written(tmp_path, GroupNode(attributes=[Attribute("a", np.array([b"x" * 65_480])), Attribute("b", np.int8(1))]))

    with h5py.File(path, "r+") as file:
        del file.attrs["a"]
        file.attrs["c"] = np.array([b"y" * 60_000])

    with h5py.File(path) as file:
        assert [*file.attrs] == ["b", "c"]
        assert file.attrs["c"].tolist() == [b"y" * 60_000]


def test_values_can_be_written_in_place(tmp_path: Path) -> None:
    path = written(tmp_path, GroupNode({"a": literal(np.zeros(4)), "b": literal(np.ones(4)), "none": literal(np.zeros(0))}))

    with h5py.File(path, "r+") as file:
        file["a"][1:3] = [5, 6]

    with h5py.File(path) as file:
        assert file["a"][()].tolist() == [0.0, 5.0, 6.0, 0.0]
        assert file["b"][()].tolist() == [1.0, 1.0, 1.0, 1.0]


def test_objects_can_be_copied_and_moved(tmp_path: Path) -> None:
    root = GroupNode()
    root.within("a", "b").children["x"] = literal(np.arange(4), Attribute("dtype", "int64"))
    path = written(tmp_path, root)

    with h5py.File(path, "r+") as file:
        file.copy("a", "copy")
        file.move("a/b", "moved")

    with h5py.File(path) as file:
        assert [*file, *file["a"]] == ["a", "copy", "moved"]
        assert file["copy/b/x"].attrs["dtype"] == file["moved/x"].attrs["dtype"] == "int64"
        assert file["copy/b/x"][()].tolist() == file["moved/x"][()].tolist() == [0, 1, 2, 3]
