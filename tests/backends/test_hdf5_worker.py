"""What h5py reads for us in a process of its own: everything that our parser does not know, as our parser would give it."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hdf5_workers import read, worker, written
from stores import MemoryStore

from ckptmgr.backend import Box
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.storage import Folder
from ckptmgr_hdf5.blocks import Reader
from ckptmgr_hdf5.origin import Origin
from ckptmgr_hdf5.parsing import Dataset, Group, Unknown, parse
from ckptmgr_hdf5.worker import Worker

ORIGIN = Origin("m.h5", "/runs/m.h5")
COUNTED = np.arange(600, dtype=np.float32).reshape(20, 30)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "gzip"},
        {"compression": "lzf"},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"scaleoffset": 0},
    ],
    ids=str,
)
def test_chunked_and_filtered_data_is_read(tmp_path: Path, options: dict[str, object]) -> None:
    data = COUNTED.astype(np.int32) if "scaleoffset" in options else COUNTED
    path = written(tmp_path / "m.h5", lambda file: file.create_dataset("x", data=data, chunks=(7, 11), **options))

    found = read(path, "/x", str(data.dtype), (20, 30))

    np.testing.assert_array_equal(found, data)


@pytest.mark.parametrize("options", [{}, {"chunks": (7, 11)}], ids=["contiguous", "chunked"])
def test_a_slice_is_read_alone(tmp_path: Path, options: dict[str, object]) -> None:
    path = written(tmp_path / "m.h5", lambda file: file.create_dataset("x", data=COUNTED, **options))
    out = np.empty((4, 25), np.float32)

    with worker(path) as asked:
        asked.read("/x", Box((6, 3), (10, 28)), out)

    np.testing.assert_array_equal(out, COUNTED[6:10, 3:28])


def test_a_slice_goes_to_memory_of_any_order(tmp_path: Path) -> None:
    path = written(tmp_path / "m.h5", lambda file: file.create_dataset("x", data=COUNTED, chunks=(7, 11)))
    out = np.empty((30, 40), ">f4").T[::2]

    with worker(path) as asked:
        asked.read("/x", Box.whole((20, 30)), out)

    np.testing.assert_array_equal(out, COUNTED)


def test_data_of_the_other_byte_order_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "m.h5", lambda file: file.create_dataset("x", data=COUNTED.astype(">f4"), chunks=(7, 11)))

    assert read(path, "/x", "<f4", (20, 30))[3, 4] == 94.0


@pytest.mark.parametrize("dtype", ["i1", "u8", "<f2", "f8", "c8", "c16", "V3", "S5"])
def test_elements_of_every_type_are_their_stored_bytes(tmp_path: Path, dtype: str) -> None:
    data = np.frombuffer(bytes(range(240)), dtype)[:2]
    path = written(tmp_path / "m.h5", lambda file: file.create_dataset("x", data=data, chunks=(2,)))

    assert read(path, "/x", dtype, (2,)).tobytes() == data.tobytes()


def test_what_is_not_0_in_a_bool_is_true(tmp_path: Path) -> None:
    path = written(tmp_path / "m.h5", lambda file: file.create_dataset("x", data=np.array([0, 2, 1], "?").view("?"), chunks=(3,)))
    with h5py.File(path, "r+") as file:
        file["x"].id.write_direct_chunk((0,), b"\x00\x02\x01")

    assert read(path, "/x", "?", (3,)).tobytes() == b"\x00\x01\x01"


def test_a_0d_dataset_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "m.h5", lambda file: file.create_dataset("x", data=np.int64(7)))

    assert read(path, "/x", "i8", ()) == 7


def test_a_dataset_without_elements_is_read(tmp_path: Path) -> None:
    path = written(
        tmp_path / "m.h5", lambda file: file.create_dataset("x", shape=(0, 3), dtype="f4", chunks=(1, 3), maxshape=(None, 3))
    )

    assert read(path, "/x", "f4", (0, 3)).shape == (0, 3)


def test_compact_data_is_read(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((3,))
        h5py.h5d.create(file.id, b"x", h5py.h5t.STD_I16LE, space, created).write(space, space, np.array([1, 2, 3], "<i2"))

    path = written(tmp_path / "m.h5", fill)

    assert read(path, "/x", "<i2", (3,)).tolist() == [1, 2, 3]
    with worker(path) as asked:
        assert asked.tree().find("/x")[4:7] == (None, 6, "chunked")  # type: ignore[index]


def test_a_group_with_a_dense_heap_of_links_is_walked(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        for number in range(300):
            file[f"layers/{number}"] = np.float32(number)

    path = written(tmp_path / "m.h5", fill, libver="latest")

    with pytest.raises(Unknown):
        parse(Reader.of_bytes(path.read_bytes()), ORIGIN)
    with worker(path) as asked:
        layers = asked.tree().root.children["layers"]
    assert isinstance(layers, Group)
    assert list(layers.children)[:3] == ["0", "1", "10"]
    assert len(layers.children) == 300


def test_attributes_in_a_dense_heap_are_read(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        for number in range(20):
            file.attrs[f"a{number}"] = "ä" * number
        file.attrs["long"] = np.arange(20_000)

    path = written(tmp_path / "m.h5", fill, libver="latest")

    with worker(path) as asked:
        attributes = asked.tree().root.attributes
    assert attributes["a3"] == "äää"
    assert np.array_equal(attributes["long"], np.arange(20_000))  # type: ignore[arg-type]
    assert len(attributes) == 21


def test_tree_is_what_our_parser_gives(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file["a/b/kernel:0"] = COUNTED
        file["a/again"] = file["a/b/kernel:0"]
        file["flags"] = np.array([True, False])
        file["big"] = np.arange(3, dtype=">i4")
        file["z"] = np.complex64(1 + 2j)
        file["bits"] = np.array([b"ab", b"cd"], "V2")
        file["unwritten"] = h5py.Empty("f4")
        file["kind"] = np.dtype("i2")
        file.create_dataset("packed", data=COUNTED, compression="gzip")
        file.create_dataset("color", data=1, dtype=h5py.enum_dtype({"RED": 0, "BLUE": 1}))
        file.create_dataset("pair", data=np.zeros(2, [("x", "i4"), ("y", "f4")]))
        file.create_dataset("text", data=["a", "b"])

    path = written(tmp_path / "m.h5", fill)
    ours = parse(Reader.of_bytes(path.read_bytes()), ORIGIN)

    with worker(path) as asked:
        theirs = asked.tree()

    assert [described(node) for node in theirs.walk()] == [described(node) for node in ours.walk()]
    assert len(list(ours.walk())) == 14


def test_attributes_are_what_our_parser_gives(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file.attrs.update({"text": "hällo", "names": np.array([b"a", b"bcd"]), "none": [], "number": np.float32(0.5)})
        file.attrs.update({"texts": ["a", "", "c"], "flag": True, "empty": h5py.Empty("f4"), "bytes": np.bytes_(b"ab")})
        file.attrs.update({"numbers": np.arange(4, dtype=">i4").reshape(2, 2), "void": np.void(b"\0\1")})

    path = written(tmp_path / "m.h5", fill)
    ours = parse(Reader.of_bytes(path.read_bytes()), ORIGIN).root.attributes

    with worker(path) as asked:
        theirs = asked.tree().root.attributes

    assert {name: repr(theirs[name]) for name in theirs} == {name: repr(ours[name]) for name in ours}
    assert len(theirs) == 10


def test_an_attribute_of_references_hides_no_other(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file.attrs["to"] = file.ref
        file.attrs["name"] = "m"

    path = written(tmp_path / "m.h5", fill)

    with worker(path) as asked:
        attributes = asked.tree().root.attributes
    assert attributes["name"] == "m"
    with pytest.raises(CorruptCheckpointError, match=r"'/': attribute 'to': it is of a type that is not read"):
        attributes["to"]


@pytest.mark.parametrize("options", [{}, {"chunks": (2,), "compression": "gzip"}], ids=["contiguous", "chunked"])
def test_texts_of_any_length_are_read(tmp_path: Path, options: dict[str, object]) -> None:
    path = written(
        tmp_path / "m.h5", lambda file: file.create_dataset("x", data=["ä", "", "ccc"], dtype=h5py.string_dtype(), **options)
    )

    with worker(path) as asked:
        dataset = asked.tree().find("/x")
        assert isinstance(dataset, Dataset)
        assert asked.tree().strings(dataset).tolist() == ["ä", "", "ccc"]
        assert asked.texts("/x").tolist() == ["ä", "", "ccc"]


def test_texts_of_a_fixed_length_are_read(tmp_path: Path) -> None:
    path = written(tmp_path / "m.h5", lambda file: file.create_dataset("x", data=np.array([b"a", b"bc"]), chunks=(1,)))

    with worker(path) as asked:
        assert asked.texts("/x").tolist() == [b"a", b"bc"]


def test_one_worker_reads_many_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptmgr_hdf5.worker.WINDOW_NBYTES", 100)
    path = written(tmp_path / "m.h5", lambda file: file.create_dataset("x", data=COUNTED, chunks=(7, 11), compression="gzip"))

    np.testing.assert_array_equal(read(path, "/x", "f4", (20, 30)), COUNTED)


def test_a_file_in_a_store_without_paths_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "m.h5", lambda file: file.create_dataset("x", data=COUNTED, chunks=(7, 11)), userblock_size=512)
    folder = Folder(MemoryStore({"in/zip": b"PK345" + path.read_bytes() + b"END"}))
    out = np.empty((20, 30), np.float32)

    with Worker.for_folder(folder.folder("in"), "zip", 5, path.stat().st_size, ORIGIN) as asked:
        asked.read("/x", Box.whole((20, 30)), out)

    np.testing.assert_array_equal(out, COUNTED)


def test_offsets_are_those_in_the_outer_file(tmp_path: Path) -> None:
    path = written(tmp_path / "m.h5", lambda file: file.create_dataset("x", data=COUNTED), userblock_size=512)
    outer = b"PK345" + path.read_bytes()

    with Worker.for_folder(Folder(MemoryStore({"zip": outer})), "zip", 5, None, ORIGIN) as asked:
        dataset = asked.tree().find("/x")

    assert isinstance(dataset, Dataset)
    assert dataset.offset is not None
    assert outer[dataset.offset :][: dataset.nbytes] == COUNTED.tobytes()


@pytest.mark.parametrize(
    ("box", "out"),
    [
        (Box((0, 0), (21, 30)), np.empty((21, 30), "f4")),
        (Box((0,), (1,)), np.empty(1, "f4")),
        (Box((0, 0), (1, 1)), np.empty((1, 2), "f4")),
        (Box((0, 0), (1, 1)), np.empty((1, 1), "i4")),
    ],
    ids=["outside", "rank", "shape", "dtype"],
)
def test_a_box_or_an_array_that_does_not_fit_is_an_error_of_the_caller(tmp_path: Path, box: Box, out: np.ndarray) -> None:
    path = written(tmp_path / "m.h5", lambda file: file.create_dataset("x", data=COUNTED))

    with worker(path) as asked, pytest.raises(ValueError, match="'/x'") as caught:
        asked.read("/x", box, out)

    assert type(caught.value) is ValueError


def test_h5py_is_not_imported_here(tmp_path: Path) -> None:
    written(tmp_path / "m.h5", lambda file: file.create_dataset("x", data=COUNTED, chunks=(7, 11)))
    script = """
import sys
from ckptmgr.storage import Folder
from ckptmgr.storage.posix import PosixStore
from ckptmgr_hdf5.origin import Origin
from ckptmgr_hdf5.worker import Worker
with Worker.for_folder(Folder(PosixStore(sys.argv[1])), "m.h5", 0, None, Origin("m.h5", "m.h5")) as asked:
    print(list(asked.tree().root.children), "h5py" in sys.modules)
"""

    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)

    assert done.stdout == "['x'] False\n"


def described(node: Group | Dataset) -> tuple[object, ...]:
    return (node.path, list(node.children)) if isinstance(node, Group) else node[:-1]
