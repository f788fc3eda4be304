"""safetensors files to and from torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import Lazy, torch
from safetensors import safe_open

from ckptmgr import transfer
from ckptmgr.backend import Contents, Folder, Layout, Part, TensorSpec, tensor_spec
from ckptmgr.layout import pack
from ckptmgr.memory import MemorySource
from ckptmgr.storage import PosixStore
from ckptmgr.testing import sample
from ckptmgr_safetensors import SafetensorsBackend
from ckptmgr_safetensors.header import CODES

safetensors_torch = Lazy("safetensors.torch")
backend = SafetensorsBackend()
PLAIN = [name for name in CODES if not name.startswith("packed_")]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(PosixStore(tmp_path))


def write(folder: Folder, arrays: Mapping[str, np.ndarray], *, max_file_nbytes: int | None = None, **more: Any) -> Layout:
    specs = {name: tensor_spec(array.dtype, array.shape) for name, array in arrays.items()}
    parts = [Part(name, spec) for name, spec in specs.items()]
    layout = backend.layout(Contents(pack(parts, max_file_nbytes), **more), stem="model", align=4096)
    transfer.write(folder, layout, MemorySource(arrays, specs))
    return layout


def bits(tensor: Any) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", PLAIN)
def test_load_file_gets_every_dtype(folder: Folder, tmp_path: Path, dtype: str) -> None:
    given = sample(dtype, (3, 5))

    write(folder, {"layer/w": given})

    loaded = safetensors_torch.load_file(tmp_path / "model.safetensors")
    assert list(loaded) == ["layer.w"]
    assert str(loaded["layer.w"].dtype) == f"torch.{dtype}"
    assert bits(loaded["layer.w"]) == given.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "complex64", "int64", "bool"])
def test_save_file_is_read(folder: Folder, tmp_path: Path, dtype: str) -> None:
    given = sample(dtype, (3, 5))
    raw = torch.from_numpy(given.view(np.uint8).copy())

    safetensors_torch.save_file({"w": raw.view(getattr(torch, dtype)), "scalar": torch.tensor(1.5)}, tmp_path / "t.safetensors")

    with backend.open(folder, "t.safetensors") as source:
        assert source.specs["w"] == TensorSpec(dtype, (3, 5))
        assert source.read("w").tobytes() == given.tobytes()
        assert source.read("scalar").tolist() == 1.5


def test_shards_and_index_make_the_whole_state(folder: Folder, tmp_path: Path) -> None:
    arrays = {f"model/layers/{index}/w": sample("bfloat16", (8, 8), seed=index) for index in range(9)}

    layout = write(folder, arrays, max_file_nbytes=300, metadata={"format": "pt"})

    assert len(layout.files) == 6
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 9 * 128, "format": "pt"}
    loaded = {name: safetensors_torch.load_file(tmp_path / file)[name] for name, file in index["weight_map"].items()}
    assert {name.replace(".", "/"): bits(tensor) for name, tensor in loaded.items()} == {
        name: array.tobytes() for name, array in arrays.items()
    }


def test_a_module_loads_a_plain_state(folder: Folder, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}

    write(folder, state)
    safetensors_torch.load_model(other, tmp_path / "model.safetensors")

    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in module.state_dict().items())


def test_tied_weights_of_save_model_are_tied_here(folder: Folder, tmp_path: Path) -> None:
    module = torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 3), "head": torch.nn.Linear(3, 5, bias=False)})
    module["head"].weight = module["embed"].weight

    safetensors_torch.save_model(module, str(tmp_path / "tied.safetensors"))

    with backend.open(folder, "tied.safetensors") as source:
        ((alias, name),) = source.aliases.items()
        assert {alias, name} == {"embed.weight", "head.weight"}
        assert source.read(alias).tobytes() == bits(module["embed"].weight.detach())


def test_safe_open_gets_slices(folder: Folder, tmp_path: Path) -> None:
    given = sample("int32", (40, 30))

    write(folder, {"pad": sample("int8", (3,)), "w": given})

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.get_slice("w").get_shape() == [40, 30]
        assert file.get_slice("w")[3:17, 5:9].numpy().tobytes() == given[3:17, 5:9].tobytes()
