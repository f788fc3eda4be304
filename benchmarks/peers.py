"""Everybody who saves and restores in the benchmarks: ckptmgr by each of its backends, and the peers.

Each takes the state as its own kind of arrays, made before the clock starts. A library is imported by `Peer.ready`, in
the process from which samples are forked; its threads start in the sample.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import ckptmgr
from benchmarks.measure import emptied, sync
from benchmarks.states import State

Own = Any  # the state as a peer holds it


class Peer:
    """Who saves a state in a folder, and gives it back as fresh arrays (``load``) or in given ones (``fill``)."""

    name = ""
    loads = True  # gives fresh arrays
    fills = False  # reads into given ones

    def ready(self) -> None:
        """Imports what is needed; runs nothing that starts threads."""

    def own(self, state: State) -> Own:
        """The state as this peer's arrays, over the same memory where it can."""
        return state

    def save(self, own: Own, folder: Path) -> None:
        """Saves into an empty folder, durable or not."""

    def load(self, folder: Path) -> Mapping[str, Any]:
        """What is there, as fresh arrays of any library."""
        raise NotImplementedError

    def fill(self, own: Own, folder: Path) -> None:
        """What is there, into the arrays of ``own``."""
        raise NotImplementedError

    def finish(self, folder: Path) -> None:
        """What makes a save durable."""
        sync(folder)

    def warm(self, folder: Path) -> None:
        """Has all code run once, on a state of two tiny tensors."""
        own = self.own({"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)})
        self.save(own, emptied(folder))
        self.finish(folder)
        if self.loads:
            self.load(folder)
        if self.fills:
            self.fill(own, folder)


class Ours(Peer):
    """A managed step: checksums, fsync and atomic commit; every byte that is restored is verified."""

    fills = True

    def __init__(self, backend: str = "safetensors") -> None:
        self.backend = backend
        self.name = f"ckptmgr {backend}"

    def save(self, own: Own, folder: Path) -> None:
        ckptmgr.CheckpointManager(folder, backend=self.backend).save(0, own)

    def load(self, folder: Path) -> Mapping[str, Any]:
        return ckptmgr.CheckpointManager(folder).restore(0).state

    def fill(self, own: Own, folder: Path) -> None:
        ckptmgr.CheckpointManager(folder).restore(0, into=own)

    def finish(self, folder: Path) -> None:
        """Nothing: a save that returned is durable."""


class OursMapped(Ours):
    """A managed step of the given backend, restored as a copy-on-write map."""

    fills = False

    def __init__(self, backend: str = "safetensors") -> None:
        super().__init__(backend)
        self.name += ", mmap"

    def load(self, folder: Path) -> Mapping[str, Any]:
        return ckptmgr.CheckpointManager(folder).restore(0, mmap=True).state


class OursBare(Ours):
    """Files without a manager: atomic and durable."""

    names: ClassVar = {"safetensors": "model.safetensors", "tf_bundle": "model", "hdf5": "model.h5"}
    fills = False

    def __init__(self, backend: str) -> None:
        super().__init__(backend)
        self.name += ", bare files"

    def save(self, own: Own, folder: Path) -> None:
        ckptmgr.save(folder / self.names[self.backend], own, backend=self.backend)

    def load(self, folder: Path) -> Mapping[str, Any]:
        return ckptmgr.load(folder / self.names[self.backend])


class Safetensors(Peer):
    """`safetensors.numpy`."""

    name = "safetensors.numpy"

    def ready(self) -> None:
        import safetensors.numpy  # noqa: F401

    def save(self, own: Own, folder: Path) -> None:
        from safetensors.numpy import save_file

        save_file(own, folder / "model.safetensors")

    def load(self, folder: Path) -> Mapping[str, Any]:
        from safetensors.numpy import load_file

        return load_file(folder / "model.safetensors")


class Torch(Peer):
    """`torch.save` and `torch.load`."""

    name = "torch.save"

    def ready(self) -> None:
        import torch  # noqa: F401

    def own(self, state: State) -> Own:
        return {name: self._tensor(array) for name, array in state.items()}

    def save(self, own: Own, folder: Path) -> None:
        import torch

        torch.save(own, folder / "model.pt")

    def load(self, folder: Path) -> Mapping[str, Any]:
        import torch

        return torch.load(folder / "model.pt", weights_only=True)

    @staticmethod
    def _tensor(array: np.ndarray) -> Any:
        import torch

        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)


class SafetensorsTorch(Torch):
    """`safetensors.torch`, which loads as a map."""

    name = "safetensors.torch"

    def ready(self) -> None:
        import safetensors.torch  # noqa: F401

    def save(self, own: Own, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file(own, folder / "model.safetensors")

    def load(self, folder: Path) -> Mapping[str, Any]:
        from safetensors.torch import load_file

        return load_file(folder / "model.safetensors")


class DCP(Torch):
    """`torch.distributed.checkpoint` in one process. Syncs by itself."""

    name = "torch DCP"
    fills = True

    def ready(self) -> None:
        import torch.distributed.checkpoint  # noqa: F401

    def save(self, own: Own, folder: Path) -> None:
        import torch.distributed.checkpoint as dcp

        dcp.save(own, checkpoint_id=folder, no_dist=True)

    def load(self, folder: Path) -> Mapping[str, Any]:
        import torch
        import torch.distributed.checkpoint as dcp

        found = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
        own = {name: torch.empty(each.size, dtype=each.properties.dtype) for name, each in found.items()}
        self.fill(own, folder)
        return own

    def fill(self, own: Own, folder: Path) -> None:
        import torch.distributed.checkpoint as dcp

        dcp.load(own, checkpoint_id=folder, no_dist=True)


class Orbax(Peer):
    """`orbax.checkpoint` of numpy arrays, as it is by default. Syncs by itself."""

    name = "Orbax"

    def ready(self) -> None:
        import jax
        import orbax.checkpoint  # noqa: F401

        jax.config.update("jax_platforms", "cpu")

    def save(self, own: Own, folder: Path) -> None:
        import orbax.checkpoint as ocp

        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(folder / "step", own)

    def load(self, folder: Path) -> Mapping[str, Any]:
        import orbax.checkpoint as ocp

        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(folder / "step")


class TensorFlow(Peer):
    """`tf.train.Checkpoint` of variables; its arrays come back by `tf.train.load_checkpoint`."""

    name = "tf.train.Checkpoint"
    fills = True
    ending = "/.ATTRIBUTES/VARIABLE_VALUE"

    def ready(self) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import tensorflow  # noqa: F401

    def own(self, state: State) -> Own:
        import tensorflow as tf

        return tf.train.Checkpoint(**{name: tf.Variable(array) for name, array in state.items()})

    def save(self, own: Own, folder: Path) -> None:
        own.write(str(folder / "model"))

    def load(self, folder: Path) -> Mapping[str, Any]:
        import tensorflow as tf

        reader = tf.train.load_checkpoint(str(folder / "model"))
        found = {key: np.asarray(reader.get_tensor(key)) for key in reader.get_variable_to_shape_map()}
        # TensorFlow spells the names of attributes its own way in its keys.
        return {key.removesuffix(self.ending).replace("..", "."): a for key, a in found.items() if key.endswith(self.ending)}

    def fill(self, own: Own, folder: Path) -> None:
        own.read(str(folder / "model")).assert_consumed()


def bits(array: np.ndarray) -> np.ndarray:
    """The array as libraries without bfloat16 can store it."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


class H5py(Peer):
    """`h5py`: a dataset for each array."""

    name = "h5py"
    fills = True

    def ready(self) -> None:
        import h5py  # noqa: F401

    def own(self, state: State) -> Own:
        return {name: bits(array) for name, array in state.items()}

    def save(self, own: Own, folder: Path) -> None:
        import h5py

        with h5py.File(folder / "model.h5", "w") as file:
            for name, array in own.items():
                file.create_dataset(name, data=array)

    def load(self, folder: Path) -> Mapping[str, Any]:
        import h5py

        with h5py.File(folder / "model.h5", "r") as file:
            return {name: dataset[()] for name, dataset in file.items()}

    def fill(self, own: Own, folder: Path) -> None:
        import h5py

        with h5py.File(folder / "model.h5", "r") as file:
            for name, array in own.items():
                file[name].read_direct(array)


class Keras(Peer):
    """`save_weights` to ``.weights.h5`` and `load_weights`, with numpy as Keras' backend: no copy to a device is counted."""

    name = "Keras weights.h5"
    loads = False
    fills = True

    def ready(self) -> None:
        os.environ["KERAS_BACKEND"] = "numpy"  # read on the import below
        import keras  # noqa: F401

    def own(self, state: State) -> Own:
        import keras

        class Holder(keras.layers.Layer):
            """A layer that is one array."""

            def __init__(self, array: np.ndarray) -> None:
                super().__init__()
                self.held = self.add_weight(shape=array.shape, dtype=array.dtype.name, initializer="zeros")
                self.held.assign(array)
                self.built = True

        model = keras.Sequential([Holder(bits(array)) for array in state.values()])
        model.built = True
        return model

    def save(self, own: Own, folder: Path) -> None:
        own.save_weights(folder / "model.weights.h5")

    def fill(self, own: Own, folder: Path) -> None:
        own.load_weights(folder / "model.weights.h5")


class Savez(Peer):
    """`numpy.savez`."""

    name = "numpy.savez"

    def own(self, state: State) -> Own:
        return {name: bits(array) for name, array in state.items()}

    def save(self, own: Own, folder: Path) -> None:
        np.savez(folder / "model.npz", **own)

    def load(self, folder: Path) -> Mapping[str, Any]:
        with np.load(folder / "model.npz") as file:
            return {name: file[name] for name in file.files}


OURS: tuple[Callable[[], Peer], ...] = (Ours, lambda: Ours("tf_bundle"), lambda: Ours("hdf5"))
PEERS: tuple[Callable[[], Peer], ...] = (
    Safetensors,
    SafetensorsTorch,
    Torch,
    DCP,
    Orbax,
    TensorFlow,
    Keras,
    H5py,
    Savez,
)


def chosen(names: Sequence[str] | None, *, of: Sequence[Callable[[], Peer]] = PEERS) -> list[Peer]:
    """Ours, and the peers of these names (of all names, with None)."""
    return [make() for make in OURS] + [peer for peer in (make() for make in of) if names is None or peer.name in names]
