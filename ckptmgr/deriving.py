"""A source whose tensors are made of another's, by recipes: what a rule for layers hands on.

The law: a tensor that a recipe leaves as it is keeps its place in a file. One that is changed is read once, and no more of it at
a time than a few boxes as large as that asked for: where boxes lie across it in its file, by way of a temporary file. Before the
first of them is handed out, its bytes are compared with the checksum that the source has.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from ckptmgr import transfer
from ckptmgr.box import Box
from ckptmgr.checksum import crc32, crc32c
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.layout import Extent, Path
from ckptmgr.scratch import Scratch, piece_nbytes
from ckptmgr.source import TensorSource, crc32_of
from ckptmgr.spec import TensorSpec
from ckptmgr.transfer import Want
from ckptmgr.transforms import Permuted, Piece, Recipe, added
from ckptmgr.views import Renamed

_Array: TypeAlias = np.ndarray[Any, Any]
_NEAR_NBYTES = 1 << 16  # runs from here on are read as they lie
INEXACT = "the sum of two biases that are both not zero: not bit-exact, and a way back cannot tell them apart"


class Staged(Renamed):
    """A renamed source with tied names and nesting of its own, for rules that come after."""

    def __init__(
        self, source: TensorSource, names: Mapping[str, str], aliases: Mapping[str, str], paths: Mapping[str, Path]
    ) -> None:
        super().__init__(source, names)
        self.aliases, self.paths = aliases, paths

    def note(self, name: str) -> str:
        """What became of the tensor's values before."""
        return note(self._source, self.names[name])


@dataclass
class _Turned:
    """A tensor that is read by way of a temporary file, until as many elements were asked for as it has."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    scratch: Scratch | None = None
    left: int = 0


class Derived(Renamed):
    """Tensors by name, each as its recipe says."""

    def __init__(
        self, source: TensorSource, recipes: Mapping[str, Recipe], aliases: Mapping[str, str], paths: Mapping[str, Path]
    ) -> None:
        kept = {name: recipe.pieces[0].name for name, recipe in recipes.items() if recipe.is_plain}
        super().__init__(source, kept)
        self.specs = {name: recipe.spec for name, recipe in recipes.items()}
        self.aliases, self.paths = aliases, paths
        self._inexact: set[str] = set()
        self._recipes = recipes
        self._checked: set[str] = set()
        self._turned: dict[Piece, _Turned] = {}
        self._lock = threading.Lock()

    def extents(self, name: str) -> Sequence[Extent]:
        """See `TensorSource`; none for what is changed."""
        return super().extents(name) if name in self.names else ()

    def crc32(self, name: str) -> int | None:
        """See `Summed`; None for what is changed."""
        return super().crc32(name) if name in self.names else None

    def read(self, name: str, box: Box | None = None, out: _Array | None = None) -> _Array:
        """See `TensorSource`.

        Raises:
            CorruptCheckpointError: the bytes under it are not what was written.
        """
        if name in self.names:
            return super().read(name, box, out)
        recipe = self._recipes[name]
        made = self._made(name, recipe, Box.whole(recipe.spec.shape) if box is None else box)
        if out is None:
            return made
        out[...] = made
        return out

    def note(self, name: str) -> str:
        """What became of the tensor's values, here and before; of a sum, once it has been read."""
        recipe = self._recipes[name]
        before = [note(self._source, piece.name) for piece in recipe.pieces]
        return ", ".join(filter(None, (*before, INEXACT if name in self._inexact else recipe.note)))

    def _made(self, name: str, recipe: Recipe, box: Box) -> _Array:
        if recipe.how == "zeros":
            return np.zeros(box.shape, recipe.spec.numpy)
        if recipe.how == "one":
            return self._piece(recipe.pieces[0], box)
        inner = [Box.whole(piece.shape(self._source.specs[piece.name].shape)) for piece in recipe.pieces]
        parts = [self._piece(piece, whole) for piece, whole in zip(recipe.pieces, inner, strict=True)]
        if recipe.how == "stack":
            return np.stack(parts)[box.slices]
        if all(part.any() for part in parts):
            self._inexact.add(name)
        return added(*parts)[box.slices]

    def _piece(self, piece: Piece, box: Box) -> _Array:
        source, spec = self._source, self._source.specs[piece.name]
        axes = next((step.axes for step in piece.steps if isinstance(step, Permuted)), None)

        def read(part: Box) -> _Array:
            is_whole = part == Box.whole(spec.shape)
            if is_whole and any(extent.crc32c is not None for extent in source.extents(piece.name)):
                return transfer.read(source, [Want(piece.name)])[0][0]
            if axes is not None and not is_whole and len(axes) == len(spec.shape) and _is_scattered(part, spec):
                return self._across(piece, axes, part)
            if piece.name not in self._checked:
                check_bytes(source, piece.name)
                self._checked.add(piece.name)
            return transfer.read(source, [Want(piece.name, None if is_whole else part)], verify="off")[0][0]

        return piece.read(read, spec.shape, box)

    def _across(self, piece: Piece, axes: Sequence[int], part: Box) -> _Array:
        """A box of a tensor that lies in many short runs."""
        spec = self._source.specs[piece.name]
        with self._lock:
            turned = self._turned.setdefault(piece, _Turned())
        with turned.lock:
            if turned.scratch is None:
                most = piece_nbytes(spec.nbytes, part.size * spec.numpy.itemsize) // spec.numpy.itemsize
                turned.scratch = Scratch(spec.numpy, axes, checked(self._source, piece.name, most))
                turned.left = spec.size
            scratch = turned.scratch
            turned.left -= part.size
            if turned.left <= 0:  # whoever asks for more than all of it waits for it once more
                turned.scratch = None
        return scratch.read(part)


def _is_scattered(part: Box, spec: TensorSpec) -> bool:
    first = next(part.runs(spec.shape), None)
    return first is not None and first[1] != part.size and first[1] * spec.numpy.itemsize < _NEAR_NBYTES


def checked(source: TensorSource, name: str, most: int) -> Iterator[tuple[Box, _Array]]:
    """A tensor in boxes of at most so many elements, one after another as they lie in it.

    Raises:
        CorruptCheckpointError: after the last, if all were not what was written; names file and tensor.
    """
    check = _Check(source, name)
    for box in Box.whole(source.specs[name].shape).chunks(most):
        [array], _ = transfer.read(source, [Want(name, box)], verify="off")
        check.add(array.reshape(-1).view(np.uint8))
        yield box, array
    check.close()


def note(source: TensorSource, name: str) -> str:
    """What became of a tensor's values on the way to this source, if rules did anything to them."""
    return source.note(name) if isinstance(source, Derived | Staged) else ""


def check_bytes(source: TensorSource, name: str) -> None:
    """Reads the bytes of a tensor in one piece of a file once, in windows, if there is a checksum of them.

    Raises:
        CorruptCheckpointError: they are not what was written; names file and tensor.
    """
    check = _Check(source, name)
    if not check.expected:
        return
    [extent] = source.extents(name)
    nbytes, most = source.specs[name].nbytes, extent.folder.store.window_nbytes
    buffer = np.empty(min(most, nbytes), np.uint8)
    for at in range(0, nbytes, most):
        part = buffer[: min(most, nbytes - at)]
        extent.folder.read_into(extent.file, extent.offset + at, [part])
        check.add(part)
    check.close()


class _Check:
    """Compares the bytes of a tensor in one piece of a file with the checksums that there are of them."""

    def __init__(self, source: TensorSource, name: str) -> None:
        self._name, self._extents = name, source.extents(name)
        told: dict[str, int | None] = {}
        if len(self._extents) == 1 and self._extents[0].box is None:
            told = {"crc32c": self._extents[0].crc32c, "crc32": crc32_of(source, name)}
        self.expected = {kind: value for kind, value in told.items() if value is not None}
        self._found = dict.fromkeys(self.expected, 0)

    def add(self, part: _Array) -> None:
        """The next of its bytes."""
        for kind, value in self._found.items():
            self._found[kind] = crc32c(part, value) if kind == "crc32c" else crc32(part, value)

    def close(self) -> None:
        """Raises CorruptCheckpointError: they are not what was written."""
        if wrong := [kind for kind in self._found if self._found[kind] != self.expected[kind]]:
            [extent] = self._extents
            text = f"the bytes of tensor {self._name!r} in {extent.folder.location(extent.file)!r} are not what was written"
            raise CorruptCheckpointError(f"{text} (their {wrong[0]} differs)", file=extent.file, tensor=self._name)
