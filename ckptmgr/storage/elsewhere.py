"""A folder some of whose files lie elsewhere in the same store, and can be read as if they lay in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ckptmgr.storage.store import Folder, Listing


@dataclass(frozen=True, slots=True)
class FolderOfFiles(Folder):
    """A folder to read from. ``elsewhere`` has the store's keys of files that do not lie under its prefix, by their names."""

    elsewhere: Mapping[str, str] = field(default_factory=dict, compare=False)

    def key(self, name: str) -> str:
        """See `Folder.key`."""
        return self.elsewhere.get(name, self.prefix + name)

    def list(self) -> Listing:
        """What lies here, and those of the files elsewhere that are there."""
        files, folders = self.store.list(self.prefix)
        others = {name: head for name in self.elsewhere if (head := self.head(name)) is not None}
        return Listing({**files, **others}, folders)
