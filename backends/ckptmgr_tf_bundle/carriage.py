"""What a checkpoint of ours carries beside its tensors: one string tensor more, which TensorFlow lists and never asks for.

It says which entries are there for TensorFlow alone, which names are tied, and holds the user's metadata. Every checkpoint
that has it was written by ckptmgr.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckptmgr.backend import JSON
from ckptmgr_tf_bundle.origin import Origin

KEY = "_CKPTMGR_METADATA"
_VERSION = 1
MAX_NBYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Carriage:
    """``metadata`` is the user's. ``aliases`` gives further names of tied tensors, each of which has a key of its own for the
    same bytes. ``names`` gives by key the names that do not follow from their keys. ``added`` are keys of no tensor of the
    state: TensorFlow's ``save_counter``, and copies of plain values."""

    metadata: Mapping[str, JSON] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    added: Collection[str] = ()

    def __bool__(self) -> bool:
        return bool(self.metadata or self.aliases or self.names or self.added)

    def encode(self) -> bytes:
        """The string as it is stored.

        Raises:
            ValueError: metadata that is no JSON, or larger than is read.
        """
        fields = {
            "version": _VERSION,
            "metadata": dict(self.metadata),
            "aliases": dict(self.aliases),
            "names": dict(self.names),
            "added": list(self.added),
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


def decode(stored: bytes, origin: Origin) -> Carriage:
    """What `Carriage.encode` made. Raises CorruptCheckpointError."""
    try:
        value = json.loads(stored)
    except (ValueError, RecursionError) as error:
        raise origin.corrupt(f"it is no JSON: {error}", KEY) from error
    if not isinstance(value, dict) or value.get("version") != _VERSION or not isinstance(value.get("metadata"), dict):
        raise origin.corrupt(f"it is not what version {_VERSION} of this entry holds; a newer ckptmgr may have written it", KEY)
    added = value.get("added")
    if not isinstance(added, list) or not all(isinstance(key, str) for key in added):
        raise origin.corrupt("its 'added' is no list of keys", KEY)
    aliases, names = (_texts(value.get(field), field, origin) for field in ("aliases", "names"))
    return Carriage(value["metadata"], aliases, names, added)


def _texts(value: Any, field: str, origin: Origin) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise origin.corrupt(f"its {field!r} is no mapping of strings to strings", KEY)
    return value
