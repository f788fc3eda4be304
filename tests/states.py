"""Random state trees, and the comparison that counts: the same types, the same bits."""

import json
import struct
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from ckptmgr import arrays as arrays_of
from ckptmgr import restoring, tree
from ckptmgr.memory import MemorySource
from ckptmgr.spec import PackedArray

ML_DTYPES = sorted(
    {np.dtype(value).name for value in vars(ml_dtypes).values() if isinstance(value, type) and issubclass(value, np.generic)}
)
NUMPY_DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"]
NUMPY_DTYPES += ["float128", "complex64", "complex128", "complex256", "datetime64[ns]", "timedelta64[ms]"]
DTYPES = [name for name in NUMPY_DTYPES if hasattr(np, name.partition("[")[0])] + ML_DTYPES


def dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def bits(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """An array of random bits: NaN payloads, denormals and -0.0 included."""
    rng = np.random.default_rng(seed)
    kind = dtype(name)
    raw = rng.integers(0, 256, int(np.prod(shape)) * kind.itemsize, np.uint8)
    if name == "bool":
        raw &= 1
    return np.frombuffer(raw.tobytes(), kind).reshape(shape).copy()


def layout(array: np.ndarray, how: str) -> np.ndarray:
    """The same values, differently in memory."""
    if how == "fortran":
        return np.asfortranarray(array)
    if how == "reversed":
        return array[..., ::-1] if array.ndim else array
    if how == "strided":
        wide = np.zeros((*array.shape, 2), array.dtype)
        wide[..., 1] = array
        return wide[..., 1]
    if how == "big-endian":
        return array.astype(array.dtype.newbyteorder(">"))
    if how == "read-only":
        array = array.copy()
        array.flags.writeable = False
    return array


LAYOUTS = ["plain", "fortran", "reversed", "strided", "big-endian", "read-only"]
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
arrays = st.builds(
    lambda name, shape, seed, how: layout(bits(name, shape, seed), how),
    st.sampled_from(DTYPES),
    shapes,
    st.integers(0, 1 << 32),
    st.sampled_from(LAYOUTS),
)
numpy_scalars = st.builds(lambda name, seed: bits(name, (1,), seed)[0], st.sampled_from(DTYPES), st.integers(0, 1 << 32))
floats = st.binary(min_size=8, max_size=8).map(lambda raw: struct.unpack("<d", raw)[0]) | st.sampled_from([-0.0, float("inf")])
any_text = st.text(st.characters(), max_size=6) | st.text("a\ud800\udc00", max_size=4)
big = st.integers(-(10**60), 10**60)
scalars = (
    st.none() | st.booleans() | big | st.integers(-(1 << 54), 1 << 54) | floats | st.builds(complex, floats, floats) | any_text
    | st.binary(max_size=9) | numpy_scalars | any_text.map(np.str_) | st.binary(max_size=9).map(np.bytes_)
)  # fmt: skip
keys = (
    st.sampled_from(["", "a", "b", "a/b", "/", "~", "~0", "~1", "~i1", "a.b", "1", "$tensor", "$", 1, 2, -1, 1 << 60])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
    | st.integers(-(1 << 63), (1 << 63) - 1)
)
trees = st.recursive(
    arrays | scalars,
    lambda inner: st.dictionaries(keys, inner, max_size=5) | st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Equal to the bit; byte order and memory layout of arrays aside."""
    if isinstance(one, np.ndarray):
        if not isinstance(other, np.ndarray) or one.shape != other.shape:
            return False
        if one.dtype.kind in "OT":
            return one.dtype == other.dtype and one.tolist() == other.tolist()
        native = one.dtype.newbyteorder("=")
        return native == other.dtype.newbyteorder("=") and one.astype(native).tobytes() == other.astype(native).tobytes()
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(map(repr, one)) == list(map(repr, other)) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", other)
    if isinstance(one, complex) and not isinstance(one, np.generic):
        return same((one.real, one.imag), (other.real, other.imag))
    if isinstance(one, np.generic) and not isinstance(one, str | bytes):
        # The padding of long doubles is not part of their value.
        return one.dtype == other.dtype and (one.tobytes() == other.tobytes() or repr(one) == repr(other))
    return bool(one == other)


def saved(state: Any) -> tuple[MemorySource, Any]:
    """The state as a checkpoint of its own memory: a source and a skeleton, as they come back from a file."""
    flat = tree.flatten(state)
    copies = {name: np.array(arrays_of.host_array(leaf), order="C", subok=True) for name, leaf in flat.tensors.items()}
    for name, copy in copies.items():
        if flat.specs[name].is_packed:
            copies[name] = PackedArray.wrap(copy, flat.specs[name])
    return MemorySource(copies, flat.specs, aliases=flat.aliases), json.loads(json.dumps(flat.skeleton))


def restored(state: Any, into: Any = None, **how: Any) -> Any:
    """The state saved, and restored into ``into``."""
    source, skeleton = saved(state)
    return restoring.restore(source, skeleton, into=into, **how)[0]


class Part:
    """An object that takes whatever state it is given."""

    def __init__(self, **state: Any) -> None:
        self.state: Any = state
        self.loaded = 0

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state
        self.loaded += 1


def report_of(state: Any, into: Any, **how: Any) -> Any:
    source, skeleton = saved(state)
    return restoring.restore(source, skeleton, into=into, **how)[1]


def foreign(tensors: dict[str, Any], into: Any, **how: Any) -> Any:
    source, _ = saved(tensors)
    return restoring.restore(source, None, into=into, **how)[0]


def blank(state: Any) -> Any:
    """A template of the same structure with other values."""
    if isinstance(state, dict):
        return {key: blank(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(blank, state))
    if isinstance(state, np.ndarray):
        return np.zeros_like(state)
    return state
