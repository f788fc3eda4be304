"""Tensors on their way from files to files: in order, read ahead, in bounded memory."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptmgr
from ckptmgr import Box, convert, open_checkpoint
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.layout import FileLayout, Layout, Part
from ckptmgr.spec import TensorSpec
from ckptmgr.storage import Folder, PosixStore
from ckptmgr.streaming import Stream
from ckptmgr.transfer import write


def layout_of(tensors: dict[str, np.ndarray[Any, Any]], order: list[str]) -> Layout:
    parts = [Part(name, TensorSpec(tensors[name].dtype.name, tensors[name].shape)) for name in order]
    return Layout((FileLayout("out.bin", (b"head", *parts)),))


@pytest.mark.parametrize("budget", [1, 1 << 19, 64 << 20])
def test_bytes_come_in_the_layouts_order_whatever_the_sources_and_the_budget(tmp_path: Path, budget: int) -> None:
    tensors = {f"t{i}": np.arange(i * 700, dtype=np.int16) for i in range(9)} | {"big": np.arange(90_000.0).reshape(300, 300)}
    ckptmgr.save(tmp_path / "a.safetensors", tensors)
    order = [*reversed(tensors)]
    layout = layout_of(tensors, order)

    with open_checkpoint(tmp_path / "a.safetensors") as opened, Stream(opened.source, layout, budget=budget) as stream:
        write(Folder(PosixStore(tmp_path)), layout, stream)

    expected = b"head" + b"".join(tensors[name].tobytes() for name in order)
    assert (tmp_path / "out.bin").read_bytes() == expected


@pytest.mark.parametrize("to", ["hdf5", "safetensors", "tf_bundle", "npz"])
def test_memory_is_bounded_by_the_budget_and_not_by_the_tensors(tmp_path: Path, to: str) -> None:
    big = {"a": np.zeros((3000, 4000), np.float32), "b": np.ones(9_000_000, np.int64)}
    ckptmgr.save(tmp_path / "from", big, backend="tf_bundle")
    convert(tmp_path / "from", f"{tmp_path}/warm/", to=to)  # whatever is imported, is now
    del big

    tracemalloc.start()
    convert(tmp_path / "from", f"{tmp_path}/new/", to=to, budget=16 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 24 << 20  # of 120 MB


def test_what_is_compressed_comes_box_by_box_in_bounded_memory(tmp_path: Path) -> None:
    whole = np.random.default_rng(1).integers(0, 4, (2000, 4000)).astype(np.float64)
    np.savez_compressed(tmp_path / "a.npz", w=whole)
    convert(tmp_path / "a.npz", tmp_path / "warm.safetensors")

    tracemalloc.start()
    convert(tmp_path / "a.npz", tmp_path / "b.safetensors", budget=16 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 40 << 20  # of 64 MB
    with open_checkpoint(tmp_path / "b.safetensors") as opened:
        np.testing.assert_array_equal(opened.read("w", Box((1990, 0), (2000, 4000))), whole[1990:])


def test_a_source_that_is_cut_off_while_it_is_read_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "a.safetensors"
    ckptmgr.save(source, {"a": np.zeros(4_000_000), "b": np.ones(4_000_000)})

    def cut(done: int, total: int) -> None:
        with source.open("r+b") as file:
            file.truncate(40_000_000)

    with pytest.raises(CorruptCheckpointError, match=r"a\.safetensors"):
        convert(source, tmp_path / "b.h5", progress=cut)

    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("backend", ["hdf5", "safetensors", "tf_bundle", "npz"])
def test_a_source_that_is_changed_while_it_is_read_leaves_nothing(tmp_path: Path, backend: str) -> None:
    (tmp_path / "from").mkdir()
    ckptmgr.save(f"{tmp_path}/from/", {"a": np.zeros(4_000_000)}, backend=backend)
    largest = max((tmp_path / "from").iterdir(), key=lambda path: path.stat().st_size)

    def change(done: int, total: int) -> None:
        if done == total:
            with largest.open("r+b") as file:
                file.seek(largest.stat().st_size - 500)
                file.write(b"!")

    with pytest.raises(CorruptCheckpointError):
        convert(tmp_path / "from", tmp_path / "new.h5", progress=change)

    assert not (tmp_path / "new.h5").exists()
