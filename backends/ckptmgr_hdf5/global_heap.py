"""The global heap of a new file: strings of any length, which everything else only refers to.

Source: HDF5 File Format Specification 3.0, section III.E "Disk Format: Level 1E - Global Heap".
"""

import struct

_LEAST_NBYTES = 4096  # of a collection: HDF5 takes no smaller one
_FULL_NBYTES = 64 * 1024
_HEADER_NBYTES = 16  # of a collection, and of an object in it


class GlobalHeap:
    """Collections of strings that lie one behind the other from the offset ``start`` of the file on."""

    def __init__(self, start: int) -> None:
        self._end = start
        self._collections: list[bytes] = []
        self._open = bytearray()
        self._count = 0

    def insert(self, string: bytes) -> bytes:
        """The 16 bytes that refer to this string: its length, the address of its collection, its index there.

        Raises:
            ValueError: the string has a NUL, where HDF5 would cut it, or 4 GiB.
        """
        if b"\0" in string:
            raise ValueError("a string of variable length has a NUL, where HDF5 would cut it")
        if len(string) >= 2**32:
            raise ValueError(f"a string has {len(string)} bytes, more than HDF5 can count")
        if len(self._open) >= _FULL_NBYTES:
            self._close()
        self._count += 1
        self._open += struct.pack("<HH4xQ", self._count, 0, len(string)) + string + bytes(-len(string) % 8)
        return struct.pack("<IQI", len(string), self._end, self._count)

    def build(self) -> bytes:
        """All collections. Nothing may be inserted after it."""
        if self._count:
            self._close()
        return b"".join(self._collections)

    def _close(self) -> None:
        nbytes = max(_LEAST_NBYTES, _HEADER_NBYTES + len(self._open))
        free = nbytes - _HEADER_NBYTES - len(self._open)
        # Free space is an object of index 0 whose size counts its own header; what is shorter than a header is just there.
        rest = struct.pack("<8xQ", free).ljust(free, b"\0") if free >= _HEADER_NBYTES else bytes(free)
        self._collections.append(b"".join((struct.pack("<4sB3xQ", b"GCOL", 1, nbytes), self._open, rest)))
        self._end += nbytes
        self._open, self._count = bytearray(), 0
