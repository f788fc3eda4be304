"""Which files are one checkpoint, by their names: ``<stem>.h5``, or ``<stem>-00001-of-00003.h5`` and so on.

Of several the last is written last and tells of the others: it is the one to open. Keras' own names count as well, each with
its whole suffix in the stem: what is saved as ``m.h5`` must not take ``m.keras`` or ``m.weights.h5`` for a part of itself.
"""

import itertools
import re
from collections.abc import Collection
from typing import NamedTuple

from ckptmgr.errors import shown
from ckptmgr_hdf5 import keras_filesets
from ckptmgr_hdf5.origin import Origin

_SHOWN = 5  # names of missing files in a message
_SUFFIXES = (".h5", ".hdf5", keras_filesets.KERAS, keras_filesets.INDEX)
_SHARD = re.compile(r"(.+)-(\d{5,})-of-(\d{5,})\.h5", re.DOTALL)


class Shard(NamedTuple):
    """What the name of one of several files says; ``number`` goes from 1 to ``total``."""

    stem: str
    number: int
    total: int


def file_names(stem: str, count: int) -> list[str]:
    """The names of the files of a checkpoint, in the order in which they are written."""
    return [f"{stem}.h5"] if count == 1 else [_shard_name(stem, number, count) for number in range(1, count + 1)]


def shard_of(name: str) -> Shard | None:
    """Stem, number and count, if the name is that of one of several files."""
    found = _SHARD.fullmatch(name)
    if found is None:
        return None
    shard = Shard(found[1], int(found[2]), int(found[3]))
    return shard if shard.total > 1 and 1 <= shard.number <= shard.total and _shard_name(*shard) == name else None


def last_file(shard: Shard) -> str:
    """The name of the file of that set that is written last."""
    return _last(shard.stem, shard.total)


def file_sets(names: Collection[str]) -> dict[str, list[str]]:
    """The files of each checkpoint, by stem, the one to open last.

    Where a stem has several sets, all of them are there: the last is one that has its last file, if there is such a set.
    """
    keras = {f"{stem}.weights": files for stem, files in keras_filesets.file_sets(names, keras_filesets.WEIGHTS).items()}
    keras |= {name: [name] for name in sorted(names) if name.endswith(keras_filesets.KERAS) and name != keras_filesets.KERAS}
    held = {name for files in keras.values() for name in files}
    found: dict[str, dict[int, list[str]]] = {}
    for name in sorted({*names} - held):
        shard = shard_of(name)
        if shard is not None:
            found.setdefault(shard.stem, {}).setdefault(shard.total, []).append(name)
        elif name.endswith(".h5") and name != ".h5":
            found.setdefault(name.removesuffix(".h5"), {})[1] = [name]
    return {stem: _joined(stem, sets, names) for stem, sets in sorted(found.items())} | keras


def all_shards(shard: Shard, names: Collection[str], origin: Origin) -> list[str]:
    """The names of all files of the set that one of them belongs to.

    Raises:
        CorruptCheckpointError: some are not among ``names``; the message lists the first of them.
    """
    count = shard.total - sum((found := shard_of(name)) is not None and found[::2] == shard[::2] for name in names)
    if count:
        numbers = (n for n in range(1, shard.total + 1) if _shard_name(shard.stem, n, shard.total) not in names)
        first = [_shard_name(shard.stem, number, shard.total) for number in itertools.islice(numbers, _SHOWN)]
        text = shown(first) + (f", and {count - _SHOWN} more" if count > _SHOWN else "")
        raise origin.corrupt(f"it is one of {shard.total} files, and these are missing: {text}")
    return file_names(shard.stem, shard.total)


def is_named(names: Collection[str]) -> bool:
    """Whether a folder with these files has one that is HDF5 by its name."""
    return any(name.endswith(_SUFFIXES) for name in names)


def main_file(names: Collection[str], location: str) -> str:
    """The one file to open in a folder with these files; ``model`` is taken where there are several checkpoints.

    Raises:
        FileNotFoundError: no such file at all.
        ValueError: several, none of them called ``model``.
        CorruptCheckpointError: files of a set that lacks the last one.
    """
    sets = file_sets(names) | {name: [name] for name in sorted(names) if name.endswith(".hdf5")}
    if not sets:
        raise FileNotFoundError(f"no .h5 or .keras file in {location!r}")
    if len(sets) > 1 and "model" not in sets:
        raise ValueError(f"{location!r} has several checkpoints, name one of them: {shown([*sets])}")
    files = sets["model"] if "model" in sets else next(iter(sets.values()))
    if files[-1] not in names:
        raise Origin(files[0], location).corrupt(f"{files[-1]!r}, which is written last, is missing: the save did not end")
    return files[-1]


def _joined(stem: str, sets: dict[int, list[str]], names: Collection[str]) -> list[str]:
    """All files, those of the set to open at the end: one that has its last file, a larger set before a smaller one."""
    order = sorted(sets, key=lambda count: (_last(stem, count) in names, count))
    joined = [name for count in order for name in sets[count]]
    last = _last(stem, order[-1])
    return joined if last in names else [*joined, last]


def _last(stem: str, count: int) -> str:
    return f"{stem}.h5" if count == 1 else _shard_name(stem, count, count)


def _shard_name(stem: str, number: int, count: int) -> str:
    return f"{stem}-{number:05d}-of-{count:05d}.h5"
