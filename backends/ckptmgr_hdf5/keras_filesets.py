"""Which of Keras' files are one checkpoint, by their names: ``<stem>.keras``, ``<stem>.weights.h5``, or weights in several
files, ``<stem>_00000.weights.h5`` and so on, which ``<stem>.weights.json`` lists."""

import re
from collections.abc import Collection

KERAS, WEIGHTS, INDEX = ".keras", ".weights.h5", ".weights.json"
_SHARD = re.compile(r"(.+)_(\d{5})\.weights\.h5", re.DOTALL)


def file_sets(names: Collection[str], suffix: str) -> dict[str, list[str]]:
    """The files of each checkpoint whose names end so, by stem, the one to open last. Shards count as such beside their index."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        shard = _SHARD.fullmatch(name) if suffix == WEIGHTS else None
        if shard is not None and shard[1] + INDEX in names:
            found.setdefault(shard[1], []).append(name)
    for end in (INDEX, WEIGHTS) if suffix == WEIGHTS else (suffix,):
        held = {shard for files in found.values() for shard in files}
        for name in sorted(names):
            if name.endswith(end) and name != end and name not in held:
                found.setdefault(name.removesuffix(end), []).append(name)
    return found
