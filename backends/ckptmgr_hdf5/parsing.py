"""HDF5 files read without HDF5: the profile that Keras, h5py by default, and ckptmgr write.

The law: whatever the bytes are, the answer is the tree that they describe, one of our errors, or `Unknown` (a structure
outside of the profile) - in time and memory bounded by what of the file was read.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ckptmgr_hdf5.alike import Alike, Described
from ckptmgr_hdf5.attributes import Attributes, Value, elements
from ckptmgr_hdf5.blocks import Claims, Reader
from ckptmgr_hdf5.faults import Damaged, Refused, Unknown
from ckptmgr_hdf5.groups import check_compact, read_links
from ckptmgr_hdf5.headers import (
    ATTRIBUTE_INFO,
    DATASPACE,
    DATATYPE,
    EXTERNAL,
    FILTERS,
    LAYOUT,
    LINK_INFO,
    SYMBOLS,
    Header,
    read_header,
)
from ckptmgr_hdf5.heaps import Heaps
from ckptmgr_hdf5.kinds import Kind, parse_kind
from ckptmgr_hdf5.messages import extent, parse_layout, parse_shape
from ckptmgr_hdf5.origin import Origin
from ckptmgr_hdf5.superblock import Superblock, find_superblock

__all__ = ["Dataset", "Group", "Reader", "Tree", "Unknown", "Value", "parse"]

_MAX_DEPTH = 200
_MAX_PATHS = 16 << 20  # characters of all paths, beside four for each byte of structure


class Dataset(NamedTuple):
    """An array in the file. Its bytes are where ``offset`` says, counted from the start of the file that the reader reads.

    ``kind`` is "raw" (little-endian numbers as numpy has them), "bool", "opaque", "string" (of fixed length, `S<n>`),
    "vlen_string" (`Tree.strings` reads it) or "other"; ``dtype`` is None if numpy has no word for the type. ``storage`` is
    "contiguous", "compact", "chunked" or "none" (never written); ``offset`` is None for the last two, and ``shape`` for a
    dataset without elements and shape. All names of one dataset have the same ``address``, and no other dataset has it.
    """

    path: str
    dtype: np.dtype[Any] | None
    kind: str
    shape: tuple[int, ...] | None
    offset: int | None
    nbytes: int
    storage: str
    address: int
    attributes: Mapping[str, Value]


class Group(NamedTuple):
    """A group; its children by name, sorted. The root's path is ``/``."""

    path: str
    children: "dict[str, Node]"
    attributes: Mapping[str, Value]


Node: TypeAlias = Group | Dataset


class Tree:
    """What an HDF5 file has: all groups and datasets below ``root``."""

    def __init__(self, root: Group, reader: Reader, heaps: Heaps, origin: Origin) -> None:
        self.root = root
        self._reader = reader
        self._heaps = heaps
        self._origin = origin

    def find(self, path: str) -> Node | None:
        """The object at a path like ``a/b/c``, or None. Names are taken literally: ``..`` is one like any other."""
        node: Node | None = self.root
        for name in path.removeprefix("/").split("/") if path.strip("/") else ():
            node = node.children.get(name) if isinstance(node, Group) else None
        return node

    def walk(self) -> Iterator[Node]:
        """Every group and dataset, each before what is in it, in the order of their names."""
        nodes: list[Node] = [self.root]
        while nodes:
            node = nodes.pop()
            yield node
            if isinstance(node, Group):
                nodes.extend(reversed(node.children.values()))

    def strings(self, dataset: Dataset) -> np.ndarray[Any, Any]:
        """The elements of a dataset of texts: `str` objects if of variable length, else `S<n>`.

        Raises:
            CorruptCheckpointError: the texts are not there, or no UTF-8, or the dataset was never written.
            Unknown: it is chunked, or not of texts.
        """
        if dataset.kind not in ("string", "vlen_string") or dataset.storage == "chunked":
            raise Unknown(f"{dataset.path!r} is {dataset.kind}, {dataset.storage}")
        if dataset.shape is None or math.prod(dataset.shape) == 0:
            return np.empty(dataset.shape or 0, dataset.dtype)
        if dataset.offset is None:
            raise self._origin.corrupt("it was never written", dataset.path)
        kind = Kind(dataset.kind, dataset.dtype, dataset.nbytes // math.prod(dataset.shape))
        try:
            data = self._reader.read(dataset.offset - self._reader.start, dataset.nbytes)
            if kind.name == "vlen_string":
                texts = np.empty(math.prod(dataset.shape), object)
                texts[:] = self._heaps.texts(data, dataset.address)
                return texts.reshape(dataset.shape)
            return elements(kind, dataset.shape, data, self._heaps)
        except Damaged as error:
            raise self._origin.corrupt(str(error), dataset.path) from error


class _Visit(NamedTuple):
    """A group whose children are to be read, with the addresses of the groups that it is in."""

    group: Group
    header: Header
    address: int
    above: frozenset[int]


def parse(reader: Reader, origin: Origin) -> Tree:
    """All groups and datasets of a file, with no more read than their headers; attributes are read when they are used.

    Raises:
        CorruptCheckpointError: it is no HDF5 file, cut off or damaged; names file and object.
        UnsafeCheckpointError: a soft or external link, data in another file, a virtual dataset.
        Unknown: a structure outside of the profile; HDF5 itself may read it.
        OSError: as the storage gave it.
    """
    return _Parser(reader, origin).tree()


class _Parser:
    def __init__(self, reader: Reader, origin: Origin) -> None:
        self._origin = origin
        self._path = "/"
        try:
            self._file: Superblock = find_superblock(reader)
        except Damaged as error:
            raise origin.corrupt(str(error)) from error
        self._claims = Claims()
        self._alike = Alike(self._file.reader, self._claims)
        self._heaps = Heaps(self._file.reader)
        self._no_attributes = Attributes((), "", self._heaps, origin)
        self._characters = 0

    def tree(self) -> Tree:
        """Visits every object; what is wrong with one is told with its path."""
        try:
            root = self._walk()
        except Damaged as error:
            raise self._origin.corrupt(str(error), self._path) from error
        except (struct.error, IndexError) as error:
            raise self._origin.corrupt("its header ends early", self._path) from error
        except Refused as error:
            raise self._origin.unsafe(str(error), self._path) from error
        except Unknown as error:
            raise Unknown(f"{self._path!r}: {error}") from error
        return Tree(root, self._file.reader, self._heaps, self._origin)

    def _walk(self) -> Group:
        address = self._file.root
        header = read_header(self._file.reader, address, self._claims)
        if not _is_group(header):
            raise Damaged("the root is no group")
        root = self._group(header)
        visits = [_Visit(root, header, address, frozenset())]
        while visits:
            visit = visits.pop()
            group, above = visit.group, visit.above | {visit.address}
            self._path = group.path
            for name, address in read_links(self._file, visit.header, self._claims).items():
                self._path = f"{'' if group is root else group.path}/{name}"
                found = self._object(address, above)
                if found is not None:
                    group.children[name] = found[0]
                    visits.extend(found[1])
        return root

    def _object(self, address: int, above: frozenset[int]) -> tuple[Node, list[_Visit]] | None:
        """The object at that address, and itself to be visited if it is a group; None if it only names a type."""
        self._characters += len(self._path)
        if self._characters > _MAX_PATHS + 4 * self._claims.nbytes:
            raise Damaged("the paths of the file's objects are too long")
        alike = self._alike.find(address)
        if alike is not None:
            return self._contiguous(*alike, address), []
        header = read_header(self._file.reader, address, self._claims)
        if LAYOUT in header.single:
            return self._dataset(header, address), []
        if not _is_group(header):
            if DATATYPE not in header.single or DATASPACE in header.single:
                raise Damaged("it is neither group nor dataset")
            return None
        if address in above:
            raise Damaged("the group contains itself")
        if len(above) > _MAX_DEPTH:
            raise Damaged(f"groups are nested more than {_MAX_DEPTH} deep")
        group = self._group(header)
        return group, [_Visit(group, header, address, above)]

    def _group(self, header: Header) -> Group:
        return Group(self._path, {}, self._attributes(header))

    def _attributes(self, header: Header) -> Attributes:
        check_compact(header, ATTRIBUTE_INFO, "attributes")
        return self._attributes_of(header.attributes)

    def _attributes_of(self, messages: list[bytes]) -> Attributes:
        return Attributes(messages, self._path, self._heaps, self._origin) if messages else self._no_attributes

    def _dataset(self, header: Header, address: int) -> Dataset:
        single = header.single
        if EXTERNAL in single:
            raise Refused("its data is in another file")
        if DATATYPE not in single or DATASPACE not in single or _is_group(header):
            raise Damaged("it has a layout, but not all that a dataset has")
        kind, shape = parse_kind(single[DATATYPE][0]), parse_shape(single[DATASPACE][0])
        storage, place, held = parse_layout(*single[LAYOUT])
        if FILTERS in single and storage != "chunked":
            raise Unknown("filters of data that is not chunked")
        nbytes = extent(shape, kind.nbytes)
        if held is not None and held != nbytes:
            raise Damaged(f"its shape is {shape} of {kind.nbytes} bytes each, and {held} bytes are there")
        attributes = self._attributes(header)
        if storage == "contiguous" and place is not None:
            described = Described(kind, shape, nbytes, header.attributes)
            self._alike.keep(address, header, described)
            return self._contiguous(described, place, address)
        offset = None if place is None else self._offset(place, nbytes)
        return Dataset(self._path, kind.dtype, kind.name, shape, offset, nbytes, storage, address, attributes)

    def _contiguous(self, described: Described, place: int, address: int) -> Dataset:
        kind, shape, nbytes, messages = described
        offset, attributes = self._offset(place, nbytes), self._attributes_of(messages)
        return Dataset(self._path, kind.dtype, kind.name, shape, offset, nbytes, "contiguous", address, attributes)

    def _offset(self, place: int, nbytes: int) -> int:
        if place + nbytes > self._file.reader.nbytes:
            raise Damaged(f"its bytes end at {place + nbytes}, the file at {self._file.reader.nbytes}")
        return self._file.reader.start + place


def _is_group(header: Header) -> bool:
    return SYMBOLS in header.single or LINK_INFO in header.single
