"""``tree.json``: the skeleton of a saved state, and where in the step's files the bytes of each tensor lie.

The law: ``TreeFile.decode(tree.encode())`` equals ``tree``. There may be many tensors, so they stand in columns, and a line has
those of a few hundred (see `table`). The manifest has the checksum of the whole file.
"""

import functools
import io
import json
import mmap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NoReturn, Self, TypeVar, cast

from ckptmgr import garbage
from ckptmgr.errors import CorruptCheckpointError, FormatVersionError, shown
from ckptmgr.fields import Fields
from ckptmgr.manifest import FORMAT_VERSION, TREE, check_version
from ckptmgr.step import JSON
from ckptmgr.table import Row, Table, check_type, column

__all__ = ["Row", "Table", "TreeFile", "TreeText", "column", "encode"]

T = TypeVar("T", "TreeFile", "TreeFile | None")

_HEAD = b'{\n"format_version": %d,\n"kinds": ' % FORMAT_VERSION  # as `encode` begins; the kinds follow, a line each
_TENSORS = b'\n"tensors": [\n'
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
        return [table.files[index] for index in dict.fromkeys(table.indexes.tolist())]

    def encode(self) -> bytes:
        """The file's bytes; see `encode`."""
        return encode(self.skeleton, Table.of(self.rows), self.aliases, self.metadata, self.paths)

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
    def decode(cls, data: bytes | memoryview, *, where: str) -> Self:
        """The tree in these bytes, which may be anything. ``where`` is their place.

        The skeleton is JSON and nothing more: whoever builds a state from it checks it.

        Raises:
            CorruptCheckpointError: they are not a tree file.
            FormatVersionError: written by a newer ckptmgr.
        """
        with _explained(where):
            return cls.from_json(_parse(data))

    @classmethod
    def from_json(cls, value: JSON) -> Self:
        """The tree of this JSON. Raises ValueError; the message goes on from the name of the file."""
        fields = Fields(value, "the tree")
        check_version(fields)
        rows = Table.parse(fields.array("tensors"), fields.array("kinds"))
        aliases, names = fields.object("aliases"), rows.spec_of
        for alias, name in aliases.items():
            if alias in names or type(name) is not str or name not in names:
                raise ValueError(f"has the alias {alias!r} of {name!r}, which is no tensor of it")
        metadata, skeleton = fields.object("metadata"), fields.optional("skeleton")
        paths = fields.object("paths") if "paths" in fields.rest else {}
        return cls(skeleton, rows, aliases, metadata, _paths(paths))


class TreeText:
    """The bytes of a ``tree.json`` that are decoded no further than somebody asks: one tensor is found by the line of its block.

    ``files`` are those that tensors may lie in. Raises like `TreeFile.decode` and `TreeFile.check`, when it is asked; errors
    tell the ``step``.
    """

    def __init__(self, data: bytes | memoryview, files: Collection[str], *, where: str, step: int | None = None) -> None:
        self._all = data
        # To be searched; what holds a view may end in zeros.
        self._data = cast(bytes | mmap.mmap, data.obj if isinstance(data, memoryview) else data)
        self._allowed = files
        self._where, self._step = where, step
        self._asked = 0
        if data[: len(_HEAD)] != _HEAD:
            _ = self.tree  # of another version, or not as we write it

    @functools.cached_property
    def tree(self) -> TreeFile:
        """All of it, checked."""
        tree = self._checked(lambda: TreeFile.decode(self._all, where=self._where))
        self._asked = _FEW
        return tree

    def only(self, name: str) -> TreeFile | None:
        """The rows of one tensor alone, checked as all are; None if it has none here, or all rows should be decoded now."""
        if self._asked >= _FEW:
            return None
        self._asked += 1
        return self._checked(lambda: self._only(name))

    def _only(self, name: str) -> TreeFile | None:
        with _explained(self._where):
            blocks = [block for line in self._lines(quoted(name).encode()) if (block := _rows(_parse(line), name))]
            if not blocks:
                return None
            # A whole tree, so that nothing is checked in another way.
            kinds = self._kinds(blocks)
            tree = {"format_version": FORMAT_VERSION, "aliases": {}, "metadata": {}, "kinds": kinds, "tensors": blocks}
            return TreeFile.from_json(tree)

    def _lines(self, text: bytes) -> Iterator[bytes]:
        """The lines of blocks that have this text in them."""
        at = self._data.find(text, self._data.find(_TENSORS))
        while at >= 0:
            end = self._data.find(b"\n", at)
            yield self._data[self._data.rfind(b"\n", 0, at) + 1 : end].rstrip(b",")
            at = self._data.find(text, end)

    def _kinds(self, blocks: list[JSON]) -> JSON:
        """All kinds, of which only those of these blocks are decoded: there may be as many as tensors."""
        start = len(_HEAD)
        if self._data[start : start + 2] != b"[\n":  # there are none, or they are on one line
            return _parse(self._data[start : self._data.find(b",\n", start)])
        lines = self._data[start + 2 : self._data.find(b"\n],\n", start)].split(b",\n")
        columns = [column for block in blocks if isinstance(block, dict) and isinstance(column := block.get("kinds"), list)]
        kinds: list[JSON] = [None] * len(lines)
        for number in chain.from_iterable(columns):
            if type(number) is int and 0 <= number < len(lines):  # what is not is left for the checks
                kinds[number] = _parse(lines[number])
        return kinds

    def _checked(self, decode: Callable[[], T]) -> T:
        try:
            tree = decode()
            if tree is not None:
                tree.check(self._allowed, where=self._where)
        except CorruptCheckpointError as error:
            error.step = self._step
            raise
        return tree


@garbage.later()
def encode(
    skeleton: JSON,
    rows: Table,
    aliases: Mapping[str, str],
    metadata: Mapping[str, JSON] | None = None,
    paths: Mapping[str, tuple[str | int, ...]] | None = None,
) -> bytes:
    """The bytes of a tree file: JSON, and tensors a block a line.

    Raises:
        TypeError, ValueError: a skeleton or metadata that is not plain JSON.
    """
    blocks, kinds = rows.blocks()
    fields = {"aliases": dict(aliases), "metadata": dict(metadata or {})}
    fields |= ({"paths": dict(paths)} if paths else {}) | {"skeleton": skeleton}
    # Written line by line into one buffer: for many tensors, each copy of the text is fresh memory and a millisecond.
    stream = io.BytesIO()
    stream.write(_HEAD)
    stream.writelines(_lines(kinds) if kinds else [b"[]"])
    for key, value in fields.items():
        stream.write(f",\n{quoted(key)}: {_json(value)}".encode())
    stream.write(b"," + _TENSORS.removesuffix(b"[\n"))
    stream.writelines(_lines(blocks))
    stream.write(b"\n}\n")
    return stream.getvalue()


def _lines(values: Iterable[JSON]) -> Iterator[bytes]:
    """JSON of an array, with a line for each value."""
    yield b"["
    start = b"\n"
    for value in values:
        yield start + _json(value).encode()
        start = b",\n"
    yield b"\n]" if start == b",\n" else b"\n\n]"


_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def _rows(block: JSON, name: str) -> JSON:
    """Of a block those rows that are this tensor's; None if there are none. What is no block is left for the checks."""
    if not isinstance(block, dict) or not isinstance(names := block.get("names"), list):
        return block
    found = [number for number, each in enumerate(names) if each == name]
    columns = {key: column for key, column in block.items() if isinstance(column, list) and len(column) == len(names)}
    return block | {key: [column[number] for number in found] for key, column in columns.items()} if found else None


def _parse(data: bytes | memoryview) -> JSON:
    # Without the checks of `fields.parse`, which cost more than the parsing: this file's checksum is in the manifest.
    try:
        return json.loads(str(data, "utf-8"), parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from error


@contextmanager
def _explained(where: str) -> Iterator[None]:
    try:
        yield
    except FormatVersionError as error:
        raise FormatVersionError(f"{where!r} {error}", found=error.found, supported=FORMAT_VERSION) from None
    except ValueError as error:
        raise CorruptCheckpointError(f"{where!r} {error}", file=TREE) from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _paths(paths: Mapping[str, Any]) -> dict[str, tuple[str | int, ...]]:
    check_type(paths.values(), list)
    if not set(map(type, chain.from_iterable(paths.values()))) <= {str, int}:
        raise ValueError("has a path of a tensor with a key that is no str or int")
    return {name: tuple(path) for name, path in paths.items()}
