"""Plain values and tensors as the pickle that `torch.load` reads, with ``weights_only=True`` too: opcodes of protocol 2.

Source: the documentation of opcodes in CPython's pickletools; what torch 2.13 pickles for tensors.
"""

import struct
from typing import Any, NamedTuple

from ckptmgr.backend import numpy_dtype
from ckptmgr_torch.allowed import STORAGES

_INT = 1 << 31
_BATCH = 1000  # items between two opcodes, as CPython's pickler has it


class Ref(NamedTuple):
    """A whole tensor whose bytes are the record of that key."""

    key: str
    dtype: str
    shape: tuple[int, ...]


def dumps(value: object) -> bytes:
    """The pickle of dicts, lists, tuples, plain values and tensors. Raises TypeError for anything else."""
    pieces = [b"\x80\x02"]
    _write(value, pieces)
    return b"".join([*pieces, b"."])


def _write(value: Any, out: list[bytes]) -> None:
    kind = type(value)
    if kind is Ref:
        _tensor(value, out)
    elif kind is dict:
        out.append(b"}")
        items = list(value.items())
        for at in range(0, len(items), _BATCH):
            out.append(b"(")
            for key, item in items[at : at + _BATCH]:
                _write(key, out)
                _write(item, out)
            out.append(b"u")
    elif kind is list:
        out.append(b"]")
        for at in range(0, len(value), _BATCH):
            out.append(b"(")
            for item in value[at : at + _BATCH]:
                _write(item, out)
            out.append(b"e")
    elif kind is tuple:
        out.append(b"(")
        for item in value:
            _write(item, out)
        out.append(b"t")
    else:
        out.append(_plain(value))


def _plain(value: Any) -> bytes:
    if value is None or type(value) is bool:
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if type(value) is int:
        return _int(value)
    if type(value) is float:
        return b"G" + struct.pack(">d", value)
    if type(value) is str:
        return _text(value)
    if type(value) is bytes:
        return b"c_codecs\nencode\n" + _text(value.decode("latin1")) + _text("latin1") + b"\x86R"
    if type(value) is complex:
        return b"c__builtin__\ncomplex\n" + _plain(value.real) + _plain(value.imag) + b"\x86R"
    raise TypeError(f"a {type(value).__qualname__} is not written")


def _int(value: int) -> bytes:
    if -_INT <= value < _INT:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    head = struct.pack("<BB", 0x8A, len(raw)) if len(raw) < 256 else struct.pack("<BI", 0x8B, len(raw))
    return head + raw


def _text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def _tensor(ref: Ref, out: list[bytes]) -> None:
    """As torch pickles one: dtypes without a class of storage are told apart."""
    named = STORAGES.get(ref.dtype)
    count = 1
    strides: list[int] = []
    for size in reversed(ref.shape):
        strides.insert(0, count)
        count *= max(size, 1)
    elements = 0 if 0 in ref.shape else count
    held = elements if named else elements * numpy_dtype(ref.dtype).itemsize  # of bytes, where the storage has no type
    kind = f"torch\n{named}Storage" if named else "torch.storage\nUntypedStorage"
    out.append(b"ctorch._utils\n_rebuild_tensor_v2\n((" if named else b"ctorch._utils\n_rebuild_tensor_v3\n((")
    out += [_text("storage"), f"c{kind}\n".encode(), _text(ref.key), _text("cpu"), _int(held), b"tQ", _int(0)]
    _write(ref.shape, out)
    _write(tuple(strides), out)
    out.append(b"\x89ccollections\nOrderedDict\n)R")
    out.append(b"tR" if named else f"ctorch\n{ref.dtype}\ntR".encode())
