"""The bytes of one compressed member from its beginning on, as many at a time as somebody asks for."""

import zlib

from ckptmgr.backend import crc32, zipreading

_CHUNK = 1 << 18


class Inflater:
    """Reads a member forwards; ``position`` is how far. It never makes more bytes than it is asked for.

    `read` raises CorruptCheckpointError for what cannot be decompressed, is too short, or at the end is not what its crc32 says.
    """

    def __init__(self, archive: zipreading.Archive, member: zipreading.Member) -> None:
        self._archive, self.member = archive, member
        self._start = archive.data_start(member.name)
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._taken = self.position = self._crc32 = 0

    def read(self, nbytes: int) -> bytes:
        """The next bytes."""
        pieces, left = list[bytes](), nbytes
        while left > 0:
            raw = self._inflater.unconsumed_tail or self._compressed()
            try:
                piece = self._inflater.decompress(raw, left)
            except zlib.error as error:
                raise self._archive.origin.corrupt(f"it cannot be decompressed: {error}", self.member.name) from error
            if not piece and (not raw or self._inflater.eof):
                problem = f"decompressed it does not have the {self.member.nbytes} bytes that it claims"
                raise self._archive.origin.corrupt(problem, self.member.name)
            pieces.append(piece)
            left -= len(piece)
        data = b"".join(pieces)
        self.position += nbytes
        self._crc32 = crc32(data, self._crc32)
        if nbytes and self.position == self.member.nbytes and self._crc32 != self.member.crc32:
            problem = "its bytes are not what was written (their crc32 differs)"
            raise self._archive.origin.corrupt(problem, self.member.name)
        return data

    def _compressed(self) -> bytes:
        nbytes = min(_CHUNK, self.member.stored - self._taken)
        if nbytes <= 0:
            return b""
        try:
            data = self._archive.folder.read_range(self._archive.file, self._start + self._taken, nbytes)
        except (EOFError, FileNotFoundError) as error:
            raise self._archive.origin.corrupt("it was cut off or deleted while it was read", self.member.name) from error
        self._taken += nbytes
        return data
