"""A file format for tests of runs: data and index beside each other, and a hint ``latest`` that names checkpoints by line."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ckptmgr.backend import (
    Box,
    Contents,
    Extent,
    FileLayout,
    Folder,
    Late,
    Layout,
    StepInfo,
    TensorSource,
    crc32c,
    read_raw,
    tensor_spec,
)
from ckptmgr.errors import CorruptCheckpointError

HINT = "latest"


class PointingBackend:
    """``<stem>.bin`` and then ``<stem>.idx``: names of tensors with dtype, shape, offset and crc32c (or null)."""

    name: ClassVar[str] = "fake"
    suffix: ClassVar[str] = ""

    def layout(self, contents: Contents, *, stem: str, align: int) -> Layout:
        parts = [part for file in contents.files for part in file]

        def index(digests: Mapping[str, Mapping[str, Sequence[int]]]) -> bytes:
            offset, tensors = 0, {}
            for part, checksum in zip(parts, digests[f"{stem}.bin"]["crc32c"], strict=True):
                tensors[part.name] = [part.spec.dtype, part.spec.shape, offset, checksum]
                offset += part.nbytes
            return json.dumps({"tensors": tensors}).encode()

        return Layout((FileLayout(f"{stem}.bin", tuple(parts)), FileLayout(f"{stem}.idx", (Late(None, index),))))

    def recognizes(self, path: str, head: bytes, siblings: Collection[str]) -> bool:
        return path.endswith(".idx")

    def file_sets(self, names: Collection[str]) -> Mapping[str, Sequence[str]]:
        stems = sorted({name[:-4] for name in names if name.endswith((".bin", ".idx"))})
        return {stem: [*([f"{stem}.bin"] if f"{stem}.bin" in names else []), f"{stem}.idx"] for stem in stems}

    def open(self, folder: Folder, path: str) -> TensorSource:
        return PointingSource(folder, path)

    def run_files(self, steps: Sequence[tuple[str, StepInfo]]) -> Mapping[str, bytes]:
        return {HINT: "".join(f"{stem}\n" for stem, _ in steps).encode()} if steps else {}

    def run_order(self, folder: Folder) -> Sequence[str]:
        read = folder.read(HINT)
        return read[0].decode().splitlines() if read else []


class PointingSource:
    """The tensors of one index. Its ``nested`` paths are told, and those in ``decoded`` have no extents."""

    def __init__(self, folder: Folder, path: str) -> None:
        self.folder, self.file = folder, path.removesuffix(".idx") + ".bin"
        read = folder.read(path)
        if read is None:
            raise FileNotFoundError(path)
        try:
            index = json.loads(read[0])
        except ValueError as error:
            raise CorruptCheckpointError(f"{path!r} is no index", file=path) from error
        self.metadata: dict[str, Any] = {}
        self.blobs: dict[str, bytes] = {}
        self.aliases: dict[str, str] = index.get("aliases", {})
        self.paths = {name: tuple(path) for name, path in index.get("paths", {}).items()}
        self.decoded = index.get("decoded", [])
        self.elsewhere: dict[str, str] = index.get("elsewhere", {})
        self.places = index["tensors"]
        self.specs = {name: tensor_spec(np.dtype(dtype), tuple(shape)) for name, (dtype, shape, *_) in self.places.items()}

    def extents(self, name: str) -> Sequence[Extent]:
        _, _, offset, value = self.places[name]
        return [] if name in self.decoded else [Extent(self.folder, self.elsewhere.get(name, self.file), offset, None, value)]

    def read(self, name: str, box: Box | None = None, out: Any = None) -> Any:
        spec, (_, _, offset, value) = self.specs[name], self.places[name]
        whole = np.empty(spec.shape, spec.numpy)
        read_raw(self.folder, self.file, offset, spec.shape, Box.whole(spec.shape), whole)
        if value is not None and crc32c(whole) != value:
            raise CorruptCheckpointError(f"tensor {name!r} is damaged", file=self.file, tensor=name)
        found = whole if box is None else whole[box.slices]
        if out is None:
            return found
        out[...] = found
        return out

    def close(self) -> None:
        pass

    def __enter__(self) -> "PointingSource":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def write_foreign(folder: Path, stem: str, tensors: Mapping[str, Any], *, has_sums: bool = True, **more: Any) -> None:
    """What another tool would write: two files of this format, the index with ``more`` in it."""
    folder.mkdir(parents=True, exist_ok=True)
    data, places = b"", {}
    for name, tensor in tensors.items():
        array = np.ascontiguousarray(tensor).reshape(np.shape(tensor))
        places[name] = [array.dtype.name, array.shape, len(data), crc32c(array.tobytes()) if has_sums else None]
        data += array.tobytes()
    (folder / f"{stem}.bin").write_bytes(data)
    (folder / f"{stem}.idx").write_text(json.dumps({"tensors": places, **more}))
