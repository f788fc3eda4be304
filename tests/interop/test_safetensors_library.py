"""safetensors files to and from the format's own library, for every dtype that it can hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy as safetensors_numpy

from ckptmgr import transfer
from ckptmgr.backend import Contents, Folder, PackedArray, Part, TensorSpec, tensor_spec
from ckptmgr.memory import MemorySource
from ckptmgr.storage import PosixStore
from ckptmgr.testing import sample
from ckptmgr.transfer import Want
from ckptmgr_safetensors import SafetensorsBackend
from ckptmgr_safetensors.header import CODES, DTYPES

backend = SafetensorsBackend()
PLAIN = [name for name in CODES if not name.startswith("packed_")]  # what numpy and ml_dtypes have, too
IN_NUMPY = [name for name in PLAIN if hasattr(np, name)]
Arrays = Mapping[str, np.ndarray]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(PosixStore(tmp_path))


def spec_of(array: np.ndarray) -> TensorSpec:
    return array.spec if isinstance(array, PackedArray) else tensor_spec(array.dtype, array.shape)


def write(folder: Folder, arrays: Arrays, **more: Any) -> None:
    specs = {name: spec_of(array) for name, array in arrays.items()}
    parts = [Part(name, spec) for name, spec in specs.items()]
    layout = backend.layout(Contents((tuple(parts),), **more), stem="model", align=4096)
    transfer.write(folder, layout, MemorySource(arrays, specs))


def read(folder: Folder, path: str = "") -> dict[str, np.ndarray]:
    with backend.open(folder, path) as source:
        arrays, _ = transfer.read(source, [Want(name) for name in source.specs])
        return dict(zip(source.specs, arrays, strict=True))


def as_the_library_sees_it(data: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    return {name: (held["dtype"], held["shape"], bytes(held["data"])) for name, held in safetensors.deserialize(data)}


@pytest.mark.parametrize("code", DTYPES)
def test_the_library_reads_every_dtype_that_we_write(folder: Folder, tmp_path: Path, code: str) -> None:
    arrays = {"w": sample(DTYPES[code], (6, 4)), "empty": sample(DTYPES[code], (0, 4))}

    write(folder, arrays)

    seen = as_the_library_sees_it((tmp_path / "model.safetensors").read_bytes())
    assert seen == {"w": (code, [6, 4], arrays["w"].tobytes()), "empty": (code, [0, 4], b"")}


@pytest.mark.parametrize("dtype", PLAIN)
def test_we_read_every_dtype_that_the_library_writes(folder: Folder, tmp_path: Path, dtype: str) -> None:
    given = sample(dtype, (3, 5))

    safetensors_numpy.save_file({"w": given, "scalar": given[:1, :1].reshape(())}, tmp_path / "theirs.safetensors", {"k": "v"})

    found = read(folder, "theirs.safetensors")
    assert found["w"].dtype == given.dtype
    assert found["w"].tobytes() == given.tobytes()
    assert found["scalar"].shape == ()
    assert backend.open(folder, "theirs.safetensors").metadata == {"k": "v"}


def test_packed_tensors_of_a_file_are_written_back_bit_for_bit(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "safetensors"
    packed = read(Folder(PosixStore(golden)), "subbyte.safetensors")

    write(Folder(PosixStore(tmp_path)), packed)

    again = as_the_library_sees_it((tmp_path / "model.safetensors").read_bytes())
    assert again == as_the_library_sees_it((golden / "subbyte.safetensors").read_bytes())


def test_numpys_load_file_gets_what_we_were_given(folder: Folder, tmp_path: Path) -> None:
    arrays = {dtype: sample(dtype) for dtype in IN_NUMPY}
    assert len(arrays) == 13

    write(folder, arrays)

    loaded = safetensors_numpy.load_file(tmp_path / "model.safetensors")
    assert {name: (array.dtype, array.tobytes()) for name, array in loaded.items()} == {
        name: (array.dtype, array.tobytes()) for name, array in arrays.items()
    }


def test_the_library_sees_our_metadata_as_strings(folder: Folder, tmp_path: Path) -> None:
    write(folder, {"w": sample("int8")}, metadata={"format": "pt", "ünï": "\n", "n": 3}, aliases={"tied": "w"})

    with safetensors.safe_open(tmp_path / "model.safetensors", "np") as file:
        assert file.metadata() == {
            "format": "pt",
            "ünï": "\n",
            "n": "3",
            "ckptmgr.json": '["n"]',
            "ckptmgr.aliases": '{"tied":"w"}',
        }


def test_odd_names_are_the_same_for_the_library(folder: Folder, tmp_path: Path) -> None:
    names = ["", " ", "a/b", "層.é", 'q"uote\\n', "nul\x00", "\x7f\u2028", "\U0001f600", "new\nline", "e\u0301"]

    write(folder, {name: np.array([index]) for index, name in enumerate(names)}, paths={name: (name,) for name in names})

    loaded = safetensors_numpy.load_file(tmp_path / "model.safetensors")
    assert {name: int(array[0]) for name, array in loaded.items()} == {name: index for index, name in enumerate(names)}
