"""Array leaves of torch, jax, TensorFlow, MLX and CuPy.

No framework is imported here: a leaf can only exist once its framework is loaded, so each is found in `sys.modules`.
Every bit of a value survives; what cannot be given or taken exactly is refused.
"""

import functools
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from ckptmgr import cuda, jaxarrays
from ckptmgr.adapter import Adapter, Array, overlaps_itself, view
from ckptmgr.box import Box
from ckptmgr.errors import UnsupportedLeafError, UnsupportedTensorError
from ckptmgr.spec import STRING, PackedArray, TensorSpec, numpy_dtype, tensor_spec


class TorchAdapter(Adapter):
    """Dense tensors of torch, on any device. numpy knows neither bfloat16 nor 8-bit floats: they pass as integers."""

    def kind(self, leaf: Any) -> str:
        return "torch"

    def describe(self, leaf: Any) -> TensorSpec:
        torch = sys.modules["torch"]
        if torch.nn.parameter.is_lazy(leaf):
            raise UnsupportedLeafError("is an uninitialized torch parameter: run the module once first")
        if type(leaf).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ or leaf.is_nested:
            raise UnsupportedLeafError(f"is a {type(leaf).__qualname__} of torch: only plain dense tensors can be stored")
        if leaf.layout is not torch.strided or leaf.is_quantized:
            raise UnsupportedLeafError(f"is a torch tensor of layout {leaf.layout} and {leaf.dtype}: store its parts")
        if leaf.is_meta:
            raise UnsupportedLeafError("is a torch tensor on the meta device, which has no values")
        return _torch_spec(leaf.dtype, leaf.shape)

    def host(self, leaf: Any) -> Array:
        bits = _torch_bits(leaf.dtype)
        if bits is None:
            array: Array = leaf.numpy(force=True)  # all of the line below, in half the time
            return array
        leaf = leaf.detach().resolve_conj().resolve_neg().cpu()
        spec = _torch_spec(leaf.dtype, leaf.shape)
        if spec.is_packed:
            return PackedArray.wrap(leaf.contiguous().view(bits).numpy(), spec)
        raw: Array = leaf.view(bits).numpy()
        return raw.view(spec.numpy)

    def part(self, leaf: Any, box: Box) -> Array:
        return self.host(leaf.detach()[box.slices])

    def stage(self, leaf: Any, out: Array) -> Callable[[], object] | None:
        if leaf.is_cuda:
            # On the device: what torch would do to the values after the copy, it would do before the copy has ended.
            tensor, into = leaf.detach().resolve_conj().resolve_neg(), self.make("torch", out)
            if (bits := _torch_bits(leaf.dtype)) is not None:  # torch cannot copy its integers of less than a byte
                tensor, into = tensor.view(bits), into.view(bits)
            return cuda.copy(tensor, into, out)
        out[...] = self.host(leaf)
        return None

    def destination(self, leaf: Any) -> Array | None:
        if leaf.device.type != "cpu" or not leaf.is_contiguous() or leaf.is_conj() or leaf.is_neg():
            return None
        return self.host(leaf).view(np.ndarray)

    def fill(self, leaf: Any, array: Array) -> Any:
        if overlaps_itself(leaf.shape, leaf.stride()):
            return self.make("torch", array).to(leaf.device).requires_grad_(leaf.requires_grad)
        if leaf.device.type == "cpu" and not (leaf.is_conj() or leaf.is_neg() or isinstance(array, PackedArray)):
            self.host(leaf)[...] = array  # torch itself cannot copy its integers of less than a byte
        else:
            leaf.detach().copy_(self.make("torch", array))
        return leaf

    def make(self, kind: str, array: Array) -> Any:
        torch = sys.modules["torch"]
        if isinstance(array, PackedArray):
            dtype, shape = _torch_packed(array.spec)
        else:
            dtype, shape = getattr(torch, array.dtype.name, None), array.shape
        if not isinstance(dtype, torch.dtype):
            return array  # torch has no such dtype
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        # Tensors over read-only memory would write to it.
        plain = np.asarray(array, order="C") if array.flags.writeable else np.array(array, order="C")
        bits = _torch_bits(dtype)
        if bits is None:
            return torch.from_numpy(plain)
        return torch.from_numpy(plain.view(_BITS[bits.itemsize])).reshape(shape).view(dtype)

    def identity(self, leaf: Any) -> Hashable:
        return leaf.data_ptr(), leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.is_conj(), leaf.is_neg()


class TorchGeneratorAdapter(Adapter):
    """`torch.Generator`: its state is a tensor of bytes, whose size depends on the device."""

    def kind(self, leaf: Any) -> str:
        return f"torch.generator/{leaf.device}"

    def host(self, leaf: Any) -> Array:
        state: Array = leaf.get_state().numpy()
        return state

    def fill(self, leaf: Any, array: Array) -> Any:
        leaf.set_state(sys.modules["torch"].from_numpy(np.array(array)))
        return leaf

    def make(self, kind: str, array: Array) -> Any:
        try:
            return self.fill(sys.modules["torch"].Generator(kind.partition("/")[2]), array)
        except (RuntimeError, TypeError):
            return array  # no such device here


class JaxAdapter(Adapter):
    """jax arrays whose shards are all in this process, and typed keys, which are stored as their words."""

    def kind(self, leaf: Any) -> str:
        return f"jax.key/{jaxarrays.impl(leaf)}" if jaxarrays.is_key(leaf) else "jax"

    def describe(self, leaf: Any) -> TensorSpec:
        jax = sys.modules["jax"]
        if isinstance(leaf, jax.core.Tracer):
            raise UnsupportedLeafError("is traced by jax: it has no values inside of jit, grad or vmap")
        if not self.is_description:
            if leaf.is_deleted():
                raise UnsupportedLeafError("is a deleted jax array (donated?)")
            if not jaxarrays.is_local(leaf.sharding):
                raise UnsupportedLeafError("is a jax array with shards in other processes")
        words = jax.eval_shape(jax.random.key_data, leaf) if jaxarrays.is_key(leaf) else leaf
        return tensor_spec(words.dtype, words.shape)

    def describe_all(self, leaves: Sequence[Any]) -> list[TensorSpec] | None:
        if self.is_description or isinstance(leaves[0], sys.modules["jax"].core.Tracer) or jaxarrays.is_key(leaves[0]):
            return None
        whats = [leaf.aval for leaf in leaves]
        if True in [leaf.is_deleted() for leaf in leaves] or not all(map(jaxarrays.is_local, jaxarrays.shardings(leaves))):
            return None
        return list(map(tensor_spec, [what.dtype for what in whats], [what.shape for what in whats]))

    def host(self, leaf: Any) -> Array:
        if jaxarrays.is_key(leaf):
            leaf = sys.modules["jax"].random.key_data(leaf)
        if jaxarrays.is_single(leaf.sharding) and hasattr(leaf, jaxarrays.TAKE):
            return jaxarrays.values([leaf])[0]
        # numpy would first ask for a buffer, which jax does not give of dtypes that are not numpy's own: half of the time.
        array: Array = np.asarray(leaf) if leaf.dtype.isbuiltin == 1 else leaf.__array__()
        return array

    def part(self, leaf: Any, box: Box) -> Array:
        if jaxarrays.is_key(leaf) or all(device.platform == "cpu" for device in leaf.devices()):
            return view(self.host(leaf), box)
        # Plain indexing would compile a program for every start.
        return np.asarray(sys.modules["jax"].lax.dynamic_slice(leaf, box.start, box.shape))

    def frozen(self, leaf: Any) -> Array | None:
        # On the CPU a view of the buffer, which holds it: jax makes a new one for who is given the array to overwrite (donated),
        # and the array stays as it is. From a device it is copied.
        return self.host(leaf)

    def frozen_all(self, leaves: Sequence[Any]) -> Sequence[Array | None]:
        # Typed keys are of another type, which has no such way.
        is_direct = hasattr(leaves[0], jaxarrays.TAKE) and all(map(jaxarrays.is_single, jaxarrays.shardings(leaves)))
        return jaxarrays.values(leaves) if is_direct else super().frozen_all(leaves)

    def fill(self, leaf: Any, array: Array) -> Any:
        jax = sys.modules["jax"]
        sharding = leaf.sharding if getattr(leaf, "committed", True) else None
        if jaxarrays.is_key(leaf):
            return jax.device_put(self.make(self.kind(leaf), array), sharding)
        if getattr(leaf, "weak_type", False) and not array.ndim:
            # Python numbers are weak in jax: a strong one would promote what it meets.
            weak = jax.numpy.asarray(array.item())
            if np.asarray(weak).dtype == array.dtype and np.asarray(weak).tobytes() == array.tobytes():
                return weak
        with jaxarrays.wide(array):
            return jax.device_put(array, sharding)

    def make(self, kind: str, array: Array) -> Any:
        jax = sys.modules["jax"]
        try:
            with jaxarrays.wide(array):
                made = jax.device_put(array)
            return jax.random.wrap_key_data(made, impl=kind.partition("/")[2]) if kind.startswith("jax.key/") else made
        except (TypeError, ValueError, RuntimeError):
            return array  # a dtype or kind of key that this jax does not know


class JaxSpecAdapter(JaxAdapter):
    """`jax.ShapeDtypeStruct`, which asks for a jax array of that sharding, if it has one."""

    is_description = True


class TensorFlowAdapter(Adapter):
    """TensorFlow's eager tensors, which are made anew, and variables, which are assigned to."""

    def kind(self, leaf: Any) -> str:
        return "tensorflow"

    def describe(self, leaf: Any) -> TensorSpec:
        dtype, shape = leaf.dtype, leaf.shape
        if dtype.is_quantized or dtype.name in ("resource", "variant"):
            raise UnsupportedLeafError(f"is a TensorFlow tensor of {dtype.name}")
        if not self.is_description and not hasattr(leaf, "numpy"):
            raise UnsupportedLeafError("is a symbolic TensorFlow tensor: it has no values inside of tf.function")
        if not shape.is_fully_defined():
            if self.is_description:
                raise UnsupportedLeafError(f"is a TensorFlow spec of unknown shape {shape}")
            shape = leaf.read_value().shape
        return tensor_spec(np.dtype(object) if dtype.name == STRING else np.dtype(dtype.as_numpy_dtype), tuple(shape))

    def host(self, leaf: Any) -> Array:
        tf = sys.modules["tensorflow"]
        value = leaf.read_value() if isinstance(leaf, tf.Variable) else leaf
        if value.dtype.name == STRING:
            return np.array(value.numpy(), dtype=object)
        if value.dtype.name == "bfloat16":
            return np.asarray(memoryview(tf.bitcast(value, tf.uint16))).view(numpy_dtype("bfloat16"))
        # `numpy()` copies; a memoryview does not, but it knows only numpy's own dtypes.
        has_view = value.dtype.as_numpy_dtype.__module__ == "numpy"
        return np.asarray(memoryview(value) if has_view else value.numpy())

    def frozen(self, leaf: Any) -> Array | None:
        return None if isinstance(leaf, sys.modules["tensorflow"].Variable) else self.host(leaf)

    def fill(self, leaf: Any, array: Array) -> Any:
        tf = sys.modules["tensorflow"]
        with tf.device(getattr(leaf, "device", None)):
            made = self.make("tensorflow", array)
        if isinstance(leaf, tf.Variable):
            leaf.assign(made)
            return leaf
        return made

    def make(self, kind: str, array: Array) -> Any:
        tf = sys.modules["tensorflow"]
        try:
            return array if isinstance(array, PackedArray) else tf.constant(array, tf.string if array.dtype.hasobject else None)
        except (TypeError, ValueError):
            return array  # TensorFlow has no such dtype


class TensorFlowSpecAdapter(TensorFlowAdapter):
    """`tf.TensorSpec`, which asks for an eager tensor."""

    is_description = True


class MlxAdapter(Adapter):
    """MLX arrays; reading one evaluates it."""

    def kind(self, leaf: Any) -> str:
        return "mlx"

    def host(self, leaf: Any) -> Array:
        mx = sys.modules["mlx.core"]
        if leaf.dtype == mx.bfloat16:
            return np.asarray(memoryview(leaf.view(mx.uint16))).view(numpy_dtype("bfloat16"))
        return np.asarray(memoryview(leaf))

    def fill(self, leaf: Any, array: Array) -> Any:
        return self.make("mlx", array)

    def make(self, kind: str, array: Array) -> Any:
        mx = sys.modules["mlx.core"]
        dtype = getattr(mx, "bool_" if array.dtype.name == "bool" else array.dtype.name, None)
        return mx.array(array, dtype=dtype) if isinstance(dtype, mx.Dtype) else array


class CupyAdapter(Adapter):
    """CuPy arrays, in the memory of a GPU."""

    def kind(self, leaf: Any) -> str:
        return "cupy"

    def describe(self, leaf: Any) -> TensorSpec:
        return tensor_spec(leaf.dtype, leaf.shape)

    def host(self, leaf: Any) -> Array:
        array: Array = sys.modules["cupy"].asnumpy(leaf)
        return array

    def part(self, leaf: Any, box: Box) -> Array:
        return self.host(leaf[box.slices])

    def fill(self, leaf: Any, array: Array) -> Any:
        leaf[...] = sys.modules["cupy"].asarray(array)
        return leaf

    def make(self, kind: str, array: Array) -> Any:
        return sys.modules["cupy"].asarray(array)

    def identity(self, leaf: Any) -> Hashable:
        return leaf.data.ptr, leaf.shape, leaf.strides, leaf.dtype, leaf.device.id


_BITS = {1: np.uint8, 2: np.int16, 4: np.int32}  # numpy's integers for torch's dtypes that numpy does not know


@functools.lru_cache(maxsize=4096)
def _torch_spec(dtype: Any, shape: tuple[int, ...]) -> TensorSpec:
    name = str(dtype).removeprefix("torch.")
    if name == "float4_e2m1fn_x2" and shape:
        return TensorSpec("packed_float4_e2m1fn", (*shape[:-1], shape[-1] * 2))
    try:
        return tensor_spec(numpy_dtype(name), tuple(shape))
    except UnsupportedTensorError as error:
        raise UnsupportedLeafError(f"is a torch tensor of {dtype}, which has no counterpart in numpy or ml_dtypes") from error


@functools.cache
def _torch_bits(dtype: Any) -> Any:
    """The integer dtype of torch of the same size, for a dtype that numpy does not know; else None."""
    torch = sys.modules["torch"]
    name = str(dtype).removeprefix("torch.")
    if name != "float4_e2m1fn_x2" and numpy_dtype(name).isbuiltin == 1:  # one of numpy's own, not of ml_dtypes
        return None
    return {1: torch.uint8, 2: torch.int16, 4: torch.int32}[dtype.itemsize]


def _torch_packed(spec: TensorSpec) -> tuple[Any, tuple[int, ...]]:
    dtype = getattr(sys.modules["torch"], "float4_e2m1fn_x2", None)
    if spec.dtype != "packed_float4_e2m1fn" or not spec.shape or spec.shape[-1] % 2:
        return None, ()
    return dtype, (*spec.shape[:-1], spec.shape[-1] // 2)


def is_torch_module(value: Any) -> bool:
    """Whether it is a `torch.nn.Module`, whose state has exactly the keys that it says it has."""
    module = getattr(sys.modules.get("torch.nn"), "Module", None)
    return module is not None and isinstance(value, module)


def is_loaded(module: Any, state: Mapping[str, Any]) -> bool:
    """Whether a torch module holds a state already, because all of it is the memory of its own parameters and buffers.

    A module that would do more than copy, when told to load, has not.
    """
    torch = sys.modules["torch"]
    hooks = "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"
    has_hooks = any(getattr(inner, name, True) for inner in module.modules() for name in hooks)
    if has_hooks or type(module).load_state_dict is not torch.nn.Module.load_state_dict:
        return False
    own = {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    return all(isinstance(leaf, torch.Tensor) and leaf.data_ptr() in own for leaf in state.values())
