"""New weights in a copy of a file that Keras saved: every other dataset, attribute and member stays what it was.

This is how weights get into a whole-model file of a class that nobody here knows.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ckptmgr.backend import TensorSpec
from ckptmgr_hdf5 import keras_trees
from ckptmgr_hdf5.datatypes import file_type, vlen_string
from ckptmgr_hdf5.encoding import Attribute, DatasetNode, GroupNode
from ckptmgr_hdf5.parsing import Dataset, Group, Value
from ckptmgr_hdf5.reading import stored_bytes
from ckptmgr_hdf5.tensors import File

_NOTE = "dtype"  # Keras' word on opaque bytes, which follows from a tensor's dtype


def copied(file: File, places: Mapping[str, str], dropped: Sequence[str], specs: Mapping[str, TensorSpec]) -> GroupNode:
    """The tree of a file with tensors where datasets were: their names by path. What is at paths in ``dropped`` is left out.

    Raises:
        ValueError: something cannot be copied: an attribute or dataset of a type that Keras does not write.
        UnsupportedTensorError: a dtype that Keras' files have nothing for.
    """
    assert file.tree is not None
    left_out = frozenset(dropped)

    def made(group: Group) -> GroupNode:
        node = GroupNode(attributes=[*_attributes(group)])
        for name, child in group.children.items():
            path = child.path.strip("/")
            if path in left_out:
                continue
            if isinstance(child, Group):
                node.children[name] = made(child)
            elif path in places:
                node.children[name] = _replaced(child, places[path], specs)
            else:
                node.children[name] = _literal(file, child)
        return node

    return made(file.tree.root)


def _replaced(dataset: Dataset, tensor: str, specs: Mapping[str, TensorSpec]) -> DatasetNode:
    node = keras_trees.dataset(tensor, specs[tensor])
    kept = [attribute for attribute in _attributes(dataset) if attribute.name != _NOTE]
    return node._replace(attributes=[*kept, *node.attributes])


def _literal(file: File, dataset: Dataset) -> DatasetNode:
    """A dataset with all its bytes."""
    attributes = [*_attributes(dataset)]
    if dataset.kind == "vlen_string" and dataset.shape is not None and file.tree is not None:
        texts = file.tree.strings(dataset).reshape(-1).tolist()
        return DatasetNode(vlen_string(), dataset.shape, tuple(text.encode() for text in texts), attributes)
    if dataset.shape is None or dataset.dtype is None or (dataset.offset is None and dataset.nbytes):
        raise ValueError(
            f"dataset {dataset.path!r} of {file.origin.location!r} cannot be copied: it is {dataset.kind}, {dataset.storage}"
        )
    data = stored_bytes(file, dataset) if dataset.nbytes else b""
    return DatasetNode(file_type(dataset.dtype), dataset.shape, data, attributes)


def _attributes(node: Group | Dataset) -> Iterator[Attribute]:
    for name, value in node.attributes.items():
        if value is None:
            raise ValueError(f"attribute {name!r} of {node.path!r} cannot be copied: it has no value")
        if isinstance(value, np.ndarray) and value.dtype == object:
            yield from _texts(name, value)
        else:
            yield Attribute(name, value)


def _texts(name: str, value: Value) -> Iterator[Attribute]:
    """Texts of variable length as ones of fixed length, which Keras reads just so, and of which more fit in."""
    assert isinstance(value, np.ndarray)
    if name in ("layer_names", "weight_names") and value.ndim == 1:
        yield from keras_trees.names_attribute(name, value.tolist())
    else:
        yield Attribute(name, np.array([text.encode() for text in value.reshape(-1).tolist()]).reshape(value.shape))
