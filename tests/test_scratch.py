"""Tensors that are read across the order they lie in: each byte once, whatever the shape, and every element where it belongs."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transfers import FileSource, RamStore, stored

import ckptmgr
from ckptmgr import Box, scratch
from ckptmgr.deriving import Derived
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.scratch import Scratch
from ckptmgr.spec import TensorSpec
from ckptmgr.transforms import Permuted, Piece, Recipe, Regated, Step

Array = np.ndarray[Any, Any]


@st.composite
def asked(draw: st.DrawFn) -> tuple[Array, tuple[int, ...], int, Box]:
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    dtype = draw(st.sampled_from(["int16", "bfloat16", "complex128", "bool"]))
    array = np.arange(np.prod(shape)).astype(dtype).reshape(shape)
    bounds = [sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in shape]
    box = Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))
    return array, tuple(draw(st.permutations(range(len(shape))))), draw(st.integers(1, array.size)), box


@given(asked())
def test_a_box_is_that_of_the_tensor(case: tuple[Array, tuple[int, ...], int, Box]) -> None:
    array, axes, most, box = case
    pieces = ((each, array[each.slices]) for each in Box.whole(array.shape).chunks(most))

    found = Scratch(array.dtype, axes, pieces).read(box)

    assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, box.shape, array[box.slices].tobytes())


def nbytes_read(store: RamStore) -> int:
    return sum(sum(sizes) for _, _, sizes in store.reads)


def turned(source: FileSource, *more: Step) -> Derived:
    rows, columns = source.specs["w"].shape
    recipe = Recipe(TensorSpec("float32", (columns, rows)), (Piece("w", (Permuted((1, 0)), *more)),))
    return Derived(source, {"t": recipe}, {}, {})


@pytest.mark.parametrize("shape", [(200_000, 64), (3_600, 3_600), (64, 200_000)])
@pytest.mark.parametrize("steps", [(), (Regated((2, 1, 3, 0)),)])
def test_a_transposed_matrix_is_read_once_however_short_its_rows_are(shape: tuple[int, int], steps: tuple[Step, ...]) -> None:
    array = np.random.default_rng(1).random(shape, np.float32)
    store, expected = RamStore(), array.T
    view = turned(stored(store, {"w": array}), *steps)
    if steps:
        blocks = np.split(array.T, 4)
        expected = np.concatenate([blocks[block] for block in (2, 1, 3, 0)])

    for box in Box.whole(expected.shape).chunks(1 << 18):
        assert np.array_equal(view.read("t", box), expected[box.slices])

    once = 1 if shape[0] > 64 else 2  # where whole runs are read as they lie, the checksum takes a pass of its own
    assert nbytes_read(store) <= once * array.nbytes
    assert view._turned == {} or all(each.scratch is None for each in view._turned.values())


def test_what_was_read_across_is_compared_with_its_checksum() -> None:
    store = RamStore()
    source = stored(store, {"w": np.ones((100_000, 8), np.float32)})
    store.damage("data", 3_000_000)

    with pytest.raises(CorruptCheckpointError, match="'w'"):
        turned(source).read("t", Box((0, 0), (1, 50_000)))


def test_the_file_is_gone_with_its_reader() -> None:
    before = os.listdir("/proc/self/fd")
    view = turned(stored(RamStore(), {"w": np.ones((100_000, 8), np.float32)}))
    view.read("t", Box((0, 0), (1, 50_000)))
    assert len(os.listdir("/proc/self/fd")) > len(before)

    del view

    assert len(os.listdir("/proc/self/fd")) <= len(before)


def test_the_file_is_on_a_disk_or_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folder() -> Path:
        made = Scratch(np.dtype("u1"), (0,), [(Box((0,), (3,)), np.zeros(3, np.uint8))])
        return Path(os.readlink(f"/proc/self/fd/{made._fd}")).parent

    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert folder() == Path("/var/tmp")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert folder() == tmp_path
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert folder() == tmp_path


def test_no_room_for_it_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    ckptmgr.save(tmp_path / "a.npz", {"fc": {"kernel": np.ones((3000, 100))}}, backend="npz")
    monkeypatch.setattr(scratch, "_write", full)

    with pytest.raises(OSError, match="TMPDIR"):
        ckptmgr.convert(tmp_path / "a.npz", tmp_path / "b.npz", rename="keras-to-torch", budget=1 << 18)

    assert not (tmp_path / "b.npz").exists()
