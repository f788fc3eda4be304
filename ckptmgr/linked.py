"""Steps that are symbolic links: somebody has moved one away, and left a link in its place.

Links in a run are never followed. Behind one may lie the folder of another run, whose writers hold another lock, and what
retention deletes would be gone from where nobody looks for it. The law: a link that stands where a step would be is told as
a step that is refused; it is never passed over without a word, and never changed or deleted.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from ckptmgr import foreign
from ckptmgr.backend import Backend
from ckptmgr.errors import UnsafeCheckpointError
from ckptmgr.ledger import Unreadable
from ckptmgr.manifest import MANIFEST
from ckptmgr.naming import StepNaming, parse_foreign
from ckptmgr.storage import Folder, Head, PosixStore


class Link(NamedTuple):
    """A symbolic link with the name of a step, or that of its record; ``name`` is relative to the run's folder."""

    name: str
    step: int


def names(root: Folder) -> Sequence[str]:
    """The names of links in the folder of a run, which only local and mounted file systems have."""
    return root.store.list(root.prefix).links if isinstance(root.store, PosixStore) else ()


def links(root: Folder, naming: StepNaming, linked: Sequence[str], folders: Collection[str]) -> list[Link]:
    """The links where steps of ours would be, in the order of names, and then those of records.

    ``linked`` are the names of links in the run, ``folders`` those of folders that have no record.
    """
    found = [Link(name, step) for name in linked if (step := naming.parse(name)) is not None]
    for name in folders if isinstance(root.store, PosixStore) else ():
        if (step := naming.parse(name)) is not None and os.path.islink(root.location(f"{name}/{MANIFEST}")):
            found.append(Link(f"{name}/{MANIFEST}", step))
    return found


def hiding(
    root: Folder,
    naming: StepNaming,
    linked: Sequence[str],
    files: Mapping[str, Head],
    folders: Collection[str],
    *,
    taken: Collection[int],
    own: Backend | None = None,
) -> list[Link]:
    """The links where steps would be, ours or other tools'. One to another step of the run hides none.

    ``linked``, ``files`` and ``folders`` are those of the run, without folders that have a record; other tools' steps do not
    count where their numbers are ``taken``.
    """
    found = links(root, naming, linked, folders)
    theirs = (link for link in _foreign_links(root, naming, linked, files, own) if link.step not in taken)
    found += [link for link in theirs if link not in found]
    return [link for link in found if not _is_alias(root, naming, link)]


def refused(root: Folder, link: Link) -> Unreadable:
    """What stands in the place of that step, with the error for whoever wants it."""
    where = root.location(link.name)
    try:
        target = os.path.join(os.path.dirname(where), os.readlink(where))
    except OSError:  # it was taken away just now
        target = where
    text = f"{where!r} (step {link.step}) is a symbolic link to {os.path.normpath(target)!r}, and links in a run are not followed"
    cure = "put what it leads to in its place, or take it away; 'ckptmgr cp' copies steps into a run on another disk"
    name = link.name.partition("/")[0]
    return Unreadable(name, link.step, UnsafeCheckpointError(f"{text}: {cure}", file=link.name), where)


def _foreign_links(
    root: Folder, naming: StepNaming, linked: Sequence[str], files: Mapping[str, Head], own: Backend | None
) -> Iterator[Link]:
    left = [name for name in linked if name not in files]  # those are read, where that was asked for
    heads = {name: Head(0, 0.0) for name in left if os.path.isfile(root.location(name))}
    for name in left:
        if name not in heads and (step := parse_foreign(name)) is not None and _may_be_step(root.location(name), own):
            yield Link(name, step)
    # A checkpoint of which a file is a link, by the names of all of its files.
    for each in foreign.file_sets(root, naming, {**files, **heads}, own) if heads else ():
        yield from (Link(name, each.step) for name in [name for name in each.files if name in heads][:1])


def _may_be_step(where: str, own: Backend | None) -> bool:
    """Whether a checkpoint is in the folder behind a link; if nothing is behind it, whether its name can hardly mean else."""
    name = os.path.basename(where)
    if not os.path.exists(where):
        return not name.isdecimal()
    files = PosixStore(where).list("").files
    return any(backend.file_sets(files) or backend.recognizes(name, b"", files) for backend in foreign.installed(own) if files)


def _is_alias(root: Folder, naming: StepNaming, link: Link) -> bool:
    above, name = os.path.split(os.path.realpath(root.location(link.name)))
    is_seen = naming.parse(name) is not None or parse_foreign(name) is not None or os.path.isfile(os.path.join(above, name))
    return is_seen and above == os.path.realpath(root.location())
