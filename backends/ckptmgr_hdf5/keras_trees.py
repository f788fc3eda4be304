"""The groups and datasets of Keras files, for variables whose places are decided.

Lists of names are attributes of fixed-length strings, which every Keras reads: one of variable-length strings fails from
about 4,000 names on. What does not fit into 64,512 bytes is split as Keras splits it.

Source: Keras 3.15's legacy_h5_format.py and saving_lib.py; tf_keras 2.21's hdf5_format.py.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ckptmgr.backend import TensorSpec, numpy_dtype
from ckptmgr.errors import UnsupportedTensorError
from ckptmgr_hdf5.datatypes import file_type
from ckptmgr_hdf5.encoding import Attribute, DatasetNode, GroupNode

TOP_LEVEL = "top_level_model_weights"  # a group beside those of the layers
LIST_NBYTES = 64512  # HDF5_OBJECT_HEADER_LIMIT in Keras
_BFLOAT16 = file_type(np.dtype("V2"))


class Legacy(NamedTuple):
    """The legacy layout: by layer the tensors by weight name, all in order; ``top`` are those of the model itself."""

    layers: Mapping[str, dict[str, str]]
    top: dict[str, str]
    optimizer: dict[str, str]


class Release(NamedTuple):
    """Which Keras a file says it is of."""

    version: str
    backend: str


def legacy_weights(legacy: Legacy, release: Release, specs: Mapping[str, TensorSpec]) -> GroupNode:
    """The group of all layers.

    Raises:
        UnsupportedTensorError: a dtype or name that Keras cannot load from there.
    """
    attributes = [
        *names_attribute("layer_names", [*legacy.layers]),
        Attribute("backend", release.backend.encode()),
        Attribute("keras_version", release.version.encode()),
    ]
    group = GroupNode(attributes=attributes)
    for layer, weights in legacy.layers.items():
        add_weights(group.within(*parts_of(layer)), weights, specs)
    add_weights(group.within(TOP_LEVEL), legacy.top, specs)
    return group


def legacy_model(legacy: Legacy, release: Release, config: Mapping[str, str], specs: Mapping[str, TensorSpec]) -> GroupNode:
    """The root of a whole-model file; ``config`` has ``model_config`` and, if it was compiled, ``training_config``."""
    root = GroupNode({"model_weights": legacy_weights(legacy, release, specs)})
    root.attributes = [
        Attribute("keras_version", release.version),
        Attribute("backend", release.backend),
        *(Attribute(key, text.encode("utf-8", "surrogatepass")) for key, text in config.items()),
    ]
    if legacy.optimizer:
        add_weights(root.within("optimizer_weights"), legacy.optimizer, specs)
    return root


def grouped(places: Mapping[str, str], specs: Mapping[str, TensorSpec]) -> GroupNode:
    """The root of Keras 3's weights: tensors by path.

    Raises:
        UnsupportedTensorError: a dtype or name that HDF5 cannot hold.
    """
    root = GroupNode()
    root.within("vars")
    for path, tensor in places.items():
        *group, name = parts_of(path)
        put(root.within(*group), name, dataset(tensor, specs[tensor]))
    return root


def add_weights(group: GroupNode, weights: Mapping[str, str], specs: Mapping[str, TensorSpec]) -> None:
    """Datasets below the group, and their names in order as its attributes."""
    group.attributes = [*group.attributes, *names_attribute("weight_names", [*weights])]
    for weight, tensor in weights.items():
        *inner, name = parts_of(weight)
        put(group.within(*inner), name, dataset(tensor, specs[tensor]))


def put(group: GroupNode, name: str, node: DatasetNode) -> None:
    """Adds a dataset. Raises ValueError if there is something of that name."""
    if name in group.children:
        raise ValueError(f"two weights would have the name {name!r}")
    group.children[name] = node


def dataset(tensor: str, spec: TensorSpec) -> DatasetNode:
    """The dataset of a tensor as Keras writes it; bfloat16 is opaque, and an attribute says what it is.

    Raises:
        UnsupportedTensorError: Keras' files have nothing for this dtype.
    """
    if spec.dtype == "bfloat16":
        return DatasetNode(_BFLOAT16, spec.shape, tensor, (Attribute("dtype", "bfloat16"),))
    try:
        return DatasetNode(file_type(_numpy(spec)), spec.shape, tensor)
    except ValueError as error:
        raise UnsupportedTensorError(
            f"a Keras file cannot hold tensor {tensor!r} of dtype {spec.dtype}: cast it, or use another layout", tensor=tensor
        ) from error


def _numpy(spec: TensorSpec) -> np.dtype:
    dtype = numpy_dtype(spec.dtype)
    if spec.is_packed or spec.is_string or dtype.kind not in "iufcb" or dtype.isbuiltin != 1:
        raise ValueError("no plain number")
    return dtype.newbyteorder("<")


def names_attribute(name: str, names: Sequence[str]) -> list[Attribute]:
    """A list of names as one attribute, or as many of ``name0``, ``name1``, ... as it takes.

    Raises:
        ValueError: one name takes more than 64,512 bytes, or has a NUL at its end.
    """
    if not names:
        return [Attribute(name, np.empty(0))]
    raw = [text.encode() for text in names]
    if any(text.endswith(b"\0") or not text for text in raw):
        raise ValueError(f"{name}: a list of fixed-length strings has no empty names, and none that end in NUL")
    array = np.array(raw)
    if array.itemsize > LIST_NBYTES:
        raise ValueError(f"{name}: a name takes {array.itemsize} bytes, and Keras reads at most {LIST_NBYTES}")
    chunks = 1
    while any(chunk.nbytes > LIST_NBYTES for chunk in np.array_split(array, chunks)):
        chunks += 1
    if chunks == 1:
        return [Attribute(name, array)]
    return [Attribute(f"{name}{index}", chunk) for index, chunk in enumerate(np.array_split(array, chunks))]


def parts_of(path: str) -> list[str]:
    """The names in a path.

    Raises:
        UnsupportedTensorError: one is empty, ``.`` or ``..``, which no Keras reads back.
    """
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise UnsupportedTensorError(f"{path!r} is no path in a Keras file: rename what it is of", tensor=path)
    return parts
