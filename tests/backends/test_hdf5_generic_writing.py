"""What h5py finds in a file of ours."""

import itertools
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest

import ckptmgr
from ckptmgr import transfer
from ckptmgr.box import Box
from ckptmgr.errors import UnsupportedTensorError
from ckptmgr.layout import Contents, Layout, Part
from ckptmgr.memory import MemorySource
from ckptmgr.spec import TensorSpec, tensor_spec
from ckptmgr.storage import Folder, PosixStore
from ckptmgr_hdf5 import HDF5Backend, carriage, generic

BACKEND = HDF5Backend()


def saved(folder: Path, state: Any, **more: Any) -> h5py.File:
    ckptmgr.save(folder / "m.h5", state, backend=BACKEND, **more)
    return h5py.File(folder / "m.h5")


def loaded(folder: Path) -> Any:
    return ckptmgr.load(folder / "m.h5", backend=BACKEND)


def laid_out(*parts: Part, **more: Any) -> Layout:
    return BACKEND.layout(Contents((parts,), **more), stem="m", align=64)


def part(name: str, shape: tuple[int, ...] = (2,), dtype: str = "float32") -> Part:
    return Part(name, TensorSpec(dtype, shape))


def objects(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visit(found.append)
    return found


def test_groups_are_the_containers_of_the_state(tmp_path: Path) -> None:
    with saved(tmp_path, {"model": {"w": np.arange(3)}, "layers": [np.zeros(1), {"b": np.ones((2, 2), "f4")}]}) as file:
        assert objects(file) == ["layers", "layers/0", "layers/1", "layers/1/b", "model", "model/w"]
        assert file["model/w"][()].tolist() == [0, 1, 2]
        assert file["layers/1/b"].dtype == np.float32


@pytest.mark.parametrize("dtype", ["?", "i1", "u8", "f2", "f4", "f8", "c8", "c16"])
def test_numbers_are_what_h5py_calls_them(tmp_path: Path, dtype: str) -> None:
    array = np.array([0, 1, 1], dtype)

    with saved(tmp_path, {"w": array}) as file:
        assert file["w"].dtype == array.dtype
        assert np.array_equal(file["w"][()], array)
        assert not file["w"].attrs.keys()


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("bfloat16", "u2"), ("float8_e5m2", "u1"), ("int4", "u1"), ("datetime64[ns]", "i8"), ("timedelta64[s]", "i8")],
)
def test_other_dtypes_are_bits_with_a_name(tmp_path: Path, dtype: str, stored: str) -> None:
    kind = getattr(ml_dtypes, dtype, None) or dtype
    array = np.array([1, 0, 1]).astype(kind)

    with saved(tmp_path, {"w": array}) as file:
        assert file["w"].dtype == stored
        assert file["w"].attrs["ckptmgr_dtype"] == dtype.encode()
        assert file["w"][()].tobytes() == array.tobytes()


def test_packed_elements_are_bytes_with_their_shape() -> None:
    layout = laid_out(part("w", (4, 6), "packed_float4_e2m1fn"))

    dtype, shape, attributes = generic.stored_type(TensorSpec("packed_float4_e2m1fn", (4, 6)))
    assert (dtype.itemsize, shape) == (1, (12,))
    assert attributes[1].value.tolist() == [4, 6]
    assert layout.files[0].nbytes is not None


def test_texts_are_texts(tmp_path: Path) -> None:
    state = {"s": np.array([["a", "né ✓"], ["", "long" * 1000]], object)}

    with saved(tmp_path, state) as file:
        info = h5py.check_string_dtype(file["s"].dtype)
        assert (info.encoding, info.length) == ("utf-8", None)
        assert file["s"].asstr()[()].tolist() == state["s"].tolist()
    assert loaded(tmp_path)["s"].tolist() == state["s"].tolist()


@pytest.mark.parametrize("value", [b"nul\0", b"\xff"])
def test_strings_that_are_no_texts_are_bytes_and_their_ends(tmp_path: Path, value: bytes) -> None:
    state = {"s": np.array([[b"ab", value]], object)}

    with saved(tmp_path, state) as file:
        assert file["s"].attrs["ckptmgr_dtype"] == b"string"
        assert file["s/ends"][()].tolist() == [[2, 2 + len(value)]]
        assert file["s/bytes"][()].tobytes() == b"ab" + value
    assert loaded(tmp_path)["s"].tolist() == [[b"ab", value]]


def test_texts_too_large_to_be_read_at_once_are_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generic, "_TEXTS_NBYTES", 9)

    with saved(tmp_path, {"s": np.array([b"12345", b"67890"], object)}) as file:
        assert [*file["s"]] == ["bytes", "ends"]
    assert loaded(tmp_path)["s"].tolist() == [b"12345", b"67890"]


def test_plain_values_are_attributes_of_their_groups(tmp_path: Path) -> None:
    values = {"i": -3, "f": 0.1, "t": True, "c": 1j, "s": "né", "b": b"raw", "n": np.float16(2)}

    with saved(tmp_path, {"opt": values, "epoch": 7, "w": np.zeros(1)}) as file:
        assert {key: value.item() if hasattr(value, "item") else value for key, value in file["opt"].attrs.items()} == {
            **{"i": -3, "f": 0.1, "t": True, "c": 1j, "s": "né", "b": "raw", "n": 2.0}
        }
        assert file["opt"].attrs["n"].dtype == np.float16
        assert file.attrs["epoch"] == 7
    assert loaded(tmp_path)["opt"] == values


def test_plain_values_that_hdf5_has_no_word_for_come_back_all_the_same(tmp_path: Path) -> None:
    values = {"big": 2**64, "none": None, "nul": "a\0b", "odd": "\ud800", "raw": b"\xff", "ckptmgr_dtype": "string"}

    with saved(tmp_path, {"opt": {**values, "w": np.zeros(1)}}) as file:
        assert not file["opt"].attrs.keys()
    assert {key: value for key, value in loaded(tmp_path)["opt"].items() if key != "w"} == values


def test_plain_values_below_the_place_of_a_tensor_or_without_a_name_are_left_out(tmp_path: Path) -> None:
    scalars = {("w", "x"): 1, ("w", "b", "y"): 2, ("v", "z"): 3, ("\ud800",): 4, (1,): 5, ("1",): 6}
    tensors = {"w": np.zeros(2, "f4")}
    transfer.write(
        Folder(PosixStore(tmp_path)), laid_out(part("w"), scalars=scalars), MemorySource(tensors, {"w": part("w").spec})
    )

    with h5py.File(tmp_path / "m.h5") as file:
        assert objects(file) == ["v", "w"]
        assert {**file["v"].attrs} == {"z": 3}
        assert {**file.attrs} == {"ckptmgr_format": 1, "1": 5}


def test_a_group_has_at_most_a_thousand_plain_values(tmp_path: Path) -> None:
    state = {"steps": {f"n{index}": index for index in range(3000)}, "w": np.zeros(1)}

    with saved(tmp_path, state) as file:
        assert len(file["steps"].attrs) == 1000
    assert loaded(tmp_path)["steps"] == state["steps"]


def test_metadata_is_a_text_that_people_can_read(tmp_path: Path) -> None:
    with saved(tmp_path, {"w": np.zeros(1)}, metadata={"run": 7, "note": "né"}) as file:
        assert file.attrs["ckptmgr_metadata"] == '{"run":7,"note":"n\\u00e9"}'
        assert file.attrs["ckptmgr_format"] == 1


def test_metadata_of_more_than_64_kib_comes_back(tmp_path: Path) -> None:
    metadata = {"config": "x" * 3_000_000}

    saved(tmp_path, {"w": np.zeros(1)}, metadata=metadata).close()

    with ckptmgr.open_checkpoint(tmp_path / "m.h5", backend=BACKEND) as checkpoint:
        assert dict(checkpoint.metadata) == metadata


def test_metadata_too_large_for_one_attribute_goes_on_in_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carriage, "_PIECE", 10)

    with saved(tmp_path, {"w": np.zeros(1)}, metadata={"config": "x" * 15}) as file:
        names = ["ckptmgr_metadata", "ckptmgr_metadata.1", "ckptmgr_metadata.2"]
        assert [len(file.attrs[name]) for name in names] == [10, 10, 8]
    with ckptmgr.open_checkpoint(tmp_path / "m.h5", backend=BACKEND) as checkpoint:
        assert dict(checkpoint.metadata) == {"config": "x" * 15}


def test_keys_that_are_no_names_are_escaped(tmp_path: Path) -> None:
    state = {"a/b": {"..": np.zeros(1), "": np.ones(1)}, "5%": [np.full(1, 2.0)]}

    with saved(tmp_path, state) as file:
        assert objects(file) == ["5%25", "5%25/0", "a%2Fb", "a%2Fb/%", "a%2Fb/%2E%2E"]
    assert loaded(tmp_path)["a/b"][".."].tolist() == [0.0]


def test_int_and_text_keys_that_look_alike_stay_apart(tmp_path: Path) -> None:
    saved(tmp_path, {1: np.array([1]), "1": np.array([2])}).close()

    assert {type(key): value.tolist() for key, value in loaded(tmp_path).items()} == {int: [1], str: [2]}


def test_a_name_below_another_tensor_is_one_key_beside_it(tmp_path: Path) -> None:
    tensors = {"a": np.array([1]), "a/b/c": np.array([2]), "d/a": np.array([3])}
    specs = {name: tensor_spec(array.dtype, array.shape) for name, array in tensors.items()}
    layout = laid_out(*(Part(name, spec) for name, spec in specs.items()))
    transfer.write(Folder(PosixStore(tmp_path)), layout, MemorySource(tensors, specs))

    with h5py.File(tmp_path / "m.h5") as file:
        assert objects(file) == ["a", "a%2Fb%2Fc", "d", "d/a"]
    with BACKEND.open(Folder(PosixStore(tmp_path)), "m.h5") as source:
        assert {name: source.read(name).tolist() for name in source.specs} == {"a": [1], "a/b/c": [2], "d/a": [3]}


def test_names_that_meet_even_so_are_one_key_each() -> None:
    paths = {"x": ("a",), "y": ("a", "b/c"), "z": ("a", "b", "c")}

    layout = laid_out(part("x"), part("y"), part("z"), paths=paths)

    assert [piece.name for piece in layout.files[0].pieces if isinstance(piece, Part)] == ["x", "y", "z"]


def test_tied_tensors_are_one_dataset_with_several_names(tmp_path: Path) -> None:
    shared = np.arange(4.0)

    with saved(tmp_path, {"head": {"w": shared}, "embed": [shared], "copy": shared, "v": np.zeros(1)}) as file:
        assert file["head/w"] == file["embed/0"] == file["copy"] != file["v"]
        assert h5py.h5o.get_info(file["copy"].id).rc == 3
    state = loaded(tmp_path)
    assert state["head"]["w"] is state["embed"][0] is state["copy"]


@pytest.mark.parametrize("values", [["a", "é"], [b"a\0"]], ids=["texts", "bytes"])
def test_tied_strings_are_one_tensor(tmp_path: Path, values: list[Any]) -> None:
    shared = np.array(values, object)

    saved(tmp_path, {"one": shared, "two": [shared]}).close()

    state = loaded(tmp_path)
    assert state["two"][0] is state["one"]
    assert state["one"].tolist() == values


def test_a_tied_name_that_is_deleted_leaves_the_others(tmp_path: Path) -> None:
    shared = np.arange(4.0)
    saved(tmp_path, {"w": shared, "copy": shared}).close()

    with h5py.File(tmp_path / "m.h5", "r+") as file:
        del file["copy"]
        assert h5py.h5o.get_info(file["w"].id).rc == 1

    assert loaded(tmp_path)["w"].tolist() == [0, 1, 2, 3]


def test_blobs_are_bytes_in_a_group_of_ours(tmp_path: Path) -> None:
    blobs = {"assets/vocabulary.txt": b"a\nb", "empty": b""}
    layout = laid_out(blobs=blobs)
    transfer.write(Folder(PosixStore(tmp_path)), layout, MemorySource({}, {}))

    with h5py.File(tmp_path / "m.h5") as file:
        assert file["%blobs/assets%2Fvocabulary.txt"][()].tobytes() == b"a\nb"
    with BACKEND.open(Folder(PosixStore(tmp_path)), "m.h5") as source:
        assert dict(source.blobs) == blobs
        assert not source.specs


def test_large_tensors_start_where_the_engine_wants_them(tmp_path: Path) -> None:
    with saved(tmp_path, {"b": np.zeros(3, np.int8), "w": np.zeros(1 << 15), "v": np.zeros(1 << 15)}) as file:
        assert [file[name].id.get_offset() % 4096 for name in ("w", "v")] == [0, 0]
        assert file["b"].id.get_offset() % 8 == 0


def test_data_lies_in_the_order_of_the_state(tmp_path: Path) -> None:
    state = {"z": np.zeros(2), "a": {"y": np.zeros(2), "b": np.zeros(2)}, "c": np.zeros(2)}

    with saved(tmp_path, state) as file:
        offsets = [file[name].id.get_offset() for name in ("z", "a/y", "a/b", "c")]
    assert all(first < second for first, second in itertools.pairwise(offsets))
    assert [*loaded(tmp_path)] == ["z", "a", "c"]


@pytest.mark.parametrize(
    ("name", "problem"), [("\ud800", "no surrogates"), ("/".join("x" * 129), "nested deeper than 128 levels")]
)
def test_names_that_no_file_can_hold_are_refused(name: str, problem: str) -> None:
    with pytest.raises(UnsupportedTensorError, match=problem) as refusal:
        laid_out(part(name))

    assert refusal.value.tensor == name


def test_more_than_32_axes_are_refused() -> None:
    laid_out(part("w", (1,) * 32))

    with pytest.raises(UnsupportedTensorError, match="at most 32 axes, and tensor 'w' 33"):
        laid_out(part("w", (1,) * 33))


def test_slices_are_refused_and_whole_boxes_are_not() -> None:
    whole = part("w", (4,))

    laid_out(whole._replace(box=Box((0,), (4,))))
    with pytest.raises(UnsupportedTensorError, match=r"not the slice \(0,\) to \(2,\) of 'w'"):
        laid_out(whole._replace(box=Box((0,), (2,))))


def test_a_tensor_given_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="'w' is given twice"):
        laid_out(part("w"), part("w"))


def test_metadata_that_is_no_json_is_an_error() -> None:
    with pytest.raises(ValueError, match="the metadata is no JSON"):
        laid_out(part("w"), metadata={"x": float("nan")})


def test_a_blob_whose_name_has_a_surrogate_is_refused() -> None:
    with pytest.raises(UnsupportedTensorError, match="cannot hold the blob"):
        laid_out(blobs={"\ud800": b""})
