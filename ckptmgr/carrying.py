"""What a checkpoint has beside its state, on the way into another: metadata, blobs, a step's metrics and assets.

What has no place of its own there travels as one JSON value, in a file under the metadata key ``ckptmgr.carried``, in a step as
the asset ``ckptmgr-carried.json``. Converting that back gives it its place again. The law: what is neither held nor carried is
told.
"""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckptmgr.checkpoint import CARRIED, Checkpoint
from ckptmgr.errors import CorruptCheckpointError, shown
from ckptmgr.fields import plain_json
from ckptmgr.step import JSON

ASSET = "ckptmgr-carried.json"
MOST_NBYTES = 32 << 20  # in the metadata of a file
_SMALL_NBYTES = 4096  # of a value in the metadata of a step, which every listing reads
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Baggage:
    """See the module."""

    metadata: Mapping[str, JSON] = field(default_factory=dict)
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    assets: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class Account:
    """What becomes of it: ``held`` in its own place, ``carried`` for the way back, ``lost`` with the reason."""

    held: list[str] = field(default_factory=list)
    carried: list[str] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)


def baggage(checkpoint: Checkpoint, *, has_assets: bool = True) -> tuple[Baggage, dict[str, str]]:
    """All that an opened checkpoint has beside its state, and why what cannot be read is left.

    Without ``has_assets`` those of a step stay unread; what a file carries is there.

    Raises:
        CorruptCheckpointError: what an earlier conversion packed is damaged.
    """
    packed = checkpoint.source.metadata.get(CARRIED)
    assets = {name: checkpoint.asset(name) for name in checkpoint.assets if has_assets or name == ASSET}
    if ASSET in assets:
        packed = _loaded(assets.pop(ASSET), checkpoint.location)
    blobs, lost = _blobs(checkpoint)
    before = Baggage() if packed is None else _unpacked(packed, checkpoint.location)
    return (
        Baggage(
            {**before.metadata, **checkpoint.metadata},
            {**before.blobs, **blobs},
            {**before.metrics, **checkpoint.metrics},
            {**before.assets, **assets},
        ),
        lost,
    )


def for_file(bags: Baggage, left_out: Callable[[Baggage], tuple[frozenset[str], frozenset[str]]]) -> tuple[Baggage, Account]:
    """What goes into a file: metadata and blobs for its format. ``left_out`` tells what keys and blobs that has no place for."""
    keys, names = left_out(bags)
    rest = Baggage(blobs={name: bags.blobs[name] for name in names}, metrics=bags.metrics, assets=bags.assets)
    metadata = {key: value for key, value in bags.metadata.items() if key not in keys}
    blobs = {name: blob for name, blob in bags.blobs.items() if name not in names}
    account = Account(held=listed(Baggage(metadata, blobs)))
    account.lost |= dict.fromkeys(listed(Baggage({key: bags.metadata[key] for key in keys})), "the format has no place for it")
    if not (titles := listed(rest)):
        return Baggage(metadata, blobs), account
    if sum(map(len, (*rest.blobs.values(), *rest.assets.values()))) * 4 // 3 > MOST_NBYTES:
        account.lost |= dict.fromkeys(titles, f"more than the {MOST_NBYTES >> 20} MiB that a file's metadata should hold")
    elif left_out(Baggage({CARRIED: {}}))[0]:
        account.lost |= dict.fromkeys(titles, "the format has no place for it")
    else:
        metadata[CARRIED] = _packed(rest)
        account.carried += titles
    return Baggage(metadata, blobs), account


def for_step(bags: Baggage, left_out: Callable[[Baggage], tuple[frozenset[str], frozenset[str]]]) -> tuple[Baggage, Account]:
    """What goes into a step of a run: small metadata into its manifest, all else beside its files. Nothing is lost."""
    _, names = left_out(bags)
    small = {key: value for key, value in bags.metadata.items() if _is_small(value)}
    large = {key: value for key, value in bags.metadata.items() if key not in small}
    # Blobs that the format holds are there for its own tools; that is no place where a step looks for them.
    rest = Baggage(large, bags.blobs)
    held = Baggage(small, {name: blob for name, blob in bags.blobs.items() if name not in names}, bags.metrics, bags.assets)
    account = Account(held=listed(held), carried=listed(Baggage(large, {name: bags.blobs[name] for name in names})))
    if large or bags.blobs:
        assets = {**bags.assets, ASSET: json.dumps(_packed(rest), separators=(",", ":")).encode()}
        return Baggage(small, held.blobs, bags.metrics, assets), account
    return held, account


def _is_small(value: JSON) -> bool:
    try:
        return len(json.dumps(plain_json(value, "metadata"))) <= _SMALL_NBYTES
    except (TypeError, ValueError):
        return False


def _blobs(checkpoint: Checkpoint) -> tuple[dict[str, bytes], dict[str, str]]:
    found: dict[str, bytes] = {}
    lost: dict[str, str] = {}
    for name in checkpoint.blobs:
        if name in checkpoint.unreadable:
            continue  # bytes of a tensor whose dtype would not come along
        try:
            found[name] = checkpoint.blobs[name]
        except TypeError as error:  # UnsupportedTensorError: bytes that mean nothing outside of their file
            lost[f"blob {name!r}"] = str(error)
    return found, lost


def listed(bags: Baggage) -> list[str]:
    """What there is, for people."""
    kinds = {"metadata": bags.metadata, "blob": bags.blobs, "metric": bags.metrics, "asset": bags.assets}
    return [f"{kind} {name!r}" for kind, held in kinds.items() for name in held]


def _packed(bags: Baggage) -> dict[str, JSON]:
    return {
        "version": _VERSION,
        "metadata": dict(bags.metadata),
        "metrics": {name: repr(float(value)) for name, value in bags.metrics.items()},  # NaN too, which JSON has not
        **{
            kind: {name: base64.b64encode(data).decode() for name, data in held.items()}
            for kind, held in (("blobs", bags.blobs), ("assets", bags.assets))
        },
    }


def _unpacked(value: JSON, location: str) -> Baggage:
    try:
        if value["version"] != _VERSION:
            raise ValueError(f"version {value['version']!r}")
        blobs, assets = (
            {str(name): base64.b64decode(text, validate=True) for name, text in value[kind].items()}
            for kind in ("blobs", "assets")
        )
        return Baggage(dict(value["metadata"]), blobs, {name: float(text) for name, text in value["metrics"].items()}, assets)
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        text = f"what was carried in {location!r} ({CARRIED}) is damaged, or a newer ckptmgr wrote it: {shown([str(error)])}"
        raise CorruptCheckpointError(text) from error


def _loaded(data: bytes, location: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{ASSET} in {location!r} is no JSON", file=ASSET) from error
