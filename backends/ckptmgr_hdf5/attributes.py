"""Attributes of an object, each read when it is asked for: one that is damaged, or of an unknown type, hides no other.

Source: HDF5 File Format Specification 3.0, section IV.A.2.m.
"""

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ckptmgr_hdf5.faults import Damaged, Unknown
from ckptmgr_hdf5.heaps import Heaps
from ckptmgr_hdf5.kinds import Kind, parse_kind
from ckptmgr_hdf5.messages import extent, parse_shape
from ckptmgr_hdf5.origin import Origin

Value: TypeAlias = str | np.generic | np.ndarray[Any, Any] | None


class _Message(NamedTuple):
    kind: bytes
    shape: bytes
    data: bytes
    is_shared: bool


class Attributes(Mapping[str, Value]):
    """An object's attributes by name, sorted. Texts of variable length are `str` (arrays of them objects), those of fixed length
    `numpy.bytes_`, numbers are numpy's; None is an attribute without elements and shape.

    Raises:
        CorruptCheckpointError: on the first use if the messages are damaged, on that of a value if only it is.
        Unknown: on the use of a value whose type is none of these.
    """

    __slots__ = ("_heaps", "_origin", "_path", "_raw", "_split")

    def __init__(self, raw: Sequence[bytes], path: str, heaps: Heaps, origin: Origin) -> None:
        self._raw = raw
        self._path = path
        self._heaps = heaps
        self._origin = origin
        self._split: dict[str, _Message] | None = None

    def __getitem__(self, name: str) -> Value:
        found = self._messages()[name]
        with self._told(f"attribute {name[:100]!r}: "):
            return _value(found, self._heaps)

    def __contains__(self, name: object) -> bool:
        return bool(self._raw) and name in self._messages()

    def __iter__(self) -> Iterator[str]:
        return iter(self._messages())

    def __len__(self) -> int:
        return len(self._messages()) if self._raw else 0

    def _messages(self) -> dict[str, _Message]:
        if self._split is None:
            with self._told("attributes: "):
                self._split = _by_name(self._raw)
        return self._split

    @contextmanager
    def _told(self, subject: str) -> Iterator[None]:
        """Says of what is wrong with a message whose it is."""
        try:
            yield
        except Damaged as error:
            raise self._origin.corrupt(f"{subject}{error}", self._path) from error
        except (struct.error, IndexError) as error:
            raise self._origin.corrupt(f"{subject}a message ends early", self._path) from error
        except Unknown as error:
            raise Unknown(f"{self._path!r}: {subject}{error}") from error


def _by_name(raw: Sequence[bytes]) -> dict[str, _Message]:
    found: dict[str, _Message] = {}
    for message in raw:
        name, parts = _parts(message)
        if name in found:
            raise Damaged(f"there are two of the name {name[:100]!r}")
        found[name] = parts
    return dict(sorted(found.items()))


def _parts(raw: bytes) -> tuple[str, _Message]:
    version, flags, *sizes = struct.unpack_from("<BBHHH", raw)
    if version not in (1, 2, 3):
        raise Unknown(f"a message of version {version}")
    at, pieces = 9 if version == 3 else 8, []
    for nbytes in sizes:
        pieces.append(raw[at : at + nbytes])
        at += -(-nbytes // 8) * 8 if version == 1 else nbytes
    if at > len(raw):
        raise Damaged("a message ends early")
    name, end, rest = pieces[0].partition(b"\0")
    if not end or rest:
        raise Damaged(f"the name {pieces[0][:100]!r} is of another length than {len(pieces[0])}")
    try:
        return name.decode(), _Message(pieces[1], pieces[2], raw[at:], version > 1 and flags != 0)
    except UnicodeDecodeError as error:
        raise Damaged(f"the name {name[:100]!r} is no UTF-8") from error


def _value(message: _Message, heaps: Heaps) -> Value:
    if message.is_shared:
        raise Unknown("a type or shape that is shared")
    kind, shape = parse_kind(message.kind), parse_shape(message.shape)
    if shape is None:
        return None
    nbytes, held = extent(shape, kind.nbytes), len(message.data)
    if nbytes > held:
        raise Damaged(f"its shape is {shape}, and {held} bytes are there")
    if held - nbytes >= 8:
        raise Unknown(f"{held} bytes for {nbytes}")
    array = elements(kind, shape, message.data[:nbytes], heaps)
    return array if shape else array[()]


def elements(kind: Kind, shape: tuple[int, ...], data: bytes, heaps: Heaps) -> np.ndarray[Any, Any]:
    """Stored bytes of that kind and shape as an array, texts of variable length as objects.

    Raises:
        Damaged: texts are not where they should be.
        Unknown: numpy has no such type.
    """
    if kind.name == "vlen_string":
        texts = np.empty(math.prod(shape), object)
        texts[:] = heaps.texts(data)
        return texts.reshape(shape)
    if kind.dtype is None:
        raise Unknown("its type")
    array = np.frombuffer(data, np.int8 if kind.name == "bool" else kind.dtype).reshape(shape)
    return np.asarray(array != 0) if kind.name == "bool" else array
