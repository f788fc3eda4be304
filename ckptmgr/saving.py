"""From a state tree to files in a folder: what every save does before anything is decided about steps."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import compress, repeat
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from ckptmgr import garbage, transfer, tree, treefile
from ckptmgr.backend import Backend
from ckptmgr.checksum import crc32c
from ckptmgr.errors import shown
from ckptmgr.fields import plain_json
from ckptmgr.layout import Contents, Digests, Groups, Layout, Part, pack
from ckptmgr.manifest import ASSET, STATS, TREE, FileEntry, Manifest, is_plain, this_writer
from ckptmgr.memory import MemorySource
from ckptmgr.naming import checked_step
from ckptmgr.source import TensorSource
from ckptmgr.step import JSON
from ckptmgr.storage import Folder, StagingStore, staging
from ckptmgr.timing import Timing
from ckptmgr.transfer import Progress, Stats, WrittenFile
from ckptmgr.tree import Flat
from ckptmgr.treefile import Table, column

_nbytes = attrgetter("nbytes")

ALIGN = 4096  # tensor data starts at page boundaries where the format can

Known: TypeAlias = Mapping[str, tuple[WrittenFile, Digests]]  # files that need not be written, with their checksums
Asset: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str]
"""A file to lie beside the state: its bytes, or the path of a local file."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A state's files before the first byte is written: the flattened state and the layout of its files.

    ``moved`` has the tensors where ``flat`` has none, for they are in other files. ``check`` is called with all digests before
    the last file appears; what it raises ends the save.
    """

    flat: Flat
    layout: Layout
    moved: TensorSource | None = None
    check: Callable[[Mapping[str, Digests]], object] | None = None

    @property
    def source(self) -> TensorSource:
        """The tensors, as they are in memory or where they are moved from."""
        return self.moved or MemorySource(self.flat.tensors, self.flat.specs)


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that a save of a step writes, looked at and checked. The bytes of its arrays are still where they were.

    ``timing`` takes down how the save goes, for the manifest; None if that is not to tell.
    """

    step: int
    plan: Plan
    metrics: Mapping[str, float]
    metadata: Mapping[str, JSON]
    assets: Mapping[str, bytes]
    overwrite: bool
    timing: Timing | None = field(default=None, compare=False)

    def manifest(self, attempt: str, files: tuple[FileEntry, ...], *, sequence: int, run: str, backend: str) -> Manifest:
        """What is committed once these files are durable."""
        return Manifest(
            step=self.step,
            attempt=attempt,
            sequence=sequence,
            run=run,
            created=datetime.now(UTC),
            backend=backend,
            nbytes=sum(entry.nbytes for entry in files),
            files=files,
            metrics=self.metrics,
            metadata=self.metadata,
            writer=this_writer(),
            extra={STATS: self.timing.stats.to_json()} if self.timing else {},
        )


@dataclass(frozen=True, slots=True)
class Written:
    """Files that are now durable, each with size and crc32c."""

    files: tuple[FileEntry, ...]
    stats: Stats


def prepare(
    step: int,
    state: Any,
    metrics: Mapping[str, Any],
    metadata: Mapping[str, JSON],
    assets: Mapping[str, Asset],
    overwrite: bool,
    plan: Callable[[Flat], Plan],
) -> Prepared:
    """All that `CheckpointManager.save` checks before it claims the step; raises what that tells."""
    timing = Timing()
    step, taken = checked_step(step), numbers(metrics)
    facts = plain_json(dict(metadata), "metadata")
    planned = plan(tree.flatten(state))
    files = asset_bytes(assets, taken={TREE, *(file.name for file in planned.layout.files)})
    timing.nbytes = sum(map(_nbytes, planned.flat.specs.values()))
    return Prepared(step, planned, taken, facts, files, overwrite, timing)


@garbage.later()
def plan(
    flat: Flat,
    backend: Backend,
    *,
    stem: str,
    max_file_nbytes: int | None = None,
    groups: Groups | None = None,
    metadata: Mapping[str, JSON] | None = None,
) -> Plan:
    """Where every byte of the state will lie; ``groups`` have files of their own. Nothing is written, and no tensor is read.

    Raises:
        UnsupportedTensorError: the format cannot hold one of the tensors exactly.
    """
    contents = Contents(
        files=pack(_parts(flat), max_file_nbytes, groups),
        aliases=flat.aliases,
        strings=flat.strings,
        metadata=metadata or {},
        paths=flat.paths,
        scalars=flat.scalars,
        skeleton=flat.skeleton,
    )
    return Plan(flat, backend.layout(contents, stem=stem, align=ALIGN))


def _parts(flat: Flat) -> list[Part]:
    # By `tuple`, because a call of a NamedTuple's own `__new__` takes twice as long, and there may be many.
    make: Callable[..., Part] = tuple.__new__
    return list(map(make, repeat(Part), zip(flat.specs, flat.specs.values(), repeat(None))))


def write(
    folder: Folder,
    plan: Plan,
    *,
    progress: Progress | None = None,
    known: Known | None = None,
    describe: Callable[[Table], object] | None = None,
) -> Written:
    """Writes the planned files into ``folder``, in the layout's order, straight from the state's memory.

    Each file is whole and durable, or absent; if this raises, files before the failed one may be there. ``known`` ones
    lie there already; see `transfer.write`.
    ``describe`` is called with where each tensor lies, in another thread while the disk is waited for.
    """
    meanwhile = None if describe is None else lambda digests: describe(_rows(plan, digests))
    written = transfer.write(
        folder, plan.layout, plan.source, progress=progress, known=known, meanwhile=meanwhile, check=plan.check
    )
    return Written(tuple(FileEntry(name, *stored) for name, stored in written.files.items()), written.stats)


def replace(folder: Folder, plan: Plan, backend: Backend, *, stem: str, progress: Progress | None = None) -> Written:
    """Writes the planned files in place of an older file set of the same stem, of which nothing is left.

    There is never an index beside data files of another set. Where the store can stage files, the older set stays as it was
    until every byte of the new one is durable, and also if this raises before. After that, or at once in other stores, there
    is no index while data files of the same names are replaced.
    """
    old = folder.list().files
    stale = stale_files(plan.layout, old, backend=backend, stem=stem)
    *data, last = [file.name for file in plan.layout.files]
    # An index may stay until the new one takes its name, unless data files that it may lead to are replaced before.
    misleading = [last] if last in old and not old.keys().isdisjoint(data) else []
    is_replaced = bool(stale) or not old.keys().isdisjoint([*data, last])
    if data and (is_replaced or plan.check is not None) and isinstance(folder.store, StagingStore):
        with staging(folder.store, folder.prefix) as staged:
            written = write(staged, plan, progress=progress)
            folder.delete(misleading)
            staged.publish()
    else:
        folder.delete(misleading)
        written = write(folder, plan, progress=progress)
    for name in stale:  # one by one: an index must be gone before the first of its shards
        folder.delete([name])
    return written


def write_step(
    folder: Folder,
    plan: Plan,
    assets: Mapping[str, bytes],
    *,
    progress: Progress | None = None,
    known: Known | None = None,
) -> tuple[FileEntry, ...]:
    """All files of a step: the planned ones, then the assets, and ``tree.json`` last. ``known`` ones lie there already."""
    index = b""

    def describe(rows: Table) -> None:
        nonlocal index
        index = treefile.encode(plan.flat.skeleton, rows, plan.flat.aliases)

    written = write(folder, plan, progress=progress, known=known, describe=describe)
    beside = [_write_small(folder, name, data, {ASSET: True}) for name, data in assets.items()]
    return (*written.files, *beside, _write_small(folder, TREE, index, {}))


@garbage.later()
def _rows(plan: Plan, digests: Mapping[str, Digests]) -> Table:
    files = [file.name for file in plan.layout.files]
    ends: list[int] = []  # of each file's rows
    parts: list[Part] = []
    offsets: list[int | None] = []
    checksums: list[int | None] = []
    for file in plan.layout.files:
        is_part = [isinstance(piece, Part) for piece in file.pieces]
        parts += cast(Iterable[Part], compress(file.pieces, is_part))
        offsets += compress(file.offsets, is_part)
        checksums += compress(digests[file.name]["crc32c"], is_part)
        ends.append(len(parts))
    # String tensors have no raw bytes: the format's own reader decodes them, and the last file is the one it opens.
    for name in plan.flat.strings:
        parts.append(Part(name, plan.flat.specs[name]))
        offsets.append(None)
        checksums.append(None)
        ends[-1] += 1
    boxes = [part[2] for part in parts]
    return Table(
        [part[0] for part in parts],
        [part[1] for part in parts],
        files,
        np.repeat(np.arange(len(files), dtype=np.int64), np.diff(ends, prepend=0)),
        column(offsets),
        column(checksums),
        boxes if any(boxes) else None,
    )


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as floats, of Python's numbers and of arrays and tensors of one element.

    Raises:
        TypeError: a name that is no string, or a value that is no real number.
    """
    return {name: _number(name, value) for name, value in metrics.items()}


def asset_bytes(assets: Mapping[str, Asset], taken: Collection[str]) -> dict[str, bytes]:
    """The assets' bytes, read now: what cannot be read or named must fail before anything is claimed.

    Raises:
        ValueError: a name that is not plain, or is in ``taken``.
        TypeError: neither bytes nor a path.
    """
    for name in assets:
        if not is_plain(name) or name in taken:
            raise ValueError(f"asset name {name!r} must be a plain file name other than {shown(sorted(taken))}")
    return {name: _asset(name, asset) for name, asset in assets.items()}


def _number(name: str, value: Any) -> float:
    if not isinstance(name, str):
        raise TypeError(f"the name of a metric must be a string, not {name!r}")
    # A tensor's own `item` first: torch warns when `float` is asked of one with a gradient, numpy of one with dimensions.
    item = getattr(value, "item", None)
    try:
        number = item() if callable(item) else value
        if not isinstance(number, str | bytes):
            return float(number)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # torch: more than one element
        raise TypeError(f"metric {name!r} must be a number, not {value!r}") from error
    raise TypeError(f"metric {name!r} must be a number, not {value!r}")


def _asset(name: str, asset: Asset) -> bytes:
    if isinstance(asset, str | os.PathLike):
        return Path(asset).read_bytes()
    if not isinstance(asset, bytes | bytearray | memoryview):
        raise TypeError(f"asset {name!r} must be bytes, or the path of a local file, not a {type(asset).__name__}")
    return bytes(asset)


def _write_small(folder: Folder, name: str, data: bytes, marks: Mapping[str, JSON]) -> FileEntry:
    value = crc32c(data)
    folder.compare(name, folder.write(name, data), value)
    return FileEntry(name, len(data), value, extra=dict(marks))


def stale_files(layout: Layout, names: Collection[str], *, backend: Backend, stem: str) -> list[str]:
    """Of ``names``, those of an older file set of the same stem that the layout does not replace, the one to open first.

    A smaller set must not leave shards of a larger one, nor a single file the index of a sharded one: other tools
    would open the wrong one.
    """
    new = {file.name for file in layout.files}
    old = backend.file_sets(names).get(stem, ())
    return [name for name in reversed(old) if name in names and name not in new]
