"""One file of a committed step, byte for byte into another folder, on any store.

The law: under its name in the target there are all bytes that the manifest tells of, or there is nothing: the last of them is
given to the store only when the crc32c of all that was read is the manifest's.
"""

from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from ckptmgr import transfer
from ckptmgr.checksum import crc32c, joined
from ckptmgr.errors import CorruptCheckpointError, SaveError
from ckptmgr.manifest import FileEntry
from ckptmgr.storage import Folder, is_local
from ckptmgr.transfer.lanes import Lane

_Array: TypeAlias = np.ndarray[Any, Any]
_READS = 6  # at once, of a store that answers from afar; each has a window


def copy_file(
    files: Folder, target: Folder, entry: FileEntry, *, tell: Callable[[int], object] = lambda nbytes: None
) -> FileEntry:
    """Copies the file; gives its entry for the manifest of a step that has it itself. What was there before is replaced.

    Memory for some windows, whatever the file's size. ``tell`` is called with the size of each window before it is written;
    what it raises ends the copy.

    Raises:
        CorruptCheckpointError: the file is missing, or its size or crc32c is not the manifest's; nothing appears.
        SaveError: the target tells another size of what it stored.
        OSError: from either store.
    """
    problems = transfer.check(files, [(entry.name, entry.nbytes, entry.crc32c)], full=False)
    if problems:  # before space for what may be no size of a file is asked for
        raise CorruptCheckpointError(f"{problems[0].message}: restore another step", file=entry.name)
    with closing(_windows(files, entry, tell)) as windows:  # whoever keeps an error of the target's keeps no thread of these
        stored = target.put(entry.name, windows, entry.nbytes)
    if stored.nbytes != entry.nbytes:
        text = f"{target.location(entry.name)!r} has {stored.nbytes} bytes, though {entry.nbytes} were written"
        raise SaveError(f"{text}: nothing is committed; copy the step again")
    return replace(entry, origin=None)


def _windows(files: Folder, entry: FileEntry, tell: Callable[[int], object]) -> Generator[list[_Array], None, None]:
    """The file's bytes; the end is not reached, so that no copy appears, unless they have the manifest's checksum."""
    done = value = 0
    for window, found in _read(files, entry):
        done, value = done + window.nbytes, joined([(value, done), (found, window.nbytes)])
        if done == entry.nbytes:
            _check(files, entry, value)
        tell(window.nbytes)
        yield [window]
    if not entry.nbytes:
        _check(files, entry, 0)


def _check(files: Folder, entry: FileEntry, value: int) -> None:
    if value != entry.crc32c:
        where = files.location(entry.name)
        text = f"{where!r} has crc32c {value:08x}; the manifest says {entry.crc32c:08x}: restore another step"
        raise CorruptCheckpointError(text, file=entry.name)


def _read(files: Folder, entry: FileEntry) -> Generator[tuple[_Array, int], None, None]:
    """The windows in order, each with its crc32c; those that come next are read meanwhile."""
    most = files.store.window_nbytes
    starts = range(0, entry.nbytes, most)
    nlanes = min(1 if is_local(files.store) else _READS, files.store.workers, len(starts))
    found: list[tuple[_Array, int]] = [(np.empty(0, np.uint8), 0)] * nlanes
    with ExitStack() as stack:
        lanes = [stack.enter_context(Lane(1)) for _ in range(nlanes)]

        def begin(number: int) -> None:
            nbytes = min(most, entry.nbytes - starts[number])
            lanes[number % nlanes].submit(partial(_fill, files, entry.name, starts[number], nbytes, found, number % nlanes))

        for number in range(nlanes):
            begin(number)
        for number in range(len(starts)):
            lanes[number % nlanes].wait()
            window = found[number % nlanes]
            if number + nlanes < len(starts):
                begin(number + nlanes)
            yield window


def _fill(files: Folder, name: str, at: int, nbytes: int, found: "list[tuple[_Array, int]]", index: int) -> None:
    buffer = np.empty(nbytes, np.uint8)
    try:
        files.read_into(name, at, [buffer])
    except (FileNotFoundError, EOFError) as error:
        text = f"{files.location(name)!r} is missing or cut off: restore another step"
        raise CorruptCheckpointError(text, file=name) from error
    found[index] = buffer, crc32c(buffer)
