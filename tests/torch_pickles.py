"""Files as `torch.save` writes them, made without torch: pickles of any opcodes, and archives of any records."""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ckptmgr

STORED = zipfile.ZIP_STORED
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
W = struct.pack("<6f", *range(6))  # of the record data/0


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<I", len(raw)) + raw


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str = "0", count: int = 6, kind: str = "torch\nFloatStorage") -> bytes:
    return b"(" + text("storage") + f"c{kind}\n".encode() + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(*, offset: int = 0, shape: Any = (2, 3), strides: Any = (3, 1), of: bytes | None = None) -> bytes:
    """The opcodes of one tensor."""
    parts = [of or storage(), number(offset), numbers(*shape), numbers(*strides), b"\x89", b"ccollections\nOrderedDict\n)R"]
    return REBUILD + b"(" + b"".join(parts) + b"tR"


def program(*opcodes: bytes) -> bytes:
    """A whole pickle."""
    return b"\x80\x02" + b"".join(opcodes) + b"."


def state(**values: bytes) -> bytes:
    """The pickle of a dict of what these opcodes make."""
    return program(b"}(", *(text(key) + value for key, value in values.items()), b"u")


def archive(
    path: Path, data: bytes | None, records: Mapping[str, bytes] | None = None, *, root: str = "archive", method: int = STORED
) -> Path:
    """An archive with that pickle, the record ``data/0``, and others by their names."""
    with zipfile.ZipFile(path, "w", method) as target:
        if data is not None:
            target.writestr(f"{root}/data.pkl", data)
        for name, raw in {"byteorder": b"little", "data/0": W, "version": b"3\n", **(records or {})}.items():
            target.writestr(f"{root}/{name}", raw)
    return path


def loaded(path: Path) -> Any:
    """What the file holds, all of it read, by both ways of reading."""
    with ckptmgr.open_checkpoint(path) as checkpoint:
        found = checkpoint.load()
        for name in checkpoint.specs:
            checkpoint.read(name)
    return found


class Calls:
    """Pickled, it is a call of that function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def calling(function: Any, *arguments: Any, protocol: int = 2) -> bytes:
    return pickle.dumps(Calls(function, *arguments), protocol)
