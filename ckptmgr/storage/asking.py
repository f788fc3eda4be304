"""Asking obstore: its errors as the OSErrors that they are, and once more what it does not ask again by itself.

obstore repeats what a server cannot answer now, for up to two minutes. It gives up at once where a connection breaks inside
the body of a small answer or of a listing, or while something is deleted: `again` is for those, and for nothing that must be
sent once.
"""

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EACCES, EIO, ENOENT
from typing import Any, TypeVar

from ckptmgr.storage.clouds import module

_T = TypeVar("_T")

REFUSED = frozenset({400, 401, 403, 404, 405, 411, 413, 414, 415, 501})  # answers that prove that nothing was changed
_PAUSES_S = (0.1, 0.5, 2.0)
_STATUS = re.compile(r"status code: (\d{3})")
_QUERY = re.compile(r"\?[\w-]+=[^\s,]*")  # may hold a signature
_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|The specified bucket does not exist")
_NO_PATH = re.compile(r"object with invalid path")
_used_by: set[int] = set()


def obstore() -> Any:
    """The module. Its threads do not live on in a forked child, where every call would wait for ever.

    Raises:
        RuntimeError: this is such a child.
        MissingDependencyError: it is not installed.
    """
    _used_by.add(os.getpid())
    if len(_used_by) > 1:
        reason = "this process was forked from one that had used obstore, whose threads are gone"
        raise RuntimeError(f"{reason}: start it with 'spawn' or 'forkserver', or give storage_options={{'client': 'fsspec'}}")
    return module("obstore")


@contextmanager
def asking(where: str) -> Iterator[None]:
    """Lets obstore's errors be OSErrors with the location; others pass."""
    try:
        yield
    except Exception as error:
        is_theirs = isinstance(error, FileNotFoundError) and not error.filename
        if is_theirs or isinstance(error, obstore().exceptions.BaseError):
            raise told(error, where) from error
        raise


def again(call: Callable[[], _T], where: str) -> _T:
    """The result of a call that changes nothing by being made twice; made again if it breaks off without an answer."""
    for pause in _PAUSES_S:
        try:
            with asking(where):
                return call()
        except OSError as error:
            if error.errno != EIO or status(error) is not None:
                raise
        time.sleep(random.uniform(0, pause))
    with asking(where):
        return call()


def told(error: BaseException, where: str) -> OSError:
    """What an error of obstore's says."""
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(ENOENT, "the bucket does not exist" if names_bucket(error) else "no such object", where)
    text = _QUERY.sub("?...", str(error).partition("\n\nDebug source")[0])
    if status(error) in (401, 403):
        return PermissionError(EACCES, text, where)
    if status(error) == 404 and names_bucket(error):
        return FileNotFoundError(ENOENT, "the bucket does not exist", where)
    return OSError(EIO, text, where)


def status(error: BaseException) -> int | None:
    """The HTTP status that an error tells of, if it came with an answer."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def names_bucket(error: BaseException) -> bool:
    """Whether it is the bucket that is not there."""
    return _BUCKET.search(str(error.__cause__ or error)) is not None


def names_no_path(error: BaseException) -> bool:
    """Whether a listing broke off at an object of somebody's whose key obstore takes for no path, such as ``a//b``."""
    return _NO_PATH.search(str(error)) is not None
