"""Copies of the files of a step that another tool wrote, byte for byte, with what is known of them.

The law: each byte is read once, and compared with the checksums that the format has; the copy reads as the original does.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ckptmgr import foreign
from ckptmgr.box import Box
from ckptmgr.checkpoint import SKELETON
from ckptmgr.checksum import crc32c
from ckptmgr.errors import CorruptCheckpointError, StepNotFoundError, UnsafeCheckpointError, UnsupportedTensorError, shown
from ckptmgr.foreign import Foreign
from ckptmgr.layout import Part
from ckptmgr.manifest import ASSET, TREE, FileEntry, is_plain
from ckptmgr.source import TensorSource, paths_of, unreadable_of
from ckptmgr.spec import TensorSpec
from ckptmgr.storage import Folder, Head
from ckptmgr.transfer import Progress
from ckptmgr.treefile import Row, TreeFile


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
        UnsupportedTensorError: there are tensors that cannot be read, of which a step would not tell.
    """
    place = known.place(root)
    with foreign.explained(root, known), known.backend.open(place, known.main) as source:
        return _content(known, source, place)


def _content(known: Foreign, source: TensorSource, folder: Folder) -> Content:
    if unreadable := unreadable_of(source):
        text = (
            f"{known.info.path!r} has what ckptmgr does not read, and a step of its own would not tell of: {shown([*unreadable])}"
        )
        raise UnsupportedTensorError(f"{text}; convert it with select= instead", tensor=next(iter(unreadable)))
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
