"""What the tests of `transfer` share: a store that counts, tensors in files as a source, and arrays of awkward memory."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ckptmgr.box import Box
from ckptmgr.checksum import crc32c
from ckptmgr.layout import Extent, FileLayout, Layout, Part
from ckptmgr.memory import MemorySource
from ckptmgr.spec import TensorSpec
from ckptmgr.storage import Buffer, Folder, Head, Stored
from ckptmgr.testing import DTYPES, sample
from ckptmgr.testing.samples import spec_of

Array = np.ndarray[Any, Any]


class RamStore:
    """Files in a dict. Keeps the windows of each put, and every read, as (key, offset, sizes of the buffers)."""

    def __init__(self, window_nbytes: int = 1 << 20, workers: int = 2) -> None:
        self.window_nbytes = window_nbytes
        self.workers = workers
        self.files: dict[str, bytes] = {}
        self.windows: dict[str, list[list[int]]] = {}
        self.reads: list[tuple[str, int, list[int]]] = []

    def put(self, key: str, windows: Iterable[Sequence[Buffer]], nbytes: int) -> Stored:
        data = bytearray()
        sizes = []
        for window in windows:
            sizes.append([len(raw(buffer)) for buffer in window])
            data += b"".join(raw(buffer).tobytes() for buffer in window)
        assert len(data) == nbytes
        self.files[key], self.windows[key] = bytes(data), sizes
        return Stored(nbytes)

    def read_into(self, key: str, offset: int, buffers: Sequence[Buffer]) -> None:
        if key not in self.files:
            raise FileNotFoundError(key)
        self.reads.append((key, offset, [len(raw(buffer)) for buffer in buffers]))
        for buffer in buffers:
            view = raw(buffer)
            found = self.files[key][offset : offset + len(view)]
            if len(found) < len(view):
                raise EOFError(key)
            view[:] = np.frombuffer(found, np.uint8)
            offset += len(view)

    def head(self, key: str) -> Head | None:
        return Head(len(self.files[key]), 0.0) if key in self.files else None

    def location(self, key: str) -> str:
        return f"ram:/{key}"

    def damage(self, key: str, at: int) -> None:
        data = bytearray(self.files[key])
        data[at] ^= 0x10
        self.files[key] = bytes(data)


class FileSource(MemorySource):
    """Tensors that lie in files; what has no extents is decoded from memory."""

    def __init__(
        self, specs: Mapping[str, TensorSpec], extents: Mapping[str, Sequence[Extent]], arrays: Mapping[str, Array] = {}
    ):
        super().__init__(arrays, specs)
        self.places = extents

    def extents(self, name: str) -> Sequence[Extent]:
        return self.places.get(name, ())


def raw(buffer: Buffer) -> Array:
    """A buffer's bytes, as a view. Refuses what a store may refuse."""
    if isinstance(buffer, np.ndarray):
        assert buffer.flags.c_contiguous
        return buffer.reshape(-1).view(np.uint8)
    return np.frombuffer(buffer, np.uint8)


def memory(arrays: Mapping[str, Array]) -> MemorySource:
    return MemorySource(arrays, {name: spec_of(array) for name, array in arrays.items()})


def layout(arrays: Mapping[str, Array], *, header: bytes = b"") -> Layout:
    """All the tensors in one file, after a header."""
    parts = tuple(Part(name, spec_of(array)) for name, array in arrays.items())
    return Layout((FileLayout("data", (header, *parts)),))


def stored(
    store: RamStore, arrays: Mapping[str, Array], *, header: bytes = b"", gap: int = 0, is_known: bool = True
) -> FileSource:
    """The tensors as raw bytes in one file, ``gap`` bytes apart, put there without the engine."""
    data = bytearray(header)
    extents = {}
    for name, array in arrays.items():
        content = array.tobytes()
        value = crc32c(content) if is_known else None
        extents[name] = [Extent(Folder(store), "data", len(data), None, value)]
        data += content + b"-" * gap
    store.files["data"] = bytes(data)
    return FileSource({name: spec_of(array) for name, array in arrays.items()}, extents)


def awkward(base: Array, how: str) -> Array:
    """The same values as ``base`` in other memory."""
    if how == "fortran" and base.ndim:
        return np.asfortranarray(base)
    if how == "strided" and base.ndim:
        roomy = np.empty((*base.shape[:-1], base.shape[-1] * 2), base.dtype)
        roomy[..., ::2] = base
        return roomy[..., ::2]
    if how == "reversed" and base.ndim:
        return base[::-1].copy()[::-1]
    if how == "read-only":
        locked = base.copy()
        locked.flags.writeable = False
        return locked
    if how == "big-endian":
        return base.byteswap().view(base.dtype.newbyteorder(">"))
    if how == "misaligned":
        return np.frombuffer(b"?" + base.tobytes(), np.uint8)[1:].view(base.dtype).reshape(base.shape)
    return base


AWKWARD = ("plain", "fortran", "strided", "reversed", "read-only", "big-endian", "misaligned")
RAW_DTYPES = [name for name in DTYPES if name != "string" and not name.startswith("packed")]


@st.composite
def arrays(draw: st.DrawFn) -> tuple[Array, Array]:
    """An array of any dtype, shape and bits; and the same values in awkward memory."""
    dtype = draw(st.sampled_from(RAW_DTYPES))
    shape = draw(st.lists(st.integers(0, 7), max_size=4).map(tuple))
    base = sample(dtype, shape, seed=draw(st.integers(0, 3)))
    return base, awkward(base, draw(st.sampled_from(AWKWARD)))


@st.composite
def boxes(draw: st.DrawFn, shape: Sequence[int]) -> Box:
    """Any box in a tensor of that shape, empty ones included."""
    bounds = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in shape]
    return Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))


def lanes() -> list[str]:
    """Names of the engine's threads that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ckptmgr-")]
