"""The globals that a checkpoint may name, and the inert values that stand for them. All others are refused by their names.

Source: the globals that `torch.load` allows with ``weights_only=True``, torch 2.13, without those for sparse, quantized and
nested tensors; and what numpy pickles for arrays and scalars of numbers.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ckptmgr_torch.origin import Damaged, Refused
from ckptmgr_torch.values import (
    Allowed,
    Dict,
    Dtype,
    Namespace,
    NumpyArray,
    NumpyDtype,
    Set,
    Storage,
    StorageKind,
    Tensor,
    array_of,
    check_key,
    short,
)

Spend = Callable[[int], None]

DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "bool"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
STORAGES = {  # the dtypes that have a class of storage
    **{"float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "bool": "Bool"},
    **{"int64": "Long", "int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte"},
    **{"complex64": "ComplexFloat", "complex128": "ComplexDouble"},
}
_SHORTER = {"double": "float64", "float": "float32", "half": "float16", "long": "int64", "int": "int32", "short": "int16"}
_LATIN = ("latin1", "latin-1", "iso-8859-1")


def find(module: str, name: str) -> object:
    """What stands for that global. Raises Refused."""
    module = _MODULES.get(module, module)
    found = ALLOWED.get((module, name))
    if found is None:
        text = f"{short(module)[1:-1]}.{short(name)[1:-1]}"
        raise Refused(f"the global {text}, which is not allowed: save a state_dict of plain tensors instead")
    return found


def _tensor(spend: Spend, storage: Any, offset: Any, size: Any, strides: Any, *rest: Any) -> Tensor:
    if len(rest) > 3:
        raise Damaged(f"a tensor is made with {4 + len(rest)} arguments")
    _check_plain(rest[2] if len(rest) > 2 else None)
    return _view(storage, offset, size, strides, storage.dtype if isinstance(storage, Storage) else None)


def _tensor3(
    spend: Spend, storage: Any, offset: Any, size: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, more: Any = None
) -> Tensor:
    _check_plain(more)
    return _view(storage, offset, size, strides, dtype.name if isinstance(dtype, Dtype) else None)


def _check_plain(more: Any) -> None:
    """Raises Refused for a tensor whose values are not those of its storage: torch keeps conjugates and negatives as a mark."""
    if more:
        raise Refused(
            "a tensor that is marked as the conjugate or the negative of its bytes, which is not read: "
            "save tensor.resolve_conj().resolve_neg()"
        )


def _view(storage: Any, offset: Any, size: Any, strides: Any, dtype: str | None) -> Tensor:
    if not isinstance(storage, Storage) or type(size) is not tuple or type(strides) is not tuple or dtype is None:
        raise Damaged("a tensor is not made of a storage, a shape, strides and a dtype")
    return Tensor(storage, dtype, offset, size, strides)


def _parameter(spend: Spend, data: Any, *rest: Any) -> Any:
    if not isinstance(data, Tensor) or len(rest) > 3:
        raise Damaged("a parameter is not made of a tensor")
    return data


def _subclass(spend: Spend, function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor with attributes, or a Parameter's kin: the tensor alone."""
    if not isinstance(function, Allowed) or function.call not in (_tensor, _tensor3, _parameter) or kind not in _TENSORS:
        raise Refused(f"a tensor of the class {kind.name if isinstance(kind, Allowed) else short(kind)}, which is not read")
    if type(arguments) is not tuple:
        raise Damaged("the arguments of a tensor are no tuple")
    return function.call(spend, *arguments)


def _dict(spend: Spend, items: Any = ()) -> Dict:
    """A dict, OrderedDict or Counter: empty, of a dict, or of pairs."""
    if isinstance(items, dict):
        spend(8 * len(items))
        return Dict(items)
    if not isinstance(items, list | tuple):
        raise Damaged(f"a dict is made of {short(items)}")
    spend(8 * len(items))
    for pair in items:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Damaged("a dict is made of what are no pairs")
        check_key(pair[0])
    return Dict((pair[0], pair[1]) for pair in items)


def _default_dict(spend: Spend, factory: Any = None, items: Any = ()) -> Dict:
    return _dict(spend, items)


def _list(spend: Spend, items: Any = ()) -> Set:
    if not isinstance(items, list | tuple):
        raise Damaged(f"a set is made of {short(items)}")
    spend(8 * len(items))
    return Set(items)


def _size(spend: Spend, sizes: Any = ()) -> tuple[Any, ...]:
    if type(sizes) not in (tuple, list) or any(type(size) is not int for size in sizes):
        raise Damaged("a torch.Size is not made of integers")
    spend(8 * len(sizes))
    return tuple(sizes)


def _device(spend: Spend, *parts: Any) -> str:
    if (
        len(parts) not in (1, 2)
        or not isinstance(parts[0], str)
        or len(parts[0]) > 64
        or any(type(it) not in (str, int) for it in parts)
    ):
        raise Damaged("a torch.device has no name")
    return ":".join(short(part).strip("'") for part in parts)


def _same(spend: Spend, value: Any) -> Any:
    return value


def _bytes(spend: Spend, value: Any = b"", encoding: Any = "latin1") -> bytes:
    """Of text that has a character for each byte, as protocol 2 writes bytes; or of bytes."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or encoding not in _LATIN:
        raise Damaged(f"bytes are made of {short(value)} by {short(encoding)}")
    spend(len(value))
    return value.encode("latin1")


def _complex(spend: Spend, real: Any, imag: Any) -> complex:
    if type(real) not in (float, int) or type(imag) not in (float, int):
        raise Damaged("a complex number is not made of two numbers")
    return complex(real, imag)


def _path(spend: Spend, *parts: Any) -> str:
    if not all(isinstance(part, str) for part in parts):
        raise Damaged("a path is not made of texts")
    spend(sum(len(part) + 1 for part in parts))
    return "/".join(parts).replace("//", "/")


def _namespace(spend: Spend) -> Namespace:
    return Namespace()


def _numpy_dtype(spend: Spend, code: Any, *flags: Any) -> NumpyDtype:
    return NumpyDtype(code)


def _numpy_empty(spend: Spend, kind: Any, shape: Any = (0,), code: Any = b"b") -> NumpyArray:
    if kind is not _NDARRAY:
        raise Refused("a kind of numpy array that is not read")
    return NumpyArray()


def _numpy_scalar(spend: Spend, dtype: Any, data: Any) -> Any:
    return np.array(array_of(data, dtype, ())).astype(dtype.numpy.newbyteorder("="))[()]


def _numpy_buffer(spend: Spend, data: Any, dtype: Any, shape: Any, order: Any) -> NumpyArray:
    return NumpyArray(array_of(data, dtype, shape, order))


_NDARRAY = Allowed("numpy.ndarray")
_PLAIN_TENSORS = {
    ("torch", "Tensor"): Allowed("torch.Tensor"),
    ("torch.nn.parameter", "Parameter"): Allowed("torch.nn.Parameter"),
}
_TENSORS = (*_PLAIN_TENSORS.values(),)
_MODULES = {
    "__builtin__": "builtins",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
    "pathlib._local": "pathlib",
    "torch.cuda": "torch",  # what it has of these are storages alone
}
_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _subclass,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("torch.serialization", "_get_layout"): _same,
    ("collections", "OrderedDict"): _dict,
    ("collections", "Counter"): _dict,
    ("collections", "defaultdict"): _default_dict,
    ("builtins", "dict"): _dict,
    ("builtins", "set"): _list,
    ("builtins", "frozenset"): _list,
    ("builtins", "bytearray"): _bytes,
    ("builtins", "bytes"): _bytes,
    ("builtins", "complex"): _complex,
    ("_codecs", "encode"): _bytes,
    ("pathlib", "PosixPath"): _path,
    ("pathlib", "PurePosixPath"): _path,
    ("pathlib", "Path"): _path,
    ("pathlib", "WindowsPath"): _path,
    ("numpy", "dtype"): _numpy_dtype,
    ("numpy.core.multiarray", "_reconstruct"): _numpy_empty,
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,
    ("numpy.core.numeric", "_frombuffer"): _numpy_buffer,
}
ALLOWED: dict[tuple[str, str], object] = {
    **{key: Allowed(".".join(key), call) for key, call in _CALLS.items()},
    **{("builtins", name): Allowed(f"builtins.{name}") for name in ("list", "int", "float", "str", "bool", "long", "tuple")},
    ("builtins", "dict"): Allowed("builtins.dict", _dict),
    ("argparse", "Namespace"): Allowed("argparse.Namespace", new=_namespace),
    ("collections", "OrderedDict"): Allowed("collections.OrderedDict", _dict, _dict),
    ("numpy", "ndarray"): _NDARRAY,
    **_PLAIN_TENSORS,
    **{("torch", name): Dtype(name) for name in DTYPES},
    **{("torch", name): Dtype(full) for name, full in _SHORTER.items()},
    **{("torch", f"{name}Storage"): StorageKind(dtype) for dtype, name in STORAGES.items()},
    **{("torch.storage", name): StorageKind(None) for name in ("UntypedStorage", "_UntypedStorage")},
    ("torch", "UntypedStorage"): StorageKind(None),
}
