"""One file of `torch.save`: a zip archive with a pickle, and a record for each storage.

Source: torch/serialization.py and caffe2/serialize, torch 2.13.
"""

from dataclasses import dataclass
from typing import Any

from ckptmgr.backend import Folder, numpy_dtype, zipreading
from ckptmgr_torch import allowed
from ckptmgr_torch.budget import FREE_NBYTES, Budget
from ckptmgr_torch.machine import Machine
from ckptmgr_torch.origin import Damaged, Origin
from ckptmgr_torch.values import Storage, StorageKind, short

PICKLE, BYTEORDER, OURS = "data.pkl", "byteorder", "ckptmgr.json"
MAX_PICKLE_NBYTES = 128 << 20
_COMPRESSED_NBYTES = 1 << 20  # of a pickle that somebody compressed, which torch does not do
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # what `torch.save` began with before 1.6
TAR = b"ustar"  # at byte 257 of what it wrote before 0.1.10
_SAVE_AGAIN = "with torch: torch.save(torch.load(path, weights_only=True), new_path)"


@dataclass(frozen=True, slots=True)
class TorchFile:
    """An opened archive. ``root`` starts the names of its records."""

    folder: Folder
    file: str
    origin: Origin
    archive: zipreading.Archive
    root: str
    is_big: bool

    @property
    def stored(self) -> int:
        """Bytes of all records."""
        return sum(member.nbytes for member in self.archive.members.values())

    def record(self, storage: Storage) -> str:
        """The name of a storage's record."""
        return f"{self.root}data/{storage.key}"

    def pickle(self, *, free: int = FREE_NBYTES) -> tuple[Any, Budget]:
        """The value of the pickle, and what it may still take.

        Raises:
            UnsafeCheckpointError: it needs code.
            CorruptCheckpointError: it is damaged, or not about these records.
        """
        raw = self.archive.read(self.root + PICKLE, MAX_PICKLE_NBYTES, inflated=_COMPRESSED_NBYTES, may_lack_crc32=True)
        machine = Machine(raw, allowed.find, self._storage, self.origin, tensors=len(self.archive.members), free=free)
        return machine.run(PICKLE), machine.budget

    def _storage(self, found: object) -> Storage:
        if type(found) is not tuple or len(found) != 5 or found[0] != "storage":
            raise Damaged("it refers to something outside that is no storage")
        _, kind, key, _, count = found
        if not isinstance(kind, StorageKind) or type(key) is not str or type(count) is not int or not 0 <= count < 1 << 63:
            raise Damaged("a storage is not described by its class, key and number of elements")
        member = self.archive.members.get(f"{self.root}data/{key}")
        if member is None:
            raise Damaged(f"the storage {short(key)} has no record in the archive")
        nbytes = count * (1 if kind.dtype is None else numpy_dtype(kind.dtype).itemsize)
        if nbytes != member.nbytes:
            raise Damaged(f"the storage {short(key)} should have {nbytes} bytes, and its record has {member.nbytes}")
        return Storage(key, nbytes, kind.dtype)


def open_torch(folder: Folder, file: str, origin: Origin, *, window: tuple[int, int] | None = None) -> TorchFile:
    """The archive in that file, or in a part of it. Its pickle is not read yet.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptCheckpointError: it is no archive of torch, or damaged.
        UnsafeCheckpointError: it is of an older format, or holds a program (TorchScript).
    """
    if window is None:
        _refuse_older(folder, file, origin)
    archive = zipreading.open_archive(folder, file, origin, window=window)
    roots = [name.removesuffix(PICKLE) for name in archive.members if name.endswith(f"/{PICKLE}") and name.count("/") == 1]
    if len(roots) != 1:
        raise origin.corrupt(f"a checkpoint of torch has one record {PICKLE!r}, and this archive has {len(roots)}")
    [root] = roots
    if any(name.startswith(f"{root}code/") or name == f"{root}constants.pkl" for name in archive.members):
        raise origin.unsafe("it is a TorchScript program: load it with torch.jit.load, and save the state_dict() of it")
    order = b"little"
    if root + BYTEORDER in archive.members:
        order = archive.read(root + BYTEORDER, 16, may_lack_crc32=True)
    if order not in (b"little", b"big"):
        raise origin.corrupt(f"its byte order is {order!r}", BYTEORDER)
    return TorchFile(folder, file, origin, archive, root, order == b"big")


def _refuse_older(folder: Folder, file: str, origin: Origin) -> None:
    head = folder.head(file)
    if head is None:
        raise FileNotFoundError(2, "no such file", folder.location(file))
    try:
        first = folder.read_range(file, 0, min(head.nbytes, 512))
    except EOFError as error:
        raise origin.corrupt("it was cut off while it was read") from error
    if is_older(first):
        raise origin.unsafe(f"it is of a format from before torch 1.6, which is not read: save it again {_SAVE_AGAIN}")
    if not first.startswith(zipreading.SIGNATURE):
        raise origin.corrupt("it does not begin as a zip archive does")


def is_older(head: bytes) -> bool:
    """Whether a file that begins so is of one of the formats that torch had before the archive."""
    return head.startswith(LEGACY[:8]) or (
        head[257:262] == TAR and head[:8].rstrip(b"\0") in (b"storages", b"tensors", b"pickle")
    )
