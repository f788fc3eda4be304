"""What the process with h5py says of a file, as the values that `ckptmgr_hdf5.parsing` gives; nothing of it is trusted."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ckptmgr_hdf5.attributes import Value
from ckptmgr_hdf5.origin import Origin
from ckptmgr_hdf5.parsing import Dataset, Group

_KINDS = ("raw", "bool", "opaque", "string", "vlen_string", "other")
_STORAGES = ("contiguous", "chunked", "none")
_DTYPE = re.compile(r"\|O|\|b1|[<>|][iufc][1-9][0-9]?|\|[SV][1-9][0-9]{0,9}")
_MAX_RANK = 32
_REFERENCE = 16  # what stands in place of a text of variable length


class Nonsense(Exception):
    """It is not what was asked for, or nothing at all."""


class Details(NamedTuple):
    """A dataset, and the shape of its chunks if it is chunked."""

    dataset: Dataset
    chunk: tuple[int, ...] | None


class StoredAttributes(Mapping[str, Value]):
    """An object's attributes by name, as `ckptmgr_hdf5.attributes.Attributes` gives them.

    Raises:
        CorruptCheckpointError: on the use of a value that h5py could not read, or whose type nobody reads.
    """

    def __init__(self, path: str, origin: Origin) -> None:
        self._path = path
        self._origin = origin
        self._stored: dict[str, tuple[object, object, object, bytes]] = {}

    def add(self, name: str, kind: object, dtype: object, shape: object, data: bytes) -> None:
        """One more attribute; what it says is looked at when it is used."""
        self._stored[name] = kind, dtype, shape, data

    def __getitem__(self, name: str) -> Value:
        kind, dtype, shape, data = self._stored[name]
        if kind == "unreadable":
            raise self._origin.corrupt(f"attribute {name[:100]!r}: {str(dtype)[:200]}", self._path)
        try:
            return _value(kind, _parse_dtype(dtype), _parse_shape(shape), data)
        except (Nonsense, UnicodeDecodeError) as error:
            raise self._origin.corrupt(f"attribute {name[:100]!r} is no value, or no UTF-8", self._path) from error

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


class Builder:
    """A tree out of its entries: an object comes after its group, its attributes right after it.

    ``most`` limits the bytes of all attributes; offsets are counted from ``start``.
    """

    def __init__(self, origin: Origin, *, most: int, start: int) -> None:
        self._origin = origin
        self._left = most
        self._start = start
        self._groups: list[Group] = []
        self._attributes: StoredAttributes | None = None

    @property
    def root(self) -> Group:
        """The first group.

        Raises:
            Nonsense: there is none.
        """
        if not self._groups:
            raise Nonsense
        return self._groups[0]

    def add(self, entries: object, data: bytearray) -> None:
        """Takes in entries, in order, and the values of the attributes among them.

        Raises:
            Nonsense: they are none, or have no place.
        """
        at = 0
        if not isinstance(entries, list):
            raise Nonsense
        for entry in entries:
            match entry:
                case ["group", None, ""] if not self._groups:
                    self._groups.append(Group("/", {}, self._new_attributes("/")))
                case ["group", int(parent), str(name)]:
                    above, path = self._place(parent, name)
                    group = above.children[name] = Group(path, {}, self._new_attributes(path))
                    self._groups.append(group)
                case ["dataset", int(parent), str(name), *words]:
                    above, path = self._place(parent, name)
                    above.children[name] = parse_dataset(path, words, self._start, self._new_attributes(path))
                case ["attribute", str(name), kind, dtype, shape, int(nbytes)] if 0 <= nbytes <= len(data) - at:
                    self._add_attribute(name, kind, dtype, shape, bytes(data[at : at + nbytes]))
                    at += nbytes
                case _:
                    raise Nonsense

    def _new_attributes(self, path: str) -> StoredAttributes:
        self._attributes = StoredAttributes(path, self._origin)
        return self._attributes

    def _add_attribute(self, name: str, kind: object, dtype: object, shape: object, data: bytes) -> None:
        self._left -= len(data)
        if self._attributes is None or name in self._attributes or self._left < 0:
            raise Nonsense
        self._attributes.add(name, kind, dtype, shape, data)

    def _place(self, parent: int, name: str) -> tuple[Group, str]:
        if not 0 <= parent < len(self._groups) or name in ("", ".") or "/" in name or name in self._groups[parent].children:
            raise Nonsense
        above = self._groups[parent]
        return above, f"{above.path.rstrip('/')}/{name}"


def parse_dataset(path: str, words: object, start: int, attributes: Mapping[str, Value]) -> Dataset:
    """The dataset at a path, out of kind, dtype, shape, offset, size, storage and address.

    Raises:
        Nonsense: they contradict each other, or are none of these.
    """
    match words:
        case [str(kind), dtype, shape, None | int() as offset, int(nbytes), str(storage), int(address)]:
            size, numpy_dtype = _parse_shape(shape), _parse_dtype(dtype)
        case _:
            raise Nonsense
    if kind not in _KINDS or storage not in _STORAGES or (offset is None) != (storage != "contiguous"):
        raise Nonsense
    elements = 0 if size is None else math.prod(size)
    if numpy_dtype is not None and nbytes != elements * (_REFERENCE if kind == "vlen_string" else numpy_dtype.itemsize):
        raise Nonsense
    if nbytes < 0 or (offset or 0) < 0:
        raise Nonsense
    place = None if offset is None else start + offset
    return Dataset(path, numpy_dtype, kind, size, place, nbytes, storage, address, attributes)


def parse_details(frame: Mapping[str, Any], path: str, start: int) -> Details:
    """A dataset that is to be read, out of the answer that describes it.

    Raises:
        Nonsense: it does not.
    """
    dataset, chunk = parse_dataset(path, frame.get("end"), start, {}), _parse_shape(frame.get("chunk"))
    if chunk is not None and (dataset.shape is None or len(chunk) != len(dataset.shape) or 0 in chunk):
        raise Nonsense
    return Details(dataset, chunk)


def split_texts(data: bytes | bytearray, count: int) -> list[str]:
    """That many texts out of their bytes, which have a NUL between each two.

    Raises:
        Nonsense: there are more or fewer.
        UnicodeDecodeError: they are no UTF-8.
    """
    texts = data.decode().split("\0") if count else []
    if len(texts) != count:
        raise Nonsense
    return texts


def _parse_dtype(name: object) -> np.dtype[Any] | None:
    if name is None:
        return None
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise Nonsense
    try:
        return np.dtype(name)
    except TypeError as error:
        raise Nonsense from error


def _parse_shape(sizes: object) -> tuple[int, ...] | None:
    if sizes is None:
        return None
    if not isinstance(sizes, list) or len(sizes) > _MAX_RANK or not all(type(size) is int and size >= 0 for size in sizes):
        raise Nonsense
    return tuple(sizes)


def _value(kind: object, dtype: np.dtype[Any] | None, shape: tuple[int, ...] | None, data: bytes) -> Value:
    if shape is None:
        return None
    count = math.prod(shape)
    if kind == "vlen_string":
        array = np.empty(count, object)
        array[:] = split_texts(data, count)
    elif dtype is None or dtype.hasobject or len(data) != count * dtype.itemsize:
        raise Nonsense
    else:
        array = np.frombuffer(data, dtype)
    array = array.reshape(shape)
    return array if shape else array[()]
