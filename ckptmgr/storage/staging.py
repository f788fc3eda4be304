"""New files of one folder that appear together, when all of them are whole and durable.

The law: until the first of them appears the folder's files are as they were, and what never appears is removed.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from ckptmgr.storage.store import Buffer, Folder, StagingStore, Stored, Upload


@dataclass(frozen=True, slots=True)
class StagedFolder(Folder):
    """A folder whose new files wait without their names until `publish`; all other calls see the folder as it is."""

    store: StagingStore
    waiting: dict[str, Upload] = field(default_factory=dict)

    def put(self, name: str, windows: Iterable[Sequence[Buffer]], nbytes: int) -> Stored:
        """Keeps a file, whole and durable, that does not appear yet. Raises like `Store.put`."""
        self.waiting[name] = self.store.stage(self.prefix + name, windows, nbytes)
        return Stored(nbytes)

    def publish(self) -> None:
        """Lets the files appear; the last of them when the others are durable.

        Raises:
            OSError: from the store; any of the files may have appeared, and the last only with all others.
        """
        *others, last = [(self.prefix + name, upload) for name, upload in self.waiting.items()]
        self.store.rename(dict(others))
        self.store.rename(dict([last]))
        self.waiting.clear()


@contextmanager
def staging(store: StagingStore, prefix: str) -> Iterator[StagedFolder]:
    """A `StagedFolder`; files that have no names at the end are removed."""
    folder = StagedFolder(store, prefix)
    try:
        yield folder
    finally:
        for upload in folder.waiting.values():
            with suppress(OSError):  # what cannot be removed is left to sweep
                store.abort(upload)
