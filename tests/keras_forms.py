"""Keras' files as ckptmgr opens and writes them, for tests."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ckptmgr import transfer
from ckptmgr.backend import Contents, Layout, Part, TensorSource, tensor_spec
from ckptmgr.layout import pack
from ckptmgr.memory import MemorySource
from ckptmgr.storage import Folder, PosixStore
from ckptmgr_hdf5 import keras_writing
from ckptmgr_hdf5.opening import open_path

GOLDEN = Path(__file__).parent / "golden" / "keras"
Tensors = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Saved:
    """Everything in a Keras file."""

    tensors: dict[str, np.ndarray[Any, Any]]
    metadata: Mapping[str, Any]
    blobs: Mapping[str, bytes]

    def without(self, *prefixes: str) -> "Saved":
        """The same, but for tensors whose names start so."""
        return Saved({name: t for name, t in self.tensors.items() if not name.startswith(prefixes)}, self.metadata, self.blobs)


def source(path: Path) -> TensorSource:
    return open_path(Folder(PosixStore(path.parent)), path.name)


def saved(path: Path) -> Saved:
    with source(path) as opened:
        blobs = {name: bytes(opened.blobs[name]) for name in opened.blobs}
        return Saved({name: opened.read(name) for name in opened.specs}, json.loads(json.dumps(opened.metadata)), blobs)


def golden(name: str) -> Saved:
    return saved(GOLDEN / name)


def planned(
    tensors: Tensors,
    form: keras_writing.Form,
    *,
    metadata: Mapping[str, Any] | None = None,
    blobs: Mapping[str, bytes] | None = None,
    template: TensorSource | None = None,
    most: int | None = None,
) -> Layout:
    parts = [Part(name, tensor_spec(array.dtype, array.shape)) for name, array in tensors.items()]
    contents = Contents(files=pack(parts, most), metadata=metadata or {}, blobs=blobs or {})
    return keras_writing.layout(contents, form=form, stem="model", align=4096, template=template)


def write(folder: Path, tensors: Tensors, layout: Layout) -> Path:
    """Writes the layout by the engine, and gives the path of the file to open."""
    specs = {name: tensor_spec(array.dtype, array.shape) for name, array in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    transfer.write(Folder(PosixStore(folder)), layout, MemorySource(tensors, specs))
    return folder / layout.files[-1].name


def rewrite(folder: Path, held: Saved, form: keras_writing.Form, *, most: int | None = None) -> Path:
    """Writes what an opened file gave, in any form, without a template."""
    layout = planned(held.tensors, form, metadata=held.metadata, blobs=held.blobs, most=most)
    return write(folder, held.tensors, layout)
