"""Where bytes lie: the plan of new files (`Layout`), and the places of tensors in old ones (`Extent`).

Backends make and read these; they never move a tensor's bytes. The engine in `transfer` does.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np

from ckptmgr.box import Box
from ckptmgr.spec import TensorSpec
from ckptmgr.step import JSON
from ckptmgr.storage import Folder

Path: TypeAlias = tuple[str | int, ...]  # the keys that lead to a leaf of the state tree
Scalar: TypeAlias = bool | int | float | complex | str | bytes | np.generic  # a plain leaf of the state tree


class Extent(NamedTuple):
    """Where a tensor, or the slice ``box`` of it, lies: raw little-endian C-order bytes, exactly as numpy holds them.

    ``box`` None means the whole tensor. ``crc32c`` of exactly these bytes, if it is known.
    """

    folder: Folder
    file: str
    offset: int
    box: Box | None = None
    crc32c: int | None = None


class Part(NamedTuple):
    """A tensor, or the slice ``box`` of it, that is written here. ``spec`` is the whole tensor's."""

    name: str
    spec: TensorSpec
    box: Box | None = None

    @property
    def nbytes(self) -> int:
        """Bytes this part takes in a file."""
        return self.spec.nbytes if self.box is None else TensorSpec(self.spec.dtype, self.box.shape).nbytes


@dataclass(frozen=True, slots=True)
class Contents:
    """What is to be written, without its bytes.

    ``files`` holds the parts, packed into files by core in the order of the state tree. ``aliases`` gives further names
    of tensors (tied ones). ``strings`` has the values of string tensors, in C order; in a layout they are bytes and no
    parts. ``paths`` tells how names are nested in the state tree; a name that is not there is split at ``/``. ``metadata``
    goes into the file, if the format has a place for it.

    ``scalars`` are the plain leaves of the state tree (None aside), by their keys. The skeleton in ``metadata`` or beside the
    files has them; a format whose other readers know nothing but tensors may write them as tensors, too.

    ``skeleton`` is that of the state tree, for formats whose other readers know lists, tuples and dicts as well; None if there
    is none. A file carries it for us only in ``metadata``.
    """

    files: tuple[tuple[Part, ...], ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    strings: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    paths: Mapping[str, Path] = field(default_factory=dict)
    scalars: Mapping[Path, Scalar] = field(default_factory=dict)
    skeleton: JSON = None

    def path(self, name: str) -> Path:
        """The keys that lead to the tensor of that name."""
        return self.paths[name] if name in self.paths else tuple(name.split("/"))

    @property
    def names(self) -> list[str]:
        """Names of all tensors, in order, each once."""
        return list(dict.fromkeys([part.name for parts in self.files for part in parts]))


Digests: TypeAlias = Mapping[str, Sequence[int]]  # of one file: kind of digest -> its value for each piece, in order


class Late(NamedTuple):
    """Bytes that depend on the checksums of pieces before them: a TF index, a zip directory.

    ``build`` gets, by file name, the digests of all pieces before this one. ``nbytes`` is known beforehand, or None, which is
    allowed only for the sole piece of a file.
    """

    nbytes: int | None
    build: Callable[[Mapping[str, Digests]], bytes]


Piece: TypeAlias = bytes | Part | Late


@dataclass(frozen=True, slots=True)
class FileLayout:
    """One file as its pieces in order, without holes; offsets and size follow from them."""

    name: str
    pieces: tuple[Piece, ...]
    sizes: tuple[int | None, ...] = field(init=False, compare=False, repr=False)  # of each piece; there may be many

    def __post_init__(self) -> None:
        # Most are whole tensors, of which there may be many.
        sizes = [each.spec.nbytes if type(each) is Part and each.box is None else piece_nbytes(each) for each in self.pieces]
        object.__setattr__(self, "sizes", tuple(sizes))

    @property
    def nbytes(self) -> int | None:
        """The file's size, or None if it is one late piece of unknown size."""
        return None if None in self.sizes else sum(filter(None, self.sizes))

    @property
    def offsets(self) -> list[int]:
        """The offset of each piece in the file."""
        return list(itertools.accumulate([size or 0 for size in self.sizes[:-1]], initial=0))

    def parts(self) -> Iterator[tuple[int, int, Part]]:
        """Each part with its index among the pieces and its byte offset in the file."""
        for index, (piece, offset) in enumerate(zip(self.pieces, self.offsets, strict=False)):
            if isinstance(piece, Part):
                yield index, offset, piece


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of one save, in the order in which they are written, and the kinds of digest their late pieces need.

    Known kinds: ``"crc32c"`` (always made) and ``"crc32"`` (zip).
    """

    files: tuple[FileLayout, ...]
    digests: frozenset[str] = frozenset({"crc32c"})


def piece_nbytes(piece: Piece) -> int | None:
    """Bytes of a piece; None for a late piece whose size is not known yet."""
    return len(piece) if isinstance(piece, bytes) else piece.nbytes


Groups: TypeAlias = Callable[[Sequence[Part]], Sequence[Sequence[Part]]]  # which parts share files: a cut into groups


def pack(parts: Sequence[Part], max_file_nbytes: int | None = None, groups: Groups | None = None) -> tuple[tuple[Part, ...], ...]:
    """Parts cut into files of at most ``max_file_nbytes`` of tensor bytes, greedily and in order; each group has its own.

    A tensor over the limit gets a file of its own without closing the current one, as Hugging Face's writer does.
    There is always at least one file.

    Raises:
        ValueError: the limit is not a positive integer.
    """
    if groups is not None and len(cut := groups(parts)) > 1:
        return tuple(file for group in cut for file in pack(group, max_file_nbytes))
    if max_file_nbytes is None:
        return (tuple(parts),)
    if isinstance(max_file_nbytes, str) or max_file_nbytes <= 0:
        raise ValueError(f"max_file_nbytes must be a positive number of bytes, as 5 * 10**9, not {max_file_nbytes!r}")
    files: list[list[Part]] = []
    current: list[Part] | None = None
    filled = 0
    for part in parts:
        if part.nbytes > max_file_nbytes:
            files.append([part])
            continue
        if current is None or filled + part.nbytes > max_file_nbytes:
            current, filled = [], 0
            files.append(current)
        current.append(part)
        filled += part.nbytes
    return tuple(map(tuple, files)) or ((),)
