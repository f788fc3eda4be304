"""Whether what was written is what the source's checksums say, from the checksums that writing made: no byte is read again.

Only slices of a tensor that lie scattered in it are read a second time, each for its own checksum.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ckptmgr.box import Box
from ckptmgr.checksum import crc32c, joined
from ckptmgr.convertreport import DECODED, NO_CHECKSUM, OTHERS
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.layout import Digests, Extent, Layout, Part
from ckptmgr.source import TensorSource, crc32_of
from ckptmgr.spec import TensorSpec


class Sums(NamedTuple):
    """A tensor's crc32c as its source knows it and as it was written, and why they were not compared."""

    before: int | None
    after: int | None
    note: str = ""


def compare(source: TensorSource, layout: Layout, digests: Mapping[str, Digests]) -> dict[str, Sums]:
    """The checksums of every part of the layout that came from extents of the source as they are, by name.

    Raises:
        CorruptCheckpointError: a tensor is not what its source's checksum says; names tensor and file.
    """
    found: dict[str, Sums] = {}
    for file in layout.files:
        for index, _, (name, spec, _) in file.parts():
            kinds = digests[file.name]
            after = kinds["crc32c"][index]
            extents = source.extents(name)
            before = told(extents, spec)
            if before is not None and before != after:
                raise _wrong(name, extents[0], f"crc32c {after:08x} instead of {before:08x}")
            is_summed = before is None and _check_others(source, name, spec, extents, kinds.get("crc32"), index)
            note = "" if before is not None else OTHERS if is_summed else NO_CHECKSUM if extents else DECODED
            found[name] = Sums(before, after, note)
    return found


def told(extents: Sequence[Extent], spec: TensorSpec) -> int | None:
    """The crc32c of a tensor's bytes as its extents tell it; None if one has none, or they do not lie one after another."""
    whole = Box.whole(spec.shape)
    parts: list[tuple[int, int, int]] = []
    for extent in extents:
        runs = [*(extent.box or whole).runs(spec.shape)] if not spec.is_packed else [(0, 1)]
        if extent.crc32c is None or len(runs) != 1:
            return extents[0].crc32c if len(extents) == 1 and extent.box is None else None
        parts.append((runs[0][0], extent.crc32c, Part("", spec, extent.box).nbytes))
    return joined((value, nbytes) for _, value, nbytes in sorted(parts)) if parts else None


def _check_others(
    source: TensorSource, name: str, spec: TensorSpec, extents: Sequence[Extent], found: Sequence[int] | None, index: int
) -> bool:
    """Compares a tensor by checksums of another kind, or slice by slice. Whether there are any."""
    if found is not None and (expected := crc32_of(source, name)) is not None:
        if expected != found[index]:
            raise _wrong(name, extents[0], f"crc32 {found[index]:08x} instead of {expected:08x}")
        return True
    summed = [extent for extent in extents if extent.crc32c is not None]
    for extent in summed:
        if (value := _read(extent, Part(name, spec, extent.box).nbytes)) != extent.crc32c:
            raise _wrong(name, extent, f"crc32c {value:08x} instead of {extent.crc32c:08x} in a slice of it")
    return bool(summed) and len(summed) == len(extents)


def _read(extent: Extent, nbytes: int) -> int:
    value, most = 0, extent.folder.store.window_nbytes
    buffer = np.empty(min(most, nbytes), np.uint8)
    for at in range(0, nbytes, most):
        part = buffer[: min(most, nbytes - at)]
        extent.folder.read_into(extent.file, extent.offset + at, [part])
        value = crc32c(part, value)
    return value


def _wrong(name: str, extent: Extent, problem: str) -> CorruptCheckpointError:
    where = extent.folder.location(extent.file)
    text = f"the bytes of tensor {name!r} in {where!r} are not what was written: they have {problem}; nothing was converted"
    return CorruptCheckpointError(text, file=extent.file, tensor=name)
