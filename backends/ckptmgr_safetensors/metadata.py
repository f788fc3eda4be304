"""What a file says beside its tensors: the names they have there, tied names, and metadata as strings.

``__metadata__`` holds strings only. Other JSON is dumped, and `JSON_KEYS` lists which values were, so that everything
comes back as it was given. Keys that start with ``ckptmgr`` are ours; other tools see strings that they may ignore.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ckptmgr.backend import JSON, Contents
from ckptmgr.errors import UnsupportedTensorError, shown
from ckptmgr_safetensors import strictjson
from ckptmgr_safetensors.header import METADATA, Origin

SKELETON = "ckptmgr"  # of the state; if it is there, tensors get back their names in the state
ALIASES = "ckptmgr.aliases"  # tied name -> name of the tensor, as names in the file
NAMES = "ckptmgr.names"  # name in the file -> name in the state, where they differ
JSON_KEYS = "ckptmgr.json"  # keys of the values that were dumped
_OURS = (ALIASES, NAMES, JSON_KEYS)

_JSON_DEPTH = 500  # of a value that was dumped into a string: skeletons nest deeper than any header


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a file's metadata says: the name of each tensor in the source, tied names, and what else is there."""

    names: Mapping[str, str]
    aliases: Mapping[str, str]
    metadata: Mapping[str, JSON]


def file_names(contents: Contents) -> dict[str, str]:
    """Each tensor's and alias's name in the file: its keys joined by ``.``, or its own name where that is ambiguous.

    Raises:
        UnsupportedTensorError: a name that the format cannot hold.
    """
    names = [*contents.names, *contents.aliases]
    known = contents.paths
    paths = [known[name] if name in known else contents.path(name) for name in names]
    try:
        dotted = list(map(".".join, paths))  # type: ignore[arg-type]
    except TypeError:  # an int among the keys: most states have none, and are joined four times as fast without `str`
        dotted = [".".join(map(str, path)) for path in paths]
    stored = dict(zip(names, dotted, strict=True))
    while len(dict.fromkeys(stored.values())) < len(stored):  # a set would take three times the memory
        # A name that is given back its own spelling may meet the dotted spelling of another.
        uses = Counter(stored.values())
        stored = {name: short if uses[short] == 1 else name for name, short in stored.items()}
    _check_names(stored)
    return stored


def metadata_of(contents: Contents, stored: Mapping[str, str]) -> dict[str, JSON]:
    """The contents' metadata, with our own keys added where they say something.

    Raises:
        ValueError: one of our keys is there already, or a key is no UTF-8 string.
    """
    taken = [key for key in _OURS if key in contents.metadata]
    if taken:
        raise ValueError(f"metadata must not use the keys {shown(taken)}, which the file needs for itself")
    if not all(map(_is_text, contents.metadata)):
        raise ValueError("metadata keys must be strings that UTF-8 can hold")
    metadata = dict(contents.metadata)
    if contents.aliases:
        metadata[ALIASES] = {stored[alias]: stored[name] for alias, name in contents.aliases.items()}
    if SKELETON in metadata and (other := {short: name for name, short in stored.items() if short != name}):
        metadata[NAMES] = other
    return metadata


def to_strings(metadata: Mapping[str, JSON]) -> dict[str, str]:
    """Metadata for ``__metadata__``.

    Raises:
        ValueError: a value is no JSON.
    """
    texts = {key: value for key, value in metadata.items() if key != SKELETON and _is_text(value)}
    dumped = {key: _dumped(key, value) for key, value in metadata.items() if key not in texts}
    listed = [key for key in dumped if key not in (SKELETON, *_OURS)]
    return {**texts, **dumped, **({JSON_KEYS: json.dumps(listed)} if listed else {})}


def to_index(metadata: Mapping[str, JSON]) -> dict[str, JSON]:
    """Metadata for an index, whose values may be any JSON: numbers, booleans and null stay what they are.

    Raises:
        ValueError: as `to_strings` does.
    """
    plain = {key: value for key, value in metadata.items() if key != SKELETON and isinstance(value, int | float | None)}
    return {**plain, **to_strings({key: value for key, value in metadata.items() if key not in plain})}


def for_shard(metadata: Mapping[str, JSON]) -> dict[str, str]:
    """What each of several files repeats: texts such as ``format``, which other tools look for in every file."""
    return {key: value for key, value in metadata.items() if key not in (SKELETON, *_OURS) and _is_text(value)}


def understand(tensors: Collection[str], metadata: Mapping[str, JSON], origin: Origin) -> Meaning:
    """What the metadata of a file with these tensors says; strings that `to_strings` made are JSON again.

    A tied name also counts as such in Hugging Face's spelling, ``metadata[tied name] = name of a tensor``.

    Raises:
        CorruptCheckpointError: a value under one of our keys is not what we write there.
    """
    own = {key: _loaded(key, metadata[key], origin) for key in (SKELETON, *_OURS) if key in metadata}
    ours = {key: _strings(own.get(key, {}), key, origin) for key in (ALIASES, NAMES)}
    tied = {key: value for key, value in metadata.items() if key != "format" and isinstance(value, str)} | ours[ALIASES]
    aliases = {alias: name for alias, name in tied.items() if name in tensors and alias not in tensors}

    renamed = ours[NAMES] if SKELETON in own else {}
    names = {name: renamed.get(name, name) for name in (*tensors, *aliases)}
    if len(set(names.values())) < len(names):
        raise origin.corrupt(f"its {NAMES} gives one name to two tensors")

    values = {key: value for key, value in metadata.items() if key not in _OURS}
    dumped = own.get(JSON_KEYS, [])
    if not isinstance(dumped, list) or not all(isinstance(key, str) and isinstance(values.get(key), str) for key in dumped):
        raise origin.corrupt(f"its {JSON_KEYS} lists keys that hold no text")
    values |= {key: _loaded(key, values[key], origin) for key in dumped}
    values |= {SKELETON: own[SKELETON]} if SKELETON in own else {}
    return Meaning(
        {name: names[name] for name in tensors}, {names[alias]: names[name] for alias, name in aliases.items()}, values
    )


def _check_names(stored: Mapping[str, str]) -> None:
    if METADATA not in stored.values() and _is_text("".join(stored.values())):
        return
    name = next(name for name, short in stored.items() if short == METADATA or not _is_text(short))
    reason = "keeps it for itself" if stored[name] == METADATA else "is UTF-8, which has no surrogates"
    raise UnsupportedTensorError(
        f"safetensors cannot hold the name {name!r}: the format {reason}; rename the tensor", tensor=name
    )


def _is_text(value: JSON) -> bool:
    """Whether it is a string that UTF-8 can hold."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _dumped(key: str, value: JSON) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"metadata {key!r} is no JSON: {error}") from error


def _loaded(key: str, value: JSON, origin: Origin) -> JSON:
    try:
        # A string is what we write; an index may hold the value itself.
        return strictjson.parse(value.encode(), depth=_JSON_DEPTH, surrogates=True) if isinstance(value, str) else value
    except ValueError as error:
        raise origin.corrupt(f"its metadata {key!r} is no valid JSON: {error}") from error


def _strings(value: JSON, key: str, origin: Origin) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise origin.corrupt(f"its metadata {key!r} is no mapping of strings to strings")
    return value
