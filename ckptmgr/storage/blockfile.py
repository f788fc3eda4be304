"""A remote file for seeking and reading, in blocks that are kept for a while: libraries that read headers ask in small pieces.

The law: it is one size for as long as it is open, and what is read twice in a row is fetched once.
"""

import io
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, cast

from ckptmgr.storage.store import Buffer

_BLOCK_NBYTES = 1 << 18
_BLOCKS = 32


class BlockFile(io.RawIOBase):
    """Bytes 0 to ``nbytes`` of what ``read_into`` (offset, buffers) reads."""

    def __init__(self, nbytes: int, read_into: Callable[[int, Sequence[Buffer]], None]) -> None:
        self._nbytes, self._read_into = nbytes, read_into
        self._at = 0
        self._blocks: OrderedDict[int, bytearray] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._nbytes}[whence]
        if at < 0:
            raise ValueError(f"a file has no byte {at}")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer as far as the file goes; large pieces go straight into it."""
        target = memoryview(buffer).cast("B")
        wanted = max(min(len(target), self._nbytes - self._at), 0)
        done = 0
        while done < wanted:
            number, start = divmod(self._at, _BLOCK_NBYTES)
            whole = (wanted - done) // _BLOCK_NBYTES * _BLOCK_NBYTES
            if start == 0 and whole and number not in self._blocks:
                got = whole
                self._read_into(self._at, [target[done : done + got]])
            else:
                part = memoryview(self._block(number))[start : start + wanted - done]
                got = len(part)
                target[done : done + got] = part
            done += got
            self._at += got
        return wanted

    def _block(self, number: int) -> bytearray:
        if number not in self._blocks:
            at = number * _BLOCK_NBYTES
            block = bytearray(min(_BLOCK_NBYTES, self._nbytes - at))
            self._read_into(at, [block])
            self._blocks[number] = block
            if len(self._blocks) > _BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]


def open_blocks(nbytes: int, read_into: Callable[[int, Sequence[Buffer]], None]) -> BinaryIO:
    """A `BlockFile` as a buffered binary file."""
    return cast(BinaryIO, io.BufferedReader(BlockFile(nbytes, read_into), 1 << 13))
