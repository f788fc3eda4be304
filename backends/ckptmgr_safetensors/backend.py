"""safetensors files for ckptmgr: one file, or several with an index, readable by every other tool of the format.

Source: the format notes of the safetensors repository; Hugging Face's sharded layout.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from ckptmgr.backend import Box, Contents, FileLayout, Folder, Layout, Part, Pool, TensorSource
from ckptmgr.errors import UnsupportedTensorError
from ckptmgr_safetensors import header, index, metadata
from ckptmgr_safetensors.header import BITS, CODES, LENGTH_NBYTES, MAX_HEADER_NBYTES, Origin
from ckptmgr_safetensors.source import SafetensorsSource

_FIRST_NBYTES = 64 * 1024  # read at once: holds most headers
_WIDEST_FIRST = {name: -BITS[code] for name, code in CODES.items()}


class SafetensorsBackend:
    """The format ``safetensors``: raw tensors behind one JSON header.

    Metadata comes back as it was given. Files hold whole tensors; dtypes that the format has no code for
    (complex128, strings, int4, ...) are refused. `Contents.blobs` have no place in it.
    """

    name: ClassVar[str] = "safetensors"
    suffix: ClassVar[str] = ".safetensors"

    def layout(self, contents: Contents, *, stem: str, align: int) -> Layout:
        """``<stem>.safetensors``, or ``<stem>-00001-of-0000N.safetensors`` and so on with the index last.

        Tensors of one file lie by item size, largest first, and otherwise in the order given: every one is aligned to its
        items, and the first to ``align``.

        Raises:
            UnsupportedTensorError: a dtype, a name or a slice that the format has no place for, or too large a header.
            ValueError: metadata that is no JSON, or a tensor that is given twice.
        """
        parts = [part for file in contents.files for part in file]
        _check(parts)
        names = metadata.file_names(contents)
        if len(names) < len(parts) + len(contents.aliases):
            raise ValueError("a tensor is given twice")
        values = metadata.metadata_of(contents, names)
        if len(contents.files) <= 1:
            strings = metadata.to_strings(values)
            return Layout((_file(f"{stem}.safetensors", contents.files[0] if contents.files else (), names, strings, align),))

        count = len(contents.files)
        strings = metadata.for_shard(values)
        shards = {f"{stem}-{n:05d}-of-{count:05d}.safetensors": file for n, file in enumerate(contents.files, 1)}
        files = [_file(file, held, names, strings, align) for file, held in shards.items()]
        weight_map = {names[part.name]: file for file, held in shards.items() for part in held}
        total_size = sum(part.spec.nbytes for part in parts)
        last = index.build(weight_map, total_size, metadata.to_index(values))
        return Layout((*files, FileLayout(stem + index.SUFFIX, (last,))))

    def recognizes(self, path: str, head: bytes, siblings: Collection[str]) -> bool:
        """By a header's length and first characters, by an index's name; a folder by the names in it."""
        if not head:
            return path not in siblings and any(name.endswith((".safetensors", index.SUFFIX)) for name in siblings)
        if path.endswith(".json"):
            named = path.endswith(index.SUFFIX) or (b'"weight_map"' in head and b'.safetensors"' in head)
            return named and head.lstrip(b" \t\r\n").startswith(b"{")
        start = head[LENGTH_NBYTES:].lstrip(b" \t\r\n")
        nbytes = int.from_bytes(head[:LENGTH_NBYTES], "little")
        return nbytes <= MAX_HEADER_NBYTES and start[:1] == b"{" and start[1:].lstrip(b" \t\r\n")[:1] in (b'"', b"}", b"")

    def file_sets(self, names: Collection[str]) -> Mapping[str, Sequence[str]]:
        """``<stem>.safetensors``, or the files of a set and ``<stem>.safetensors.index.json``; see `index.file_sets`."""
        return index.file_sets(names)

    def open(self, folder: Folder, path: str) -> TensorSource:
        """A file, an index, or a folder that has one of them. Only headers are read.

        Raises:
            FileNotFoundError: there is nothing of the kind.
            CorruptCheckpointError: a rule of the format is broken; names file and tensor.
            UnsafeCheckpointError: the index names what is no plain file beside it.
        """
        head = folder.head(path) if path else None
        if head is None:
            folder = folder.folder(path) if path else folder
            path = index.main_file(folder.list().files, folder.location())
            head = folder.head(path)
        origin = Origin(path, folder.location(path), head.nbytes if head else 0)
        source = _open_index(folder, origin) if path.endswith(".json") else _open_file(folder, origin)
        return replace(source, main=None if head is None else (path, head))


def _check(parts: Sequence[Part]) -> None:
    header.check_dtypes(parts)
    for name, spec, box in [part for part in parts if part.box is not None]:  # mostly none at all
        if box is not None and box != Box.whole(spec.shape):
            raise UnsupportedTensorError(
                f"a safetensors file holds whole tensors, not the slice {box.start} to {box.stop} of {name!r}", tensor=name
            )


def _file(name: str, parts: Sequence[Part], names: dict[str, str], strings: dict[str, str], align: int) -> FileLayout:
    if len({part[1].dtype for part in parts}) > 1:
        parts = sorted(parts, key=lambda part: _WIDEST_FIRST[part.spec.dtype])
    first = header.build([names[part[0]] for part in parts], [part[1] for part in parts], strings, align)
    return FileLayout(name, (first, *parts))


def _open_file(folder: Folder, origin: Origin) -> SafetensorsSource:
    found = header.parse(_header(folder, origin), origin)
    meaning = metadata.understand(found.tensors, found.metadata, origin)
    places = {meaning.names[name]: (origin.name, place) for name, place in found.tensors.items()}
    return SafetensorsSource(folder, places, meaning.aliases, meaning.metadata)


def _open_index(folder: Folder, origin: Origin) -> SafetensorsSource:
    if origin.nbytes > index.MAX_NBYTES:
        raise origin.corrupt(f"an index of {origin.nbytes} bytes is over the limit of {index.MAX_NBYTES}")
    found = index.parse(_range(folder, origin, 0, origin.nbytes), origin)
    origins = _shards(folder, origin, list(dict.fromkeys(found.weight_map.values())))
    with Pool(max_workers=max(folder.store.workers, 1)) as pool:
        texts = pool.map(lambda shard: _header(folder, shard), origins.values())
        headers = {shard.name: header.parse(text, shard) for shard, text in zip(origins.values(), texts, strict=True)}
    placed = index.place(found, headers, origin)
    merged = {key: value for held in headers.values() for key, value in held.metadata.items()} | found.metadata
    meaning = metadata.understand(placed, merged, origin)
    return SafetensorsSource(
        folder, {meaning.names[name]: place for name, place in placed.items()}, meaning.aliases, meaning.metadata
    )


def _shards(folder: Folder, origin: Origin, names: Sequence[str]) -> dict[str, Origin]:
    """The files of an index, with their sizes."""
    files = folder.list().files
    for name in names:
        if name not in files:
            shard = Origin(name, folder.location(name), 0)
            raise shard.corrupt(f"{origin.name!r} names it, and there is no such file (links do not count)")
    return {name: Origin(name, folder.location(name), files[name].nbytes) for name in names}


def _header(folder: Folder, origin: Origin) -> bytes:
    """The text of a file's header."""
    first = _range(folder, origin, 0, min(origin.nbytes, _FIRST_NBYTES))
    end = LENGTH_NBYTES + header.length(first, origin)
    text = first[LENGTH_NBYTES:end]
    if end > len(first):
        text += _range(folder, origin, len(first), end - len(first))
    return text


def _range(folder: Folder, origin: Origin, offset: int, nbytes: int) -> bytes:
    try:
        return folder.read_range(origin.name, offset, nbytes) if nbytes else b""
    except EOFError as error:
        raise origin.corrupt(f"it ends before byte {offset + nbytes}") from error
