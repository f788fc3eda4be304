"""The names of files: ``<stem>.npz``, or ``<stem>-00001-of-0000N.npz`` and so on."""

import re
from collections.abc import Collection, Mapping, Sequence

SUFFIX = ".npz"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5,})-of-(?P<total>[0-9]{5,})\.npz", re.DOTALL)
MOST = 100_000


def names(stem: str, total: int) -> list[str]:
    """The files of a set."""
    return (
        [f"{stem}{SUFFIX}"] if total == 1 else [f"{stem}-{number:05d}-of-{total:05d}{SUFFIX}" for number in range(1, total + 1)]
    )


def of_shard(name: str) -> list[str]:
    """The files of the set that one of this name is of; itself alone if its name is no shard's."""
    match = _SHARD.fullmatch(name)
    if match is None or not 2 <= int(match["total"]) <= MOST:
        return [name]
    found = names(match["stem"], int(match["total"]))
    return found if name in found else [name]


def file_sets(names_: Collection[str]) -> Mapping[str, Sequence[str]]:
    """By stem, the files that are there, and the last of each set in any case."""
    there = {name for name in names_ if name.endswith(SUFFIX) and len(name) > len(SUFFIX)}
    sets: dict[str, list[str]] = {}
    for name in sorted(there):
        *others, last = of_shard(name)
        stem = last.removesuffix(SUFFIX)
        if others and (match := _SHARD.fullmatch(name)):
            stem = match["stem"]
        if stem not in sets or len(sets[stem]) > 1:
            sets.setdefault(stem, [other for other in others if other in there] + [last])
    return sets
