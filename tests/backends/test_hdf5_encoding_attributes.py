"""Attributes as h5py reads them: types, tags, and how much of them there can be."""

import h5py
import numpy as np
import pytest
from hdf5_encoded import literal, opened

from ckptmgr_hdf5.encoding import Attribute, GroupNode, encode


def attributes(*values: tuple[str, object]) -> h5py.AttributeManager:
    return opened(GroupNode(attributes=[Attribute(name, value) for name, value in values])).attrs


def string_type(attrs: h5py.AttributeManager, name: str) -> tuple[str, int | None]:
    encoding, nbytes = h5py.check_string_dtype(attrs.get_id(name).dtype)
    return encoding, nbytes


@pytest.mark.parametrize("text", ["3.15.1", "né 日本 😀", "", "x" * 3_000_000])
def test_text_is_a_variable_length_utf8_scalar(text: str) -> None:
    attrs = attributes(("t", text))

    assert attrs["t"] == text
    assert string_type(attrs, "t") == ("utf-8", None)
    assert attrs.get_id("t").shape == ()


@pytest.mark.parametrize("raw", [b"tensorflow", b"", "né".encode()])
def test_bytes_are_a_variable_length_scalar_tagged_as_ascii(raw: bytes) -> None:
    attrs = attributes(("b", raw))

    assert attrs["b"].encode() == raw
    assert string_type(attrs, "b") == ("ascii", None)


def test_an_array_of_bytes_is_fixed_length_strings() -> None:
    attrs = attributes(("names", np.array([b"dense", b"", b"conv2d"])))

    assert attrs["names"].tolist() == [b"dense", b"", b"conv2d"]
    assert attrs["names"].dtype == np.dtype("S6")
    assert string_type(attrs, "names") == ("ascii", 6)


def test_a_fixed_length_string_keeps_a_nul_within_it() -> None:
    assert attributes(("a", np.array([b"a\0b", b"\0c"])))["a"].tolist() == [b"a\0b", b"\0c"]


def test_an_array_of_text_is_fixed_length_utf8() -> None:
    attrs = attributes(("names", np.array(["né", "日本", ""])))

    assert [name.decode() for name in attrs["names"]] == ["né", "日本", ""]
    assert string_type(attrs, "names") == ("utf-8", 6)


@pytest.mark.parametrize("value", [np.array(b"scalar"), np.bytes_(b"scalar"), np.array("scalar"), np.str_("scalar")])
def test_a_numpy_scalar_of_text_is_one_fixed_length_string(value: np.ndarray | np.generic) -> None:
    attrs = attributes(("a", value))

    assert attrs["a"] == b"scalar"
    assert attrs.get_id("a").shape == ()
    assert string_type(attrs, "a")[1] == 6


@pytest.mark.parametrize("value", [np.array(b""), np.array(""), np.array(["", ""])])
def test_an_empty_fixed_length_string_takes_one_byte(value: np.ndarray) -> None:
    attrs = attributes(("a", value))

    assert np.asarray(attrs["a"]).tolist() == np.asarray(value).astype("S1").tolist()
    assert string_type(attrs, "a")[1] == 1


def test_an_empty_list_is_what_h5py_makes_of_it() -> None:
    attrs = attributes(("weight_names", np.zeros(0)))

    assert attrs["weight_names"].shape == (0,)
    assert attrs["weight_names"].dtype == np.dtype("<f8")


@pytest.mark.parametrize("dtype", ["S3", "U3", "<i4", "?"])
def test_an_empty_array_of_any_type_reads_back(dtype: str) -> None:
    assert attributes(("a", np.zeros((0, 2), dtype)))["a"].shape == (0, 2)


@pytest.mark.parametrize("value", [np.int64(-3), np.uint8(255), np.float32(0.1), np.bool_(True), np.complex64(1 - 2j)])
def test_a_number_is_a_scalar_of_its_type(value: np.generic) -> None:
    found = attributes(("n", value))["n"]

    assert (found, found.dtype, found.shape) == (value, value.dtype, ())


@pytest.mark.parametrize(
    "value",
    [
        np.array([1, -2, 3], ">i2"),
        np.array([[0.5, 1.5], [2.5, 3.5]], "<f4"),
        np.array([True, False]),
        np.array([[1, 2], [3, 4]], "<i4").T,
        np.arange(10, dtype="<f8")[::-3],
    ],
)
def test_an_array_of_numbers_reads_back(value: np.ndarray) -> None:
    found = attributes(("n", value))["n"]

    assert found.tolist() == value.tolist()
    assert found.dtype == value.dtype


def test_datasets_have_attributes_too() -> None:
    found = opened(GroupNode({"x": literal(np.ones(2), Attribute("dtype", "bfloat16"), Attribute("n", np.int8(1)))}))["x"]

    assert dict(found.attrs) == {"dtype": "bfloat16", "n": 1}
    assert found[()].tolist() == [1.0, 1.0]


def test_names_of_attributes_are_any_utf8() -> None:
    names = ["é", "日本", "a/b", ".", " ", "n" * 7, "n" * 8, "n" * 9, "n" * 300]

    assert dict(attributes(*[(name, np.int8(1)) for name in names])) == dict.fromkeys(names, 1)


@pytest.mark.parametrize("count", [7, 8, 9, 3000])
def test_one_object_has_many_attributes(count: int) -> None:
    found = attributes(*[(f"a{index}", f"text {index}") for index in range(count)])

    assert len(found) == count
    assert [found[f"a{index}"] for index in (0, 5, count - 1)] == ["text 0", "text 5", f"text {count - 1}"]


def test_an_attribute_fills_its_message_to_the_last_byte() -> None:
    # 8 bytes each for head, name, datatype; 24 for the axis.
    fits, larger = np.array([b"x" * 65_480]), np.array([b"x" * 65_481])

    assert attributes(("a", fits))["a"].tolist() == [b"x" * 65_480]
    with pytest.raises(ValueError, match="it takes 65529 bytes in the header of its object, where HDF5 holds at most 65528"):
        encode(GroupNode(attributes=[Attribute("a", larger)]), align=64)


def test_keras_largest_array_of_names_fits() -> None:
    names = np.array([f"{index:063d}".encode() for index in range(1024)])  # 64,512 bytes: there Keras splits

    assert attributes(("layer_names", names))["layer_names"].tolist() == names.tolist()


def test_many_strings_lie_in_many_collections() -> None:
    texts = [f"{index:05d}" * 40 for index in range(2000)]

    found = attributes(*[(f"a{index}", text) for index, text in enumerate(texts)])

    assert [found[f"a{index}"] for index in range(2000)] == texts


def test_many_long_strings_read_back() -> None:
    found = attributes(("a", "a" * 1_000_000), ("b", "b" * 65_536), ("c", "c" * 1_000_000), ("d", "d"))

    assert [(name, set(found[name]), len(found[name])) for name in found] == [
        ("a", {"a"}, 1_000_000),
        ("b", {"b"}, 65_536),
        ("c", {"c"}, 1_000_000),
        ("d", {"d"}, 1),
    ]


# A collection is 4,096 bytes with a header of 16, and so is that of the string: 4,064 leave no byte, 4,048 leave 16.
@pytest.mark.parametrize("nbytes", [4040, 4041, 4048, 4049, 4056, 4057, 4064, 4065])
def test_a_collection_may_be_full_or_nearly_so(nbytes: int) -> None:
    root = GroupNode(attributes=[Attribute("a", "x" * nbytes)])
    root.within("g").attributes = [Attribute("b", "y")]

    file = opened(root)

    assert file.attrs["a"] == "x" * nbytes
    assert file["g"].attrs["b"] == "y"
