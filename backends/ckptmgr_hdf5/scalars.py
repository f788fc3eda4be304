"""Plain values of a state as attributes of the groups that they are in, for people and other tools; nothing reads them here.

The skeleton in the metadata has them exactly. What HDF5 has no number or text for is left out, and what is in the way of a
tensor, or of attributes of ours.
"""

import functools
from collections.abc import Collection, Mapping

import numpy as np

from ckptmgr.backend import Path, Scalar
from ckptmgr_hdf5.carriage import PREFIX
from ckptmgr_hdf5.dtypes import is_plain
from ckptmgr_hdf5.encoding import Attribute, GroupNode
from ckptmgr_hdf5.escaping import escape

_MOST = 1000  # attributes of one group: HDF5 looks through all of them for each one


def add_scalars(root: GroupNode, scalars: Mapping[Path, Scalar], taken: Collection[tuple[str, ...]]) -> None:
    """Gives the groups below ``root`` the values that can be attributes; groups that are missing are made.

    ``taken`` are the paths of datasets, as names in the file; no value is put on or below one of them.
    """
    grouped: dict[tuple[str, ...], dict[str, Attribute]] = {}
    names_of = functools.cache(_names)
    for path, scalar in scalars.items():
        group = names_of(path[:-1])
        if not path or group is None or len(grouped.get(group, ())) >= _MOST:
            continue
        names, value = _names(path[-1:]), _value(scalar)
        if names is not None and value is not None and not names[0].startswith(PREFIX):
            # Keys that differ may have one name, as 1 and "1": the first one has it.
            grouped.setdefault(group, {}).setdefault(names[0], Attribute(names[0], value))
    for group, attributes in grouped.items():
        if not any(group[:depth] in taken for depth in range(1, len(group) + 1)):
            found = root.within(*group)
            found.attributes = [*found.attributes, *attributes.values()]


def _names(path: Path) -> tuple[str, ...] | None:
    """The names of these keys; None if one has none."""
    try:
        return tuple([escape(str(key)) for key in path])
    except ValueError:
        return None


def _value(scalar: Scalar) -> str | bytes | np.generic | None:
    if isinstance(scalar, str):
        return None if "\0" in scalar or not _is_utf8(scalar) else str(scalar)
    if isinstance(scalar, bytes):
        return None if b"\0" in scalar or not scalar.isascii() else bytes(scalar)
    if isinstance(scalar, np.generic):
        return scalar if is_plain(scalar.dtype.name) else None
    if isinstance(scalar, bool):
        return np.bool_(scalar)
    if isinstance(scalar, int):
        return np.int64(scalar) if -(2**63) <= scalar < 2**63 else None
    return np.float64(scalar) if isinstance(scalar, float) else np.complex128(scalar)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
