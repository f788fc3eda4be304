"""Files of `torch.save` read without torch, and ours read by `torch.load`: equal bytes in both directions."""

import argparse
import collections
import pathlib
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from frameworks import torch

import ckptmgr
from ckptmgr import CheckpointManager
from ckptmgr.backend import Box, Contents, FileLayout, Part, TensorSpec
from ckptmgr.errors import UnsafeCheckpointError
from ckptmgr.layout import Late
from ckptmgr.testing import sample
from ckptmgr.testing.samples import same
from ckptmgr_torch import TorchBackend
from ckptmgr_torch.allowed import DTYPES


def host(tensor: Any) -> np.ndarray:
    """A tensor of torch as an array of the same dtype and bytes."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    name = str(tensor.dtype).removeprefix("torch.")
    return raw.view(getattr(ml_dtypes, name, None) or np.dtype(name)).reshape(tensor.shape)


def of(dtype: str, shape: tuple[int, ...] = (3, 4)) -> Any:
    """A tensor of torch with arbitrary bits."""
    return torch.from_numpy(sample(dtype, shape).reshape(-1).view(np.uint8).copy()).view(getattr(torch, dtype)).reshape(shape)


def trained() -> tuple[Any, Any]:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_dtype_and_view_of_theirs_is_read_bit_for_bit(tmp_path: Path, protocol: int) -> None:
    grid = of("float32", (4, 6))
    tensors = {
        **{dtype: of(dtype) for dtype in DTYPES},
        "transposed": grid.t(),
        "cut": grid[1:3, ::2],
        "column": grid[:, 3],
        "expanded": of("float64", (1, 3)).expand(4, 3),
        "channels last": of("bfloat16", (2, 3, 4, 5)).contiguous(memory_format=torch.channels_last),
        "permuted": of("int16", (2, 3, 4)).permute(2, 0, 1),
        "parameter": torch.nn.Parameter(of("float32")),
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(2.5),
        "of ones": of("uint8", (1, 1, 1)),
        "overlapping": torch.as_strided(grid, (3, 4), (1, 2)),
    }
    torch.save(tensors, tmp_path / "m.pt", pickle_protocol=protocol)

    with ckptmgr.open_checkpoint(tmp_path / "m.pt") as checkpoint:
        found = checkpoint.load()
        source = checkpoint._source
        for name, tensor in tensors.items():
            expected = host(tensor)
            assert same(found[name], expected), name
            out = np.zeros(expected.shape, expected.dtype)
            source.read(name, None, out)
            assert same(out, expected), name
            if expected.ndim > 1 and expected.size:
                start = (0, expected.shape[1] // 2, *[0] * (expected.ndim - 2))
                box = Box(start, expected.shape)
                assert same(source.read(name, box), np.ascontiguousarray(expected[box.slices])), name
    assert [*found] == [*tensors]


def test_plain_values_of_theirs_come_back_in_their_tree(tmp_path: Path) -> None:
    state = {
        "epoch": 3, "loss": -0.5, "name": "ü", "raw": b"\x00\xff", "none": None, "yes": True, "large": 2**70, "c": 1 + 2j,
        "list": [1, (2, [3, {"k": None}])], "order": collections.OrderedDict(a=1), "counter": collections.Counter("aab"),
        "default": collections.defaultdict(list, {"x": [1]}), "set": {5}, "size": torch.Size([2, 3]),
        "device": torch.device("cuda:1"), "dtype": torch.bfloat16, "args": argparse.Namespace(lr=0.1),
        "path": pathlib.PurePosixPath("/a/b"), "array": np.arange(6.0).reshape(2, 3), "scalar": np.float32(1.5),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)), 7: "a key that is a number",
    }  # fmt: skip
    torch.save(state, tmp_path / "m.pth")

    found = ckptmgr.load(tmp_path / "m.pth")

    others = {"set": [5], "size": (2, 3), "device": "cuda:1", "dtype": "torch.bfloat16", "args": {"lr": 0.1}, "path": "/a/b"}
    expected = {**state, **others}
    assert [*found] == [*expected]
    for key, value in expected.items():
        assert np.array_equal(found[key], value) if isinstance(value, np.ndarray) else found[key] == value, key
    assert type(found["scalar"]) is np.float32


def test_a_training_state_of_theirs_goes_into_model_and_optimizer(tmp_path: Path) -> None:
    model, optimizer = trained()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 4}, tmp_path / "m.pt")
    new_model, new_optimizer = trained()
    new_optimizer.state.clear()
    torch.nn.init.zeros_(new_model[0].weight)

    state = ckptmgr.load(tmp_path / "m.pt", into={"model": new_model, "optimizer": new_optimizer, "epoch": 0})

    assert state["epoch"] == 4
    assert all(same(host(a), host(b)) for a, b in zip(model.state_dict().values(), new_model.state_dict().values(), strict=True))
    assert torch.equal(new_optimizer.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_a_state_dict_of_theirs_is_a_flat_checkpoint_whose_names_match_nested_ones(tmp_path: Path) -> None:
    model, _ = trained()
    torch.save(model.state_dict(), tmp_path / "m.pth")

    with ckptmgr.open_checkpoint(tmp_path / "m.pth") as checkpoint:
        assert checkpoint.skeleton is None
        nested = checkpoint.restore(into={"0": {"weight": np.zeros((4, 3), np.float32)}}, strict=False).state
        assert same(nested["0"]["weight"], host(model[0].weight))
        assert all(checkpoint.extents(name) for name in checkpoint.specs)


def test_tied_tensors_are_one_in_both_directions(tmp_path: Path) -> None:
    shared = of("float32")
    torch.save({"a": shared, "b": {"c": shared}, "apart": shared.clone(), "view": shared[1:]}, tmp_path / "theirs.pt")

    with ckptmgr.open_checkpoint(tmp_path / "theirs.pt") as checkpoint:
        assert checkpoint.aliases == {"b/c": "a"}
        found = checkpoint.load()
        assert found["a"] is found["b"]["c"]
        assert same(found["view"], host(shared[1:]))
        ckptmgr.save(tmp_path / "ours.pt", found, backend="torch")

    ours = torch.serialization.load(tmp_path / "ours.pt", weights_only=True)
    assert ours["a"].data_ptr() == ours["b"]["c"].data_ptr() != ours["apart"].data_ptr()


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_what_we_write_as_weights_only(tmp_path: Path, mmap: bool) -> None:
    state = {
        "dtypes": {dtype: sample(dtype) for dtype in DTYPES},
        "shapes": [sample("float32", shape) for shape in ((), (0,), (3, 0, 2), (1, 1), (300, 200))],
        "plain": {"n": 3, "x": -0.0, "t": "ünï", "b": b"\x00\xff", "none": None, "yes": True, "large": -(2**70), "c": 1 + 2j},
        "nested": [(1, [2, {"k": np.float32(1.5)}])],
        5: "a number",
    }

    ckptmgr.save(tmp_path / "m.pt", state, backend="torch")

    found = torch.serialization.load(tmp_path / "m.pt", weights_only=True, mmap=mmap)
    assert all(same(host(found["dtypes"][dtype]), array) for dtype, array in state["dtypes"].items())
    assert all(same(host(a), b) for a, b in zip(found["shapes"], state["shapes"], strict=True))
    assert (found["plain"], found["nested"], found[5]) == (state["plain"], [(1, [2, {"k": 1.5}])], "a number")
    again = ckptmgr.load(tmp_path / "m.pt")
    assert type(again["nested"][0][1][1]["k"]) is np.float32
    assert all(same(again["dtypes"][dtype], array) for dtype, array in state["dtypes"].items())


def test_a_manager_writes_steps_that_torch_loads_into_model_and_optimizer(tmp_path: Path) -> None:
    model, optimizer = trained()
    with CheckpointManager(tmp_path / "run", backend="torch") as manager:
        info = manager.save(7, {"model": model, "optimizer": optimizer, "epoch": 4})
        assert manager.verify(7).ok
        assert manager.restore(into={"model": model, "optimizer": optimizer, "epoch": 0}).state["epoch"] == 4

    found = torch.serialization.load(Path(info.path) / "model.pt", weights_only=True, mmap=True)

    new_model, new_optimizer = trained()
    new_model.load_state_dict(found["model"])
    new_optimizer.load_state_dict(found["optimizer"])
    assert found["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]
    assert found["epoch"] == 4


def test_files_of_a_run_of_theirs_are_steps_and_are_adopted(tmp_path: Path) -> None:
    for step in (10, 20):
        state = {"w": torch.full((3, 2), float(step)).t(), "v": torch.ones(5), "step": step}
        torch.save(state, tmp_path / f"checkpoint-{step}.pt")

    with CheckpointManager(tmp_path, backend="torch") as manager:
        assert [info.step for info in manager.steps()] == [10, 20]
        assert manager.restore().state["step"] == 20
        manager.adopt()
        restored = manager.restore().state

    assert restored["step"] == 20
    assert same(restored["w"], np.full((2, 3), 20, np.float32))


def test_records_without_a_checksum_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, tmp_path / "m.pt")
    finally:
        torch.serialization.set_crc32_options(True)

    assert ckptmgr.load(tmp_path / "m.pt")["w"].tolist() == [1, 1, 1]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:.*TypedStorage")
def test_what_is_no_plain_tensor_is_refused_by_the_name_of_its_global(tmp_path: Path) -> None:
    model, _ = trained()
    others = {
        "torch.nn.modules.container.Sequential": model,
        "torch._utils._rebuild_sparse_tensor": {"m": {"w": torch.ones(2).to_sparse()}},
        "torch._utils._rebuild_qtensor": {"m": {"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)}},
        "torch._utils._rebuild_meta_tensor_no_storage": {"m": {"w": torch.ones(2, device="meta")}},
    }
    for name, value in others.items():
        torch.save(value, tmp_path / "m.pt")
        with pytest.raises(UnsafeCheckpointError, match=name) as caught:
            ckptmgr.load(tmp_path / "m.pt")
        assert "'m/w'" in str(caught.value) or value is model


@pytest.mark.parametrize("lazy", [lambda z: z.conj(), lambda z: z.conj().imag, lambda z: z.conj()[1:]])
def test_bytes_that_stand_for_other_values_are_refused(tmp_path: Path, lazy: Any) -> None:
    value = lazy(torch.tensor([1 + 2j, 3 - 4j]))
    torch.save({"m": {"z": value}}, tmp_path / "m.pt")
    torch.save({"m": {"z": value.resolve_conj().resolve_neg()}}, tmp_path / "n.pt")

    with pytest.raises(UnsafeCheckpointError, match=r"'m/z': .*conjugate or the negative.*resolve_conj"):
        ckptmgr.load(tmp_path / "m.pt")
    assert same(ckptmgr.load(tmp_path / "n.pt")["m"]["z"], host(value.resolve_conj().resolve_neg()))


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:.*TypedStorage")
def test_older_files_and_programs_are_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")

    with pytest.raises(UnsafeCheckpointError, match=r"before torch 1\.6.*save it again with torch"):
        ckptmgr.load(tmp_path / "old.pt")
    with pytest.raises(UnsafeCheckpointError, match=r"TorchScript.*state_dict"):
        ckptmgr.load(tmp_path / "program.pt")


def test_a_file_of_more_than_4_gib_is_mapped_by_torch_and_read_by_us(tmp_path: Path) -> None:
    """A file with holes for the bytes of its tensors: places and sizes of more than 32 bits."""
    shapes = {"small": ("int8", (5,)), "large": ("uint8", ((4 << 30) + 9,)), "last": ("float32", (3,))}
    parts = [Part(name, TensorSpec(*spec)) for name, spec in shapes.items()]
    [file] = TorchBackend().layout(Contents((tuple(parts),)), stem="m", align=4096).files
    sparse(file, tmp_path / "m.pt")

    found = torch.serialization.load(tmp_path / "m.pt", weights_only=True, mmap=True)

    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {part.name: part.spec.shape for part in parts}
    assert found["last"].tolist() == [0, 0, 0]
    with ckptmgr.open_checkpoint(tmp_path / "m.pt") as checkpoint:
        assert [checkpoint.extents(part.name)[0].offset for part in parts] == [offset for _, offset, _ in file.parts()]
        assert checkpoint.read("large", Box(((4 << 30),), ((4 << 30) + 9,))).tolist() == [0] * 9
        assert checkpoint.read("last").tolist() == [0, 0, 0]


def sparse(file: FileLayout, path: Path) -> None:
    """Writes a layout's file with zeros for tensors, and checksums of 0 for those."""
    sums = [zlib.crc32(piece) if isinstance(piece, bytes) else 0 for piece in file.pieces]
    digests = {file.name: {"crc32": sums, "crc32c": sums}}
    with path.open("wb") as target:
        for piece in file.pieces:
            if isinstance(piece, Part):
                target.seek(piece.nbytes, 1)
            else:
                target.write(piece.build(digests) if isinstance(piece, Late) else piece)


def test_torch_is_not_imported_by_reading_or_writing(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3).t()}, tmp_path / "m.pt")
    script = (
        "import sys, ckptmgr\n"
        "assert 'ckptmgr_torch' not in sys.modules\n"
        f"ckptmgr.save({str(tmp_path / 'n.pt')!r}, ckptmgr.load({str(tmp_path / 'm.pt')!r}), backend='torch')\n"
        "assert 'torch' not in sys.modules\n"
    )

    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)

    assert torch.serialization.load(tmp_path / "n.pt", weights_only=True)["w"].tolist() == [1, 1, 1]
