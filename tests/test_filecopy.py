"""One file that is copied: what an error of the target's leaves behind."""

from collections.abc import Iterable, Sequence
from errno import ENOSPC

import pytest
from stores import MemoryStore
from transfers import lanes

from ckptmgr.checksum import crc32c
from ckptmgr.filecopy import copy_file
from ckptmgr.manifest import FileEntry
from ckptmgr.storage import Buffer, Folder, Stored


class FullStore(MemoryStore):
    """It takes the first window of a file, and has no room for the second."""

    def put(self, key: str, windows: Iterable[Sequence[Buffer]], nbytes: int) -> Stored:
        for index, _ in enumerate(windows):
            if index:
                raise OSError(ENOSPC, "No space left on device")
        raise AssertionError("it has one window only")


def test_an_error_of_the_target_that_is_kept_keeps_no_thread() -> None:
    data = bytes(range(250))
    source = MemoryStore({"run/a.bin": data})
    source.window_nbytes = 100

    with pytest.raises(OSError, match="No space") as kept:
        copy_file(Folder(source, "run/"), Folder(FullStore(), "copy/"), FileEntry("a.bin", len(data), crc32c(data)))

    assert kept.value.__traceback__ is not None
    assert lanes() == []
