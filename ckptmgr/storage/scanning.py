"""What lies in one folder of a local file system: regular files, folders, and unfinished files under temporary names.

Whatever else is there (links, pipes, devices, the store's own lock) is as good as absent.
"""

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from ckptmgr.storage.folders import ABSENT, Root, names_of_prefix, naming
from ckptmgr.storage.newfile import TEMPORARY
from ckptmgr.storage.rereading import proof_of
from ckptmgr.storage.store import Head

LOCK = ".ckptmgr.lock"


class Scanned(NamedTuple):
    """What lies directly below a prefix, each in the order of names. ``is_moment``: as it was at one moment, by a proof."""

    files: dict[str, Head]
    folders: Sequence[str]
    temporary: dict[str, Head]
    links: Sequence[str]
    is_moment: bool


def scan(root: Root, prefix: str, *, follow_links: bool) -> Scanned:
    """What lies directly below a prefix. With ``follow_links`` a link to a file is one of the files."""
    files: dict[str, Head] = {}
    temporary: dict[str, Head] = {}
    folders = []
    links = []
    is_moment = False
    names = names_of_prefix(prefix)
    try:
        with naming(root.location(names)), root.folder(names) as folder, os.scandir(folder) as entries:
            changed, proof = os.fstat(folder).st_ctime, proof_of(folder)
            found = sorted(entries, key=lambda entry: entry.name)
            is_moment = proof is not None and proof_of(folder) == proof
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif _is_file(entry, follow_links) and entry.name != LOCK:
                    kind = temporary if TEMPORARY.fullmatch(entry.name) else files
                    with suppress(FileNotFoundError):  # deleted since the folder was read
                        kind[entry.name] = head_of(entry.stat(follow_symlinks=follow_links), changed)
                elif entry.is_symlink():
                    links.append(entry.name)
    except OSError as error:
        if error.errno not in ABSENT:
            raise
    return Scanned(files, folders, temporary, links, is_moment)


def head_of(status: os.stat_result, folder_changed: float = math.inf) -> Head:
    """Size and time of a file; see `PosixStore.head`."""
    # A file of several names changes whenever another folder gets or loses one; in this folder only when this changes too.
    return Head(status.st_size, min(status.st_ctime, folder_changed) if status.st_nlink > 1 else status.st_ctime)


def _is_file(entry: os.DirEntry[str], follow_links: bool) -> bool:
    try:
        return entry.is_file(follow_symlinks=follow_links)
    except OSError:  # a link that leads nowhere, or to itself
        return False
