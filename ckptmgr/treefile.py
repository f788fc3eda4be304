"""``tree.json``: the skeleton of a saved state, and where in the step's files the bytes of each tensor lie.

The law: ``TreeFile.decode(tree.encode())`` equals ``tree``. There may be many tensors, so each is one row on one line,
and rows are checked by columns. The manifest has the checksum of the whole file.
"""

import functools
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NamedTuple, NoReturn, Self, TypeAlias

from ckptmgr import garbage
from ckptmgr.box import Box
from ckptmgr.errors import CorruptCheckpointError, FormatVersionError, UnsupportedTensorError, shown
from ckptmgr.fields import MAX_INT, Fields
from ckptmgr.manifest import FORMAT_VERSION, TREE, check_version
from ckptmgr.spec import TensorSpec
from ckptmgr.step import JSON

MAX_RANK = 64

_DTYPE = re.compile(r"[a-z]{3}[0-9a-z_\[\]]*")
_WHOLE, _SLICE = 7, 9  # fields of a row: a slice has its start and stop besides


RowFields: TypeAlias = tuple[str, TensorSpec, str, int | None, int | None, Box | None]  # a row as a plain tuple


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


@dataclass(frozen=True, slots=True)
class TreeFile:
    """What ``tree.json`` holds. ``rows`` are in file order; ``aliases`` gives further names of tied tensors.

    ``paths`` tells how names nest where there is no skeleton: in a step that another tool wrote.
    """

    skeleton: JSON
    rows: Sequence[Row]
    aliases: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    paths: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """The files that hold tensors, in the order of the rows."""
        return _files(self.rows)

    def encode(self) -> bytes:
        """The file's bytes; see `encode`."""
        return encode(self.skeleton, self.rows, self.aliases, self.metadata, self.paths)

    def check(self, files: Collection[str], *, where: str) -> None:
        """Raises CorruptCheckpointError unless all tensors lie in these files and no byte belongs to two of them.

        Otherwise a small file could ask for bytes of another step, or for any amount of memory.
        """
        if strange := [file for file in self.files if file not in files]:
            text = f"{where!r} has tensors in {shown(strange)}, which the manifest does not name"
            raise CorruptCheckpointError(text, file=TREE)
        ends: dict[str, int] = {}
        for name, spec, file, offset, _, box in sorted(self.rows, key=lambda row: row.offset or 0):
            if offset is None:
                continue
            end = ends.get(file, 0)
            if spec.is_string or (offset < end and spec.nbytes):
                text = f"{where!r} gives the tensor {name!r} bytes that it cannot have"
                raise CorruptCheckpointError(text, file=TREE, tensor=name)
            ends[file] = max(offset + _nbytes(spec, box), end)

    @classmethod
    @garbage.later()
    def decode(cls, data: bytes, *, where: str) -> Self:
        """The tree in these bytes, which may be anything. ``where`` is their place.

        The skeleton is JSON and nothing more: whoever builds a state from it checks it.

        Raises:
            CorruptCheckpointError: they are not a tree file.
            FormatVersionError: written by a newer ckptmgr.
        """
        try:
            return cls._from_json(_parse(data))
        except FormatVersionError as error:
            raise FormatVersionError(f"{where!r} {error}", found=error.found, supported=FORMAT_VERSION) from None
        except ValueError as error:
            raise CorruptCheckpointError(f"{where!r} {error}", file=TREE) from error

    @classmethod
    def _from_json(cls, value: JSON) -> Self:
        fields = Fields(value, "the tree")
        check_version(fields)
        rows = _rows(fields.array("tensors"), fields.texts("files"))
        aliases, names = fields.object("aliases"), {row.name for row in rows}
        for alias, name in aliases.items():
            if alias in names or type(name) is not str or name not in names:
                raise ValueError(f"has the alias {alias!r} of {name!r}, which is no tensor of it")
        metadata, skeleton = fields.object("metadata"), fields.optional("skeleton")
        paths = fields.object("paths") if "paths" in fields.rest else {}
        return cls(skeleton, rows, aliases, metadata, _paths(paths))


@garbage.later()
def encode(
    skeleton: JSON,
    rows: Sequence[RowFields],
    aliases: Mapping[str, str],
    metadata: Mapping[str, JSON] | None = None,
    paths: Mapping[str, tuple[str | int, ...]] | None = None,
) -> bytes:
    """The bytes of a tree file: JSON, one tensor a line. ``rows`` are as `Row` says; plain tuples will do.

    Raises:
        TypeError, ValueError: a skeleton or metadata that is not plain JSON.
    """
    files = _files(rows)
    indexes = {file: index for index, file in enumerate(files)}
    # By identity: specs are interned, and hashing one costs more than the rest of its line.
    specs = {id(row[1]): row[1] for row in rows}
    heads = {key: f"{quoted(spec.dtype)},[{','.join(map(str, spec.shape))}]" for key, spec in specs.items()}
    lines = [
        f"[{quoted(name)},{heads[id(spec)]},{indexes[file]},{'null' if offset is None else offset},"
        f"{spec.nbytes if box is None else _nbytes(spec, box)},{'null' if crc32c is None else crc32c}"
        f"{'' if box is None else f',{list(box.start)},{list(box.stop)}'}]"
        for name, spec, file, offset, crc32c, box in rows
    ]
    head = {
        "format_version": FORMAT_VERSION,
        "files": files,
        "aliases": dict(aliases),
        "metadata": dict(metadata or {}),
        **({"paths": dict(paths)} if paths else {}),
        "skeleton": skeleton,
    }
    fields = [f"{quoted(key)}: {json.dumps(value, separators=(',', ':'), allow_nan=False)}" for key, value in head.items()]
    return "{{\n{},\n{}: [\n{}\n]\n}}\n".format(",\n".join(fields), quoted("tensors"), ",\n".join(lines)).encode()


def _files(rows: Sequence[RowFields]) -> list[str]:
    return list(dict.fromkeys([row[2] for row in rows]))


def _nbytes(spec: TensorSpec, box: Box | None) -> int:
    return spec.nbytes if box is None else box.size * spec.numpy.itemsize


def _parse(data: bytes) -> JSON:
    # Without the checks of `fields.parse`, which cost more than the parsing: this file's checksum is in the manifest.
    try:
        return json.loads(data.decode(), parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _rows(rows: list[Any], files: list[str]) -> list[Row]:
    if len(set(files)) < len(files):
        raise ValueError("lists a file twice")
    _check_type(rows, list)
    if not set(map(len, rows)) <= {_WHOLE, _SLICE}:
        raise ValueError(f"has a row of neither {_WHOLE} nor {_SLICE} fields among its tensors")
    names, dtypes, shapes, indexes, offsets, sizes, checksums = ([row[column] for row in rows] for column in range(_WHOLE))
    _check_type(names, str)
    _check_range(indexes, len(files) - 1, "files")
    _check_range(sizes, MAX_INT, "sizes")
    _check_range([offset for offset in offsets if offset is not None], MAX_INT, "offsets")
    _check_range([value for value in checksums if value is not None], 2**32 - 1, "checksums")
    specs = _specs(dtypes, shapes)
    boxes = _boxes(rows, specs)
    expected = [spec.nbytes for spec in specs] if boxes is None else list(map(_nbytes, specs, boxes))
    if sizes != expected:
        name, found, size = next(each for each in zip(names, sizes, expected, strict=True) if each[1] != each[2])
        raise ValueError(f"gives the tensor {name!r} {found} bytes, where its dtype and shape make {size}")
    _check_names(names, specs, sliced=boxes is not None)
    return list(map(Row, names, specs, map(files.__getitem__, indexes), offsets, checksums, boxes or repeat(None)))


def _paths(paths: Mapping[str, Any]) -> dict[str, tuple[str | int, ...]]:
    _check_type(paths.values(), list)
    if not set(map(type, chain.from_iterable(paths.values()))) <= {str, int}:
        raise ValueError("has a path of a tensor with a key that is no str or int")
    return {name: tuple(path) for name, path in paths.items()}


def _check_type(values: Iterable[Any], kind: type) -> None:
    if found := set(map(type, values)) - {kind}:  # exactly: true is no integer
        raise ValueError(f"has a {found.pop().__name__} among its tensors where a {kind.__name__} belongs")


def _check_range(values: Sequence[Any], most: int, what: str) -> None:
    _check_type(values, int)
    if values and not (min(values) >= 0 and max(values) <= most):
        raise ValueError(f"has {what} of tensors out of range (from {min(values)} to {max(values)})")


def _specs(dtypes: Sequence[Any], shapes: Sequence[Any]) -> list[TensorSpec]:
    """One spec per row, the same object for equal ones."""
    _check_type(dtypes, str)
    _check_type(shapes, list)
    _check_type(chain.from_iterable(shapes), int)
    return list(map(functools.cache(_spec), dtypes, map(tuple, shapes)))


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


def _boxes(rows: list[Any], specs: list[TensorSpec]) -> list[Box | None] | None:
    """The slice each row is of; None if all rows are whole tensors."""
    if set(map(len, rows)) <= {_WHOLE}:
        return None
    return [_box(row, spec) if len(row) == _SLICE else None for row, spec in zip(rows, specs, strict=True)]


def _box(row: list[Any], spec: TensorSpec) -> Box:
    start, stop = row[_WHOLE:]
    _check_type((start, stop), list)
    _check_type((*start, *stop), int)
    box = Box(tuple(start), tuple(stop))
    if not box.fits(spec.shape):
        raise ValueError(f"has a slice of the tensor {row[0]!r} from {box.start} to {box.stop}, outside of {spec.shape}")
    return box


def _check_names(names: Sequence[str], specs: list[TensorSpec], *, sliced: bool) -> None:
    kinds = dict(zip(names, specs, strict=True))
    if len(kinds) == len(names):
        return
    if not sliced:
        raise ValueError("has a tensor twice")
    if wrong := [name for name, spec in zip(names, specs, strict=True) if kinds[name] is not spec]:
        raise ValueError(f"has slices of the tensor {wrong[0]!r} that differ in dtype or shape")
