"""A source whose tensors are made of another's, by recipes: what a rule for layers hands on.

The law: a tensor that a recipe leaves as it is keeps its place in a file. Of one that is changed no more is read at a time than
the box asked for; before its first box, its bytes are compared with the checksum that the source has, in a pass of their own.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ckptmgr import transfer
from ckptmgr.box import Box
from ckptmgr.checksum import crc32c
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.layout import Extent, Path
from ckptmgr.source import Summed, TensorSource
from ckptmgr.transfer import Want
from ckptmgr.transforms import Piece, Recipe, added
from ckptmgr.views import Renamed

_Array: TypeAlias = np.ndarray[Any, Any]
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

        def read(part: Box) -> _Array:
            is_whole = part == Box.whole(spec.shape)
            if is_whole and any(extent.crc32c is not None for extent in source.extents(piece.name)):
                return transfer.read(source, [Want(piece.name)])[0][0]
            if piece.name not in self._checked:
                check_bytes(source, piece.name)
                self._checked.add(piece.name)
            return transfer.read(source, [Want(piece.name, None if is_whole else part)], verify="off")[0][0]

        return piece.read(read, spec.shape, box)


def note(source: TensorSource, name: str) -> str:
    """What became of a tensor's values on the way to this source, if rules did anything to them."""
    return source.note(name) if isinstance(source, Derived | Staged) else ""


def check_bytes(source: TensorSource, name: str) -> None:
    """Reads the bytes of a tensor in one piece of a file once, in windows, if there is a checksum of them.

    Raises:
        CorruptCheckpointError: they are not what was written; names file and tensor.
    """
    extents = source.extents(name)
    if len(extents) != 1 or extents[0].box is not None:
        return
    [extent] = extents
    expected = {"crc32c": extent.crc32c, "crc32": source.crc32(name) if isinstance(source, Summed) else None}
    if not (kinds := [kind for kind, value in expected.items() if value is not None]):
        return
    nbytes, most = source.specs[name].nbytes, extent.folder.store.window_nbytes
    buffer = np.empty(min(most, nbytes), np.uint8)
    found = dict.fromkeys(kinds, 0)
    for at in range(0, nbytes, most):
        part = buffer[: min(most, nbytes - at)]
        extent.folder.read_into(extent.file, extent.offset + at, [part])
        for kind in kinds:
            found[kind] = crc32c(part, found[kind]) if kind == "crc32c" else zlib.crc32(part.data, found[kind])
    if wrong := [kind for kind in kinds if found[kind] != expected[kind]]:
        text = f"the bytes of tensor {name!r} in {extent.folder.location(extent.file)!r} are not what was written"
        raise CorruptCheckpointError(f"{text} (their {wrong[0]} differs)", file=extent.file, tensor=name)
