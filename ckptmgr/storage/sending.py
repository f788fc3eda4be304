"""Files on their way to a bucket: small ones by one request, larger ones by an upload in parts; and whether they arrived.

The law: what is kept is what was sent, or it is told. S3 compares every body with a checksum of obstore's, and TLS protects it.
Google tells the crc32c of what it keeps, for whoever knows that of what was sent. What has none of that is read back.
"""

from collections.abc import Iterable, Sequence
from errno import EFBIG, ENOENT
from inspect import GEN_CREATED, getgeneratorstate
from time import monotonic

from ckptmgr.storage.asking import asking, obstore
from ckptmgr.storage.bucket import Bucket
from ckptmgr.storage.budget import Budget
from ckptmgr.storage.clients import Client, ComparingClient
from ckptmgr.storage.pieces import Pieces, Taken, feed, read_back
from ckptmgr.storage.store import Buffer, Store, Stored

_MIB = 1 << 20
IN_FLIGHT_NBYTES = 64 * _MIB
_SINGLE_NBYTES = 16 * _MIB  # up to which a file is one request
_PARTS_AT_ONCE = 8  # each has a connection of its own, and few are not enough to fill a fast link
_LEAST_PART_NBYTES = 5 * _MIB  # which every store takes
_USUAL_PART_NBYTES = 16 * _MIB  # and no more, unless there would be too many
_MOST_PARTS = 10_000
_MOST_PART_NBYTES = 5 << 30
_JOINED_NBYTES = _MIB  # up to which a copy costs less than a request
_TICK_S = 2.0  # of clocks that tell whole seconds


class Sender:
    """Puts files of a store into its bucket, as many bytes at once as the budget allows."""

    def __init__(self, store: Store, bucket: Bucket, budget: Budget) -> None:
        self._store, self._bucket, self._budget = store, bucket, budget

    def put(self, key: str, windows: Iterable[Sequence[Buffer]], nbytes: int) -> Stored:
        """See `Store.put`. Buffers are sent from where they are, several at once; only what the helper sends is joined."""
        where = self._bucket.location(key)
        part = part_nbytes(nbytes, self._budget.nbytes)
        pieces = Pieces(windows, nbytes, where)
        with pieces.telling(), asking(where):
            if nbytes <= _SINGLE_NBYTES:
                checksum = self._put(key, pieces, nbytes)
            else:
                self._upload(key, pieces, nbytes, part)
                checksum = self._checksum(key, nbytes)
        return Stored(nbytes, None if checksum is None else ("crc32c", f"{checksum:08x}"))

    def _put(self, key: str, pieces: Pieces, nbytes: int) -> int | None:
        bucket, path = self._bucket, self._bucket.path(key)
        helper = self._comparing()
        if isinstance(helper, ComparingClient) and nbytes <= _JOINED_NBYTES:
            with self._budget.held(nbytes):
                data = b"".join(pieces)
                return bucket.again(key, lambda: helper.keep(path, data))
        with self._budget.held(nbytes):
            body = list(pieces) or b""
            bucket.again(key, lambda: obstore().put(bucket.client(), path, body, use_multipart=False))
        return self._checksum(key, nbytes)

    def _upload(self, key: str, pieces: Pieces, nbytes: int, part: int) -> None:
        client, path = self._bucket.client(is_once=False), self._bucket.path(key)
        sizes = {"chunk_size": part, "max_concurrency": max(self._budget.nbytes // part, 1)}

        def send(taken: Taken) -> None:
            try:
                obstore().put(client, path, taken, use_multipart=True, **sizes)
            except obstore().exceptions.GenericError:
                if getgeneratorstate(taken) != GEN_CREATED:
                    raise
                # It did not begin: obstore does not repeat that one request to Google, for it may leave an upload behind.
                obstore().put(client, path, taken, use_multipart=True, **sizes)

        started = monotonic()
        try:
            feed(send, pieces, (min(part, nbytes - at) for at in range(0, nbytes, part)), self._budget)
        except Exception as error:
            # A completion that is asked for again because its answer was lost is told that there is nothing to complete.
            if pieces.failed is None and self._is_there(key, nbytes, started):
                return
            if isinstance(error, FileNotFoundError) and not error.filename:
                raise FileNotFoundError(ENOENT, "somebody ended the upload", self._bucket.location(key)) from error
            raise

    def _checksum(self, key: str, nbytes: int) -> int | None:
        """The crc32c of what has just been put, if anybody but S3 and TLS must see to its bytes."""
        bucket, helper = self._bucket, self._comparing()
        if helper is not None and helper.has_checksums:

            def ask() -> int | None:
                with bucket.asking(helper, bucket.location(key)):
                    return helper.checksum(bucket.path(key))

            return bucket.again(key, ask)
        return None if self._is_protected() else read_back(self._store, key, nbytes)

    def _comparing(self) -> Client | None:
        """Who can ask the service what it keeps, if that has to be asked."""
        return None if self._is_protected() and self._bucket.cloud.kind != "GCSStore" else self._bucket.helper()

    def _is_protected(self) -> bool:
        return self._bucket.has_checksums or self._bucket.cloud.endpoint.startswith("https:")

    def _is_there(self, key: str, nbytes: int, started: float) -> bool:
        """Whether an object of that size has appeared since ``started`` (of `monotonic`), by the server's clock."""
        store = self._store
        try:
            head = store.head(key)
        except OSError:
            return False
        return head is not None and head.nbytes == nbytes and head.modified >= store.now() - (monotonic() - started) - _TICK_S


def part_nbytes(nbytes: int, in_flight_nbytes: int = IN_FLIGHT_NBYTES) -> int:
    """The size of the parts of an upload: so that eight may be on their way, but 5 (as S3 asks for) to 16 MiB.

    More where there would be more than 10,000.

    Raises:
        OSError: no store takes a file of that size.
    """
    usual = max(_LEAST_PART_NBYTES, min(in_flight_nbytes // _PARTS_AT_ONCE, _USUAL_PART_NBYTES))
    part = max(usual, -(-nbytes // _MOST_PARTS // _MIB) * _MIB)
    part += 0 if part * _MOST_PARTS >= nbytes else _MIB
    if part > _MOST_PART_NBYTES:
        raise OSError(EFBIG, f"{nbytes} bytes are more than an object store takes in one object")
    return part
