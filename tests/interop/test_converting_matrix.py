"""Every kind of checkpoint, as its own tool wrote it, into every format, as that one's tool reads it, and back."""

from collections import Counter
from pathlib import Path

import pytest
from foreign_files import KINDS, Values, arrays, bits
from frameworks import keras, tf, torch

from ckptmgr import UnsupportedTensorError, convert, open_checkpoint

LOADED = (keras, tf, torch)  # before the first test, as named here; the kinds use them

INTO = ("tf objects", "h5py", "safetensors", "sharded", "npz", "torch", "step hdf5", "step tf_bundle")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Values]]:
    """One of each kind that was asked for, and what its tool reads from it."""
    return {}


def start(kind: str, written: dict[str, tuple[Path, Values]], factory: pytest.TempPathFactory) -> tuple[Path, Values]:
    if kind not in written:
        path = KINDS[kind].make(factory.mktemp("from"))
        written[kind] = path, KINDS[kind].read(path)
    return written[kind]


def put(source: Path, kind: str, folder: Path) -> Path:
    """Converts it into one of a kind, and gives the path of that."""
    _, _, to, name = KINDS[kind]
    if kind.startswith("step"):
        report = convert(source, folder / "run", to=to, step=2)
        return Path(report.files[0]).parent.parent
    report = convert(source, f"{folder}/{name}", to=to, max_file_nbytes=60 if kind == "sharded" else None)
    assert not [title for title in report.lost if not title.startswith(("state tree", "metadata", "blob"))]
    assert all(tensor.source_crc32c in (None, tensor.crc32c) for tensor in report.tensors)
    return folder / name


@pytest.mark.parametrize("to", INTO)
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_are_the_same_for_the_tools_on_both_sides_and_back(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, written: dict[str, tuple[Path, Values]], kind: str, to: str
) -> None:
    source, values = start(kind, written, tmp_path_factory)
    with open_checkpoint(source) as opened:
        wide = [name for name, spec in opened.specs.items() if spec.dtype == "complex128"]
        dtypes = sorted((spec.shape, spec.dtype) for spec in opened.specs.values())

    if wide and to in ("safetensors", "sharded"):
        with pytest.raises(UnsupportedTensorError) as refusal:
            put(source, to, tmp_path)
        assert refusal.value.tensor in wide
        assert [*tmp_path.rglob("*.safetensors")] == []
        return
    there = put(source, to, tmp_path)

    assert Counter(bits(KINDS[to].read(there)).values()) == Counter(bits(values).values())
    with open_checkpoint(there) as opened:
        assert sorted((spec.shape, spec.dtype) for spec in opened.specs.values()) == dtypes
    if KINDS[kind].to is not None:
        assert bits(KINDS[kind].read(put(there, kind, tmp_path / "back"))) == bits(values)


def test_there_is_every_dtype_that_matters_in_what_was_converted() -> None:
    assert {array.dtype.name for array in arrays().values()} == {
        "float32", "int64", "bool", "float64", "bfloat16", "complex128",
    }  # fmt: skip
