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
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from errno import EFBIG, ENOENT
from http.client import HTTPException
from itertools import chain
from time import time
from typing import Any, BinaryIO, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from ckptmgr.storage import clouds, weak
from ckptmgr.storage.asking import REFUSED, is_damage, is_unanswered, names_bucket, names_no_path, obstore, status, told
from ckptmgr.storage.blockfile import open_blocks
from ckptmgr.storage.bucket import Bucket
from ckptmgr.storage.budget import Budget
from ckptmgr.storage.clients import has_client
from ckptmgr.storage.folders import names_of_prefix
from ckptmgr.storage.marking import bare, gathered
from ckptmgr.storage.pieces import Places
from ckptmgr.storage.sending import IN_FLIGHT_NBYTES, Sender
from ckptmgr.storage.store import Answer, Buffer, Head, Listing, Marked, Stored, Upload, Version
from ckptmgr.threads import Pool

logger = logging.getLogger(__name__)

_MIB = 1 << 20
_WINDOW_NBYTES = 4 * _MIB
_MOST_AT_ONCE = 16
_SMALL_NBYTES = 256 * _MIB  # `read` is for records
_PAGE = 1_000  # objects in an answer, or in a request
_BATCH = 256  # requests in one of Azure
_CHUNK_NBYTES = 64 << 10  # of a read on its way to its place: the client joins what comes in less, and that is a copy more
_CLOCK_S = 10.0


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
    workers = _MOST_AT_ONCE
    files_at_once = 4

    def __init__(self, url: str, *, in_flight_nbytes: int = IN_FLIGHT_NBYTES, **options: Any) -> None:
        if in_flight_nbytes < 1:
            raise ValueError(f"in_flight_nbytes must be at least 1, not {in_flight_nbytes}")
        self._bucket = Bucket(url, options)
        self._cloud, self._prefix, self.url = self._bucket.cloud, self._bucket.prefix, self._bucket.url
        self._sender = Sender(self, self._bucket, Budget(in_flight_nbytes))
        self._reading = Budget(in_flight_nbytes)
        self.workers = _ranges_at_once(in_flight_nbytes, os.cpu_count() or 1)
        self.is_weak = False  # until it is tried
        self._is_tried = self._cloud.is_vendor

    def __repr__(self) -> str:
        return f"ObjectStore({self.url!r})"

    @property
    def has_remove(self) -> bool:
        """Not on S3; elsewhere if the store's fsspec client is installed, which has that call."""
        return not self.is_weak and self._cloud.kind != "S3Store" and has_client(self._cloud.place)

    @property
    def honours(self) -> bool | None:
        """Whether conditions are honoured, as far as that is known without trying."""
        return not self.is_weak if self._is_tried else weak.known(self.url)

    def put(self, key: str, windows: Iterable[Sequence[Buffer]], nbytes: int) -> Stored:
        """See `Store.put` and `Sender.put`."""
        return self._sender.put(key, windows, nbytes)

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
            helper = self._bucket.helper()
            assert helper is not None
            # Google's condition is the generation; Azure's versions are other things, which only some accounts have.
            known = version.version if self._cloud.kind == "GCSStore" else version.e_tag
            return helper.send(self._bucket.path(key), None, known)[0]
        return weak.check_then(self, key, version, lambda: self.delete([key]))

    def change(self, key: str, data: bytes, version: Version | None) -> tuple[Answer, Version | None]:
        """See `MarkingStore.change`."""
        if self._is_conditional():
            return self.send(key, data, version)
        return weak.check_then(self, key, version, lambda: self.put(key, [[data]], len(data))), None

    def mark(self, version: Version) -> str | None:
        """See `MarkingStore.mark`: the ETag."""
        return bare(version.e_tag) if isinstance(version, _Version) else None

    def send(self, key: str, data: bytes, version: Version | None) -> tuple[Answer, Version | None]:
        """One conditional request, as it is; see `weak.Conditional`."""
        known = {name: value for name, value in (version or _Version(None, None))._asdict().items() if value}  # type: ignore[attr-defined]
        errors = obstore().exceptions
        try:
            made = obstore().put(self._bucket.client(), self._bucket.path(key), data, mode=known or "create")
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
        return Answer.OK, _Version(made["e_tag"], made["version"]) if made["e_tag"] or made["version"] else None

    def read(self, key: str) -> tuple[bytes, Version] | None:
        """See `Store.read`. Raises OSError (EFBIG) if the object is not small at all (256 MiB)."""

        def ask() -> tuple[bytes, Version]:
            found = obstore().get(self._bucket.client(), self._bucket.path(key))
            if found.meta["size"] > _SMALL_NBYTES:
                raise OSError(EFBIG, "too large to be read at once", self.location(key))
            return bytes(found.bytes()), _Version(found.meta["e_tag"], found.meta["version"])

        try:
            return self._bucket.again(key, ask)
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
            found = obstore().get(self._bucket.client(), self._bucket.path(key), options=options)
            if found.meta["e_tag"]:
                same["if_match"] = found.meta["e_tag"]
            for chunk in found.stream(_CHUNK_NBYTES) if found.range[1] == end else ():
                places.fill(chunk)
            if places.left:
                raise short

        try:
            with self._reading.held(places.nbytes):
                self._bucket.again(key, ask)
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
            return _head(self._bucket.again(key, lambda: obstore().head(self._bucket.client(), self._bucket.path(key))))
        except FileNotFoundError as error:
            _raise_if_bucket(error)
            return None

    def list(self, prefix: str) -> Listing:
        """See `Store.list`; one request for each thousand names."""
        names_of_prefix(prefix)
        where = self._prefix + prefix

        def ask() -> Any:
            try:
                return obstore().list_with_delimiter(self._bucket.client(), where or None)
            except obstore().exceptions.BaseError as error:
                if not names_no_path(error) or self._bucket.helper() is None:
                    raise
                logger.info("%r is listed by its fsspec client: %s", self.location(prefix), error)
                return None

        found = self._bucket.again(prefix, ask)
        if found is None:
            return self._listed_by_helper(prefix)
        # A console may have put an empty object under the folder's own name, which comes without its slash.
        names = [(meta["path"].removeprefix(where), meta) for meta in found["objects"] if meta["path"].startswith(where)]
        files = {name: _head(meta) for name, meta in sorted(names, key=lambda each: each[0]) if name and "/" not in name}
        return Listing(files, tuple(sorted(folder.removeprefix(where) for folder in found["common_prefixes"])))

    def _listed_by_helper(self, prefix: str) -> Listing:
        """What `list` gives, without what obstore cannot ask for: one object of somebody's, as ``a//b``, keeps it from all."""
        helper, where = self._bucket.helper(), self._prefix + prefix
        assert helper is not None
        files: dict[str, Head] = {}
        folders: set[str] = set()
        with self._bucket.asking(helper, self.location(prefix)):
            for key, file in chain.from_iterable(helper.pages(where)):
                name, slash, _ = key.removeprefix(where).partition("/")
                if clouds.is_name(name) and slash:
                    folders.add(name)
                elif clouds.is_name(name):
                    files[name] = Head(file.nbytes, file.modified)
        return Listing(files, tuple(sorted(folders)))

    def below(self, prefix: str, *, most: int) -> Mapping[str, Marked] | None:
        """See `MarkingStore.below`; one request for each thousand files (Azure: five thousand)."""
        names_of_prefix(prefix)
        where = self._prefix + prefix

        def pages() -> Iterator[list[tuple[str, Marked]]]:
            for page in obstore().list(self._bucket.client(), where or None, chunk_size=_PAGE):
                yield [(meta["path"].removeprefix(where), _marked(meta)) for meta in page if meta["path"].startswith(where)]

        def ask() -> Mapping[str, Marked] | None:
            try:
                return gathered(pages(), most)
            except obstore().exceptions.BaseError as error:
                if not names_no_path(error):
                    raise
                logger.info("%r is not listed whole: %s", self.location(prefix), error)
                return None  # such an object is not met where only the folder is listed in which it is not

        return self._bucket.again(prefix, ask)

    def delete(self, keys: Iterable[str]) -> None:
        """See `Store.delete`; one request for 1,000 on S3, for 256 on Azure, for each on Google, several at once."""
        paths = [self._bucket.path(key) for key in keys if not key.endswith("/")]
        size = {"S3Store": _PAGE, "AzureStore": _BATCH}.get(self._cloud.kind, 1)
        requests = [paths[at : at + size] for at in range(0, len(paths), size)]
        # Each call one request: when obstore makes several it raises at the first that is gone already, and goes on with others.
        if len(requests) == 1:
            self._delete(requests[0])
        elif requests:
            with Pool(min(_MOST_AT_ONCE, len(requests))) as pool:
                for deleted in [pool.submit(self._delete, each) for each in requests]:
                    deleted.result()

    def _delete(self, paths: Sequence[str]) -> None:
        def ask() -> None:
            try:
                obstore().delete(self._bucket.client(), [*paths])
            except FileNotFoundError as error:
                _raise_if_bucket(error)
                for path in paths if len(paths) > 1 else ():  # it may hide what became of the others
                    self._delete([path])

        self._bucket.again("", ask)

    def uploads(self, prefix: str) -> Sequence[Upload]:
        """See `Store.uploads`. Empty on Azure, where they end by themselves, and without the store's fsspec client."""
        helper = self._bucket.helper()
        if helper is None:
            return []
        with self._bucket.asking(helper, self.location(prefix)):
            found = helper.uploads(self._prefix + prefix)
        return [Upload(key.removeprefix(self._prefix), identity, modified) for key, identity, modified in found]

    def abort(self, upload: Upload) -> None:
        """See `Store.abort`."""
        helper = self._bucket.helper()
        if helper is not None:
            with self._bucket.asking(helper, self.location(upload.key)):
                helper.abort(Upload(self._bucket.path(upload.key), upload.id, upload.modified))

    def now(self) -> float:
        """See `Store.now`: the time in any answer of the server, or this machine's if none comes."""
        try:
            where = f"{self._cloud.endpoint}/{self._cloud.place.bucket}"  # at its root Amazon sends visitors elsewhere
            context = self._cloud.tls_context() if where.startswith("https:") else None
            with urlopen(Request(where, method="HEAD"), timeout=_CLOCK_S, context=context) as answer:
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
        return self._bucket.location(key)

    def _is_conditional(self) -> bool:
        """Whether conditions are honoured; tried before the first."""
        if not self._is_tried:
            self.is_weak = not self._honours()
            self._is_tried = True
        return not self.is_weak

    def _honours(self) -> bool:
        """Whether conditions are honoured. A server that refuses checksums, as some old ones do, gets none from now on."""
        try:
            return weak.honours(self, self.url)
        except PermissionError:
            raise
        except OSError as error:
            # Not for bytes that were damaged on their way: that is what the checksums are for.
            is_refused = status(error) in (400, 501) and not is_damage(error)
            if not is_refused or not self._bucket.has_checksums:
                raise
            logger.info("%r is asked again without checksums: %s", self.url, error)
        try:
            self._bucket.has_checksums = False
            return weak.honours(self, self.url)
        except OSError:
            self._bucket.has_checksums = True
            raise


def _ranges_at_once(in_flight_nbytes: int, cores: int) -> int:
    """Sixteen; but eight for few cores, of which more threads only take, unless more is to be on its way than by default."""
    few = max(_MOST_AT_ONCE // 2, 2 * cores)
    return min(_MOST_AT_ONCE, max(few, in_flight_nbytes // (2 * _WINDOW_NBYTES)))


def _head(meta: Mapping[str, Any]) -> Head:
    return Head(meta["size"], float(int(meta["last_modified"].timestamp())))


def _marked(meta: Mapping[str, Any]) -> Marked:
    return Marked(*_head(meta), bare(meta["e_tag"]))


def _raise_if_bucket(error: FileNotFoundError) -> None:
    if names_bucket(error):
        raise error
