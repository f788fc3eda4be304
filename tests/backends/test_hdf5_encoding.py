"""Trees as HDF5 files: what h5py lists and reads, and where tensors lie."""

import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hdf5_encoded import image, literal, opened, tensor, written
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptmgr_hdf5.datatypes import file_type, vlen_string
from ckptmgr_hdf5.encoding import Attribute, DatasetNode, GroupNode, encode

F4 = file_type(np.dtype("<f4"))


def test_an_empty_tree_is_a_file_without_objects() -> None:
    assert list(opened(GroupNode())) == []


def test_the_file_is_of_hdf5s_earliest_format() -> None:
    superblock, freelist, symbol_table, shared_header = opened(GroupNode()).id.get_create_plist().get_version()

    assert (superblock, freelist, symbol_table, shared_header) == (0, 0, 0, 0)


def test_nested_groups_and_datasets_read_back() -> None:
    root = GroupNode()
    root.within("layers", "dense", "vars").children["0"] = literal(np.arange(6, dtype="<f4").reshape(2, 3))
    root.within("layers", "dense", "vars").children["1"] = literal(np.float64(0.5))
    root.within("layers", "empty")
    found = []

    opened(root).visititems(lambda name, item: found.append((name, item[()].tolist() if hasattr(item, "shape") else None)))

    assert found == [
        ("layers", None),
        ("layers/dense", None),
        ("layers/dense/vars", None),
        ("layers/dense/vars/0", [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]),
        ("layers/dense/vars/1", 0.5),
        ("layers/empty", None),
    ]


def test_a_scalar_has_no_axes() -> None:
    found = opened(GroupNode({"step": literal(np.array(7, "<i8"))}))["step"]

    assert (found.shape, found.dtype, found[()]) == ((), np.dtype("<i8"), 7)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 5)])
def test_a_dataset_of_no_bytes_reads_back_empty(shape: tuple[int, ...]) -> None:
    found = opened(GroupNode({"x": literal(np.zeros(shape, "<f4"))}))["x"]

    assert (found.shape, found[()].shape, found.id.get_offset()) == (shape, shape, None)


def test_datasets_are_contiguous_and_allocated_and_never_filled() -> None:
    plist = opened(GroupNode({"x": literal(np.ones(3))}))["x"].id.get_create_plist()

    assert plist.get_layout() == h5py.h5d.CONTIGUOUS
    assert plist.get_alloc_time() == h5py.h5d.ALLOC_TIME_EARLY
    assert plist.get_fill_time() == h5py.h5d.FILL_TIME_NEVER


# 8 fill a symbol node, 256 fill a B-tree node of symbol nodes, 8,192 a second level of these.
@pytest.mark.parametrize("count", [1, 8, 9, 16, 17, 256, 257, 8192, 8193])
def test_a_group_lists_and_finds_all_its_entries(count: int) -> None:
    names = [f"layer_{index}" for index in range(count)]
    root = GroupNode({name: DatasetNode(F4, (), np.float32(index).tobytes()) for index, name in enumerate(names)})

    file = opened(root)

    assert list(file) == sorted(names)
    assert [float(file[name][()]) for name in names[:: max(1, count // 50)]] == [*range(0, count, max(1, count // 50))]
    assert "layer_" not in file
    assert f"layer_{count}" not in file


def test_twenty_thousand_datasets_are_encoded_in_no_time() -> None:
    root = GroupNode({f"w{index}": DatasetNode(F4, (4,), f"w{index}") for index in range(20_000)})
    start = time.process_time()

    encoded = encode(root, align=64)

    assert time.process_time() - start < 2  # 0.12 s alone on a machine
    assert len(encoded.offsets) == 20_000


def test_names_are_sorted_by_their_bytes() -> None:
    names = ["é", "z", "日本", "😀", "Z", "\uffff", "..", "a b", "0", "10", "9", "x" * 5000]
    root = GroupNode({name: GroupNode() for name in names})

    file = opened(root)

    assert list(file) == ["..", "0", "10", "9", "Z", "a b", "x" * 5000, "z", "é", "日本", "\uffff", "😀"]
    assert all(isinstance(file[name], h5py.Group) for name in names if name != "..")


@pytest.mark.parametrize("depth", [100, 3000])
def test_groups_nest_without_a_limit(depth: int) -> None:
    root = GroupNode()
    root.within(*["g"] * depth).children["x"] = literal(np.int8(5))

    assert opened(root)["/".join(["g"] * depth)]["x"][()] == 5


def test_within_gives_the_same_group_again() -> None:
    root = GroupNode()

    assert root.within("a", "b") is root.within("a").within("b")
    assert root.within() is root


def test_within_refuses_a_dataset() -> None:
    root = GroupNode({"a": literal(np.int8(1))})

    with pytest.raises(ValueError, match="'a/b' leads through 'a', which is a dataset"):
        root.within("a", "b")


def test_strings_of_any_length_are_data_too() -> None:
    root = GroupNode({"x": DatasetNode(vlen_string(), (2, 2), ("né".encode(), b"", b"c" * 70_000, b"d"))})

    found = opened(root)["x"]

    assert found[()].tolist() == [["né".encode(), b""], [b"c" * 70_000, b"d"]]
    assert h5py.check_string_dtype(found.dtype) == ("utf-8", None)


def test_tensors_lie_where_h5py_finds_them() -> None:
    arrays = {"a": np.arange(5, dtype="<f4"), "b": np.arange(3, dtype="|i1"), "c": np.arange(40_000, dtype="<f8")}
    root = GroupNode({name: tensor(name, array) for name, array in arrays.items()})

    file, encoded = opened(root, arrays), encode(root, align=64)

    assert {name: file[name].id.get_offset() for name in arrays} == encoded.offsets
    assert all(np.array_equal(file[name][()], array) for name, array in arrays.items())


def test_tensors_lie_in_the_order_of_the_tree() -> None:
    root = GroupNode({"z": tensor("1", np.zeros(3))})
    root.within("b", "y").children["w"] = tensor("2", np.zeros(3))
    root.within("b").children["a"] = tensor("3", np.zeros(3))
    root.children["a"] = tensor("4", np.zeros(3))

    assert encode(root, align=64).pieces[1:] == ["1", "2", "3", "4"]


def test_big_tensors_are_aligned_and_small_ones_lie_at_multiples_of_eight() -> None:
    arrays = {"a": np.zeros(3, "u1"), "big": np.zeros(65_536, "u1"), "c": np.zeros(65_535, "u1"), "d": np.zeros(1, "u1")}

    encoded = encode(GroupNode({name: tensor(name, array) for name, array in arrays.items()}), align=4096)

    start = encoded.offsets["a"]
    assert start % 8 == 0
    assert encoded.offsets == {"a": start, "big": 4096, "c": 69_632, "d": 135_168}
    assert encoded.pieces[1:] == ["a", bytes(4096 - start - 3), "big", "c", bytes(1), "d"]


def test_every_alignment_keeps_multiples_of_eight() -> None:
    encoded = encode(GroupNode({"a": tensor("a", np.zeros(10_000))}), align=12)

    assert encoded.offsets["a"] % 24 == 0


def test_a_tensor_of_no_bytes_is_a_piece() -> None:
    arrays = {"a": np.zeros(3, "u1"), "none": np.zeros((0, 4), "<f4"), "b": np.ones(1, "u1")}
    root = GroupNode({name: tensor(name, array) for name, array in arrays.items()})

    assert [piece for piece in encode(root, align=64).pieces if isinstance(piece, str)] == ["a", "none", "b"]
    assert opened(root, arrays)["none"][()].shape == (0, 4)
    assert opened(root, arrays)["b"][()] == 1


def test_the_file_ends_where_it_says(tmp_path: Path) -> None:
    path = written(tmp_path, GroupNode({"x": tensor("x", np.zeros(3, "u1"))}), {"x": np.zeros(3, "u1")})
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(OSError, match="truncated file"):
        h5py.File(path)


def test_the_same_tree_gives_the_same_bytes() -> None:
    def tree() -> GroupNode:
        return GroupNode({"g": GroupNode({"x": literal(np.ones(3))})}, [Attribute("t", "text"), Attribute("n", np.int64(3))])

    assert image(tree()) == image(tree())


_ARRAYS = st.builds(
    lambda dtype, shape: (np.arange(np.prod(shape, dtype=int)) % 2).astype(dtype).reshape(shape),
    st.sampled_from(["?", "i1", "<u2", ">i4", "<f2", "<f4", ">f8", "<c8", "<c16"]),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
)
_NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=4)
_TREES = st.recursive(_ARRAYS, lambda inner: st.dictionaries(_NAMES.filter(lambda name: name != "."), inner, max_size=9))


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(_NAMES.filter(lambda name: name != "."), _TREES, max_size=9))
def test_every_tree_reads_back(tree: dict[str, object]) -> None:
    def node(value: object) -> GroupNode | DatasetNode:
        return literal(value) if isinstance(value, np.ndarray) else GroupNode({name: node(each) for name, each in value.items()})

    def check(group: h5py.Group, value: dict[str, object]) -> None:
        assert [*group] == sorted(value, key=str.encode)
        for name, each in value.items():
            if isinstance(each, dict):
                check(group[name], each)
            else:
                assert (group[name].dtype, group[name].shape) == (each.dtype, each.shape)
                assert group[name][()].tobytes() == each.tobytes()

    check(opened(node(tree)), tree)
