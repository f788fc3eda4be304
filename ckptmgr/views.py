"""A source seen otherwise: fewer tensors, other names, other dtypes. A view is a source, and views lie on one another.

The law: what a view leaves as it is keeps its extents, so that its bytes are moved and never decoded; what it changes has none
and is read box by box.
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np

from ckptmgr import transfer
from ckptmgr.box import Box
from ckptmgr.casting import cast_array
from ckptmgr.checksum import crc32, crc32c, joined, joined_crc32
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.layout import Extent
from ckptmgr.source import TensorSource, crc32_of
from ckptmgr.spec import TensorSpec
from ckptmgr.step import JSON
from ckptmgr.transfer import Want

_Array: TypeAlias = np.ndarray[Any, Any]


class Renamed:
    """The tensors of a source that ``names`` has, as new name -> its own name, in that order. It does not close the source."""

    def __init__(self, source: TensorSource, names: Mapping[str, str]) -> None:
        self._source, self.names = source, names
        self.specs: Mapping[str, TensorSpec] = {name: source.specs[own] for name, own in names.items()}
        self.aliases: Mapping[str, str] = {}

    @property
    def metadata(self) -> Mapping[str, JSON]:
        """The source's."""
        return self._source.metadata

    @property
    def blobs(self) -> Mapping[str, bytes]:
        """The source's."""
        return self._source.blobs

    def extents(self, name: str) -> Sequence[Extent]:
        """See `TensorSource`."""
        return self._source.extents(self.names[name])

    def read(self, name: str, box: Box | None = None, out: _Array | None = None) -> _Array:
        """See `TensorSource`."""
        return self._source.read(self.names[name], box, out)

    def crc32(self, name: str) -> int | None:
        """See `Summed`."""
        return crc32_of(self._source, self.names[name])

    def close(self) -> None:
        """Nothing: the source is its owner's."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Recast(Renamed):
    """A source with other dtypes for some tensors, by name; see `casting.cast_array` for what becomes of values.

    A tensor that is read whole, or in boxes that together are all of it, is compared with its checksum, if the source has one.
    """

    def __init__(self, source: TensorSource, dtypes: Mapping[str, str]) -> None:
        super().__init__(source, {name: name for name in source.specs})
        self._dtypes = dtypes
        cast = {name: TensorSpec(dtype, source.specs[name].shape) for name, dtype in dtypes.items()}
        self.specs = {**self.specs, **cast}
        self._sums: dict[str, dict[int, tuple[int, int]]] = {}  # of boxes by their first element: checksum and bytes

    def extents(self, name: str) -> Sequence[Extent]:
        """See `TensorSource`; none for what is cast."""
        return () if name in self._dtypes else super().extents(name)

    def read(self, name: str, box: Box | None = None, out: _Array | None = None) -> _Array:
        """See `TensorSource`.

        Raises:
            CorruptCheckpointError: the bytes under it are not what was written.
        """
        if name not in self._dtypes:
            return super().read(name, box, out)
        found = transfer.read(self._source, [Want(name, box)])[0][0]
        if box is not None:
            self._check(name, box, found)
        made = cast_array(found, self.specs[name].numpy)
        if out is None:
            return made
        out[...] = made
        return out

    def crc32(self, name: str) -> int | None:
        """See `Summed`; None for what is cast."""
        return None if name in self._dtypes else super().crc32(name)

    def _check(self, name: str, box: Box, part: _Array) -> None:
        extents = self._source.extents(name)
        if len(extents) != 1 or extents[0].box is not None:
            return
        expected, checksum, join = extents[0].crc32c, crc32c, joined
        if expected is None:
            expected, checksum, join = crc32_of(self._source, name), crc32, joined_crc32
        if expected is None:
            return
        shape, most = self.specs[name].shape, self._source.specs[name].nbytes
        runs = [*box.runs(shape)]
        if len(runs) != 1:
            return  # nothing can be told by bytes that do not lie together
        sums = self._sums.setdefault(name, {})
        sums[runs[0][0]] = checksum(np.ascontiguousarray(part)), part.nbytes
        if sum(nbytes for _, nbytes in sums.values()) != most:
            return
        if join(sums[first] for first in sorted(sums)) != expected:
            file = extents[0].file
            text = f"the bytes of tensor {name!r} in {extents[0].folder.location(file)!r} are not what was written"
            raise CorruptCheckpointError(f"{text} (their checksum differs)", file=file, tensor=name)
        sums.clear()
