"""Bundles read by their own keys: every golden checkpoint bit for bit, slices of all kinds, and what only some entries have."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import MemoryStore
from tf_bundles import DATA, GOLDEN, expected, opened, plain_dtype, raw, sha256, sliced, unpacked, write, write_arrays

from ckptmgr.backend import Box, Extent, Folder, TensorSpec, crc32c
from ckptmgr.errors import UnsupportedTensorError
from ckptmgr.storage import PosixStore
from ckptmgr.transfer import Want, read
from ckptmgr_tf_bundle.bundle import Bundle, open_bundle
from ckptmgr_tf_bundle.entry import build_entry

PLAIN = [path.stem for path in sorted((GOLDEN / "expected").glob("*.json")) if "tensors" in json.loads(path.read_text())]
ALL = Box.whole


class Source:
    """A bundle as a `TensorSource` whose names are the keys."""

    metadata: Mapping[str, Any] = {}
    aliases: Mapping[str, str] = {}
    blobs: Mapping[str, bytes] = {}

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.specs = bundle.specs

    def extents(self, name: str) -> Sequence[Extent]:
        return self.bundle.extents(name)

    def read(self, name: str, box: Box | None = None, out: np.ndarray | None = None) -> np.ndarray:
        return self.bundle.read(name, box, out)


def golden(name: str) -> tuple[Bundle, Mapping[str, Any]]:
    found = expected(name)
    return opened(GOLDEN, found["prefix"]), found["tensors"]


@pytest.mark.parametrize("name", PLAIN)
def test_a_golden_checkpoint_is_read_bit_for_bit(name: str) -> None:
    bundle, tensors = golden(name)

    assert [*bundle.specs] == sorted(tensors, key=str.encode)
    for key, found in tensors.items():
        array = bundle.read(key)
        assert bundle.specs[key] == TensorSpec(plain_dtype(found["dtype"]), tuple(found["shape"])), key
        assert array.shape == tuple(found["shape"])
        assert sha256(array) == found["sha256"], key


@pytest.mark.parametrize("name", [name for name in PLAIN if (GOLDEN / "expected" / f"{name}.npz").exists()])
def test_a_golden_checkpoints_values_are_those_of_its_maker(name: str) -> None:
    bundle, tensors = golden(name)

    with np.load(GOLDEN / "expected" / f"{name}.npz") as values:
        for key, found in tensors.items():
            array, content = bundle.read(key), values[found["npz"]].tobytes()
            if found["dtype"] == "string":
                assert b"".join(array.ravel()) == content
                assert [len(value) for value in array.ravel()] == values[f"{found['npz']}_len"].tolist()
            else:
                assert raw(array) == content, key


def test_the_tutorials_full_size_checkpoints_are_read_bit_for_bit(tmp_path: Path) -> None:
    folder = unpacked(tmp_path)

    for prefix, tensors in expected("keras_full")["checkpoints"].items():
        bundle = opened(folder, prefix if (folder / f"{prefix}.index").exists() else f"keras_full/{prefix}")
        assert {key: sha256(bundle.read(key)) for key in bundle.specs} == {key: found["sha256"] for key, found in tensors.items()}


def test_an_index_of_several_blocks_is_read() -> None:
    bundle = opened(GOLDEN, "manykeys/many")
    key = hashlib.sha256(b"17").hexdigest()

    assert len(bundle.specs) == 3600
    assert bundle.read(key) == int(key[:7], 16)


@pytest.mark.parametrize("name", PLAIN)
def test_the_engine_reads_what_the_bundle_reads(name: str) -> None:
    bundle, _ = golden(name)

    arrays, _ = read(Source(bundle), [Want(key) for key in bundle.specs])

    for key, array in zip(bundle.specs, arrays, strict=True):
        assert sha256(array) == sha256(bundle.read(key)), key


@pytest.mark.parametrize("name", ["shapes", "multishard", "sliced_one_shard", "sliced_three_shards", "crafted_big_endian"])
def test_slices_are_those_of_numpy_by_either_way(name: str) -> None:
    bundle, _ = golden(name)
    random = np.random.default_rng(0)

    for key, spec in bundle.specs.items():
        start = [int(random.integers(0, size + 1)) for size in spec.shape]
        box = Box(tuple(start), tuple(int(random.integers(a, n + 1)) for a, n in zip(start, spec.shape, strict=True)))
        part = bundle.read(key)[(..., *box.slices)]
        (through_engine,), _ = read(Source(bundle), [Want(key, box)])
        assert sha256(bundle.read(key, box)) == sha256(through_engine) == sha256(part), (key, box)


def test_a_slice_of_a_string_tensor_is_that_of_numpy() -> None:
    bundle = opened(GOLDEN, "strings/strings")

    found = bundle.read("str/matrix", Box((1, 1), (3, 3)))

    assert np.array_equal(found, bundle.read("str/matrix")[1:3, 1:3])


@given(st.data())
def test_a_slice_of_a_partitioned_tensor_is_that_of_numpy(data: st.DataObject) -> None:
    bundle = opened(GOLDEN, "sliced/three_shards")
    shape = (5, 6, 2)
    bounds = [sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in shape]
    box = Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))

    assert np.array_equal(bundle.read("grid", box), bundle.read("grid")[box.slices])


def test_keys_are_in_the_order_of_the_index_without_those_of_slices() -> None:
    bundle = opened(GOLDEN, "sliced/one_shard")

    assert [*bundle.keys] == [*bundle.specs] == ["cols", "emb/rows", "grid", "long", "plain", "whole_as_slice"]


def test_a_checkpoint_in_memory_or_elsewhere_is_read_alike() -> None:
    folder = Folder(MemoryStore())
    for path in (GOLDEN / "multishard").iterdir():
        folder.write(path.name, path.read_bytes())

    tensors = expected("multishard")["tensors"]
    bundle = open_bundle(folder, "ms")

    assert {key: sha256(bundle.read(key)) for key in bundle.specs} == {key: found["sha256"] for key, found in tensors.items()}


def test_an_extent_is_where_the_bytes_lie_with_their_checksum() -> None:
    bundle = opened(GOLDEN, "dtypes/all")
    (extent,) = bundle.extents("dtype/float32")

    found = extent.folder.read_range(extent.file, extent.offset, 48)

    assert (extent.file, extent.box) == ("all.data-00000-of-00001", None)
    assert found == raw(bundle.read("dtype/float32"))
    assert crc32c(found) == extent.crc32c


def test_a_partitioned_tensor_has_an_extent_for_each_slice() -> None:
    bundle = opened(GOLDEN, "sliced/three_shards")

    found = bundle.extents("emb/rows")

    assert [extent.box for extent in found] == [Box((0, 0), (3, 4)), Box((3, 0), (5, 4)), Box((5, 0), (7, 4))]
    assert len({extent.file for extent in found}) == 3


def test_what_needs_a_look_or_has_no_raw_bytes_has_no_extents() -> None:
    bundle = opened(GOLDEN, "dtypes/all")

    without = {key.removeprefix("dtype/") for key in bundle.specs if not bundle.extents(key)}

    assert without == {"bool", "int4", "uint4", "int2", "uint2", "float4_e2m1fn", "string"}


def test_in_an_exact_bundle_only_strings_have_no_extents() -> None:
    bundle = opened(GOLDEN, "dtypes/all", is_exact=True)

    assert [key for key in bundle.specs if not bundle.extents(key)] == ["dtype/string"]


def test_nothing_in_a_big_endian_bundle_has_extents() -> None:
    bundle = opened(GOLDEN, "crafted/big_endian", is_exact=True)

    assert not any(map(bundle.extents, bundle.specs))


def test_a_tensor_in_very_many_slices_has_no_extents_and_is_read(tmp_path: Path) -> None:
    pieces = [(((i, 1),), np.array([i])) for i in range(1100)]
    items, data = sliced("a", "int32", (1100,), pieces)

    bundle = write(tmp_path, items, {DATA: data})

    assert bundle.extents("a") == ()
    assert bundle.read("a").tolist() == [*range(1100)]


def test_only_the_slices_that_are_met_are_read(tmp_path: Path) -> None:
    items, data = sliced("a", "float32", (4, 2), [(((0, 2), (0, None)), np.ones((2, 2))), (((2, 2), (0, 2)), np.zeros((2, 2)))])
    bundle = write(tmp_path, items, {DATA: data[:16]})

    assert bundle.read("a", Box((0, 1), (2, 2))).tolist() == [[1], [1]]


@pytest.mark.parametrize("dtype", ["float16", "uint32", "uint64", "float8_e4m3fn", "bool", "int4", "complex128"])
def test_slices_of_every_dtype_are_joined(tmp_path: Path, dtype: str) -> None:
    items, data = sliced("a", dtype, (4,), [(((2, 2),), np.array([1, 1])), (((0, 2),), np.array([0, 1]))])

    bundle = write(tmp_path, items, {DATA: data})

    assert bundle.read("a").astype(np.complex128).real.tolist() == [0, 1, 1, 1]


def test_strings_are_bytes_in_an_object_array() -> None:
    bundle = opened(GOLDEN, "strings/strings")

    array = bundle.read("str/binary")

    assert array.dtype == object
    assert all(type(value) is bytes for value in array)
    assert bundle.read("str/empty_tensor_2d").shape == (2, 0)


def test_a_byte_that_is_not_0_is_true(tmp_path: Path) -> None:
    data = bytes([0, 1, 2, 128, 255])
    bundle = write(tmp_path, {b"a": build_entry(10, (5,), 0, 0, 5, crc32c(data))}, {DATA: data})

    assert raw(bundle.read("a")) == bytes([0, 1, 1, 1, 1])
    assert raw(bundle.read("a", Box((3,), (4,)))) == b"\x01"


@pytest.mark.parametrize(
    ("number", "name", "values"),
    [
        (29, "int4", [-8, -1, 7, 0]),
        (30, "uint4", [8, 15, 7, 0]),
        (31, "int2", [0, -1, -1, 0]),
        (32, "uint2", [0, 3, 3, 0]),
        (33, "float4_e2m1fn", [-0.0, -6, 6, 0]),
    ],
)
def test_the_high_bits_of_small_numbers_are_not_trusted(tmp_path: Path, number: int, name: str, values: list[float]) -> None:
    data = bytes([0xF8, 0xFF, 0x37, 0xF0])
    bundle = write(tmp_path, {b"a": build_entry(number, (4,), 0, 0, 4, crc32c(data))}, {DATA: data})

    found = bundle.read("a")

    assert found.dtype == getattr(ml_dtypes, name)
    assert found.astype(np.float64).tolist() == values
    assert raw(found) == raw(np.array(values).astype(found.dtype))


def test_a_variant_is_listed_and_refused_and_the_rest_is_read() -> None:
    bundle = opened(GOLDEN, "variant/iter-1")
    key = "it/.ATTRIBUTES/ITERATOR_STATE"

    assert [*bundle.variants] == [key]
    assert key in bundle.keys
    assert key not in bundle.specs
    assert bundle.variants[key].shape == (3,)
    for ask in (bundle.read, bundle.extents):
        with pytest.raises(UnsupportedTensorError, match="only TensorFlow can decode"):
            ask(key)
    assert bundle.read("v/.ATTRIBUTES/VARIABLE_VALUE").shape == (2,)


def test_a_variants_stored_bytes_are_all_of_its_bytes() -> None:
    bundle = opened(GOLDEN, "variant/iter-1")
    key = "it/.ATTRIBUTES/ITERATOR_STATE"

    stored = bundle.stored(key)

    entry = bundle.variants[key]
    data = (GOLDEN / "variant" / DATA.replace("x.", "iter-1.")).read_bytes()
    assert stored == data[entry.offset : entry.offset + entry.nbytes]
    assert len(stored) == entry.nbytes > 100


def test_a_partitioned_tensor_has_no_stored_bytes() -> None:
    with pytest.raises(UnsupportedTensorError, match="'grid' is partitioned"):
        opened(GOLDEN, "sliced/one_shard").stored("grid")


def test_an_unknown_key_is_a_key_error() -> None:
    bundle = opened(GOLDEN, "sliced/one_shard")

    for ask in (bundle.read, bundle.extents, bundle.stored, bundle.specs.__getitem__):
        with pytest.raises(KeyError, match="nothing"):
            ask("nothing")


def test_no_index_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"x\.index"):
        open_bundle(Folder(PosixStore(tmp_path)), "x")


@pytest.mark.parametrize("order", ["<", ">"])
def test_an_array_of_any_memory_is_filled(order: str) -> None:
    bundle = opened(GOLDEN, "sliced/three_shards")
    out = np.full((7, 8), -1, f"{order}f4")[:, ::2]

    assert bundle.read("emb/rows", out=out) is out
    assert np.array_equal(out, bundle.read("emb/rows"))


@pytest.mark.parametrize(("shape", "dtype"), [((7, 5), "f4"), ((7, 4), "f8"), ((7, 4), "i4")])
def test_an_array_of_another_kind_is_refused(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(ValueError, match=r"tensor 'emb/rows' is float32 of shape \(7, 4\)"):
        opened(GOLDEN, "sliced/one_shard").read("emb/rows", out=np.empty(shape, dtype))


@pytest.mark.parametrize("box", [ALL((7, 5)), ALL((7,)), ALL((7, 4, 1))])
def test_a_slice_outside_its_tensor_is_refused(box: Box) -> None:
    with pytest.raises(ValueError, match=r"not inside tensor 'emb/rows' of shape \(7, 4\)"):
        opened(GOLDEN, "sliced/one_shard").read("emb/rows", box)


def test_entries_of_the_same_bytes_are_the_same(tmp_path: Path) -> None:
    one, other = build_entry(4, (2,), 0, 0, 2, 5), build_entry(4, (2,), 0, 1, 2, 5)
    bundle = write(tmp_path, {b"a": one, b"b": one, b"c": other}, {DATA: b"xyz"})

    assert bundle.is_same("a", "b")
    assert not bundle.is_same("a", "c")


def test_partitioned_tensors_are_the_same_if_their_slices_are(tmp_path: Path) -> None:
    items: dict[bytes, bytes] = {}
    for key, last in (("a", 1), ("b", 1), ("c", 2)):
        made, data = sliced(key, "uint8", (2,), [(((0, 1),), np.array([0])), (((1, 1),), np.array([last]))])
        items |= made
    bundle = write(tmp_path, items, {DATA: data})

    assert bundle.is_same("a", "b")
    assert not bundle.is_same("a", "c")


def test_an_array_of_64_dimensions_is_read(tmp_path: Path) -> None:
    array = np.arange(4, dtype=np.int16).reshape((1,) * 31 + (2,) + (1,) * 31 + (2,))

    bundle = write_arrays(tmp_path, {"a": array})

    assert np.array_equal(bundle.read("a"), array)
