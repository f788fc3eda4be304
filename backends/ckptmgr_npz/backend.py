"""NumPy's ``.npz`` for ckptmgr: zip archives of arrays, read and written without loading anything that is pickled."""

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

from ckptmgr.backend import Contents, Folder, Layout, TensorSource, zipreading
from ckptmgr_npz import filesets, opening, writing
from ckptmgr_npz.carriage import MEMBER


class NpzBackend:
    """The format ``npz``: one ``.npy`` member for each tensor, under its name, not compressed. `numpy.load` reads it.

    bfloat16 and other dtypes that numpy has no code for are unsigned integers of their size, with their names in the member
    ``ckptmgr.json``, which also has tied names and metadata. Strings are ``S`` arrays. `Contents.blobs` have no place in it.
    Compressed files are read, too; arrays of pickled objects are refused.
    """

    name: ClassVar[str] = "npz"
    suffix: ClassVar[str] = filesets.SUFFIX

    def layout(self, contents: Contents, *, stem: str, align: int) -> Layout:
        """``<stem>.npz``, or ``<stem>-00001-of-0000N.npz`` and so on; the last has metadata and tied names.

        Data starts at multiples of 64 bytes, whatever ``align`` is.

        Raises:
            UnsupportedTensorError: a name, a slice or strings that the format has no place for.
            ValueError: metadata that is no JSON, or a tensor that is given twice.
        """
        return writing.layout(contents, stem=stem)

    def recognizes(self, path: str, head: bytes, siblings: Collection[str]) -> bool:
        """A zip whose first member is an array or `carriage`'s, or that has none and is named so; a folder by the names in it."""
        if not head:
            return path not in siblings and any(name.endswith(filesets.SUFFIX) for name in siblings)
        if head.startswith(zipreading.SIGNATURE):
            nbytes = int.from_bytes(head[26:28], "little")
            first = head[30 : 30 + nbytes]
            is_cut_off = len(first) < nbytes  # a long name, of which the head has the beginning
            return first.endswith(b".npy") or first == MEMBER.encode() or (is_cut_off and path.endswith(filesets.SUFFIX))
        return head.startswith(b"PK\5\6") and path.endswith(filesets.SUFFIX)

    def file_sets(self, names: Collection[str]) -> Mapping[str, Sequence[str]]:
        """By stem; see `filesets`."""
        return filesets.file_sets(names)

    def open(self, folder: Folder, path: str) -> TensorSource:
        """A file, any one of a set, or a folder with one checkpoint. Directories and headers are read.

        Raises:
            FileNotFoundError: there is nothing of the kind.
            CorruptCheckpointError: it is damaged, or a file of the set is missing; names file and member.
            UnsafeCheckpointError: an array of pickled objects, or an archive with tricks.
        """
        return opening.open_path(folder, path)
