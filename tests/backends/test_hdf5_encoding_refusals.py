"""What HDF5 cannot hold is told before a byte is written, with the object it is about."""

import numpy as np
import pytest
from hdf5_encoded import literal, opened, tensor

from ckptmgr_hdf5.datatypes import file_type, vlen_string
from ckptmgr_hdf5.encoding import Attribute, DatasetNode, GroupNode, encode

F4 = file_type(np.dtype("<f4"))


@pytest.mark.parametrize("name", ["", ".", "a/b", "/", "a\0b", "\ud800"])
def test_a_name_that_cannot_be_reached_is_refused(name: str) -> None:
    root = GroupNode()
    root.within("up").children[name] = GroupNode()

    with pytest.raises(ValueError, match=r"^group '/up': "):
        encode(root, align=64)


@pytest.mark.parametrize("name", ["", "a\0b", "\udfff"])
def test_an_attribute_without_a_proper_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^attribute .* of '/': .* is no name in HDF5"):
        encode(GroupNode(attributes=[Attribute(name, "x")]), align=64)


def test_two_attributes_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^'/' has two attributes 'a'$"):
        encode(GroupNode(attributes=[Attribute("a", "x"), Attribute("a", "y")]), align=64)


@pytest.mark.parametrize("value", ["a\0b", b"\0"])
def test_an_attribute_that_hdf5_would_cut_is_refused(value: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"^attribute 'a' of '/g': a string of variable length has a NUL"):
        encode(GroupNode({"g": GroupNode(attributes=[Attribute("a", value)])}), align=64)


@pytest.mark.parametrize("value", ["\ud800", np.array(["\ud800"])])
def test_text_that_is_no_unicode_is_refused(value: str | np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^attribute 'a' of '/': .*surrogates"):
        encode(GroupNode(attributes=[Attribute("a", value)]), align=64)


def test_an_array_of_objects_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^attribute 'a' of '/': HDF5 has no plain type for dtype object$"):
        encode(GroupNode(attributes=[Attribute("a", np.array(["x"], object))]), align=64)


def test_an_attribute_of_too_many_axes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^attribute 'a' of '/': it has 33 axes"):
        encode(GroupNode(attributes=[Attribute("a", np.zeros((1,) * 33))]), align=64)


def test_an_attribute_that_fits_in_no_header_is_refused() -> None:
    attributes = [Attribute("names", np.array([b"n" * 100] * 656))]

    with pytest.raises(ValueError, match=r"^attribute 'names' of '/g': it takes 65648 bytes .* at most 65528; split it"):
        encode(GroupNode({"g": GroupNode(attributes=attributes)}), align=64)


def test_more_attributes_than_a_header_can_count_are_refused() -> None:
    attributes = [Attribute(f"a{index}", np.int8(0)) for index in range(65_532)]  # a dataset has four other messages

    with pytest.raises(ValueError, match=r"^'/x' has 65532 attributes of "):
        encode(GroupNode({"x": literal(np.int8(0), *attributes)}), align=64)
    assert len(opened(GroupNode({"x": literal(np.int8(0), *attributes[1:])}))["x"].attrs) == 65_531


@pytest.mark.parametrize("shape", [(1,) * 33, (2, -1)])
def test_a_shape_that_hdf5_has_not_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^dataset '/x' cannot have the shape "):
        encode(GroupNode({"x": DatasetNode(F4, shape, b"1234")}), align=64)


@pytest.mark.parametrize("nbytes", [0, 7, 9])
def test_data_that_do_not_fit_the_shape_are_refused(nbytes: int) -> None:
    with pytest.raises(ValueError, match=rf"^dataset '/x' of shape \(2,\) takes 8 bytes, not {nbytes}$"):
        encode(GroupNode({"x": DatasetNode(F4, (2,), bytes(nbytes))}), align=64)


def test_too_few_strings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^dataset '/x' of shape \(2,\) takes 32 bytes, not 16$"):
        encode(GroupNode({"x": DatasetNode(vlen_string(), (2,), (b"a",))}), align=64)


@pytest.mark.parametrize(("dtype", "data"), [(F4, (b"1234",)), (vlen_string(), bytes(16)), (vlen_string(), "tensor")])
def test_references_to_strings_are_never_taken_as_bytes(dtype: object, data: object) -> None:
    with pytest.raises(ValueError, match=r"^dataset '/x': the data of variable-length strings, and only theirs, are a tuple"):
        encode(GroupNode({"x": DatasetNode(dtype, (1,), data)}), align=64)


def test_a_string_that_hdf5_would_cut_is_refused_as_data() -> None:
    with pytest.raises(ValueError, match=r"^dataset '/x': a string of variable length has a NUL"):
        encode(GroupNode({"x": DatasetNode(vlen_string(), (2,), (b"a", b"a\0"))}), align=64)


def test_a_tensor_cannot_lie_in_two_places() -> None:
    root = GroupNode({"a": tensor("w", np.zeros(2)), "b": GroupNode({"c": tensor("w", np.zeros(2))})})

    with pytest.raises(ValueError, match=r"^tensor 'w' is in the tree twice, the second time at '/b/c'$"):
        encode(root, align=64)


def test_a_group_below_itself_is_refused() -> None:
    root = GroupNode()
    root.within("a").children["b"] = root

    with pytest.raises(ValueError, match=r"^the group at '/a/b' is in the tree twice$"):
        encode(root, align=64)


@pytest.mark.parametrize("align", [0, -8])
def test_an_alignment_that_is_none_is_refused(align: int) -> None:
    with pytest.raises(ValueError, match="align must be a positive number of bytes"):
        encode(GroupNode(), align=align)
