"""Trees as the bytes of HDF5 files, for h5py to read."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ckptmgr_hdf5.datatypes import file_type
from ckptmgr_hdf5.encoding import Attribute, DatasetNode, GroupNode, encode

Array = np.ndarray[Any, Any]


def literal(value: Any, *attributes: Attribute) -> DatasetNode:
    """A dataset whose bytes stand among the structures."""
    array = np.asarray(value)
    return DatasetNode(file_type(array.dtype), array.shape, array.tobytes(), attributes)


def tensor(name: str, array: Array, *attributes: Attribute) -> DatasetNode:
    """A dataset whose bytes are those of the tensor of that name."""
    return DatasetNode(file_type(array.dtype), array.shape, name, attributes)


def image(root: GroupNode, tensors: Mapping[str, Array] | None = None, *, align: int = 64) -> bytes:
    """The whole file."""
    encoded = encode(root, align=align)
    data = b"".join(piece if isinstance(piece, bytes) else (tensors or {})[piece].tobytes() for piece in encoded.pieces)
    assert len(data) == encoded.nbytes
    return data


def opened(root: GroupNode, tensors: Mapping[str, Array] | None = None) -> h5py.File:
    """The file as h5py opens it."""
    return h5py.File(io.BytesIO(image(root, tensors)), "r")


def written(folder: Path, root: GroupNode, tensors: Mapping[str, Array] | None = None) -> Path:
    """The file on disk."""
    path = folder / "encoded.h5"
    path.write_bytes(image(root, tensors))
    return path
