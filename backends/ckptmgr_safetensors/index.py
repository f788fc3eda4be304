"""``model.safetensors.index.json``: which of several files holds which tensor, as Hugging Face writes and reads it.

Nothing in an index is believed before the files say the same: see `place`.
"""

import json
import logging
import re
from collections.abc import Collection, Mapping
from json.encoder import encode_basestring_ascii as quoted
from typing import NamedTuple

from ckptmgr.backend import JSON
from ckptmgr.errors import UnsafeCheckpointError, shown
from ckptmgr_safetensors import strictjson
from ckptmgr_safetensors.header import Header, Origin, Place

SUFFIX = ".safetensors.index.json"
MAX_NBYTES = 100_000_000
_SINGLE = ".safetensors"
_SHARD = re.compile(r"(.*)-\d{5,}-of-\d{5,}\.safetensors", re.DOTALL)
_TOTAL_SIZE = "total_size"

_logger = logging.getLogger(__name__)


class Index(NamedTuple):
    """Tensor name -> file name, and whatever else the index says (``total_size``, which follows from the files, aside)."""

    weight_map: dict[str, str]
    metadata: dict[str, JSON]


def parse(data: bytes, origin: Origin) -> Index:
    """The index whose bytes are ``data``; its file names are plain names.

    Raises:
        CorruptCheckpointError: it is no such index.
        UnsafeCheckpointError: a file name that is more than a name in the same folder.
    """
    try:
        root = strictjson.parse(data)
    except ValueError as error:
        raise origin.corrupt(f"it is no valid JSON: {error}") from error
    weight_map = root.get("weight_map") if isinstance(root, dict) else None
    if not isinstance(weight_map, dict):
        raise origin.corrupt("it has no weight_map")
    metadata = root.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise origin.corrupt("its metadata is no JSON object")
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            raise origin.corrupt(f"its file is {file!r}, not a name", tensor)
        if not _is_plain(file):
            raise UnsafeCheckpointError(
                f"{origin.location!r} puts tensor {tensor!r} into {file!r}, which is no plain name of a file beside it",
                file=origin.name,
            )
    return Index(weight_map, {key: value for key, value in metadata.items() if key != _TOTAL_SIZE})


def build(weight_map: Mapping[str, str], total_size: int, metadata: Mapping[str, JSON]) -> bytes:
    """The bytes of an index; tensors keep their order. ``total_size`` counts the tensors' bytes, not the files'."""
    # By hand where there is a line a tensor: json indents in Python, ten times slower.
    quoted_files = {file: quoted(file) for file in set(weight_map.values())}
    lines = ",\n".join(f"    {quoted(name)}: {quoted_files[file]}" for name, file in weight_map.items())
    head = json.dumps({"metadata": {_TOTAL_SIZE: total_size, **metadata}}, indent=2, allow_nan=False)
    return f'{head.removesuffix("}").rstrip()},\n  "weight_map": {{\n{lines}\n  }}\n}}\n'.encode()


def place(index: Index, headers: Mapping[str, Header], origin: Origin) -> dict[str, tuple[str, Place]]:
    """File and place of every tensor of the index, in its order.

    Tensors that the files have and the index lacks are left out, and a warning is logged.

    Raises:
        CorruptCheckpointError: a tensor that is not in its file, or that is in another one, too.
    """
    held: dict[str, str] = {}
    for file, header in headers.items():
        for name in header.tensors:
            if held.setdefault(name, file) != file:
                raise origin.corrupt(f"it is in two files, {held[name]!r} and {file!r}", name)
    for name, file in index.weight_map.items():
        if held.get(name) != file:
            raise origin.corrupt(f"it should be in {file!r} and is {_whereabouts(held.get(name))}", name)
    extra = [name for name in held if name not in index.weight_map]
    if extra:
        _logger.warning("%r does not list these tensors of its files, which are left out: %s", origin.location, shown(extra))
    return {name: (file, headers[file].tensors[name]) for name, file in index.weight_map.items()}


def is_shard(name: str) -> bool:
    """Whether a file is by its name one of several."""
    return _SHARD.fullmatch(name) is not None


def file_sets(names: Collection[str]) -> dict[str, list[str]]:
    """The files of each checkpoint, by stem: a single file, or several and their index, which may be missing, last.

    Where a stem has both, the index is the one to open, as in `main_file`; without it the single file, whose set was
    replaced or never finished.
    """
    singles, shards, indexes = dict[str, str](), dict[str, list[str]](), dict[str, str]()
    for name in sorted(names):
        if shard := _SHARD.fullmatch(name):
            shards.setdefault(shard[1], []).append(name)
        elif name.endswith(SUFFIX):
            indexes[name.removesuffix(SUFFIX)] = name
        elif name.endswith(_SINGLE):
            singles[name.removesuffix(_SINGLE)] = name
    sets: dict[str, list[str]] = {}
    for stem in sorted({*singles, *shards, *indexes} - {""}):
        single = [singles[stem]] if stem in singles else []
        several = shards.get(stem, [])
        is_several = stem in indexes or not single
        sets[stem] = [*single, *several, stem + SUFFIX] if is_several else [*several, *single]
    return sets


def main_file(names: Collection[str], location: str) -> str:
    """The one file to open in a folder with these files: an index, else a file that is not one of several.

    ``model`` is taken where there are several.

    Raises:
        CorruptCheckpointError: files of a set without its index, which is written last.
        FileNotFoundError: no such file at all.
        ValueError: several, none of them called ``model``.
    """
    files = sorted(name for name in names if name.endswith(".safetensors"))
    shards = [name for name in files if is_shard(name)]
    found = sorted(name for name in names if name.endswith(SUFFIX)) or [name for name in files if not is_shard(name)]
    usual = [name for name in found if name in (f"model{SUFFIX}", "model.safetensors")]
    if len(found) > 1 and not usual:
        raise ValueError(f"{location!r} has several checkpoints, name one of them: {shown(found)}")
    if found:
        return (usual or found)[0]
    if shards:
        problem = "has no index, which is written last: the save did not end"
        raise Origin(shards[0], location, 0).corrupt(f"the set of {shown(shards)} {problem}")
    raise FileNotFoundError(f"no .safetensors file in {location!r}")


def _whereabouts(file: str | None) -> str:
    return "in none of the files" if file is None else f"in {file!r}"


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and len(name.encode()) < 256 and re.search(r"[/\\:\x00-\x1f\x7f]", name) is None
