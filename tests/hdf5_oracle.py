"""What h5py reads from HDF5 files, damaged ones too: in a process of its own, because HDF5 may crash on those.

Run as a program it takes a pickled list of files on its standard input.
"""

import io
import pickle
import subprocess
import sys
from typing import Any

import h5py
import numpy as np


def contents(data: bytes) -> dict[str, Any]:
    """Values of datasets by path, None for groups; values of attributes by ``path@name``."""
    found: dict[str, Any] = {}

    def visit(name: str, node: Any) -> None:
        path = "/" + name.lstrip("/")
        found[path] = (node.dtype, node.shape, node[()].tobytes()) if isinstance(node, h5py.Dataset) else None
        for key, value in node.attrs.items():
            found[f"{path}@{key}"] = getattr(value, "dtype", str), np.asarray(value).tolist()

    with h5py.File(io.BytesIO(data)) as file:
        visit("/", file)
        file.visititems(visit)
    return found


def contents_apart(files: list[bytes]) -> list[dict[str, Any] | None]:
    """The `contents` of each file, None for those that h5py refuses, and for all from one on that crashes it."""
    answers = io.BytesIO(subprocess.run([sys.executable, __file__], input=pickle.dumps(files), stdout=subprocess.PIPE).stdout)
    found: list[dict[str, Any] | None] = []
    try:
        while True:
            found.append(pickle.load(answers))
    except EOFError:
        return found + [None] * (len(files) - len(found))


def _answer() -> None:
    for data in pickle.load(sys.stdin.buffer):
        try:
            found = contents(data)
        except (OSError, KeyError, RuntimeError, ValueError, TypeError):
            found = None
        sys.stdout.buffer.write(pickle.dumps(found))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _answer()
