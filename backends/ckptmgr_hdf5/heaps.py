"""Texts of variable length, which lie in global heaps.

Source: HDF5 File Format Specification 3.0, section III.E.
"""

import struct
import threading

from ckptmgr_hdf5.blocks import Claims, Reader
from ckptmgr_hdf5.faults import Damaged

_MAX_TEXT = 64 << 20
_OBJECT = struct.Struct("<HHIQ")
_REFERENCE = struct.Struct("<IQI")  # length, address of the heap, index in it


class Share:
    """What the datasets of one file may take of ``most`` bytes together. Each has its own part, however often it is read."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._taken: dict[int, int] = {}
        self._lock = threading.Lock()

    def left(self, owner: int) -> int:
        """How much the dataset at that address may take, with what it has."""
        with self._lock:
            return self._free + self._taken.get(owner, 0)

    def take(self, owner: int, nbytes: int) -> None:
        """Says how much it takes now."""
        with self._lock:
            self._free -= nbytes - self._taken.get(owner, 0)
            self._taken[owner] = nbytes


class Heaps:
    """The global heaps of one file, each looked through once; many threads may ask."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._claims = Claims()
        self._found: dict[int, dict[int, tuple[int, int]]] = {}
        self._known: dict[tuple[int, int], tuple[int, str]] = {}  # of attributes, many of which may lead to one text
        self._share = Share(reader.nbytes)
        self._lock = threading.Lock()

    def texts(self, references: bytes, owner: int | None = None) -> list[str]:
        """The texts that stored references lead to; what follows a NUL is no part of a text, as for HDF5.

        Every text lies in the file on its own, so all of them have no more bytes than it: those of all datasets together,
        which are told apart by ``owner``, and those of each attribute, which has none.

        Raises:
            Damaged: there is nothing there, or it is no UTF-8, or too much.
        """
        most = min(_MAX_TEXT, self._reader.nbytes if owner is None else self._share.left(owner))
        known: dict[tuple[int, int], tuple[int, str]] = self._known if owner is None else {}
        left, texts = most, []
        for nbytes, address, index in _REFERENCE.iter_unpack(references):
            if nbytes == 0:
                texts.append("")
                continue
            left -= nbytes
            if left < 0:
                raise Damaged(f"texts of more than {most} bytes")
            found = known.get((address, index))
            if found is None:
                found = known[address, index] = (nbytes, self._text(nbytes, address, index))
            if found[0] != nbytes:
                raise Damaged(f"object {index} of the global heap at byte {address} has two lengths")
            texts.append(found[1])
        if owner is not None:
            self._share.take(owner, most - left)
        return texts

    def _text(self, nbytes: int, address: int, index: int) -> str:
        with self._lock:
            if address not in self._found:
                self._found[address] = self._objects(address)
        offset, held = self._found[address].get(index, (0, 0))
        if nbytes > held:
            raise Damaged(f"a text of {nbytes} bytes is not object {index} of the global heap at byte {address}")
        raw = self._reader.read(offset, nbytes)
        try:
            return raw.partition(b"\0")[0].decode()
        except UnicodeDecodeError as error:
            raise Damaged(f"the text {raw[:100]!r} is no UTF-8") from error

    def _objects(self, address: int) -> dict[int, tuple[int, int]]:
        """Address and size of each object of a collection, by index."""
        signature, version, nbytes = struct.unpack("<4sB3xQ", self._reader.read(address, 16))
        if signature != b"GCOL" or version != 1 or address + nbytes > self._reader.nbytes:
            raise Damaged(f"there is no global heap at byte {address}")
        self._claims.add(address, nbytes)
        found: dict[int, tuple[int, int]] = {}
        at, end = address + 16, address + nbytes
        while at + 16 <= end:
            index, _, _, held = _OBJECT.unpack(self._reader.read(at, 16))
            if index == 0:  # what is left is free
                break
            if index in found or at + 16 + held > end:
                raise Damaged(f"object {index} of the global heap at byte {address} is there twice, or too long")
            found[index] = (at + 16, held)
            at += 16 + -(-held // 8) * 8
        return found
