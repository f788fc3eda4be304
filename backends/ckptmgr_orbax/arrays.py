"""The arrays of an item, opened by tensorstore, which is told nothing but local paths in the item's own folder.

Files name no places to tensorstore: a spec is made here, metadata of zarr has only codecs in it, and tensorstore refuses keys
of an OCDBT database with ``..`` in them. What could lead out is a link, so a folder with one is refused. What could take
memory is a claim: no chunk may be larger than its array, and all arrays together no larger than their bytes could expand to.
"""

import math
import os
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import tensorstore as ts

from ckptmgr.backend import Path, TensorSpec, tensor_spec
from ckptmgr.errors import CorruptCheckpointError, UnsupportedTensorError
from ckptmgr_orbax.nesting import Item
from ckptmgr_orbax.origin import Origin

ERRORS = (ValueError, RuntimeError, LookupError, OverflowError, NotImplementedError, OSError)  # what tensorstore raises
_FREE_NBYTES = 32 << 20
_MOST_RATIO = 1 << 15  # of zstd: a block of 128 KiB takes 4 bytes at least
_CONTEXT = {"cache_pool": {"total_bytes_limit": 0}, "data_copy_concurrency": {"limit": 4}, "file_io_concurrency": {"limit": 8}}


def vetted(place: str, origin: Origin) -> int:
    """The bytes of all files in a local folder. Raises UnsafeCheckpointError for a link in it."""
    total, folders = 0, [place]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise origin.unsafe(f"{entry.name!r} in it is a link")
                if entry.is_dir():
                    folders.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    raise origin.unsafe(f"{entry.name!r} in it is no file")
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def open_all(place: str, item: Item, stored: int, origin: Origin) -> dict[Path, Any]:
    """All arrays of the item in the local folder ``place``, which has ``stored`` bytes; no chunk is read.

    Raises:
        CorruptCheckpointError: one is missing, damaged, or claims more than could be there.
        UnsafeCheckpointError: a name that leads out of the folder.
        UnsupportedTensorError: a dtype that numpy does not have.
    """
    context = ts.Context(_CONTEXT)
    pending = {path: ts.open(_spec(place, item, array.name, origin), open=True, read=True, context=context)
               for path, array in item.arrays.items()}  # fmt: skip
    left = _FREE_NBYTES + _MOST_RATIO * stored
    found: dict[Path, Any] = {}
    for path, future in pending.items():
        name = item.arrays[path].name
        try:
            opened = future.result()
        except ERRORS as error:
            raise origin.corrupt(f"it cannot be opened: {_short(error)}", name) from error
        left -= _checked(opened, name, origin)
        if left < 0:
            raise origin.corrupt(f"the arrays are much larger than the {stored} bytes that are stored could be", name)
        found[path] = opened
    return found


def spec_of(array: Any, name: str) -> TensorSpec:
    """Dtype and shape of an opened array. Raises UnsupportedTensorError."""
    try:
        return tensor_spec(array.dtype.numpy_dtype.newbyteorder("="), tuple(array.shape))
    except (TypeError, ValueError) as error:
        raise UnsupportedTensorError(f"tensor {name!r} is of {array.dtype.name}, which is not read", tensor=name) from error


def fill(array: Any, name: str, where: tuple[slice, ...], out: "np.ndarray[Any, Any]", origin: Origin) -> None:
    """Reads a slice of an opened array. Raises CorruptCheckpointError."""
    try:
        out[...] = array[where].read().result() if where else array.read().result()
    except ERRORS as error:
        if isinstance(error, CorruptCheckpointError):
            raise
        raise origin.corrupt(f"it cannot be read: {_short(error)}", name) from error


def _spec(place: str, item: Item, name: str, origin: Origin) -> Mapping[str, Any]:
    if not name or not is_inside(name.split("/")):
        raise origin.unsafe(f"it has an array of the name {name!r:.80}")
    base: dict[str, Any]
    if item.is_ocdbt:
        base = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{place}/"}, "path": f"{name}/"}
    else:
        base = {"driver": "file", "path": f"{place}/{name}/"}
    driver = "zarr3" if item.is_zarr3 else "zarr"
    return {"driver": driver, "kvstore": base, "fill_missing_data_reads": item.may_lack_chunks, "recheck_cached_data": "open"}


def is_inside(names: Collection[str]) -> bool:
    """Whether these names, one below the other, stay in the folder that has the first."""
    return not any(name in ("", ".", "..") or "\0" in name for name in names)


def _checked(array: Any, name: str, origin: Origin) -> int:
    """Bytes of the array."""
    shape, layout = tuple(array.shape), array.chunk_layout
    for chunk in (layout.read_chunk.shape, layout.write_chunk.shape):
        if chunk is not None and any(part > max(whole, 1) for part, whole in zip(chunk, shape, strict=True)):
            raise origin.corrupt(f"its chunks of {tuple(chunk)} are larger than itself, of {shape}", name)
    if any(array.domain.origin):
        raise origin.corrupt("its first element is not at 0", name)
    return int(math.prod(shape) * spec_of(array, name).numpy.itemsize)


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{text[:300]}..." if len(text) > 300 else text
