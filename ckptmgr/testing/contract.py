"""The tests of `BackendContract`."""

import json
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path as LocalPath
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pytest

from ckptmgr import transfer
from ckptmgr.backend import HEAD_NBYTES, Backend
from ckptmgr.box import Box
from ckptmgr.errors import CheckpointError, UnsupportedTensorError
from ckptmgr.layout import Contents, Digests, FileLayout, Late, Layout, Part, Path, pack, piece_nbytes
from ckptmgr.memory import MemorySource
from ckptmgr.source import TensorSource
from ckptmgr.spec import STRING
from ckptmgr.storage import Folder, PosixStore
from ckptmgr.testing.pipe import ForwardStore
from ckptmgr.testing.samples import AWKWARD, DTYPES, OTHERS, SHAPES, Array, damaged, same, sample, spec_of
from ckptmgr.transfer import Want

Tensors: TypeAlias = Mapping[Any, Array]  # by path in the state


class BackendContract:
    """Subclass it in a test module and set `backend`; the rest says what the format cannot do."""

    backend: ClassVar[Backend]
    refuses: ClassVar[frozenset[str]] = frozenset()  # dtypes that `layout` refuses with UnsupportedTensorError
    decodes: ClassVar[frozenset[str]] = frozenset()  # dtypes that only `TensorSource.read` can decode: they have no extents
    keeps_metadata: ClassVar[bool] = True  # metadata comes back as it was given

    def stored_name(self, path: Path) -> str:
        """The name that an opened source gives to the tensor with these keys, where it is unambiguous."""
        return "/".join(map(str, path))

    def misaligned_file(self) -> tuple[str, bytes, Mapping[str, Array]] | None:
        """Name, bytes and tensors of a valid file whose tensors are not aligned to their items; None skips."""
        return None

    @pytest.fixture
    def folder(self, tmp_path: LocalPath) -> Folder:
        """An empty folder on the local disk."""
        return Folder(PosixStore(tmp_path))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_dtype_comes_back_bit_for_bit_or_is_refused_by_name(self, folder: Folder, dtype: str) -> None:
        tensors = {("model", "w"): sample(dtype), ("model", "other"): sample("float32")}

        if dtype in self.refuses:
            with pytest.raises(UnsupportedTensorError, match="model/w") as refusal:
                self._layout(tensors)
            assert refusal.value.tensor == "model/w"
        else:
            self._write(folder, tensors)
            self._assert_holds(folder, tensors)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_every_shape_comes_back(self, folder: Folder, shape: tuple[int, ...]) -> None:
        tensors = {("w",): sample("float32", shape), ("b",): sample("int8", shape), ("m", "last"): sample("int64")}

        self._write(folder, tensors)

        self._assert_holds(folder, tensors)

    def test_arrays_of_any_memory_order_come_back_as_plain_ones(self, folder: Folder) -> None:
        grid = sample("int32", (6, 8))
        readonly = grid.copy()
        readonly.flags.writeable = False
        odd = [np.asfortranarray(grid), grid[::2, ::-1], grid.T, grid.astype(">i4"), readonly, grid[1], grid[1, 1:1]]
        tensors = {("odd", index): array for index, array in enumerate(odd)}

        self._write(folder, tensors)

        self._assert_holds(folder, tensors)

    def test_no_tensors_at_all_make_a_file(self, folder: Folder) -> None:
        self._write(folder, {})

        self._assert_holds(folder, {})

    def test_tied_names_lead_to_one_tensor(self, folder: Folder) -> None:
        tensors = {("embed", "w"): sample("float32"), ("norm",): sample("float32", (4,))}
        aliases = {"head/w": "embed/w", "copy": "embed/w"}
        paths = {"head/w": ("head", "w"), "copy": ("copy",)}

        self._write(folder, tensors, aliases=aliases, paths=paths)

        with self._open(folder) as source:
            kept = self.stored_name(("embed", "w"))
            assert source.aliases == {self.stored_name(paths[alias]): kept for alias in aliases}
            assert set(source.specs) == {kept, self.stored_name(("norm",))}

    def test_slices_are_what_the_whole_tensor_has_there(self, folder: Folder) -> None:
        whole = sample("int16", (7, 300, 11))
        self._write(folder, {("w",): whole, ("scalar",): sample("float64", ())})
        boxes = [
            Box((0, 0, 0), (7, 300, 11)),
            Box((3, 0, 0), (4, 300, 11)),
            Box((1, 7, 2), (6, 8, 3)),
            Box((0, 299, 10), (7, 300, 11)),
            Box((2, 5, 0), (5, 290, 11)),
            Box((2, 2, 2), (2, 5, 5)),
        ]

        with self._open(folder) as source:
            name = self.stored_name(("w",))
            read, _ = transfer.read(source, [Want(name, box) for box in boxes])
            for box, array in zip(boxes, read, strict=True):
                expected = whole[box.slices]
                out = np.zeros(box.shape, np.int16)
                assert same(array, expected), box
                assert same(source.read(name, box), expected), box
                assert source.read(name, box, out) is out, box
                assert same(out, expected), box
            assert source.read(self.stored_name(("scalar",)), Box((), ())).shape == ()

    def test_files_hold_slices_of_tensors_or_refuse_them(self, folder: Folder) -> None:
        whole = sample("float32", (8, 6))
        halves = [Part("w", spec_of(whole), Box(start, (start[0] + 4, 6))) for start in ((0, 0), (4, 0))]
        contents = Contents(files=((halves[0],), (halves[1],)))

        layout = self._layout_or_refusal(contents)

        if isinstance(layout, UnsupportedTensorError):
            assert layout.tensor == "w"
        else:
            self._transfer(folder, layout, {("w",): whole})
            self._assert_holds(folder, {("w",): whole})

    def test_late_pieces_get_every_digest_that_a_layout_asks_for(self, folder: Folder) -> None:
        tensors = {("w",): sample("float32", (1000, 70)), ("b",): sample("int8", (3,))}
        layout = self._layout(tensors)
        seen: dict[str, Digests] = {}

        def build(digests: Mapping[str, Digests]) -> bytes:
            seen.update(digests)
            return json.dumps({file: dict(columns) for file, columns in digests.items()}).encode()

        late = FileLayout("digests.json", (Late(None, build),))
        self._transfer(folder, Layout((*layout.files, late), layout.digests | {"crc32"}), tensors)

        arrays = {"/".join(map(str, path)): array for path, array in tensors.items()}
        for file in layout.files:
            for index, _, part in file.parts():
                assert seen[file.name]["crc32"][index] == zlib.crc32(arrays[part.name].tobytes())
                assert len(seen[file.name]["crc32c"]) == len(file.pieces)
        assert set(json.loads(folder.read_range("digests.json", 0, _size(folder, "digests.json")))) >= set(self._names(layout))

    def test_a_layout_can_be_written_into_a_pipe(self, folder: Folder) -> None:
        tensors = {("a",): sample("float32", (90, 1000)), ("b", "c"): sample("uint8", (5, 3)), ("e",): sample("int64", (0,))}
        pipe = ForwardStore()

        layout = self._write(folder, tensors, max_file_nbytes=200_000)
        self._transfer(Folder(pipe), layout, tensors)

        assert pipe.files == {name: folder.read_range(name, 0, _size(folder, name)) for name in self._names(layout)}

    @pytest.mark.parametrize("limit", [1, 100, 1000, 10**9])
    def test_a_size_limit_makes_several_files(self, folder: Folder, limit: int) -> None:
        tensors = {("layer", index, "w"): sample("float32", (4, index % 3), seed=index) for index in range(20)}

        layout = self._write(folder, tensors, max_file_nbytes=limit)

        self._assert_holds(folder, tensors)
        for file in layout.files:
            held = [part.nbytes for _, _, part in file.parts() if part.nbytes]
            assert len(held) <= 1 or sum(held) <= limit

    def test_a_file_with_misaligned_tensors_of_another_writer_is_read(self, folder: Folder) -> None:
        foreign = self.misaligned_file()
        if foreign is None:
            pytest.skip("the format has no misaligned files")
        name, data, tensors = foreign
        folder.write(name, data)

        with self.backend.open(folder, name) as source:
            read, _ = transfer.read(source, [Want(tensor) for tensor in tensors])
            for array, (tensor, expected) in zip(read, tensors.items(), strict=True):
                assert array.flags.aligned
                assert same(array, expected), tensor
                assert same(source.read(tensor), expected), tensor

    def test_the_same_contents_give_the_same_layout(self) -> None:
        contents = self._contents({("m", key): sample(key) for key in ("float32", "int8")}, metadata={"b": "1", "a": [2]})

        first, second = [self.backend.layout(contents, stem="model", align=64) for _ in range(2)]

        assert _plain(first) == _plain(second)

    @pytest.mark.parametrize("limit", [None, 40])
    def test_a_layout_has_plain_names_and_each_tensor_once(self, limit: int | None) -> None:
        tensors = {("m", key): sample(key) for key in ("float32", "int8", "bool")}

        layout = self._layout(tensors, max_file_nbytes=limit)

        names = self._names(layout)
        assert len(set(names)) == len(names)
        assert all(name.startswith("model") and "/" not in name and "\\" not in name for name in names)
        assert sorted(part.name for file in layout.files for _, _, part in file.parts()) == ["m/bool", "m/float32", "m/int8"]

    @pytest.mark.parametrize("path", AWKWARD, ids=ascii)
    def test_an_awkward_name_comes_back_or_is_refused(self, folder: Folder, path: Path) -> None:
        tensors = {path: sample("float32")}

        layout = self._layout_or_refusal(self._contents(tensors))

        if isinstance(layout, UnsupportedTensorError):
            assert layout.tensor == "/".join(map(str, path))
        else:
            self._transfer(folder, layout, tensors)
            self._assert_holds(folder, tensors)

    def test_names_that_look_alike_stay_apart(self, folder: Folder) -> None:
        paths = [("a", "b"), ("a.b",), ("W",), ("w",), ("é",), ("e\u0301",), ("x", "y.z"), ("x.y", "z"), ("x", "y", "z")]
        tensors = {path: np.array([index]) for index, path in enumerate(paths)}

        self._write(folder, tensors)

        with self._open(folder) as source:
            assert sorted(int(source.read(name)[0]) for name in source.specs) == list(range(len(paths)))

    @pytest.mark.parametrize("limit", [None, 40])
    def test_metadata_comes_back_as_it_was_given(self, folder: Folder, limit: int | None) -> None:
        if not self.keeps_metadata:
            pytest.skip("the format has no place for metadata")
        metadata = {
            "format": "pt",
            "n": 3,
            "x": -0.5,
            "none": None,
            "text": "ünï\n[1]",
            "digits": "12",
            "nested": {"a": [1, {}], "b": True},
        }

        self._write(folder, {("a",): sample("float32"), ("b",): sample("int8")}, metadata=metadata, max_file_nbytes=limit)

        with self._open(folder) as source:
            assert dict(source.metadata) == metadata

    @pytest.mark.parametrize("limit", [None, 40])
    def test_recognizes_its_own_files_and_their_folder(self, folder: Folder, limit: int | None) -> None:
        layout = self._write(folder, {("a",): sample("float32"), ("b",): sample("int8")}, max_file_nbytes=limit)

        siblings = frozenset(folder.list().files)

        entry = self._names(layout)[-1]
        head = folder.read_range(entry, 0, min(_size(folder, entry), HEAD_NBYTES))
        assert self.backend.recognizes(entry, head, siblings)
        assert self.backend.recognizes("", b"", siblings)

    def test_recognizes_nothing_else(self) -> None:
        for path, head in (other for what, other in OTHERS.items() if what != self.backend.name):
            assert not self.backend.recognizes(path, head, frozenset({path})), path
            assert not self.backend.recognizes("", b"", frozenset({path})), path
        assert not self.backend.recognizes("", b"", frozenset())

    @pytest.mark.parametrize("limit", [None, 40])
    def test_a_prefix_of_names_without_a_fixed_ending_is_recognized_and_opened(self, folder: Folder, limit: int | None) -> None:
        if self.backend.suffix:
            pytest.skip("names of the format have a fixed ending")
        self._write(folder, {("a",): sample("float32"), ("b",): sample("int8")}, max_file_nbytes=limit)

        assert self.backend.recognizes("model", b"", frozenset(folder.list().files))
        assert not self.backend.recognizes("mode", b"", frozenset({"model.other"}))
        with self.backend.open(folder, "model") as source:
            assert set(source.specs) == {"a", "b"}

    @pytest.mark.parametrize("limit", [None, 40])
    def test_checkpoints_are_told_by_the_names_of_their_files(self, limit: int | None) -> None:
        contents = self._contents({("a",): sample("float32"), ("b",): sample("int8")}, max_file_nbytes=limit)
        stems = ["model", "cp-0005.ckpt", "a.b", "model-1"]

        expected = {stem: self._names(self.backend.layout(contents, stem=stem, align=64)) for stem in stems}
        found = self.backend.file_sets(sorted(name for names in expected.values() for name in names))

        assert {stem: list(names) for stem, names in found.items()} == expected

    def test_a_checkpoint_without_the_file_to_open_is_told_with_it(self) -> None:
        contents = self._contents({("a",): sample("float32"), ("b",): sample("int8")}, max_file_nbytes=40)
        names = self._names(self.backend.layout(contents, stem="model", align=64))

        found = self.backend.file_sets(names[:-1])

        assert {stem: list(files) for stem, files in found.items()} == ({"model": names} if len(names) > 1 else {})

    def test_names_of_other_formats_tell_of_no_checkpoint(self) -> None:
        names = [path for what, (path, _) in OTHERS.items() if what != self.backend.name]

        assert not self.backend.file_sets(names)

    def test_an_unknown_name_is_a_key_error(self, folder: Folder) -> None:
        self._write(folder, {("a",): sample("float32")})

        with self._open(folder) as source, pytest.raises(KeyError):
            source.read("no such tensor")

    def test_extents_lie_where_the_layout_put_the_tensors(self, folder: Folder) -> None:
        tensors = {("m", dtype): sample(dtype) for dtype in DTYPES if dtype not in self.refuses and dtype != STRING}
        layout = self._write(folder, tensors, max_file_nbytes=100)
        placed = {(file.name, offset): part for file in layout.files for _, offset, part in file.parts()}

        with self._open(folder) as source:
            for path in tensors:
                extents = source.extents(self.stored_name(path))
                expected = [] if path[-1] in self.decodes else ["/".join(map(str, path))]
                assert [placed[extent.file, extent.offset].name for extent in extents] == expected

    def test_damage_gives_only_our_errors(self, folder: Folder, tmp_path: LocalPath) -> None:
        tensors = {("m", key): sample(key) for key in ("float32", "int8", "bool", "int64")}
        layout = self._write(folder, tensors, max_file_nbytes=60, metadata={"format": "pt"}, aliases={"tied": "m/bool"})
        random = np.random.default_rng(1)

        for name in self._names(layout):
            file = tmp_path / name
            good = file.read_bytes()
            for bad in damaged(good, random):
                file.write_bytes(bad)
                with suppress(CheckpointError):
                    self._read_all(folder)
            file.unlink()
            with pytest.raises((CheckpointError, FileNotFoundError)):
                self._read_all(folder)
            file.write_bytes(good)
        self._read_all(folder)

    def _contents(self, tensors: Tensors, max_file_nbytes: int | None = None, **more: Any) -> Contents:
        paths = {"/".join(map(str, path)): path for path in tensors}
        parts = [Part("/".join(map(str, path)), spec_of(array)) for path, array in tensors.items()]
        strings = {part.name: tensors[paths[part.name]].reshape(-1).tolist() for part in parts if part.spec.is_string}
        paths |= more.pop("paths", {})
        return Contents(pack(parts, max_file_nbytes), strings=strings, paths=paths, **more)

    def _layout(self, tensors: Tensors, **more: Any) -> Layout:
        return self.backend.layout(self._contents(tensors, **more), stem="model", align=64)

    def _layout_or_refusal(self, contents: Contents) -> Layout | UnsupportedTensorError:
        try:
            return self.backend.layout(contents, stem="model", align=64)
        except UnsupportedTensorError as refusal:
            return refusal

    def _write(self, folder: Folder, tensors: Tensors, **more: Any) -> Layout:
        layout = self._layout(tensors, **more)
        self._transfer(folder, layout, tensors)
        return layout

    def _transfer(self, folder: Folder, layout: Layout, tensors: Tensors) -> None:
        arrays = {"/".join(map(str, path)): array for path, array in tensors.items()}
        transfer.write(folder, layout, MemorySource(arrays, {name: spec_of(array) for name, array in arrays.items()}))

    def _open(self, folder: Folder) -> TensorSource:
        return self.backend.open(folder, "")

    def _assert_holds(self, folder: Folder, tensors: Tensors) -> None:
        """The folder's checkpoint has exactly these tensors, by either way of reading."""
        expected = {self.stored_name(path): array for path, array in tensors.items()}
        with self._open(folder) as source:
            assert set(source.specs) == set(expected)
            read, _ = transfer.read(source, [Want(name) for name in expected])
            for array, (name, given) in zip(read, expected.items(), strict=True):
                assert source.specs[name] == spec_of(given)
                assert same(array, given), name
                assert same(source.read(name), given), name

    def _read_all(self, folder: Folder) -> None:
        with self._open(folder) as source:
            transfer.read(source, [Want(name) for name in source.specs])

    def _names(self, layout: Layout) -> list[str]:
        return [file.name for file in layout.files]


def _size(folder: Folder, name: str) -> int:
    head = folder.head(name)
    assert head is not None
    return head.nbytes


def _plain(layout: Layout) -> list[Any]:
    """A layout without the functions of its late pieces, which never compare equal."""
    return [
        (file.name, [piece_nbytes(piece) if isinstance(piece, Late) else piece for piece in file.pieces]) for file in layout.files
    ]
