"""Names of files: one ``<stem>.pt``, or several with an index that tells which tensor is in which, as Hugging Face has them.

Its own end in ``.bin``, which says nothing by itself: of those that it calls weights alone.

Source: the index files of huggingface_hub (``weight_map`` and ``metadata``).
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ckptmgr_torch.origin import Origin

SUFFIX = ".pt"
SUFFIXES = (SUFFIX, ".pth", ".bin")
MAX_INDEX_NBYTES = 256 << 20
_MOST_CONTAINERS = 1 << 16  # lists and objects in an index, beside one for each 8 bytes
_INDEX = ".index.json"
_INDEXES = tuple(suffix + _INDEX for suffix in SUFFIXES)
_WEIGHTS = ("pytorch_model", "adapter_model", "diffusion_pytorch_model")
_SHARD = re.compile(r"(.*)-\d{5,}-of-\d{5,}(\.pth?|\.bin)", re.DOTALL)
# What Hugging Face's and others' trainers keep beside the weights: no checkpoints of a model by themselves.
_BESIDE = re.compile(r"(optimizer|scheduler|scaler|rng_state.*|training_args)\.(pt|pth|bin)")


def shard(stem: str, number: int, total: int, suffix: str) -> str:
    """The name of one file of several."""
    return f"{stem}-{number:05d}-of-{total:05d}{suffix}"


def index(stem: str, suffix: str) -> str:
    """The name of the index of several files."""
    return stem + suffix + _INDEX


def is_index(name: str) -> bool:
    """Whether a file of that name is the index of several files of torch."""
    return name.endswith(_INDEXES)


def file_sets(names: Collection[str]) -> dict[str, list[str]]:
    """The checkpoints among these names by stem, of each the file to open last."""
    found: dict[str, list[str]] = {}
    shards: dict[tuple[str, str], list[str]] = {}
    for name in sorted(names):
        if (match := _SHARD.fullmatch(name)) and _is_told(match[1], match[2]):
            shards.setdefault((match[1], match[2]), []).append(name)
        elif single := _split(name, SUFFIXES):
            found.setdefault(single[0], [name])
        elif several := _split(name, _INDEXES):
            shards.setdefault((several[0], several[1].removesuffix(_INDEX)), [])
    return {**found, **{stem: [*files, index(stem, suffix)] for (stem, suffix), files in shards.items()}}


def ending_of(name: str) -> str | None:
    """The ending of a single file's name; None if it is none of torch's by its name."""
    found = _split(name, SUFFIXES)
    return None if found is None else found[1]


def _split(name: str, endings: Collection[str]) -> tuple[str, str] | None:
    """Stem and ending of a checkpoint's file, told by its name; None if it is none."""
    for ending in endings:
        stem = name.removesuffix(ending)
        if stem not in ("", name) and _is_told(stem, ending):
            return stem, ending
    return None


def _is_told(stem: str, ending: str) -> bool:
    return not ending.startswith(".bin") or stem in _WEIGHTS


def is_checkpoint(names: Collection[str]) -> bool:
    """Whether a folder with these files is a checkpoint of torch, told by names alone.

    Where there are files of safetensors, these are the weights, and what torch pickled beside them is none of ours.
    """
    return bool(mains(names)) and not any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names)


def mains(names: Collection[str]) -> list[str]:
    """The files to open among these names: indexes, or else single files."""
    if indexes := sorted(name for name in names if is_index(name)):
        return indexes
    return sorted(name for name in names if _split(name, SUFFIXES) and not _BESIDE.fullmatch(name))


def parse_index(raw: bytes, origin: Origin) -> tuple[dict[str, str], Mapping[str, Any]]:
    """The file of each tensor, and the metadata.

    Raises:
        CorruptCheckpointError: it is no index.
        UnsafeCheckpointError: it names what is no plain file beside it.
    """
    try:
        if raw.count(b"[") + raw.count(b"{") > _MOST_CONTAINERS + len(raw) // 8:
            raise ValueError("it has more lists and objects than an index of its size")
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise origin.corrupt(f"it is no JSON: {error}") from error
    weights = found.get("weight_map") if isinstance(found, dict) else None
    metadata = found.get("metadata", {}) if isinstance(found, dict) else None
    if not isinstance(weights, dict) or not isinstance(metadata, dict):
        raise origin.corrupt("an index has the objects 'weight_map' and 'metadata', and this has not")
    for name, file in weights.items():
        if not isinstance(file, str):
            raise origin.corrupt("its file is no text", name[:200])
        if file in ("", ".", "..") or len(file) > 255 or re.search(r"[/\\\x00-\x1f\x7f]", file):
            raise origin.unsafe(f"its file is {file[:300]!r}, which is no plain name of a file beside the index", name[:200])
    return weights, metadata


def chosen(names: Collection[str], location: str) -> str:
    """The file to open in a folder. Raises FileNotFoundError."""
    found: Sequence[str] = mains(names)
    if len(found) == 1:
        return found[0]
    if not found:
        raise FileNotFoundError(f"no PyTorch checkpoint in {location!r}")
    raise FileNotFoundError(
        f"{location!r} has several PyTorch checkpoints ({', '.join(found[:5])}): open one of them by its name"
    )
