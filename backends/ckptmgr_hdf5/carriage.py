"""What a file of ours says beside its tensors, as attributes of the root: text that is JSON.

``ckptmgr_format`` is the number of this format, and marks its files. ``ckptmgr_metadata`` is what the user or the state
tree has given; ``ckptmgr_aliases`` leads from the path of a tied tensor to that of the tensor; ``ckptmgr_names`` has by path
the names that do not follow from it. Paths are those in the file. Of several files the last has all of these.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ckptmgr.backend import JSON
from ckptmgr.errors import FormatVersionError
from ckptmgr_hdf5.attributes import Value
from ckptmgr_hdf5.encoding import Attribute
from ckptmgr_hdf5.escaping import unescape
from ckptmgr_hdf5.origin import Origin

PREFIX = "ckptmgr_"  # of all attributes of ours
FORMAT, METADATA, ALIASES, NAMES = "ckptmgr_format", "ckptmgr_metadata", "ckptmgr_aliases", "ckptmgr_names"
_VERSION = 1
_FREE_CONTAINERS = 1 << 16  # lists and objects in one text, beside one for each 8 bytes: an empty one takes 64 in memory
_ALL_BUT_BRACKETS_AND_QUOTES = bytes(set(range(256)) - set(b'[]{}"'))
_PIECE = 16 << 20  # characters of one attribute: readers bound what they take at once


class Carriage(NamedTuple):
    """See the module."""

    metadata: Mapping[str, JSON]
    aliases: Mapping[str, str]
    names: Mapping[str, str]

    def named(self, stored: str) -> tuple[str, tuple[str, ...]]:
        """The name of what is at that path in the file, and the keys that lead to it."""
        path = tuple(map(unescape, stored.split("/")))
        return self.names.get(stored, "/".join(path)), path


def encode(carriage: Carriage) -> list[Attribute]:
    """The root's attributes; texts of more than 16 MiB go on in ``ckptmgr_metadata.1`` and so on.

    Raises:
        ValueError: metadata that is no JSON.
    """
    attributes = [Attribute(FORMAT, np.uint8(_VERSION))]
    for key, value in zip((METADATA, ALIASES, NAMES), carriage, strict=True):
        text = _dumped(value) if value else ""
        attributes += [Attribute(_numbered(key, number), piece) for number, piece in enumerate(_pieces(text))]
    return attributes


def is_ours(attributes: Mapping[str, Value], origin: Origin) -> bool:
    """Whether a file whose root has these attributes is of this format.

    Raises:
        FormatVersionError: it is of a newer one.
        CorruptCheckpointError: the attributes are damaged.
    """
    version = attributes.get(FORMAT)
    if version is None:
        return False
    if not isinstance(version, np.integer) or version < 1:
        raise origin.corrupt(f"its {FORMAT} is no number of a format")
    if version > _VERSION:
        text = f"{origin.location!r} is of version {version} of ckptmgr's HDF5 format, and this ckptmgr reads up to {_VERSION}"
        raise FormatVersionError(f"{text}: upgrade it", found=int(version), supported=_VERSION)
    return True


def decode(attributes: Mapping[str, Value], origin: Origin) -> Carriage:
    """What `encode` made. Raises CorruptCheckpointError."""
    metadata, aliases, names = (_loaded(attributes, key, origin) for key in (METADATA, ALIASES, NAMES))
    return Carriage(metadata, _texts(aliases, ALIASES, origin), _texts(names, NAMES, origin))


def _dumped(value: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(dict(value), separators=(",", ":"), allow_nan=False)
        _check_containers(text)
        return text
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the metadata is no JSON: {error}") from error


def _pieces(text: str) -> Iterator[str]:
    return (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))


def _numbered(key: str, number: int) -> str:
    return f"{key}.{number}" if number else key


def _loaded(attributes: Mapping[str, Value], key: str, origin: Origin) -> dict[str, Any]:
    pieces: list[str] = []
    while (name := _numbered(key, len(pieces))) in attributes:
        piece = attributes[name]
        if not isinstance(piece, str):
            raise origin.corrupt(f"its {name} is no text")
        pieces.append(piece)
    if not pieces:
        return {}
    text = "".join(pieces)
    try:
        _check_containers(text)
        value = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise origin.corrupt(f"its {key} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise origin.corrupt(f"its {key} is no JSON object")
    return value


def _check_containers(text: str) -> None:
    """Raises ValueError for more lists and objects than ours have, before any of them is made."""
    most = _FREE_CONTAINERS + len(text) // 8
    if text.count("[") + text.count("{") <= most:
        return
    data = text.encode("utf-8", "replace").replace(rb"\\", b"").replace(rb"\"", b"")
    # Joining a closing quote with the next opening one leaves what is inside a string inside of one.
    brackets = data.translate(None, _ALL_BUT_BRACKETS_AND_QUOTES).replace(b'""', b"")
    if len(re.sub(rb'"[^"]*"?', b"", brackets)) > 2 * most:
        raise ValueError(f"more than {most} lists and objects")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("an object has a key twice")
    return made


def _texts(value: dict[str, Any], key: str, origin: Origin) -> dict[str, str]:
    if not all(isinstance(text, str) for text in value.values()):
        raise origin.corrupt(f"its {key} is no mapping of texts to texts")
    return value
