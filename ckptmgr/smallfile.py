"""One of a step's small files, ``tree.json`` or an asset, read at once and compared with what its manifest says."""

from ckptmgr import transfer
from ckptmgr.checksum import crc32c
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.manifest import FileEntry
from ckptmgr.storage import Folder, is_local

_MAPPED_NBYTES = 512 << 10


def read_checked(folder: Folder, entry: FileEntry) -> bytes | memoryview:
    """The bytes of one of a step's small files; in large pages if they are many, as page faults cost more than the copy.

    Raises:
        CorruptCheckpointError: the file is missing, or its size or crc32c is not the manifest's.
    """
    found = folder.head(entry.name)
    where = folder.location(entry.name)
    if found is None or found.nbytes != entry.nbytes:
        size = "missing" if found is None else f"{found.nbytes} bytes"
        raise CorruptCheckpointError(
            f"{where!r} is {size}; the manifest says {entry.nbytes} bytes: restore another step", file=entry.name
        )
    try:
        data = _fetched(folder, entry)
        found_crc32c = crc32c(data)
        if found_crc32c != entry.crc32c and not is_local(folder.store):
            data = _fetched(folder, entry)  # the first may have been damaged on their way
            found_crc32c = crc32c(data)
    except (FileNotFoundError, EOFError) as error:
        raise CorruptCheckpointError(f"{where!r} was removed or cut off while it was read", file=entry.name) from error
    if found_crc32c != entry.crc32c:
        raise CorruptCheckpointError(
            f"{where!r} has crc32c {found_crc32c:08x}; the manifest says {entry.crc32c:08x}: restore another step",
            file=entry.name,
        )
    return data


def _fetched(folder: Folder, entry: FileEntry) -> bytes | memoryview:
    if entry.nbytes < _MAPPED_NBYTES:
        return folder.read_range(entry.name, 0, entry.nbytes)
    data = memoryview(transfer.pages(entry.nbytes))[: entry.nbytes]
    folder.read_into(entry.name, 0, [data])
    return data
