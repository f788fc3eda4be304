"""What is found in a checkpoint of Keras: tensors under names that a person recognizes, and where each of them lies."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ckptmgr.backend import JSON, numpy_dtype
from ckptmgr.errors import UnsupportedTensorError
from ckptmgr_hdf5.origin import Origin
from ckptmgr_hdf5.parsing import Dataset, Group, Reader

_BFLOAT16 = numpy_dtype("bfloat16")


@dataclass(frozen=True, slots=True)
class HDF5:
    """One HDF5 file, or a member of an archive that is one.

    ``file`` is the plain name of the file that its bytes lie in as they are, or None if they are compressed there; an
    offset of one of its datasets counts from the start of that file. ``reader`` reads it in either case.
    """

    root: Group
    file: str | None
    reader: Reader
    origin: Origin


class Place(NamedTuple):
    """Where a tensor is. ``dtype`` is what it means to Keras, which is not always what HDF5 has a word for; None: nothing."""

    hdf5: HDF5
    dataset: Dataset
    dtype: np.dtype[Any] | None


class Named(NamedTuple):
    """A dataset with the keys that lead to it in a nested state."""

    path: tuple[str, ...]
    hdf5: HDF5
    dataset: Dataset


@dataclass(frozen=True, slots=True)
class Opened:
    """Everything in a checkpoint, without the tensors' bytes.

    ``tensors`` are in the model's order as far as the file tells it. ``paths`` has the keys of each in a nested state.
    ``metadata`` has ``keras`` (``kind``, ``keras_version`` and ``backend`` where the file has them, ``stored`` with the
    path in HDF5 of every tensor, ``layer_names`` in order where they are known), and the texts that Keras wrote, verbatim:
    ``model_config`` and ``training_config``, or ``config`` and ``archive_metadata``. ``blobs`` are an archive's other files.
    """

    tensors: Mapping[str, Place]
    paths: Mapping[str, tuple[str, ...]]
    metadata: Mapping[str, JSON]
    blobs: Mapping[str, bytes] = field(default_factory=dict)


def assemble(found: Sequence[Named], facts: Mapping[str, JSON], texts: Mapping[str, str]) -> Opened:
    """The tensors in that order, each under its own name: its keys joined by ``/``, or its path in HDF5 where two share one.

    Raises:
        CorruptCheckpointError: the attribute that tells a tensor's dtype is damaged.
    """
    counts = Counter("/".join(named.path) for named in found)
    paths = [named.path if counts["/".join(named.path)] == 1 else _stored_path(named) for named in found]
    names = ["/".join(path) for path in paths]
    if len(set(names)) < len(names):
        paths = [_stored_path(named) for named in found]
        names = ["/".join(path) for path in paths]
    stored: dict[str, JSON] = {name: named.dataset.path for name, named in zip(names, found, strict=True)}
    return Opened(
        {name: Place(hdf5, dataset, _dtype(dataset)) for name, (_, hdf5, dataset) in zip(names, found, strict=True)},
        dict(zip(names, _nested(paths), strict=True)),
        {"keras": {**facts, "stored": stored}, **texts},
    )


def datasets(group: Group) -> Iterator[Dataset]:
    """Every dataset below a group; numbered ones in the order of their numbers."""
    nodes: list[Group | Dataset] = [group]
    while nodes:
        node = nodes.pop()
        if isinstance(node, Dataset):
            yield node
        else:
            nodes.extend(child for _, child in sorted(node.children.items(), key=_number_first, reverse=True))


def natural(name: str) -> tuple[int, str]:
    """A key to sort by: numbers in their order, before all other names."""
    return (int(name), "") if name.isdecimal() and name.isascii() and len(name) < 20 else (1 << 64, name)


def text(attributes: Mapping[str, Any], name: str, origin: Origin) -> str | None:
    """An attribute that is a text, however it is stored; None if there is none.

    Raises:
        CorruptCheckpointError: it is something else, or no UTF-8.
    """
    if name not in attributes:
        return None
    value = attributes[name]
    try:
        if isinstance(value, bytes):
            return value.rstrip(b"\0").decode()
    except UnicodeDecodeError as error:
        raise origin.corrupt("the attribute is no UTF-8", name) from error
    if not isinstance(value, str):
        raise origin.corrupt("the attribute is no text", name)
    return value


def _number_first(item: tuple[str, Any]) -> tuple[int, str]:
    return natural(item[0])


def _stored_path(named: Named) -> tuple[str, ...]:
    return tuple(named.dataset.path.strip("/").split("/"))


def _dtype(dataset: Dataset) -> np.dtype[Any] | None:
    """Keras keeps bfloat16 as two bytes without a meaning, with a note beside it or (in the legacy layout) without one."""
    if dataset.kind != "opaque":
        return dataset.dtype
    nbytes = dataset.dtype.itemsize if dataset.dtype is not None else 0
    if "dtype" not in dataset.attributes:
        return _BFLOAT16 if nbytes == 2 else None
    note = dataset.attributes["dtype"]
    try:
        dtype = numpy_dtype(note.decode("ascii", "replace") if isinstance(note, bytes) else str(note))
    except UnsupportedTensorError:
        return None
    return dtype if dtype.itemsize == nbytes and not dtype.hasobject else None


def _nested(paths: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The paths, those of tensors that stand under another tensor as one key: in a nested state nothing does."""
    found, above = [*paths], None
    for at in sorted(range(len(paths)), key=paths.__getitem__):  # a path comes right before those through it
        path = paths[at]
        if above is not None and path[: len(above)] == above:
            found[at] = ("/".join(path),)
        else:
            above = path
    return found
