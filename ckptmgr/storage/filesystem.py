"""Files of any fsspec file system: in memory, over sftp, over http to read, and in the clouds where obstore is not installed.

The law: a name refers to a whole file. In the clouds a file appears when its upload is completed; elsewhere it is written
under a temporary name beside its own and then moved, which is one change if the file system's move is.

Conditions are those of each cloud's own client (`clients`); in memory the process keeps others out; all else is weak.
"""

import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from errno import EFBIG, EIO, ENOENT, EROFS
from typing import Any, BinaryIO

import fsspec
from fsspec.core import split_protocol

from ckptmgr.errors import MissingDependencyError
from ckptmgr.storage import clouds, weak
from ckptmgr.storage.blockfile import open_blocks
from ckptmgr.storage.clients import Client, client_of, has_client
from ckptmgr.storage.folders import names_of, names_of_prefix
from ckptmgr.storage.marking import bare, gathered
from ckptmgr.storage.pieces import Pieces, Places
from ckptmgr.storage.store import Answer, Buffer, Head, Listing, Marked, Stored, Upload, Version

_MIB = 1 << 20
_WINDOW_NBYTES = 4 * _MIB
_BLOCK_NBYTES = 8 * _MIB  # of an upload by s3fs, gcsfs or adlfs
_MOST_PARTS = 9_000
_SMALL_NBYTES = 256 * _MIB
_TEMPORARY = re.compile(r"(.+)\.ckptmgr-[0-9a-f]{16}\.tmp")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
_PASSWORD = re.compile(r"(//[^/:@]*):[^/@]*@")
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class FilesystemStore:
    """A `Store` below a URL, with the storage options of its file system. Instances are our own, in each process.

    Raises:
        MissingDependencyError: it is a cloud, and the fsspec client for it is not installed.
    """

    window_nbytes = _WINDOW_NBYTES
    workers = 8

    def __init__(self, url: str, *, in_flight_nbytes: int = workers * _WINDOW_NBYTES, **options: Any) -> None:
        self.workers = max(1, min(in_flight_nbytes // _WINDOW_NBYTES, self.workers))  # a file is sent block by block
        scheme, _ = split_protocol(url)
        self._target = url
        self.url = _PASSWORD.sub(r"\1@", url.rstrip("/"))
        self._place = clouds.split(url) if scheme in clouds.SCHEMES else None
        if self._place is not None and not has_client(self._place):
            extra = {"s": "s3", "g": "gcs", "a": "azure"}[self._place.scheme[0]]
            raise MissingDependencyError(f"{self._place.scheme}:// needs its client: pip install 'ckptmgr[{extra}]'")
        self._options = options
        self._opened: dict[int, tuple[Any, Client | None, str]] = {}
        self._is_memory = scheme == "memory"
        self._is_tried = self._is_memory
        self.is_weak = False  # until it is tried

    def __repr__(self) -> str:
        return f"FilesystemStore({self.url!r})"

    @property
    def has_remove(self) -> bool:
        """In the clouds as far as their clients have it; elsewhere the file is compared and then deleted."""
        client = self._open()[1]
        return client is None or self.is_weak or client.has_remove

    @property
    def honours(self) -> bool | None:
        """Whether conditions are honoured, as far as that is known without trying: only memory and the clouds have any."""
        if self._is_tried:
            return not self.is_weak
        return False if self._place is None else weak.known(self.url)

    def put(self, key: str, windows: Iterable[Sequence[Buffer]], nbytes: int) -> Stored:
        """See `Store.put`."""
        pieces = Pieces(windows, nbytes, self.location(key))
        try:
            with pieces.telling(), self._asking(key):
                if self._client is not None:
                    return Stored(nbytes, self._upload(self._client, key, pieces, nbytes))
                self._move_in(self._path(key), pieces)
        except FileNotFoundError as error:
            if pieces.failed is error:
                raise
            raise FileNotFoundError(ENOENT, "somebody removed the unfinished file, or its folder", self.location(key)) from error
        return Stored(nbytes)

    def create(self, key: str, data: bytes) -> Answer:
        """See `Store.create`."""
        return self.change(key, data, None)[0]

    def replace(self, key: str, data: bytes, version: Version) -> Answer:
        """See `Store.replace`."""
        return self.change(key, data, version)[0]

    def remove(self, key: str, version: Version) -> Answer:
        """See `Store.remove`."""
        return self._change(key, None, version)[0]

    def change(self, key: str, data: bytes, version: Version | None) -> tuple[Answer, Version | None]:
        """See `MarkingStore.change`."""
        return self._change(key, data, version)

    def mark(self, version: Version) -> str | None:
        """See `MarkingStore.mark`: the ETag or generation, in the clouds."""
        return bare(version) if isinstance(version, str) and self._client is not None else None

    def below(self, prefix: str, *, most: int) -> Mapping[str, Marked] | None:
        """See `MarkingStore.below`; only in the clouds."""
        names_of_prefix(prefix)
        if self._client is None:
            return None
        where = self._key("") + prefix
        with self._asking(prefix):
            pages = self._client.pages(where)
            return gathered(([(name.removeprefix(where), file) for name, file in page] for page in pages), most)

    def send(self, key: str, data: bytes | None, version: Version | None) -> tuple[Answer, Version | None]:
        """One conditional request, as it is; see `weak.Conditional`. Raises NotImplementedError where there is no such."""
        if self._client is None:
            raise NotImplementedError("this file system has no conditions")
        if version is not None and not isinstance(version, str):
            return Answer.NO, None
        return self._client.send(self._key(key), data, version)

    def read(self, key: str) -> tuple[bytes, Version] | None:
        """See `Store.read`. A version is the object's ETag or generation, or the content."""
        head = self.head(key) if self._client is None else None
        if head is not None and head.nbytes > _SMALL_NBYTES:
            raise OSError(EFBIG, "too large to be read at once", self.location(key))
        with self._asking(key):
            if self._client is not None:
                return self._client.read(self._key(key))
            try:
                data = bytes(self._fs.cat_file(self._path(key)))
            except _ABSENT:
                return None
            return data, data

    def read_into(self, key: str, offset: int, buffers: Sequence[Buffer]) -> None:
        """See `Store.read_into`. One range at a time, with memory for it."""
        places = Places(buffers)
        if places.nbytes == 0:
            return
        path, end = self._path(key), offset + places.nbytes
        try:
            with self._asking(key):
                data = memoryview(self._fs.cat_file(path, start=offset, end=end))
            places.fill(data[offset:end] if len(data) > places.nbytes else data)  # some HTTP servers send the whole file
        except _ABSENT as error:
            raise FileNotFoundError(ENOENT, "no such file", self.location(key)) from error
        except (OSError, ValueError) as error:  # some say so when a range begins behind the end
            head = self.head(key)
            if head is None or head.nbytes >= end:
                raise
            raise EOFError(f"{self.location(key)!r} ends before byte {end}") from error
        if places.left:
            raise EOFError(f"{self.location(key)!r} ends before byte {end}")

    def file(self, key: str) -> BinaryIO:
        """See `Store.file`."""
        head = self.head(key)
        if head is None:
            raise FileNotFoundError(ENOENT, "no such file", self.location(key))
        return open_blocks(head.nbytes, lambda offset, buffers: self.read_into(key, offset, buffers))

    def head(self, key: str) -> Head | None:
        """See `Store.head`. Times are in whole seconds."""
        try:
            with self._asking(key):
                info = self._fs.info(self._path(key))
        except _ABSENT:
            return None
        return _head(info) if info["type"] == "file" else None

    def list(self, prefix: str) -> Listing:
        """See `Store.list`."""
        files, folders, _ = self._scan(prefix)
        return Listing(files, tuple(folders))

    def delete(self, keys: Iterable[str]) -> None:
        """See `Store.delete`; in the clouds many by one request, where the service can."""
        if self._client is not None:
            paths = [self._key(key) for key in keys if not key.endswith("/")]
            with self._asking(""):
                self._client.delete(paths)
            return
        above = set()
        for key in keys:
            if not key.endswith("/"):
                with suppress(FileNotFoundError), self._asking(key):
                    self._fs.rm_file(self._path(key))
            above.add(key.rstrip("/").rpartition("/")[0] if not key.endswith("/") else key.rstrip("/"))
        for folder in above:
            self._prune(folder)

    def uploads(self, prefix: str) -> Sequence[Upload]:
        """See `Store.uploads`."""
        if self._client is not None:
            root = self._key("")
            with self._asking(prefix):
                found = self._client.uploads(root + prefix)
            return [Upload(key.removeprefix(root), identity, modified) for key, identity, modified in found]
        uploads: list[Upload] = []
        pending = [prefix]
        while pending:
            folder = pending.pop()
            _, below, temporary = self._scan(folder)
            uploads += [Upload(folder + name, name, head.modified) for name, head in temporary.items()]
            pending += [f"{folder}{name}/" for name in below]
        return uploads

    def abort(self, upload: Upload) -> None:
        """See `Store.abort`."""
        if self._client is not None:
            with self._asking(upload.key):
                self._client.abort(Upload(self._key(upload.key), upload.id, upload.modified))
        elif not _TEMPORARY.fullmatch(upload.key.rpartition("/")[2]):
            raise ValueError(f"{upload.key!r} is no unfinished file of ours")
        else:
            self.delete([upload.key])

    def now(self) -> float:
        """See `Store.now`: the time of a file that is written for that, where files have times and may be written."""
        if self._is_memory:
            return time.time()
        key = f"{weak.PROBE}{secrets.token_hex(8)}"
        try:
            self.put(key, [[b"?"]], 1)
            head = self.head(key)
            self.delete([key])
        except OSError:
            return time.time()
        return head.modified if head is not None and head.modified else time.time()

    def location(self, key: str) -> str:
        """See `Store.location`: a URL."""
        return f"{self.url}/{key}" if key else self.url

    @property
    def _fs(self) -> Any:
        return self._open()[0]

    @property
    def _client(self) -> Client | None:
        return self._open()[1]

    def _open(self) -> tuple[Any, Client | None, str]:
        """The file system, the client of a cloud, and the root's path."""
        if os.getpid() not in self._opened:
            if self._place is not None:
                client = client_of(self._place, self._options)
                assert client is not None
                root = f"{self._place.bucket}/{self._place.prefix}"
                self._opened[os.getpid()] = client.fs, client, root.rstrip("/")
            else:
                options = {**self._options, "use_listings_cache": False, "skip_instance_cache": True}
                try:
                    fs, root = fsspec.url_to_fs(self._target, **options)
                except ImportError as error:  # it says which package
                    raise MissingDependencyError(f"{split_protocol(self._target)[0]}:// cannot be used: {error}") from error
                self._opened[os.getpid()] = fs, None, root.rstrip("/")
        return self._opened[os.getpid()]

    def _path(self, key: str) -> str:
        return f"{self._open()[2]}/{'/'.join(names_of(key))}"

    def _key(self, key: str) -> str:
        """The key below the bucket."""
        assert self._place is not None
        return self._place.prefix + ("/".join(names_of(key)) if key else "")

    def _change(self, key: str, data: bytes | None, version: Version | None) -> tuple[Answer, Version | None]:
        if not self._is_tried:
            self.is_weak = not weak.honours(self, self.url)
            self._is_tried = True
        if not self.is_weak and self._client is not None:
            return self.send(key, data, version)
        change = (lambda: self.put(key, [[data]], len(data))) if data is not None else (lambda: self.delete([key]))
        return weak.check_then(self, key, version, change), None

    def _upload(self, client: Client, key: str, pieces: Pieces, nbytes: int) -> tuple[str, str] | None:
        if nbytes <= _BLOCK_NBYTES:  # one request, where a file that is opened may take two
            client.pipe(self._key(key), b"".join(pieces))
            return None
        block = max(_BLOCK_NBYTES, -(-nbytes // _MOST_PARTS // _MIB) * _MIB)
        file = client.fs.open(self._path(key), "wb", block_size=block)
        try:
            for piece in pieces:
                file.write(piece)
            file.close()
        except BaseException:  # whatever it is, no unfinished upload must stay
            with suppress(OSError, *client.errors):  # it may be completed all the same, or gone
                client.discard(file)
            raise
        checksum = client.checksum(self._key(key)) if client.has_checksums else None
        return None if checksum is None else ("crc32c", f"{checksum:08x}")

    def _move_in(self, path: str, pieces: Pieces) -> None:
        temporary = f"{path}.ckptmgr-{secrets.token_hex(8)}.tmp"
        fs = self._fs
        try:
            if not self._is_memory:
                fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._write(temporary, pieces)
            self._rename(temporary, path)
        except BaseException:  # whatever it is, no temporary file must stay
            with suppress(OSError, NotImplementedError):
                fs.rm_file(temporary)
            raise

    def _write(self, path: str, pieces: Pieces) -> None:
        with self._fs.open(path, "wb") as file:
            for piece in pieces:
                file.write(piece)
                file.flush()

    def _rename(self, old: str, new: str) -> None:
        """One change where the file system has a call for it."""
        if type(self._fs).mv is not fsspec.AbstractFileSystem.mv:
            self._fs.mv(old, new)
        else:  # not the generic move: it takes a star in a name for a pattern
            self._fs.cp_file(old, new)
            self._fs.rm_file(old)

    def _prune(self, folder: str) -> None:
        """Removes a folder if it is empty, then likewise those above it but the root."""
        while folder:
            with suppress(*_ABSENT):
                if self._fs.ls(self._path(folder), detail=False):
                    return
                self._fs.rmdir(self._path(folder))
            folder = folder.rpartition("/")[0]

    def _scan(self, prefix: str) -> tuple[Mapping[str, Head], Sequence[str], Mapping[str, Head]]:
        """Files, folders and temporary files directly below a prefix, each in the order of names."""
        above = "/".join([self._open()[2], *names_of_prefix(prefix)])
        files: dict[str, Head] = {}
        temporary: dict[str, Head] = {}
        folders = []
        try:
            with self._asking(prefix):
                entries = self._fs.ls(above, detail=True)
        except _ABSENT:
            entries = []
        for info in sorted(entries, key=lambda info: str(info["name"])):
            parent, _, name = info["name"].rstrip("/").rpartition("/")
            if parent.lstrip("/") != above.lstrip("/") or not name:
                continue  # the folder itself, or a file that was asked for as a folder
            if info["type"] == "directory":
                folders.append(name)
            else:
                kind = temporary if _TEMPORARY.fullmatch(name) else files
                kind[name] = _head(info)
        return files, list(dict.fromkeys(folders)), temporary

    @contextmanager
    def _asking(self, key: str) -> Iterator[None]:
        """Lets the errors of the file systems be OSErrors, with the location."""
        errors = self._client.errors if self._client is not None else ()
        try:
            yield
        except errors as error:
            raise OSError(EIO, str(error), self.location(key)) from error
        except NotImplementedError as error:
            raise OSError(EROFS, "this file system can only be read", self.url) from error
        except OSError as error:
            if error.errno is not None and error.filename is None:
                error.filename = self.location(key)
            raise


def _head(info: Mapping[str, Any]) -> Head:
    times = [info[name] for name in _TIMES if info.get(name)]
    return Head(info["size"], float(int(_seconds(times[0]))) if times else 0.0)


def _seconds(value: Any) -> float:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value)
