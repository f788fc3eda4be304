"""The smallest whole saves and restores, for tests of what is around them: files whose bytes tell who wrote them."""

from collections.abc import Iterator
from datetime import UTC, datetime

from ckptmgr import commit
from ckptmgr.checksum import crc32c
from ckptmgr.ledger import read_record
from ckptmgr.manifest import FileEntry, Manifest, Origin, folder_name
from ckptmgr.naming import StepNaming
from ckptmgr.record import Record
from ckptmgr.step import StepInfo
from ckptmgr.storage import Folder

NAMING = StepNaming()
ONE = "step-00000001"
RECORD = f"{ONE}/manifest.json"
CREATED = datetime(2026, 1, 1, tzinfo=UTC)


def content(attempt: str, file: str) -> bytes:
    return f"{attempt} wrote {file}".encode()


def entries(attempt: str, nfiles: int = 1) -> tuple[FileEntry, ...]:
    names = [f"file-{number}" for number in range(nfiles)]
    return tuple(FileEntry(name, len(content(attempt, name)), crc32c(content(attempt, name))) for name in names)


def begin(root: Folder, step: int, *, overwrite: bool = False) -> commit.Attempt:
    return commit.begin(root, NAMING.format(step), step, overwrite=overwrite)


def write(attempt: commit.Attempt, nfiles: int = 1) -> None:
    for entry in entries(attempt.attempt, nfiles):
        attempt.folder.write(entry.name, content(attempt.attempt, entry.name))


def finish(attempt: commit.Attempt, nfiles: int = 1, reused: tuple[FileEntry, ...] = ()) -> StepInfo:
    def manifest(sequence: int) -> Manifest:
        files = (*reused, *entries(attempt.attempt, nfiles))
        nbytes = sum(entry.nbytes for entry in files)
        return Manifest(
            attempt.step, attempt.attempt, sequence, "run", CREATED, "raw", nbytes, files, writer=attempt.claim.writer
        )

    return attempt.commit(NAMING, manifest)


def save(root: Folder, step: int, *, overwrite: bool = False, nfiles: int = 1) -> StepInfo:
    attempt = begin(root, step, overwrite=overwrite)
    write(attempt, nfiles)
    return finish(attempt, nfiles)


def hold(root: Folder, step: int, by: commit.Attempt) -> bool:
    found = manifest(root, step)
    return found is not None and commit.hold(root, NAMING.format(step), step, found.attempt, by)


def referred(step: int, found: Manifest) -> list[FileEntry]:
    """Entries of a later step for all files of this manifest, those that it refers to included."""
    return [
        FileEntry(f"reused-{number}-{step}", entry.nbytes, entry.crc32c, entry.origin or _origin(step, found, entry))
        for number, entry in enumerate(found.files)
    ]


def _origin(step: int, found: Manifest, entry: FileEntry) -> Origin:
    return Origin(step, found.attempt, f"{NAMING.format(step)}/{folder_name(found.attempt)}/{entry.name}")


def record(root: Folder, step: int) -> Record | None:
    found = read_record(root, NAMING.format(step), step)
    return found.record if found else None


def manifest(root: Folder, step: int) -> Manifest | None:
    found = record(root, step)
    return found.manifest if found else None


def places(name: str, found: Manifest) -> Iterator[tuple[str, FileEntry, bytes]]:
    """The path below the root of each file of a manifest, its entry, and the bytes that must be there."""
    for entry in found.files:
        path = entry.origin.path if entry.origin else f"{name}/{folder_name(found.attempt)}/{entry.name}"
        owner = entry.origin.attempt if entry.origin else found.attempt
        yield path, entry, content(owner, path.rpartition("/")[2])


def is_whole(root: Folder, step: int) -> bool:
    """Whether the step is committed, with every file as its attempt wrote it."""
    found = manifest(root, step)
    if found is None:
        return False
    reads = [(root.read(path), data) for path, _, data in places(NAMING.format(step), found)]
    return all(read is not None and read[0] == data for read, data in reads)
