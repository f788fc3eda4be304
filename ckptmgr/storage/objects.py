"""Objects in a bucket of S3, Google Cloud Storage or Azure, through obstore.

The law: a name refers to a whole object, and only when the store says that it has all of it.

- **Whole.** Small files are one request; larger ones are uploads in parts, straight from the memory of the arrays, which
  appear when they are completed. A failed upload is ended; one whose process died is among `ObjectStore.uploads`.
- **Conditional.** `ObjectStore.create` and `replace` send their condition with the data, once: sent again after an answer was
  lost, a request would meet its own effect and be refused. All others are repeated with growing random pauses for
  up to two minutes (`asking.again`).
- **Asked, not assumed.** A server that is not the vendor's own is tried first (`weak.honours`).
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from errno import EFBIG, EIO, ENOENT
from http.client import HTTPException
from inspect import GEN_CREATED, getgeneratorstate
from time import monotonic, time
from typing import Any, BinaryIO, NamedTuple, TypeVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from ckptmgr.storage import clouds, weak
from ckptmgr.storage.asking import REFUSED, again, asking, is_damage, is_unanswered, names_bucket, obstore, status, told
from ckptmgr.storage.blockfile import open_blocks
from ckptmgr.storage.clients import Client, client_of, has_client
from ckptmgr.storage.folders import names_of, names_of_prefix
from ckptmgr.storage.pieces import Pieces, Places, Taken, feed, read_back
from ckptmgr.storage.store import Answer, Buffer, Head, Listing, Stored, Upload, Version

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

_MIB = 1 << 20
_PART_NBYTES = 16 * _MIB  # of an upload, unless it would have too many; every store takes 5 MiB
_WINDOW_NBYTES = 8 * _MIB
_MOST_PARTS = 10_000
_MOST_PART_NBYTES = 5 << 30
_IN_FLIGHT_NBYTES = 128 * _MIB  # of one upload; they are the arrays' own memory and not copies
_SMALL_NBYTES = 256 * _MIB  # `read` is for records
_CHUNK_NBYTES = 1 * _MIB  # of a read on its way to its place
_CLOCK_S = 10.0
_TICK_S = 2.0  # of clocks that tell whole seconds


class _Version(NamedTuple):
    e_tag: str | None
    version: str | None


class ObjectStore:
    """A `Store` below a URL such as ``s3://bucket/run-7``, with storage options as `clouds.cloud` takes them.

    A store may be used from any thread. Its clients are made at the first use, in each process for itself.
    """

    window_nbytes = _WINDOW_NBYTES
    workers = 12  # each keeps some 4 MiB on its way

    def __init__(self, url: str, **options: Any) -> None:
        self._cloud = clouds.cloud(url, options)
        self._options = options
        place = self._cloud.place
        self._prefix = place.prefix
        self.url = f"{url.partition('://')[0]}://{url.partition('://')[2].partition('/')[0]}/{place.prefix}".rstrip("/")
        self.is_weak = False  # until it is tried
        self._is_tried = self._cloud.is_vendor
        self._clients: dict[bool, Any] = {}
        self._companion: Client | None = None

    def __repr__(self) -> str:
        return f"ObjectStore({self.url!r})"

    @property
    def has_remove(self) -> bool:
        """Not on S3; elsewhere if the store's fsspec client is installed, which has that call."""
        return not self.is_weak and self._cloud.kind != "S3Store" and has_client(self._cloud.place)

    def put(self, key: str, windows: Iterable[Sequence[Buffer]], nbytes: int) -> Stored:
        """See `Store.put`. Buffers are sent from where they are, several at once.

        The checksum is Google's own. S3 compares every body itself, and TLS protects it; what has neither is read back.
        """
        path, part = self._path(key), part_nbytes(nbytes)
        pieces = Pieces(windows, nbytes, self.location(key))
        with pieces.telling(), asking(self.location(key)):
            if nbytes <= _PART_NBYTES:
                body = list(pieces) or b""
                self._again(key, lambda: self._obstore.put(self._client(), path, body, use_multipart=False))
            else:
                self._upload(key, pieces, nbytes, part)
        checksum = self._checksum(key, nbytes)
        return Stored(nbytes, None if checksum is None else ("crc32c", f"{checksum:08x}"))

    def create(self, key: str, data: bytes) -> Answer:
        """See `Store.create`."""
        return self._change(key, data, None)

    def replace(self, key: str, data: bytes, version: Version) -> Answer:
        """See `Store.replace`. A version is the object's ETag or generation."""
        return self._change(key, data, version) if isinstance(version, _Version) else Answer.NO

    def remove(self, key: str, version: Version) -> Answer:
        """See `Store.remove`. Only where `has_remove`."""
        return self._change(key, None, version) if isinstance(version, _Version) else Answer.NO

    def send(self, key: str, data: bytes | None, version: Version | None) -> Answer:
        """One conditional request, as it is; see `weak.Conditional`."""
        if data is None:
            helper = self._helper()
            assert helper is not None
            assert isinstance(version, _Version)
            return helper.send(self._path(key), None, version.version or version.e_tag)
        known = {name: value for name, value in (version or _Version(None, None))._asdict().items() if value}  # type: ignore[attr-defined]
        errors = self._obstore.exceptions
        try:
            self._obstore.put(self._client(), self._path(key), data, mode=known or "create")
        except (errors.AlreadyExistsError, errors.PreconditionError):
            return Answer.NO
        except (errors.BaseError, FileNotFoundError) as error:
            said = told(error, self.location(key))
            if isinstance(said, FileNotFoundError) and known and not names_bucket(error):
                return Answer.NO
            if status(error) in REFUSED or isinstance(said, FileNotFoundError | PermissionError):
                raise said from error
            logger.warning("it is not known whether a change was made: %s", said)
            return Answer.LOST
        return Answer.OK

    def read(self, key: str) -> tuple[bytes, Version] | None:
        """See `Store.read`. Raises OSError (EFBIG) if the object is not small at all (256 MiB)."""

        def ask() -> tuple[bytes, Version]:
            found = self._obstore.get(self._client(), self._path(key))
            if found.meta["size"] > _SMALL_NBYTES:
                raise OSError(EFBIG, "too large to be read at once", self.location(key))
            return bytes(found.bytes()), _Version(found.meta["e_tag"], found.meta["version"])

        try:
            return self._again(key, ask)
        except FileNotFoundError as error:
            _raise_if_bucket(error)
            return None

    def read_into(self, key: str, offset: int, buffers: Sequence[Buffer]) -> None:
        """See `Store.read_into`. One range, which goes on where it broke off; memory for one chunk of it."""
        places = Places(buffers)
        if places.nbytes == 0:
            return
        end = offset + places.nbytes
        short = EOFError(f"{self.location(key)!r} ends before byte {end}")
        same: dict[str, str] = {}  # once there are bytes of an object, the others must be of it too

        def ask() -> None:
            if not places.left:  # it broke off behind the last byte
                return
            options = {"range": (end - places.left, end), **same}
            found = self._obstore.get(self._client(), self._path(key), options=options)
            if found.meta["e_tag"]:
                same["if_match"] = found.meta["e_tag"]
            for chunk in found.stream(_CHUNK_NBYTES) if found.range[1] == end else ():
                places.fill(chunk)
            if places.left:
                raise short

        try:
            self._again(key, ask)
        except FileNotFoundError:
            raise
        except OSError as error:  # every store has its own words when a range begins behind the end
            if is_unanswered(error):
                raise
            head = self.head(key)
            if head is None or head.nbytes >= end:
                raise
            raise short from error

    def file(self, key: str) -> BinaryIO:
        """See `Store.file`."""
        head = self.head(key)
        if head is None:
            raise FileNotFoundError(ENOENT, "no such object", self.location(key))
        return open_blocks(head.nbytes, lambda offset, buffers: self.read_into(key, offset, buffers))

    def head(self, key: str) -> Head | None:
        """See `Store.head`. Times are in whole seconds: not all that tell them tell more."""
        try:
            return _head(self._again(key, lambda: self._obstore.head(self._client(), self._path(key))))
        except FileNotFoundError as error:
            _raise_if_bucket(error)
            return None

    def list(self, prefix: str) -> Listing:
        """See `Store.list`; one request for each thousand names."""
        names_of_prefix(prefix)
        where = self._prefix + prefix
        found = self._again(prefix, lambda: self._obstore.list_with_delimiter(self._client(), where or None))
        # A console may have put an empty object under the folder's own name, which comes without its slash.
        names = [(meta["path"].removeprefix(where), meta) for meta in found["objects"] if meta["path"].startswith(where)]
        files = {name: _head(meta) for name, meta in sorted(names, key=lambda each: each[0]) if name and "/" not in name}
        return Listing(files, tuple(sorted(folder.removeprefix(where) for folder in found["common_prefixes"])))

    def delete(self, keys: Iterable[str]) -> None:
        """See `Store.delete`; one request for many on S3, elsewhere one for each, several at once."""
        paths = [self._path(key) for key in keys if not key.endswith("/")]
        if not paths:
            return
        if self._cloud.kind == "S3Store":
            self._delete(paths)
            return
        # Not all at once by obstore: at the first that is gone already it raises, while it still goes on with others.
        with ThreadPoolExecutor(min(self.workers, len(paths))) as pool:
            for deleted in [pool.submit(self._delete, [path]) for path in paths]:
                deleted.result()

    def _delete(self, paths: Sequence[str]) -> None:
        def ask() -> None:
            try:
                self._obstore.delete(self._client(), [*paths])
            except FileNotFoundError as error:
                _raise_if_bucket(error)

        self._again("", ask)

    def uploads(self, prefix: str) -> Sequence[Upload]:
        """See `Store.uploads`. Empty on Azure, where they end by themselves, and without the store's fsspec client."""
        helper = self._helper()
        if helper is None:
            return []
        with _as_os_error(helper, self.location(prefix)):
            found = helper.uploads(self._prefix + prefix)
        return [Upload(key.removeprefix(self._prefix), identity, modified) for key, identity, modified in found]

    def abort(self, upload: Upload) -> None:
        """See `Store.abort`."""
        helper = self._helper()
        if helper is not None:
            with _as_os_error(helper, self.location(upload.key)):
                helper.abort(Upload(self._path(upload.key), upload.id, upload.modified))

    def now(self) -> float:
        """See `Store.now`: the time in any answer of the server, or this machine's if none comes."""
        try:
            where = f"{self._cloud.endpoint}/{self._cloud.place.bucket}"  # at its root Amazon sends visitors elsewhere
            with urlopen(Request(where, method="HEAD"), timeout=_CLOCK_S) as answer:
                stamp = answer.headers.get("Date")
        except HTTPError as error:  # it need not let us in to tell the time
            stamp = error.headers.get("Date")
        except (OSError, HTTPException):
            return time()
        try:
            return parsedate_to_datetime(stamp).timestamp()
        except (TypeError, ValueError):
            return time()

    def location(self, key: str) -> str:
        """See `Store.location`: a URL."""
        return f"{self.url}/{key}" if key else self.url

    def _change(self, key: str, data: bytes | None, version: Version | None) -> Answer:
        if not self._is_tried:
            self.is_weak = not self._honours()
            self._is_tried = True
        if not self.is_weak:
            return self.send(key, data, version)
        change = (lambda: self.put(key, [[data]], len(data))) if data is not None else (lambda: self.delete([key]))
        return weak.check_then(self, key, version, change)

    def _upload(self, key: str, pieces: Pieces, nbytes: int, part: int) -> None:
        sizes = {"chunk_size": part, "max_concurrency": max(_IN_FLIGHT_NBYTES // part, 2)}

        def send(taken: Taken) -> None:
            try:
                self._obstore.put(self._client(is_once=False), self._path(key), taken, use_multipart=True, **sizes)
            except self._obstore.exceptions.GenericError:
                if getgeneratorstate(taken) != GEN_CREATED:
                    raise
                # It did not begin: obstore does not repeat that one request to Google, for it may leave an upload behind.
                self._obstore.put(self._client(is_once=False), self._path(key), taken, use_multipart=True, **sizes)

        started = monotonic()
        try:
            feed(send, pieces)
        except Exception as error:
            # A completion that is asked for again because its answer was lost is told that there is nothing to complete.
            if pieces.failed is None and self._is_there(key, nbytes, started):
                return
            if isinstance(error, FileNotFoundError) and not error.filename:
                raise FileNotFoundError(ENOENT, "somebody ended the upload", self.location(key)) from error
            raise

    def _checksum(self, key: str, nbytes: int) -> int | None:
        """The crc32c of what has just been put, if anybody but S3 and TLS must see to its bytes."""
        helper = self._helper() if self._cloud.kind == "GCSStore" else None
        if helper is not None:

            def ask() -> int | None:
                with _as_os_error(helper, self.location(key)):
                    return helper.checksum(self._path(key))

            return self._again(key, ask)
        is_summed = self._cloud.kind == "S3Store" and self._cloud.endpoint not in _without_checksums
        return None if is_summed or self._cloud.endpoint.startswith("https:") else read_back(self, key, nbytes)

    def _is_there(self, key: str, nbytes: int, started: float) -> bool:
        """Whether an object of that size has appeared since ``started`` (of `monotonic`), by the server's clock."""
        try:
            head = self.head(key)
        except OSError:
            return False
        return head is not None and head.nbytes == nbytes and head.modified >= self.now() - (monotonic() - started) - _TICK_S

    def _honours(self) -> bool:
        """Whether conditions are honoured. A server that refuses checksums, as some old ones do, gets none from now on."""
        try:
            return weak.honours(self, self.url)
        except PermissionError:
            raise
        except OSError as error:
            # Not for bytes that were damaged on their way: that is what the checksums are for.
            is_refused = status(error) in (400, 501) and not is_damage(error)
            if not is_refused or self._cloud.endpoint in _without_checksums or "checksum_algorithm" not in self._cloud.config:
                raise
            logger.info("%r is asked again without checksums: %s", self.url, error)
        try:
            _without_checksums.add(self._cloud.endpoint)
            self._clients.clear()
            return weak.honours(self, self.url)
        except OSError:
            _without_checksums.discard(self._cloud.endpoint)
            self._clients.clear()
            raise

    def _path(self, key: str) -> str:
        names_of(key)
        return self._prefix + key

    def _again(self, key: str, ask: Callable[[], _T]) -> _T:
        return again(ask, self.location(key), self._cloud.retries)

    @property
    def _obstore(self) -> Any:
        return obstore()

    def _client(self, *, is_once: bool = True) -> Any:
        with _guard:
            if is_once not in self._clients:
                has_checksums = self._cloud.endpoint not in _without_checksums
                self._clients[is_once] = self._cloud.client(is_once=is_once, has_checksums=has_checksums)
            return self._clients[is_once]

    def _helper(self) -> Client | None:
        """The same bucket through its fsspec client, for the few calls that obstore lacks; None if that is not installed."""
        if self._companion is None:
            self._companion = client_of(self._cloud.place, self._options)
        return self._companion


def part_nbytes(nbytes: int) -> int:
    """The size of the parts of an upload: 16 MiB, or more where there would be more than 10,000.

    Raises:
        OSError: no store takes a file of that size.
    """
    part = max(_PART_NBYTES, -(-nbytes // _MOST_PARTS // _MIB) * _MIB)
    part += 0 if part * _MOST_PARTS >= nbytes else _MIB
    if part > _MOST_PART_NBYTES:
        raise OSError(EFBIG, f"{nbytes} bytes are more than an object store takes in one object")
    return part


_guard = threading.RLock()
_without_checksums: set[str] = set()  # servers that refuse them


def _head(meta: Mapping[str, Any]) -> Head:
    return Head(meta["size"], float(int(meta["last_modified"].timestamp())))


@contextmanager
def _as_os_error(helper: Client, where: str) -> Iterator[None]:
    try:
        yield
    except helper.errors as error:
        raise OSError(EIO, str(error), where) from error


def _raise_if_bucket(error: FileNotFoundError) -> None:
    if names_bucket(error):
        raise error
