"""Compares whole files with what was written, reading every byte through a little memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ckptmgr.checksum import crc32c, joined
from ckptmgr.storage import Folder, is_local
from ckptmgr.transfer import slabs
from ckptmgr.transfer.lanes import share
from ckptmgr.transfer.stats import Progress, Tally


class Problem(NamedTuple):
    """What is wrong with a file; ``tensor`` is the damaged one, if it is known to be in one."""

    file: str
    tensor: str | None
    message: str


class Place(NamedTuple):
    """Where a tensor, or a slice of one, lies in a file."""

    tensor: str
    offset: int
    nbytes: int
    crc32c: int | None


def check(
    folder: Folder,
    entries: Iterable[tuple[str, int, int]],
    *,
    places: Mapping[str, Sequence[Place]] | None = None,
    full: bool = True,
    progress: Progress | None = None,
) -> list[Problem]:
    """What is wrong with these files, given by name, size and crc32c; empty if they are as they were written.

    ``places`` tells which tensors lie in a file: if something is wrong with it, a problem for each damaged one follows.
    Only sizes of files are compared if not ``full``. ``progress`` is called in this thread. What has come damaged from a store
    that is not local is read once more.

    Raises:
        OSError: from the store; that a file is missing is a problem and no error.
    """
    wrong: dict[str, str] = {}
    right: list[tuple[str, int, int]] = []  # in size
    for name, nbytes, expected in entries:
        head = folder.head(name)
        if head is None:
            wrong[name] = "is missing"
        elif head.nbytes != nbytes:
            wrong[name] = f"has {head.nbytes} bytes instead of {nbytes}"
        else:
            right.append((name, nbytes, expected))
    if full:
        ranges = [_Range(name, 0, nbytes) for name, nbytes, _ in right]
        found = _values(folder, ranges, progress, [expected for *_, expected in right])
        for (name, _, expected), value in zip(right, found, strict=True):
            if value != expected:
                wrong[name] = _difference(expected, value)
    problems: list[Problem] = []
    for name, message in wrong.items():
        problems.append(Problem(name, None, f"{folder.location(name)!r} {message}"))
        problems += _damaged(folder, name, (places or {}).get(name, ()))
    return problems


def _damaged(folder: Folder, file: str, places: Sequence[Place]) -> Iterator[Problem]:
    """The tensors in a file whose bytes are not what was written."""
    known = [place for place in places if place.crc32c is not None and place.nbytes]
    ranges = [_Range(file, place.offset, place.nbytes) for place in known]
    found = _values(folder, ranges, None, [place.crc32c for place in known])
    for place, value in zip(known, found, strict=True):
        if value != place.crc32c:
            message = f"tensor {place.tensor!r} in {folder.location(file)!r} {_difference(place.crc32c or 0, value)}"
            yield Problem(file, place.tensor, message)


def _difference(expected: int, found: int | None) -> str:
    return "cannot be read whole" if found is None else f"has crc32c {found:08x} instead of {expected:08x}"


class _Range(NamedTuple):
    file: str
    offset: int
    nbytes: int


def _values(
    folder: Folder, ranges: Sequence[_Range], progress: Progress | None, expected: Sequence[int | None]
) -> list[int | None]:
    """The crc32c of each range of bytes; None where the file ends before that, or is not there."""
    found = _read(folder, ranges, progress)
    wrong = [index for index, value in enumerate(found) if value not in (expected[index], None)]
    if wrong and not is_local(folder.store):  # a disk would give the same bytes again
        for index, value in zip(wrong, _read(folder, [ranges[index] for index in wrong], None), strict=True):
            found[index] = value
    return found


def _read(folder: Folder, ranges: Sequence[_Range], progress: Progress | None) -> list[int | None]:
    most = folder.store.window_nbytes
    windows = [
        (index, at, min(most, whole.nbytes - at)) for index, whole in enumerate(ranges) for at in range(0, whole.nbytes, most)
    ]
    found: list[dict[int, tuple[int, int]]] = [{} for _ in ranges]
    unreadable: set[int] = set()
    tally = Tally(progress, sum(whole.nbytes for whole in ranges))

    def run(line: Iterator[tuple[int, int, int]]) -> None:
        buffer = slabs.raw(most)
        for index, at, nbytes in line:
            part = buffer[:nbytes]
            try:
                folder.read_into(ranges[index].file, ranges[index].offset + at, [part])
                found[index][at] = crc32c(part), nbytes
            except (FileNotFoundError, EOFError):
                unreadable.add(index)
            tally.add(nbytes)

    share(windows, run, min(folder.store.workers, len(windows)))
    tally.add(0)
    return [None if index in unreadable else joined(parts[at] for at in sorted(parts)) for index, parts in enumerate(found)]
