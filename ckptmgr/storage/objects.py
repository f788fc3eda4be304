"""Objects in a bucket of S3, Google Cloud Storage or Azure, through obstore.

The law: a name refers to a whole object, and only when the store says that it has all of it.

- **Whole.** Small files are one request; larger ones are uploads in parts, straight from the memory of the arrays, which
  appear when they are completed. A failed upload is ended; one whose process died is among `ObjectStore.uploads`.
- **Conditional.** `ObjectStore.create` and `replace` send their condition with the data, once: sent again after an answer was
  lost, a request would meet its own effect and be refused. All others are repeated by obstore with growing random pauses for
  up to two minutes; what it gives up at once, a few times more (`asking.again`).
- **Asked, not assumed.** A server that is not the vendor's own is tried first (`weak.honours`).
"""

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from errno import EFBIG, EIO, ENOENT
from http.client import HTTPException
from inspect import GEN_CREATED, getgeneratorstate
from time import monotonic, time
from typing import Any, BinaryIO, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from ckptmgr.storage import clouds, weak
from ckptmgr.storage.asking import REFUSED, again, asking, names_bucket, names_no_path, obstore, status, told
from ckptmgr.storage.blockfile import open_blocks
from ckptmgr.storage.budget import Budget
from ckptmgr.storage.clients import Client, client_of, has_client
from ckptmgr.storage.folders import names_of, names_of_prefix
from ckptmgr.storage.marking import bare, gathered
from ckptmgr.storage.pieces import Pieces, Places, Taken, feed
from ckptmgr.storage.store import Answer, Buffer, Head, Listing, Marked, Stored, Upload, Version

logger = logging.getLogger(__name__)

_MIB = 1 << 20
_PART_NBYTES = 16 * _MIB  # of an upload, unless it would have too many; every store takes 5 MiB
_LEAST_PART_NBYTES = 5 * _MIB
_WINDOW_NBYTES = 4 * _MIB
_MOST_PARTS = 10_000
_MOST_PART_NBYTES = 5 << 30
_IN_FLIGHT_NBYTES = 64 * _MIB
_SMALL_NBYTES = 256 * _MIB  # `read` is for records
_PAGE = 1_000  # objects in an answer, or in a request
_BATCH = 256  # requests in one of Azure
_CHUNK_NBYTES = 64 << 10  # of a read on its way to its place: the client joins what comes in less, and that is a copy more
_CLOCK_S = 10.0
_TICK_S = 2.0  # of clocks that tell whole seconds


class _Version(NamedTuple):
    e_tag: str | None
    version: str | None


class ObjectStore:
    """A `Store` below a URL such as ``s3://bucket/run-7``, with storage options as `clouds.cloud` takes them.

    At most ``in_flight_nbytes`` are on their way to the bucket at once, of all files and threads together, and as many from
    it: the memory of what is sent and filled, which is most often the arrays' own.

    A store may be used from any thread. Its clients are made at the first use, in each process for itself.
    """

    window_nbytes = _WINDOW_NBYTES
    workers = 16
    files_at_once = 4

    def __init__(self, url: str, *, in_flight_nbytes: int = _IN_FLIGHT_NBYTES, **options: Any) -> None:
        if in_flight_nbytes < 1:
            raise ValueError(f"in_flight_nbytes must be at least 1, not {in_flight_nbytes}")
        self._sending, self._reading = Budget(in_flight_nbytes), Budget(in_flight_nbytes)
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
        """See `Store.put`. Buffers are sent from where they are, several at once."""
        path, part = self._path(key), part_nbytes(nbytes, self._sending.nbytes)
        pieces = Pieces(windows, nbytes, self.location(key))
        with pieces.telling(), asking(self.location(key)):
            if nbytes <= _PART_NBYTES:
                with self._sending.held(nbytes):
                    self._obstore.put(self._client(), path, list(pieces) or b"", use_multipart=False)
            else:
                self._upload(key, pieces, nbytes, part)
        return Stored(nbytes)

    def create(self, key: str, data: bytes) -> Answer:
        """See `Store.create`."""
        return self.change(key, data, None)[0]

    def replace(self, key: str, data: bytes, version: Version) -> Answer:
        """See `Store.replace`. A version is the object's ETag or generation."""
        return self.change(key, data, version)[0] if isinstance(version, _Version) else Answer.NO

    def remove(self, key: str, version: Version) -> Answer:
        """See `Store.remove`. Only where `has_remove`."""
        if not isinstance(version, _Version):
            return Answer.NO
        if self._is_conditional():
            helper = self._helper()
            assert helper is not None
            # Google's condition is the generation; Azure's versions are other things, which only some accounts have.
            return helper.send(self._path(key), None, version.version if self._cloud.kind == "GCSStore" else version.e_tag)[0]
        return weak.check_then(self, key, version, lambda: self.delete([key]))

    def change(self, key: str, data: bytes, version: Version | None) -> tuple[Answer, Version | None]:
        """See `MarkingStore.change`."""
        if self._is_conditional():
            return self._send(key, data, version)
        return weak.check_then(self, key, version, lambda: self.put(key, [[data]], len(data))), None

    def mark(self, version: Version) -> str | None:
        """See `MarkingStore.mark`: the ETag."""
        return bare(version.e_tag) if isinstance(version, _Version) else None

    def send(self, key: str, data: bytes, version: Version | None) -> Answer:
        """One conditional request, as it is; see `weak.Conditional`."""
        return self._send(key, data, version)[0]

    def _send(self, key: str, data: bytes, version: Version | None) -> tuple[Answer, _Version | None]:
        known = {name: value for name, value in (version or _Version(None, None))._asdict().items() if value}  # type: ignore[attr-defined]
        errors = self._obstore.exceptions
        try:
            made = self._obstore.put(self._client(is_once=True), self._path(key), data, mode=known or "create")
        except (errors.AlreadyExistsError, errors.PreconditionError):
            return Answer.NO, None
        except (errors.BaseError, FileNotFoundError) as error:
            said = told(error, self.location(key))
            if isinstance(said, FileNotFoundError) and known and not names_bucket(error):
                return Answer.NO, None
            if status(error) in REFUSED or isinstance(said, FileNotFoundError | PermissionError):
                raise said from error
            logger.warning("it is not known whether a change was made: %s", said)
            return Answer.LOST, None
        return Answer.OK, _Version(made["e_tag"], made["version"])

    def read(self, key: str) -> tuple[bytes, Version] | None:
        """See `Store.read`. Raises OSError (EFBIG) if the object is not small at all (256 MiB)."""

        def ask() -> tuple[bytes, Version]:
            found = self._obstore.get(self._client(), self._path(key))
            if found.meta["size"] > _SMALL_NBYTES:
                raise OSError(EFBIG, "too large to be read at once", self.location(key))
            return bytes(found.bytes()), _Version(found.meta["e_tag"], found.meta["version"])

        try:
            return again(ask, self.location(key))
        except FileNotFoundError as error:
            _raise_if_bucket(error)
            return None

    def read_into(self, key: str, offset: int, buffers: Sequence[Buffer]) -> None:
        """See `Store.read_into`. One range, which goes on where it broke off; memory for one chunk of it."""
        nbytes = Places(buffers).nbytes
        if nbytes == 0:
            return
        end = offset + nbytes
        short = EOFError(f"{self.location(key)!r} ends before byte {end}")

        def ask() -> None:
            places = Places(buffers)
            found = self._obstore.get(self._client(), self._path(key), options={"range": (offset, end)})
            for chunk in found.stream(_CHUNK_NBYTES) if found.range[1] == end else ():
                places.fill(chunk)
            if places.left:
                raise short

        try:
            with self._reading.held(nbytes):
                again(ask, self.location(key))
        except FileNotFoundError:
            raise
        except OSError as error:  # every store has its own words when a range begins behind the end
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
            return _head(again(lambda: self._obstore.head(self._client(), self._path(key)), self.location(key)))
        except FileNotFoundError as error:
            _raise_if_bucket(error)
            return None

    def list(self, prefix: str) -> Listing:
        """See `Store.list`; one request for each thousand names."""
        names_of_prefix(prefix)
        where = self._prefix + prefix
        found = again(lambda: self._obstore.list_with_delimiter(self._client(), where or None), self.location(prefix))
        # A console may have put an empty object under the folder's own name, which comes without its slash.
        names = [(meta["path"].removeprefix(where), meta) for meta in found["objects"] if meta["path"].startswith(where)]
        files = {name: _head(meta) for name, meta in sorted(names, key=lambda each: each[0]) if name and "/" not in name}
        return Listing(files, tuple(sorted(folder.removeprefix(where) for folder in found["common_prefixes"])))

    def below(self, prefix: str, *, most: int) -> Mapping[str, Marked] | None:
        """See `MarkingStore.below`; one request for each thousand files (Azure: five thousand)."""
        names_of_prefix(prefix)
        where = self._prefix + prefix

        def pages() -> Iterator[list[tuple[str, Marked]]]:
            for page in self._obstore.list(self._client(), where or None, chunk_size=_PAGE):
                yield [(meta["path"].removeprefix(where), _marked(meta)) for meta in page if meta["path"].startswith(where)]

        def ask() -> Mapping[str, Marked] | None:
            try:
                return gathered(pages(), most)
            except self._obstore.exceptions.BaseError as error:
                if not names_no_path(error):
                    raise
                logger.info("%r is not listed whole: %s", self.location(prefix), error)
                return None  # such an object is not met where only the folder is listed in which it is not

        return again(ask, self.location(prefix))

    def delete(self, keys: Iterable[str]) -> None:
        """See `Store.delete`; one request for 1,000 on S3, for 256 on Azure, for each on Google, several at once."""
        paths = [self._path(key) for key in keys if not key.endswith("/")]
        size = {"S3Store": _PAGE, "AzureStore": _BATCH}.get(self._cloud.kind, 1)
        requests = [paths[at : at + size] for at in range(0, len(paths), size)]
        # Each call one request: when obstore makes several it raises at the first that is gone already, and goes on with others.
        if len(requests) == 1:
            self._delete(requests[0])
        elif requests:
            with ThreadPoolExecutor(min(self.workers, len(requests))) as pool:
                for deleted in [pool.submit(self._delete, each) for each in requests]:
                    deleted.result()

    def _delete(self, paths: Sequence[str]) -> None:
        def ask() -> None:
            try:
                self._obstore.delete(self._client(), [*paths])
            except FileNotFoundError as error:
                _raise_if_bucket(error)
                for path in paths if len(paths) > 1 else ():  # it may hide what became of the others
                    self._delete([path])

        again(ask, self.url)

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

    def _is_conditional(self) -> bool:
        """Whether conditions are honoured; tried before the first."""
        if not self._is_tried:
            self.is_weak = not self._honours()
            self._is_tried = True
        return not self.is_weak

    def _upload(self, key: str, pieces: Pieces, nbytes: int, part: int) -> None:
        sizes = {"chunk_size": part, "max_concurrency": max(self._sending.nbytes // part, 1)}

        def send(taken: Taken) -> None:
            try:
                self._obstore.put(self._client(), self._path(key), taken, use_multipart=True, **sizes)
            except self._obstore.exceptions.GenericError:
                if getgeneratorstate(taken) != GEN_CREATED:
                    raise
                # It did not begin: obstore does not repeat that one request to Google, for it may leave an upload behind.
                self._obstore.put(self._client(), self._path(key), taken, use_multipart=True, **sizes)

        started = monotonic()
        try:
            feed(send, pieces, (min(part, nbytes - at) for at in range(0, nbytes, part)), self._sending)
        except Exception as error:
            # A completion that is asked for again because its answer was lost is told that there is nothing to complete.
            if pieces.failed is None and self._is_there(key, nbytes, started):
                return
            if isinstance(error, FileNotFoundError) and not error.filename:
                raise FileNotFoundError(ENOENT, "somebody ended the upload", self.location(key)) from error
            raise

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
            if self._cloud.endpoint in _without_checksums or "checksum_algorithm" not in self._cloud.config:
                raise
            logger.info("%r is asked again without checksums: %s", self.url, error)
            _without_checksums.add(self._cloud.endpoint)
            self._clients.clear()
            return weak.honours(self, self.url)

    def _path(self, key: str) -> str:
        names_of(key)
        return self._prefix + key

    @property
    def _obstore(self) -> Any:
        return obstore()

    def _client(self, *, is_once: bool = False) -> Any:
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


def part_nbytes(nbytes: int, in_flight_nbytes: int = _IN_FLIGHT_NBYTES) -> int:
    """The size of the parts of an upload: 16 MiB, or more where there would be more than 10,000.

    Less, but at least the 5 MiB that S3 asks for, if fewer than four of those may be on their way.

    Raises:
        OSError: no store takes a file of that size.
    """
    usual = max(_LEAST_PART_NBYTES, min(in_flight_nbytes // 4, _PART_NBYTES))
    part = max(usual, -(-nbytes // _MOST_PARTS // _MIB) * _MIB)
    part += 0 if part * _MOST_PARTS >= nbytes else _MIB
    if part > _MOST_PART_NBYTES:
        raise OSError(EFBIG, f"{nbytes} bytes are more than an object store takes in one object")
    return part


_guard = threading.RLock()
_without_checksums: set[str] = set()  # servers that refuse them


def _head(meta: Mapping[str, Any]) -> Head:
    return Head(meta["size"], float(int(meta["last_modified"].timestamp())))


def _marked(meta: Mapping[str, Any]) -> Marked:
    return Marked(*_head(meta), bare(meta["e_tag"]))


@contextmanager
def _as_os_error(helper: Client, where: str) -> Iterator[None]:
    try:
        yield
    except helper.errors as error:
        raise OSError(EIO, str(error), where) from error


def _raise_if_bucket(error: FileNotFoundError) -> None:
    if names_bucket(error):
        raise error
