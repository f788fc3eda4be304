"""Groups, links and the places of data in HDF5 files that h5py wrote, read without h5py."""

from typing import Any

import h5py
import numpy as np
import pytest
from bounds import cheap
from hdf5_images import ORIGIN, one, parsed, stored, written

from ckptmgr.errors import CorruptCheckpointError, UnsafeCheckpointError
from ckptmgr_hdf5.parsing import Dataset, Group, Reader, Tree, Unknown, parse


def test_a_scalar_has_no_dimensions() -> None:
    found, values = stored(np.float64(2.5))

    assert (found.shape, found.nbytes, values[()]) == ((), 8, 2.5)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_an_array_without_elements_has_no_place(libver: str) -> None:
    found = one(lambda file: file.create_dataset("x", data=np.zeros((0, 3), "f4")), libver=libver)

    assert (found.shape, found.nbytes, found.offset, found.storage) == ((0, 3), 0, None, "none")


def test_a_null_dataspace_has_no_shape() -> None:
    found = one(lambda file: file.create_dataset("x", data=h5py.Empty("f4")))

    assert (found.shape, found.nbytes, found.dtype) == (None, 0, np.dtype("<f4"))


def test_a_dataset_that_was_never_written_has_no_place() -> None:
    found = one(lambda file: file.create_dataset("x", (4,), "f4"))

    assert (found.shape, found.nbytes, found.offset, found.storage) == ((4,), 16, None, "none")


def test_texts_that_were_never_written_are_an_error() -> None:
    tree = parsed(written(lambda file: file.create_dataset("x", (4,), "S3")))
    found = tree.find("x")
    assert isinstance(found, Dataset)

    with pytest.raises(CorruptCheckpointError, match="'/x': it was never written"):
        tree.strings(found)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_a_compact_dataset_lies_in_its_header(libver: str) -> None:
    def fill(file: h5py.File) -> None:
        options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        options.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((3,))
        made = h5py.h5d.create(file.id, b"x", h5py.h5t.STD_I32LE, space, options)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array([7, 8, 9], "<i4"))

    data = written(fill, libver=libver)
    found = parsed(data).find("x")

    assert isinstance(found, Dataset)
    assert found.offset is not None
    assert found.storage == "compact"
    assert np.frombuffer(data, "<i4", 3, found.offset).tolist() == [7, 8, 9]


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("options", [{"chunks": (2,)}, {"compression": "gzip"}, {"fletcher32": True}, {"maxshape": (None,)}])
def test_a_chunked_dataset_is_told_and_not_read(options: dict[str, Any], libver: str) -> None:
    found = one(lambda file: file.create_dataset("x", data=np.arange(4), **options), libver=libver)

    assert (found.storage, found.offset, found.shape, found.nbytes) == ("chunked", None, (4,), 32)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_places_count_from_the_start_of_the_file_behind_a_user_block(libver: str) -> None:
    found, values = stored(np.arange(5), userblock_size=1024, libver=libver)

    assert found.offset is not None
    assert found.offset > 1024
    assert values.tolist() == [0, 1, 2, 3, 4]


def test_places_in_a_member_of_an_archive_count_from_the_start_of_the_archive() -> None:
    data = written(lambda file: file.create_dataset("x", data=np.arange(5)))
    archive = b"P" * 77 + data + b"K" * 10

    tree = parse(Reader(lambda offset, count: archive[offset : offset + count], len(data), start=77), ORIGIN)
    found = tree.find("x")

    assert isinstance(found, Dataset)
    assert found.offset is not None
    assert np.frombuffer(archive, "<i8", 5, found.offset).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("libver", ["earliest", "v108", "v110", "latest"])
def test_groups_in_groups_are_found_in_the_order_of_their_names(libver: str) -> None:
    def fill(file: h5py.File) -> None:
        for name in ("b/10", "b/2", "a/x/y", "ä"):
            file[name] = 1

    bounds = libver if libver in ("earliest", "latest") else (libver, libver)
    tree = parsed(written(fill, libver=bounds))

    assert [node.path for node in tree.walk()] == ["/", "/a", "/a/x", "/a/x/y", "/b", "/b/10", "/b/2", "/ä"]


def test_a_group_with_more_names_than_one_node_of_a_b_tree() -> None:
    names = [f"{number:04d}" for number in range(1500)]

    tree = parsed(written(lambda file: [file.create_group(name) for name in names]))

    assert [*tree.root.children] == names


def test_objects_are_found_by_path() -> None:
    tree = parsed(written(lambda file: file.create_dataset("a/b", data=1)))

    assert tree.find("") is tree.find("/") is tree.root
    assert [getattr(tree.find(path), "path", None) for path in ("a", "/a/b", "a/c")] == ["/a", "/a/b", None]
    assert tree.find("a/b/c") is tree.find("a//b") is None


def test_two_dots_are_a_name_like_any_other() -> None:
    tree = parsed(written(lambda file: file.create_group("..").create_group("x")))

    assert [node.path for node in tree.walk()] == ["/", "/..", "/../x"]


def test_an_object_with_two_names_is_found_under_both() -> None:
    def fill(file: h5py.File) -> None:
        file["a/x"] = [1]
        file["b"] = file["a"]

    tree = parsed(written(fill))
    first, second = tree.find("a/x"), tree.find("b/x")

    assert isinstance(first, Dataset)
    assert isinstance(second, Dataset)
    assert (first.offset, first.path, second.path) == (second.offset, "/a/x", "/b/x")


def test_a_named_type_is_no_object_of_the_tree() -> None:
    def fill(file: h5py.File) -> None:
        file["type"] = np.dtype("f4")
        file["x"] = [1]

    assert [node.path for node in parsed(written(fill)).walk()] == ["/", "/x"]


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_a_dataset_of_a_named_type_is_left_to_others(libver: str) -> None:
    def fill(file: h5py.File) -> None:
        file["type"] = np.dtype("f4")
        file.create_dataset("x", (2,), dtype=file["type"])

    with pytest.raises(Unknown, match="'/x': a shared message of type 3"):
        parsed(written(fill, libver=libver))


@pytest.mark.parametrize("track_order", [False, True])
def test_links_in_a_fractal_heap_are_left_to_others(track_order: bool) -> None:
    def fill(file: h5py.File) -> None:
        group = file.create_group("g", track_order=track_order)
        for number in range(20):
            group.create_group(str(number))

    with pytest.raises(Unknown, match="'/g': links in a fractal heap"):
        parsed(written(fill, libver="latest"))


def test_attributes_in_a_fractal_heap_are_left_to_others() -> None:
    def fill(file: h5py.File) -> None:
        group = file.create_group("g")
        for number in range(20):
            group.attrs[str(number)] = number

    with pytest.raises(Unknown, match="'/g': attributes in a fractal heap"):
        parsed(written(fill, libver="latest"))


@pytest.mark.parametrize("track_order", [False, True])
def test_a_few_links_and_attributes_in_creation_order_are_read(track_order: bool) -> None:
    def fill(file: h5py.File) -> None:
        group = file.create_group("g", track_order=track_order)
        for name in "ba":
            group.create_group(name)
            group.attrs[name] = name

    found = parsed(written(fill, libver="latest")).find("g")

    assert isinstance(found, Group)
    assert [*found.children] == ["a", "b"]
    assert dict(found.attributes) == {"a": "a", "b": "b"}


def test_file_space_in_pages_is_left_to_others() -> None:
    with pytest.raises(Unknown, match="extension"):
        parsed(written(lambda file: file.create_group("g"), libver="latest", fs_strategy="page"))


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("link", [h5py.SoftLink("/x"), h5py.ExternalLink("other.h5", "/x")])
def test_soft_and_external_links_are_refused(link: object, libver: str) -> None:
    def fill(file: h5py.File) -> None:
        file["x"] = [1]
        file["g/link"] = link

    with pytest.raises(UnsafeCheckpointError, match=r"'/g.*only hard links are followed"):
        parsed(written(fill, libver=libver))


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_data_in_other_files_is_refused(libver: str) -> None:
    with pytest.raises(UnsafeCheckpointError, match="'/x': its data is in another file"):
        one(lambda file: file.create_dataset("x", (4,), "u1", external=[("/etc/passwd", 0, 4)]), libver=libver)


def test_virtual_datasets_are_refused() -> None:
    def fill(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
        file.create_virtual_dataset("x", layout)

    with pytest.raises(UnsafeCheckpointError, match="'/x': it is a virtual dataset"):
        parsed(written(fill))


def test_twenty_thousand_datasets_are_parsed_in_bounded_memory() -> None:
    def fill(file: h5py.File) -> None:
        for layer in range(200):
            group = file.create_group(f"layers/dense_{layer}/vars")
            for number in range(100):
                h5py.h5d.create(group.id, b"%d" % number, h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((4,)))

    data = written(fill)
    with cheap():
        tree: Tree = parsed(data)

    assert sum(isinstance(node, Dataset) for node in tree.walk()) == 20_000
