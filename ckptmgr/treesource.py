"""The tensors of a managed step: its ``tree.json`` says where every one of them lies, so no format's parser is needed."""

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from ckptmgr import transfer
from ckptmgr.box import Box
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.layout import Extent
from ckptmgr.manifest import TREE
from ckptmgr.source import TensorSource
from ckptmgr.spec import TensorSpec
from ckptmgr.step import JSON
from ckptmgr.storage import Folder
from ckptmgr.transfer import Want
from ckptmgr.treefile import Row, TreeFile


class TreeSource:
    """The tensors of a managed step, by the rows of its ``tree.json``.

    What has no raw bytes there (string tensors) is read by the format's own reader, which ``open_format`` opens.
    """

    def __init__(self, folder: Folder, tree: TreeFile, open_format: Callable[[str], TensorSource]) -> None:
        self.metadata: Mapping[str, JSON] = {}
        self.blobs: Mapping[str, bytes] = {}
        self.aliases, self.paths = tree.aliases, tree.paths
        self.rows: dict[str, list[Row]] = {}
        for row in tree.rows:
            self.rows.setdefault(row.name, []).append(row)
        self.specs: Mapping[str, TensorSpec] = {name: rows[0].spec for name, rows in self.rows.items()}
        self._folder, self._open_format = folder, open_format
        self._format: TensorSource | None = None

    def extents(self, name: str) -> Sequence[Extent]:
        """Where the tensor lies, with its checksum as it was written; empty if only the format's reader can decode it."""
        return [
            Extent(self._folder, file, offset, box, crc32c)
            for _, _, file, offset, crc32c, box in self.rows[name]
            if offset is not None
        ]

    def read(self, name: str, box: Box | None = None, out: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
        """The tensor, or a slice of it, verified where it is read whole."""
        if self.extents(name):
            arrays, _ = transfer.read(self, [Want(name, box, out)])
            return arrays[0]
        if self._format is None:
            self._format = self._open_format(self.rows[name][0].file)
        if self._format.specs.get(name) != self.specs[name]:
            file = self.rows[name][0].file
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
