"""Whether a store honours conditions, found out by trying, and what is done where it does not: read, compare, put.

The law: nobody is told `Answer.OK` for a change that was not made. Without conditions the change may undo another one that
was made at the same time, so one process at a time may write there: a warning says so, once for each root.
"""

import logging
import re
import secrets
import threading
import warnings
from collections.abc import Callable
from typing import Protocol

from ckptmgr.storage.store import Answer, Version

logger = logging.getLogger(__name__)

_TRIES = 3
PROBE = ".ckptmgr-probe-"
_PROBE = re.compile(re.escape(PROBE) + "[0-9a-f]{16}")
_lock = threading.RLock()
_honours: dict[str, bool] = {}  # by root: it does not change while a process lives
_warned: set[str] = set()


class Conditional(Protocol):
    """A store, and its conditional put as it is: ``version`` None is for what is not there. It tells the new one, if it can."""

    def read(self, key: str) -> tuple[bytes, Version] | None: ...
    def delete(self, keys: list[str]) -> None: ...
    def send(self, key: str, data: bytes, version: Version | None) -> tuple[Answer, Version | None]: ...


def honours(store: Conditional, root: str) -> bool:
    """Whether the store at ``root`` refuses what it should refuse: tried once in a process.

    Raises:
        OSError: it may not be written to, or gives no answers.
    """
    with _lock:
        if root not in _honours:
            _honours[root] = _try(store, root)
        if not _honours[root] and root not in _warned:
            _warned.add(root)
            text = f"{root!r} does not honour conditional writes: let only one process at a time save, delete or sweep there"
            warnings.warn(text, stacklevel=2)
        return _honours[root]


def known(root: str) -> bool | None:
    """What `honours` has found out in this process; None if nobody has asked."""
    return _honours.get(root)


def is_probe(name: str) -> bool:
    """Whether a file of this name directly below a root was put there to try the store; it is of no use once that is done."""
    return _PROBE.fullmatch(name) is not None


def check_then(store: Conditional, key: str, version: Version | None, change: Callable[[], object]) -> Answer:
    """Makes a change if the file has that version (None: is not there). Two processes may both be right, and one change lost."""
    with _lock:
        found = store.read(key)
        if (found and found[1]) != version:
            return Answer.NO
        try:
            change()
        except PermissionError:
            raise
        except OSError as error:
            logger.warning("it is not known whether a change was made: %s", error)
            return Answer.LOST
        return Answer.OK


def _try(store: Conditional, root: str) -> bool:
    for _ in range(_TRIES):
        key = f"{PROBE}{secrets.token_hex(8)}"
        try:
            answers = _ask(store, key)
        except NotImplementedError:
            return False
        finally:
            store.delete([key])
        if Answer.LOST not in answers:
            return answers == [Answer.OK, Answer.NO, Answer.OK, Answer.NO]
    raise OSError(f"{root!r} gives no definite answers: is it reachable?")


def _ask(store: Conditional, key: str) -> list[Answer]:
    """Creates twice, and replaces twice what was there first."""
    answer, version = store.send(key, b"1", None)
    answers = [answer, store.send(key, b"2", None)[0]]
    if answers != [Answer.OK, Answer.NO]:
        return answers
    if version is None:
        found = store.read(key)
        if found is None:
            return [Answer.LOST]
        version = found[1]
    return answers + [store.send(key, data, version)[0] for data in (b"3", b"4")]
