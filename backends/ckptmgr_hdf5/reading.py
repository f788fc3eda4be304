"""Elements of datasets in arrays: whole, or slices of them. Nothing is taken for more memory than was asked for."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np

from ckptmgr.backend import Box, read_raw
from ckptmgr_hdf5.faults import Damaged
from ckptmgr_hdf5.parsing import Dataset
from ckptmgr_hdf5.tensors import Entry, File

_Array: TypeAlias = np.ndarray[Any, Any]
_BYTE = np.dtype(np.uint8)


def fill(entry: Entry, box: Box, out: _Array) -> None:
    """Fills ``out``, of the box's shape and the tensor's dtype, with that slice of a tensor.

    Raises:
        CorruptCheckpointError: the bytes are not there, or not what they are said to be.
    """
    if entry.way == "texts":
        out[...] = _texts(entry)[box.slices]
    elif entry.way == "strings":
        out[...] = _strings(entry)[box.slices]
    elif out.flags.c_contiguous and out.dtype.isnative:
        _decode(entry, box, out)
    else:
        array = np.empty(out.shape, out.dtype.newbyteorder("="))
        _decode(entry, box, array)
        out[...] = array


def stored_bytes(file: File, dataset: Dataset) -> bytes:
    """The bytes of a dataset as they lie in its file, of which they are a part."""
    assert dataset.offset is not None
    with _told(file, dataset.path):
        return file.reader.read(dataset.offset - file.reader.start, dataset.nbytes)


def _decode(entry: Entry, box: Box, out: _Array) -> None:
    """Fills ``out``, which is contiguous and native, with numbers."""
    stored, is_here = entry.stored, entry.dataset.offset is not None
    assert stored is not None
    if entry.dataset.kind == "bool" and is_here:
        _fetch(entry, box, out.view(_BYTE))
        np.not_equal(out.view(_BYTE), 0, out=out)
        return
    _fetch(entry, box, out.view(stored.newbyteorder("=")))
    if is_here and stored.byteorder == ">":
        width = stored.itemsize // 2 if stored.kind == "c" else stored.itemsize
        out.reshape(-1).view(f"u{width}").byteswap(inplace=True)


def _fetch(entry: Entry, box: Box, out: _Array) -> None:
    """Fills ``out`` with elements as they are stored; those that h5py reads come in the byte order of ``out``."""
    file, dataset = entry.file, entry.dataset
    shape = dataset.shape or ()
    if box.size == 0:
        return
    if dataset.offset is None:
        file.worker().read(dataset.path, box, out)
    elif file.name is not None:
        with _told(file, dataset.path):
            read_raw(file.folder, file.name, dataset.offset, shape, box, out)
    else:
        out[...] = np.frombuffer(stored_bytes(file, dataset), out.dtype).reshape(shape)[box.slices]


def _texts(entry: Entry) -> _Array:
    """All texts of a dataset as bytes: those of fixed length without the NULs at their end."""
    file, dataset = entry.file, entry.dataset
    if file.tree is None or dataset.storage == "chunked":
        found = file.worker().texts(dataset.path)
    else:
        with _told(file, dataset.path):
            found = file.tree.strings(dataset)
    values = found.reshape(-1).tolist()
    array = np.empty(len(values), object)
    array[:] = [value.encode() if isinstance(value, str) else value for value in values]
    return array.reshape(found.shape)


def _strings(entry: Entry) -> _Array:
    """All strings of a tensor whose bytes lie one behind the other."""
    file, ends, data = entry.file, entry.dataset, entry.data
    assert data is not None
    joined = _whole(file, data, _BYTE).tobytes()
    bounds = _whole(file, ends, np.dtype("<u8"))
    last = np.concatenate([np.zeros(1, np.uint64), bounds])
    if (last[1:] < last[:-1]).any() or last[-1] != len(joined):
        raise file.origin.corrupt(f"its strings do not end inside of their {len(joined)} bytes, one after another", ends.path)
    stops = last.tolist()
    array = np.empty(len(bounds), object)
    array[:] = [joined[start:stop] for start, stop in itertools.pairwise(stops)]
    return array.reshape(ends.shape or ())


def _whole(file: File, dataset: Dataset, dtype: np.dtype[Any]) -> _Array:
    shape = dataset.shape or ()
    if dataset.offset is not None or not dataset.nbytes:
        data = stored_bytes(file, dataset) if dataset.nbytes else b""
        return np.frombuffer(data, dtype)
    array = np.empty(shape, dtype)
    file.worker().read(dataset.path, Box.whole(shape), array)
    return array.reshape(-1)


@contextmanager
def _told(file: File, path: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, FileNotFoundError) as error:
        raise file.origin.corrupt("the file was cut off or deleted while it was read", path) from error
    except Damaged as error:
        raise file.origin.corrupt(str(error), path) from error
