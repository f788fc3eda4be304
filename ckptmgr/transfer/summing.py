"""Whole tensors that were read, compared with the crc32 that files of other tools have of them.

Such files are zip archives, whose own readers make the same comparison. What is read of our own steps has a crc32c, which is
looked at while the bytes are in cache.
"""

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np

from ckptmgr.box import Box
from ckptmgr.checksum import crc32
from ckptmgr.errors import CorruptCheckpointError, shown
from ckptmgr.source import Summed, TensorSource
from ckptmgr.transfer.lanes import share
from ckptmgr.transfer.planning import Goal

_Array: TypeAlias = np.ndarray[Any, Any]

_THREADS = 2  # one makes them at the speed at which one reads what is cached
_MANY_NBYTES = 8 << 20


def whole(goals: Iterable[Goal]) -> Iterator[tuple[str, _Array]]:
    """Name and array of every goal that is a whole tensor of numbers."""
    for goal in goals:
        if goal.nbytes and not goal.spec.is_string and (goal.box is None or goal.box == Box.whole(goal.whole)):
            yield goal.name, goal.array


def check(source: TensorSource, arrays: Iterable[tuple[str, _Array]]) -> None:
    """Compares these arrays, C-contiguous and native, with what the source says of the tensors of those names.

    Raises:
        CorruptCheckpointError: some are not what was written; lists the first of them.
    """
    if not isinstance(source, Summed):
        return
    found = [(name, array, source.crc32(name)) for name, array in arrays]
    told = [(name, array, expected) for name, array, expected in found if expected is not None]
    wrong: set[str] = set()

    def compare(tensors: Iterable[tuple[str, _Array, int]]) -> None:
        wrong.update(name for name, array, expected in tensors if crc32(array.reshape(-1).view(np.uint8)) != expected)

    share(told, compare, _THREADS if sum(array.nbytes for _, array, _ in told) > _MANY_NBYTES else 1)
    if damaged := [name for name, _, _ in told if name in wrong]:
        extents = source.extents(damaged[0])
        file = extents[0].file if extents else None
        where = f"; the first is in {extents[0].folder.location(extents[0].file)!r}" if extents else ""
        text = f"bytes of {shown(damaged)} are not what was written (their crc32 differs){where}"
        raise CorruptCheckpointError(text, file=file, tensor=damaged[0])
