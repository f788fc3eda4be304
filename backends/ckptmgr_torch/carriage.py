"""What our files say beside their pickle, in a record that torch does not look at: JSON.

``names`` has the tensors whose names do not follow from the pickle, by the names that do; ``tied`` leads from further names of
tensors to the first; ``metadata`` is what was given. An index of several files has the same, and ``paths`` as well.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ckptmgr.backend import JSON, Path
from ckptmgr.errors import FormatVersionError
from ckptmgr_torch.origin import Origin

MAX_NBYTES = 256 << 20
_VERSION = 1


class Carriage(NamedTuple):
    """See the module."""

    metadata: Mapping[str, JSON]
    tied: Mapping[str, str] = {}
    names: Mapping[str, str] = {}
    paths: Mapping[str, Path] = {}


def encode(carriage: Carriage) -> bytes:
    """The record's bytes.

    Raises:
        ValueError: metadata that is no JSON, or larger than is read.
    """
    try:
        fields = {"format_version": _VERSION, **{key: value for key, value in carriage._asdict().items() if value}}
        data = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the metadata is no JSON: {error}") from error
    if len(data) > MAX_NBYTES:
        raise ValueError(f"names, metadata and plain values of {len(data)} bytes are more than the {MAX_NBYTES} that are read")
    return data


def decode(raw: bytes, origin: Origin) -> Carriage:
    """What `encode` made.

    Raises:
        CorruptCheckpointError: it is damaged.
        FormatVersionError: it is of a newer ckptmgr.
    """
    try:
        return _checked(json.loads(raw), origin)  # in memory it takes 24 times its size at most
    except FormatVersionError:
        raise
    except (ValueError, RecursionError) as error:
        raise origin.corrupt(f"what ckptmgr wrote into it is damaged: {error}") from error


def _checked(found: Any, origin: Origin) -> Carriage:
    if not isinstance(found, dict) or type(version := found.get("format_version")) is not int or version < 1:
        raise ValueError("it is no object with a format_version")
    if version > _VERSION:
        text = f"{origin.location!r} is of version {version} of ckptmgr's PyTorch format, and this ckptmgr reads up to {_VERSION}"
        raise FormatVersionError(f"{text}: upgrade it", found=version, supported=_VERSION)
    metadata, tied, names, paths = (found.get(key, {}) for key in Carriage._fields)
    if not all(isinstance(value, dict) for value in (metadata, tied, names, paths)):
        raise ValueError("one of its fields is no object")
    if not all(isinstance(value, str) for value in (*tied.values(), *names.values())):
        raise ValueError("a name is no text")
    if not all(isinstance(path, list) and all(type(key) in (str, int) for key in path) for path in paths.values()):
        raise ValueError("a path is no list of keys")
    return Carriage(metadata, tied, names, {name: tuple(path) for name, path in paths.items()})
