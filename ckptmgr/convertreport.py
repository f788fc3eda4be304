"""What a conversion did, tensor by tensor, and what it could not take along."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ckptmgr.errors import shown
from ckptmgr.step import JSON
from ckptmgr.transfer import Stats

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ConvertedTensor:
    """One tensor. ``source`` and ``name`` are what it is called there and here, ``dtype`` and ``shape`` what it is here.
    A rule for layers may make one of several, whose names then have ``+`` between, or of none.

    ``crc32c`` is that of its raw bytes here, and ``source_crc32c`` there: None where the source's format has none. ``note`` says
    why the two are not equal, or not known: ``""`` if they are.
    """

    source: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    source_crc32c: int | None
    crc32c: int | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What became of everything in ``source``, which is of the format ``source_backend``.

    ``files`` are the new ones. ``aliases`` leads from tied names to tensors. ``held`` is what else is in its own place in the
    new format, ``carried`` what is only kept for a conversion back, ``lost`` what is not there any more, with the reason; a
    tensor never is. ``left_out`` are tensors of the source that ``select`` did not match.
    """

    source: str
    source_backend: str
    destination: str
    backend: str
    step: int | None
    files: tuple[str, ...]
    tensors: tuple[ConvertedTensor, ...]
    aliases: Mapping[str, str]
    held: tuple[str, ...]
    carried: tuple[str, ...]
    lost: Mapping[str, str]
    left_out: tuple[str, ...]
    stats: Stats = field(compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def __str__(self) -> str:
        verified = sum(tensor.source_crc32c is not None or tensor.note == OTHERS for tensor in self.tensors)
        lines = [
            f"{self.source!r} ({self.source_backend}) to {self.destination!r} ({self.backend}): "
            f"{len(self.tensors)} tensors, {self.nbytes} bytes, {verified} compared with the source's checksums."
        ]
        notes: dict[str, list[str]] = {}
        for tensor in self.tensors:
            if tensor.note not in ("", NO_CHECKSUM, OTHERS):
                notes.setdefault(tensor.note, []).append(tensor.name)
        lines += [f"{note}: {_cut(names)}." for note, names in list(notes.items())[:_SHOWN]]
        lines += [f"renamed: {_cut([f'{t.source} to {t.name}' for t in renamed])}." for renamed in (self._renamed,) if renamed]
        lists = {"tied": [*self.aliases], "held": self.held, "kept for the way back": self.carried, "left out": self.left_out}
        lines += [f"{title}: {_cut(names)}." for title, names in lists.items() if names]
        lines += [f"NOT taken along: {_cut([f'{name} ({why})' for name, why in self.lost.items()])}."] if self.lost else []
        return "\n".join(lines)

    @property
    def _renamed(self) -> list[ConvertedTensor]:
        return [tensor for tensor in self.tensors if tensor.source not in ("", tensor.name)]

    def to_json(self) -> dict[str, JSON]:
        """All of it as plain JSON."""
        return {
            "source": self.source,
            "source_backend": self.source_backend,
            "destination": self.destination,
            "backend": self.backend,
            "step": self.step,
            "files": list(self.files),
            "nbytes": self.nbytes,
            "seconds": self.stats.seconds,
            "tensors": [
                {
                    "source": tensor.source,
                    "name": tensor.name,
                    "dtype": tensor.dtype,
                    "shape": list(tensor.shape),
                    "source_crc32c": tensor.source_crc32c,
                    "crc32c": tensor.crc32c,
                    "note": tensor.note,
                }
                for tensor in self.tensors
            ],
            "aliases": dict(self.aliases),
            "held": list(self.held),
            "carried": list(self.carried),
            "lost": dict(self.lost),
            "left_out": list(self.left_out),
        }


NO_CHECKSUM = "the source has no checksum of it"
DECODED = "not raw there: read by its format's reader"
OTHERS = "compared by other checksums that the source has"
STRING = "strings, which have no raw bytes"


def _cut(names: Sequence[str]) -> str:
    return shown(names, _SHOWN)
