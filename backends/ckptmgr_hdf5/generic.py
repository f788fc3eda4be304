"""Where every byte of new files lies: groups as the state nests, and a contiguous dataset for each tensor.

Every HDF5 tool reads them. What HDF5 has no word for is told by attributes and groups of ours: see `carriage` and `dtypes`;
a group ``%blobs`` holds blobs, a group with the attribute ``ckptmgr_dtype`` is a tensor of strings that are no texts. No key
of a state is called so in a file (`escaping`).
"""

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from ckptmgr.backend import Box, Contents, FileLayout, Layout, Part
from ckptmgr.errors import UnsupportedTensorError, shown
from ckptmgr_hdf5 import carriage
from ckptmgr_hdf5.carriage import Carriage
from ckptmgr_hdf5.datatypes import file_type, vlen_string
from ckptmgr_hdf5.dtypes import DTYPE, stored_dtype, stored_type
from ckptmgr_hdf5.encoding import Attribute, DatasetNode, GroupNode, encode
from ckptmgr_hdf5.escaping import escape
from ckptmgr_hdf5.filesets import file_names
from ckptmgr_hdf5.scalars import add_scalars

BLOBS = "%blobs"
FILES = "ckptmgr_files"  # attribute of the root: number of the file and count of files, where there are several
BYTES, ENDS = "bytes", "ends"  # what a group that is a tensor of strings has: all bytes, and where each string ends
MAX_RANK = 32
MAX_DEPTH = 128  # of groups
_TEXTS_NBYTES = 32 << 20  # of strings that lie as texts: readers bound what they take at once
_Path: TypeAlias = tuple[str, ...]
_BYTE = np.dtype(np.uint8)


def layout(contents: Contents, *, stem: str, align: int) -> Layout:
    """``<stem>.h5``, or ``<stem>-00001-of-0000N.h5`` and so on; the last has what is not of one tensor.

    Raises:
        UnsupportedTensorError: a dtype, a name, a rank or a slice that HDF5 has no place for.
        ValueError: metadata that is no JSON, or a tensor that is given twice.
    """
    files = contents.files or ((),)
    _check([part for parts in files for part in parts])
    keys = _paths(contents)
    paths = {name: tuple(map(escape, path)) for name, path in keys.items()}
    roots = [GroupNode() for _ in files]
    tied: dict[str, list[str]] = {}
    for alias, name in contents.aliases.items():
        tied.setdefault(name, []).append(alias)
    for root, parts in zip(roots, files, strict=True):
        for part in parts:
            node = _node(part, contents.strings)
            # A group has one name; what others it should have, `carriage` tells alone.
            for name in (part.name, *(tied.get(part.name, ()) if isinstance(node, DatasetNode) else ())):
                *above, last = paths[name]
                root.within(*above).children[last] = node

    last_root, taken = roots[-1], {*paths.values()}
    add_scalars(last_root, contents.scalars, taken)
    if contents.blobs:
        last_root.children[BLOBS] = GroupNode({_blob_name(name): _bytes(blob) for name, blob in contents.blobs.items()})
    _mark(roots, _carriage(contents, keys, paths))
    names = file_names(stem, len(files))
    return Layout(tuple(_file(name, root, parts, align) for name, root, parts in zip(names, roots, files, strict=True)))


def _check(parts: Sequence[Part]) -> None:
    """Raises for what no dataset can hold."""
    seen = set()
    for name, spec, box in parts:
        if name in seen:
            raise ValueError(f"tensor {name!r} is given twice")
        seen.add(name)
        if box is not None and box != Box.whole(spec.shape):
            text = f"an HDF5 file holds whole tensors, not the slice {box.start} to {box.stop} of {name!r}"
            raise UnsupportedTensorError(text, tensor=name)
        if len(spec.shape) > MAX_RANK:
            text = f"an HDF5 dataset has at most {MAX_RANK} axes, and tensor {name!r} {len(spec.shape)}"
            raise UnsupportedTensorError(text, tensor=name)
    refused = {name: spec.dtype for name, spec, _ in parts if not spec.is_string and stored_dtype(spec.dtype) is None}
    if refused:
        dtype = next(iter(refused.values()))
        names = [name for name, other in refused.items() if other == dtype]
        raise UnsupportedTensorError(
            f"HDF5 files have no dtype {dtype} that is the same everywhere, and these tensors have it: {shown(names)}; "
            "cast them or use another backend",
            tensor=names[0],
        )


def _paths(contents: Contents) -> dict[str, _Path]:
    """The keys to each tensor and alias as text, none of them through another tensor.

    Where two become one, as of 1 and "1", theirs are what stands in their names.
    """
    paths = {name: tuple(map(str, contents.path(name))) or (name,) for name in (*contents.names, *contents.aliases)}
    uses = Counter(paths.values())
    if len(uses) < len(paths):
        paths = {name: path if uses[path] == 1 else tuple(name.split("/")) for name, path in paths.items()}
    paths = _apart(paths)
    for name, path in paths.items():
        problem = f"it is nested deeper than {MAX_DEPTH} levels" if len(path) > MAX_DEPTH else _problem(path)
        if problem is not None:
            text = f"an HDF5 file cannot hold the name {name!r}: {problem}; rename the tensor"
            raise UnsupportedTensorError(text, tensor=name)
    return paths


def _apart(paths: Mapping[str, _Path]) -> dict[str, _Path]:
    """The paths, none of which leads through another: the rest of such a one is one key beside the other tensor.

    Where even so two are one, all are but their names.
    """
    taken = {*paths.values()}
    found = {name: _beside(path, taken) for name, path in paths.items()}
    taken = {*found.values()}
    is_apart = len(taken) == len(found) and all(_beside(path, taken) == path for path in taken)
    return found if is_apart else {name: (name,) for name in paths}


def _beside(path: _Path, taken: Collection[_Path]) -> _Path:
    for depth in range(1, len(path)):
        if path[:depth] in taken:
            return (*path[: depth - 1], "/".join(path[depth - 1 :]))
    return path


def _problem(path: _Path) -> str | None:
    try:
        "".join(path).encode()
    except UnicodeEncodeError:
        return "names are UTF-8, which has no surrogates"
    return None


def _node(part: Part, strings: Mapping[str, Sequence[bytes]]) -> DatasetNode | GroupNode:
    if part.spec.is_string:
        return _string_node(strings[part.name], part.spec.shape)
    dtype, shape, attributes = stored_type(part.spec)
    return DatasetNode(dtype, shape, part.name, attributes)


def _string_node(values: Sequence[bytes], shape: tuple[int, ...]) -> DatasetNode | GroupNode:
    """Texts as such; strings that HDF5 would cut or people could not read as bytes."""
    if _are_texts(values):
        return DatasetNode(vlen_string(is_utf8=True), shape, tuple(values))
    ends = np.fromiter(itertools.accumulate(map(len, values)), "<u8", len(values))
    children: dict[str, GroupNode | DatasetNode] = {
        BYTES: _bytes(b"".join(values)),
        ENDS: DatasetNode(file_type(ends.dtype), shape, ends.tobytes()),
    }
    return GroupNode(children, (Attribute(DTYPE, np.bytes_(b"string")),))


def _are_texts(values: Iterable[bytes]) -> bool:
    joined = b"".join(values)
    if b"\0" in joined or len(joined) > _TEXTS_NBYTES:
        return False
    try:
        for value in values:
            value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _bytes(data: bytes) -> DatasetNode:
    return DatasetNode(file_type(_BYTE), (len(data),), bytes(data))


def _blob_name(name: str) -> str:
    try:
        return escape(name)
    except ValueError as error:
        raise UnsupportedTensorError(f"an HDF5 file cannot hold the blob {name!r}: {error}", tensor=name) from error


def _carriage(contents: Contents, keys: Mapping[str, _Path], paths: Mapping[str, _Path]) -> Carriage:
    places = {name: "/".join(path) for name, path in paths.items()}
    aliases = {places[alias]: places[name] for alias, name in contents.aliases.items()}
    return Carriage(contents.metadata, aliases, {places[name]: name for name, path in keys.items() if "/".join(path) != name})


def _mark(roots: Sequence[GroupNode], carried: Carriage) -> None:
    """Says in each root that the file is ours, which one of several it is, and in the last what it carries."""
    nothing = Carriage({}, {}, {})
    for number, root in enumerate(roots, 1):
        marks = carriage.encode(carried if number == len(roots) else nothing)
        if len(roots) > 1:
            marks.append(Attribute(FILES, np.array([number, len(roots)], np.uint32)))
        root.attributes = [*marks, *root.attributes]


def _file(name: str, root: GroupNode, parts: Iterable[Part], align: int) -> FileLayout:
    by_name = {part.name: part for part in parts}
    pieces = encode(root, align=align).pieces
    return FileLayout(name, tuple(by_name[piece] if isinstance(piece, str) else piece for piece in pieces))
