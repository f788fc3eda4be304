"""Where each tensor of a step lies, in columns: as they stand in ``tree.json``, checked for all of them at once.

The law: no more Python objects than columns. There may be 20,000 rows, and one object for each costs more than reading their
bytes; a `Row` is made when somebody asks for one.

In JSON the columns are cut into blocks of a few hundred rows, so that one tensor can be found without the others. What a tensor
is, its dtype, shape and size, is said once for all that are alike: their kind.
"""

import functools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, repeat
from operator import attrgetter
from types import NoneType
from typing import Any, NamedTuple, Self, TypeAlias, overload

import numpy as np

from ckptmgr.box import Box
from ckptmgr.errors import UnsupportedTensorError
from ckptmgr.fields import MAX_INT, Fields
from ckptmgr.spec import MAX_RANK, PACKED_BITS, TensorSpec, is_possible, numpy_dtype, tensor_spec
from ckptmgr.step import JSON

BLOCK = 256  # rows at most

_Array: TypeAlias = np.ndarray[Any, Any]
_nbytes = attrgetter("nbytes")
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
    """Rows as columns of one length. ``indexes`` are those of ``files``; ``boxes`` None: all rows are whole tensors.

    ``indexes``, ``offsets`` and ``checksums`` are int64, with -1 for None (see `column`).
    """

    names: Sequence[str]
    specs: Sequence[TensorSpec]
    files: Sequence[str]
    indexes: _Array
    offsets: _Array
    checksums: _Array
    boxes: Sequence[Box | None] | None = None

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Table":
        """Rows as a table; a table is itself."""
        if isinstance(rows, Table):
            return rows
        files = {file: index for index, file in enumerate(dict.fromkeys(row.file for row in rows))}
        columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in Row._fields]
        names, specs, places, offsets, checksums, boxes = columns
        indexes = column([files[file] for file in places])
        return cls(names, specs, list(files), indexes, column(offsets), column(checksums), boxes if any(boxes) else None)

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
        counts: list[int] = []
        for value in blocks:
            block = Fields(value, "a block of tensors")
            indexes.append(files.setdefault(block.text("file"), len(files)))
            found = [block.array(key) for key in ("names", "kinds", "offsets", "crc32c")]
            found.append(_pairs(block) if "starts" in block.rest else [None] * len(found[0]))
            if len(set(map(len, found))) > 1:
                raise ValueError(f"has a block of {len(found[0])} tensors with columns of other lengths")
            for values, part in zip((names, numbers, offsets, checksums, slices), found, strict=True):
                values += part
            counts.append(len(found[0]))
        check_type(names, str)
        check_type(numbers, int)
        specs = list(map(_specs(kinds, set(numbers)).__getitem__, numbers))
        columns = _checked(offsets, MAX_INT, "offsets"), _checked(checksums, 2**32 - 1, "checksums")
        boxes = list(map(_box, names, specs, slices)) if any(slices) else None
        table = cls(names, specs, list(files), np.repeat(column(indexes), counts), *columns, boxes)
        table._check_names()
        return table

    def _check_names(self) -> None:
        if len(self.spec_of) == len(self.names):
            return
        if self.boxes is None:
            raise ValueError("has a tensor twice")
        if wrong := [name for name, spec in zip(self.names, self.specs, strict=True) if self.spec_of[name] is not spec]:
            raise ValueError(f"has slices of the tensor {wrong[0]!r} that differ in dtype or shape")

    def blocks(self) -> tuple[Iterator[JSON], list[JSON]]:
        """The blocks, each made when it is taken, and the kinds, as `parse` takes them."""
        specs = {id(spec): spec for spec in self.specs}  # by identity: there are few, and to hash one costs more than all else
        numbers = {spec: number for number, spec in enumerate(dict.fromkeys(specs.values()))}
        number_of = {key: numbers[spec] for key, spec in specs.items()}
        kinds = list(map(number_of.__getitem__, map(id, self.specs)))
        blocks = (self._block(rows, kinds) for rows in self._cut())
        return blocks, [[spec.dtype, list(spec.shape), spec.nbytes] for spec in numbers]

    def _block(self, rows: slice, kinds: list[int]) -> JSON:
        block: dict[str, Any] = {
            "file": self.files[self.indexes[rows.start]],
            "names": self.names[rows],
            "kinds": kinds[rows],
            "offsets": plain(self.offsets[rows]),
            "crc32c": plain(self.checksums[rows]),
        }
        if self.boxes and (boxes := [box for box in self.boxes[rows] if box is not None]):
            block |= {"starts": [box.start for box in boxes], "stops": [box.stop for box in boxes]}
        return block

    def _cut(self) -> Iterator[slice]:
        """The rows in blocks: of one file each, and of whole tensors or of slices."""
        indexes = self.indexes.tolist()
        alike = indexes if self.boxes is None else zip(indexes, (box is None for box in self.boxes), strict=True)
        start = 0
        for _, run in groupby(alike):
            stop = start + len(list(run))
            yield from (slice(at, min(at + BLOCK, stop)) for at in range(start, stop, BLOCK))
            start = stop

    @functools.cached_property
    def spec_of(self) -> Mapping[str, TensorSpec]:
        """By name what each tensor is."""
        return dict(zip(self.names, self.specs, strict=True))

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
    def sizes(self) -> _Array:
        """Bytes of each row as an array of uint64."""
        sizes = map(_nbytes, self.specs) if self.boxes is None else map(nbytes, self.specs, self.boxes)
        return np.fromiter(sizes, np.uint64, len(self.specs))

    def intruder(self) -> str | None:
        """The name of a tensor that has bytes of another one, or bytes where strings have none."""
        offsets, sizes = self.offsets, self.sizes
        # A string tensor has no bytes, but a slice of one is not 0 bytes by its dtype.
        strings = [index for index, spec in enumerate(self.specs) if spec.is_string] if self.boxes or 0 in self.sizes else ()
        if wrong := [index for index in strings if offsets[index] >= 0]:
            return self.names[wrong[0]]
        if len(self.names) < 2:
            return None
        held = np.flatnonzero((offsets >= 0) & (sizes > 0))
        files, starts, stops = self.indexes[held], offsets[held].astype(np.uint64), offsets[held].astype(np.uint64) + sizes[held]
        if _follow(files, starts, stops).all():
            return None  # all are in the order of their files, as most writers put them
        order = np.lexsort((starts, files))
        bad = np.flatnonzero(~_follow(files[order], starts[order], stops[order]))
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
        offset, checksum = int(self.offsets[index]), int(self.checksums[index])
        known = None if offset == -1 else offset, None if checksum == -1 else checksum
        return Row(self.names[index], self.specs[index], file, *known, box)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Row]:
        files = map(self.files.__getitem__, self.indexes)
        columns = self.names, self.specs, files, plain(self.offsets), plain(self.checksums), self.boxes or repeat(None)
        return map(Row, *columns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def nbytes(spec: TensorSpec, box: Box | None) -> int:
    """Bytes of a tensor, or of the slice of it."""
    return spec.nbytes if box is None else box.size * spec.numpy.itemsize


def check_type(values: Iterable[Any], *kinds: type) -> set[type]:
    """The types of these values. Raises ValueError unless each is exactly one of ``kinds``: true is no integer."""
    found = set(map(type, values))
    if strange := found.difference(kinds):
        raise ValueError(f"has a {strange.pop().__name__} among its tensors where a {kinds[0].__name__} belongs")
    return found


def column(values: Sequence[int | None]) -> _Array:
    """These integers as an array of int64, with -1 for None."""
    try:
        made: _Array = np.array(values, np.int64)
    except TypeError:  # of None: to look for it would take as long as all else
        made = np.array([-1 if value is None else value for value in values], np.int64)
    return made


def plain(values: _Array) -> list[int | None]:
    """What a `column` was made of."""
    found: list[int | None] = values.tolist()
    return [None if value == -1 else value for value in found] if -1 in values else found


def _checked(values: Sequence[Any], most: int, what: str) -> _Array:
    """These values as a `column`. Raises ValueError unless each is None or an integer from 0 to ``most``."""
    has_none = NoneType in check_type(values, int, NoneType)
    known = [value for value in values if value is not None] if has_none else values
    try:
        found: _Array = np.array(known, np.int64)
    except OverflowError:
        raise _out_of_range(known, what) from None
    if np.any((found < 0) | (found > most)):
        raise _out_of_range(known, what)
    return column(values) if has_none else found


def _check_range(values: Collection[Any], most: int, what: str) -> None:
    check_type(values, int)
    if values and not (min(values) >= 0 and max(values) <= most):
        raise _out_of_range(values, what)


def _out_of_range(values: Collection[int], what: str) -> ValueError:
    return ValueError(f"has {what} of tensors out of range (from {min(values)} to {max(values)})")


def _follow(files: _Array, starts: _Array, stops: _Array) -> _Array:
    """Whether each of these pieces of files, but the first, comes after the one before and shares no byte with it."""
    found: _Array = (files[1:] > files[:-1]) | ((files[1:] == files[:-1]) & (starts[1:] >= stops[:-1]))
    return found


def _specs(kinds: Sequence[Any], numbers: Collection[int]) -> dict[int, TensorSpec]:
    """The specs of the kinds with these numbers, the same object for equal ones."""
    _check_range(numbers, len(kinds) - 1, "kinds")
    used = {number: kinds[number] for number in numbers}
    for kind in used.values():
        if type(kind) is not list or len(kind) != 3 or type(kind[0]) is not str or type(kind[1]) is not list:
            raise ValueError(f"has {kind!r:.60} as a kind of tensors, which is no dtype, shape and bytes")
    check_type(chain.from_iterable(shape for _, shape, _ in used.values()), int)
    made: dict[TensorSpec, TensorSpec] = {}
    return {number: made.setdefault(spec := _spec(*kind), spec) for number, kind in used.items()}


def _spec(dtype: str, sizes: list[int], size: Any) -> TensorSpec:
    shape = tuple(sizes)
    if len(shape) > MAX_RANK or not _DTYPE.fullmatch(dtype):
        raise ValueError(f"has a tensor of dtype {dtype[:40]!r} and rank {len(shape)}")
    if shape and (min(shape) < 0 or max(shape) > MAX_INT):
        raise _out_of_range(shape, "dimensions")
    try:
        # The object that arrays of that kind have: to find two of them equal would take more than all else in a match.
        spec = TensorSpec(dtype, shape) if dtype in PACKED_BITS else tensor_spec(numpy_dtype(dtype), shape)
    except (UnsupportedTensorError, ValueError) as error:
        raise ValueError(f"has a tensor that is none: {error}") from error
    if not is_possible(shape, spec.numpy.itemsize):
        raise ValueError(f"has a tensor of shape {shape}, which no array can have")
    if type(size) is not int or size != spec.nbytes:
        raise ValueError(f"gives tensors of dtype {dtype} and shape {sizes} {size!r:.40} bytes, where these make {spec.nbytes}")
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
