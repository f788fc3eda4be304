"""Where every byte of a new ``.npz`` lies: arrays as stored members of a zip, each behind a header of numpy's."""

from collections.abc import Sequence

import numpy as np

from ckptmgr.backend import Box, Contents, FileLayout, Layout, Part, zipwriting
from ckptmgr.errors import UnsupportedTensorError
from ckptmgr_npz import npy
from ckptmgr_npz.carriage import MEMBER, Carriage
from ckptmgr_npz.filesets import names

_FREE_NBYTES = 1 << 26  # of an array of strings, all as wide as the longest; more must be warranted by the strings


def layout(contents: Contents, *, stem: str) -> Layout:
    """The files of the contents; the last of several has what is not of one tensor.

    Raises:
        UnsupportedTensorError: a name, a slice or strings that the format has no place for.
        ValueError: metadata that is no JSON, or a tensor that is given twice.
    """
    files = contents.files or ((),)
    parts = [part for held in files for part in held]
    _check(parts)
    odd = [part for part in parts if not part.spec.is_string and (part.spec.is_packed or not npy.is_plain(part.spec.dtype))]
    dtypes = {name: spec.dtype for name, spec, _ in odd}
    shapes = {name: spec.shape for name, spec, _ in odd if spec.is_packed}
    total = len(files)
    layouts = []
    for number, (name, held) in enumerate(zip(names(stem, total), files, strict=True), 1):
        members = [_member(part, contents.strings.get(part.name, ())) for part in held]
        place = (number, total)
        carried = (
            Carriage(contents.metadata, contents.aliases, dtypes, shapes, place) if number == total else Carriage(files=place)
        )
        if carried or not members:
            members.append(zipwriting.Member(MEMBER, (carried.encode(),)))
        layouts.append(FileLayout(name, zipwriting.archive(name, members, align=npy.ALIGN)))
    return Layout(tuple(layouts), zipwriting.DIGESTS)


def _check(parts: Sequence[Part]) -> None:
    seen: set[str] = set()
    for name, spec, box in parts:
        if name in seen:
            raise ValueError(f"tensor {name!r} is given twice")
        seen.add(name)
        if box is not None and box != Box.whole(spec.shape):
            text = f"an .npz file holds whole tensors, not the slice {box.start} to {box.stop} of {name!r}"
            raise UnsupportedTensorError(text, tensor=name)
        if problem := _problem(name):
            text = f"an .npz file cannot hold the name {name!r}: {problem}; rename the tensor"
            raise UnsupportedTensorError(text, tensor=name)


def _problem(name: str) -> str | None:
    if name[1:2] == ":" or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in f"{name}.npy".split("/")):
        return "members of a zip have plain relative paths"
    try:
        return "it is too long" if len(name.encode()) > 60_000 else None
    except UnicodeEncodeError:
        return "names are UTF-8, which has no surrogates"


def _member(part: Part, strings: Sequence[bytes]) -> zipwriting.Member:
    name, spec, _ = part
    if spec.is_string:
        return zipwriting.Member(f"{name}.npy", (_strings(name, strings, spec.shape),), is_aligned=True)
    header = npy.build(npy.stored_dtype(spec.dtype), (spec.nbytes,) if spec.is_packed else spec.shape)
    return zipwriting.Member(f"{name}.npy", (header, part), is_aligned=True)


def _strings(name: str, values: Sequence[bytes], shape: tuple[int, ...]) -> bytes:
    width = max(map(len, values), default=1) or 1
    if any(value.endswith(b"\0") for value in values):
        raise UnsupportedTensorError(f"an .npz file cannot hold the strings of {name!r}: one ends in NUL", tensor=name)
    if len(values) * width > max(_FREE_NBYTES, 4 * sum(map(len, values))):
        text = f"an .npz file has strings of one width, and those of {name!r} would take {len(values) * width} bytes"
        raise UnsupportedTensorError(text, tensor=name)
    dtype = np.dtype(f"S{width}")
    return npy.build(dtype, shape) + b"".join(value.ljust(width, b"\0") for value in values)
