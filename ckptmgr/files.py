"""Single checkpoints without a manager: one file or file set under a name of the user's choice."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ckptmgr import backend as backends
from ckptmgr import saving, tree
from ckptmgr.backend import Backend
from ckptmgr.checkpoint import SKELETON, Cast, Checkpoint, files_of, open_files, open_managed
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.manifest import MANIFEST, folder_name, parse_attempt
from ckptmgr.record import decode
from ckptmgr.renaming import Renaming
from ckptmgr.step import JSON
from ckptmgr.storage import Folder, open_folder
from ckptmgr.transfer import Progress, Verify

STEM = "model"


def save(
    url: str | os.PathLike[str],
    state: Any,
    *,
    backend: str | Backend = "safetensors",
    metadata: Mapping[str, JSON] | None = None,
    max_file_nbytes: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Saves a state as one file, or as a file set in a folder (``url`` ends in ``/`` or is one), and gives the files' paths.

    Each file is durable and appears whole under its name, an index last. A flat ``{name: array}`` state makes a plain file
    of the format; for anything else the file also carries what `load` needs to give the same state back.

    One file replaces another at once. A set of several files that replaces an older one is first written beside it, which
    takes the space of both, in files without names: until every byte is durable the older one is there, also if this fails.
    Then its index is removed, the new files take their names, the index last, and what else is left of the older set is
    removed. Only while the names are taken is there nothing to open, and a death or failure then leaves it so; where no
    data file has the name of an old one (another number of them), the old index stays until the new one takes its name.
    There is never an index beside data of another set, but whoever opened the older one before may still read new data
    under it, and is told so by an error (safetensors) or by checksums (tf_bundle). Only one process at a time may save under a
    name. `CheckpointManager` has none of these limits.

    ``max_file_nbytes`` is the most tensor bytes in one file; a larger state is a set with an index. ``storage_options`` are for
    the place at ``url``, and ``progress`` is called as ``progress(bytes_done, bytes_total)`` while bytes move.

    A process that dies while writing leaves hidden files, ``.ckptmgr-*.tmp``, which may be deleted. Where the store cannot
    rename files, they are written under their own names at once, and an old index of files that are replaced is removed before.

    Raises:
        ValueError: the name does not end as the backend's files do, or ``metadata`` has a key that the file needs for itself.
        UnsupportedLeafError, UnsupportedTensorError: the state holds something that cannot be stored exactly.
        OSError: the storage failed; files that are there are whole, and a set that was there still is, with the exceptions above.
    """
    chosen = _chosen(backend)
    folder, stem = target(url, chosen, storage_options)
    flat = tree.flatten(state)
    carried = dict(metadata or {})
    if SKELETON in carried:
        raise ValueError(f"metadata must not use the key {SKELETON!r}, which the file needs for itself")
    if not _is_flat(flat):
        carried[SKELETON] = flat.skeleton
    planned = saving.plan(flat, chosen, stem=stem, max_file_nbytes=max_file_nbytes, metadata=carried)
    written = saving.replace(folder, planned, chosen, stem=stem, progress=progress)
    return [folder.location(entry.name) for entry in written.files]


def load(
    url: str | os.PathLike[str],
    into: Any = None,
    *,
    select: Sequence[str] | str | None = None,
    rename: Renaming | None = None,
    cast: Cast = "no",
    strict: bool = True,
    backend: str | Backend | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    mmap: bool = False,
    copy: bool = False,
) -> Any:
    """The state in a file, file set or step folder of any known format, verified wherever that has checksums.

    ``url``, ``backend`` and ``storage_options`` are those of `open_checkpoint`; ``into``, ``select``, ``rename``, ``cast``,
    ``strict``, ``mmap``, ``copy`` and ``progress`` those of `Checkpoint.restore`, and so are the guarantees. Without ``into`` the
    state has dicts, lists, tuples, scalars and numpy arrays.

    Raises:
        FileNotFoundError, BackendNotFoundError, MissingDependencyError: as `open_checkpoint` does.
        StateMismatchError, ValueError, CorruptCheckpointError: as `Checkpoint.restore` does.
        OSError: the storage failed.
    """
    with open_checkpoint(url, backend=backend, storage_options=storage_options) as checkpoint:
        return checkpoint.restore(
            into=into, select=select, rename=rename, cast=cast, strict=strict, progress=progress, mmap=mmap, copy=copy
        ).state


def open_checkpoint(
    url: str | os.PathLike[str],
    *,
    backend: str | Backend | None = None,
    storage_options: Mapping[str, Any] | None = None,
    verify: Verify = "full",
) -> Checkpoint:
    """The file, file set, or folder of a managed step at ``url`` as a lazy `Checkpoint`, detected by content. Close it.

    ``verify`` says what reads check: ``"full"``, every byte that has a checksum; ``"fast"``, sizes and structure; ``"off"``.
    ``storage_options`` are for the place at ``url``. ``backend`` opens the files itself, whatever they look like;
    what the record of a managed step says is then left aside.

    Raises:
        FileNotFoundError: there is nothing at that place.
        BackendNotFoundError: no installed backend recognizes it, or there is none of that name.
        MissingDependencyError: a package that the backend needs is not installed.
        CorruptCheckpointError: it is damaged; names file and tensor.
    """
    text = os.fspath(url)
    if "://" not in text:
        text = os.path.abspath(os.path.expanduser(text))  # "." and ".." have no name of their own
    if os.path.islink(text):
        # A link that the caller names is followed, as in a Hugging Face cache; links inside a folder never are.
        text = os.path.realpath(text)
    parent, _, name = text.rstrip("/").replace(os.sep, "/").rpartition("/")
    folder = open_folder(parent or ("/" if text.startswith("/") else "."), storage_options)
    if backend is not None:
        return open_files(_chosen(backend), folder, name, verify=verify)
    managed = _managed(folder, name, verify, lambda: _run_of(parent, name, storage_options))
    if managed is not None:
        return managed
    return open_files(backends.detect(folder, name), folder, name, verify=verify)


def _run_of(parent: str, name: str, storage_options: Mapping[str, Any] | None) -> tuple[Folder, str]:
    """The folder of the run of a step, and the name of the step's folder in it."""
    if parse_attempt(name):
        parent, _, name = parent.rpartition("/")
    return open_folder(parent or "/", storage_options), name


def _managed(parent: Folder, name: str, verify: Verify, run: Callable[[], tuple[Folder, str]]) -> Checkpoint | None:
    """The step whose folder, or whose attempt's folder, this is; None if it is neither."""
    attempt = parse_attempt(name)
    step_folder = parent if attempt or not name else parent.folder(name)
    found = step_folder.read(MANIFEST)
    if found is None or not any(map(parse_attempt, step_folder.list().folders)):
        return None  # other tools have files of that name too
    record = decode(found[0], where=step_folder.location(MANIFEST))
    manifest = record.manifest
    if manifest is None or attempt not in (None, manifest.attempt):
        raise CorruptCheckpointError(f"{parent.location(name)!r} was never committed, or is deleted: open another step")
    folder = step_folder.folder(folder_name(manifest.attempt))
    if any(entry.origin for entry in manifest.files):
        folder = files_of(*run(), manifest)
    info = manifest.info(record.pins, name=name, path=folder.location())

    def is_current() -> bool:
        now = step_folder.read(MANIFEST)
        return now is not None and manifest.attempt.encode() in now[0]

    return open_managed(folder, manifest, info, verify=verify, is_current=is_current)


def _chosen(backend: str | Backend) -> Backend:
    return backends.find(backend) if isinstance(backend, str) else backend


def target(url: str | os.PathLike[str], backend: Backend, storage_options: Mapping[str, Any] | None) -> tuple[Folder, str]:
    """The folder and the stem of new files of that format at a place that a user names. Raises ValueError for a wrong ending."""
    text = os.fspath(url).replace(os.sep, "/")
    if text.endswith("/") or os.path.isdir(os.path.expanduser(text)):
        return open_folder(text, storage_options), STEM
    parent, _, name = text.rpartition("/")
    stem = name.removesuffix(backend.suffix)
    if not stem or not name.endswith(backend.suffix):
        raise ValueError(
            f"{text!r} does not end in {backend.suffix!r}, as files of backend {backend.name!r} do: "
            "name it so, choose another backend, or end the path in '/' for a folder"
        )
    return open_folder(parent or ("/" if text.startswith("/") else "."), storage_options), stem


def _is_flat(flat: tree.Flat) -> bool:
    """Whether the file's own names say everything: one dict of arrays, none tied, no key that needs the skeleton's care."""
    if not isinstance(flat.skeleton, dict) or flat.aliases:
        return False
    if "$arrays" in flat.skeleton:
        return bool(flat.skeleton["$arrays"] == list(flat.tensors))
    if list(flat.skeleton) != list(flat.tensors):
        return False
    return all(_is_plain(node, name) for name, node in flat.skeleton.items())


def _is_plain(node: JSON, name: str) -> bool:
    # Generators lie among the tensors too; their kind has a "/" and is needed to make them again.
    return (
        isinstance(node, dict)
        and node.get("$tensor") == name
        and node.keys() <= {"$tensor", "kind"}
        and "/" not in node.get("kind", "")
    )
