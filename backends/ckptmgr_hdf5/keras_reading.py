"""What Keras wrote, in any of its layouts, as named tensors, texts and other files - without Keras.

Which layout it is, the content says; names of files do not count, since Keras itself gave one suffix to two layouts.
Nothing that a config says is ever run or imported; see `has_unsafe_config`.
"""

from collections.abc import Collection, Iterable

from ckptmgr.backend import JSON, Folder, zipreading
from ckptmgr_hdf5.keras_archive import CONFIG, METADATA, WEIGHTS, Parse, Parts, open_folder, open_shards, open_zip
from ckptmgr_hdf5.keras_config import has_unsafe_config, parse
from ckptmgr_hdf5.keras_legacy import LAYERS, names, read_legacy, weights_group
from ckptmgr_hdf5.keras_opened import HDF5, Opened, Place, assemble, datasets, text
from ckptmgr_hdf5.keras_weights import has_weights, read_weights
from ckptmgr_hdf5.parsing import Dataset, Group

__all__ = ["HDF5", "Opened", "Place", "has_unsafe_config", "open_keras", "open_path", "recognizes"]

WHOLE_MODEL, LEGACY_WEIGHTS, NEW_WEIGHTS = "legacy-model", "legacy-weights", "weights"
SHARDED, ARCHIVE, UNZIPPED = "sharded-weights", "archive", "folder"
_INDEX_SUFFIX = ".weights.json"
_FIRST_MEMBERS = (CONFIG, METADATA, WEIGHTS)


def recognizes(path: str, head: bytes, siblings: Collection[str]) -> bool:
    """Whether it is a ``.keras`` archive, a model saved as a folder, or an index of weights in several files. Pure.

    HDF5 files are not asked for here: `open_keras` tells of them.
    """
    if not head:
        return CONFIG in siblings and WEIGHTS in siblings and path.rpartition("/")[2] not in siblings
    if head.startswith(zipreading.SIGNATURE):
        nbytes = int.from_bytes(head[26:28], "little")
        return path.endswith(".keras") or head[30 : 30 + nbytes] in [name.encode() for name in _FIRST_MEMBERS]
    return head.lstrip()[:1] == b"{" and b'"weight_map"' in head and (path.endswith(_INDEX_SUFFIX) or b".weights.h5" in head)


def open_keras(hdf5: HDF5) -> Opened | None:
    """What Keras wrote to an HDF5 file, legacy or new; None if it was not Keras that wrote it.

    Raises:
        CorruptCheckpointError: names, configs or links between them are damaged; names file and object.
        UnsafeCheckpointError: a name that leads elsewhere.
        Unknown: attributes that only HDF5 itself can read; try again with a tree from there.
    """
    group = weights_group(hdf5.root)
    if group is not None:
        return _legacy(hdf5, group)
    return assemble(read_weights(_all(hdf5)), {"kind": NEW_WEIGHTS}, {}) if has_weights(hdf5.root) else None


def open_path(folder: Folder, path: str, parse_tree: Parse) -> Opened:
    """What is at a path that `recognizes` knows: an archive, an index, or a folder ("" for ``folder`` itself).

    ``parse_tree`` reads the HDF5 files in it. A folder's files are found in ``folder.folder(path)``.

    Raises:
        FileNotFoundError: there is nothing.
        CorruptCheckpointError: damaged, or something of it is missing; names file and object.
        UnsafeCheckpointError: names that lead elsewhere, links, bombs.
        Unknown: as ``parse_tree`` does.
    """
    head = folder.head(path) if path else None
    if head is None:
        return _whole(open_folder(folder.folder(path) if path else folder, parse_tree), UNZIPPED)
    if folder.read_range(path, 0, min(4, head.nbytes)) == zipreading.SIGNATURE:
        return _whole(open_zip(folder, path, parse_tree), ARCHIVE)
    return assemble(read_weights(open_shards(folder, path, parse_tree)), {"kind": SHARDED}, {})


def _whole(parts: Parts, kind: str) -> Opened:
    origin = parts.weights.origin
    config = parse(parts.config, origin, CONFIG)
    facts: dict[str, JSON] = {"kind": kind}
    texts = {"config": parts.config}
    if parts.metadata is not None:
        texts["archive_metadata"] = parts.metadata
        version = parse(parts.metadata, origin, METADATA)
        if isinstance(version, dict) and isinstance(version.get("keras_version"), str):
            facts["keras_version"] = version["keras_version"]
    opened = assemble(read_weights(_all(parts.weights), config), facts, texts)
    return Opened(opened.tensors, opened.paths, opened.metadata, parts.blobs)


def _all(hdf5: HDF5) -> Iterable[tuple[HDF5, Dataset]]:
    return ((hdf5, dataset) for dataset in datasets(hdf5.root))


def _legacy(hdf5: HDF5, group: Group) -> Opened:
    attributes, origin = hdf5.root.attributes, hdf5.origin
    texts = {name: found for name in ("model_config", "training_config") if (found := text(attributes, name, origin)) is not None}
    parsed = {name: parse(found, origin, name) for name, found in texts.items()}
    kind = LEGACY_WEIGHTS if group is hdf5.root else WHOLE_MODEL
    facts: dict[str, JSON] = {"kind": kind, "keras_version": "1"}  # Keras 1 did not say
    for holder in (group, hdf5.root):
        for name in ("keras_version", "backend"):
            if (found := text(holder.attributes, name, origin)) is not None:
                facts[name] = found
    facts["layer_names"] = [*names(group.attributes, LAYERS, origin)]
    return assemble(read_legacy(hdf5, group, parsed.get("model_config")), facts, texts)
