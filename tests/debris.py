"""What may lie in a run after a sweep: the records of its steps, and the files that they name."""

from collections.abc import Iterator

from ckptmgr.ledger import records
from ckptmgr.manifest import MANIFEST, folder_name
from ckptmgr.naming import StepNaming
from ckptmgr.record import decode
from ckptmgr.storage import Folder


def files_below(folder: Folder, prefix: str = "") -> Iterator[str]:
    """All files in a folder and in those below it."""
    listing = folder.list()
    yield from (prefix + name for name in listing.files)
    for name in listing.folders:
        yield from files_below(folder.folder(name), f"{prefix}{name}/")


def debris(root: Folder) -> set[str]:
    """Files that no committed step needs, and unfinished uploads. Emptied records may stay where stores lack a remove."""
    found, unreadable = records(root, StepNaming())
    wanted = {f"{each.name}/{MANIFEST}" for each in found if each.record.manifest}
    for each in found:
        if manifest := each.record.manifest:
            folder = f"{each.name}/{folder_name(manifest.attempt)}"
            wanted |= {entry.origin.path if entry.origin else f"{folder}/{entry.name}" for entry in manifest.files}
    assert not unreadable
    assert not any(each.record.claim for each in found)
    there = set(files_below(root)) - {".ckptmgr.lock"}
    assert wanted <= there, "files are missing"
    return {name for name in there - wanted if not is_emptied(root, name)} | {upload.key for upload in root.uploads()}


def is_emptied(root: Folder, name: str) -> bool:
    """Whether that is an emptied record, which may stay."""
    is_record = not root.store.has_remove and name.endswith(f"/{MANIFEST}") and name.count("/") == 1
    return is_record and decode(root.read(name)[0], where=name).is_empty
