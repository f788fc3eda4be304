"""``tree.json``: the skeleton of a saved state, and where in the step's files the bytes of each tensor lie.

The law: ``TreeFile.decode(tree.encode())`` equals ``tree``. There may be many tensors, so each is one row on one line,
and rows are checked by columns. The manifest has the checksum of the whole file.
"""

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NoReturn, Self, TypeAlias

from ckptmgr import garbage
from ckptmgr.box import Box
from ckptmgr.errors import CorruptCheckpointError, FormatVersionError, shown
from ckptmgr.fields import Fields
from ckptmgr.manifest import FORMAT_VERSION, TREE, check_version
from ckptmgr.spec import TensorSpec
from ckptmgr.step import JSON
from ckptmgr.table import Row, Table, check_type, nbytes

__all__ = ["Row", "RowFields", "TreeFile", "TreeText", "encode"]

RowFields: TypeAlias = tuple[str, TensorSpec, str, int | None, int | None, Box | None]  # a row as a plain tuple

_HEAD = b'{\n"format_version": %d,\n"files": ' % FORMAT_VERSION  # as `encode` begins; the files end with their line
_FEW = 16  # tensors that are looked up one by one before all rows are decoded


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
        table = Table.of(self.rows)
        return [table.files[index] for index in dict.fromkeys(table.indexes)]

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
        if (name := Table.of(self.rows).intruder()) is not None:
            raise CorruptCheckpointError(f"{where!r} gives the tensor {name!r} bytes that it cannot have", file=TREE, tensor=name)

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
        rows = Table.parse(fields.array("tensors"), fields.texts("files"))
        aliases, names = fields.object("aliases"), rows.numbers
        for alias, name in aliases.items():
            if alias in names or type(name) is not str or name not in names:
                raise ValueError(f"has the alias {alias!r} of {name!r}, which is no tensor of it")
        metadata, skeleton = fields.object("metadata"), fields.optional("skeleton")
        paths = fields.object("paths") if "paths" in fields.rest else {}
        return cls(skeleton, rows, aliases, metadata, _paths(paths))


class TreeText:
    """The bytes of a ``tree.json`` that are decoded no further than somebody asks: one tensor is found by its line.

    ``files`` are those that tensors may lie in. Raises like `TreeFile.decode` and `TreeFile.check`, when it is asked; errors
    tell the ``step``.
    """

    def __init__(self, data: bytes, files: Collection[str], *, where: str, step: int | None = None) -> None:
        self._data = data
        self._allowed = files
        self._where, self._step = where, step
        self._asked = 0
        if not data.startswith(_HEAD):
            _ = self.tree  # of another version, or not as we write it

    @functools.cached_property
    def tree(self) -> TreeFile:
        """All of it, checked."""
        tree = self._decoded(self._data)
        self._asked = _FEW
        return tree

    def only(self, name: str) -> TreeFile | None:
        """The rows of one tensor alone, checked as all are; None if it has none here, or all rows should be decoded now."""
        if self._asked >= _FEW:
            return None
        self._asked += 1
        start, lines = b"\n[" + quoted(name).encode() + b",", []
        at = self._data.find(start)
        while at >= 0:
            lines.append(self._data[at + 1 : self._data.find(b"\n", at + 1)].rstrip(b","))
            at = self._data.find(start, at + 1)
        if not lines:
            return None
        files = self._data[len(_HEAD) : self._data.find(b",\n", len(_HEAD))]
        # Of a whole tree, so that nothing is checked in another way.
        text = b'{"format_version":%d,"aliases":{},"metadata":{},"files":%s,"tensors":[%s]}'
        return self._decoded(text % (FORMAT_VERSION, files, b",".join(lines)))

    def _decoded(self, data: bytes) -> TreeFile:
        try:
            tree = TreeFile.decode(data, where=self._where)
            tree.check(self._allowed, where=self._where)
        except CorruptCheckpointError as error:
            error.step = self._step
            raise
        return tree


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
        f"{spec.nbytes if box is None else nbytes(spec, box)},{'null' if crc32c is None else crc32c}"
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


def _paths(paths: Mapping[str, Any]) -> dict[str, tuple[str | int, ...]]:
    check_type(paths.values(), list)
    if not set(map(type, chain.from_iterable(paths.values()))) <= {str, int}:
        raise ValueError("has a path of a tensor with a key that is no str or int")
    return {name: tuple(path) for name, path in paths.items()}
