"""What h5py says of links, datasets and attributes, taken only if it may be: for the process that can be lost.

Only hard links lead on, only data in this file is read, through filters that come with HDF5, and the type of everything is
looked at before its value: HDF5 crashes on some that damage makes.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5o, h5p, h5s, h5t

_ALLOWED_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset", 32000: "lzf"}
_CACHED_NBYTES = 1 << 20  # of chunks, which HDF5 keeps by itself
_REFERENCE = 16  # what stands in the file in place of a text of variable length
_FLOATS = {  # numpy's name for what HDF5 calls IEEE
    "<f2": h5t.IEEE_F16LE,
    "<f4": h5t.IEEE_F32LE,
    "<f8": h5t.IEEE_F64LE,
    ">f2": h5t.IEEE_F16BE,
    ">f4": h5t.IEEE_F32BE,
    ">f8": h5t.IEEE_F64BE,
}
_LINKS = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "an external link"}


class Limits(NamedTuple):
    """How much a file may ask for, in bytes but for ``links`` (of all groups together), ``depth`` and ``expansion``.

    ``nbytes`` is the file's own size. Data over ``free`` bytes is at most ``expansion`` times as large as what is stored.
    """

    nbytes: int
    memory: int
    chunk: int
    free: int
    expansion: int
    value: int
    links: int
    depth: int


class Damaged(Exception):
    """What is wrong with the file, and with which object."""

    def __init__(self, problem: str, path: str | None = None, *, is_unsafe: bool = False) -> None:
        super().__init__(problem)
        self.path = path
        self.is_unsafe = is_unsafe


class Readable(NamedTuple):
    """A dataset that may be read, the shape of its chunks, if it has any, and the bytes of one."""

    path: str
    dataset: h5d.DatasetID
    chunk: list[int] | None
    chunk_nbytes: int


def link_name(raw: bytes, kind: int, path: str) -> str:
    """The name of a link in the group at ``path``, which must be a hard one.

    Raises:
        Damaged: it is another one, or no name.
    """
    name = raw.decode()  # UnicodeDecodeError is a ValueError
    if kind != h5l.TYPE_HARD:
        raise Damaged(
            f"it is {_LINKS.get(kind, 'a user-defined link')}, and only hard ones are followed", f"{path}/{name}", is_unsafe=True
        )
    if name in ("", ".") or "/" in name:
        raise Damaged(f"{name!r} is no name", path or "/")
    return name


def described(dataset: h5d.DatasetID, path: str, limits: Limits) -> list[Any]:
    """Kind, dtype, shape, offset, size and storage of a dataset, whose bytes are all in this file.

    Raises:
        Damaged: they are not.
    """
    created = dataset.get_create_plist()
    layout = created.get_layout()
    if layout == h5d.VIRTUAL:
        raise Damaged("it is a virtual dataset, made of datasets of other files", path, is_unsafe=True)
    if created.get_external_count():
        raise Damaged("its data is in another file", path, is_unsafe=True)
    file_type, size = dataset.get_type(), shape(dataset.get_space())
    kind, dtype = kind_of(file_type)
    nbytes = 0 if size is None else math.prod(size) * _itemsize(file_type)
    if layout != h5d.CONTIGUOUS:
        return [kind, dtype, size, None, nbytes, "chunked"]  # compact bytes are where only HDF5 finds them, too
    offset = dataset.get_offset()
    if offset is None:
        return [kind, dtype, size, None, nbytes, "none"]
    if dataset.get_storage_size() != nbytes or offset + nbytes > limits.nbytes:
        raise Damaged(f"its {nbytes} bytes are not all at {offset} in a file of {limits.nbytes}", path)
    return [kind, dtype, size, offset, nbytes, "contiguous"]


def readable(root: h5g.GroupID, path: str, limits: Limits) -> Readable:
    """The dataset at a path, opened for reading. A chunk of it stays in memory until another one is read.

    Raises:
        Damaged: it may not be read.
    """
    dataset = _open_dataset(root, path)
    chunk = _check_readable(dataset, path, limits)
    nbytes = math.prod(chunk) * _itemsize(dataset.get_type()) if chunk else 0
    if nbytes > _CACHED_NBYTES:
        del dataset  # HDF5 gives it another cache only when it is open nowhere
        access = h5p.create(h5p.DATASET_ACCESS)
        access.set_chunk_cache(521, nbytes, 1.0)
        dataset = h5d.open(root, path.encode(), access)
    return Readable(path, dataset, chunk, nbytes)


def kind_of(file_type: Any) -> tuple[str, str | None]:
    """What numpy calls elements of that type, in the words of `ckptmgr_hdf5.kinds`."""
    nbytes = file_type.get_size()
    if isinstance(file_type, h5t.TypeStringID):
        return ("vlen_string", "|O") if file_type.is_variable_str() else ("string", f"|S{nbytes}")
    if isinstance(file_type, h5t.TypeOpaqueID):
        return "opaque", f"|V{nbytes}"
    if isinstance(file_type, h5t.TypeEnumID):
        return ("bool", "|b1") if _is_bool(file_type) else ("other", None)
    dtype = _complex(file_type) if isinstance(file_type, h5t.TypeCompoundID) else _number(file_type)
    return "raw" if dtype and dtype[0] != ">" else "other", dtype


def shape(space: h5s.SpaceID) -> list[int] | None:
    """Elements along each dimension, or None for "no elements and no shape"."""
    if space.get_simple_extent_type() == h5s.NULL:
        return None
    return [int(size) for size in space.get_simple_extent_dims()]


def value(attribute: h5a.AttrID, most: int) -> tuple[str, str | None, list[int] | None, bytes]:
    """Kind, dtype, shape and bytes of an attribute; texts of variable length stand one after another, with NULs between.

    Raises:
        Damaged: it is of a type that is not read, or of more than ``most`` bytes.
    """
    file_type, size = attribute.get_type(), shape(attribute.get_space())
    kind, dtype = kind_of(file_type)
    if dtype is None:
        raise Damaged("it is of a type that is not read")
    nbytes = 0 if size is None else math.prod(size) * file_type.get_size()
    if nbytes > most:
        raise Damaged(f"its {nbytes} bytes are over the limit of {most}")
    if not nbytes:
        return kind, dtype, size, b""
    if kind == "vlen_string":
        texts = np.empty(size or (), attribute.dtype)
        attribute.read(texts)
        return kind, dtype, size, joined(texts, most)
    flat = np.empty(nbytes, np.uint8)
    attribute.read(flat, file_type)
    return kind, dtype, size, flat.tobytes()


def joined(texts: np.ndarray[Any, Any], most: int) -> bytes:
    """Texts one after another, with NULs between, which none of them can have.

    Raises:
        Damaged: they have more than ``most`` bytes.
    """
    nbytes = sum(len(text) + 1 for text in texts.flat)
    if nbytes > most:
        raise Damaged(f"texts of {nbytes} bytes are over the limit of {most}")
    return b"\0".join(map(bytes, texts.flat))


def _open_dataset(root: h5g.GroupID, path: str) -> h5d.DatasetID:
    """The dataset at a path, each step of it over a hard link.

    Raises:
        Damaged: there is none, or it is not reached by hard links.
    """
    *above, last = path.removeprefix("/").split("/")
    group, place = root, ""
    for name in above:
        link_name(name.encode(), group.links.get_info(name.encode()).type, place)
        group, place = h5o.open(group, name.encode()), f"{place}/{name}"
        if not isinstance(group, h5g.GroupID):
            raise Damaged("it is no group", place)
    link_name(last.encode(), group.links.get_info(last.encode()).type, place)
    dataset = h5o.open(group, last.encode())
    if not isinstance(dataset, h5d.DatasetID):
        raise Damaged("it is no dataset", path)
    return dataset


def _check_readable(dataset: h5d.DatasetID, path: str, limits: Limits) -> list[int] | None:
    """The shape of a dataset's chunks, if it has any."""
    nbytes = described(dataset, path, limits)[4]
    created = dataset.get_create_plist()
    _check_filters(created, path)
    stored = dataset.get_storage_size()
    if nbytes and not stored:
        raise Damaged("it was never written", path)
    if created.get_layout() != h5d.CHUNKED:
        return None
    chunk = [int(count) for count in created.get_chunk()]
    chunk_nbytes = math.prod(chunk) * _itemsize(dataset.get_type())
    if chunk_nbytes > limits.chunk:
        raise Damaged(f"a chunk of {chunk_nbytes} bytes is over the limit of {limits.chunk}", path)
    if nbytes > limits.free and nbytes > limits.expansion * stored:
        raise Damaged(f"its {nbytes} bytes are stored in {stored}, and the limit is 1:{limits.expansion}", path)
    return chunk


def _check_filters(created: Any, path: str) -> None:
    for index in range(created.get_nfilters()):
        code, _, _, name = created.get_filter(index)
        if code not in _ALLOWED_FILTERS:
            known = ", ".join(_ALLOWED_FILTERS.values())
            raise Damaged(f"it is stored through filter {code} ({name[:40]!r}); those that are read are {known}", path)


def _itemsize(file_type: Any) -> int:
    """Bytes of an element in the file. For texts of variable length HDF5 tells what it takes in memory."""
    is_vlen = isinstance(file_type, h5t.TypeStringID) and file_type.is_variable_str()
    return _REFERENCE if is_vlen else int(file_type.get_size())


def _number(file_type: Any) -> str | None:
    nbytes = file_type.get_size()
    if isinstance(file_type, h5t.TypeIntegerID):
        is_plain = nbytes in (1, 2, 4, 8) and file_type.get_precision() == 8 * nbytes and file_type.get_offset() == 0
        order = "|" if nbytes == 1 else "<" if file_type.get_order() == h5t.ORDER_LE else ">"
        return f"{order}{'u' if file_type.get_sign() == h5t.SGN_NONE else 'i'}{nbytes}" if is_plain else None
    if isinstance(file_type, h5t.TypeFloatID):
        return next((name for name, known in _FLOATS.items() if file_type.equal(known)), None)
    return None


def _is_bool(file_type: Any) -> bool:
    if _number(file_type.get_super()) != "|i1" or file_type.get_nmembers() != 2:
        return False
    return [(file_type.get_member_name(at), file_type.get_member_value(at)) for at in (0, 1)] == [(b"FALSE", 0), (b"TRUE", 1)]


def _complex(file_type: Any) -> str | None:
    if file_type.get_nmembers() != 2 or [file_type.get_member_name(at) for at in (0, 1)] != [b"r", b"i"]:
        return None
    nbytes, parts = file_type.get_size(), [_number(file_type.get_member_type(at)) for at in (0, 1)]
    is_whole = nbytes in (8, 16) and [file_type.get_member_offset(at) for at in (0, 1)] == [0, nbytes // 2]
    order = (parts[0] or " ")[0]
    return f"{order}c{nbytes}" if is_whole and parts == [f"{order}f{nbytes // 2}"] * 2 else None
