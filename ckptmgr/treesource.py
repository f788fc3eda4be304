"""The tensors of a managed step: its ``tree.json`` says where every one of them lies, so no format's parser is needed."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from ckptmgr import transfer
from ckptmgr.box import Box
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.layout import Extent
from ckptmgr.manifest import TREE
from ckptmgr.source import Places, TensorSource
from ckptmgr.spec import TensorSpec
from ckptmgr.step import JSON
from ckptmgr.storage import Folder
from ckptmgr.table import Table, plain
from ckptmgr.transfer import Want
from ckptmgr.treefile import TreeFile, TreeText


class TreeSource:
    """The tensors of a managed step, by the rows of its ``tree.json``, which is decoded when more than a few of them are wanted.

    What has no raw bytes there (string tensors) is read by the format's own reader, which ``open_format`` opens. ``totals`` are
    size and crc32c of the step's files.
    """

    metadata: Mapping[str, JSON] = {}
    blobs: Mapping[str, bytes] = {}

    def __init__(
        self,
        folder: Folder,
        tree: TreeFile | TreeText,
        open_format: Callable[[str], TensorSource],
        totals: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        self._text, self._folder, self._open_format, self._totals = tree, folder, open_format, totals or {}
        self._format: TensorSource | None = None

    @functools.cached_property
    def tree(self) -> TreeFile:
        """What ``tree.json`` holds, decoded and checked now. Raises like `TreeFile.decode`."""
        return self._text.tree if isinstance(self._text, TreeText) else self._text

    @functools.cached_property
    def rows(self) -> Table:
        """The rows as a table."""
        return Table.of(self.tree.rows)

    @functools.cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """See `TensorSource`."""
        return self.rows.spec_of

    @property
    def aliases(self) -> Mapping[str, str]:
        """See `TensorSource`."""
        return self.tree.aliases

    @property
    def paths(self) -> Mapping[str, tuple[str | int, ...]]:
        """See `Nested`."""
        return self.tree.paths

    def only(self, name: str) -> "TreeSource":
        """A source that has at least that tensor, if there is one: of a few no more than their own rows are decoded."""
        tree = self._text.only(name) if isinstance(self._text, TreeText) else None
        # The format's reader, which strings need, is this source's to close.
        if tree is None or -1 in Table.of(tree.rows).offsets:
            return self
        return TreeSource(self._folder, tree, self._open_format)

    def extents(self, name: str) -> Sequence[Extent]:
        """Where the tensor lies, with its checksum as it was written; empty if only the format's reader can decode it."""
        rows = self.rows
        if rows.boxes is None:  # a short way, because there may be many
            number = rows.numbers[name]
            assert isinstance(number, int)
            offset, crc32c = int(rows.offsets[number]), int(rows.checksums[number])
            file = rows.files[rows.indexes[number]]
            return [] if offset == -1 else [Extent(self._folder, file, offset, None, None if crc32c == -1 else crc32c)]
        return [
            Extent(self._folder, file, offset, box, crc32c)
            for _, _, file, offset, crc32c, box in rows.rows_of(name)
            if offset is not None
        ]

    def extents_of(self, names: Sequence[str]) -> Places:
        """See `Bulk`."""
        rows = self.rows
        indexes, offsets, checksums = rows.indexes, rows.offsets, rows.checksums
        if rows.boxes is not None:
            # In slices, or contradictory: `extents` has all of it.
            named = enumerate(zip(rows.names, rows.boxes, strict=True))
            is_whole = [box is None and rows.numbers[name] == [number] for number, (name, box) in named]
            offsets = np.where(is_whole, offsets, -1)
        if names != rows.names:
            found = [number if isinstance(number, int) else number[0] for number in map(rows.numbers.__getitem__, names)]
            indexes, offsets, checksums = indexes[found], offsets[found], checksums[found]
        return Places(self._folder, rows.files, indexes, offsets, plain(checksums), self._totals)

    def read(self, name: str, box: Box | None = None, out: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
        """The tensor, or a slice of it, verified where it is read whole."""
        if self.extents(name):
            arrays, _ = transfer.read(self, [Want(name, box, out)])
            return arrays[0]
        file = self.rows.rows_of(name)[0].file
        if self._format is None:
            self._format = self._open_format(file)
        if self._format.specs.get(name) != self.specs[name]:
            where = self._folder.location(file)
            raise CorruptCheckpointError(f"{where!r} has no tensor {name!r} as {TREE} describes it", file=file, tensor=name)
        return self._format.read(name, box, out)

    def close(self) -> None:
        """Closes the format's reader, if one was needed."""
        if self._format is not None:
            self._format.close()
            self._format = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
