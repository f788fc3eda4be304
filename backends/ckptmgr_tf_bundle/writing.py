"""Where every byte of a new checkpoint lies: data files of tensors back to back, and the index as a late piece.

TensorFlow reads by offset only, so tensors of one file lie by item size, largest first: every one is aligned without a
hole. String tensors, the object graph and what ckptmgr carries are literal bytes behind them in the smallest file: they change
from step to step, and must not keep a large file from being shared by several.

Source: TensorFlow's tensor_bundle.cc; trackable_object_graph.proto.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from ckptmgr.backend import Contents, Digests, FileLayout, Late, Layout, Part
from ckptmgr.backend import Path as StatePath
from ckptmgr.errors import UnsupportedTensorError, shown
from ckptmgr_tf_bundle import building, carriage, literal, table
from ckptmgr_tf_bundle.carriage import Carriage
from ckptmgr_tf_bundle.dtypes import CODES, INEXACT
from ckptmgr_tf_bundle.entry import build_entry, build_header, build_slices
from ckptmgr_tf_bundle.keys import GRAPH_KEY
from ckptmgr_tf_bundle.literal import Literal
from ckptmgr_tf_bundle.slices import slice_key

COUNTER = "save_counter"
SKELETON = "ckptmgr"  # the metadata key of a file that holds a whole state tree
_Path: TypeAlias = tuple[str, ...]


class Stored(NamedTuple):
    """Where an entry's bytes lie: piece ``piece`` of a data file. ``crc32c`` None is that of the piece, not known before."""

    key: str
    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    nbytes: int
    piece: int
    crc32c: int | None
    part: Part | None


def layout(contents: Contents, *, stem: str, is_object_based: bool, with_counter: bool) -> Layout:
    """The data files and the index, which is last.

    Raises:
        UnsupportedTensorError: a dtype or name that the format cannot hold, or slices that do not cover their tensor.
        ValueError: metadata that is no JSON, or a tensor that is given twice.
    """
    strings, held = _held(contents)
    plain = _plain(contents)
    variants = {name: found for name, blob in contents.blobs.items() if (found := literal.from_blob(blob))}
    paths = _paths(contents, [*held, *strings, *contents.aliases, *variants]) | {name: path for name, (path, _) in plain.items()}
    keys, graph = _keys(contents, paths, is_object_based, COUNTER if with_counter else None)

    literals = {keys[name]: found for name, found in variants.items()}
    literals |= {keys[name]: found for name, (_, found) in plain.items()}
    literals |= {keys[name]: literal.string([*contents.strings[name]], part.spec.shape) for name, part in strings.items()}
    added = [keys[name] for name in plain if SKELETON in contents.metadata]
    if COUNTER in keys and COUNTER not in paths:
        literals[keys[COUNTER]] = _zero()
        added.append(keys[COUNTER])
    if graph is not None:
        literals[GRAPH_KEY] = literal.string([graph])
    odd = {keys[name]: name for name, path in paths.items() if name not in ("/".join(path), keys[name])}
    # An object graph may tie names itself; then they have one key.
    aliases = {alias: name for alias, name in contents.aliases.items() if keys[alias] != keys[name]}
    carried = Carriage(contents.metadata, aliases, odd, added)
    # It also says that the bytes of these dtypes are just as numpy holds them.
    if carried or graph is not None or any(parts[0].spec.dtype in INEXACT for parts in held.values()):
        literals[carriage.KEY] = literal.string([carried.encode()])
    return _files(contents, stem, keys, aliases, literals)


def left_out(contents: Contents, *, is_object_based: bool) -> frozenset[str]:
    """The names of blobs that a checkpoint of these contents would not have. Raises as `layout` does."""
    strings, held = _held(contents)
    variants = [name for name, blob in contents.blobs.items() if name != GRAPH_KEY and literal.from_blob(blob)]
    paths = _paths(contents, [*held, *strings, *contents.aliases, *variants])
    paths |= {name: path for name, (path, _) in _plain(contents).items()}
    _, graph = _keys(contents, paths, is_object_based, COUNTER)
    kept = {*variants, *([GRAPH_KEY] if graph is not None and graph == contents.blobs.get(GRAPH_KEY) else [])}
    return frozenset(contents.blobs.keys() - kept)


def _held(contents: Contents) -> tuple[dict[str, Part], dict[str, list[Part]]]:
    """String tensors by name, and of each other tensor its parts; all of them can be held."""
    strings: dict[str, Part] = {}
    held: dict[str, list[Part]] = {}
    for part in (part for file in contents.files for part in file):
        if part.spec.is_string and part.name not in strings and part.box is None:
            strings[part.name] = part
        else:
            held.setdefault(part.name, []).append(part)
    refused = {name: parts[0].spec.dtype for name, parts in held.items() if parts[0].spec.dtype not in CODES}
    if refused:
        dtype = next(iter(refused.values()))
        names = [name for name, other in refused.items() if other == dtype]
        raise UnsupportedTensorError(
            f"TensorFlow checkpoints have no dtype {dtype}, which these tensors have: {shown(names)}; "
            "cast them or use another backend",
            tensor=names[0],
        )
    for name, parts in held.items():
        if len(parts) > 1 or parts[0].box is not None:
            _check_slices(name, parts)
    return strings, held


def _check_slices(name: str, parts: Sequence[Part]) -> None:
    boxes = [part.box for part in parts if part.box is not None]
    if len(boxes) < len(parts):
        raise ValueError(f"tensor {name!r} is given twice")
    if sum(box.size for box in boxes) != parts[0].spec.size or len({box.start for box in boxes}) < len(boxes):
        raise UnsupportedTensorError(f"the slices of tensor {name!r} do not cover it exactly once", tensor=name)


def _plain(contents: Contents) -> dict[str, tuple[_Path, Literal]]:
    """Plain values of the state as tensors, by name. What no dtype holds, or is in the way of a tensor, is left out."""
    taken = {*contents.names, *contents.aliases}
    found: dict[str, tuple[_Path, Literal]] = {}
    for state_path, value in contents.scalars.items():
        path = _texts(state_path)
        name = "/".join(path)
        # TensorFlow's counter is an int64, whatever integer the state has.
        made = literal.plain(int(value) if path == (COUNTER,) and isinstance(value, np.integer) else value)
        if made is not None and path and name not in taken and name not in found and _problem(name, path) is None:
            found[name] = path, made
    return found


def _paths(contents: Contents, names: Sequence[str]) -> dict[str, _Path]:
    """The keys to each tensor as text. Where two become one, as of 1 and "1", theirs are what stands in their names."""
    paths = {name: _texts(contents.path(name)) or (name,) for name in names}
    uses = Counter(paths.values())
    if len(uses) < len(paths):
        paths = {name: path if uses[path] == 1 else tuple(name.split("/")) for name, path in paths.items()}
    for name, path in paths.items():
        if problem := _problem(name, path):
            raise UnsupportedTensorError(
                f"a TensorFlow checkpoint cannot hold the name {name!r}: {problem}; rename the tensor", tensor=name
            )
    return paths


def _texts(path: StatePath) -> _Path:
    return tuple(map(str, path))


def _problem(name: str, path: _Path) -> str | None:
    text = "".join((name, *path))
    if text.isascii() and "\x00" not in text:  # as most are
        return None
    if "".join(path).startswith("\x00"):
        return "a key that starts with NUL is a slice's"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "keys are UTF-8, which has no surrogates"
    return None


def _keys(
    contents: Contents, paths: Mapping[str, _Path], is_object_based: bool, counter: str | None
) -> tuple[Mapping[str, str], bytes | None]:
    """The key of each name and the object graph, if there is one: that of another checkpoint if it fits, else a new one."""
    if not is_object_based:
        taken = next((name for name in ("", GRAPH_KEY, carriage.KEY) if name in paths), None)
        if taken is not None:
            raise UnsupportedTensorError(f"a TensorFlow checkpoint keeps the name {taken!r} for itself", tensor=taken)
        return {name: name for name in paths}, None
    if GRAPH_KEY in contents.blobs:
        carried = building.carried(contents.blobs[GRAPH_KEY], paths, contents.aliases)
        if carried is not None:
            return carried, contents.blobs[GRAPH_KEY]
    try:
        built = building.build(paths, save_counter=counter)
    except ValueError as error:
        raise UnsupportedTensorError(f"a TensorFlow checkpoint cannot hold this state: {error}; rename one of them") from error
    return built.keys, built.graph


def _zero() -> Literal:
    made = literal.plain(0)
    assert made is not None
    return made


def _files(
    contents: Contents, stem: str, keys: Mapping[str, str], aliases: Mapping[str, str], literals: Mapping[str, Literal]
) -> Layout:
    packed = contents.files or ((),)
    names = [f"{stem}.data-{shard:05d}-of-{len(packed):05d}" for shard in range(len(packed))]
    # A tied tensor has an entry for each of its names, all of them for the same bytes.
    tied: dict[str, list[str]] = {}
    for alias, name in aliases.items():
        tied.setdefault(keys[name], []).append(keys[alias])
    sizes = [sum(part.nbytes for part in parts if not part.spec.is_string) for parts in packed]
    smallest = sizes.index(min(sizes))
    stored: list[Stored] = []
    files: list[FileLayout] = []
    for shard, parts in enumerate(packed):
        raw = sorted((part for part in parts if not part.spec.is_string), key=lambda part: -part.spec.numpy.itemsize)
        pieces: list[bytes | Part] = [*raw]
        offset = 0
        for piece, part in enumerate(raw):
            shape = part.spec.shape if part.box is None else part.box.shape
            stored.append(Stored(keys[part.name], CODES[part.spec.dtype], shape, shard, offset, part.nbytes, piece, None, part))
            offset += part.nbytes
        if shard == smallest:
            for key, (dtype, shape, data, crc) in literals.items():
                stored.append(Stored(key, dtype, shape, shard, offset, len(data), len(pieces), crc, None))
                offset += len(data)
            pieces.append(b"".join([found.stored for found in literals.values()]))
        files.append(FileLayout(names[shard], tuple(pieces)))

    def build(digests: Mapping[str, Digests]) -> bytes:
        entries = _entries(stored, tied, [digests[name]["crc32c"] for name in names])
        return table.encode(sorted([(b"", build_header(len(names))), *entries]))

    return Layout((*files, FileLayout(f"{stem}.index", (Late(None, build),))))


def _entries(
    stored: Sequence[Stored], tied: Mapping[str, Sequence[str]], checksums: Sequence[Sequence[int]]
) -> Iterator[tuple[bytes, bytes]]:
    sliced: dict[str, list[Part]] = {}
    for key, dtype, shape, shard, offset, nbytes, piece, crc, part in stored:
        value = build_entry(dtype, shape, shard, offset, nbytes, checksums[shard][piece] if crc is None else crc)
        if (part is None or part.box is None) and key not in tied:  # as most are
            yield key.encode(), value
            continue
        is_slice = part is not None and part.box is not None and part.box.shape != part.spec.shape
        for each in (key, *tied.get(key, ())):
            if part is not None and is_slice:
                sliced.setdefault(each, []).append(part)
                yield slice_key(each.encode(), _extents(part)), value
            else:
                yield each.encode(), value
    for key, parts in sliced.items():
        spec = parts[0].spec
        yield key.encode(), build_slices(CODES[spec.dtype], spec.shape, [_extents(part) for part in parts])


def _extents(part: Part) -> tuple[tuple[int, int], ...]:
    assert part.box is not None
    return tuple((start, stop - start) for start, stop in zip(part.box.start, part.box.stop, strict=True))
