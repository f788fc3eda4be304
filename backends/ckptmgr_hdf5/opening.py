"""From a path to the tensors there: by our own parser, and by h5py in a process of its own for what that does not know.

Which of our and Keras' layouts it is, the content says.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TypeAlias

from ckptmgr.backend import Folder, Head
from ckptmgr.errors import MissingDependencyError
from ckptmgr_hdf5 import filesets, keras_reading
from ckptmgr_hdf5.faults import Unknown
from ckptmgr_hdf5.foreign import open_foreign
from ckptmgr_hdf5.keras_reading import HDF5, Opened
from ckptmgr_hdf5.origin import Origin
from ckptmgr_hdf5.own import open_ours
from ckptmgr_hdf5.parsing import Dataset, Reader, Tree, parse
from ckptmgr_hdf5.source import Carried, HDF5Source
from ckptmgr_hdf5.superblock import SIGNATURE
from ckptmgr_hdf5.tensors import Entry, File, root_of, tied, understand, unreadable

_SIGNATURE_PLACES = (0, 512, 1024, 2048)  # the beginning, or behind a user block
_HEAD_NBYTES = 4096
_Parse: TypeAlias = Callable[[File], Tree]


def recognizes(path: str, head: bytes, siblings: Collection[str]) -> bool:
    """See `Backend.recognizes`."""
    if keras_reading.recognizes(path, head, siblings):
        return True
    if not head:
        return path not in siblings and filesets.is_named(siblings)
    return any(head.startswith(SIGNATURE, place) for place in _SIGNATURE_PLACES)


def open_path(folder: Folder, path: str) -> HDF5Source:
    """A file, any one of a set, or a folder with one checkpoint or one of Keras' models in it.

    Raises:
        FileNotFoundError: there is nothing of the kind.
        CorruptCheckpointError, UnsafeCheckpointError, FormatVersionError: see `HDF5Backend.open`.
        MissingDependencyError: h5py would have to read it, and is not installed.
    """
    try:
        return _Opening(folder, lambda file: parse(file.reader, file.origin)).run(path)
    except Unknown as error:
        unknown = error
    opening = _Opening(folder, lambda file: file.worker().tree())
    try:
        return opening.run(path)
    except MissingDependencyError as error:
        text = f"{folder.location(path)!r} has what only h5py can read ({unknown}): {error}"
        raise MissingDependencyError(text) from error
    except Unknown as error:
        raise Origin(path, folder.location(path)).corrupt(f"not even h5py can read all of it: {error}") from error
    finally:
        opening.end()


class _Opening:
    """One try to open a path; the files that were read so far."""

    def __init__(self, folder: Folder, parse: _Parse) -> None:
        self.folder = folder
        self.parse = parse
        self.files: dict[int, File] = {}  # by the identity of their readers
        self.source: HDF5Source | None = None

    def run(self, path: str) -> HDF5Source:
        """The tensors at the path."""
        head = self.folder.head(path) if path else None
        if head is None:
            names = (self.folder.folder(path) if path else self.folder).list().files
            if not keras_reading.recognizes("", b"", names):
                self.folder = self.folder.folder(path) if path else self.folder
                path = filesets.main_file(names, self.folder.location())
                head = self.folder.head(path)
        main = self._main(path, head)
        first = b"" if head is None else self.folder.read_range(path, 0, min(_HEAD_NBYTES, head.nbytes))
        if head is None or keras_reading.recognizes(path, first, ()):
            opened = keras_reading.open_path(self.folder, path, self._tree)
            self.folder = self.folder.folder(path) if head is None and path else self.folder
            self.source = self._keras(opened)
        else:
            self.source = self._hdf5(self._file(self.folder, path))
        self.source = replace(self.source, main=main)
        return self.source

    def _main(self, path: str, head: Head | None) -> tuple[Folder, str, Head] | None:
        """The file of a set that is replaced last, as it is before it is read; None for a folder of Keras' files."""
        shard = filesets.shard_of(path)
        if shard is not None:
            path = filesets.last_file(shard)
            head = self.folder.head(path)
        return None if head is None else (self.folder, path, head)

    def end(self) -> None:
        """Ends the processes of a try that failed."""
        if self.source is None:
            for file in self.files.values():
                file.close()

    def _hdf5(self, file: File) -> HDF5Source:
        ours = open_ours(file, self._file)
        if ours is not None:
            return ours
        opened = keras_reading.open_keras(HDF5(root_of(file), file.name, file.reader, file.origin))
        return open_foreign(file) if opened is None else self._keras(opened)

    def _keras(self, opened: Opened) -> HDF5Source:
        """What Keras wrote; a tensor that no array can hold is carried as a blob."""
        entries: dict[str, Entry] = {}
        carried: dict[str, tuple[File, Dataset]] = {}
        for name, (hdf5, dataset, dtype) in opened.tensors.items():
            file = self.files[id(hdf5.reader)]
            file.folder, file.name = self.folder, hdf5.file
            entry = understand(file, dataset, dtype)
            if entry is None:
                carried[name] = file, dataset
            else:
                entries[name] = entry
        paths = {name: path for name, path in opened.paths.items() if name in entries}
        blobs: Mapping[str, bytes] = Carried(carried, opened.blobs)
        return HDF5Source(entries, tied(entries), paths, opened.metadata, blobs, unreadable(carried), [*self.files.values()])

    def _file(self, folder: Folder, name: str) -> File:
        reader = Reader.of_file(folder, name)
        self._tree(reader, Origin(name, folder.location(name)))
        file = self.files[id(reader)]
        file.name = name
        return file

    def _tree(self, reader: Reader, origin: Origin) -> Tree:
        file = File(self.folder, None, reader, origin, None)
        self.files[id(reader)] = file
        file.tree = self.parse(file)
        return file.tree
