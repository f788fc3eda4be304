"""Makes committed steps of what other tools wrote into the folder of a run.

A file set is copied byte for byte into an attempt of its own, checked, and committed; only then do the originals go. The law:
at any moment the step is there, whole, as the other tool's, or as ours, or as both. What is left of the originals if that
is interrupted goes when the step is adopted again, if it still is what was committed.

Nor does the order of steps ever change by it. Steps of other tools are older than all that are committed, so the newest of
them is adopted first, and becomes the oldest of these.
"""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ckptmgr import commit, foreign, transfer
from ckptmgr.box import Box
from ckptmgr.checkpoint import SKELETON
from ckptmgr.checksum import crc32c
from ckptmgr.errors import CorruptCheckpointError, StepExistsError, StepNotFoundError, UnsafeCheckpointError, shown
from ckptmgr.finding import Committed, Run
from ckptmgr.foreign import Foreign
from ckptmgr.layout import Part
from ckptmgr.manifest import ASSET, TREE, FileEntry, Manifest, is_plain, this_writer
from ckptmgr.source import TensorSource, paths_of
from ckptmgr.spec import TensorSpec
from ckptmgr.step import StepInfo
from ckptmgr.storage import Folder, Head
from ckptmgr.transfer import Progress
from ckptmgr.treefile import Row, TreeFile

ADOPTED = "adopted"  # the field of a manifest that has the stem of the files that were adopted

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Adoption:
    """How steps of other tools are adopted.

    ``run_id`` gives the run for their manifests. ``settle`` is called after a commit, before the originals are deleted, for
    whatever may name them; it does not raise.
    """

    run: Run
    run_id: Callable[[], str]
    settle: Callable[[], object]
    progress: Progress | None = None

    def adopt(self, step: int | None) -> list[StepInfo]:
        """Adopts a step, or all there are; gives them oldest first. See `CheckpointManager.adopt`."""
        steps = self.run.steps()
        for own in steps.committed:
            if ADOPTED in own.manifest.extra and step in (None, own.info.step):
                self._finish(own, steps.files)
        if step is None:
            return self._all(steps.foreign)
        known = next((known for known in steps.known if known.info.step == step), None)
        if known is None:
            raise self.run.not_found(step, steps)
        if isinstance(known, Foreign):
            _check_is_newest(known, steps.foreign)
            return [self._adopted(known)]
        if ADOPTED in known.manifest.extra:
            return [known.info]
        raise StepExistsError(f"step {step} is committed already, in {known.info.path!r}: there is nothing to adopt", step=step)

    def _all(self, steps: Sequence[Foreign]) -> list[StepInfo]:
        adopted: list[StepInfo] = []
        for known in reversed(steps):
            try:
                adopted.append(self._adopted(known))
            except (StepNotFoundError, StepExistsError) as error:  # somebody else was faster
                log.info("step %d is not adopted: %s", known.info.step, error)
            except (CorruptCheckpointError, UnsafeCheckpointError) as error:
                warnings.warn(f"step {known.info.step} is not adopted: {error}", RuntimeWarning, stacklevel=4)
        return adopted[::-1]

    def _adopted(self, known: Foreign) -> StepInfo:
        folder, step = self.run.folder, known.info.step
        if known.inside:
            text = f"step {step} has the folder {known.info.path!r} to itself, and other files there: migrate it into another run"
            raise UnsafeCheckpointError(text, step=step)
        content = content_of(folder, known)
        attempt = commit.begin(folder, self._name(known), step, overwrite=False)

        def manifest(_: int) -> Manifest:
            return Manifest(
                step=step,
                attempt=attempt.attempt,
                sequence=min([1, *(each.info.sequence for each in self.run.steps().committed)]) - 1,
                run=self.run_id(),
                created=known.info.created,
                backend=known.backend.name,
                nbytes=sum(entry.nbytes for entry in entries),
                files=entries,
                writer=this_writer(),
                extra={ADOPTED: known.info.name},
            )

        with attempt.undone_if_it_fails():
            entries = copy_files(folder, attempt.folder, known, content, self.progress)
            info = attempt.commit(self.run.naming, manifest)
        self.settle()
        if known.is_there(folder):
            self._delete([*known.files])
        else:
            log.warning("%r has changed since it was adopted as step %d, and is left", known.info.path, step)
        return info

    def _name(self, known: Foreign) -> str:
        """The folder of the new step: by the naming, or its stem, if that is such a name and tells what the step does not."""
        naming, stem = self.run.naming, known.info.name
        if naming.needs_metadata and naming.parse(stem) == known.info.step and stem not in known.files:
            return stem
        return naming.format(known.info.step)

    def _finish(self, known: Committed, files: Iterable[str]) -> None:
        """Deletes what is left of the originals of an adopted step, if it is what was committed."""
        left = [entry for entry in known.manifest.files if entry.name in files and entry.name != TREE]
        if not left:
            return
        problems = transfer.check(self.run.folder, [(entry.name, entry.nbytes, entry.crc32c) for entry in left])
        if problems:
            text = "%s: not what was adopted as step %d under that name, and left"
            log.warning(text, problems[0].message, known.info.step)
            return
        self.settle()
        self._delete([entry.name for entry in left])

    def _delete(self, names: Sequence[str]) -> None:
        """The file to open first: without it the rest is no step any more."""
        for name in reversed(names):
            self.run.folder.delete([name])


def _check_is_newest(known: Foreign, steps: Sequence[Foreign]) -> None:
    newer = [other.info.step for other in steps if other.info.order > known.info.order]
    if newer:
        text = f"step {known.info.step} would become newer than what other tools wrote after it ({shown(newer[::-1])})"
        raise ValueError(f"{text}: adopt these first, in this order, or all with adopt()")


class _Region(NamedTuple):
    """Where a tensor, or a slice of it, lies in one of the files."""

    file: str
    offset: int
    nbytes: int
    name: str
    spec: TensorSpec
    box: Box | None
    crc32c: int | None


class Content(NamedTuple):
    """What files hold, by their format: all names, regions in the order of the files, and the tensors that have none."""

    names: list[str]
    regions: list[_Region]
    decoded: list[tuple[str, TensorSpec]]
    tree: TreeFile  # without rows


def content_of(root: Folder, known: Foreign) -> Content:
    """What the files of a step in the run at ``root`` hold; no tensor's bytes are read.

    Raises:
        CorruptCheckpointError: tensors share bytes, or end behind their file.
        UnsafeCheckpointError: tensors lie in other files, or files have names that a step's cannot have.
    """
    place = known.place(root)
    with foreign.explained(root, known), known.backend.open(place, known.main) as source:
        return _content(known, source, place)


def _content(known: Foreign, source: TensorSource, folder: Folder) -> Content:
    regions: list[_Region] = []
    decoded: list[tuple[str, TensorSpec]] = []
    for name, spec in source.specs.items():
        extents = source.extents(name)
        if not extents:
            decoded.append((name, spec))
        for place, file, offset, box, value in extents:
            if place != folder or file not in known.files or not is_plain(file) or file == TREE:
                text = f"{known.info.path!r} has tensor {name!r} in {place.location(file)!r}, which cannot be adopted with it"
                raise UnsafeCheckpointError(text, file=file)
            regions.append(_Region(file, offset, Part(name, spec, box).nbytes, name, spec, box, value))
    order = {file: index for index, file in enumerate(known.files)}
    regions.sort(key=lambda region: (order[region.file], region.offset, region.nbytes))
    ends: dict[str, int] = {}
    for file, offset, nbytes, name, *_ in regions:
        if nbytes and not ends.get(file, 0) <= offset <= known.files[file].nbytes - nbytes:
            text = f"{folder.location(file)!r} gives the tensor {name!r} bytes that it cannot have"
            raise CorruptCheckpointError(text, step=known.info.step, file=file, tensor=name)
        ends[file] = max(ends.get(file, 0), offset + nbytes)
    skeleton, paths = source.metadata.get(SKELETON), paths_of(source)
    nesting = dict(paths) if skeleton is None else {}
    return Content([*source.specs], regions, decoded, TreeFile(skeleton, [], dict(source.aliases), paths=nesting))


def copy_files(
    root: Folder, target: Folder, known: Foreign, content: Content, progress: Progress | None = None
) -> tuple[FileEntry, ...]:
    """Copies the files and writes ``tree.json``; each byte is read once, and compared with the checksums of the format.

    ``root`` is the folder of the run that has the step, ``target`` that of a new attempt.

    Raises:
        CorruptCheckpointError: a tensor is damaged, or its format cannot read it in the copy.
    """
    entries: list[FileEntry] = []
    values: list[int] = []
    done, total = 0, known.info.nbytes
    for file, head in known.files.items():
        sums = _Sums([region for region in content.regions if region.file == file and region.nbytes])
        target.put(file, _windows(root, known, file, head, sums), head.nbytes)
        values += sums.checked(known)
        entries.append(FileEntry(file, head.nbytes, sums.file))
        done += head.nbytes
        if progress is not None:
            progress(done, total)
    if not known.is_there(root):
        raise StepNotFoundError(f"{known.info.path!r} was replaced while it was copied: adopt it again", step=known.info.step)
    _check_copy(target, known, content)
    data = _tree(content, values, known).encode()
    tree = TreeFile.decode(data, where=target.location(TREE))
    tree.check(known.files, where=target.location(TREE))
    target.write(TREE, data)
    return (*entries, FileEntry(TREE, len(data), crc32c(data)))


def copy_beside(root: Folder, target: Folder, known: Foreign) -> tuple[FileEntry, ...]:
    """Copies what lies beside the step's files in its own folder, as assets."""
    entries = []
    for file, head in known.beside.items():
        sums = _Sums([])
        target.put(file, _windows(root, known, file, head, sums), head.nbytes)
        entries.append(FileEntry(file, head.nbytes, sums.file, extra={ASSET: True}))
    return tuple(entries)


def _windows(root: Folder, known: Foreign, file: str, head: Head, sums: "_Sums") -> Iterator[list[np.ndarray[Any, Any]]]:
    folder, nbytes, most = known.place(root), head.nbytes, root.store.window_nbytes
    for at in range(0, nbytes, most):
        buffer = np.empty(min(most, nbytes - at), np.uint8)
        with foreign.explained(root, known):
            folder.read_into(file, at, [buffer])
        sums.add(buffer)
        yield [buffer]


class _Sums:
    """The crc32c of a file, and of each of its regions, made while its bytes go by in order."""

    def __init__(self, regions: Sequence[_Region]) -> None:
        self.file = 0
        self._regions = regions  # none is empty, and none overlaps another
        self._values = [0] * len(regions)
        self._first = 0  # of those that are not finished
        self._at = 0

    def add(self, buffer: np.ndarray[Any, Any]) -> None:
        self.file = crc32c(buffer, self.file)
        start, stop = self._at, self._at + len(buffer)
        for index in range(self._first, len(self._regions)):
            offset, nbytes = self._regions[index][1:3]
            if offset >= stop:
                break
            part = buffer[max(offset - start, 0) : offset + nbytes - start]
            self._values[index] = crc32c(part, self._values[index])
            self._first += offset + nbytes <= stop
        self._at = stop

    def checked(self, known: Foreign) -> list[int]:
        """The regions' values. Raises CorruptCheckpointError for one that the format tells otherwise."""
        for region, value in zip(self._regions, self._values, strict=True):
            if region.crc32c not in (None, value):
                text = f"tensor {region.name!r} in file {region.file!r} of {known.info.path!r} has crc32c {value:08x} instead of "
                raise CorruptCheckpointError(
                    f"{text}{region.crc32c:08x}", step=known.info.step, file=region.file, tensor=region.name
                )
        return self._values


def _check_copy(target: Folder, known: Foreign, content: Content) -> None:
    """The copy opens, has the same tensors at the same places, and what has no place can be decoded."""
    with known.backend.open(target, known.main) as copy:
        if _content(known, copy, target) != content:
            raise CorruptCheckpointError(
                f"{known.info.path!r} reads differently in a copy", step=known.info.step, file=known.main
            )
        for name, _ in content.decoded:
            copy.read(name)


def _tree(content: Content, values: Iterable[int], known: Foreign) -> TreeFile:
    value = iter(values)
    rows = [
        Row(name, spec, file, offset, next(value) if nbytes else 0, box)
        for file, offset, nbytes, name, spec, box, _ in content.regions
    ]
    rows += [Row(name, spec, known.main, None, None) for name, spec in content.decoded]
    # Where there is no skeleton, a restored state is in the order of the rows.
    order = {name: index for index, name in enumerate(content.names)}
    rows.sort(key=lambda row: order[row.name])
    return replace(content.tree, rows=rows)
