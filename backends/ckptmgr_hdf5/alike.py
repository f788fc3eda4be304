"""Datasets whose object headers differ only in where their data is: the same bytes mean the same, so one of them is parsed.

A checkpoint has thousands of datasets, and few types and shapes.
"""

import struct
from typing import NamedTuple

from ckptmgr_hdf5.blocks import Claims, Reader
from ckptmgr_hdf5.headers import LAYOUT, Header
from ckptmgr_hdf5.kinds import Kind
from ckptmgr_hdf5.superblock import UNDEFINED

_MAX_HEADER = 1024  # bytes of a header that is remembered
_MAX_FORMS = 4  # sizes of headers, and places of the address in them
_MAX_HEADERS = 2048
_ADDRESS = struct.Struct("<Q")
_PREFIX_NBYTES = 16
_V1, _CONTIGUOUS = 1, 1


class Described(NamedTuple):
    """What the header of a contiguous dataset says of it, beside where its data is."""

    kind: Kind
    shape: tuple[int, ...] | None
    nbytes: int
    attributes: list[bytes]


class Alike:
    """The headers of one file that were parsed so far: those of version 1, in one piece."""

    def __init__(self, reader: Reader, claims: Claims) -> None:
        self._reader = reader
        self._claims = claims
        self._forms: list[tuple[int, int]] = []
        self._known: dict[tuple[bytes, bytes], Described] = {}
        self._hits = 0

    def find(self, address: int) -> tuple[Described, int] | None:
        """What the header at that address says and where the data is, if such a header was parsed; its bytes are claimed."""
        for nbytes, at in self._forms:
            if address + nbytes > self._reader.nbytes:
                continue
            raw = self._reader.read(address, nbytes)
            found = self._known.get((raw[:at], raw[at + 8 :]))
            if found is not None:
                place: int = _ADDRESS.unpack_from(raw, at)[0]
                if place == UNDEFINED:
                    return None
                self._claims.add(address, nbytes)
                self._hits += 1
                return found, place
        return None

    def keep(self, address: int, header: Header, described: Described) -> None:
        """Remembers a header that was found good, if its like can be told by its bytes."""
        if len(self._known) == _MAX_HEADERS:
            if self._hits < _MAX_HEADERS:
                self._forms.clear()  # hardly any are alike, and asking costs
            return
        body, place = header.single[LAYOUT]
        prefix = self._reader.read(address, _PREFIX_NBYTES)
        nbytes = _PREFIX_NBYTES + int.from_bytes(prefix[8:12], "little")
        if prefix[0] != _V1 or header.pieces > 1 or body[0] not in (3, 4) or body[1] != _CONTIGUOUS:
            return
        form = nbytes, place + 2 - address
        if form not in self._forms:
            if nbytes > _MAX_HEADER or len(self._forms) == _MAX_FORMS:
                return
            self._forms.append(form)
        raw = self._reader.read(address, nbytes)
        self._known[raw[: form[1]], raw[form[1] + 8 :]] = described
