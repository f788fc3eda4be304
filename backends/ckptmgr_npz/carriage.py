"""What a file of ours says beside its arrays: the member ``ckptmgr.json``, which numpy gives as bytes to whoever asks for it.

``dtypes`` has the names of dtypes that numpy has no code for, ``shapes`` the shapes of packed tensors, ``aliases`` the further
names of tied tensors; ``files`` is the number of this file and of all. Of several files the last has all but that. Nothing to
say, no member.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ckptmgr.backend import JSON
from ckptmgr_npz import npy
from ckptmgr_npz.origin import Origin

MEMBER = "ckptmgr.json"
MAX_NBYTES = 100_000_000
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Carriage:
    """See the module."""

    metadata: Mapping[str, JSON] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    files: tuple[int, int] = (1, 1)

    def __bool__(self) -> bool:
        return bool(self.metadata or self.aliases or self.dtypes or self.files != (1, 1))

    def encode(self) -> bytes:
        """The member's bytes. Raises ValueError for metadata that is no JSON, or more than is read."""
        fields = {
            "version": _VERSION,
            "files": list(self.files),
            "metadata": dict(self.metadata),
            "aliases": dict(self.aliases),
            "dtypes": dict(self.dtypes),
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
        }
        try:
            data = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"the metadata is no JSON: {error}") from error
        if len(data) > MAX_NBYTES:
            raise ValueError(
                f"names, metadata and plain values of {len(data)} bytes are more than the {MAX_NBYTES} that are read"
            )
        return data


def decode(data: bytes, origin: Origin) -> Carriage:
    """What `Carriage.encode` made. Raises CorruptCheckpointError."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise origin.corrupt(f"it is no JSON: {error}", MEMBER) from error
    if not isinstance(value, dict) or value.get("version") != _VERSION:
        raise origin.corrupt(f"it is not what version {_VERSION} of it holds; a newer ckptmgr may have written it", MEMBER)
    metadata, shapes, files = value.get("metadata"), value.get("shapes"), value.get("files")
    if not isinstance(metadata, dict) or not isinstance(shapes, dict) or not isinstance(files, list) or len(files) != 2:
        raise origin.corrupt("a field of it is missing or of another kind", MEMBER)
    if not all(map(_are_sizes, [files, *shapes.values()])):
        raise origin.corrupt("one of its shapes is none", MEMBER)
    aliases, dtypes = (_texts(value.get(key), origin) for key in ("aliases", "dtypes"))
    return Carriage(metadata, aliases, dtypes, {name: tuple(shape) for name, shape in shapes.items()}, (files[0], files[1]))


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and npy.are_sizes(value)


def _texts(value: Any, origin: Origin) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise origin.corrupt("a mapping of texts to texts in it is none", MEMBER)
    return value
