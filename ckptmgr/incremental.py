"""Saves that do not write again what an older step has: the unit is the file, and what decides is its content.

The law: a file is taken over only if all bytes that would be written have the size, the crc32c and the 128-bit hash that the
manifest of a committed step tells of one of its files. It then gets a further name in the new step's own folder (a hard
link), or, where the store has no such names, the new manifest refers to it, and before that a hold in the record of the step
that wrote it keeps it (`commit.hold`). References never chain: they name the attempt that has the bytes. Whatever is not
certain, the file is written in full. On a local disk a file is read before it is shared, if this manager neither wrote it nor
shared it before, and whenever a step is replaced, which thereby repairs a damaged one.
"""

import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import NamedTuple

from ckptmgr import commit, saving, transfer
from ckptmgr.commit import Attempt
from ckptmgr.contenthash import ContentHash, is_comparable
from ckptmgr.finding import Run
from ckptmgr.layout import Digests, FileLayout, Groups, Late, Layout, Part
from ckptmgr.ledger import Found, look
from ckptmgr.manifest import FileEntry, Manifest, Origin, folder_name
from ckptmgr.saving import Plan, Prepared
from ckptmgr.storage import Buffer, Folder, LinkingStore, Stored, is_local
from ckptmgr.transfer import Problem, Progress, WrittenFile
from ckptmgr.transfer.lanes import Lane

HASH = "hash"  # the field of a file in the manifest
GROUP_NBYTES = 1 << 20  # a top-level key with less is not worth a file, and a file with less is not worth a hold

logger = logging.getLogger(__name__)

Marks = Mapping[int, str]  # the label of a file's first bytes, by their number: an early sign that a file is another one


def groups(patterns: bool | str | Sequence[str]) -> Groups | None:
    """How tensors are grouped into files: by the first pattern (a glob on names) that matches, or, if True, by top-level key.

    What no pattern matches is one more group; so are tensors that stand directly in the state, with keys of under 1 MiB.
    None for False.

    Raises:
        TypeError: neither a bool nor patterns. ValueError: no pattern. The groups raise it for one that matches nothing.
    """
    if isinstance(patterns, bool):
        return _by_key if patterns else None
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"incremental must be True, or globs on names as ['base/*'], not {patterns!r}")
    if not patterns:
        raise ValueError("incremental must be True, or at least one glob on names as ['base/*']")
    return functools.partial(_by_pattern, patterns)


def _by_key(parts: Sequence[Part]) -> list[list[Part]]:
    keys = [top if slash else "" for top, slash, _ in (part.name.partition("/") for part in parts)]
    sizes = dict.fromkeys(keys, 0)
    for key, part in zip(keys, parts, strict=True):
        sizes[key] += part.nbytes
    return _cut((key if sizes[key] >= GROUP_NBYTES else "" for key in keys), parts)


def _by_pattern(patterns: Sequence[str], parts: Sequence[Part]) -> list[list[Part]]:
    if unused := [pattern for pattern in patterns if not any(fnmatchcase(part.name, pattern) for part in parts)]:
        text = f"incremental={unused[0]!r} matches no tensor: patterns are globs on names as 'model/base/*'"
        raise ValueError(f"{text}, and a tied tensor has only its first name")
    keys = (next((pattern for pattern in patterns if fnmatchcase(part.name, pattern)), "") for part in parts)
    return _cut(keys, parts)


def _cut(keys: Iterable[str], parts: Sequence[Part]) -> list[list[Part]]:
    cut: dict[str, list[Part]] = {}
    for key, part in zip(keys, parts, strict=True):
        cut.setdefault(key, []).append(part)
    return list(cut.values())


class Previous(NamedTuple):
    """The step whose files may be taken over: the name of its folder, its manifest, and marks of its files if they are known.

    ``is_trusted`` if they need not be read for that, because this manager wrote or read each.
    """

    name: str
    manifest: Manifest
    marks: Mapping[str, Marks]
    is_trusted: bool

    def alike(self, nbytes: int | None) -> list[FileEntry]:
        """Its files of that size whose hash can be compared."""
        return [entry for entry in self.manifest.files if entry.nbytes == nbytes and is_comparable(entry.extra.get(HASH))]

    def origin(self, entry: FileEntry) -> Origin:
        """Who has the bytes of one of its files, and where."""
        attempt = self.manifest.attempt
        return entry.origin or Origin(self.manifest.step, attempt, f"{self.name}/{folder_name(attempt)}/{entry.name}")


class _Last(NamedTuple):
    name: str
    step: int
    attempt: str
    marks: Mapping[str, Marks]


class Incremental:
    """Writes steps of a run. It remembers the one it wrote last, to spare a listing and to know early what has changed."""

    def __init__(self, run: Run, patterns: bool | str | Sequence[str]) -> None:
        self.groups = groups(patterns)
        self._run = run
        self._last: _Last | None = None

    def write_step(self, attempt: Attempt, prepared: Prepared, *, progress: Progress | None) -> tuple[tuple[FileEntry, ...], int]:
        """All files of the step as `saving.write_step` gives them, and how many bytes of them were not written.

        These are files that equal those of the previous step.
        """
        if self.groups is None:
            return saving.write_step(attempt.folder, prepared.plan, prepared.assets, progress=progress), 0
        previous, plan = self._previous(), prepared.plan
        taken: dict[str, _Taken] = {}
        if previous and prepared.overwrite and self._replaces(attempt):
            previous = previous._replace(is_trusted=False)
        for file in plan.layout.files:
            if previous and (found := _taken(self._run.folder, attempt, previous, plan, file)):
                taken[file.name] = found
        folder = _HashingFolder(attempt.folder.store, attempt.folder.prefix)
        known = {name: (each.written, each.digests) for name, each in taken.items()}
        entries = saving.write_step(folder, plan, prepared.assets, progress=progress, known=known)
        for each in taken.values():
            logger.info("step %d has %r without writing its %d bytes", attempt.step, each.entry.name, each.entry.nbytes)
        contents = {
            file.name: taken[file.name].content if file.name in taken else folder.contents[file.name]
            for file in plan.layout.files
            if _is_early(file)
        }
        marks = {name: content.marks for name, content in contents.items()}
        self._last = _Last(attempt.name, attempt.step, attempt.attempt, marks)
        told = tuple(_told(entry, taken.get(entry.name), contents.get(entry.name)) for entry in entries)
        return told, sum(each.entry.nbytes for each in taken.values())

    def _replaces(self, attempt: Attempt) -> bool:
        """Whether the step is there already. If it cannot be told the save will fail, or the record was damaged."""
        found = look(self._run.folder, attempt.name, attempt.step)
        return isinstance(found, Found) and found.record.manifest is not None

    def _previous(self) -> Previous | None:
        """The step that was saved here last, if it is still there, else the newest."""
        if last := self._last:
            found = look(self._run.folder, last.name, last.step)
            if isinstance(found, Found) and found.record.manifest and found.record.manifest.attempt == last.attempt:
                return Previous(last.name, found.record.manifest, last.marks, is_trusted=True)
        committed = self._run.steps().committed
        return Previous(committed[-1].found.name, committed[-1].manifest, {}, is_trusted=False) if committed else None


class _Content:
    """What a file's bytes hash to, while they go by window by window."""

    def __init__(self) -> None:
        self.marks: dict[int, str] = {}
        self._hash = ContentHash()
        self._nbytes = self._windows = 0

    def add(self, window: Sequence[Buffer]) -> int | None:
        """Goes on with a window; gives the number of bytes so far where that is a mark: after the windows 1, 2, 4, 8, ..."""
        for buffer in window:
            self._hash.add(buffer)
            self._nbytes += len(buffer) if isinstance(buffer, bytes | bytearray) else buffer.nbytes
        self._windows += 1
        if self._windows & (self._windows - 1):
            return None
        self.marks[self._nbytes] = self.label
        return self._nbytes

    @property
    def label(self) -> str:
        return self._hash.label


@dataclass(frozen=True, slots=True)
class _HashingFolder(Folder):
    """A folder whose new files are hashed by a thread of its own while the store writes them."""

    contents: dict[str, _Content] = field(default_factory=dict, compare=False)

    def put(self, name: str, windows: Iterable[Sequence[Buffer]], nbytes: int) -> Stored:
        content = self.contents[name] = _Content()
        with Lane(1) as lane:
            return self.store.put(self.key(name), _beside(lane, content, windows), nbytes)


def _beside(lane: Lane, content: _Content, windows: Iterable[Sequence[Buffer]]) -> Iterator[Sequence[Buffer]]:
    for window in windows:
        lane.submit(functools.partial(content.add, window))
        yield window
        lane.wait()  # from here on its owner may use it again


class _Differs(Exception):
    """The bytes are none of the older files'."""


@dataclass(frozen=True, slots=True)
class _ComparingFolder(Folder):
    """A folder that keeps nothing: what is put there is hashed, for as long as it may equal one of the older files."""

    marks: Sequence[Marks] = field(default=(), compare=False)
    content: _Content = field(default_factory=_Content, compare=False)

    def put(self, name: str, windows: Iterable[Sequence[Buffer]], nbytes: int) -> Stored:
        for window in windows:
            at = self.content.add(window)
            if at is not None and not any(marks.get(at) in (None, self.content.marks[at]) for marks in self.marks):
                raise _Differs
        return Stored(nbytes)


class _Taken(NamedTuple):
    """A file that is taken over: its entry in the new manifest, its checksums, and what it hashed to."""

    entry: FileEntry
    written: WrittenFile
    digests: Digests
    content: _Content


def _taken(root: Folder, attempt: Attempt, previous: Previous, plan: Plan, file: FileLayout) -> _Taken | None:
    """The planned file as one of the previous step's, if it equals that and could be taken over."""
    alike = previous.alike(file.nbytes) if _is_early(file) else []
    if not alike:
        return None
    folder = _ComparingFolder(root.store, marks=[previous.marks.get(entry.name, {}) for entry in alike])
    try:
        seen = transfer.write(folder, Layout((file,), plan.layout.digests), plan.source)
    except _Differs:
        return None
    written, label = seen.files[file.name], folder.content.label
    for entry in alike:
        if (entry.crc32c, entry.extra[HASH]) == (written.crc32c, label):
            new = FileEntry(file.name, entry.nbytes, entry.crc32c, extra={HASH: label})
            origin = previous.origin(entry)
            if not _is_whole(root, origin, new, full=not previous.is_trusted and is_local(root.store)):
                continue
            if _linked(root, origin, attempt.folder, new):
                return _Taken(new, written, seen.digests[file.name], folder.content)
            if new.nbytes >= GROUP_NBYTES and commit.hold(root, origin.home, origin.step, origin.attempt, attempt):
                return _Taken(replace(new, origin=origin), written, seen.digests[file.name], folder.content)
    return None


def _is_whole(root: Folder, origin: Origin, new: FileEntry, *, full: bool) -> bool:
    """Whether the older file is there in its size, and, if ``full``, with all its bytes."""
    try:
        problems = transfer.check(root, [(origin.path, new.nbytes, new.crc32c)], full=full)
    except OSError as error:  # a bad disk is no reason not to save
        problems = [Problem(origin.path, None, str(error))]
    for problem in problems:
        logger.warning("%s: it is written again", problem.message)
    return not problems


def _told(entry: FileEntry, taken: _Taken | None, content: _Content | None) -> FileEntry:
    """What the manifest says of a file."""
    if taken:
        return taken.entry
    return replace(entry, extra={**entry.extra, HASH: content.label}) if content else entry


def _is_early(file: FileLayout) -> bool:
    """Whether all bytes of the file are known before others are written."""
    return not any(isinstance(piece, Late) for piece in file.pieces)


def _linked(root: Folder, origin: Origin, folder: Folder, new: FileEntry) -> bool:
    store = root.store
    return isinstance(store, LinkingStore) and store.link(root.key(origin.path), folder.key(new.name))
