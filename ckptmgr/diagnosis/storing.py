"""What is to be known of the place where a run lies: what it promises, whether there is room, and how its clock goes."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from time import time

from ckptmgr.diagnosis.cures import Cures, shell
from ckptmgr.diagnosis.findings import Finding
from ckptmgr.diagnosis.looking import Look
from ckptmgr.diagnosis.words import aged, sized
from ckptmgr.storage import FilesystemStore, ObjectStore, PosixStore
from ckptmgr.storage.scanning import LOCK

SKEW_S = 60.0  # that clocks may differ without a word
MOUNTS = "/proc/self/mountinfo"

_FLEETING = {"tmpfs": "memory", "ramfs": "memory", "overlay": "a container's own layer", "aufs": "a container's own layer"}
_FAR = ("nfs", "cifs", "smb", "9p", "fuse", "lustre", "glusterfs", "ceph", "afs", "beegfs", "gpfs", "vboxsf", "virtiofs")


@dataclass(frozen=True, slots=True)
class Storing:
    """Finds it for a run as it was seen."""

    look: Look
    cures: Cures

    def findings(self) -> Iterator[Finding]:
        """One for each sort. Nothing is written to find out."""
        store = self.look.root.store
        if isinstance(store, PosixStore):
            yield from self._kind()
            yield from self._writable()
            yield from self._room()
            yield from self._future()
        elif isinstance(store, ObjectStore | FilesystemStore):
            yield from self._conditions(store)
        if isinstance(store, ObjectStore):
            yield from self._skew(store)

    def _kind(self) -> Iterator[Finding]:
        where = self.look.root.location()
        kind = filesystem(where)
        if kind in _FLEETING:
            found = f"{where!r} is on {kind}: {_FLEETING[kind]}"
            means = "Steps are whole there, but not for long: they are gone when the machine or the container is."
            heals = "Save to a disk or a bucket, or copy the steps there (`ckptmgr cp`)."
            yield Finding("note", "fleeting-storage", found, means, heals)
        elif kind.startswith(_FAR):
            found = f"{where!r} is on {kind}, which other machines may have mounted too"
            means = "Other machines may see a step seconds later. Files are durable as far as the server keeps its word."
            heals = "Nothing, if its locks work between machines (on NFS: no `nolock` or `local_lock`)."
            yield Finding("note", "far-storage", found, means, heals)

    def _writable(self) -> Iterator[Finding]:
        where = self.look.root.location()
        if not os.access(where, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            found = f"{where!r} cannot be written by this user"
            read_only = bool(os.statvfs(where).f_flag & os.ST_RDONLY)
            means = "Restores work. Saves, pins, deletions and sweeps from here fail." + " It is mounted read-only." * read_only
            heals = "Nothing, if this user only restores. Else give the permission" + (
                ", or mount it for writing." * read_only or "."
            )
            is_mine = os.stat(where).st_uid == os.geteuid() and not read_only
            yield Finding("note", "not-writable", found, means, heals, shell("chmod", "u+rwx", where) if is_mine else ())
        lock = os.path.join(where, LOCK)
        if os.path.isdir(lock) or os.path.islink(lock):
            found = f"{lock!r} is a {'link' if os.path.islink(lock) else 'folder'}, and should be the run's lock file"
            means = "Restores work. Saves, pins, deletions and sweeps fail."
            commands = shell("rm" if os.path.islink(lock) else "rmdir", lock)
            yield Finding("problem", "lock", found, means, "Take it away: it is made anew.", commands, file=LOCK)
        elif os.path.lexists(lock):
            yield from self._lock(lock)

    def _lock(self, lock: str) -> Iterator[Finding]:
        try:
            fd = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            found = f"the lock file {lock!r} cannot be opened: {error.strerror}"
            means = "Restores work. Saves, pins, deletions and sweeps from here fail."
            commands = shell("chmod", "a+r", lock) if error.errno == errno.EACCES else ()
            yield Finding("warning", "lock", found, means, "Give this user the right to read it.", commands, file=LOCK)
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, and given back at once: nobody waits for it
            fcntl.flock(fd, fcntl.LOCK_UN)
        except BlockingIOError:
            pass  # somebody has it, so there are locks
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                yield _weak(self.look.root.location(), "has no locks")
        finally:
            os.close(fd)

    def _room(self) -> Iterator[Finding]:
        where = self.look.root.location()
        newest = self.look.committed[-1].manifest if self.look.committed else None
        with suppress(OSError):
            status = os.statvfs(where)
            free = status.f_bavail * status.f_frsize
            need = newest.nbytes if newest else 0
            if free < need or (status.f_files and not status.f_favail):
                found = f"{sized(free)} are free on the disk of {where!r}"
                found += f", and the newest step has {sized(need)}" if free < need else ", and no further file can be made"
                means = "Nothing is lost: a save that finds no room fails before it has written anything, and older steps stay."
                heals = "Make room: leftovers and files by sweep, older steps by gc (it shows what goes, and asks)."
                commands = (self.cures.sweep(), self.cures.command("gc", "--keep-last", 3))
                yield Finding("warning", "no-room", found, means, heals, commands)

    def _future(self) -> Iterator[Finding]:
        """Files of a time that has not come: the clock of the file server, or of this machine, was turned back."""
        heads = [each.listed.record for each in self.look.steps.values() if each.listed.record]
        ahead = max((head.modified for head in heads), default=0.0) - self.look.now
        if ahead > SKEW_S:
            found = f"files of this run are from {aged(ahead)} in the future"
            means = (
                "Nothing is lost: the order of steps does not go by time. Sweep takes such files for alive until that time comes."
            )
            heals = "Set the clock of this machine, or of the file server, right."
            yield Finding("warning", "clock", found, means, heals)

    def _conditions(self, store: ObjectStore | FilesystemStore) -> Iterator[Finding]:
        where = self.look.root.location()
        if store.honours is False:
            yield _weak(where, "does not honour conditional writes")
        elif store.honours is None:
            found = f"whether {where!r} honours conditional writes is not known: it takes a write to find out"
            means = "The first save of a process tries, and warns if it does not; then one process at a time may write."
            yield Finding("note", "untried-conditions", found, means)

    def _skew(self, store: ObjectStore) -> Iterator[Finding]:
        skew = store.now() - time()  # of an answer's header: nothing is written
        if abs(skew) > SKEW_S:
            found = f"the clock of this machine is {aged(abs(skew))} {'behind' if skew > 0 else 'ahead of'} the store's"
            means = "Nothing is lost. Retention by time is off by it; and at 15 minutes S3 refuses all requests."
            yield Finding("warning", "clock", found, means, "Set the clock of this machine right.")


def filesystem(path: str, mounts: str = MOUNTS) -> str:
    """The kind of the file system that ``path`` is on, as Linux calls it; empty where that is not told."""
    real, found, best = os.path.realpath(path), "", -1
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                before, _, after = line.partition(" - ")
                point = before.split(" ")[4].encode("latin-1", "replace").decode("unicode_escape")
                if len(point) >= best and (real == point or real.startswith(point.rstrip("/") + "/")):
                    found, best = after.split(" ")[0], len(point)
    except (OSError, IndexError, ValueError):
        return ""
    return found


def _weak(where: str, what: str) -> Finding:
    found = f"{where!r} {what}"
    means = (
        "Nothing is lost while one process at a time saves, deletes or sweeps there. Two at once could undo each other's changes."
    )
    heals = (
        "Let one process at a time write; readers are safe. Or keep the run on a local disk or in a bucket of S3, GCS or Azure."
    )
    return Finding("note", "weak-storage", found, means, heals)
