"""Where each tensor of a step lies, in columns: as they stand in ``tree.json``, checked for all of them at once.

The law: no more Python objects than columns. There may be 20,000 rows, and one object for each costs more than reading their
bytes; a `Row` is made when somebody asks for one.

In JSON the columns are cut into blocks of a few hundred rows, so that one tensor can be found without the others. What a tensor
is, its dtype, shape and size, is said once for all that are alike: their kind.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, repeat
from typing import Any, NamedTuple, Self, overload

import numpy as np

from ckptmgr.box import Box
from ckptmgr.errors import UnsupportedTensorError
from ckptmgr.fields import MAX_INT, Fields
from ckptmgr.spec import MAX_RANK, TensorSpec, is_possible
from ckptmgr.step import JSON

BLOCK = 256  # rows at most

_DTYPE = re.compile(r"[a-z]{3}[0-9A-Za-z_\[\]]*")  # units of time have capitals: datetime64[D]


class Row(NamedTuple):
    """Where a tensor, or the slice ``box`` of it, lies in one of the step's files.

    ``offset`` None: not as raw bytes; only the file's own format can decode it (string tensors).
    """

    name: str
    spec: TensorSpec
    file: str
    offset: int | None
    crc32c: int | None
    box: Box | None = None


@dataclass(frozen=True, eq=False)
class Table(Sequence[Row]):
    """Rows as columns of one length. ``indexes`` are those of ``files``; ``boxes`` None: all rows are whole tensors."""

    names: Sequence[str]
    specs: Sequence[TensorSpec]
    files: Sequence[str]
    indexes: Sequence[int]
    offsets: Sequence[int | None]
    checksums: Sequence[int | None]
    boxes: Sequence[Box | None] | None = None

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Table":
        """Rows as a table; a table is itself."""
        if isinstance(rows, Table):
            return rows
        files = {file: index for index, file in enumerate(dict.fromkeys(row.file for row in rows))}
        columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in Row._fields]
        names, specs, places, offsets, checksums, boxes = columns
        return cls(names, specs, list(files), [files[file] for file in places], offsets, checksums, boxes if any(boxes) else None)

    @classmethod
    def parse(cls, blocks: Sequence[JSON], kinds: Sequence[JSON]) -> Self:
        """The table whose blocks and kinds are JSON, which may be anything; kinds that no row has are not looked at.

        Raises:
            ValueError: a row that cannot be; the message goes on from the name of the file.
        """
        names: list[Any] = []
        numbers: list[Any] = []
        offsets: list[Any] = []
        checksums: list[Any] = []
        slices: list[Any] = []
        files: dict[str, int] = {}
        indexes: list[int] = []
        for value in blocks:
            block = Fields(value, "a block of tensors")
            index = files.setdefault(block.text("file"), len(files))
            found = [block.array(key) for key in ("names", "kinds", "offsets", "crc32c")]
            found.append(_pairs(block) if "starts" in block.rest else [None] * len(found[0]))
            if len(set(map(len, found))) > 1:
                raise ValueError(f"has a block of {len(found[0])} tensors with columns of other lengths")
            for column, part in zip((names, numbers, offsets, checksums, slices), found, strict=True):
                column += part
            indexes += repeat(index, len(found[0]))
        check_type(names, str)
        _check_range(numbers, len(kinds) - 1, "kinds")
        _check_range(_known(offsets), MAX_INT, "offsets")
        _check_range(_known(checksums), 2**32 - 1, "checksums")
        specs = list(map(_specs(kinds, set(numbers)).__getitem__, numbers))
        boxes = list(map(_box, names, specs, slices)) if any(slices) else None
        table = cls(names, specs, list(files), indexes, offsets, checksums, boxes)
        table._check_names()
        return table

    def _check_names(self) -> None:
        if len(self.numbers) == len(self.names):
            return
        if self.boxes is None:
            raise ValueError("has a tensor twice")
        kinds = dict(zip(self.names, self.specs, strict=True))
        if wrong := [name for name, spec in zip(self.names, self.specs, strict=True) if kinds[name] is not spec]:
            raise ValueError(f"has slices of the tensor {wrong[0]!r} that differ in dtype or shape")

    def blocks(self) -> tuple[list[JSON], list[JSON]]:
        """The blocks and the kinds, as `parse` takes them."""
        specs = {id(spec): spec for spec in self.specs}  # by identity: there are few, and to hash one costs more than all else
        numbers = {spec: number for number, spec in enumerate(dict.fromkeys(specs.values()))}
        number_of = {key: numbers[spec] for key, spec in specs.items()}
        kinds = list(map(number_of.__getitem__, map(id, self.specs)))
        return [self._block(rows, kinds) for rows in self._cut()], [
            [spec.dtype, list(spec.shape), spec.nbytes] for spec in numbers
        ]

    def _block(self, rows: slice, kinds: list[int]) -> JSON:
        block: dict[str, Any] = {
            "file": self.files[self.indexes[rows.start]],
            "names": self.names[rows],
            "kinds": kinds[rows],
            "offsets": self.offsets[rows],
            "crc32c": self.checksums[rows],
        }
        if self.boxes and (boxes := [box for box in self.boxes[rows] if box is not None]):
            block |= {"starts": [box.start for box in boxes], "stops": [box.stop for box in boxes]}
        return block

    def _cut(self) -> Iterator[slice]:
        """The rows in blocks: of one file each, and of whole tensors or of slices."""
        alike = self.indexes if self.boxes is None else zip(self.indexes, (box is None for box in self.boxes), strict=True)
        start = 0
        for _, run in groupby(alike):
            stop = start + len(list(run))
            yield from (slice(at, min(at + BLOCK, stop)) for at in range(start, stop, BLOCK))
            start = stop

    @functools.cached_property
    def numbers(self) -> dict[str, list[int] | int]:
        """By name the number of the row, or those of all rows of a tensor in slices."""
        if self.boxes is None:
            return dict(zip(self.names, range(len(self.names)), strict=True))
        found: dict[str, list[int] | int] = {}
        for number, name in enumerate(self.names):
            rows = found.setdefault(name, [])
            assert isinstance(rows, list)
            rows.append(number)
        return found

    def rows_of(self, name: str) -> list[Row]:
        """The rows of a tensor. Raises KeyError."""
        numbers = self.numbers[name]
        return [self[number] for number in ([numbers] if isinstance(numbers, int) else numbers)]

    @functools.cached_property
    def places(self) -> np.ndarray[Any, Any]:
        """The offset of each row as an array of int64; -1 for none."""
        offsets = self.offsets if None not in self.offsets else [-1 if offset is None else offset for offset in self.offsets]
        return np.array(offsets, np.int64)

    @functools.cached_property
    def sizes(self) -> np.ndarray[Any, Any]:
        """Bytes of each row as an array of uint64."""
        sizes = [spec.nbytes for spec in self.specs] if self.boxes is None else map(nbytes, self.specs, self.boxes)
        return np.fromiter(sizes, np.uint64, len(self.specs))

    def intruder(self) -> str | None:
        """The name of a tensor that has bytes of another one, or bytes where strings have none."""
        offsets, sizes = self.places, self.sizes
        # A string tensor has no bytes, but a slice of one is not 0 bytes by its dtype.
        strings = [index for index, spec in enumerate(self.specs) if spec.is_string] if self.boxes or 0 in self.sizes else ()
        if wrong := [index for index in strings if offsets[index] >= 0]:
            return self.names[wrong[0]]
        if len(self.names) < 2:
            return None
        held = np.flatnonzero((offsets >= 0) & (sizes > 0))
        files = np.array(self.indexes, np.int64)[held]
        starts, stops = offsets[held].astype(np.uint64), offsets[held].astype(np.uint64) + sizes[held]
        order = np.lexsort((starts, files))
        starts, stops, files = starts[order], stops[order], files[order]
        bad = np.flatnonzero((files[1:] == files[:-1]) & (starts[1:] < stops[:-1]))
        return self.names[held[order[bad[0] + 1]]] if bad.size else None

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        box = None if self.boxes is None else self.boxes[index]
        file = self.files[self.indexes[index]]
        return Row(self.names[index], self.specs[index], file, self.offsets[index], self.checksums[index], box)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Row]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def nbytes(spec: TensorSpec, box: Box | None) -> int:
    """Bytes of a tensor, or of the slice of it."""
    return spec.nbytes if box is None else box.size * spec.numpy.itemsize


def check_type(values: Iterable[Any], kind: type) -> None:
    """Raises ValueError unless all values are of exactly that type: true is no integer."""
    if found := set(map(type, values)) - {kind}:
        raise ValueError(f"has a {found.pop().__name__} among its tensors where a {kind.__name__} belongs")


def _known(values: Sequence[Any]) -> Sequence[Any]:
    return [value for value in values if value is not None] if None in values else values


def _check_range(values: Sequence[Any], most: int, what: str) -> None:
    check_type(values, int)
    if values and not (min(values) >= 0 and max(values) <= most):
        raise ValueError(f"has {what} of tensors out of range (from {min(values)} to {max(values)})")


def _specs(kinds: Sequence[JSON], numbers: Iterable[int]) -> dict[int, TensorSpec]:
    """The specs of the kinds with these numbers, the same object for equal ones."""
    made: dict[TensorSpec, TensorSpec] = {}
    return {number: made.setdefault(spec := _kind(kinds[number]), spec) for number in numbers}


def _kind(kind: Any) -> TensorSpec:
    if type(kind) is not list or len(kind) != 3 or type(kind[0]) is not str or type(kind[1]) is not list:
        raise ValueError(f"has {kind!r:.60} as a kind of tensors, which is no dtype, shape and bytes")
    dtype, shape, size = kind
    spec = _spec(dtype, tuple(shape))
    if type(size) is not int or size != spec.nbytes:
        raise ValueError(f"gives tensors of dtype {dtype} and shape {shape} {size!r:.40} bytes, where these make {spec.nbytes}")
    return spec


def _spec(dtype: str, shape: tuple[int, ...]) -> TensorSpec:
    if len(shape) > MAX_RANK or not _DTYPE.fullmatch(dtype):
        raise ValueError(f"has a tensor of dtype {dtype[:40]!r} and rank {len(shape)}")
    _check_range(shape, MAX_INT, "dimensions")
    try:
        spec = TensorSpec(dtype, shape)
    except (UnsupportedTensorError, ValueError) as error:
        raise ValueError(f"has a tensor that is none: {error}") from error
    if not is_possible(shape, spec.numpy.itemsize):
        raise ValueError(f"has a tensor of shape {shape}, which no array can have")
    return spec


def _pairs(block: Fields) -> list[tuple[JSON, JSON]]:
    """Where each slice starts and stops."""
    starts, stops = block.array("starts"), block.array("stops")
    if len(starts) != len(stops):
        raise ValueError(f"has a block with {len(starts)} starts and {len(stops)} stops of slices")
    return list(zip(starts, stops, strict=True))


def _box(name: str, spec: TensorSpec, ends: tuple[Any, Any] | None) -> Box | None:
    """The slice with these ends; None for a whole tensor."""
    if ends is None:
        return None
    check_type(ends, list)
    start, stop = map(tuple, ends)
    check_type((*start, *stop), int)
    box = Box(start, stop)
    if not box.fits(spec.shape):
        raise ValueError(f"has a slice of the tensor {name!r} from {box.start} to {box.stop}, outside of {spec.shape}")
    return box
