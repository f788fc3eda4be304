"""What tests of TensorFlow bundles share: the golden checkpoints with their values, and bundles made entry by entry."""

import hashlib
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ckptmgr.backend import Folder, crc32c, numpy_dtype
from ckptmgr.storage import PosixStore
from ckptmgr_tf_bundle import table
from ckptmgr_tf_bundle.bundle import Bundle, open_bundle
from ckptmgr_tf_bundle.dtypes import CODES
from ckptmgr_tf_bundle.entry import Extents, build_entry, build_header, build_slices
from ckptmgr_tf_bundle.origin import Origin
from ckptmgr_tf_bundle.slices import slice_key

GOLDEN = Path(__file__).parent / "golden" / "tf_bundle"
INDEXES = sorted(GOLDEN.rglob("*.index"))
ORIGIN = Origin("x.index", "/run/x.index")
DATA = "x.data-00000-of-00001"
_SAME_IN_NUMPY = {
    "qint8": "int8",
    "quint8": "uint8",
    "qint16": "int16",
    "quint16": "uint16",
    "qint32": "int32",
    "half": "float16",
}


def expected(name: str) -> dict[str, Any]:
    """What the golden checkpoint of that name holds, as its maker says."""
    found: dict[str, Any] = json.loads((GOLDEN / "expected" / f"{name}.json").read_text())
    return found


def unpacked(folder: Path) -> Path:
    """The golden checkpoint that is kept packed, unpacked into the folder."""
    with tarfile.open(GOLDEN / "keras_full.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def opened(folder: Path, prefix: str = "x", *, is_exact: bool = False) -> Bundle:
    """The bundle of that prefix, which may have folders before it."""
    path = folder / prefix
    return open_bundle(Folder(PosixStore(path.parent)), path.name, is_exact=is_exact)


def plain_dtype(name: str) -> str:
    """ckptmgr's name of a dtype that TensorFlow calls so."""
    return _SAME_IN_NUMPY.get(name, name)


def sha256(array: np.ndarray) -> str:
    """The digest in the expectations: of the raw bytes, or of each string's length and bytes."""
    if array.dtype == object:
        return hashlib.sha256(b"".join(len(value).to_bytes(8, "little") + value for value in array.ravel())).hexdigest()
    return hashlib.sha256(raw(array)).hexdigest()


def raw(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).tobytes()


def write(folder: Path, items: Mapping[bytes, bytes], data: Mapping[str, bytes], header: bytes = build_header(1)) -> Bundle:
    """Writes a bundle ``x`` of these entries and data files, and opens it."""
    (folder / "x.index").write_bytes(table.encode([(b"", header), *sorted(items.items())]))
    for name, content in data.items():
        (folder / name).write_bytes(content)
    return opened(folder)


def write_one(folder: Path, entry: bytes, data: bytes = b"") -> Bundle:
    """A bundle with the one entry ``a`` and one data file."""
    return write(folder, {b"a": entry}, {DATA: data})


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> Bundle:
    """A bundle of these arrays, one after another."""
    items, data = {}, b""
    for key, array in arrays.items():
        stored = raw(array)
        items[key.encode()] = build_entry(CODES[array.dtype.name], array.shape, 0, len(data), len(stored), crc32c(stored))
        data += stored
    return write(folder, items, {DATA: data})


def sliced(
    key: str, dtype: str, shape: tuple[int, ...], pieces: Sequence[tuple[Extents, np.ndarray]]
) -> tuple[dict[bytes, bytes], bytes]:
    """The entries of a partitioned tensor and the data of its pieces."""
    items = {key.encode(): build_slices(CODES[dtype], shape, [extents for extents, _ in pieces])}
    data = b""
    for extents, array in pieces:
        stored = raw(array.astype(numpy_dtype(dtype)))
        items[slice_key(key.encode(), extents)] = build_entry(
            CODES[dtype], array.shape, 0, len(data), len(stored), crc32c(stored)
        )
        data += stored
    return items, data
