"""Files of `torch.save` for ckptmgr, read and written without torch, and without running what a pickle asks for.

Source: torch/serialization.py, torch 2.13.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ckptmgr.backend import Contents, Folder, Layout, TensorSource, zipreading
from ckptmgr_torch import archives, filesets, opening, writing

_RECORDS = (
    b"/data.pkl",
    b"/byteorder",
    b"/version",
    b"/constants.pkl",
    b"/.format_version",
    b"/data/0",
    b"/.data/serialization_id",
)


@dataclass(frozen=True, slots=True)
class TorchBackend:
    """The format ``torch``: ``.pt`` and ``.pth`` files, zip archives with a pickle and the raw bytes of every storage.

    A pickle is a program; what is read is the part that torch itself takes for safe (``weights_only=True``), by a machine of
    our own that can only make tensors and plain values. Lists, tuples, numbers and texts come back as they were; sets as
    lists, devices and dtypes as texts. What is written is the state as dicts, lists, tuples and tensors, for
    ``torch.load(path, weights_only=True, mmap=True)``. `Contents.blobs` have no place in it.

    ``ending`` is that of new files: ``".pt"``, ``".pth"``, or ``".bin"`` as Hugging Face's ``pytorch_model.bin``.

    Raises:
        ValueError: another ending.
    """

    name: ClassVar[str] = "torch"

    ending: str = filesets.SUFFIX

    def __post_init__(self) -> None:
        if self.ending not in filesets.SUFFIXES:
            raise ValueError(f"ending must be one of {', '.join(filesets.SUFFIXES)}, not {self.ending!r}")

    @property
    def suffix(self) -> str:
        """What the names of single files end in."""
        return self.ending

    def layout(self, contents: Contents, *, stem: str, align: int) -> Layout:
        """``<stem>.pt``; or ``<stem>-00001-of-0000N.pt`` and so on, each a dict of tensors by name, and ``<stem>.pt.index.json``.

        Tensors lie in the order of the tree at multiples of 64 bytes, those of 64 KiB and more at multiples of ``align``.

        Raises:
            UnsupportedTensorError: a dtype that torch does not have, or a slice of a tensor.
            ValueError: metadata that is no JSON, or a tensor that is given twice.
        """
        return writing.layout(contents, stem=stem, suffix=self.ending, align=align)

    def for_file(self, name: str) -> "TorchBackend":
        """For names that end in ``.pth``, and for ``.bin`` of Hugging Face's, the form that ends so; itself for all others."""
        ending = filesets.ending_of(name.rpartition("/")[2])
        return self if ending is None else TorchBackend(ending)

    def recognizes(self, path: str, head: bytes, siblings: Collection[str]) -> bool:
        """By the records of an archive, or by its name; as a file from before torch 1.6; a folder by the names in it."""
        if not head:
            return path not in siblings and filesets.is_checkpoint(siblings)
        if path.endswith(".json"):
            return filesets.is_index(path) and head.lstrip(b" \t\r\n").startswith(b"{")
        if not head.startswith(zipreading.SIGNATURE):
            return archives.is_older(head)
        name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return name.endswith(_RECORDS) or path.endswith((".pt", ".pth"))

    def file_sets(self, names: Collection[str]) -> Mapping[str, Sequence[str]]:
        """``<stem>.pt`` or ``<stem>.pth``, or the files of a set and ``<stem>.pt.index.json``; ``.bin`` of its weights."""
        return filesets.file_sets(names)

    def open(self, folder: Folder, path: str) -> TensorSource:
        """A file, an index, or a folder that has one of them. Directories and pickles are read, and no tensor's bytes.

        Raises:
            FileNotFoundError: there is nothing of the kind, or there are several.
            CorruptCheckpointError: a rule of the format is broken; names file and tensor.
            UnsafeCheckpointError: the pickle needs code, by the name of what it would call; or it is of an older format, or a
                TorchScript program.
        """
        return opening.open_path(folder, path)
