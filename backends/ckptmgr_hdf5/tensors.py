"""What a dataset is as a tensor, and how its elements come out of the file.

Most lie there as numpy holds them. Others are decoded here (big-endian numbers, enumerations, strings) or by h5py in a process
of its own (chunked and compressed ones). What no array can be made of is told as None: its bytes are carried, at most.
"""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from ckptmgr.backend import Folder, TensorSpec, numpy_dtype, tensor_spec
from ckptmgr.errors import UnsupportedTensorError
from ckptmgr_hdf5.dtypes import DTYPE, SHAPE, stored_dtype
from ckptmgr_hdf5.heaps import Share
from ckptmgr_hdf5.origin import Origin
from ckptmgr_hdf5.parsing import Dataset, Group, Reader, Tree, Value
from ckptmgr_hdf5.worker import EXPANSION, FREE_NBYTES, Worker

Way: TypeAlias = Literal["raw", "decoded", "texts", "strings"]
_OBJECT_NBYTES = 64  # at least, of memory that one string takes, with what leads to it
_NOTE = "dtype"  # the attribute with which Keras says what opaque bytes are


@dataclass(slots=True)
class File:
    """One HDF5 file, or a member of an archive that is one.

    ``name`` is that of the file in ``folder`` where the bytes lie as they are, or None if they are only what ``reader`` reads.
    ``is_exact`` says that ckptmgr wrote it: every bool in it is 0 or 1. ``stored`` and ``decoded`` are how much its datasets may
    take that lie in it as they are, and the others.
    """

    folder: Folder
    name: str | None
    reader: Reader
    origin: Origin
    tree: Tree | None
    is_exact: bool = False
    stored: Share = field(init=False)
    decoded: Share = field(init=False)
    _worker: Worker | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.stored = Share(self.reader.nbytes)
        self.decoded = Share(FREE_NBYTES + EXPANSION * self.reader.nbytes)

    def worker(self) -> Worker:
        """What reads this file by h5py; it lasts until `close`."""
        with self._lock:
            if self._worker is None:
                self._worker = Worker(self.reader, self.origin)
            return self._worker

    def close(self) -> None:
        """Ends the worker, if there is one."""
        with self._lock:
            if self._worker is not None:
                self._worker.close()
                self._worker = None


class Entry(NamedTuple):
    """A tensor in a file. ``stored`` is the dtype that its elements have there, None for strings.

    ``way``: "raw" as numpy holds them, "decoded" by `reading`, "texts" of HDF5, or "strings", all bytes of which are in
    ``data`` and whose ends are in ``dataset``.
    """

    spec: TensorSpec
    file: File
    dataset: Dataset
    way: Way
    stored: np.dtype[Any] | None = None
    data: Dataset | None = None


def understand(file: File, dataset: Dataset, dtype: np.dtype[Any] | None = None) -> Entry | None:
    """The dataset as a tensor; None if it has no elements and shape, or elements that no array holds.

    ``dtype``, if it is given, is what elements of no meaning in HDF5 are.

    Raises:
        CorruptCheckpointError: it was never written, is larger than its file can make it, or our marks do not fit it.
    """
    shape = dataset.shape
    if shape is None:
        return None
    is_text = dataset.kind in ("string", "vlen_string")
    check_size(file, dataset, strings=math.prod(shape) if is_text else 0)
    if is_text:
        return Entry(tensor_spec(np.dtype(object), shape), file, dataset, "texts")
    mark = _attribute(dataset, DTYPE)
    if mark is not None:
        return _marked(file, dataset, _text(mark))
    stored = dataset.dtype
    if stored is None or dataset.kind == "opaque":
        meaning = dtype if dtype is not None and dtype.names is None and dtype.kind != "V" else _noted(file, dataset)
        return None if meaning is None else _entry(file, dataset, tensor_spec(meaning, shape), np.dtype(f"V{meaning.itemsize}"))
    return _entry(file, dataset, tensor_spec(stored.newbyteorder("="), shape), stored)


def unreadable(carried: Mapping[str, tuple[File, Dataset]]) -> dict[str, str]:
    """See `Partial`: datasets of which `understand` makes no tensor. One without elements and shape holds nothing."""
    return {name: _told(dataset) for name, (_, dataset) in carried.items() if dataset.shape is not None}


def _told(dataset: Dataset) -> str:
    kind = "opaque bytes" if dataset.kind == "opaque" else "records, references or others that no array holds"
    return f"shape {'x'.join(map(str, dataset.shape or ())) or 'scalar'}, {dataset.nbytes} bytes: {kind}"


def check_size(file: File, dataset: Dataset, *, strings: int = 0) -> None:
    """Counts a dataset among its file's, with that many strings that it becomes. One with several names is counted once.

    Raises:
        CorruptCheckpointError: it was never written, or with it there is more than the file can be decoded to.
    """
    nbytes, share = dataset.nbytes, file.stored
    if nbytes and dataset.storage == "none":
        raise file.origin.corrupt("it was never written", dataset.path)
    if dataset.offset is None:
        nbytes, share = nbytes + _OBJECT_NBYTES * strings, file.decoded
    if nbytes > share.left(dataset.address):
        problem = f"it would have {nbytes} bytes, and its file has {file.reader.nbytes} for all of its datasets"
        raise file.origin.corrupt(problem, dataset.path)
    share.take(dataset.address, nbytes)


def tied(entries: dict[str, Entry]) -> dict[str, str]:
    """Takes out the tensors that an earlier one is as well, because their datasets have several names: each with that one."""
    firsts: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, (spec, file, dataset, _, _, data) in [*entries.items()]:
        first = firsts.setdefault((id(file), dataset.address, None if data is None else data.address, spec), name)
        if first != name:
            aliases[name] = first
            del entries[name]
    return aliases


def root_of(file: File) -> Group:
    """The root group of a file that was parsed."""
    assert file.tree is not None
    return file.tree.root


def _attribute(dataset: Dataset, name: str) -> Value:
    return dataset.attributes.get(name) if dataset.attributes else None


def _entry(file: File, dataset: Dataset, spec: TensorSpec, stored: np.dtype[Any]) -> Entry:
    is_raw = dataset.offset is not None and not _is_swapped(stored) and (dataset.kind != "bool" or file.is_exact)
    return Entry(spec, file, dataset, "raw" if is_raw or not dataset.nbytes else "decoded", stored)


def _is_swapped(dtype: np.dtype[Any]) -> bool:
    return dtype.byteorder == ">"


def _marked(file: File, dataset: Dataset, name: str) -> Entry:
    """A tensor whose dtype is told by an attribute of ours."""
    try:
        stored = None if name == "string" else stored_dtype(name)
    except UnsupportedTensorError as error:
        raise file.origin.corrupt(f"its {DTYPE} is {name!r}, which is not known", dataset.path) from error
    if stored is None or dataset.dtype != stored or dataset.shape is None:
        raise file.origin.corrupt(f"its {DTYPE} is {name!r}, and it holds {dataset.dtype}", dataset.path)
    shape = _attribute(dataset, SHAPE)
    if not name.startswith("packed_"):
        return _entry(file, dataset, tensor_spec(numpy_dtype(name), dataset.shape), stored)
    if not isinstance(shape, np.ndarray) or shape.ndim != 1 or shape.dtype != np.int64 or shape.size > 32:
        raise file.origin.corrupt(f"its {SHAPE} is no shape", dataset.path)
    try:
        spec = TensorSpec(name, tuple(shape.tolist()))
    except ValueError as error:
        raise file.origin.corrupt(f"its {SHAPE} is no shape: {error}", dataset.path) from error
    if spec.nbytes != dataset.nbytes or len(dataset.shape) != 1:
        raise file.origin.corrupt(f"it has {dataset.nbytes} bytes, and {name} of shape {spec.shape} {spec.nbytes}", dataset.path)
    return _entry(file, dataset, spec, stored)


def string_entry(file: File, ends: Dataset, data: Dataset) -> Entry:
    """A tensor of strings that are no texts.

    Raises:
        CorruptCheckpointError: these are no such datasets.
    """
    for dataset, dtype in ((ends, np.dtype("<u8")), (data, np.dtype(np.uint8))):
        if dataset.dtype != dtype or dataset.shape is None:
            raise file.origin.corrupt("it is no part of a tensor of strings", dataset.path)
    assert ends.shape is not None
    check_size(file, ends, strings=math.prod(ends.shape))
    check_size(file, data)
    return Entry(tensor_spec(np.dtype(object), ends.shape), file, ends, "strings", None, data)


def _noted(file: File, dataset: Dataset) -> np.dtype[Any] | None:
    """The dtype of opaque bytes by Keras' note."""
    note = _attribute(dataset, _NOTE)
    if dataset.dtype is None or dataset.dtype.kind != "V" or not isinstance(note, str | bytes):
        return None
    try:
        dtype = numpy_dtype(_text(note))
    except UnsupportedTensorError:
        return None
    return dtype if dtype.itemsize == dataset.dtype.itemsize and not dtype.hasobject else None


def _text(value: Value) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
