"""Asking obstore: its errors as the OSErrors that they are, and again what a server cannot answer now.

The law: one layer repeats a request. It is `again`, and the client sends each once; but for the parts of an upload, which
obstore repeats by itself (`Retries.of_client`), because their bytes are handed out only once. What must be sent once is asked
without either. An answer that means something (there is no such object, no permission, a wrong request) is never asked for again.
"""

import itertools
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EACCES, EIO, ENOENT
from typing import Any, TypeVar

from ckptmgr.storage.clouds import TIMEOUT_S, Retries, module

_T = TypeVar("_T")
logger = logging.getLogger(__name__)

REFUSED = frozenset({400, 401, 403, 404, 405, 411, 413, 414, 415, 501})  # answers that prove that nothing was changed
_BUSY = frozenset({408, 429, 500, 502, 503, 504, 507, 509})  # it may answer later
_chance = random.SystemRandom()  # not the shared generator, whose state is the user's
_UNTOLD = 3  # tries again of what failed in the client for a reason that it does not tell
_STATUS = re.compile(r"status code: (\d{3})")
_QUERY = re.compile(r"\?[\w-]+=[^\s,]*")  # may hold a signature
_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|The specified bucket does not exist")
_NO_PATH = re.compile(r"object with invalid path")
_SLOW = re.compile(rf" in {TIMEOUT_S}\.\d+s - HTTP error")
_DAMAGE = re.compile(r"BadDigest|InvalidDigest|ChecksumMismatch|Md5Mismatch|Crc64Mismatch")
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


def again(call: Callable[[], _T], where: str, retries: Retries) -> _T:
    """The result of a call that changes nothing by being made twice; made again while there is no answer, or "not now".

    Pauses are between none and a longest one, which doubles each time. Their sum has a bound, after which no try begins.
    """
    deadline = time.monotonic() + retries.seconds
    for number in itertools.count():
        try:
            with asking(where):
                return call()
        except OSError as error:
            pause_s = _chance.uniform(0, retries.longest_pause_s(number))
            if number >= min(retries.most, _most(error)) or time.monotonic() + pause_s > deadline:
                raise
            logger.info("asked again in %.1f s: %s", pause_s, error)
        time.sleep(pause_s)
    raise AssertionError("unreachable")


def is_unanswered(error: OSError) -> bool:
    """Whether all that is known is that the server did not answer, or could not do it now."""
    return _most(error) == float("inf")


def _most(error: OSError) -> int | float:
    """How often to ask again after this error."""
    code = status(error)
    if error.errno != EIO or (code is not None and code not in _BUSY and "RequestTimeout" not in str(error)):
        return 0
    return _UNTOLD if code is None and "HTTP error" not in str(error) else float("inf")


def told(error: BaseException, where: str) -> OSError:
    """What an error of obstore's says."""
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(ENOENT, "the bucket does not exist" if names_bucket(error) else "no such object", where)
    text = _QUERY.sub("?...", str(error).partition("\n\nDebug source")[0])
    if status(error) in (401, 403):
        return PermissionError(EACCES, text, where)
    if status(error) == 404 and names_bucket(error):
        return FileNotFoundError(ENOENT, "the bucket does not exist", where)
    if _SLOW.search(text):
        text = (
            f"{text}, given up after {TIMEOUT_S} s: if the link is slow, give storage_options={{'in_flight_nbytes': {8 << 20}}}"
        )
    return OSError(EIO, text, where)


def status(error: BaseException) -> int | None:
    """The HTTP status that an error tells of, if it came with an answer."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def is_damage(error: BaseException) -> bool:
    """Whether the server has refused bytes that are not those that their checksum was of."""
    return _DAMAGE.search(str(error)) is not None


def names_bucket(error: BaseException) -> bool:
    """Whether it is the bucket that is not there."""
    return _BUCKET.search(str(error.__cause__ or error)) is not None


def names_no_path(error: BaseException) -> bool:
    """Whether a listing broke off at an object of somebody's whose key obstore takes for no path, such as ``a//b``."""
    return _NO_PATH.search(str(error)) is not None
