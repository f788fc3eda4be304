"""One of two checkpoints that are compared: its tensors by the names they are compared under, its plain values, and the rest.

The law: what a conversion carried along stands where it stood before, so a checkpoint and what it was converted to are the same.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ckptmgr import carrying
from ckptmgr.checkpoint import Checkpoint
from ckptmgr.checksum import crc32c
from ckptmgr.comparing import told
from ckptmgr.contenthash import is_comparable
from ckptmgr.converting import cast_dtypes
from ckptmgr.diffreport import Kind
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.incremental import HASH
from ckptmgr.layout import Extent
from ckptmgr.renaming import walk
from ckptmgr.rulesets import RECORD, Rules
from ckptmgr.skeleton import TensorNode, outline, spelled
from ckptmgr.source import Summed, TensorSource
from ckptmgr.spec import TensorSpec
from ckptmgr.staging import staged
from ckptmgr.step import JSON
from ckptmgr.storage import is_local
from ckptmgr.structure import encoded
from ckptmgr.tree import join
from ckptmgr.views import Recast, Renamed


class Side:
    """A checkpoint after the rules. ``names`` has for each name of a tensor, of tied ones too, that of the tensor in ``source``.

    Raises:
        ValueError: a rule that matches nothing, or rules that give two values one name.
        CorruptCheckpointError: it is damaged.
    """

    def __init__(self, opened: Checkpoint, rules: Rules) -> None:
        self.opened = opened
        with self.explained():
            stages = staged(opened.source, opened.skeleton, rules.rules)
            source: TensorSource = Renamed(stages.source, stages.shape.names)
        dtypes = cast_dtypes(rules.cast or {}, source.specs)
        self.source = Recast(source, dtypes) if dtypes else source
        is_summed = isinstance(opened.source, Summed)
        self._summed = self.source if is_summed and isinstance(self.source, Summed) else None
        self.plain = _plain(stages.shape.skeleton)
        firsts = {name: name for name in self.source.specs if name not in self.plain}  # some formats keep scalars twice
        self.names: Mapping[str, str] = {**firsts, **stages.shape.aliases}
        self._origin = stages.origin

    def origin(self, name: str) -> str:
        """What the tensor is called before the rules; ``""`` if nothing else."""
        found = self._origin(self.names[name])
        return "" if found == self.names[name] else found

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Tells damage that this side meets from its files being deleted, and which step it is in."""
        try:
            yield
        except CorruptCheckpointError:
            with self.opened.explained():
                raise

    def spec(self, name: str) -> TensorSpec:
        """The spec of the tensor that is compared under that name."""
        return self.source.specs[self.names[name]]

    def beside(self) -> Iterator[tuple[Kind, Mapping[str, JSON]]]:
        """What is there beside the state."""
        bags, _ = carrying.baggage(self.opened, has_assets=False)
        entries = {entry.name: entry for entry in self.opened.files if entry.name in self.opened.assets}
        entries.pop(carrying.ASSET, None)
        yield "metric", {name: float(value) for name, value in bags.metrics.items()}
        yield "metadata", {key: value for key, value in bags.metadata.items() if key != RECORD}
        yield "asset", _summed(bags.assets) | {name: _sum(entry.nbytes, entry.crc32c) for name, entry in entries.items()}
        yield "blob", _summed(bags.blobs)

    def sums(self, name: str) -> dict[str, int]:
        """The checksums that are known of the tensor's bytes, by kind."""
        own = self.names[name]
        extents = self.source.extents(own)
        is_one = len(extents) == 1 and extents[0].box is None  # a short way, because there may be many
        found = {"crc32c": extents[0].crc32c if is_one else told(extents, self.source.specs[own])}
        if self._summed is not None:
            found["crc32"] = self._summed.crc32(own)
        return {kind: value for kind, value in found.items() if value is not None}

    def has_bytes_of(self, name: str, other: "Side") -> bool:
        """Whether the tensor's bytes are those of the other's, by where they lie: in one place, or in files of one content."""
        old, new = self.source.extents(self.names[name]), other.source.extents(other.names[name])
        if not old or len(old) != len(new) or self.spec(name) != other.spec(name):
            return False
        return all(
            (one.offset, one.box) == (two.offset, two.box)
            and (_is_one_file(one, two) or self._content(one.file) == other._content(two.file) != ())
            for one, two in zip(old, new, strict=True)
        )

    def _content(self, file: str) -> tuple[Any, ...]:
        """Size, crc32c and the 128-bit hash of a step's file, as incremental saves take it for proof; nothing without a hash."""
        return self._contents.get(file, ())

    @functools.cached_property
    def _contents(self) -> dict[str, tuple[Any, ...]]:
        return {
            entry.name: (entry.nbytes, entry.crc32c, entry.extra[HASH])
            for entry in self.opened.files
            if is_comparable(entry.extra.get(HASH))
        }


def _plain(skeleton: JSON) -> dict[str, JSON]:
    """The leaves of the state that are no tensors, and containers of nothing, as a skeleton has them.

    A state that is an empty dict has none: it is what a file without a skeleton has, too.
    """
    if skeleton is None:
        return {}
    leaves = walk(spelled(outline(skeleton).tree), has_empty=True)
    return {
        join(path): encoded(leaf, (), {})
        for path, leaf in leaves
        if not isinstance(leaf, TensorNode) and (path or type(leaf) is not dict)
    }


def _is_one_file(one: Extent, two: Extent) -> bool:
    if one.folder.store is two.folder.store:
        return one.folder.key(one.file) == two.folder.key(two.file)
    return (
        is_local(one.folder.store)
        and is_local(two.folder.store)
        and one.folder.location(one.file) == two.folder.location(two.file)
    )


def _summed(held: Mapping[str, bytes]) -> dict[str, JSON]:
    return {name: _sum(len(data), crc32c(data)) for name, data in held.items()}


def _sum(nbytes: int, value: int) -> JSON:
    return {"nbytes": nbytes, "crc32c": f"{value:08x}"}


def names_of(sides: Sequence[Side]) -> list[str]:
    """All names of tensors and of plain values, each once."""
    return list(dict.fromkeys(name for side in sides for name in (*side.names, *side.plain)))
