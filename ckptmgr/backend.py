"""What a file format is to ckptmgr: a codec for where bytes lie. And where installed formats are found.

A plugin registers a class in the entry point group ``ckptmgr.backends``; it is made without arguments when it is first
used. Plugins import this module and `ckptmgr.errors` and nothing else of ckptmgr; what they need is re-exported here.
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from ckptmgr import skeleton, zipreading, zipwriting
from ckptmgr.box import Box
from ckptmgr.checksum import combine, combine_crc32, crc32, crc32c
from ckptmgr.errors import BackendNotFoundError, MissingDependencyError, shown
from ckptmgr.layout import Contents, Digests, Extent, FileLayout, Late, Layout, Part, Path, Scalar
from ckptmgr.manifest import MANIFEST
from ckptmgr.origin import FileOrigin
from ckptmgr.raw import read_raw
from ckptmgr.source import Bulk, Nested, Partial, Places, Replaceable, Summed, TensorSource, paths_of
from ckptmgr.spec import PackedArray, TensorSpec, dtype_name, is_possible, numpy_dtype, tensor_spec
from ckptmgr.step import JSON, StepInfo
from ckptmgr.storage import Folder, Head
from ckptmgr.threads import Pool
from ckptmgr.tree import names as tensor_names

__all__ = [
    "JSON",
    "Backend",
    "Box",
    "Bulk",
    "Contents",
    "Described",
    "Digests",
    "Extent",
    "FileLayout",
    "FileOrigin",
    "Folder",
    "Formed",
    "Head",
    "Late",
    "Layout",
    "LeavesOut",
    "LeftOut",
    "Nested",
    "PackedArray",
    "Part",
    "Partial",
    "Path",
    "Places",
    "Pool",
    "Replaceable",
    "RunFiles",
    "Scalar",
    "StepInfo",
    "Summed",
    "Templated",
    "TensorSource",
    "TensorSpec",
    "available",
    "combine",
    "combine_crc32",
    "crc32",
    "crc32c",
    "detect",
    "dtype_name",
    "find",
    "is_possible",
    "numpy_dtype",
    "paths_of",
    "read_raw",
    "skeleton",
    "tensor_names",
    "tensor_spec",
    "zipreading",
    "zipwriting",
]

GROUP = "ckptmgr.backends"
HEAD_NBYTES = 4096  # of a file, shown to `Backend.recognizes`
_OF_A_RUN = "of a run, open one step's folder, or use CheckpointManager"


class Backend(Protocol):
    """One file format, written and opened. Stateless; one object may serve many threads.

    ``suffix`` ends the name of a single file (``".safetensors"``); ``""`` if names have no fixed ending.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]

    def layout(self, contents: Contents, *, stem: str, align: int) -> Layout:
        """Every byte of the new files, with tensors as `Part` pieces. Pure: the same contents give the same layout.

        File names start with ``stem`` and are plain. Tensor data starts at multiples of ``align`` where the format can.

        Raises:
            UnsupportedTensorError: a dtype, name or string tensor that the format cannot hold exactly.
        """

    def recognizes(self, path: str, head: bytes, siblings: Collection[str]) -> bool:
        """Whether ``path`` is of this format. Pure: ``head`` is the first 4 KiB of the file (empty for a folder or a
        prefix that is no file), ``siblings`` the names beside it (of the folder's own files, if it is a folder)."""

    def file_sets(self, names: Collection[str]) -> Mapping[str, Sequence[str]]:
        """The checkpoints of this format among the files of one folder, told by their names alone. Pure.

        By the stem of the files' names; the files of each in the order in which they are written, the one to `open` last.
        A set that lacks that last file is there too, and names it nevertheless: it is what an interrupted or replaced save
        left. All others are of ``names``.
        """

    def open(self, folder: Folder, path: str) -> TensorSource:
        """The tensors in ``path`` (a plain name in ``folder``; ``""`` is the folder itself), without reading their bytes.

        Raises:
            CorruptCheckpointError: not of this format, or damaged; names file and tensor.
            UnsafeCheckpointError: it points outside itself.
        """


@runtime_checkable
class RunFiles(Protocol):
    """A backend that keeps hints for other tools beside the steps of a run, e.g. TensorFlow's ``checkpoint`` file."""

    def run_files(self, steps: Sequence[tuple[str, StepInfo]]) -> Mapping[str, bytes]:
        """Plain names and whole contents of the hints for these steps of this format, oldest save first. Pure.

        Each with the stem of its files, as a path relative to the run's folder.
        """

    def run_order(self, folder: Folder) -> Sequence[str]:
        """Stems that the hints in a run's folder name, oldest save first; empty if there are none that can be read."""


@runtime_checkable
class Templated(Protocol):
    """A backend that can write a copy of a whole-model file with other tensors in it, and everything else as it was."""

    def with_template(self, template: TensorSource) -> Backend:
        """The backend for single files like ``template``, which it has opened and which stays open while they are written.

        Raises:
            ValueError: it is not a file that can be copied so.
        """


@runtime_checkable
class Formed(Protocol):
    """A backend that writes its format in several forms, some of which the ending of a file's name tells."""

    def for_file(self, name: str) -> Backend:
        """The backend for a new file of that name: of the form that its ending means, or itself."""


class LeftOut(NamedTuple):
    """What files of a format would not have of their contents: keys of the metadata, names of blobs."""

    metadata: frozenset[str] = frozenset()
    blobs: frozenset[str] = frozenset()


@runtime_checkable
class LeavesOut(Protocol):
    """A backend that tells what it leaves out. One that does not is taken to hold all metadata, and no blobs."""

    def left_out(self, contents: Contents) -> LeftOut:
        """What a layout of these contents has no place for. Pure."""


def left_out(backend: Backend, contents: Contents) -> LeftOut:
    """What the backend's files would not have of these contents."""
    return backend.left_out(contents) if isinstance(backend, LeavesOut) else LeftOut(blobs=frozenset(contents.blobs))


@runtime_checkable
class Described(Protocol):
    """A backend whose files tell more of a model than its tensors, e.g. layers and optimizer in a file of Keras."""

    def describe(self, metadata: Mapping[str, JSON]) -> Sequence[tuple[str, str]]:
        """What the metadata of a file says, as titles of a word and lines of text for people; empty if it says nothing. Pure."""


def available() -> list[str]:
    """Names of the installed backends, sorted; none of them is imported."""
    return sorted(_entry_points())


@functools.cache
def find(name: str) -> Backend:
    """The installed backend of that name.

    Raises:
        BackendNotFoundError: there is none; the message lists those that are.
        MissingDependencyError: it is there, but a package it needs is not.
    """
    found = _entry_points().get(name)
    if found is None:
        names = available()
        raise BackendNotFoundError(f"no backend {name!r} is installed (found: {shown(names, 20) or 'none'})", available=names)
    try:
        kind = found.load()
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("ckptmgr", found.module.partition(".")[0]):
            raise  # the plugin itself is broken: no package would help
        raise MissingDependencyError(f"backend {name!r} cannot be used: {error}; {_remedy(found)}") from error
    backend: Backend = kind()
    return backend


def detect(folder: Folder, path: str) -> Backend:
    """The backend that recognizes ``path`` in ``folder`` by its content.

    Raises:
        FileNotFoundError: there is nothing at that path, a run, or a file set whose index is missing.
        BackendNotFoundError: no backend that can be used recognizes it; the message says what to install for the others. Or
            several do: a folder has checkpoints of several formats.
    """
    head = folder.head(path) if path else None
    first = folder.read_range(path, 0, min(head.nbytes, HEAD_NBYTES)) if head else b""
    inside = folder.folder(path) if path else folder
    listing = None if head else inside.list()
    if listing and not (listing.files or listing.folders):
        listing = None
    # A name may be a file, a folder, or the prefix of a set of files.
    siblings = frozenset((listing or folder.list()).files)
    is_prefix = head is None and path != "" and listing is None
    if not head and not (any(name.startswith(path) for name in siblings) if is_prefix else siblings):
        raise FileNotFoundError(_nothing(inside.location(), has_folders=listing is not None))
    names, usable, unusable = available(), [], []
    found: list[Backend] = []
    for name in names:
        try:
            backend = find(name)
        except ImportError as error:
            unusable.append(str(error))
            continue
        # Only files whose names have no fixed ending are named by what their names begin with.
        if (not is_prefix or not backend.suffix) and backend.recognizes(path, first, siblings):
            found.append(backend)
        usable.append(backend)
    if len(found) > 1 and listing:
        formats = shown([backend.name for backend in found])
        raise BackendNotFoundError(
            f"{inside.location()!r} has checkpoints of several formats ({formats}): open one of its files, or say backend=",
            available=names,
        )
    if found:
        return found[0]
    if any(_lacks_index(backend, None if listing else path, siblings) for backend in usable):
        raise FileNotFoundError(
            f"{inside.location()!r} has data files, and its index is missing: the save of it was interrupted or is in progress"
        )
    if listing and any(inside.folder(name).head(MANIFEST) for name in listing.folders):
        raise FileNotFoundError(f"no checkpoint in {inside.location()!r}, only its steps: {_OF_A_RUN}")
    raise BackendNotFoundError(
        f"no installed backend recognizes {inside.location()!r} (tried: {shown(names) or 'none'}): "
        + ("; ".join(unusable) or "if it is a checkpoint, install the backend of its format"),
        available=names,
    )


def _nothing(location: str, *, has_folders: bool) -> str:
    if has_folders:
        return f"no checkpoint in {location!r}, only folders: {_OF_A_RUN}"
    return f"nothing at {location!r} (links in a folder count only with storage_options={{'follow_links': True}})"


def _lacks_index(backend: Backend, path: str | None, names: Collection[str]) -> bool:
    """Whether ``path`` means a file set (None: any) of which the file to open is not among ``names``."""
    sets = backend.file_sets(names).items()
    return any(files[-1] not in names and path in (None, stem, *files) for stem, files in sets)


def _remedy(point: EntryPoint) -> str:
    """How to get the packages that a backend needs."""
    if point.dist is None or point.dist.name == "ckptmgr":
        return f"pip install 'ckptmgr[{point.name.replace('_', '-')}]'"
    return f"install what {point.dist.name!r} needs for it"


@functools.cache
def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
