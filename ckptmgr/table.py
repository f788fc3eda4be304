"""The rows of a ``tree.json`` as columns: where each tensor lies, checked for all of them at once.

The law: no more Python objects than columns. There may be 20,000 rows, and one object for each costs more than reading their
bytes; a `Row` is made when somebody asks for one.
"""

import functools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Self, overload

import numpy as np

from ckptmgr.box import Box
from ckptmgr.errors import UnsupportedTensorError
from ckptmgr.fields import MAX_INT
from ckptmgr.spec import TensorSpec

MAX_RANK = 64

_DTYPE = re.compile(r"[a-z]{3}[0-9A-Za-z_\[\]]*")  # units of time have capitals: datetime64[D]
_WHOLE, _SLICE = 7, 9  # fields of a row: a slice has its start and stop besides


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
    sizes: Sequence[int]
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
        sizes = [nbytes(row.spec, row.box) for row in rows]
        indexes = [files[file] for file in places]
        return cls(names, specs, list(files), indexes, offsets, sizes, checksums, boxes if any(boxes) else None)

    @classmethod
    def parse(cls, rows: list[Any], files: list[str]) -> Self:
        """The table whose rows are JSON, which may be anything.

        Raises:
            ValueError: a row that cannot be; the message goes on from the name of the file.
        """
        if len(set(files)) < len(files):
            raise ValueError("lists a file twice")
        check_type(rows, list)
        lengths = set(map(len, rows))
        if not lengths <= {_WHOLE, _SLICE}:
            raise ValueError(f"has a row of neither {_WHOLE} nor {_SLICE} fields among its tensors")
        columns = list(zip(*rows, strict=False)) or [()] * _WHOLE  # to the end of the shortest: those of slices come below
        names, dtypes, shapes, indexes, offsets, sizes, checksums = columns[:_WHOLE]
        check_type(names, str)
        _check_range(indexes, len(files) - 1, "files")
        _check_range(sizes, MAX_INT, "sizes")
        _check_range(_known(offsets), MAX_INT, "offsets")
        _check_range(_known(checksums), 2**32 - 1, "checksums")
        specs = _specs(dtypes, shapes)
        boxes = _boxes(rows, specs) if _SLICE in lengths else None
        expected = tuple([spec.nbytes for spec in specs] if boxes is None else map(nbytes, specs, boxes))
        if sizes != expected:
            name, found, size = next(each for each in zip(names, sizes, expected, strict=True) if each[1] != each[2])
            raise ValueError(f"gives the tensor {name!r} {found} bytes, where its dtype and shape make {size}")
        _check_names(names, specs, sliced=boxes is not None)
        return cls(list(names), specs, files, indexes, offsets, sizes, checksums, boxes)

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
        return np.array([-1 if offset is None else offset for offset in self.offsets], np.int64)

    def intruder(self) -> str | None:
        """The name of a tensor that has bytes of another one, or bytes where strings have none."""
        offsets, sizes = self.places, np.array(self.sizes, np.uint64)
        # A string tensor has no bytes, but a slice of one is not 0 bytes by its dtype.
        strings = [index for index, spec in enumerate(self.specs) if spec.is_string] if self.boxes or 0 in self.sizes else ()
        if wrong := [index for index in strings if offsets[index] >= 0]:
            return self.names[wrong[0]]
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


def _specs(dtypes: Sequence[Any], shapes: Sequence[Any]) -> list[TensorSpec]:
    """One spec per row, the same object for equal ones."""
    check_type(dtypes, str)
    check_type(shapes, list)
    check_type(chain.from_iterable(shapes), int)
    made: dict[tuple[str, tuple[int, ...]], TensorSpec] = {}
    return [made.get(key) or made.setdefault(key, _spec(*key)) for key in zip(dtypes, map(tuple, shapes), strict=True)]


def _spec(dtype: str, shape: tuple[int, ...]) -> TensorSpec:
    if len(shape) > MAX_RANK or not _DTYPE.fullmatch(dtype):
        raise ValueError(f"has a tensor of dtype {dtype[:40]!r} and rank {len(shape)}")
    _check_range(shape, MAX_INT, "dimensions")
    try:
        spec = TensorSpec(dtype, shape)
    except (UnsupportedTensorError, ValueError) as error:
        raise ValueError(f"has a tensor that is none: {error}") from error
    if math.prod(filter(None, shape)) * spec.numpy.itemsize > MAX_INT:  # numpy makes no such array, not even an empty one
        raise ValueError(f"has a tensor of shape {shape}, which no array can have")
    return spec


def _boxes(rows: list[Any], specs: list[TensorSpec]) -> list[Box | None]:
    """The slice each row is of; None for a whole tensor."""
    return [_box(row, spec) if len(row) == _SLICE else None for row, spec in zip(rows, specs, strict=True)]


def _box(row: list[Any], spec: TensorSpec) -> Box:
    start, stop = row[_WHOLE:]
    check_type((start, stop), list)
    check_type((*start, *stop), int)
    box = Box(tuple(start), tuple(stop))
    if not box.fits(spec.shape):
        raise ValueError(f"has a slice of the tensor {row[0]!r} from {box.start} to {box.stop}, outside of {spec.shape}")
    return box


def _check_names(names: Collection[str], specs: list[TensorSpec], *, sliced: bool) -> None:
    kinds = dict(zip(names, specs, strict=True))
    if len(kinds) == len(names):
        return
    if not sliced:
        raise ValueError("has a tensor twice")
    if wrong := [name for name, spec in zip(names, specs, strict=True) if kinds[name] is not spec]:
        raise ValueError(f"has slices of the tensor {wrong[0]!r} that differ in dtype or shape")
