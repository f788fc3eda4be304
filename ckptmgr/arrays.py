"""Array leaves of any framework as host arrays, and back.

Mutable leaves (numpy, torch, variables, buffers, generators) are filled in place; immutable ones (jax, TensorFlow) are made
anew in the same place. Frameworks are recognized by the type of a leaf and never imported.
"""

import sys
from collections.abc import Callable, Hashable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np

from ckptmgr.adapter import Adapter, Array, BufferAdapter, NumpyAdapter, PlainNumpyAdapter, ProtocolAdapter, SpecAdapter
from ckptmgr.box import Box
from ckptmgr.errors import UnsupportedLeafError, UnsupportedTensorError
from ckptmgr.frameworks import (
    CupyAdapter,
    JaxAdapter,
    JaxSpecAdapter,
    MlxAdapter,
    TensorFlowAdapter,
    TensorFlowSpecAdapter,
    TorchAdapter,
    TorchGeneratorAdapter,
)
from ckptmgr.spec import TensorSpec
from ckptmgr.strings import to_strings

_nbytes = attrgetter("nbytes")


class _KerasAdapter(Adapter):
    """A Keras 3 variable: a box around a value of its backend, which is filled in place or replaced in the box."""

    def kind(self, leaf: Any) -> str:
        return _adapter(leaf.value).kind(leaf.value)

    def describe(self, leaf: Any) -> TensorSpec:
        return _adapter(leaf.value).describe(leaf.value)

    def host(self, leaf: Any) -> Array:
        return _adapter(leaf.value).host(leaf.value)

    def part(self, leaf: Any, box: Box) -> Array:
        return _adapter(leaf.value).part(leaf.value, box)

    def frozen(self, leaf: Any) -> Array | None:
        return _adapter(leaf.value).frozen(leaf.value)

    def stage(self, leaf: Any, out: Array) -> Callable[[], object] | None:
        return _adapter(leaf.value).stage(leaf.value, out)

    def destination(self, leaf: Any) -> Array | None:
        return _adapter(leaf.value).destination(leaf.value)

    def fill(self, leaf: Any, array: Array) -> Any:
        value = leaf.value
        filled = _adapter(value).fill(value, array)
        if filled is not value:
            leaf.assign(filled)
        return leaf

    def identity(self, leaf: Any) -> Hashable:
        return _adapter(leaf.value).identity(leaf.value)


# In this order: Keras variables before those of TensorFlow, which some of them also are.
_FRAMEWORKS: tuple[tuple[str, str, Adapter], ...] = (
    ("torch", "Tensor", TorchAdapter()),
    ("torch", "Generator", TorchGeneratorAdapter()),
    ("jax", "Array", JaxAdapter()),
    ("jax", "ShapeDtypeStruct", JaxSpecAdapter()),
    ("keras", "Variable", _KerasAdapter()),
    ("tensorflow", "Variable", TensorFlowAdapter()),
    ("tensorflow", "Tensor", TensorFlowAdapter()),
    ("tensorflow", "TensorSpec", TensorFlowSpecAdapter()),
    ("mlx.core", "array", MlxAdapter()),
    ("cupy", "ndarray", CupyAdapter()),
)
_NO_ARRAYS = (str, bytes, int, float, complex, np.generic, np.dtype, type)  # though some have an array's protocols
_MAKERS: dict[str, tuple[str, Adapter]] = {  # by the start of a kind: the module that must be loaded
    "torch": ("torch", TorchAdapter()),
    "torch.generator": ("torch", TorchGeneratorAdapter()),
    "jax": ("jax", JaxAdapter()),
    "jax.key": ("jax", JaxAdapter()),
    "tensorflow": ("tensorflow", TensorFlowAdapter()),
    "mlx": ("mlx.core", MlxAdapter()),
    "cupy": ("cupy", CupyAdapter()),
}
_by_type: dict[type, Adapter | None] = {np.ndarray: PlainNumpyAdapter()}


def adapter(leaf: Any) -> Adapter | None:
    """What answers for leaves of this type; None if it is no array."""
    kind = type(leaf)
    try:
        return _by_type[kind]
    except KeyError:
        if len(_by_type) > 10_000:  # types made at run time must not pile up
            _by_type.clear()
            _by_type[np.ndarray] = PlainNumpyAdapter()
        return _by_type.setdefault(kind, _recognize(leaf))


def describe(leaf: Any) -> TensorSpec | None:
    """The leaf's dtype and shape, or None if it is no array.

    Raises:
        UnsupportedLeafError: an array whose values cannot be stored exactly; the message goes on from the leaf's path.
        UnsupportedTensorError: an array of a dtype that has no name here, e.g. a structured one.
    """
    found = adapter(leaf)
    return None if found is None else found.describe(leaf)


def alike(leaves: Sequence[Any]) -> tuple[Adapter, list[TensorSpec]] | None:
    """What answers for all of these leaves, and their specs: of arrays of one type that share nothing and are not empty.

    The same object may be among them twice. None for all others: they are asked one by one.
    """
    found = adapter(leaves[0]) if leaves else None
    if found is None or len(set(map(type, leaves))) > 1:
        return None
    try:
        specs = found.describe_all(leaves)
    except (UnsupportedLeafError, UnsupportedTensorError):
        return None  # one by one, to tell which
    return None if specs is None or not all(map(_nbytes, specs)) else (found, specs)


def kind(leaf: Any) -> str:
    """What `make` has to know to make such an array: ``"numpy"``, ``"torch"``, ``"jax"``, ``"jax.key/threefry2x32"``, ..."""
    return _adapter(leaf).kind(leaf)


def host_array(leaf: Any, box: Box | None = None) -> Array:
    """The leaf's values, or the slice ``box`` of them, in host memory.

    It is the leaf's own memory where that is possible, and then read-only, strided or big-endian as the leaf is. Of a
    leaf on a device only the slice is copied. A packed leaf gives a `PackedArray`, which has no slices; a string array an
    object array of `bytes`.
    """
    found = _adapter(leaf)
    array = found.host(leaf) if box is None else found.part(leaf, box)
    return to_strings(array) if array.dtype.kind in "SUOT" else array


def frozen(leaf: Any) -> Array | None:
    """The leaf's values in host memory, if nothing can change them any more; None if the leaf can be changed.

    The arrays of jax and eager tensors of TensorFlow cannot; on the CPU they are not copied. While their values are held, jax
    does not take over the memory of an array that is donated: it takes new memory.
    """
    return _adapter(leaf).frozen(leaf)


def frozen_all(leaves: Sequence[Any]) -> list[Array | None]:
    """`frozen` of each of these leaves, in less time: most are like the one before."""
    if len(set(map(type, leaves))) == 1:
        return [*_adapter(leaves[0]).frozen_all(leaves)]
    found: list[Array | None] = []
    for _, run in groupby(leaves, type):
        found += frozen_all([*run])
    return found


def stage(leaf: Any, out: Array) -> Callable[[], object] | None:
    """Copies the leaf's values into ``out``, a native C-contiguous array of its spec (of bytes, if it is packed).

    If this gives something to call, the copy may still be going on: call it before ``out`` is read. The leaf may be changed at
    once all the same, for the device orders that after the copy.
    """
    return _adapter(leaf).stage(leaf, out)


def destination(leaf: Any) -> Array | None:
    """The leaf's own memory as a writable, C-contiguous, native array; None if there is no such view, or it is no array."""
    found = adapter(leaf)
    return None if found is None else found.destination(leaf)


def fill(leaf: Any, array: Array) -> Any:
    """The leaf with the values of ``array``, which is of its spec: itself where it is mutable, else a new one like it.

    ``array`` is given away: the new leaf may keep its memory. A new leaf is on the same device, with the same sharding.
    Read-only numpy arrays, and those whose elements share memory, are replaced by new ones too.
    """
    return _adapter(leaf).fill(leaf, array)


def make(kind: str, array: Array) -> Any:
    """A new leaf of that kind; ``array`` itself where its framework is not loaded or has no such dtype.

    ``array`` is given away: the new leaf may keep its memory.
    """
    module, maker = _MAKERS.get(kind.partition("/")[0], ("", Adapter()))
    return maker.make(kind, array) if module in sys.modules else array


def identity(leaf: Any) -> Hashable | None:
    """Equal for leaves that are the same memory seen the same way (tied); None for empty ones, which share nothing.

    It holds as long as one of the leaves is alive.
    """
    found = _adapter(leaf)
    return found.identity(leaf) if found.describe(leaf).size else None


def _adapter(leaf: Any) -> Adapter:
    found = adapter(leaf)
    if found is None:
        raise TypeError(f"a {type(leaf).__qualname__} is no array")
    return found


def _recognize(leaf: Any) -> Adapter | None:
    if isinstance(leaf, np.ndarray):
        return NumpyAdapter()
    if isinstance(leaf, TensorSpec):
        return SpecAdapter()
    for module, name, found in _FRAMEWORKS:
        cls = getattr(sys.modules.get(module), name, None)
        if cls is not None and isinstance(leaf, cls):
            return found
    if isinstance(leaf, _NO_ARRAYS):
        return None
    if _has_buffer(leaf):
        return BufferAdapter()
    return ProtocolAdapter() if hasattr(leaf, "__array__") or hasattr(leaf, "__dlpack__") else None


def _has_buffer(leaf: Any) -> bool:
    try:
        memoryview(leaf).release()
    except (TypeError, BufferError, ValueError):
        return False
    return True
