"""What the tests write: arrays of every dtype and shape, awkward names, damaged bytes, other formats' first bytes."""

import zlib
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np

from ckptmgr.backend import HEAD_NBYTES
from ckptmgr.layout import Path
from ckptmgr.spec import PACKED_BITS, STRING, PackedArray, TensorSpec, tensor_spec

Array: TypeAlias = np.ndarray[Any, Any]

# A byte each, of which not all bits are in use.
_NARROW = ("int2", "uint2", "int4", "uint4", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn")
_NUMPY = [np.dtype(code) for code in "?bhilqBHILQefdgFDG"]
_FLOAT8 = ("e3m4", "e4m3", "e4m3b11fnuz", "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")
DTYPES = (  # that a backend holds, or lists in `BackendContract.refuses`
    *dict.fromkeys(dtype.name for dtype in _NUMPY),
    *("bfloat16", "datetime64[ns]", "timedelta64[ns]"),
    *(f"float8_{kind}" for kind in _FLOAT8),
    *_NARROW,
    *PACKED_BITS,
    STRING,
)
SHAPES = ((), (1,), (0,), (5,), (3, 0, 2), (0, 0), (3, 5), (1, 1, 1), (2, 3, 4), (2,) * 8)
STRINGS = [b"", b"plain", "naïve ✓".encode(), b"\x00\xff\xfe not UTF-8", b"long " * 5000, b"\n"]
AWKWARD: tuple[Path, ...] = (
    *[
        (key,)
        for key in ("", " ", ".", "..", "a/b", "a\\b", "a.b", "~", "~0", "0", "-", 'q"uote', "new\nline", "tab\t", "nul\x00")
    ],
    *[("a", "b"), ("a", "b", "c"), ("a.b", "c"), ("deep", *["x"] * 30), ("layers", 0, "w"), ("layers", "0", "w")],
    *[("ünï-層",), ("é",), ("e\u0301",), ("W",), ("w",), ("n" * 300,), ("__metadata__",), ("con",), ("\U0001f600",), ("\ud800",)],
)
OTHERS = {  # what no backend may take for its own, but the one of that name
    "an empty file": ("empty.bin", b""),
    "text": ("notes.txt", b"{not JSON, and no checkpoint\n" * 100),
    "JSON": ("config.json", b'{"model_type": "none"}'),
    "an index of other files": ("x.index.json", b'{"weight_map": {"w": "model-00001-of-00002.other"}}'),
    "torch": ("model.pt", b"PK\x03\x04\x00\x00\x08\x08\x00\x00\x00\x00\x00\x00" + b"\x00" * 12 + b"archive/data.pkl"),
    "pickle": ("model.bin", b"\x80\x04\x95\x00\x00\x00\x00"),
    "npy": ("w.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'"),
    "zeros": ("zeros.bin", bytes(HEAD_NBYTES)),
    "noise": ("noise.bin", np.random.default_rng(5).bytes(HEAD_NBYTES)),
    "hdf5": ("model.h5", b"\x89HDF\r\n\x1a\n" + bytes(88)),
    "npz": ("w.npz", b"PK\x03\x04" + bytes(22) + b"\x05\x00\x00\x00w.npy"),
    "tf_bundle": ("cp.ckpt.index", b"\x00\x00\x06\x08\x01\x1a\x02\x08\x01\x00\x01\x0e"),
    "safetensors": ("model.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "),
}


def sample(dtype: str, shape: tuple[int, ...] = (3, 4), seed: int = 0) -> Array:
    """An array of that dtype with arbitrary bits (NaNs with payloads, -0.0, denormals); the same for the same arguments."""
    random = np.random.default_rng([seed, *shape, zlib.crc32(dtype.encode())])
    if dtype == STRING:
        values = np.empty(int(np.prod(shape)), object)
        values[:] = [STRINGS[index % len(STRINGS)] for index in range(values.size)]
        return values.reshape(shape)
    spec = TensorSpec(dtype, shape)
    raw = np.frombuffer(random.bytes(spec.nbytes), np.uint8)
    if spec.is_packed:
        return PackedArray.wrap(raw, spec)
    if dtype in (*_NARROW, "bool"):
        return (raw % 2).astype(spec.numpy).reshape(shape)
    return raw.view(spec.numpy).reshape(shape)


def spec_of(array: Array) -> TensorSpec:
    """What the array is as a tensor."""
    return array.spec if isinstance(array, PackedArray) else tensor_spec(array.dtype, array.shape)


def same(found: Array, given: Array) -> bool:
    """Whether two arrays have the same dtype, shape and bytes, byte order and memory order aside."""
    if given.dtype.hasobject:
        return bool(found.shape == given.shape and found.tolist() == given.tolist())
    native = given.astype(given.dtype.newbyteorder("="), copy=False)
    return found.dtype == native.dtype and found.shape == native.shape and found.tobytes() == native.tobytes()


def damaged(good: bytes, random: np.random.Generator) -> Iterable[bytes]:
    """Every kind of harm: cut short, grown, single bytes changed, ranges zeroed or moved."""
    yield from (good[:size] for size in {0, 1, 7, 8, 9, len(good) // 2, max(len(good) - 1, 0)})
    yield good + b"\x00"
    for _ in range(150):
        bad = bytearray(good)
        at = int(random.integers(len(bad)))
        bad[at] ^= 1 << int(random.integers(8))
        yield bytes(bad)
    for _ in range(20):
        start, stop = sorted(int(bound) for bound in random.integers(len(good) + 1, size=2))
        yield good[:start] + bytes(stop - start) + good[stop:]
        yield good[stop:] + good[:stop]
