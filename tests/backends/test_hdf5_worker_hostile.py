"""HDF5 files that lead elsewhere, grow, or lie: h5py in its own process is as careful with them as our parser."""

import json
import time
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hdf5_workers import worker, written

from ckptmgr.backend import Box
from ckptmgr.errors import CorruptCheckpointError, UnsafeCheckpointError

MIB = 1 << 20


def soft(file: h5py.File, secret: Path) -> None:
    file["x"] = h5py.SoftLink("/secret")


def external(file: h5py.File, secret: Path) -> None:
    file["x"] = h5py.ExternalLink(str(secret), "/secret")


def elsewhere(file: h5py.File, secret: Path) -> None:
    file.create_dataset("x", shape=(4,), dtype="u1", external=[(str(secret), 0, 4)])


def virtual(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource(str(secret), "secret", (4,))
    file.create_virtual_dataset("x", layout)


LEADS = {
    soft: "'/x': it is a soft link, and only hard ones are followed",
    external: "'/x': it is an external link, and only hard ones are followed",
    elsewhere: "'/x': its data is in another file",
    virtual: "'/x': it is a virtual dataset, made of datasets of other files",
}


@pytest.mark.parametrize("fill", LEADS)
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_what_leads_out_of_the_file_is_refused(tmp_path: Path, fill: Any, libver: str) -> None:
    secret = written(tmp_path / "secret.h5", lambda file: file.create_dataset("secret", data=np.arange(4, dtype="u1")))
    path = written(tmp_path / "m.h5", lambda file: fill(file, secret), libver=libver)

    with worker(path) as asked:
        with pytest.raises(UnsafeCheckpointError, match=LEADS[fill]) as caught:
            asked.tree()
        with pytest.raises(UnsafeCheckpointError, match=LEADS[fill]):
            asked.read("/x", Box((0,), (4,)), np.empty(4, "u1"))

    assert caught.value.file == "m.h5"


def test_a_path_leads_through_hard_links_only(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file["a/x"] = 1.0
        file["b"] = h5py.SoftLink("/a")

    path = written(tmp_path / "m.h5", fill)

    with worker(path) as asked, pytest.raises(UnsafeCheckpointError, match="'/b': it is a soft link"):
        asked.read("/b/x", Box((), ()), np.empty(()))


def test_dots_are_a_name_and_not_the_group_above(tmp_path: Path) -> None:
    path = written(tmp_path / "m.h5", lambda file: file.create_dataset("a/x", data=1.0))

    with worker(path) as asked, pytest.raises(CorruptCheckpointError, match=r"'/a/\.\./a/x'"):
        asked.read("/a/../a/x", Box((), ()), np.empty(()))


@pytest.mark.parametrize("name", ["/nothing", "/a", "/a/x/y", "/", "", "//", "/\ud800"])
def test_what_is_no_dataset_cannot_be_read(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "m.h5", lambda file: file.create_dataset("a/x", data=1.0))

    with worker(path) as asked:
        with pytest.raises(CorruptCheckpointError):
            asked.read(name, Box((), ()), np.empty(()))
        asked.read("/a/x", Box((), ()), np.empty(()))  # and the next one can


def test_a_group_that_contains_itself_is_told(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file["a/b/c"] = 1.0
        file["a/b/d"] = file["a"]

    path = written(tmp_path / "m.h5", fill)

    with worker(path) as asked, pytest.raises(CorruptCheckpointError, match="'/a/b/d': the group contains itself"):
        asked.tree()


def test_groups_are_not_nested_without_end(tmp_path: Path) -> None:
    path = written(tmp_path / "m.h5", lambda file: file.create_group("/".join(["g"] * 300)))

    with worker(path) as asked, pytest.raises(CorruptCheckpointError, match="groups are nested more than 200 deep"):
        asked.tree()


def test_groups_with_two_names_each_do_not_become_2_to_the_n(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        group = file
        for _ in range(40):
            group["a"] = group["b"] = group.file.create_group(None)
            group = group["a"]

    path = written(tmp_path / "m.h5", fill)

    with worker(path) as asked, pytest.raises(CorruptCheckpointError, match="more links than the file has place for"):
        asked.tree()


def test_a_chunk_that_is_too_large_is_told_before_it_is_decoded(tmp_path: Path) -> None:
    shape = (257 * MIB,)

    def fill(file: h5py.File) -> None:
        created = file.create_dataset("x", shape=shape, chunks=shape, dtype="u1", compression="gzip")
        created.id.write_direct_chunk((0,), zlib.compress(bytes(100)))

    path = written(tmp_path / "m.h5", fill)

    with (
        worker(path) as asked,
        pytest.raises(CorruptCheckpointError, match="a chunk of 269484032 bytes is over the limit of 268435456"),
    ):
        asked.read("/x", Box((0,), (1,)), np.empty(1, "u1"))


def test_data_that_grows_more_than_gzip_can_is_refused(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file.create_dataset("x", shape=(17 * MIB,), chunks=(MIB,), dtype="u1", compression="gzip")[0] = 1

    path = written(tmp_path / "m.h5", fill)

    with (
        worker(path) as asked,
        pytest.raises(CorruptCheckpointError, match=r"its 17825792 bytes are stored in [0-9]+, and the limit is 1:1100"),
    ):
        asked.read("/x", Box((0,), (1,)), np.empty(1, "u1"))


def test_zeros_that_gzip_made_small_are_read(tmp_path: Path) -> None:
    path = written(
        tmp_path / "m.h5", lambda file: file.create_dataset("x", data=np.zeros(20 * MIB, "u1"), chunks=(4 * MIB,), compression=9)
    )
    out = np.ones(20 * MIB, "u1")

    with worker(path) as asked:
        asked.read("/x", Box((0,), (20 * MIB,)), out)

    assert not out.any()


def test_a_chunk_that_inflates_without_end_takes_no_memory(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        created = file.create_dataset("x", shape=(1000,), chunks=(1000,), dtype="u1", compression="gzip")
        created.id.write_direct_chunk((0,), zlib.compress(bytes(200 * MIB), 1))

    path = written(tmp_path / "m.h5", fill)

    with worker(path, memory_nbytes=64 * MIB) as asked, pytest.raises(CorruptCheckpointError, match="'/x'"):
        asked.read("/x", Box((0,), (1000,)), np.empty(1000, "u1"))


def test_many_names_for_one_text_do_not_multiply_it(tmp_path: Path) -> None:
    count, path = 1000, tmp_path / "m.h5"
    written(path, lambda file: file.create_dataset("x", data=["a" * 10_000] + ["b"] * (count - 1), dtype=h5py.string_dtype()))
    with h5py.File(path) as file:
        at = file["x"].id.get_offset()
    raw = bytearray(path.read_bytes())
    raw[at : at + 16 * count] = raw[at : at + 16] * count
    path.write_bytes(raw)

    with worker(path) as asked, pytest.raises(CorruptCheckpointError, match=r"'/x': texts of 10001000 bytes are over the limit"):
        asked.texts("/x")


def test_a_foreign_filter_is_named_and_not_loaded(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_chunk((4,))
        created.set_filter(32001, h5py.h5z.FLAG_OPTIONAL)
        space = h5py.h5s.create_simple((4,))
        dataset = h5py.h5d.create(file.id, b"x", h5py.h5t.STD_U8LE, space, created)
        dataset.write_direct_chunk((0,), bytes(4))

    path = written(tmp_path / "m.h5", fill)

    with worker(path) as asked, pytest.raises(CorruptCheckpointError, match="'/x': it is stored through filter 32001") as caught:
        asked.read("/x", Box((0,), (4,)), np.empty(4, "u1"))

    assert "gzip" in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"chunks": (4,)}], ids=["contiguous", "chunked"])
def test_data_that_was_never_written_is_told(tmp_path: Path, options: dict[str, Any]) -> None:
    path = written(tmp_path / "m.h5", lambda file: file.create_dataset("x", shape=(4,), dtype="f4", **options))

    with worker(path) as asked, pytest.raises(CorruptCheckpointError, match="'/x': it was never written"):
        asked.read("/x", Box((0,), (4,)), np.empty(4, "f4"))


@pytest.mark.parametrize(
    "dtype",
    [np.dtype([("x", "i4")]), h5py.vlen_dtype("i4"), h5py.ref_dtype, h5py.enum_dtype({"A": 1}), np.dtype(("i4", (2,)))],
    ids=["compound", "vlen", "reference", "enum", "array"],
)
def test_elements_that_numpy_has_no_word_for_are_told(tmp_path: Path, dtype: np.dtype) -> None:
    path = written(tmp_path / "m.h5", lambda file: file.create_dataset("x", shape=(2,), dtype=dtype))

    with worker(path) as asked:
        assert asked.tree().find("/x")[1:3] == (None, "other")  # type: ignore[index]
        with pytest.raises(CorruptCheckpointError, match="'/x'"):
            asked.read("/x", Box((0,), (2,)), np.empty(2, "i4"))


@pytest.mark.parametrize("kind", [2, 3, 5])
def test_a_text_whose_kind_is_damaged_does_not_crash(tmp_path: Path, kind: int) -> None:
    path = written(tmp_path / "m.h5", lambda file: file.attrs.update({"name": "m"}))
    raw = path.read_bytes()
    text = b"\x19\x01\x01\x00\x10\x00\x00\x00"
    assert raw.count(text) == 1
    path.write_bytes(raw.replace(text, bytes((0x19, kind)) + text[2:]))

    with worker(path) as asked, pytest.raises(CorruptCheckpointError, match=r"'name'|h5py gave"):
        asked.tree().root.attributes["name"]


def test_a_name_that_is_no_utf_8_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "m.h5", lambda file: file.create_group("abc"))
    path.write_bytes(path.read_bytes().replace(b"abc", b"a\xffc"))

    with worker(path) as asked, pytest.raises(CorruptCheckpointError, match=r"'/': .*codec can't decode"):
        asked.tree()


@pytest.mark.parametrize("nbytes", [0, 7, 100, 600, 1500])
def test_a_file_that_is_cut_off_is_told(tmp_path: Path, nbytes: int) -> None:
    path = written(tmp_path / "m.h5", lambda file: file.create_dataset("x", data=[1, 2]), libver="latest")
    path.write_bytes(path.read_bytes()[:nbytes])

    with worker(path) as asked, pytest.raises(CorruptCheckpointError, match=r"m\.h5"):
        asked.tree()


@pytest.mark.parametrize("at", range(0, 2000, 97))
def test_damage_gives_one_of_our_errors_or_a_tree(tmp_path: Path, at: int) -> None:
    def fill(file: h5py.File) -> None:
        file.create_dataset("g/x", data=np.arange(100), chunks=(10,), compression="gzip")
        file.attrs["name"] = "m"

    path = written(tmp_path / "m.h5", fill)
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0xFF
    path.write_bytes(raw)
    start_s = time.monotonic()

    with worker(path) as asked:
        try:
            names = [node.path for node in asked.tree().walk()]
        except (CorruptCheckpointError, UnsafeCheckpointError) as error:
            names = [json.dumps(str(error))]

    assert names
    assert time.monotonic() - start_s < 10
