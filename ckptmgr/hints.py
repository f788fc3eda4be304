"""Hints for other tools beside the steps of a run, such as TensorFlow's ``checkpoint`` file: kept right, and never believed.

The records alone are the truth, and hints follow them: they are written after every commit, and before anything that they
may name is deleted, so that what they name is there at any moment. Only formats in which ckptmgr has saved a step of the run
get hints. That one cannot be written is logged and no more: no save or delete fails by it.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ckptmgr import backend as backends
from ckptmgr.backend import Backend, RunFiles
from ckptmgr.errors import BackendNotFoundError
from ckptmgr.finding import Known, Run
from ckptmgr.foreign import Foreign
from ckptmgr.ledger import Found, Unreadable
from ckptmgr.manifest import ASSET, TREE, Manifest, folder_name
from ckptmgr.step import StepInfo

ROUNDS = 5  # of looking again: of two who save at once, the last one to write has seen both steps

log = logging.getLogger(__name__)


class _Hinting(Backend, RunFiles, Protocol):
    """A backend that has hints."""


class _Entry(NamedTuple):
    """What hints need to know of a step; of one of ours the manifest, which names its files."""

    info: StepInfo
    manifest: Manifest | None


@dataclass(frozen=True, slots=True)
class Hints:
    """The hints of a run; `Run.backend` stands in for the installed one of its name."""

    run: Run

    def follow(self, backend: Backend) -> bool:
        """Whether there are hints to write when a step of that format is saved."""
        return self._hinting(backend.name) is not None

    def refresh(self) -> None:
        """Writes the hints as the run is now, and looks again until it has not changed meanwhile."""
        with self._logged():
            for _ in range(ROUNDS):
                if not self._write(self._entries(), []):
                    return

    def contents(self, steps: Iterable[Known]) -> dict[str, bytes]:
        """The hints that a run with these steps, oldest first, should have, by their names. Nothing is read or written."""
        entries = list(map(_entry, steps))
        return {name: data for each in self._all_hinting(entries) for name, data in each.run_files(_stems(each, entries)).items()}

    @contextmanager
    def without(self, gone: Iterable[Known], left: Iterable[Known]) -> Iterator[None]:
        """Hints that name only what is ``left`` while what is ``gone`` is deleted inside, and then what the run has.

        Formats without hints cost nothing here: nothing is read for them.
        """
        with self._replaced(map(_entry, left), map(_entry, gone)):
            yield

    @contextmanager
    def deleting(self, step: int, found: Iterable[Found | Unreadable]) -> Iterator[None]:
        """Like `without`, for a step that has these records and is deleted."""
        gone = [
            _of_manifest(each.name, each.record.manifest) for each in found if isinstance(each, Found) and each.record.manifest
        ]
        is_hinted = any(self._hinting(entry.info.backend) for entry in gone)
        left = [entry for entry in self._entries() if entry.info.step != step] if is_hinted else []
        with self._replaced(left, gone):
            yield

    def replaced(self, name: str, manifest: Manifest) -> None:
        """Hints that do not name an attempt any more that another one has replaced, and whose files are about to go."""
        with self._logged():
            if self._hinting(manifest.backend):
                self._write(self._entries(), [_of_manifest(name, manifest)])

    @contextmanager
    def _replaced(self, left: Iterable[_Entry], gone: Iterable[_Entry]) -> Iterator[None]:
        is_changed = True  # what fails now may go well when files are deleted: a disk is no longer full
        with self._logged():
            is_changed = self._write(list(left), list(gone))
        try:
            yield
        finally:
            if is_changed:
                self.refresh()

    @contextmanager
    def _logged(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            log.warning("hints for other tools in %r may be out of date: %s", self.run.folder.location(), error)

    def _entries(self) -> list[_Entry]:
        return list(map(_entry, self.run.steps().known))

    def _write(self, steps: Sequence[_Entry], gone: Sequence[_Entry]) -> bool:
        """Whether anything had to be changed."""
        changed = [self._write_of(backend, steps, gone) for backend in self._all_hinting([*steps, *gone])]
        return any(changed)

    def _all_hinting(self, entries: Iterable[_Entry]) -> list[_Hinting]:
        names = {entry.info.backend for entry in entries if not entry.info.is_foreign}
        return [backend for name in sorted(names) if (backend := self._hinting(name))]

    def _write_of(self, backend: _Hinting, steps: Sequence[_Entry], gone: Sequence[_Entry]) -> bool:
        folder = self.run.folder
        new = backend.run_files(_stems(backend, steps))
        ordered = sorted([*steps, *gone], key=lambda entry: entry.info.order)
        old = backend.run_files(_stems(backend, ordered)) if gone else {}
        found = {name: folder.read(name) for name in {**new, **old}}
        changed = [name for name, data in new.items() if (read := found[name]) is None or read[0] != data]
        for name in changed:
            folder.write(name, new[name])
        stale = [name for name in old if name not in new and found[name] is not None]
        if stale:
            folder.delete(stale)
        return bool(changed or stale)

    def _hinting(self, name: str) -> _Hinting | None:
        own = self.run.backend
        try:
            backend = own if own is not None and own.name == name else backends.find(name)
        except (BackendNotFoundError, ImportError):
            return None  # whoever has it will write them
        return backend if isinstance(backend, RunFiles) else None


def _entry(known: Known) -> _Entry:
    return _Entry(known.info, None if isinstance(known, Foreign) else known.manifest)


def _of_manifest(name: str, manifest: Manifest) -> _Entry:
    return _Entry(manifest.info(frozenset(), name=name, path=""), manifest)


def _tensor_files(manifest: Manifest) -> list[str]:
    return [entry.name for entry in manifest.files if entry.name != TREE and not entry.extra.get(ASSET)]


def _stems(backend: Backend, steps: Iterable[_Entry]) -> list[tuple[str, StepInfo]]:
    """The steps of this format with the stems of their files, relative to the run's folder."""
    made: list[tuple[str, StepInfo]] = []
    for info, manifest in steps:
        if info.backend != backend.name:
            continue
        if manifest is None:
            made.append((info.name, info))
            continue
        sets = [*backend.file_sets(_tensor_files(manifest))]
        if len(sets) == 1:  # what else there may be, another tool could not tell either
            made.append((f"{info.name}/{folder_name(info.attempt)}/{sets[0]}", info))
    return made
