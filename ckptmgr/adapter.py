"""What every framework's array leaves can be asked, and the answers of those that live in host memory."""

from collections.abc import Callable, Hashable, Sequence
from operator import attrgetter
from typing import Any, TypeAlias

import numpy as np

from ckptmgr.box import Box
from ckptmgr.errors import UnsupportedLeafError
from ckptmgr.spec import PackedArray, TensorSpec, tensor_spec
from ckptmgr.strings import fill_strings

Array: TypeAlias = np.ndarray[Any, Any]


class Adapter:
    """How leaves of one framework are read, filled and made. The defaults suit what is immutable and on the host."""

    is_description = False  # such a leaf says what is wanted, and holds no values

    def kind(self, leaf: Any) -> str:
        """What `make` has to know to make such a leaf."""
        return "numpy"

    def describe(self, leaf: Any) -> TensorSpec:
        """The leaf's spec.

        Raises:
            UnsupportedLeafError: its values cannot be stored exactly; the message goes on from the leaf's path.
        """
        array = self.host(leaf)
        return tensor_spec(array.dtype, array.shape)

    def describe_all(self, leaves: Sequence[Any]) -> list[TensorSpec] | None:
        """The specs of leaves of one exact type, of one kind, and each its own memory as long as it is not the same object.

        None if they are not: then they are asked one by one. Raises like `describe`.
        """
        return None

    def host(self, leaf: Any) -> Array:
        """The leaf's values in host memory; its own memory where possible."""
        raise NotImplementedError

    def part(self, leaf: Any, box: Box) -> Array:
        """A slice of the leaf's values in host memory."""
        return view(self.host(leaf), box)

    def frozen(self, leaf: Any) -> Array | None:
        """The leaf's values in host memory, if nothing can change them any more; else None."""
        return None

    def frozen_all(self, leaves: Sequence[Any]) -> Sequence[Array | None]:
        """`frozen` of each of these leaves of one exact type."""
        return list(map(self.frozen, leaves))

    def stage(self, leaf: Any, out: Array) -> Callable[[], object] | None:
        """Copies the leaf's values into ``out``, a native C-contiguous array of its spec.

        What this gives must be called before ``out`` is read. What is done to the leaf after this comes after the copy.
        """
        out[...] = self.host(leaf)
        return None

    def destination(self, leaf: Any) -> Array | None:
        """The leaf's own memory as a writable, C-contiguous, native array, or None if there is no such view."""
        return None

    def fill(self, leaf: Any, array: Array) -> Any:
        """The leaf with these values: itself if it is mutable, else a new one. ``array`` is given away."""
        return array

    def make(self, kind: str, array: Array) -> Any:
        """A new leaf with these values, or ``array`` itself if there is none that holds them. ``array`` is given away."""
        return array

    def identity(self, leaf: Any) -> Hashable:
        """Equal for leaves that are the same memory seen the same way, as long as the first of them is alive."""
        return id(leaf)


class NumpyAdapter(Adapter):
    """Arrays of numpy."""

    def describe(self, leaf: Any) -> TensorSpec:
        if isinstance(leaf, np.ma.MaskedArray):
            raise UnsupportedLeafError("is a masked array: store its data and its mask")
        spec = getattr(leaf, "spec", None) if isinstance(leaf, PackedArray) else None  # slices of one have none
        if isinstance(spec, TensorSpec) and spec.nbytes == leaf.nbytes:
            return spec
        return tensor_spec(leaf.dtype, leaf.shape)

    def host(self, leaf: Any) -> Array:
        array: Array = leaf
        return array

    def destination(self, leaf: Any) -> Array | None:
        flags, dtype = leaf.flags, leaf.dtype
        is_direct = flags.c_contiguous and flags.writeable and dtype.isnative and not dtype.hasobject and dtype.kind not in "SUT"
        if not is_direct:
            return None
        place: Array = leaf if type(leaf) is np.ndarray else leaf.view(np.ndarray)
        return place

    def fill(self, leaf: Any, array: Array) -> Any:
        if leaf.dtype.kind in "SUOT":
            return fill_strings(leaf, array)
        if not leaf.flags.writeable or overlaps_itself(leaf.shape, leaf.strides):
            return array.astype(leaf.dtype, copy=False)
        leaf[...] = array
        return leaf

    def identity(self, leaf: Any) -> Hashable:
        # An array's address costs a microsecond; most own their memory, and are then told by their id. A view that has
        # its owner's geometry is all of it.
        owner = leaf.base
        if owner is None:
            return id(leaf)
        seen_as = leaf.shape, leaf.strides, leaf.dtype
        if type(owner) is np.ndarray and owner.base is None and (owner.shape, owner.strides, owner.dtype) == seen_as:
            return id(owner)
        return leaf.__array_interface__["data"][0], seen_as


class PlainNumpyAdapter(NumpyAdapter):
    """Arrays that are exactly `numpy.ndarray`: there may be many, and nothing is special about them."""

    def describe(self, leaf: Any) -> TensorSpec:
        return tensor_spec(leaf.dtype, leaf.shape)

    def describe_all(self, leaves: Sequence[Any]) -> list[TensorSpec] | None:
        if [True for leaf in leaves if leaf.base is not None]:  # see `identity`
            return None
        return list(map(tensor_spec, map(attrgetter("dtype"), leaves), map(attrgetter("shape"), leaves)))

    def frozen_all(self, leaves: Sequence[Any]) -> Sequence[Array | None]:
        return [None] * len(leaves)


class BufferAdapter(Adapter):
    """Anything with the buffer protocol: `bytearray`, `array.array`, `memoryview`, `mmap`."""

    def host(self, leaf: Any) -> Array:
        return np.asarray(memoryview(leaf))

    def destination(self, leaf: Any) -> Array | None:
        return NumpyAdapter().destination(self.host(leaf))

    def fill(self, leaf: Any, array: Array) -> Any:
        view = self.host(leaf)
        return leaf if NumpyAdapter().fill(view, array) is view else array


class ProtocolAdapter(Adapter):
    """Anything with ``__array__`` or ``__dlpack__``; it is read, and comes back as a numpy array."""

    def host(self, leaf: Any) -> Array:
        try:
            return np.asarray(leaf) if hasattr(leaf, "__array__") else np.from_dlpack(leaf)
        except Exception as error:  # code of whoever wrote the leaf: any error means that it has no values to give
            raise UnsupportedLeafError(f"is a {type(leaf).__qualname__} that gives no array: {error}") from error


class SpecAdapter(Adapter):
    """A `TensorSpec`, which asks for a numpy array."""

    is_description = True

    def describe(self, leaf: Any) -> TensorSpec:
        spec: TensorSpec = leaf
        return spec


def view(array: Array, box: Box) -> Array:
    """The slice of an array."""
    index: Any = (*box.slices, ...)  # without the dots, an array of no dimensions gives a scalar
    part: Array = array[index]
    return part


def overlaps_itself(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether several elements of an array share memory, as broadcast ones do."""
    return 0 not in shape and any(stride == 0 and size > 1 for size, stride in zip(shape, strides, strict=True))
