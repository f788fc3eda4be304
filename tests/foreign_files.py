"""A small checkpoint of every kind as the tool that is known for it writes it, and what the tools read from one.

Names of values differ between formats; their shapes and bytes do not. So what a file holds is told by those.
"""

import importlib
import json
import os
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import h5py
import ml_dtypes
import numpy as np
import safetensors.numpy
from frameworks import Lazy, keras, tf, torch

from ckptmgr import CheckpointManager
from ckptmgr.backend import Backend
from ckptmgr_hdf5 import HDF5Backend
from ckptmgr_tf_bundle import TFBundleBackend

Array: TypeAlias = np.ndarray[Any, Any]
Values: TypeAlias = Mapping[str, Array]  # by the names that the format's own tool gives

v1 = Lazy("tensorflow.compat.v1")
safetensors_torch = Lazy("safetensors.torch")
OURS = ("hdf5", "npz", "safetensors", "tf_bundle", "torch")
_ORBAX = """
import sys, numpy as np, ml_dtypes, orbax.checkpoint as ocp
with np.load(sys.argv[1]) as arrays:
    state = {name: arrays[name] for name in arrays}
state["half"] = state["half"].view(ml_dtypes.bfloat16)
ocp.PyTreeCheckpointer().save(sys.argv[2], {"net": state})
"""


def arrays(*without: str) -> dict[str, Array]:
    """What there is to save. ``wide`` no safetensors can hold, and of ``half`` numpy alone knows nothing."""
    random = np.random.default_rng(5)
    found = {
        "w": random.normal(size=(4, 3)).astype(np.float32),
        "b": np.array([1, -2, 3]),
        "mask": np.array([True, False, True]),
        "zero": np.array(2.5),
        "half": random.integers(0, 1 << 15, (5, 2), np.uint16).view(ml_dtypes.bfloat16),
        "wide": np.array([1 + 2j, -0.0j]),
    }
    return {name: array for name, array in found.items() if name not in without}


def tensors(*without: str) -> dict[str, Any]:
    """The same for torch."""
    raw = {name: array.reshape(-1).view(np.uint8).copy() for name, array in arrays(*without).items()}
    return {
        name: torch.from_numpy(raw[name]).view(getattr(torch, array.dtype.name)).reshape(array.shape)
        for name, array in arrays(*without).items()
    }


class Kind(NamedTuple):
    """``make`` writes one into an empty folder and gives its path; ``read`` is what its tool finds in one.

    ``to`` writes one from anything, if ckptmgr does; ``name`` is the file it is, with ``/`` at the end a folder for it.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Values]
    to: str | Backend | None = None
    name: str = ""


def _objects(folder: Path) -> Path:
    net = {name: tf.Variable(array) for name, array in arrays().items()}
    return Path(tf.train.Checkpoint(net=net).save(str(folder / "ckpt")))


def _saver(folder: Path) -> Path:
    graph = tf.Graph()
    with graph.as_default(), v1.Session(graph=graph) as session:
        for name, array in arrays("half").items():
            v1.get_variable(f"net/{name}", initializer=array)
        session.run(v1.global_variables_initializer())
        return Path(v1.train.Saver().save(session, str(folder / "model.ckpt")))


def _saved_model(folder: Path) -> Path:
    module = tf.Module()
    module.net = {name: tf.Variable(array) for name, array in arrays().items()}
    tf.saved_model.save(module, str(folder / "saved"))
    return folder / "saved" / "variables" / "variables"


def _h5py(folder: Path) -> Path:
    with h5py.File(folder / "a.h5", "w") as file:
        for name, array in arrays("half").items():
            file[f"net/{name}"] = array
    return folder / "a.h5"


def _keras(ending: str, *, weights: bool = False) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.BatchNormalization()])
        model.compile("adam", "mse")
        model.train_on_batch(np.ones((5, 3)), np.zeros((5, 4)))
        path = folder / f"model{ending}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras on its own legacy format, and on numpy 2
            if weights and ending == ".h5":
                with h5py.File(path, "w") as file:
                    importlib.import_module("keras.src.legacy.saving.legacy_h5_format").save_weights_to_hdf5_group(file, model)
            else:
                model.save_weights(path) if weights else model.save(path)
        return path

    return make


def _safetensors(folder: Path) -> Path:
    safetensors_torch.save_file(tensors("wide"), folder / "a.safetensors")
    return folder / "a.safetensors"


def _hugging_face(folder: Path) -> Path:
    """As `save_pretrained` leaves it."""
    importlib.import_module("huggingface_hub").save_torch_state_dict(tensors("wide"), folder, max_shard_size=60)
    (folder / "config.json").write_text(json.dumps({"architectures": ["Net"], "hidden_size": 3}))
    return folder


def _sharded(folder: Path) -> Path:
    return _hugging_face(folder) / "model.safetensors.index.json"


def _npz(folder: Path) -> Path:
    np.savez(folder / "a.npz", **{f"net/{name}": array for name, array in arrays("half").items()})
    return folder / "a.npz"


def _pt(folder: Path) -> Path:
    torch.save({"net": tensors()}, folder / "a.pt")
    return folder / "a.pt"


def _dcp(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch, that there is no process group
        dcp = importlib.import_module("torch.distributed.checkpoint")
        dcp.save({"net": tensors()}, checkpoint_id=folder / "dcp", no_dist=True)
    return folder / "dcp"


def _orbax(folder: Path) -> Path:
    kept = arrays("wide")
    np.savez(folder / "a.npz", **(kept | {"half": kept["half"].view(np.uint16)}))
    command = [sys.executable, "-W", "ignore", "-c", _ORBAX, str(folder / "a.npz"), str(folder / "orbax")]
    subprocess.run(command, check=True, timeout=120, env={**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"})
    return folder / "orbax"


def _step(backend: str, *, incremental: bool = False) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        state = {"net": arrays("wide" if backend == "safetensors" else ""), "epoch": 3}
        with CheckpointManager(folder, backend=backend, incremental=incremental) as manager:
            manager.save(1, state)
            return Path(manager.save(2, {**state, "epoch": 4}).path).parent

    return make


def of_tensorflow(path: Path) -> Values:
    reader = tf.train.load_checkpoint(str(path))
    found = {key: reader.get_tensor(key) for key in reader.get_variable_to_dtype_map()}
    return {key: value for key, value in found.items() if isinstance(value, np.ndarray | np.generic)}


def of_h5py(path: Path | Any) -> Values:
    found: dict[str, Array] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind not in "SO":
            found[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def of_archive(path: Path) -> Values:
    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as file:
        return of_h5py(file)


def of_safetensors(path: Path) -> Values:
    found = {name: tensor for file in _files(path) for name, tensor in safetensors_torch.load_file(file).items()}
    plain = {name: array for file in _files(path) for name, array in safetensors.numpy.load_file(file).items()}
    assert {name: plain[name].tobytes() for name in plain} == {name: _host(found[name]).tobytes() for name in found}
    return plain


def _files(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json" if path.is_dir() else path
    if index.suffix != ".json":
        return [path]
    return [index.parent / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def of_numpy(path: Path) -> Values:
    with np.load(path) as found:
        return {name: found[name] for name in found if name != "ckptmgr.json"}


def of_torch(path: Path) -> Values:
    return dict(_flat(torch.serialization.load(path, weights_only=True)))


def of_dcp(path: Path) -> Values:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("torch.distributed.checkpoint.format_utils").dcp_to_torch_save(path, path.parent / "whole.pt")
    return of_torch(path.parent / "whole.pt")


def _flat(node: Any, above: str = "") -> Iterator[tuple[str, Array]]:
    if isinstance(node, torch.Tensor):
        yield above, _host(node)
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flat(value, f"{above}/{key}")


def _host(tensor: Any) -> Array:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    name = str(tensor.dtype).removeprefix("torch.")
    return raw.view(getattr(ml_dtypes, name, None) or np.dtype(name)).reshape(tensor.shape)


def of_step(backend: str) -> Callable[[Path], Values]:
    """By the tool of its format, from the files of the one attempt that is there."""

    def read(path: Path) -> Values:
        [file] = [file for file in path.glob("a-*/model*") if ".data-" not in file.name]
        return TOOLS[backend](file.with_suffix("") if file.suffix == ".index" else file)

    return read


def of_orbax(path: Path) -> Values:
    """What was given to it: Orbax, which has jax, stays out of this process."""
    return arrays("wide")


def bits(values: Values) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Shape and bytes of all values but those that formats have for themselves."""
    own = {name: np.asarray(value) for name, value in values.items() if not name.strip("/").startswith(MARKS)}
    return {name: (value.shape, value.tobytes()) for name, value in own.items()}


# What `tf.train.Checkpoint` counts; blobs that came along, in HDF5; the steps' plain number, which TensorFlow has as a variable.
MARKS = ("save_counter", "%blobs", "epoch")
TOOLS = {"hdf5": of_h5py, "npz": of_numpy, "safetensors": of_safetensors, "tf_bundle": of_tensorflow, "torch": of_torch}
KINDS = {
    "tf objects": Kind(_objects, of_tensorflow, "tf_bundle", "ckpt"),
    "tf saver": Kind(_saver, of_tensorflow, TFBundleBackend(form="name"), "model.ckpt"),
    "saved model": Kind(_saved_model, of_tensorflow),
    "h5py": Kind(_h5py, of_h5py, "hdf5", "a.h5"),
    "keras": Kind(_keras(".keras"), of_archive, HDF5Backend("keras"), "model.keras"),
    "keras weights": Kind(_keras(".weights.h5", weights=True), of_h5py, HDF5Backend("keras-weights"), "model.weights.h5"),
    "keras h5": Kind(_keras(".h5"), of_h5py, HDF5Backend("keras-legacy"), "model.h5"),
    "keras h5 weights": Kind(_keras(".h5", weights=True), of_h5py),
    "safetensors": Kind(_safetensors, of_safetensors, "safetensors", "a.safetensors"),
    "sharded": Kind(_sharded, of_safetensors, "safetensors", "sharded/"),
    "hugging face": Kind(_hugging_face, of_safetensors),
    "npz": Kind(_npz, of_numpy, "npz", "a.npz"),
    "torch": Kind(_pt, of_torch, "torch", "a.pt"),
    "torch dcp": Kind(_dcp, of_dcp),
    "orbax": Kind(_orbax, of_orbax),
    **{f"step {name}": Kind(_step(name), of_step(name), name) for name in OURS},
    "incremental step": Kind(_step("safetensors", incremental=True), of_step("safetensors")),
}
