"""Which steps of one run are to be copied into another: decided over values, without a store.

The law: it is derived from what both runs have, and from nothing else.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeAlias

from ckptmgr.retention import Retention, plan
from ckptmgr.step import StepInfo

Key: TypeAlias = tuple[int, int, str, datetime]
Upload: TypeAlias = Retention | Callable[[StepInfo], bool]


def key(info: StepInfo) -> Key:
    """What a step and all its copies have in common, and no other step."""
    return info.step, info.sequence, info.run, info.created


def due(
    local: Sequence[StepInfo], remote: Sequence[StepInfo], retention: Retention, upload: Upload | None = None
) -> list[StepInfo]:
    """The local steps that are to be copied, newest first: those that the remote tier lacks, and would keep by ``retention``.

    Both come oldest first. With ``upload`` only those that it wants. A step that has been saved again elsewhere is not.
    """
    there = {key(info) for info in remote}
    sequences = {info.step: info.sequence for info in remote}
    if upload is None:
        wanted: Sequence[StepInfo] = local
    elif isinstance(upload, Retention):
        kept = upload.keep(local)
        wanted = [info for info in local if info.step in kept or info.pins]
    else:
        wanted = [info for info in local if info.pins or upload(info)]
    missing = [info for info in wanted if key(info) not in there and sequences.get(info.step, info.sequence) <= info.sequence]
    if not missing:
        return []
    numbers = {info.step for info in missing}
    kept_there = plan(retention, [*missing, *(info for info in remote if info.step not in numbers)]).kept
    orders = {info.order for info in kept_there}
    return [info for info in reversed(missing) if info.order in orders]
