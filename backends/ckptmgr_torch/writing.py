"""New files: the state as a pickle, and the bytes of each tensor as a record of its own, where torch can map them."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ckptmgr.backend import Box, Contents, FileLayout, Layout, Part, Path, skeleton, tensor_names, zipwriting
from ckptmgr.errors import UnsupportedTensorError
from ckptmgr_torch import carriage, filesets, pickling
from ckptmgr_torch.allowed import DTYPES
from ckptmgr_torch.archives import BYTEORDER, OURS, PICKLE
from ckptmgr_torch.carriage import Carriage
from ckptmgr_torch.opening import SKELETON
from ckptmgr_torch.pickling import Ref

_ROOT = "archive/"
_ALIGN = 64  # of records, as torch has it
_LARGE_NBYTES = 64 * 1024  # records of this size and more start where the caller wants them


def layout(contents: Contents, *, stem: str, suffix: str, align: int) -> Layout:
    """See `TorchBackend.layout`."""
    parts = [part for file in contents.files for part in file]
    _check(parts)
    if len(contents.files) <= 1:
        file = _file(stem + suffix, parts, _state(contents, _refs(parts)), _carried(contents), align)
        return Layout((file,), zipwriting.DIGESTS)
    files, weights = [], {}
    for number, held in enumerate(contents.files, 1):
        name = filesets.shard(stem, number, len(contents.files), suffix)
        files.append(_file(name, held, dict(_refs(held)), None, align))
        weights.update({part.name: name for part in held})
    paths = {name: contents.path(name) for name in (*contents.names, *contents.aliases)}
    text = carriage.encode(Carriage(contents.metadata, contents.aliases, {}, paths)).decode()
    metadata = {"total_size": sum(part.spec.nbytes for part in parts), SKELETON: text}
    index = json.dumps({"metadata": metadata, "weight_map": weights}, indent=1).encode()
    return Layout((*files, FileLayout(filesets.index(stem, suffix), (index,))), zipwriting.DIGESTS)


def _check(parts: Sequence[Part]) -> None:
    for name, spec, box in parts:
        if box is not None and box != Box.whole(spec.shape):
            text = f"a file of torch holds whole tensors, not the slice {box.start} to {box.stop} of {name!r}"
            raise UnsupportedTensorError(text, tensor=name)
        if spec.dtype not in DTYPES:
            raise UnsupportedTensorError(f"torch has no dtype for {spec.dtype}, which tensor {name!r} is", tensor=name)
    if len({part.name for part in parts}) < len(parts):
        raise ValueError("a tensor is given twice")


def _refs(parts: Sequence[Part]) -> dict[str, Ref]:
    return {part.name: Ref(str(number), part.spec.dtype, part.spec.shape) for number, part in enumerate(parts)}


def _file(name: str, parts: Sequence[Part], state: object, carried: bytes | None, align: int) -> FileLayout:
    members = [
        zipwriting.Member(_ROOT + PICKLE, (pickling.dumps(state),)),
        zipwriting.Member(f"{_ROOT}{BYTEORDER}", (b"little",)),
    ]
    if carried is not None:
        members.append(zipwriting.Member(_ROOT + OURS, (carried,)))
    for number, part in enumerate(parts):
        start = max(align, _ALIGN) if part.nbytes >= _LARGE_NBYTES else _ALIGN
        members.append(zipwriting.Member(f"{_ROOT}data/{number}", (part,), is_aligned=True, align=start))
    members.append(zipwriting.Member(f"{_ROOT}version", (b"3\n",)))
    return FileLayout(name, zipwriting.archive(name, members, align=_ALIGN))


def _carried(contents: Contents) -> bytes:
    """What only we read; the names that do not follow from the pickle among it."""
    paths: dict[str, Path] = {}
    _walk(_state(contents, {}), (), paths)
    spelled = dict(zip(tensor_names(list(paths.values())), paths, strict=True))
    names = {short: name for short, name in spelled.items() if short != name}
    return carriage.encode(Carriage(contents.metadata, contents.aliases, names))


class _Name(str):
    """The name of a tensor in a state, where its `Ref` will stand."""


def _walk(value: Any, path: Path, found: dict[str, Path]) -> None:
    """The keys that lead to each tensor in a state, in the order of its pickle."""
    if isinstance(value, _Name):
        found[str(value)] = path
    elif isinstance(value, dict | list | tuple) and not isinstance(value, Ref):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _walk(item, (*path, key), found)


def _state(contents: Contents, refs: Mapping[str, Ref]) -> Any:
    """The state as dicts, lists, tuples and plain values. Tensors are their refs, or their names if there are no refs."""

    def leaf(name: str) -> Any:
        first = contents.aliases.get(name, name)
        return refs[first] if refs else _Name(name)

    if contents.skeleton is not None:
        return _of_skeleton(contents.skeleton, leaf)
    names = [*contents.names, *contents.aliases]
    return _nested(contents, names, leaf)


def _of_skeleton(tree: Any, leaf: Callable[[str], Any]) -> Any:
    def place(path: Path, node: Any) -> Any:
        return leaf(node.name) if isinstance(node, skeleton.TensorNode) else _plain(node._asdict())

    return _plain(skeleton.decode(tree, place, lambda fields: tuple(fields.values())))


def _plain(value: Any) -> Any:
    """With values of numpy, which torch reads only with numpy's own code, as Python's."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if type(value) is tuple:
        return tuple(map(_plain, value))
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        found = value.item()
        return found if type(found) in (bool, int, float, complex, str, bytes) else str(value)
    return value


def _nested(contents: Contents, names: Sequence[str], leaf: Callable[[str], Any]) -> dict[Any, Any]:
    """Dicts by the keys of each name; where a tensor stands under another, one dict by name."""
    root: dict[Any, Any] = {}
    for path, value in [*((contents.path(name), leaf(name)) for name in names), *contents.scalars.items()]:
        around = root
        for key in path[:-1]:
            inner = around.setdefault(key, {})
            if not isinstance(inner, dict):
                return {name: leaf(name) for name in names}
            around = inner
        if not path or path[-1] in around:
            return {name: leaf(name) for name in names}
        around[path[-1]] = value if isinstance(value, Ref | _Name) else _plain(value)
    return root
