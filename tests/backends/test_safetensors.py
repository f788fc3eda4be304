"""What the safetensors backend writes, byte for byte, and how it opens what is there."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmgr.backend import Box, Contents, Folder, Layout, PackedArray, Part, TensorSpec
from ckptmgr.errors import CorruptCheckpointError, UnsupportedTensorError
from ckptmgr.storage import PosixStore
from ckptmgr_safetensors import SafetensorsBackend
from ckptmgr_safetensors.header import DTYPES

GOLDEN = Path(__file__).parents[1] / "golden" / "safetensors"
EXPECTED: Mapping[str, Any] = json.loads((GOLDEN / "expected.json").read_text())["files"]

backend = SafetensorsBackend()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(PosixStore(tmp_path))


def contents(*files: Mapping[str, np.ndarray], **more: Any) -> Contents:
    parts = [tuple(Part(name, TensorSpec(array.dtype.name, array.shape)) for name, array in file.items()) for file in files]
    return Contents(tuple(parts), **more)


def layout(*files: Mapping[str, np.ndarray], align: int = 8, **more: Any) -> Layout:
    return backend.layout(contents(*files, **more), stem="model", align=align)


def assembled(plan: Layout, arrays: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    pieces = {
        file.name: [piece if isinstance(piece, bytes) else arrays[piece.name].tobytes() for piece in file.pieces]
        for file in plan.files
    }
    return {name: b"".join(held) for name, held in pieces.items()}


def put(folder: Folder, *files: Mapping[str, np.ndarray], **more: Any) -> Layout:
    plan = layout(*files, **more)
    for name, data in assembled(plan, {name: array for file in files for name, array in file.items()}).items():
        folder.write(name, data)
    return plan


def header_of(plan: Layout, file: int = 0) -> dict[str, Any]:
    return json.loads(plan.files[file].pieces[0][8:])


class TestGoldenFiles:
    @pytest.mark.parametrize("file", EXPECTED)
    def test_every_tensor_is_where_the_reference_library_put_it(self, file: str) -> None:
        place = (GOLDEN / file).parent
        expected = EXPECTED[file]

        source = backend.open(Folder(PosixStore(place)), (GOLDEN / file).name)

        assert list(source.specs) == sorted(expected["order"], key=lambda name: expected["tensors"][name]["offsets"])
        assert source.metadata == (expected["metadata"] or {})
        for name, tensor in expected["tensors"].items():
            (extent,) = source.extents(name)
            spec = source.specs[name]
            assert (spec.dtype, list(spec.shape)) == (DTYPES[tensor["dtype"]], tensor["shape"])
            assert extent.offset == 8 + expected["header_bytes"] + tensor["offsets"][0]
            assert hashlib.sha256(source.read(name).tobytes()).hexdigest().startswith(tensor["sha256_32"])

    @pytest.mark.parametrize("path", ["", "model.safetensors.index.json"])
    def test_a_sharded_checkpoint_is_one_source(self, path: str) -> None:
        source = backend.open(Folder(PosixStore(GOLDEN / "hf_sharded")), path)

        assert list(source.specs) == ["model.embed.weight", "model.l0.w", "model.l1.w", "model.norm", "lm_head.weight"]
        assert source.metadata == {"format": "pt", "total_parameters": 928}
        assert source.extents("model.norm")[0].file == "model-00002-of-00003.safetensors"

    def test_a_sharded_checkpoint_opens_by_the_name_of_its_folder(self) -> None:
        assert len(backend.open(Folder(PosixStore(GOLDEN)), "hf_sharded").specs) == 5

    def test_one_file_of_a_set_opens_alone(self) -> None:
        source = backend.open(Folder(PosixStore(GOLDEN / "hf_sharded")), "model-00001-of-00003.safetensors")

        assert list(source.specs) == ["model.embed.weight", "model.l0.w"]

    def test_packed_tensors_are_raw_bytes_with_their_spec(self) -> None:
        packed = backend.open(Folder(PosixStore(GOLDEN)), "subbyte.safetensors").read("f6a")

        assert isinstance(packed, PackedArray)
        assert packed.spec == TensorSpec("packed_float6_e2m3fn", (4,))
        assert packed.tolist() == [5, 6, 7]


class TestOneFile:
    def test_is_its_header_and_the_tensors_by_item_size(self) -> None:
        arrays = {"a": np.array([1, 2], np.uint8), "b/c": np.array(1.5, np.float32), "d": np.array([7], np.int8)}

        files = assembled(layout(arrays, metadata={"z": "1", "format": "np"}), arrays)

        header = (
            b'{"__metadata__":{"format":"np","z":"1"},'
            b'"b.c":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'
            b'"a":{"dtype":"U8","shape":[2],"data_offsets":[4,6]},'
            b'"d":{"dtype":"I8","shape":[1],"data_offsets":[6,7]}}'
        )
        header += b" " * (-len(header) % 8)
        assert files == {"model.safetensors": len(header).to_bytes(8, "little") + header + b"\x00\x00\xc0\x3f\x01\x02\x07"}

    def test_without_tensors_is_an_empty_object(self) -> None:
        assert assembled(layout({}), {}) == {"model.safetensors": b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "}
        assert assembled(layout(), {}) == {"model.safetensors": b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "}

    @pytest.mark.parametrize("align", [1, 8, 12, 64, 4096])
    def test_data_starts_at_the_alignment(self, align: int) -> None:
        start = len(layout({"w": np.zeros(3)}, align=align).files[0].pieces[0])

        assert start % align == 0
        assert start % 8 == 0

    def test_a_part_that_spells_out_the_whole_tensor_is_whole(self) -> None:
        part = Part("w", TensorSpec("int8", (2, 3)), Box((0, 0), (2, 3)))

        plan = backend.layout(Contents(((part,),)), stem="model", align=8)

        assert plan.files[0].pieces[1:] == (part,)

    @pytest.mark.parametrize("count", [0, 1, 511, 512, 513, 1024, 1500])
    def test_a_header_of_many_tensors_is_the_json_of_each(self, count: int) -> None:
        names = [f'block."{index}"' if index == 700 else f"block.{index}" for index in range(count)]
        arrays = {name: np.zeros(index % 3 + 1, np.float32) for index, name in enumerate(names)}

        plan = layout(arrays)

        ends = np.cumsum([array.nbytes for array in arrays.values()]).tolist()
        places = zip([0, *ends], ends, strict=False)
        assert header_of(plan) == {
            name: {"dtype": "F32", "shape": [len(arrays[name])], "data_offsets": list(place)}
            for name, place in zip(names, places, strict=True)
        }


class TestSeveralFiles:
    def test_have_an_index_that_comes_last(self) -> None:
        first, second = {"l/b": np.zeros(2, np.int8), "l/a": np.zeros(3)}, {"x": np.zeros((2, 2), np.float16)}

        plan = layout(first, second, metadata={"format": "pt", "n": 1})

        assert [file.name for file in plan.files] == [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ]
        assert header_of(plan, 1)["__metadata__"] == {"format": "pt"}
        (index,) = plan.files[2].pieces
        assert index.decode() == (
            '{\n  "metadata": {\n    "total_size": 34,\n    "n": 1,\n    "format": "pt"\n  },\n  "weight_map": {\n'
            '    "l.b": "model-00001-of-00002.safetensors",\n'
            '    "l.a": "model-00001-of-00002.safetensors",\n'
            '    "x": "model-00002-of-00002.safetensors"\n  }\n}\n'
        )

    def test_keep_the_order_of_the_state_when_opened(self, folder: Folder) -> None:
        put(folder, {"b": np.zeros(2, np.int8), "a": np.zeros(3)}, {"c": np.zeros(1)})

        assert list(backend.open(folder, "").specs) == ["b", "a", "c"]

    def test_may_all_be_empty(self, folder: Folder) -> None:
        put(folder, {}, {})

        assert backend.open(folder, "").specs == {}

    def test_tensors_that_the_index_lacks_are_left_out_loudly(self, folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
        put(folder, {"a": np.zeros(2)}, {"b": np.zeros(3), "c": np.zeros(3)})
        index = Path(folder.location("model.safetensors.index.json"))
        content = json.loads(index.read_text())
        del content["weight_map"]["c"]
        index.write_text(json.dumps(content))

        with caplog.at_level(logging.WARNING):
            source = backend.open(folder, "")

        assert list(source.specs) == ["a", "b"]
        assert "'c'" in caplog.text


class TestNames:
    def test_are_keys_joined_by_dots(self) -> None:
        plan = layout({"layers/0/w": np.zeros(1), "head": np.zeros(1)}, paths={"layers/0/w": ("layers", 0, "w")})

        assert list(header_of(plan)) == ["layers.0.w", "head"]

    def test_of_one_level_are_kept_as_they_are(self) -> None:
        plan = layout({"a/b.c d": np.zeros(1), "": np.zeros(1)}, paths={"a/b.c d": ("a/b.c d",)})

        assert list(header_of(plan)) == ["a/b.c d", ""]

    def test_that_would_meet_keep_their_slashes(self) -> None:
        paths = {"a/b": ("a", "b"), "a.b": ("a.b",), "c/d": ("c", "d")}

        plan = layout({name: np.zeros(1) for name in paths}, paths=paths)

        assert list(header_of(plan)) == ["a/b", "a.b", "c.d"]

    def test_that_only_meet_a_name_with_its_slashes_are_told_apart_too(self) -> None:
        # "a/b" as a key of its own is what the nested a, b falls back to when "a.b" is taken.
        paths = {"a/b": ("a", "b"), "a.b": ("a.b",), "a~1b": ("a/b",)}

        plan = layout({name: np.zeros(1) for name in paths}, paths=paths)

        assert sorted(header_of(plan)) == ["a.b", "a/b", "a~1b"]

    def test_come_back_as_they_were_in_the_state_if_its_skeleton_is_there(self, folder: Folder) -> None:
        paths = {"a/b": ("a", "b"), "c": ("c",), "tied": ("tied",), "t/u": ("t", "u")}
        skeleton = {"a": {"b": {"$tensor": "a/b"}}, "deep": json.loads("[" * 400 + "]" * 400), "many": [[]] * 20_000}
        aliases = {"tied": "a/b", "t/u": "c"}

        put(
            folder,
            {"a/b": np.arange(3), "c": np.zeros(1)},
            paths=paths,
            aliases=aliases,
            metadata={"ckptmgr": skeleton, "k": "v"},
        )

        source = backend.open(folder, "model.safetensors")
        assert set(source.specs) == {"a/b", "c"}
        assert source.aliases == aliases
        assert source.metadata == {"ckptmgr": skeleton, "k": "v"}
        assert source.read("tied").tolist() == [0, 1, 2]

    @pytest.mark.parametrize("skeleton", ["text", "[1]", None, 7, {"$": "\ud800"}])
    def test_do_not_matter_to_a_skeleton_of_any_json(self, folder: Folder, skeleton: Any) -> None:
        put(folder, {"w": np.zeros(1)}, metadata={"ckptmgr": skeleton})

        assert backend.open(folder, "").metadata == {"ckptmgr": skeleton}

    def test_of_the_state_are_nothing_without_its_skeleton(self, folder: Folder) -> None:
        text = {"ckptmgr.names": json.dumps({"a.b": "a/b"})}
        header = json.dumps({"__metadata__": text, "a.b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
        folder.write("x.safetensors", len(header).to_bytes(8, "little") + header + b"x")

        assert list(backend.open(folder, "x.safetensors").specs) == ["a.b"]

    def test_of_tied_tensors_are_understood_in_hugging_faces_spelling(self, folder: Folder) -> None:
        put(folder, {"embed": np.arange(3)}, metadata={"lm_head": "embed", "format": "embed", "other": "text"})

        assert backend.open(folder, "").aliases == {"lm_head": "embed"}

    def test_of_tied_tensors_that_are_gone_do_no_harm(self, folder: Folder) -> None:
        text = {"ckptmgr.aliases": json.dumps({"tied": "gone", "w": "w"})}
        header = json.dumps({"__metadata__": text, "w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
        folder.write("x.safetensors", len(header).to_bytes(8, "little") + header + b"x")

        assert backend.open(folder, "x.safetensors").aliases == {}


class TestRefusals:
    @pytest.mark.parametrize("dtype", ["complex128", "int4", "float8_e4m3", "float4_e2m1fn", "string", "datetime64[ns]"])
    def test_a_dtype_without_a_code_is_refused_with_all_names(self, dtype: str) -> None:
        parts = tuple(Part(name, TensorSpec(dtype, (2,))) for name in ("m/v", "m/w"))

        with pytest.raises(UnsupportedTensorError, match=r"'m/v', 'm/w'") as refusal:
            backend.layout(Contents((parts,)), stem="model", align=8)

        assert refusal.value.tensor == "m/v"

    @pytest.mark.parametrize("name", ["__metadata__", "w\ud800", "\udfff"])
    def test_a_name_that_the_format_cannot_hold_is_refused(self, name: str) -> None:
        with pytest.raises(UnsupportedTensorError, match="rename") as refusal:
            layout({"fine": np.zeros(1), name: np.zeros(1)})

        assert refusal.value.tensor == name

    def test_a_slice_is_refused(self) -> None:
        part = Part("w", TensorSpec("int8", (4,)), Box((0,), (2,)))

        with pytest.raises(UnsupportedTensorError, match="whole tensors"):
            backend.layout(Contents(((part,),)), stem="model", align=8)

    def test_a_header_over_the_formats_limit_is_refused(self) -> None:
        with pytest.raises(UnsupportedTensorError, match="max_file_nbytes"):
            layout({"w": np.zeros(1)}, metadata={"text": "x" * 100_000_000})

    def test_a_tensor_that_is_given_twice_is_refused(self) -> None:
        with pytest.raises(ValueError, match="twice"):
            layout({"w": np.zeros(1)}, {"w": np.zeros(1)})

    @pytest.mark.parametrize("metadata", [{"x": float("nan")}, {"x": {1, 2}}, {"ckptmgr.names": "x"}, {"\ud800": "x"}])
    def test_metadata_that_cannot_come_back_is_refused(self, metadata: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="metadata"):
            layout({"w": np.zeros(1)}, metadata=metadata)


class TestRecognizing:
    @pytest.mark.parametrize(
        "head", [b"\x02" + bytes(7) + b"{}", b"\x90\x01" + bytes(6) + b'{"w":', b"\x09" + bytes(7) + b' { "w"']
    )
    def test_goes_by_the_start_of_a_file_whatever_its_name(self, head: bytes) -> None:
        assert backend.recognizes("weights", head, frozenset({"weights"}))

    @pytest.mark.parametrize(
        "head", [b"", b'A text, {"not": "a header"}', b'in a row{"w":', b"\x02" + bytes(7) + b"[]", bytes(16)]
    )
    def test_is_not_misled_by_the_files_beside_it(self, head: bytes) -> None:
        assert not backend.recognizes("notes", head, frozenset({"notes", "model.safetensors"}))

    def test_knows_an_index_by_its_name_or_by_what_it_lists(self) -> None:
        listed = b'{"weight_map": {"w": "part-00001-of-00002.safetensors"}}'

        assert backend.recognizes("model.safetensors.index.json", b"{ }", frozenset())
        assert backend.recognizes("other.json", listed, frozenset())
        assert not backend.recognizes("other.json", b'{"weight_map": {"w": "part-00001-of-00002.bin"}}', frozenset())
        assert not backend.recognizes("model.safetensors.index.json", b"[]", frozenset())


class TestFolders:
    def test_with_nothing_of_ours_are_no_checkpoint(self, folder: Folder) -> None:
        folder.write("notes.txt", b"x")

        with pytest.raises(FileNotFoundError):
            backend.open(folder, "")
        with pytest.raises(FileNotFoundError):
            backend.open(folder, "missing.safetensors")

    def test_with_a_set_that_has_no_index_were_never_finished(self, folder: Folder) -> None:
        put(folder, {"a": np.zeros(1)}, {"b": np.zeros(1)})
        folder.delete(["model.safetensors.index.json"])

        with pytest.raises(CorruptCheckpointError, match="no index"):
            backend.open(folder, "")

    def test_with_several_checkpoints_are_ambiguous_unless_one_is_called_model(self, folder: Folder) -> None:
        put(folder, {"a": np.zeros(1)})
        folder.write("other.safetensors", assembled(layout({}), {})["model.safetensors"])
        assert list(backend.open(folder, "").specs) == ["a"]

        folder.write("third.safetensors", assembled(layout({}), {})["model.safetensors"])
        folder.delete(["model.safetensors"])
        with pytest.raises(ValueError, match=r"'other.safetensors', 'third.safetensors'"):
            backend.open(folder, "")


class TestReading:
    @given(data=st.data())
    def test_any_slice_is_what_the_array_has_there(self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
        shape = data.draw(st.sampled_from([(), (9,), (0, 4), (5, 70, 3), (3, 2, 400, 30), (2, 70_000, 2)]))
        bounds = [sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in shape]
        box = Box(tuple(low for low, _ in bounds), tuple(high for _, high in bounds))
        array = np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape)
        folder = Folder(PosixStore(tmp_path_factory.mktemp("run", numbered=True)))
        put(folder, {"pad": np.zeros(1, np.int64), "w": array})

        found = backend.open(folder, "").read("w", box)

        assert found.shape == box.shape
        assert found.tolist() == array[box.slices].tolist()

    def test_an_array_of_another_kind_is_not_filled(self, folder: Folder) -> None:
        put(folder, {"w": np.zeros((2, 3), np.float32)})
        source = backend.open(folder, "")

        for out in (np.zeros((3, 2), np.float32), np.zeros((2, 3)), np.zeros(3, np.float32)):
            with pytest.raises(ValueError, match="'w'"):
                source.read("w", out=out)
        with pytest.raises(ValueError, match="not inside"):
            source.read("w", Box((0, 0), (3, 3)))

    def test_arrays_of_any_memory_order_are_filled(self, folder: Folder) -> None:
        array = np.arange(6, dtype=np.int32).reshape(2, 3)
        put(folder, {"w": array})
        source = backend.open(folder, "")

        for out in (np.zeros((3, 2), np.int32).T, np.zeros((2, 6), np.int32)[:, ::2], np.zeros((2, 3), ">i4")):
            assert source.read("w", out=out) is out
            assert out.tolist() == array.tolist()

    def test_a_packed_tensor_is_not_cut(self) -> None:
        source = backend.open(Folder(PosixStore(GOLDEN)), "subbyte.safetensors")

        assert source.read("f4", Box((0, 0), (2, 4)), np.zeros(4, np.uint8)).tolist() == [1, 2, 3, 4]
        with pytest.raises(ValueError, match="packed"):
            source.read("f4", Box((0, 0), (1, 4)))

    def test_a_file_that_became_shorter_is_damaged(self, folder: Folder) -> None:
        put(folder, {"w": np.zeros(100)})
        source = backend.open(folder, "")
        folder.write("model.safetensors", b"short")

        with pytest.raises(CorruptCheckpointError, match="'w'") as error:
            source.read("w")

        assert (error.value.file, error.value.tensor) == ("model.safetensors", "w")
