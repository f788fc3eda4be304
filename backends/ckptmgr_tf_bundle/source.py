"""The tensors of an opened checkpoint by their names. Nothing is read before somebody asks for it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np

from ckptmgr.backend import JSON, Box, Extent, Places, TensorSpec
from ckptmgr_tf_bundle import literal
from ckptmgr_tf_bundle.bundle import Bundle
from ckptmgr_tf_bundle.keys import GRAPH_KEY


@dataclass(frozen=True, slots=True)
class BundleSource:
    """A `TensorSource` over one bundle. ``paths`` tells how its names nest.

    ``blobs`` holds the object graph under its own key, and each variant (a dataset's position, which only TensorFlow
    decodes) under its name, as bytes that a TensorFlow checkpoint can be written with again; read when they are asked for.
    It holds no open file, so `close` has nothing to do.
    """

    bundle: Bundle
    keys: Mapping[str, str]
    aliases: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    variants: Mapping[str, str] = field(default_factory=dict)

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Dtype and shape by name. That of an entry that is damaged is asked for in vain: CorruptCheckpointError."""
        return _Specs(self.bundle, self.keys)

    @property
    def blobs(self) -> Mapping[str, bytes]:
        """See the class."""
        return _Blobs(self.bundle, self.variants)

    def extents(self, name: str) -> Sequence[Extent]:
        """Where the tensor lies, one extent a slice; empty for what only `read` can decode. An alias has its tensor's."""
        return self.bundle.extents(self._key(name))

    def extents_of(self, names: Sequence[str]) -> Places:
        """See `Bulk`."""
        return self.bundle.extents_of([self._key(name) for name in names])

    def read(self, name: str, box: Box | None = None, out: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
        """See `TensorSource.read`; what is read whole is checked against its crc32c.

        Raises:
            KeyError: no tensor of that name.
            ValueError: ``box`` is not inside the tensor, or ``out`` is of another shape or dtype.
            CorruptCheckpointError: the bytes are not those that were written.
        """
        return self.bundle.read(self._key(name), box, out)

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _key(self, name: str) -> str:
        return self.keys[self.aliases.get(name, name)]


@dataclass(frozen=True, slots=True)
class _Specs(Mapping[str, TensorSpec]):
    bundle: Bundle
    keyed: Mapping[str, str]  # name -> key

    def __getitem__(self, name: str) -> TensorSpec:
        return self.bundle.specs[self.keyed[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keyed)

    def __len__(self) -> int:
        return len(self.keyed)

    def __contains__(self, name: object) -> bool:
        return name in self.keyed


@dataclass(frozen=True, slots=True)
class _Blobs(Mapping[str, bytes]):
    bundle: Bundle
    variants: Mapping[str, str]  # name -> key

    def __getitem__(self, name: str) -> bytes:
        if name == GRAPH_KEY and GRAPH_KEY in self.bundle.specs:
            return bytes(self.bundle.read(GRAPH_KEY).item())
        key = self.variants[name]
        return literal.variant(self.bundle.variants[key], self.bundle.stored(key))

    def __iter__(self) -> Iterator[str]:
        yield from [GRAPH_KEY] if GRAPH_KEY in self.bundle.specs else []
        yield from self.variants

    def __len__(self) -> int:
        return sum(1 for _ in self)
