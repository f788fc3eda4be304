"""Requests to the clients of s3fs, gcsfs and adlfs that are sent once, and what their answers mean.

fsspec has no conditions, and the three repeat a request whose answer was lost, which then meets its own effect. So their own
clients are asked here.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from errno import EACCES, EAGAIN, EIO, ENOENT
from typing import Any

import fsspec

from ckptmgr.storage.clouds import module
from ckptmgr.storage.store import Answer, Version
from ckptmgr.threads import Pool

logger = logging.getLogger(__name__)

_TIMEOUT_S = 60.0


def filesystem(scheme: str, options: Mapping[str, Any]) -> Any:
    """An instance of our own: a shared one may remember what was there, and be changed by others. Raises OSError as `start`."""
    start()
    return fsspec.filesystem(scheme, **{**options, "use_listings_cache": False, "skip_instance_cache": True})


def start() -> None:
    """Starts the thread of all fsspec clients, if need be: at the end of an interpreter none can be had for their first request.

    Nor can one for the look-up of a host's name, which then is made in that thread.

    Raises:
        OSError: no thread can be had. fsspec takes it for started all the same, and would wait for it for ever.
    """
    asyn = module("fsspec.asyn")
    (running,) = asyn.loop
    if running is not None:
        return
    try:
        asyn.get_loop().set_default_executor(Pool(thread_name_prefix="asyncio"))
    except RuntimeError as error:
        asyn.loop[0].close()
        asyn.loop[0] = None
        raise OSError(EAGAIN, f"fsspec's clients cannot be used: {error}") from error


def sync(loop: Any, ask: Callable[[], Any]) -> Any:
    """The result of a coroutine on fsspec's loop."""
    return module("fsspec.asyn").sync(loop, ask, timeout=_TIMEOUT_S)  # brings asyncio along, which few need


def send_once(session: Any) -> None:
    """Keeps aiohttp from sending a PUT or DELETE again over a new connection when one breaks: there is no public switch."""
    session._retry_connection = False


def whole(moment: datetime) -> float:
    """The time in whole seconds: not all services tell more."""
    return float(int(moment.timestamp()))


def cut(paths: Sequence[str], most: int) -> Iterator[Sequence[str]]:
    """Paths in lists of at most so many."""
    return (paths[at : at + most] for at in range(0, len(paths), most))


def delete_each(fs: Any, bucket: str, paths: Sequence[str]) -> None:
    """Deletes objects where the service has no request for many, or refuses it, or has not deleted all."""
    for path in paths:
        with suppress(FileNotFoundError):
            fs.rm_file(f"{bucket}/{path}")


def unless_absent(told: tuple[Any, BaseException | None]) -> tuple[bytes, Version] | None:
    """What was read, or None if nothing is there. Raises OSError for any other answer."""
    value, error = told
    if error is None:
        found: tuple[bytes, Version] = value
        return found
    if value == 404:
        return None
    if value in (401, 403):
        raise PermissionError(EACCES, str(error)) from error
    raise error if isinstance(error, OSError) else OSError(EIO, str(error)) from error


def unanswered(status: int, text: object, path: str) -> OSError:
    """The error of a request that may be made again, in the words by which `asking` knows what it says."""
    if status in (401, 403):
        return PermissionError(EACCES, f"status code: {status}: {text!r}", path)
    return OSError(EIO, f"status code: {status}: {text!r}" if status else f"HTTP error: {text!r}", path)


def answer(status: Any, error: BaseException | None, path: str, *, is_made_here: bool = False) -> Answer:
    """What a conditional request was told: the status of its error, or 0 if nobody answered.

    Raises:
        PermissionError, FileNotFoundError, OSError: a refusal that proves that nothing was changed.
    """
    if error is None:
        return Answer.OK
    if status in (409, 412) or (status == 404 and not is_made_here):
        return Answer.NO
    if status in (401, 403):
        raise PermissionError(EACCES, str(error), path) from error
    if status == 404:
        raise FileNotFoundError(ENOENT, "the bucket does not exist", path) from error
    if 400 <= status < 500 and status not in (408, 429):
        raise OSError(EIO, str(error), path) from error
    logger.warning("it is not known whether a change was made: %s", error)
    return Answer.LOST
