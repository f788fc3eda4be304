"""What a step of Orbax's manager has beside arrays: items that are JSON, and those that only their own handler reads."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from ckptmgr.backend import JSON, Folder
from ckptmgr.errors import CorruptCheckpointError, UnsupportedTensorError, shown
from ckptmgr_orbax import nesting

KEY = "orbax"  # of the metadata
_logger = logging.getLogger(__name__)
_FILES = ("metadata", "metrics")  # of `JsonCheckpointHandler`, and of the metrics that a manager was given


class Beside(NamedTuple):
    """The metadata that the JSON items are, and the others as blobs that cannot be read."""

    metadata: Mapping[str, JSON]
    unread: Mapping[str, bytes]


class _Unread(Mapping[str, bytes]):
    """Items by name. To ask for one raises UnsupportedTensorError, so that whoever takes all along tells of it."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = [*names]

    def __getitem__(self, name: str) -> bytes:
        if name not in self._names:
            raise KeyError(name)
        raise UnsupportedTensorError("an item of Orbax that is neither arrays nor JSON is not read")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read(folder: Folder, names: Iterable[str]) -> Beside:
    """The items of those names in a step's folder."""
    found: dict[str, JSON] = {}
    unread = []
    for name in sorted(names):
        item = folder.folder(name)
        file = next((file for file in _FILES if item.head(file)), None)
        try:
            if file is None:
                unread.append(name)
            else:
                found[name] = nesting.read_json(item, file)
        except CorruptCheckpointError:  # another handler may call its file the same
            unread.append(name)
    if unread:
        text = "%r has items that are neither arrays nor JSON, they are left out: %s"
        _logger.warning(text, folder.location(), shown(unread))
    return Beside({KEY: {"items": found}} if found else {}, _Unread(unread))
