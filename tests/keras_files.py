"""What tests of Keras' files share: those that real Keras wrote with what is in them, and files made by h5py for one trap."""

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ckptmgr.backend import Folder
from ckptmgr.storage import PosixStore
from ckptmgr_hdf5.keras_archive import open_hdf5
from ckptmgr_hdf5.keras_reading import Opened, Place, open_keras, open_path
from ckptmgr_hdf5.parsing import parse

GOLDEN = Path(__file__).parent / "golden" / "keras"
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
Fill = Callable[[h5py.File], object]


def opened(path: Path) -> Opened:
    """A checkpoint of Keras of any kind."""
    folder = Folder(PosixStore(path.parent))
    if path.suffix == ".h5":
        found = open_keras(open_hdf5(folder, path.name, parse))
        assert found is not None
        return found
    return open_path(folder, path.name, parse)


def value(folder: Path, place: Place) -> np.ndarray[Any, Any]:
    """The array at a place: read where the file says that it lies, or from what was decompressed."""
    offset, nbytes = place.dataset.offset, place.dataset.nbytes
    assert offset is not None
    if place.hdf5.file is None:
        raw = place.hdf5.reader.read(offset, nbytes)
    else:
        raw = (folder / place.hdf5.file).read_bytes()[offset : offset + nbytes]
    return np.frombuffer(raw, place.dtype).reshape(place.dataset.shape or ())


def values(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """All tensors of a checkpoint by name."""
    folder = path if path.is_dir() else path.parent
    return {name: value(folder, place) for name, place in opened(path).tensors.items()}


def stored(path: Path) -> Mapping[str, str]:
    """The paths in HDF5 by name."""
    found: Mapping[str, Any] = opened(path).metadata
    kept: Mapping[str, str] = found["keras"]["stored"]
    return kept


def h5(path: Path, fill: Fill, **options: Any) -> Path:
    """A new HDF5 file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", **options) as file:
        fill(file)
    return path


def legacy(file: h5py.Group, layers: Mapping[str, Mapping[str, float]]) -> None:
    """The legacy layout: by layer its weights, each one number."""
    file.attrs["layer_names"] = np.array([name.encode() for name in layers])
    for name, weights in layers.items():
        group = file.create_group(name)
        group.attrs["weight_names"] = np.array([weight.encode() for weight in weights]) if weights else np.empty(0)
        for weight, number in weights.items():
            group[weight] = np.float32(number)


def numbered(file: h5py.Group, groups: Mapping[str, int]) -> None:
    """The layout of Keras 3: by path how many variables, each as many numbers long as its own number plus one."""
    for path, count in groups.items():
        group = file.require_group(f"{path}/vars")
        for index in range(count):
            group[str(index)] = np.full(index + 1, index, np.float32)


def model(*layers: tuple[str, str, dict[str, Any]], optimizer: object = None) -> dict[str, Any]:
    """The config of a Sequential model: class, name and the rest of the config of each layer."""
    made = [{"module": "keras.layers", "class_name": kind, "config": {"name": name, **rest}} for kind, name, rest in layers]
    config = {"module": "keras", "class_name": "Sequential", "config": {"name": "m", "layers": made}, "registered_name": None}
    return {**config, "compile_config": {"optimizer": optimizer}}


def archive(path: Path, config: object, fill: Fill, *, extra: Mapping[str, bytes] | None = None, method: int = STORED) -> Path:
    """A ``.keras`` archive by Python's zipfile."""
    weights = h5(path.with_name("weights-of-archive.h5"), fill)
    with zipfile.ZipFile(path, "w", method) as target:
        target.writestr("metadata.json", '{"keras_version": "3.15.1"}')
        target.writestr("config.json", config if isinstance(config, str) else json.dumps(config))
        target.writestr("model.weights.h5", weights.read_bytes())
        for name, data in (extra or {}).items():
            target.writestr(name, data)
    weights.unlink()
    return path
